"""Which checks ``fftconv verify`` makes at a place, and making them: several cases at a time, in threads."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from fftconv_cupy import compile
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.benchmarks import checks, depthwise, gradient_checks, state_checks
from fftconv_cupy.benchmarks.case_sets import streamed_cases, verify_cases
from fftconv_cupy.benchmarks.checks import Finding
from fftconv_cupy.benchmarks.depthwise import DepthwiseJob
from fftconv_cupy.benchmarks.places import Place
from fftconv_cupy.benchmarks.problems import Case, gradient_transform, planned
from fftconv_cupy.mma_blocks import GRADIENT_POINTS
from fftconv_cupy.plan import transform_of
from fftconv_cupy.plans import AnyPlan, precision_of_call, precision_of_gradients
from fftconv_cupy.problem import MODES, PRECISIONS
from fftconv_cupy.source import KernelSpec

_EVERY = {"quick": 16, "normal": 12, "full": 24}  # every n-th case is also repeated
_CONFINEMENT_LENGTHS = {"quick": (2048,), "normal": (64, 1000, 2048, 8192), "full": (64, 1000, 2048, 8192, 16384)}
_GRADIENTS_EVERY = {"quick": 4, "normal": 3, "full": 6}  # of the cases of a transform size, one in n; kernels compile
_ALONE_EVERY = 4  # of these, one in n asks for a single gradient
_MOST_THREADS = 16

Check = Callable[[Case, Place], Finding]


@dataclass(frozen=True, slots=True)
class Job:
    """One check of one case."""

    check: Check
    case: Case

    @property
    def is_of_gradients(self) -> bool:
        """Whether gradients are checked, not outputs."""
        return self.check in gradient_checks.CHECKS

    def with_precision(self, precision: str) -> Job:
        """Return the same check with another precision."""
        case = replace(self.case, precision=precision)
        if self.is_of_gradients and precision != "highest":
            case = _without_skip(case)
        return replace(self, case=case)

    def runs_with(self, limits: ArchLimits) -> str:
        """Return the precision with which a GPU computes what is checked."""
        if self.is_of_gradients:
            return precision_of_gradients(self.case.problem, self.case.wanted, limits)
        return precision_of_call(self.case.problem, limits)

    def plan(self, limits: ArchLimits) -> AnyPlan | None:
        """Return how a GPU computes what is checked; None: it cannot."""
        wants_gradients = self.is_of_gradients or self.check is state_checks.state_gradients
        has_state = self.check in state_checks.CHECKS
        return planned(self.case, limits, self.case.wanted if wants_gradients else None, has_state=has_state)

    def fits(self, limits: ArchLimits) -> bool:
        """Whether a GPU can compute what is checked."""
        return self.plan(limits) is not None

    def specs(self, limits: ArchLimits) -> list[KernelSpec]:
        """Return the kernels that a GPU computes it with; there are none where it cannot."""
        plan = self.plan(limits)
        return [] if plan is None else [spec for spec, _ in plan.kernels]

    def run(self, place: Place) -> Finding:
        """Run the check; an exception is a finding too."""
        try:
            return self.check(self.case, place)
        except Exception as error:
            return checks.failed(self.check.__name__.replace("_", " "), self.case, place.name, error)


def jobs_for(
    level: str, dtypes: Iterable[str], place: Place, limits: ArchLimits, precisions: Iterable[str] = PRECISIONS
) -> list[Job | DepthwiseJob]:
    """Return what to check.

    Args:
        level: one of `fftconv_cupy.benchmarks.case_sets.LEVELS`.
        dtypes: dtypes to check.
        place: the GPU, or the CPU, which has no streams.
        limits: of the GPU; on the CPU of the largest one.
        precisions: those to check; depthwise convolutions have the highest only.
    """
    dtypes, precisions = tuple(dtypes), tuple(precisions)
    cases = verify_cases(level, dtypes, limits, precisions)
    jobs = [Job(checks.accuracy, case) for case in cases]
    jobs += [Job(checks.repeats, case) for case in cases[:: _EVERY[level]]]
    in_float32 = [case for case in cases if case.precision == "highest" and case.range is None]
    with_gradients = _gradient_cases(level, in_float32, limits)
    with_gradients += _tensor_core_gradients(
        [*cases, *(case for case in _whole_rows(dtypes) if case.precision in precisions)], limits
    )
    jobs += [Job(gradient_checks.gradients, case) for case in with_gradients]
    jobs += [Job(gradient_checks.gradient_repeats, case) for case in with_gradients[:: _EVERY[level]]]
    if "highest" in precisions:
        jobs += [Job(check, case) for check in state_checks.CHECKS for case in streamed_cases(level, dtypes)]
    for precision in precisions:
        special = (job.with_precision(precision) for job in _special_jobs(level, dtypes, place))
        jobs += [job for job in special if job.fits(limits) and job.runs_with(limits) == precision]
    return [*jobs, *(depthwise.jobs_for(level, dtypes) if "highest" in precisions else ())]


def _special_jobs(level: str, dtypes: tuple[str, ...], place: Place) -> Iterator[Job]:
    """Yield checks of values that are not finite, and of two streams at once."""
    for mode, dtype, seqlen in itertools.product(MODES, dtypes, _CONFINEMENT_LENGTHS[level]):
        case = Case(mode, dtype, seqlen, seqlen, batch=5, channels=2)
        yield Job(checks.confinement, case)
        # One channel more, without a value that is not finite: its sums must stay right.
        case = replace(case, channels=3, in_gate=True, out_gate=True, skip_dtype="float32")
        yield Job(gradient_checks.gradient_confinement, case)
    if place.is_gpu:
        for mode, dtype, seqlen in itertools.product(("causal", "circular"), dtypes, (512, 8192)):
            yield Job(checks.two_streams, Case(mode, dtype, seqlen, seqlen, batch=8, channels=16))


def run(jobs: list[Job | DepthwiseJob], place: Place) -> Iterator[Finding]:
    """Yield the findings, in order. Threads share the float64 references and the compiling; the GPU is one."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda job: job.run(place), jobs)


