"""``fftconv bench``: how long convolutions take on this GPU, beside other ways to compute them."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

import fftconv_cupy
from fftconv_cupy.benchmarks import environment, targets
from fftconv_cupy.benchmarks.baselines import IMPLEMENTATIONS, OURS
from fftconv_cupy.benchmarks.cells import DIRECTIONS, FILTERS, SUITES, Cell, cells_of, shape_of
from fftconv_cupy.benchmarks.run import Record, Session
from fftconv_cupy.benchmarks.timing import BURST_MS, COPY_BYTES, IDLE_MS, GpuClock
from fftconv_cupy.cli import options
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.launch import warm as warm_forward
from fftconv_cupy.launch_vjp import warm_vjp
from fftconv_cupy.problem import DTYPES, MODES, Problem, Wanted, resolve_fft_size

_SIZES = (256, 1024, 4096, 8192, 16384, 32768)
_BASES = ("torch.fft rfft", "cupyx rfft")  # what speed-ups are relative to: the first that was timed
_COMPILE_THREADS = 16
_NAMES = [implementation.name for implementation in IMPLEMENTATIONS]


@click.command()
@click.option("--suite", type=click.Choice(["targets", *SUITES]), help="A fixed set of problems instead.")
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
    default="forward",
    show_default=True,
    help="Backward: all gradients.",
)
@options.dtypes(DTYPES, default="float16")
@click.option("--framework", type=click.Choice(["cupy", "torch"]), default="cupy", show_default=True)
@click.option("--impl", "names", type=click.Choice(_NAMES), multiple=True, help="[default: all that are installed]")
@click.option("--runs", type=click.IntRange(min=1), help="The median of so many counts.  [default: 1, of a suite 3]")
@options.device
@options.json_file
@click.option("--commit", help="Commit to record where the package does not run from a checkout.")
@click.option("--check", "check_path", type=options.existing_file, help="Only judge this JSON file by the targets.")
@click.pass_context
def bench(ctx: click.Context, /, **given: Any) -> None:
    """Time convolutions on a GPU: ours, the rfft way of torch and CuPy, FlashFFTConv and subquadratic-ops.

    What is not installed is left out. Times are medians between CUDA events with L2 flushed, scaled to
    B x H = 64 x 768; the floor is the time that reading the inputs and writing the output would take, at the bandwidth
    of a copy of 2 GiB in the same run. Backward, the gradient of the output is one of the inputs, and the gradients of
    u and the gates are the outputs. Without --fft-size or --seqlen, N is 256 to 32768.
    """
    if given["check_path"]:
        records = json.loads(given["check_path"].read_text())["records"]
        _show_verdicts(records)
        return
    gpus, reason = environment.gpu_count()
    if not gpus:
        click.echo(f"No GPU to time: {reason}", err=True)
        ctx.exit(options.EXIT_NO_GPU)
    ordinal = given["device"] or 0
    if ordinal >= gpus:
        raise click.BadParameter(f"cuda:{ordinal} is not there: {gpus} GPU(s)", param_hint="--device")
    runs = given["runs"] or (3 if given["suite"] else 1)
    cells = cells_of(given["suite"]) if given["suite"] else chosen_cells(given)
    with import_cupy().cuda.Device(ordinal):
        failed = _run(cells, given, runs, ordinal)
    ctx.exit(options.EXIT_MISMATCH if failed else 0)


def chosen_cells(given: dict[str, Any]) -> list[Cell]:
    """Return the cells that the options name, each with L = K."""
    sizes = given["sizes"] or (() if given["seqlens"] else _SIZES)
    for size in sizes:
        if size < 2 or size & (size - 1):
            raise click.BadParameter(f"{size} is no power of two from 2 on", param_hint="--fft-size")
    gates = {"none": (False,), "both": (True,), "all": (False, True)}[given["gates"]]
    directions = DIRECTIONS if given["direction"] == "all" else (given["direction"],)
    filters = given["filters"] or FILTERS
    if "backward" in directions and "raw" not in filters:
        raise click.BadParameter("gradients are timed with a raw filter", param_hint="--filter")
    cells = []
    for mode in given["modes"] or ("causal",):
        seqlens = [*given["seqlens"], *(size if mode == "circular" else size // 2 for size in sizes)]
        for seqlen, dtype, gated, filter, direction in itertools.product(
            seqlens, given["dtypes"] or ("float16",), gates, filters, directions
        ):
            if direction == "backward" and filter != "raw":
                continue
            batch, channels = shape_of(resolve_fft_size(mode, seqlen, seqlen, None))
            rows = given["batch"] or batch, given["channels"] or channels
            shape = (*rows, seqlen, seqlen, filter)
            cells.append(Cell("custom", mode, gated, dtype, *shape, given["framework"], direction=direction))
    return cells


def _run(cells: Sequence[Cell], given: dict[str, Any], runs: int, ordinal: int) -> bool:
    """Time the cells, print and write the results; return whether one of ours failed."""
    described = {**environment.gpu(ordinal), **environment.software()}
    del described["cache"]  # a path of this machine, of no meaning to the times
    click.echo(f"{described['gpu']}, driver {described['driver']}, CUDA {described.get('cuda')}")
    _warm(cells, ordinal)
    session = Session(
        GpuClock(ordinal),
        min_copy_gb_per_s=targets.MIN_COPY_GB_PER_S if given["suite"] == "targets" else 0.0,
        implementations=[i for i in IMPLEMENTATIONS if i.name in (given["names"] or (i.name,))],
    )
    with click.progressbar(session.run(cells, runs), length=runs * len(cells), label="timing", show_pos=True) as steps:
        for _ in steps:
            pass
    for copy in session.void_copies:
        click.echo(f"A run was void: its copy moved {copy:.0f} GB/s, under {session.min_copy_gb_per_s:.0f}.")
    if not session.copies:
        raise click.ClickException("no run counts: something else uses this GPU, or it is not the one of the targets")
    records = session.records()
    if given["json_path"] is not None:
        measured = _measured(given, session, runs)
        options.write_json(given["json_path"], {"environment": {**described, **measured}, "records": records})
    for note in session.notes:
        click.echo(note)
    click.echo(_table(records))
    click.echo(f"copy {statistics.median(session.copies):.0f} GB/s, {len(session.copies)} run(s)")
    if given["suite"] == "targets":
        _show_verdicts(records)
    return session.failed


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


def _warm(cells: Iterable[Cell], ordinal: int) -> None:
    """Compile and load the kernels of all cells, several at a time."""
    problems = dict.fromkeys((cell.problem, cell.wanted) for cell in cells)

    def warm(problem: Problem, wanted: Wanted) -> None:
        with import_cupy().cuda.Device(ordinal):
            try:
                if any(wanted):
                    warm_vjp(problem, wanted)
                else:
                    warm_forward(problem)
            except fftconv_cupy.UnsupportedProblemError:
                return  # noted when the cell is timed

    with ThreadPoolExecutor(_COMPILE_THREADS) as pool:
        done = pool.map(lambda key: warm(*key), problems)
        with click.progressbar(done, length=len(problems), label="compiling", show_pos=True) as steps:
            for _ in steps:
                pass


def _table(records: Sequence[Record]) -> str:
    """Return a row a record; the speed-up is against the rfft way on the same problem."""
    rows = []
    for record in records:
        base = _base_of(records, record)
        speed_up = f"{base['ms'] / record['ms']:.2f}" if base else "-"
        suite = "" if record["suite"] == record["direction"] else f"{record['suite']} "
        direction = "backward " if record["direction"] == "backward" else ""
        gates = "gated" if record["gated"] else "plain"
        name = f"{suite}{direction}{record['mode']} {gates} {record['dtype']}"
        rows.append(
            (
                f"{name} {record['filter']} {record['impl']}",
                str(record["fft_size"]),
                f"{record['batch']}x{record['channels']}x{record['seqlen']}",
                f"{record['ms'] * record['scale']:.4g}" if record["suite"] != "host" else f"{record['ms']:.4g}",
                f"{record['ms'] / record['floor_ms']:.2f}",
                speed_up,
                f"{record['extra_mib']:.1f}",
                f"{record['error']:.2e}",
            )
        )
    return options.table(("problem", "N", "shape", "ms scaled", "x floor", "speed-up", "extra MiB", "error"), rows)


def _base_of(records: Sequence[Record], record: Record) -> Record | None:
    same = ("suite", "direction", "mode", "gated", "dtype", "fft_size", "batch", "channels", "seqlen", "filter_len")
    for name in _BASES:
        for other in records:
            if other["impl"] == name and all(other[key] == record[key] for key in same):
                return other
    return None


def _show_verdicts(records: Sequence[Record]) -> None:
    verdicts = targets.check(records)
    rows = [
        (f"{v.what}: {v.cell}", f"{v.measured:.4g}", f"{v.limit:.4g}", v.unit, f"{v.measured / v.limit:.2f}", v.word)
        for v in verdicts
    ]
    click.echo("\n" + options.table(("target", "measured", "limit", "unit", "ratio", ""), rows))
    met = sum(v.is_met for v in verdicts)
    click.echo(f"{met} of {len(verdicts)} targets met ({OURS} on an H100 80GB HBM3 is what they were set for)")
