"""How rows that outgrow a block are computed on an architecture, with which sizes and workspace, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.long_blocks import LongConfig, LongVariant, long_config, long_spec, point_bytes
from fftconv_cupy.long_schedule import Load, Schedule, make_schedule
from fftconv_cupy.plan import (
    WORKSPACE_LIMIT,
    FilterLags,
    check_sizes,
    extras_of,
    filter_lags,
    precision_line,
    problem_line,
    transform_of,
)
from fftconv_cupy.problem import ITEM_BYTES, Problem
from fftconv_cupy.source import KernelSpec

COUNTER_BYTES = 32  # a sector of L2 each
PHASES = 3  # columns, rows of points, columns back
SCALE_BYTES = 2 * 4  # of a tile and a row
_LONG_FFT_SIZE = 32768  # beyond, intermediates of 16-bit arrays are 16-bit
_ALIGNMENT = 256  # of each part of the workspace, in bytes


@dataclass(frozen=True, slots=True)
class LongWorkspace:
    """Offsets in bytes of the parts of a call's workspace, and its size."""

    points: int
    scales: int
    spectrum: int
    counters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class LongPlan:
    """How one call on long rows is computed; ``print(plan)`` tells it in words.

    Attributes:
        problem: what is computed.
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
    limits: ArchLimits
    config: LongConfig
    kernel: KernelSpec
    lags: FilterLags
    is_prepared: bool
    schedule: Schedule
    blocks: int
    workspace: LongWorkspace
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
        """Device memory that a call takes beside its output."""
        return self.workspace.nbytes

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        config, schedule = self.config, self.schedule
        radices = " x ".join(str(1 << log2) for log2 in config.row.log2_radices)
        columns = " x ".join(str(1 << log2) for log2 in config.tile_log2_radices)
        lines = [
            problem_line(self.problem, self.limits),
            f"  FFT size        {self.problem.fft_size} real points",
            precision_line(self.problem, self.intermediate),
            f"  transform       {config.points} complex points = {config.rows} rows ({columns}) of "
            f"{config.row.points} ({radices}), linear",
            f"  passes          1 over global memory; columns, rows and columns back through L2, in "
            f"{self.intermediate}",
            f"  block           {config.threads} threads, {1 << config.row.log2_ept} points each, "
            f"{config.shared_bytes} bytes of shared memory",
            f"  grid            {self.blocks} persistent blocks, {schedule.tasks} tasks, {PHASES * config.rows} a row",
            f"  order           the phases of a row {schedule.distance} row(s) apart, {schedule.slots} row(s) and "
            f"{schedule.filter_slots} spectra in the workspace",
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])


def make_long_plan(
    problem: Problem,
    limits: ArchLimits,
    *,
    is_vector: bool = True,
    is_prepared: bool = False,
    row_points: int | None = None,
) -> LongPlan:
    """Plan a problem whose transform outgrows a block, or may as well do so.

    Args:
        problem: what is computed; ``batch >= 1``, or 0 to transform the filter only.
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
    intermediate = problem.intermediate or intermediate_of(problem)
    is_half = intermediate == "float16"
    variant = long_variant(
        problem, config, lags, is_vector=is_vector, has_taps=not is_prepared, has_half_points=is_half
    )
    filters = 0 if is_prepared else 1 if problem.shared_filter else problem.channels
    load = Load(
        batch=problem.batch,
        channels=problem.channels,
        filters=filters,
        is_shared=problem.shared_filter,
        has_sums=False,
        parts=config.rows,
        phases=PHASES,
        row_bytes=point_bytes(config, is_half=is_half),
        spectrum_bytes=point_bytes(config),
    )
    resident = limits.multiprocessors * config.resident(limits)
    schedule = make_schedule(load, blocks=resident, limit=max(WORKSPACE_LIMIT, 2 * point_bytes(config)))
    return LongPlan(
        problem=problem,
        limits=limits,
        config=config,
        kernel=long_spec(config, variant, limits),
        lags=lags,
        is_prepared=is_prepared,
        schedule=schedule,
        blocks=min(resident, schedule.tasks),
        workspace=_workspace(load, schedule, is_half=is_half),
        intermediate=intermediate,
        reasons=long_reasons(problem, limits, config, variant),
    )


def long_variant(
    problem: Problem,
    config: LongConfig,
    lags: FilterLags,
    *,
    is_vector: bool,
    has_taps: bool,
    has_half_points: bool = False,
) -> LongVariant:
    """Return the flags of the kernel; `has_taps`: the filter is transformed, or its gradient is wanted."""
    has_imaginary_taps = lags.negative > 0 or lags.positive > config.points
    return LongVariant(
        dtype=problem.dtype,
        is_complex=max(problem.seqlen, problem.out_len) > config.points or (has_imaginary_taps and has_taps),
        has_tail=not problem.seqlen == problem.out_len == config.points or not is_vector,
        is_vector=is_vector,
        extras=extras_of(problem),
        has_half_points=has_half_points,
    )


def intermediate_of(problem: Problem) -> str:
    """Return the dtype of what lies between the passes, where the caller does not name one.

    That is float16, by a scale for each tile and row, for 16-bit arrays of an FFT size above 32768: up to that most
    GPUs need no passes.
    """
    return "float16" if ITEM_BYTES[problem.dtype] == 2 and problem.fft_size > _LONG_FFT_SIZE else "float32"


def offsets_of(sizes: Sequence[int]) -> list[int]:
    """Return the offsets in bytes of the parts of a workspace of these sizes, and its own size."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def _workspace(load: Load, schedule: Schedule, *, is_half: bool) -> LongWorkspace:
    has_rows = schedule.batch > 0
    sizes = (
        schedule.slots * load.row_bytes * has_rows,
        schedule.slots * SCALE_BYTES * load.parts * (has_rows and is_half),
        schedule.filter_slots * load.spectrum_bytes * (schedule.filters > 0 and has_rows),
        COUNTER_BYTES * schedule.counters,
    )
    return LongWorkspace(*offsets_of(sizes))


def long_reasons(problem: Problem, limits: ArchLimits, config: LongConfig, variant: LongVariant) -> tuple[str, ...]:
    """Return why a transform is split as it is."""
    reasons = [f"{config.points} points outgrow a block of {limits.arch}: rows of {config.row.points} do not"]
    if problem.mode == "circular":
        reasons.append("a circular filter is wrapped by hand, one row a transform")
    if variant.is_complex:
        reasons.append("rows, outputs or taps past the half of the ring: they are the imaginary part")
    if not variant.is_vector:
        reasons.append("an odd length, address or stride: elements are accessed one by one")
    return tuple(reasons)
