"""Which checks ``fftconv verify`` makes at a place, and making them: several cases at a time, in threads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fftconv_cupy import compile
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.benchmarks import checks
from fftconv_cupy.benchmarks.checks import Finding
from fftconv_cupy.benchmarks.places import Place
from fftconv_cupy.benchmarks.problems import Case, fits, verify_cases
from fftconv_cupy.plan import make_plan
from fftconv_cupy.problem import MODES
from fftconv_cupy.source import KernelSpec

_EVERY = {"quick": 16, "normal": 12, "full": 24}  # every n-th case is also repeated
_CONFINEMENT_LENGTHS = {"quick": (2048,), "normal": (64, 1000, 2048, 8192), "full": (64, 1000, 2048, 8192, 16384)}
_MOST_THREADS = 16

Check = Callable[[Case, Place], Finding]


@dataclass(frozen=True, slots=True)
class Job:
    """One check of one case."""

    check: Check
    case: Case

    def run(self, place: Place) -> Finding:
        """Run the check; an exception is a finding too."""
        try:
            return self.check(self.case, place)
        except Exception as error:
            return checks.failed(self.check.__name__.replace("_", " "), self.case, place.name, error)


def jobs_for(level: str, dtypes: Iterable[str], place: Place, limits: ArchLimits) -> list[Job]:
    """Return what to check.

    Args:
        level: one of `fftconv_cupy.benchmarks.problems.LEVELS`.
        dtypes: dtypes to check.
        place: the GPU, or the CPU, which has no streams.
        limits: of the GPU; on the CPU of the largest one.
    """
    dtypes = tuple(dtypes)
    cases = verify_cases(level, dtypes, limits)
    jobs = [Job(checks.accuracy, case) for case in cases]
    jobs += [Job(checks.repeats, case) for case in cases[:: _EVERY[level]]]
    special = [
        (checks.confinement, Case(mode, dtype, seqlen, seqlen, batch=5, channels=2))
        for mode, dtype, seqlen in itertools.product(MODES, dtypes, _CONFINEMENT_LENGTHS[level])
    ]
    if place.is_gpu:
        special += [
            (checks.two_streams, Case(mode, dtype, seqlen, seqlen, batch=8, channels=16))
            for mode, dtype, seqlen in itertools.product(("causal", "circular"), dtypes, (512, 8192))
        ]
    return jobs + [Job(check, case) for check, case in special if fits(case, limits)]


def run(jobs: list[Job], place: Place) -> Iterator[Finding]:
    """Yield the findings, in order. Threads share the float64 references and the compiling; the GPU is one."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda job: job.run(place), jobs)


def specs_for(jobs: Iterable[Job], arch: str) -> list[KernelSpec]:
    """Return the kernels that the cases of ``jobs`` need on an architecture, each once.

    Raises:
        UnsupportedDeviceError: the architecture is not listed.
    """
    limits = arch_limits(arch)
    specs: dict[KernelSpec, None] = {}
    for job in jobs:
        if job.case.batch and fits(job.case, limits):
            made = make_plan(job.case.problem, limits)
            specs |= {made.forward: None, made.filter: None}
    return list(specs)


def compile_all(specs: list[KernelSpec], arch: str) -> Iterator[Finding]:
    """Compile kernels for an architecture, present or not, into the cache; yield a finding each."""

    def one(spec: KernelSpec) -> Finding:
        label = " ".join(
            [spec.entry, f"FFT size {spec.fft_size}", *(f"{name}={value}" for name, value in spec.defines)]
        )
        try:
            compile.precompile(spec, arch)
        except Exception as error:
            return Finding("compile", arch, spec.entry, "", label, 1, 0, f"{type(error).__name__}: {error}")
        return Finding("compile", arch, spec.entry, "", label, 0, 0)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(one, specs)
