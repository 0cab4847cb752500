"""Compile the kernels that plans may name, for every architecture, and check registers and spills. Needs no GPU.

    python tests/compile_all.py                   # a set that meets every pair of size, dtype, flag and architecture
    python tests/compile_all.py --sample quick    # of outputs in one block every pair, of other kernels every value
    python tests/compile_all.py --sample all      # every kernel; hours on two cores

Exit status 1 if a kernel does not compile or exceeds a ceiling.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import click
from pairwise import pairwise_cover

from fftconv_cupy.archs import ARCHS
from fftconv_cupy.compile import compile_cubin
from fftconv_cupy.depthwise_matrix import iter_depthwise_kernels
from fftconv_cupy.errors import FFTConvError
from fftconv_cupy.kernel_matrix import iter_kernels
from fftconv_cupy.source import KernelSpec

# Stores and loads together: a few dozen of a thread's three thousand instructions, where 64 of 128 registers hold data.
MAX_SPILL_BYTES = 256
# Of the seven thousand instructions for gradients of long rows with gates that are read element by element, in two
# parts, up to two hundred.
# Of outputs of a cluster's rows that are read so, up to eighty: the loads of all segments are under way at once.
# Of short convolutions of nine to sixteen taps, and of their gradients, up to eighty too: loads are asked for early.
# Of the three thousand for gradients on tensor cores with gates and a skip that are looked at as the kernel runs, up to
# two hundred and fifty: the sum takes a quarter of the registers in all phases.
MAX_SPILL_BYTES_OF = {
    "fftconv_bwd": 768,
    "fftconv_long_bwd": 768,
    "fftconv_windows_bwd": 768,
    "fftconv_cluster": 384,
    "depthwise_fwd": 384,
    "depthwise_bwd": 384,
    "fftconv_mma_bwd": 1024,
}
# These follow from other values of a kernel: that each occurs says nothing new.
DERIVED = ("FFTCONV_SHARED_BYTES", "FFTCONV_STASH_QUADS")
PAIRED_ENTRY = "fftconv_fwd"
REGISTERS_PER_MULTIPROCESSOR = 65536
MAX_REGISTERS_PER_THREAD = 255
REGISTER_GRANULE = 8  # registers are given to a warp in units of 256
WORST_SHOWN = 8


@dataclass(frozen=True)
class Job:
    """One compilation and its ceilings."""

    arch: str
    spec: KernelSpec
    max_registers: int

    @property
    def axes(self) -> dict[str, str]:
        """The values whose pairs the sample must meet."""
        free = {name: value for name, value in self.spec.defines if name not in DERIVED}
        return {"arch": self.arch, "entry": self.spec.entry, "fft_size": str(self.spec.fft_size), **free}


@dataclass(frozen=True)
class Outcome:
    """What one compilation gave."""

    job: Job
    registers: int
    spill_bytes: int
    seconds: float
    problem: str


def max_registers(threads: int, min_blocks: int) -> int:
    """Return the registers a thread may use so that ``min_blocks`` blocks fit on a multiprocessor."""
    share = REGISTERS_PER_MULTIPROCESSOR // (threads * min_blocks)
    return min(MAX_REGISTERS_PER_THREAD, share - share % REGISTER_GRANULE)


def jobs_of(archs: tuple[str, ...], fft_sizes: tuple[int, ...], sample: str) -> list[Job]:
    """Return the compilations asked for."""
    kernels = {arch: [*iter_kernels(arch, fft_sizes=fft_sizes or None)] for arch in archs}
    if not fft_sizes:  # those of short depthwise convolutions have none
        kernels = {arch: [*those, *iter_depthwise_kernels(ARCHS[arch])] for arch, those in kernels.items()}
    jobs = [
        Job(arch, kernel.spec, max_registers(kernel.threads, kernel.min_blocks))
        for arch, those in kernels.items()
        for kernel in those
    ]
    if sample == "all":
        return jobs
    if sample == "pairwise":
        return _cover(jobs, together=2)
    by_entry = defaultdict(list)
    for job in jobs:
        by_entry[job.spec.entry].append(job)
    covers = (_cover(those, together=2 if entry == PAIRED_ENTRY else 1) for entry, those in by_entry.items())
    return [job for cover in covers for job in cover]


def _cover(jobs: list[Job], *, together: int) -> list[Job]:
    return [jobs[index] for index in pairwise_cover([job.axes for job in jobs], together)]


def run(job: Job, max_spill: int | None) -> Outcome:
    """Compile one kernel and hold it against its ceilings."""
    started = time.perf_counter()
    try:
        compiled = compile_cubin(job.spec, job.arch)
    except FFTConvError as error:
        return Outcome(job, 0, 0, time.perf_counter() - started, str(error))
    seconds = time.perf_counter() - started
    faults = []
    if not 0 < compiled.registers <= job.max_registers:
        faults.append(f"{compiled.registers} registers, at most {job.max_registers} allowed")
    allowed = MAX_SPILL_BYTES_OF.get(job.spec.entry, MAX_SPILL_BYTES) if max_spill is None else max_spill
    if compiled.spill_bytes > allowed:
        faults.append(f"{compiled.spill_bytes} bytes of spills, at most {allowed} allowed")
    return Outcome(job, compiled.registers, compiled.spill_bytes, seconds, "; ".join(faults))


def describe(job: Job) -> str:
    """Return a job in one line."""
    defines = " ".join(f"{name.removeprefix('FFTCONV_')}={value}" for name, value in job.spec.defines)
    return f"{job.arch} {job.spec.entry} {job.spec.fft_size}: {defines}"


def print_worst(outcomes: list[Outcome]) -> None:
    """Print the kernels that spill most, then fill their registers most, and those that take longest."""
    rankings = {
        "most spills, then registers": lambda outcome: (
            outcome.spill_bytes,
            outcome.registers / outcome.job.max_registers,
        ),
        "slowest to compile": lambda outcome: outcome.seconds,
    }
    for title, rank in rankings.items():
        print(f"\n{title}\nregisters ceiling  spills      s  kernel")
        for outcome in sorted(outcomes, key=rank, reverse=True)[:WORST_SHOWN]:
            print(
                f"{outcome.registers:9} {outcome.job.max_registers:7} {outcome.spill_bytes:7} {outcome.seconds:6.1f}"
                f"  {describe(outcome.job)}"
            )


def outcomes_of(jobs: list[Job], threads: int, max_spill: int | None) -> Iterator[Outcome]:
    """Compile in ``threads`` threads: NVRTC works without Python's lock."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda job: run(job, max_spill), jobs)


