"""How the gradients of rows that outgrow a block are computed, with which sizes and workspace, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.long_blocks import (
    LongConfig,
    LongGradients,
    LongVariant,
    long_backward_spec,
    long_config,
    point_bytes,
)
from fftconv_cupy.long_plan import COUNTER_BYTES, SCALE_BYTES, long_reasons, long_variant, offsets_of
from fftconv_cupy.long_schedule import Load, Schedule, make_schedule
from fftconv_cupy.plan import (
    WORKSPACE_LIMIT,
    FilterLags,
    check_sizes,
    filter_lags,
    gradients_line,
    precision_line,
    transform_of,
)
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec

_PHASES = 4  # columns, rows of points, columns back, taps
_INTERMEDIATE = "float32"  # float16 costs the gradient of the filter digits: its error is then 3e-4
_WORKSPACE_BYTES = 40  # for each complex point, at most, where the limit of all calls is less


@dataclass(frozen=True, slots=True)
class LongVjpWorkspace:
    """Offsets in bytes of the parts of a call's workspace, and its size."""

    points: int
    scales: int
    stash: int
    spectrum: int
    sums: int
    total: int
    counters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class LongVjpPlan:
    """How the gradients of one call on long rows are computed; ``print(plan)`` tells it in words.

    Attributes:
        problem: the convolution.
        wanted: which gradients.
        limits: of the architecture.
        config: how a transform is split.
        kernel: the kernel.
        lags: where the taps lie in the ring.
        is_prepared: the spectrum comes with the call.
        schedule: the order of the tasks.
        blocks: that share them.
        workspace: its parts.
        intermediate: dtype of what lies between the passes.
        reasons: why it is so, a sentence each.
    """

    problem: Problem
    wanted: Wanted
    limits: ArchLimits
    config: LongConfig
    kernel: KernelSpec
    lags: FilterLags
    is_prepared: bool
    schedule: Schedule
    blocks: int
    workspace: LongVjpWorkspace
    intermediate: str
    reasons: tuple[str, ...]

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        return ((self.kernel, self.config.shared_bytes),)

    @property
    def launches(self) -> int:
        """Kernels launched by a call; its counters are set to zero before."""
        return 1

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a call takes beside its outputs."""
        return self.workspace.nbytes

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        config, schedule = self.config, self.schedule
        radices = " x ".join(str(1 << log2) for log2 in config.row.log2_radices)
        columns = " x ".join(str(1 << log2) for log2 in config.tile_log2_radices)
        lines = [
            gradients_line(self.problem, self.wanted, self.limits),
            precision_line(self.problem, self.intermediate),
            f"  transforms      of {config.points} complex points = {config.rows} rows ({columns}) of "
            f"{config.row.points} ({radices}), linear",
            f"  passes          1 over global memory; columns, rows and columns back through L2, in "
            f"{self.intermediate}",
            f"  block           {config.threads} threads, {1 << config.row.log2_ept} points each, "
            f"{config.shared_bytes} bytes of shared memory",
            f"  sum of dk       {self._sum_text()}",
            f"  grid            {self.blocks} persistent blocks, {schedule.tasks} tasks",
            f"  order           the phases of a row {schedule.distance} row(s) apart, {schedule.slots} row(s) and "
            f"{schedule.filter_slots} spectra in the workspace",
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])

    def _sum_text(self) -> str:
        if not (self.wanted.k or self.wanted.skip):
            return "none"
        return f"in L2, float32, {self.schedule.chains} a channel over its rows in their order; then over these"


def make_long_vjp_plan(
    problem: Problem,
    wanted: Wanted,
    limits: ArchLimits,
    *,
    is_vector: bool = True,
    is_prepared: bool = False,
    row_points: int | None = None,
) -> LongVjpPlan:
    """Plan the gradients of a problem whose transform outgrows a block, or may as well do so.

    Args:
        problem: the convolution; ``batch >= 1``.
        wanted: which gradients.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths, so two elements are accessed at a time.
        is_prepared: the filter's spectrum comes with the call.
        row_points: complex points of a row of the decomposition; None means the best for the GPU.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
    """
    check_sizes(problem)
    config = long_config(transform_of(problem, can_pair=False)[1], limits, row_points=row_points)
    lags = filter_lags(problem, "linear")
    gradients = LongGradients(
        has_in_gradient=wanted.u or wanted.in_gate,
        has_out_gradient=wanted.out_gate,
        has_sum=wanted.k or wanted.skip,
    )
    needs_spectrum = not is_prepared and (gradients.has_in_gradient or gradients.has_out_gradient)
    intermediate = problem.intermediate or _INTERMEDIATE
    is_half = intermediate == "float16"
    variant = long_variant(
        problem, config, lags, is_vector=is_vector, has_taps=needs_spectrum or wanted.k, has_half_points=is_half
    )
    load = Load(
        batch=problem.batch,
        channels=problem.channels,
        filters=0 if not needs_spectrum else 1 if problem.shared_filter else problem.channels,
        is_shared=problem.shared_filter,
        has_sums=gradients.has_sum,
        parts=config.rows,
        phases=_PHASES,
        row_bytes=gradients.sequences * point_bytes(config, is_half=is_half),
        spectrum_bytes=point_bytes(config),
    )
    resident = limits.multiprocessors * config.resident(limits)
    # Of rows in float16 the spectrum of the input does not fit in the place of its points.
    stash_bytes = resident * config.row.points * COMPLEX_BYTES * is_half
    limit = max(WORKSPACE_LIMIT, _WORKSPACE_BYTES * config.points) - stash_bytes
    schedule = make_schedule(load, blocks=resident, limit=limit)
    return LongVjpPlan(
        problem=problem,
        wanted=wanted,
        limits=limits,
        config=config,
        kernel=long_backward_spec(config, variant, gradients, limits),
        lags=lags,
        is_prepared=is_prepared,
        schedule=schedule,
        blocks=min(resident, schedule.tasks),
        workspace=_workspace(load, schedule, gradients, stash_bytes),
        intermediate=intermediate,
        reasons=long_reasons(problem, limits, config, variant),
    )


def make_sums_plan(problem: Problem, wanted: Wanted, limits: ArchLimits, *, chains: int) -> LongVjpPlan:
    """Plan what turns sums over rows, which another kernel has made, into gradients of filters and skips.

    Args:
        problem: the convolution, with ``batch == 0`` and as many channels as have sums.
        wanted: which gradients.
        limits: of the GPU.
        chains: sums of a channel, to be added up.
    """
    config = long_config(transform_of(problem, can_pair=False)[1], limits)
    lags = filter_lags(problem, "linear")
    gradients = LongGradients(has_in_gradient=False, has_out_gradient=False, has_sum=True)
    has_imaginary_taps = lags.negative > 0 or lags.positive > config.points
    variant = LongVariant("float32", has_imaginary_taps and wanted.k, has_tail=False, is_vector=True, extras="none")
    load = Load(
        batch=0,
        channels=problem.channels,
        filters=0,
        is_shared=False,
        has_sums=True,
        parts=config.rows,
        phases=_PHASES,
        row_bytes=0,
        spectrum_bytes=point_bytes(config),
    )
    resident = limits.multiprocessors * config.resident(limits)
    made = make_schedule(load, blocks=resident, limit=WORKSPACE_LIMIT)
    schedule = replace(made, sum_slots=problem.channels, chains=chains)
    sizes = (0, 0, 0, 0, 0, 0, COUNTER_BYTES * schedule.counters)
    return LongVjpPlan(
        problem=problem,
        wanted=wanted,
        limits=limits,
        config=config,
        kernel=long_backward_spec(config, variant, gradients, limits),
        lags=lags,
        is_prepared=True,
        schedule=schedule,
        blocks=min(resident, schedule.tasks),
        workspace=LongVjpWorkspace(*offsets_of(sizes)),
        intermediate=_INTERMEDIATE,
        reasons=(),
    )


def _workspace(load: Load, schedule: Schedule, gradients: LongGradients, stash_bytes: int) -> LongVjpWorkspace:
    sizes = (
        schedule.slots * load.row_bytes,
        schedule.slots * gradients.sequences * SCALE_BYTES * load.parts * (stash_bytes > 0),
        stash_bytes,
        schedule.filter_slots * load.spectrum_bytes * (load.filters > 0),
        schedule.sum_slots * schedule.chains * load.spectrum_bytes * load.has_sums,
        load.spectrum_bytes * (load.has_sums and load.is_shared),
        COUNTER_BYTES * schedule.counters,
    )
    return LongVjpWorkspace(*offsets_of(sizes))
