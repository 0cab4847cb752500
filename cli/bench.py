"""``fftconv bench``: how long convolutions take on this GPU, beside other ways to compute them."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

import fftconv_cupy
from fftconv_cupy.benchmarks import comparison, environment, kinds, peers, plots, storage, tables, targets
from fftconv_cupy.benchmarks.cells import DIRECTIONS, FILTERS, Cell, Timed, shape_of
from fftconv_cupy.benchmarks.kinds import IMPLEMENTATIONS
from fftconv_cupy.benchmarks.run import Record, Session
from fftconv_cupy.benchmarks.suites import SUITES, cells_of
from fftconv_cupy.benchmarks.timing import BURST_MS, COPY_BYTES, IDLE_MS, GpuClock
from fftconv_cupy.cli import options
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.problem import DTYPES, MODES, resolve_fft_size

_SIZES = (256, 1024, 4096, 8192, 16384, 32768)
_COMPILE_THREADS = 16
_NAMES = list(dict.fromkeys(implementation.name for implementation in IMPLEMENTATIONS))
_CHANGES_SHOWN = 30
_VERSIONS = {"cupy": "CuPy", "nvrtc": "NVRTC"}  # of an environment, as they are shown
_COMMIT_DIGITS = 12

Content = dict[str, Any]


@click.command()
@click.option(
    "--suite", type=click.Choice(SUITES), metavar="NAME", help="A fixed set of problems, which other options narrow."
)
@click.option("--fft-size", "sizes", type=int, multiple=True, help="Real points N, L = N / 2; may be repeated.")
@click.option("--seqlen", "seqlens", type=click.IntRange(min=1), multiple=True, help="L = K instead; may be repeated.")
@click.option("--batch", type=click.IntRange(min=1), help="B.  [default: 64, from N = 16384 on less]")
@click.option("--channels", type=click.IntRange(min=1), help="H.  [default: 768]")
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True, help="May be repeated.  [default: causal]")
@click.option("--gates", type=click.Choice(["none", "both", "all"]), default="all", show_default=True)
@click.option("--filter", "filters", type=click.Choice(FILTERS), multiple=True, help="[default: both; backward raw]")
@click.option(
    "--direction",
    type=click.Choice([*DIRECTIONS, "all"]),
    help="Backward: all gradients.  [default: forward, of a suite all]",
)
@options.dtypes(DTYPES, default="float16, of a suite all")
@options.precisions("highest, of a suite all")
@click.option("--framework", type=click.Choice(["cupy", "torch"]), help="Whose arrays ours gets.  [default: cupy]")
@click.option(
    "--impl",
    "names",
    type=click.Choice(_NAMES),
    multiple=True,
    metavar="NAME",
    help=f"{', '.join(_NAMES)}; may be repeated.  [default: all that are installed]",
)
@click.option("--runs", type=click.IntRange(min=1), help="The median of so many counts.  [default: 1, of a suite 3]")
@click.option("--budget-s", type=click.FloatRange(min=0), help="Begin with no problem after so many seconds.")
@options.device
@options.json_file
@options.csv_file
@click.option("--plot", "plot_path", type=options.new_file, help="Draw the results into this file, such as out.png.")
@click.option("--compare", "old_path", type=options.existing_file, help="Set them against this older JSON file.")
@click.option("--fail", is_flag=True, help="With --compare: exit with 1 where one of ours is over 5 % slower.")
@click.option("--from", "from_path", type=options.existing_file, help="Time nothing: show this JSON file.")
@click.option("--commit", help="Commit to record where the package does not run from a checkout.")
@click.option("--check", "check_path", type=options.existing_file, help="Only judge this JSON file by the targets.")
@click.pass_context
def bench(ctx: click.Context, /, **given: Any) -> None:
    """Time convolutions on a GPU, ours beside whatever else is installed.

    Others are torch.fft, CuPy, JAX, FlashFFTConv, subquadratic-ops and causal-conv1d; of those that are not installed,
    published figures of an H100 are shown, with a star. Times are medians between CUDA events with L2 flushed, scaled
    to B x H = 64 x 768; the floor is the time that reading the inputs and writing the output would take, at the
    bandwidth of a copy of 2 GiB in the same run. Backward, the gradient of the output is one of the inputs, and the
    gradients of u and the gates are the outputs. Without --suite, --fft-size or --seqlen, N is 256 to 32768.

    Suites: "conv", FFT sizes 256 to 4M, plain and gated, causal and circular; "short", depthwise convolutions of 3 to
    128 taps; "overhead", Python's time of a call and the first call of a process; "shapes", what models use, odd
    lengths, strided rows; "model", training steps of the example's language model; "precision", 16-bit rows with each
    of them; "targets", all that this project has set itself a figure for. Their parts can be chosen alone: speed,
    batch, float32, memory, backward, small, host, models, start, training.
    """
    if given["check_path"]:
        _show_verdicts(storage.load(given["check_path"])["records"])
        return
    if given["fail"] and given["old_path"] is None:
        raise click.UsageError("--fail is about --compare: name the older file.")
    if given["plot_path"] is not None:
        plots.require_matplotlib()
    old = None if given["old_path"] is None else storage.load(given["old_path"])
    if given["from_path"] is not None:
        content, failed = storage.load(given["from_path"]), False
        _write(content, given)
        _show(content, {*_NAMES} - {record["impl"] for record in content["records"]})
    else:
        content, failed = _timed(ctx, given)
    if old is not None:
        failed |= _show_changes(content, old) and given["fail"]
    ctx.exit(options.EXIT_MISMATCH if failed else 0)


def chosen_cells(given: dict[str, Any]) -> list[Timed]:
    """Return the cells that the options name, each with L = K, or those of the suite that they leave."""
    for size in given["sizes"]:
        if size < 2 or size & (size - 1):
            raise click.BadParameter(f"{size} is no power of two from 2 on", param_hint="--fft-size")
    if given["suite"]:
        return _narrowed(cells_of(given["suite"]), given)
    gates = _gates(given)
    directions = DIRECTIONS if given["direction"] == "all" else (given["direction"] or "forward",)
    filters = given["filters"] or FILTERS
    if "backward" in directions and "raw" not in filters:
        raise click.BadParameter("gradients are timed with a raw filter", param_hint="--filter")
    sizes = given["sizes"] or (() if given["seqlens"] else _SIZES)
    cells: list[Timed] = []
    for mode in given["modes"] or ("causal",):
        seqlens = [*given["seqlens"], *(size if mode == "circular" else size // 2 for size in sizes)]
        for seqlen, dtype, gated, filter, direction, precision in itertools.product(
            seqlens, given["dtypes"] or ("float16",), gates, filters, directions, given["precisions"] or ("highest",)
        ):
            if direction == "backward" and filter != "raw":
                continue
            batch, channels = shape_of(resolve_fft_size(mode, seqlen, seqlen, None))
            rows = given["batch"] or batch, given["channels"] or channels
            framework = given["framework"] or "cupy"
            shape = (*rows, seqlen, seqlen)
            cells.append(Cell("custom", mode, gated, dtype, *shape, filter, framework, direction, precision))
    return cells


def _narrowed(cells: Sequence[Timed], given: dict[str, Any]) -> list[Timed]:
    """Return those cells of a suite that the options name, in the shape that they give."""
    allowed = {
        "fft_size": given["sizes"],
        "seqlen": given["seqlens"],
        "mode": given["modes"],
        "dtype": given["dtypes"],
        "filter": given["filters"],
        "direction": () if given["direction"] in (None, "all") else (given["direction"],),
        "gated": _gates(given),
        "precision": given["precisions"],
    }
    changes = {name: given[name] for name in ("batch", "channels", "framework") if given[name] is not None}
    left = [c for c in cells if all(not values or getattr(c, name) in values for name, values in allowed.items())]
    if not left:
        raise click.UsageError(f"The suite {given['suite']} has no problem of this kind.")
    return list(dict.fromkeys(dataclasses.replace(cell, **changes) for cell in left))


def _gates(given: dict[str, Any]) -> tuple[bool, ...]:
    return {"none": (False,), "both": (True,), "all": (False, True)}[given["gates"]]


def _timed(ctx: click.Context, given: dict[str, Any]) -> tuple[Content, bool]:
    """Time, write and show what is asked for; return the results and whether one of ours failed."""
    gpus, reason = environment.gpu_count()
    cells = chosen_cells(given)
    if not gpus:
        click.echo(click.wrap_text(f"No GPU to time: {reason}"), err=True)
        needed = "It takes an NVIDIA GPU of compute capability 7.5 or later; --from shows results without."
        click.echo(click.wrap_text(needed), err=True)
        ctx.exit(options.EXIT_NO_GPU)
    ordinal = given["device"] or 0
    if ordinal >= gpus:
        raise click.BadParameter(f"cuda:{ordinal} is not there: {gpus} GPU(s)", param_hint="--device")
    with import_cupy().cuda.Device(ordinal):
        return _run(cells, given, ordinal)


def _run(cells: Sequence[Timed], given: dict[str, Any], ordinal: int) -> tuple[Content, bool]:
    described = {**environment.gpu(ordinal), **environment.software()}
    del described["cache"]  # a path of this machine, of no meaning to the times
    click.echo(f"{described['gpu']}, driver {described['driver']}, CUDA {described.get('cuda')}")
    _warm(cells, ordinal)
    runs = given["runs"] or (3 if given["suite"] else 1)
    session = Session(
        GpuClock(ordinal),
        min_copy_gb_per_s=targets.MIN_COPY_GB_PER_S if given["suite"] == "targets" else 0.0,
        implementations=[i for i in IMPLEMENTATIONS if i.name in (given["names"] or (i.name,))],
        budget_s=given["budget_s"],
    )
    with click.progressbar(session.run(cells, runs), length=runs * len(cells), label="timing", show_pos=True) as steps:
        for _ in steps:
            pass
    for copy in session.void_copies:
        click.echo(f"A run was void: its copy moved {copy:.0f} GB/s, under {session.min_copy_gb_per_s:.0f}.")
    if not session.copies:
        raise click.ClickException("no run counts: something else uses this GPU, or it is not the one of the targets")
    content: Content = {"environment": {**described, **_measured(given, session, runs)}, "records": session.records()}
    _write(content, given)
    _show(content, session.missing)
    if given["suite"] == "targets":
        _show_verdicts(content["records"])
    return content, session.failed


def _measured(given: dict[str, Any], session: Session, runs: int) -> dict[str, Any]:
    """Return the part of the environment that says how the times were taken."""
    return {
        "commit": given["commit"] or environment.commit(),
        "command": environment.command(),
        "copy_gb_per_s": statistics.median(session.copies),
        "copies_gb_per_s": session.copies,
        "void_copies_gb_per_s": session.void_copies,
        "copy_bytes": COPY_BYTES,
        "runs": runs,
        "min_burst_ms": BURST_MS,
        "idle_ms": IDLE_MS,
        "notes": session.notes,
    }


def _warm(cells: Iterable[Timed], ordinal: int) -> None:
    """Compile and load the kernels of all cells, several at a time."""
    cells = list(dict.fromkeys(cells))

    def warm(cell: Timed) -> None:
        with import_cupy().cuda.Device(ordinal):
            try:
                kinds.warm(cell)
            except fftconv_cupy.UnsupportedProblemError:
                return  # noted when the cell is timed

    with ThreadPoolExecutor(_COMPILE_THREADS) as pool:
        done = pool.map(warm, cells)
        with click.progressbar(done, length=len(cells), label="compiling", show_pos=True) as steps:
            for _ in steps:
                pass


def _write(content: Content, given: dict[str, Any]) -> None:
    """Write the files that the options name."""
    if given["json_path"] is not None:
        storage.write(given["json_path"], content)
    if given["csv_path"] is not None:
        given["csv_path"].write_text(tables.comma_separated(content["records"]))
    if given["plot_path"] is not None:
        _draw(content, given["plot_path"])


def _draw(content: Content, path: Path) -> None:
    records = content["records"]
    beside = peers.published_beside(records, {*_NAMES} - {record["impl"] for record in records})
    caption = _place(content) + (f"; published: {peers.source()}" if beside else "")
    plots.draw([*records, *beside], path, caption)


def _show(content: Content, missing: Iterable[str]) -> None:
    """Print the notes, the tables and where the results are from."""
    records, found = content["records"], content["environment"]
    beside = peers.published_beside(records, missing)
    for note in found.get("notes", ()):
        click.echo(click.wrap_text(note))
    click.echo("\n" + tables.text([*records, *beside], options.table))
    click.echo("\n" + click.wrap_text(_place(content)))
    if beside:
        click.echo(click.wrap_text(f"* not timed here: {peers.source()}"))


def _place(content: Content) -> str:
    found = content["environment"]
    runs = f", {len(found['copies_gb_per_s'])} run(s)" if "copies_gb_per_s" in found else ""
    head, _, changed = str(found.get("commit", "")).partition("-")
    commit = f", commit {head[:_COMMIT_DIGITS]}{changed and '-'}{changed}" if head else ""
    versions = "".join(f", {label} {found[name]}" for name, label in _VERSIONS.items() if found.get(name))
    copy = f", copy {found['copy_gb_per_s']:.0f} GB/s"
    return f"{found['gpu']}, driver {found['driver']}{versions}{commit}{copy}{runs}"


def _show_changes(content: Content, old: Content) -> bool:
    """Print which times have changed by more than 5 %, and return whether one of ours has grown."""
    changes = comparison.changes(content["records"], old["records"])
    changed = [change for change in changes if change.word != "same"]
    rows = [
        (
            tables.line(change.record),
            *(("-" if ms is None else f"{ms:.4g}") for ms in (change.before_ms, change.record["ms"])),
            f"{change.ratio:.2f}",
            change.word,
        )
        for change in changed[:_CHANGES_SHOWN]
    ]
    if rows:
        click.echo("\n" + options.table(("against the older file", "before", "ms now", "ratio", ""), rows))
    for difference in comparison.differences(content["environment"], old):
        click.echo(difference)
    slower = sum(change.is_regression for change in changes)
    left = f"; {len(changed) - len(rows)} more changes not shown" if len(changed) > len(rows) else ""
    click.echo(f"{slower} of {len(changes)} times in both files are ours and over 5 % slower{left}")
    return slower > 0


def _show_verdicts(records: Sequence[Record]) -> None:
    verdicts = targets.check(records)
    groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for v in verdicts:
        row = (v.cell, f"{v.measured:.4g}", f"{v.limit:.4g}", f"{v.measured / v.limit:.2f}", v.word)
        groups.setdefault((v.what, v.unit), []).append(row)
    for (what, unit), rows in groups.items():
        click.echo("\n" + options.table((f"{what}, {unit}", "measured", "at most", "ratio", ""), rows))
    met = sum(v.is_met for v in verdicts)
    click.echo(f"\n{met} of {len(verdicts)} targets met; they were set for an H100 80GB HBM3")