def specs_for(jobs: Iterable[Job | DepthwiseJob], arch: str) -> list[KernelSpec]:
    """Return the kernels that the cases of ``jobs`` need on an architecture, each once.

    Raises:
        UnsupportedDeviceError: the architecture is not listed.
    """
    limits = arch_limits(arch)
    specs: dict[KernelSpec, None] = {}
    for job in jobs:
        if job.case.batch and job.fits(limits):
            specs |= dict.fromkeys(job.specs(limits))
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


def _gradient_cases(level: str, cases: Iterable[Case], limits: ArchLimits) -> list[Case]:
    """Draw the cases whose gradients are checked: a share of those of each transform size, so that none is left out."""
    draw = random.Random("gradients of fftconv verify")
    by_transform: dict[tuple[str, int], list[Case]] = {}
    for case in map(_with_taps, cases):
        transform = gradient_transform(case, limits)
        if transform is not None:
            by_transform.setdefault(transform, []).append(case)
    drawn = [
        case
        for members in by_transform.values()
        for case in draw.sample(members, -(-len(members) // _GRADIENTS_EVERY[level]))
    ]
    return [
        replace(case, wrt=(draw.choice(case.given),)) if draw.randrange(_ALONE_EVERY) == 0 else case for case in drawn
    ]


def _tensor_core_gradients(cases: Iterable[Case], limits: ArchLimits) -> list[Case]:
    """Return the cases whose gradients but that of skip are computed on tensor cores."""
    with_taps = [_without_skip(replace(case, prepared=False)) for case in cases if case.precision != "highest"]
    return [
        case
        for case in with_taps
        if case.wrt and precision_of_gradients(case.problem, case.wanted, limits) == case.precision
    ]


def _whole_rows(dtypes: Iterable[str]) -> Iterator[Case]:
    """Yield a case of each size and dtype of gradients on tensor cores."""
    for dtype, sizes in GRADIENT_POINTS.items():
        if dtype in dtypes:
            for points in sizes:
                yield Case("causal", dtype, points, points, 5, 3, in_gate=True, out_gate=True, precision="medium")


def _without_skip(case: Case) -> Case:
    """Return a case that does not ask for the gradient of skip, with which all are computed in float32."""
    return replace(case, wrt=tuple(name for name in case.wrt or case.given if name != "skip"))


def _with_taps(case: Case) -> Case:
    """Return a case that gradients are computed for: not from a filter that is prepared for pairs of rows."""
    is_paired = transform_of(case.problem)[0] == "paired"
    return replace(case, prepared=False) if is_paired else case
