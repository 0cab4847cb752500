"""The figures of README.md, made from committed results: ``python -m fftconv_cupy.benchmarks.readme`` writes them anew.

Tables stand between ``<!-- NAME -->`` and ``<!-- /NAME -->``. Pictures carry the digests of the results that they were
drawn from, so that a test can tell whether they are of today's.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fftconv_cupy.benchmarks import peers, plots, storage, tables
from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.suites import PUBLISHED_SIZES
from fftconv_cupy.mma_blocks import FASTER_POINTS, GRADIENT_POINTS
from fftconv_cupy.problem import PRECISIONS

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
SOURCES = ("targets-h100.json", "backward-h100.json")
PRECISION = "precision-h200.json"
PICTURE = RESULTS / "speed-h100.png"
PRECISION_PICTURE = RESULTS / "precision-h200.png"
PICTURED = (*SOURCES, peers.FILE.name)

_SUITES = ("speed", "backward", "conv")
_COLUMNS = {
    "causal": ("forward", "causal", False),
    "causal, gated": ("forward", "causal", True),
    "circular, gated": ("forward", "circular", True),
    "causal gradients": ("backward", "causal", False),
    "causal gradients, gated": ("backward", "causal", True),
}
_HALVES = ("float16", "bfloat16")
_TENSOR_CORE_SIZES = sorted(  # FFT sizes of which they compute everything
    2 * points for points in set.intersection(*map(set, (*FASTER_POINTS.values(), *GRADIENT_POINTS.values())))
)
_DIFFERENT = tuple(name for name in PRECISIONS if name != "high")  # which computes as "highest" does
_PEERS = ("torch.fft rfft", "FlashFFTConv", "subquadratic-ops")

Record = dict[str, Any]


def digest_of(*names: str) -> str:
    """Return the digests of files of results that a picture is drawn from, on one line."""
    return " ".join(storage.load(RESULTS / name)["digest"] for name in names)


def sections() -> dict[str, str]:
    """Return what the README has between its marks: how we compare, our times, others' multiples, and precisions."""
    records = _records(*SOURCES)
    return {
        "summary": _summary(records),
        "speed": "\n".join(_times(records)),
        "precision": "\n".join(_precisions(_records(PRECISION, suites=("precision",), dtypes=_HALVES))),
        "peers": "\n".join(_ratios(records)),
    }


