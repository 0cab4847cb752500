"""Results as a picture: time over length with the floor, and how many times as long others take."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.peers import PUBLISHED_NOTE
from fftconv_cupy.benchmarks.tables import grouped, is_scaled, is_wrong, ours_beside, shown_ms, titled
from fftconv_cupy.errors import InvalidArgumentError, MissingDependencyError, message

_COLOURS = {  # of Okabe and Ito, who chose them for eyes that see fewer
    OURS: "#d55e00",
    "torch.fft rfft": "#0072b2",
    "torch.fft fft": "#56b4e9",
    "torch conv1d": "#0072b2",
    "cupyx rfft": "#999999",
    "JAX rfft": "#cc79a7",
    "FlashFFTConv": "#009e73",
    "subquadratic-ops": "#e69f00",
    "causal-conv1d": "#e69f00",
}
_PRECISION_COLOURS = {"highest": "#d55e00", "high": "#999999", "medium": "#0072b2"}
_MARKERS = dict(zip(_COLOURS, "os^sDvPXX", strict=True))
_PANEL = (5.2, 4.2)  # inches, width and height
_CAPTION = 75  # letters of the caption over a column
_RATIO_SHARE = 0.6  # of that height, for the bars below
_MOST_COLUMNS = 3
_LEAST_BARS = 3  # side by side: one alone is no wider than one of three
_LEAST_LENGTHS = 2  # of a curve

Record = dict[str, Any]
Curves = dict[tuple[str, str], dict[int, Record]]


def require_matplotlib() -> None:
    """Raise what `draw` would raise where matplotlib is missing, before anything is timed.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            message(
                "matplotlib, which pictures need",
                got="none installed",
                allowed="matplotlib >= 3.9",
                do="Run pip install 'fftconv-cupy[plot]'.",
            )
        ) from error


def draw(records: Sequence[Record], path: Path, caption: str, metadata: dict[str, str] | None = None) -> None:
    """Draw kinds of problems that were timed at several lengths: times above, how many times ours below.

    Where some of them were timed in other ways too, only those are drawn.

    Args:
        records: timed ones, and published ones beside them.
        path: of the picture; its ending says which kind.
        caption: of the whole, such as GPU, driver and commit.
        metadata: to be kept in the file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidArgumentError: nothing was timed at two lengths or more.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    panels = [(members[0], curves) for members in grouped(records).values() if (curves := _curves(members))]
    if not panels:
        raise InvalidArgumentError(
            message(
                "the plot",
                got="no kind of problem that was timed at two lengths",
                allowed="times over length",
                do="Time more lengths, with several --fft-size or --seqlen, or a suite.",
            )
        )
    compared = [panel for panel in panels if any(name != OURS for name, _ in panel[1])]
    panels = compared or panels
    shares = (1, _RATIO_SHARE) if compared else (1,)
    columns = min(len(panels), _MOST_COLUMNS)
    bands = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * sum(shares) * bands), layout="constrained")
    grid = figure.subplots(len(shares) * bands, columns, squeeze=False, height_ratios=shares * bands)
    for axes in grid.flat:
        axes.set_axis_off()  # until it is drawn in
    for number, (first, curves) in enumerate(panels):
        band, column = divmod(number, columns)
        above, *below = grid[len(shares) * band : len(shares) * (band + 1), column]
        _draw_times(above, first, curves)
        for axes in below:
            _draw_ratios(axes, curves)
    figure.suptitle(textwrap.fill(caption, _CAPTION * columns), fontsize=9)
    figure.savefig(path, dpi=150, metadata=metadata)


def draw_errors(records: Sequence[Record], path: Path, caption: str, metadata: dict[str, str] | None = None) -> None:
    """Draw the error of each precision over its time, a panel for outputs and gradients, plain and gated.

    Args:
        records: ours, of several precisions.
        path: as for `draw`.
        caption: as there.
        metadata: as there.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    panels: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        panels.setdefault((record["direction"], record["gated"]), []).append(record)
    columns = min(len(panels), _MOST_COLUMNS - 1)
    bands = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * bands), layout="constrained")
    for axes, ((direction, gated), members) in zip(
        figure.subplots(bands, columns, squeeze=False).flat, sorted(panels.items(), reverse=True), strict=False
    ):
        _draw_precisions(axes, members)
        what = "gradients" if direction == "backward" else "outputs"
        axes.set_title(f"causal, {'gated' if gated else 'plain'}, {what}", fontsize=10)
    figure.suptitle(textwrap.fill(caption, _CAPTION * columns), fontsize=9)
    figure.savefig(path, dpi=150, metadata=metadata)