@click.command(help=__doc__)
@click.option("--arch", "archs", multiple=True, type=click.Choice(list(ARCHS)), help="Default: all of them.")
@click.option("--fft-size", "fft_sizes", multiple=True, type=int, help="Default: all sizes.")
@click.option("--sample", type=click.Choice(["quick", "pairwise", "all"]), default="pairwise", show_default=True)
@click.option("--jobs", "threads", default=os.cpu_count() or 1, help="Compilations at a time.  [default: all cores]")
@click.option("--max-spill", type=int, help="Bytes of spills allowed in a kernel.  [default: by its entry]")
def main(archs: tuple[str, ...], fft_sizes: tuple[int, ...], sample: str, threads: int, max_spill: int | None) -> None:
    """Run the matrix and report."""
    jobs = jobs_of(archs or tuple(ARCHS), fft_sizes, sample)
    started = time.perf_counter()
    with click.progressbar(outcomes_of(jobs, threads, max_spill), length=len(jobs), label="compiling") as bar:
        outcomes = list(bar)
    print_worst(outcomes)
    failed = [outcome for outcome in outcomes if outcome.problem]
    for outcome in failed:
        print(f"\nFAILED {describe(outcome.job)}\n  {outcome.problem}")
    print(
        f"\n{len(outcomes) - len(failed)} of {len(jobs)} kernels compile within their ceilings "
        f"({time.perf_counter() - started:.0f} s, {threads} at a time)"
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