def updated(text: str) -> str:
    """Return the README's text with its figures written anew.

    Raises:
        ValueError: a mark is missing.
    """
    for name, section in sections().items():
        marks = re.compile(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- /{name} -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(
                f"README.md has no <!-- {name} --> and <!-- /{name} -->, each on a line between empty ones"
            )
        text = marks.sub(lambda match, section=section: match[1] + section + match[2], text)  # type: ignore[misc]
    return text


def draw() -> None:
    """Draw the gated causal convolution beside the others, and the error of each precision over its time."""
    records = [r for r in _records(*SOURCES) if r["gated"] and r["mode"] == "causal"]
    beside = peers.published_beside(records, {record["impl"] for record in peers.published()})
    plots.draw([*records, *beside], PICTURE, _place(*SOURCES), metadata={"Description": digest_of(*PICTURED)})
    records = _records(PRECISION, suites=("precision",), dtypes=_HALVES)
    plots.draw_errors(records, PRECISION_PICTURE, _place(PRECISION), metadata={"Description": digest_of(PRECISION)})


def _place(*names: str) -> str:
    """Return where and of which commits files of results are, on one line."""
    found = [storage.load(RESULTS / name)["environment"] for name in names]
    places = dict.fromkeys(f"{facts['gpu']}, driver {facts['driver']}" for facts in found)
    commits = dict.fromkeys(facts["commit"] for facts in found)
    return f"{' and '.join(places)}; ours at commit {' and '.join(commits)}"


def _records(*names: str, suites: Sequence[str] = _SUITES, dtypes: Sequence[str] = ("float16",)) -> list[Record]:
    return [
        record
        for name in names
        for record in storage.load(RESULTS / name)["records"]
        if record["impl"] == OURS and record["suite"] in suites and record["dtype"] in dtypes
    ]


def _sizes(records: Sequence[Record]) -> list[int]:
    return sorted({record["fft_size"] for record in records} & {*PUBLISHED_SIZES})


def _times(records: Sequence[Record]) -> Iterator[str]:
    """Yield a row a size: outputs with a prepared filter, gradients with a raw one."""
    yield from _head(_COLUMNS)
    for size in _sizes(records):
        cells = [_cell(records, size, *column) for column in _COLUMNS.values()]
        yield _line([str(size), *(f"{tables.shown_ms(cell):.3g}" if cell else "" for cell in cells)])


def _precisions(records: Sequence[Record]) -> Iterator[str]:
    """Yield a row a size and dtype that was timed with each precision: times and errors, gated and causal."""
    names = [f"{what} {precision}" for what in ("outputs", "gradients") for precision in _DIFFERENT]
    yield from _head(["dtype", *names])
    for size in _TENSOR_CORE_SIZES:
        for dtype in _HALVES:
            own = [record for record in records if record["dtype"] == dtype]
            cells = [
                _cell(own, size, direction, "causal", True, precision=precision)
                for direction in ("forward", "backward")
                for precision in _DIFFERENT
            ]
            if all(cells):
                shown = (f"{tables.shown_ms(cell):.3g}, {cell['error']:.1e}" for cell in cells if cell)
                yield _line([str(size), dtype, *shown])


def _ratios(records: Sequence[Record]) -> Iterator[str]:
    """Yield a row a size: gated causal outputs and gradients, a raw filter, theirs over ours."""
    yield from _head([f"{name}{what}" for name in _PEERS for what in ("", ", gradients")])
    for size in _sizes(records):
        cells = []
        for name in _PEERS:
            for direction in ("forward", "backward"):
                ours = _cell(records, size, direction, "causal", True, filter="raw")
                beside = peers.published_beside([ours], [name]) if ours else []
                cells.append(_ratio(beside[0], ours) if beside and ours else "")
        if any(cells):
            yield _line([str(size), *cells])


def _summary(records: Sequence[Record]) -> str:
    """Return in two sentences what the table of `_ratios` says, and the errors of others beside ours."""
    ratios, errors = [], []
    for name in _PEERS:
        spans = []
        for direction in ("forward", "backward"):
            pairs = list(_pairs(records, name, direction))
            spans.append(_span([f"{theirs['ms'] / ours['ms']:.1f}" for theirs, ours in pairs]))
            if direction == "forward" and all(theirs["error"] for theirs, _ in pairs):
                errors.append(f"{name} has {_span([_error(theirs) for theirs, _ in pairs])}")
        ratios.append(f"{name} {' and '.join(spans)}")
    ours = [pair[1] for pair in _pairs(records, _PEERS[0], "forward")]
    sizes = _span([str(record["fft_size"]) for record in ours])
    text = (
        f"For the gated causal convolution in float16 of FFT sizes {sizes} on an H100, and for all its gradients, "
        f"others take so many times as long: {', '.join(ratios)}. The relative error against float64 is "
        f"{_span([_error(record) for record in ours])}, that of rounding the result; {', '.join(errors)}."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _span(shown: Sequence[str]) -> str:
    least, most = min(shown, key=float), max(shown, key=float)
    return least if least == most else f"{least} to {most}"


def _error(record: Record) -> str:
    return f"{record['error']:.1e}"


def _pairs(records: Sequence[Record], name: str, direction: str) -> Iterator[tuple[Record, Record]]:
    """Yield the published record of a library beside ours, for each size that has both: gated, causal, raw filter."""
    for size in _sizes(records):
        ours = _cell(records, size, direction, "causal", True, filter="raw")
        if ours:
            for theirs in peers.published_beside([ours], [name])[:1]:
                yield theirs, ours


def _ratio(theirs: Record, ours: Record) -> str:
    return f"{theirs['ms'] / ours['ms']:.1f}{' (a wrong result)' if tables.is_wrong(theirs) else ''}"


def _cell(
    records: Sequence[Record],
    size: int,
    direction: str,
    mode: str,
    gated: bool,
    *,
    filter: str = "prepared",
    precision: str = "highest",
) -> Record | None:
    wanted = {"fft_size": size, "direction": direction, "mode": mode, "gated": gated}
    wanted |= {"precision": precision, "filter": "raw" if direction == "backward" else filter}
    return next((r for r in records if all(r[name] == value for name, value in wanted.items())), None)


def _head(names: Sequence[str] | dict[str, Any]) -> Iterator[str]:
    yield _line(["FFT size", *names])
    yield _line(["---"] * (1 + len(names)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the tables of README.md and its pictures anew."""
    path = REPOSITORY / "README.md"
    path.write_text(updated(path.read_text()))
    draw()
    sys.stdout.write("".join(f"{file.relative_to(REPOSITORY)}\n" for file in (path, PICTURE, PRECISION_PICTURE)))


if __name__ == "__main__":
    main()