def _draw_precisions(axes: Any, members: Sequence[Record]) -> None:
    """Draw a point for each length, dtype and precision; those of a dtype and precision are joined."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ways: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(members, key=lambda r: r["seqlen"]):
        ways.setdefault((record["dtype"], record["precision"]), []).append(record)
    for (dtype, precision), points in ways.items():
        axes.plot(
            [shown_ms(point) for point in points],
            [point["error"] for point in points],
            color=_PRECISION_COLOURS[precision],
            marker="o" if dtype == "float16" else "s",
            linestyle=":",
            linewidth=1,
            label=f"{dtype}, {precision}",
        )
        for point in points:
            place = shown_ms(point), point["error"]
            axes.annotate(_length(point["seqlen"]), place, (0, 6), textcoords="offset points", fontsize=7, ha="center")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    axes.set_xlabel("ms as of B x H = 64 x 768")
    axes.set_ylabel("relative error against float64")
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=7)


def _curves(members: Sequence[Record]) -> Curves:
    """Return the times of a group by way and length.

    They are those of rows as long as their filter; of short filters those of the group's first width and length.
    """
    found: Curves = {}
    first = members[0]["channels"], members[0]["filter_len"]
    for record in members:
        if record.get("layout") and (record["channels"], record["filter_len"]) != first:
            continue
        if record["ms"] is not None and (record["filter_len"] == record["seqlen"] or record.get("layout")):
            way = record["impl"], record["filter"] if record["impl"] == OURS else ""
            found.setdefault(way, {}).setdefault(record["seqlen"], record)
    is_line = any(len(points) >= _LEAST_LENGTHS for (name, _), points in found.items() if name == OURS)
    return found if is_line else {}


def _draw_times(axes: Any, first: Record, curves: Curves) -> None:
    axes.set_axis_on()
    floors = {
        length: shown_ms({**record, "ms": record["floor_ms"]})
        for points in curves.values()
        for length, record in points.items()
        if record["floor_ms"] is not None and record.get("note") != PUBLISHED_NOTE
    }
    if floors:
        lengths = sorted(floors)
        axes.plot(lengths, [floors[n] for n in lengths], "--", color="black", linewidth=1, label="floor: memory alone")
    for (name, filter), points in curves.items():
        lengths = sorted(points)
        is_prepared = filter == "prepared"
        axes.plot(
            lengths,
            [shown_ms(points[n]) for n in lengths],
            color=_COLOURS[name],
            marker=_MARKERS[name],
            markersize=4,
            linewidth=2 if name == OURS else 1.2,
            linestyle=":" if is_prepared else "-",
            label=_name(name, filter, points, curves),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    shape = f", D = {first['channels']}, K = {first['filter_len']}" if first.get("layout") else ""
    axes.set_title(f"{titled(first).partition(';')[0]}{shape}", fontsize=10)
    axes.set_ylabel("ms as of B x H = 64 x 768" if is_scaled(first) else "ms")
    _label_lengths(axes, sorted({length for points in curves.values() for length in points}))
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=7)


def _draw_ratios(axes: Any, curves: Curves) -> None:
    """Draw a bar for each other way at each length: how many times as long as ours it takes."""
    axes.set_axis_on()
    ours = [record for (name, _), points in curves.items() if name == OURS for record in points.values()]
    others = [way for way in curves if way[0] != OURS]
    lengths = sorted({length for points in curves.values() for length in points})
    width = 0.8 / max(_LEAST_BARS, len(others))
    for number, way in enumerate(others):
        places, heights, labels = [], [], []
        for length, record in curves[way].items():
            if (beside := ours_beside(record, ours)) is not None:
                places.append(lengths.index(length) + (number - (len(others) - 1) / 2) * width)
                heights.append(record["ms"] / beside["ms"])
                labels.append(f"{heights[-1]:.1f}{' (wrong)' if is_wrong(record) else ''}")
        bars = axes.bar(places, heights, width, color=_COLOURS[way[0]])
        axes.bar_label(bars, labels, fontsize=6, rotation=90, padding=2)
    axes.axhline(1, color=_COLOURS[OURS], linewidth=1.5)
    axes.margins(y=0.25)
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_xticks(range(len(lengths)), [_length(n) for n in lengths], fontsize=8)
    axes.set_xlabel("L")
    axes.set_ylabel("times as long as fftconv")


def _label_lengths(axes: Any, lengths: Sequence[int]) -> None:
    axes.set_xticks(lengths, [_length(n) for n in lengths], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("L")


def _name(name: str, filter: str, points: dict[int, Record], curves: Curves) -> str:
    if name == OURS:
        is_alone = sum(other == OURS for other, _ in curves) == 1
        return "fftconv" if is_alone and filter == "raw" else f"fftconv, {filter} filter"
    is_published = any(record.get("note") == PUBLISHED_NOTE for record in points.values())
    return f"{name} (published)" if is_published else name


def _length(points: int) -> str:
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if points % unit == 0:
            return f"{points // unit}{name}"
    return str(points)
