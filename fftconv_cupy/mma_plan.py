"""How a call of 16-bit arrays is computed on tensor cores."""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import COMPLEX_BYTES, BlockConfig, FilterVariant, filter_spec
from fftconv_cupy.errors import UnsupportedProblemError, message
from fftconv_cupy.mma_blocks import (
    DTYPES,
    FASTER_POINTS,
    GRADIENT_POINTS,
    MMA_BACKWARD_CONFIGS,
    MmaConfig,
    MmaVariant,
    convert_spec,
    fitting_mma_config,
    mma_spec,
)
from fftconv_cupy.plan import (
    GRID_YZ,
    FilterLags,
    channel_group,
    extras_of,
    filter_lags,
    intermediate_note,
    problem_line,
    transform_of,
)
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec

WIDE_POINTS = 8  # rows of a multiple of them can start at multiples of 16 bytes


@dataclass(frozen=True, slots=True)
class MmaPlan:
    """How one call is computed on tensor cores; ``print(plan)`` tells it in words.

    Attributes:
        problem: what is computed.
        limits: of the architecture.
        precision: "medium".
        tensor: the configuration of the fused kernel.
        config: that of the float32 transform of the filter.
        forward: the fused kernel.
        filter: the kernel that makes the filter's spectrum.
        convert: the kernel that brings that spectrum into the form of the fused kernel.
        lags: where the taps lie in the ring.
        is_prepared: the spectrum comes with the call: neither `filter` nor `convert` is launched.
        grid: blocks of `forward` for one group of channels.
        log2_batch_slots: log2 of the rows of a block that differ in batch; the others differ in channel.
        channel_group: channels whose spectrum is in the workspace at a time.
        launches: kernels launched by a call.
        workspace_bytes: device memory that a call takes beside its output.
        reasons: why it is so, a sentence each.
    """

    problem: Problem
    limits: ArchLimits
    precision: str
    tensor: MmaConfig
    config: BlockConfig
    forward: KernelSpec
    filter: KernelSpec
    convert: KernelSpec
    lags: FilterLags
    is_prepared: bool
    grid: tuple[int, int, int]
    log2_batch_slots: int
    channel_group: int
    launches: int
    workspace_bytes: int
    reasons: tuple[str, ...]

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        own = ((self.forward, self.tensor.shared_bytes),)
        return own if self.is_prepared else (*own, (self.filter, self.config.exchange_bytes), (self.convert, 0))

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        problem, config = self.problem, self.tensor
        lines = [
            problem_line(problem, self.limits),
            f"  FFT size        {problem.fft_size} real points",
            f"  precision       {self.precision}: tensor cores, 16-bit accumulation and twiddles"
            f"{intermediate_note(problem)}",
            f"  transform       {config.points} complex points = {config.radix} x 16 x 16",
            "  passes          1 over global memory, 3 in the block each way, 2 exchanges in all",
            f"  block           {config.threads} threads, {config.rows} row(s), "
            f"{config.shared_bytes} bytes of shared memory",
            f"  grid            {self.grid}",
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes, {self.channel_group} channel(s) a group",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])


def precision_of(problem: Problem, limits: ArchLimits) -> str:
    """Return the precision with which a GPU computes a problem whose rows are transformed as a whole.

    None asks for the fastest whose error stays within 1.2 times the rounding of the output, in every row: "medium" does
    in bfloat16 but for rows that have little of what a filter passes, and who gives none may have such.
    """
    return "medium" if problem.precision == "medium" and mma_configs(problem, limits) is not None else "highest"


def mma_configs(problem: Problem, limits: ArchLimits) -> tuple[MmaConfig, BlockConfig] | None:
    """Return how a block of the GPU transforms the rows of a problem on tensor cores; None where float32 is no worse.

    Input and output rows fill the real part of the transform at most, so M is at least as long as either. It pays where
    M is that of the float32 transform of a row, and where all rows can be at multiples of 16 bytes.
    """
    kind, least = transform_of(problem)
    configs = None if kind == "paired" else _configs(problem, least, limits)
    return configs if configs and configs[0].points in FASTER_POINTS[problem.dtype, extras_of(problem)] else None


def mma_gradient_configs(problem: Problem, wanted: Wanted, limits: ArchLimits) -> tuple[MmaConfig, BlockConfig] | None:
    """Return the same for gradients of a problem, which are never those of pairs of rows.

    The gradient of skip is one number a channel, which may cancel to any size: with it, they are left to float32.
    """
    if wanted.skip:
        return None
    _, least = transform_of(problem, can_pair=False)
    configs = _configs(problem, least, limits) if problem.precision == "medium" else None
    if configs is None or configs[0].points not in GRADIENT_POINTS[problem.dtype]:
        return None
    tensor = MMA_BACKWARD_CONFIGS[configs[0].points]
    return None if tensor.shared_bytes > limits.block_shared_bytes else (tensor, configs[1])


def _configs(problem: Problem, least: int, limits: ArchLimits) -> tuple[MmaConfig, BlockConfig] | None:
    """Return the configurations of rows whose transform has `least` points or more, if they can be on tensor cores."""
    if problem.dtype not in DTYPES or problem.initial_state or (problem.seqlen | problem.out_len) % WIDE_POINTS:
        return None
    configs = fitting_mma_config(max(least, problem.seqlen, problem.out_len), limits)
    return None if configs is None or least <= configs[0].points // 2 else configs


def make_mma_plan(problem: Problem, limits: ArchLimits, *, is_wide: bool = True, is_prepared: bool = False) -> MmaPlan:
    """Plan a problem for the tensor cores of a GPU.

    Args:
        problem: what is computed, one of which `precision_of` is not "highest"; ``batch >= 1``.
        limits: of the GPU.
        is_wide: rows start at multiples of 16 bytes and have such lengths.
        is_prepared: the filter's spectrum comes with the call.

    Raises:
        UnsupportedProblemError: `precision_of` is "highest".
    """
    precision = precision_of(problem, limits)
    configs = None if precision == "highest" else mma_configs(problem, limits)
    if configs is None:
        raise UnsupportedProblemError(
            message(
                "precision",
                got=f"{problem.precision!r} for {problem_line(problem, limits)}",
                allowed="'highest' there",
                do="Plan it with `make_plan`.",
            )
        )
    tensor, config = configs
    is_whole = problem.seqlen == problem.out_len == tensor.points
    slots = min(tensor.rows, 1 << (problem.batch - 1).bit_length())
    lags = filter_lags(problem, "linear")
    spectrum_bytes = tensor.points * COMPLEX_BYTES + tensor.spectrum_bytes
    group = channel_group(problem, spectrum_bytes, is_prepared)
    groups = -(-problem.channels // group)
    channel_blocks = -(-group // (tensor.rows // slots))
    return MmaPlan(
        problem=problem,
        limits=limits,
        precision=precision,
        tensor=tensor,
        config=config,
        forward=mma_spec(tensor, MmaVariant(problem.dtype, is_wide, not (is_whole and is_wide), extras_of(problem))),
        filter=filter_spec(config, FilterVariant(problem.filter_dtype, is_paired=False, is_general=lags.is_wrapped)),
        convert=convert_spec(tensor, config),
        lags=lags,
        is_prepared=is_prepared,
        grid=(-(-problem.batch // slots), min(channel_blocks, GRID_YZ), -(-channel_blocks // GRID_YZ)),
        log2_batch_slots=slots.bit_length() - 1,
        channel_group=group,
        launches=1 if is_prepared else 3 if problem.shared_filter else 3 * groups,
        workspace_bytes=0 if is_prepared else spectrum_bytes * (1 if problem.shared_filter else group),
        reasons=_reasons(problem, tensor, is_whole, is_wide),
    )


def _reasons(problem: Problem, tensor: MmaConfig, is_whole: bool, is_wide: bool) -> tuple[str, ...]:
    reasons = [f"rows fit in {tensor.points} points: no padding is transformed, the input is real"]
    if problem.mode == "circular":
        reasons.append("a linear transform with a wrapped filter, one row each")
    if not is_whole:
        reasons.append("rows end inside the transform: loads and stores test the length")
    if not is_wide:
        reasons.append("rows are not at multiples of 16 bytes: elements are accessed one by one")
    return tuple(reasons)
