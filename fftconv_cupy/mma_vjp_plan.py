"""How gradients of rows that fit a block are computed: on tensor cores, where that will do and is faster, or not."""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import (
    COMPLEX_BYTES,
    SYSTEM_BYTES,
    BlockConfig,
    FilterVariant,
    filter_backward_spec,
    filter_spec,
    reduce_spec,
)
from fftconv_cupy.chunks import Blocks, channel_groups
from fftconv_cupy.mma_blocks import (
    BACKWARD_CHUNK_STEPS,
    MmaBackwardVariant,
    MmaConfig,
    convert_spec,
    mma_backward_spec,
)
from fftconv_cupy.mma_plan import mma_gradient_configs
from fftconv_cupy.plan import extras_of, filter_lags
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec
from fftconv_cupy.vjp_plan import (
    VjpPlan,
    grid_line,
    launches_of,
    make_vjp_plan,
    transforms_of,
)


@dataclass(frozen=True, slots=True)
class MmaVjpPlan(VjpPlan):
    """How the gradients of one call are computed on tensor cores.

    Attributes:
        tensor: the configuration of the fused kernel; `config` and `backward_config` are those of the float32
            transforms of the filter.
        variant: flags of the fused kernel.
    """

    variant: MmaBackwardVariant
    tensor: MmaConfig

    @property
    def convert(self) -> KernelSpec | None:
        """The kernel that brings the filter's spectrum into the form of the fused kernel."""
        return convert_spec(self.tensor, self.config)

    @property
    def converted_offset(self) -> int:
        """Bytes from the filter's spectrum to where it is brought to."""
        rows = 1 if self.problem.shared_filter else self.channel_group
        return rows * self.tensor.points * COMPLEX_BYTES

    @property
    def group_channels(self) -> int:
        """Channels that a block takes side by side: its rows are of one."""
        return 1

    @property
    def backward_threads(self) -> int:
        """Threads of a block of the fused kernel."""
        return self.tensor.threads

    @property
    def spectrum_quads(self) -> int:
        """Words of 16 bytes of a channel's spectrum as the fused kernel reads it."""
        return self.tensor.spectrum_words

    def _transform_lines(self) -> list[str]:
        tensor, variant = self.tensor, self.variant
        rows = tensor.rows // variant.sides
        return [
            f"  precision       {self.problem.precision}: tensor cores, 16-bit accumulation and twiddles",
            f"  transforms      {transforms_of(variant)} a row of {tensor.points} complex points = "
            f"{tensor.radix} x 16 x 16",
            f"  block           {tensor.threads} threads, {rows} row(s), {self.shared_bytes} bytes of shared memory",
            f"  sum of dk       {'in registers, float32' if variant.has_sum else 'none'}",
            grid_line(self.chunks, "persistent blocks"),
        ]


def make_row_vjp_plan(
    problem: Problem,
    wanted: Wanted,
    limits: ArchLimits,
    *,
    is_vector: bool = True,
    is_wide: bool = True,
    is_prepared: bool = False,
) -> VjpPlan:
    """Plan the gradients of a problem for a GPU, one of whose blocks holds a row.

    Args:
        problem: the convolution; ``batch >= 1``.
        wanted: which gradients.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths.
        is_wide: rows start at multiples of 16 bytes and have such lengths.
        is_prepared: the filter's spectrum comes with the call: that of a float32 transform.

    Raises:
        UnsupportedProblemError: see `vjp_plan.make_vjp_plan`.
    """
    configs = None if is_prepared else mma_gradient_configs(problem, wanted, limits)
    if configs is None:
        return make_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared)
    return _make_plan(problem, wanted, limits, *configs, is_wide=is_wide)


def _make_plan(
    problem: Problem, wanted: Wanted, limits: ArchLimits, tensor: MmaConfig, config: BlockConfig, *, is_wide: bool
) -> MmaVjpPlan:
    is_whole = problem.seqlen == problem.out_len == tensor.points
    has_sum = wanted.k or wanted.skip
    variant = MmaBackwardVariant(
        dtype=problem.dtype,
        is_complex=False,
        has_tail=not (is_whole and is_wide),
        is_vector=is_wide,
        extras=extras_of(problem),
        has_in_gradient=wanted.u or wanted.in_gate,
        has_out_gradient=wanted.out_gate,
        has_sum=has_sum,
        stash_quads=0,
    )
    lags = filter_lags(problem, "linear")
    needs_spectrum = variant.has_in_gradient or variant.has_out_gradient
    fitting = limits.multiprocessor_shared_bytes // (tensor.shared_bytes + SYSTEM_BYTES)
    blocks = Blocks(
        points=tensor.points,
        channels=1,
        slots=tensor.rows // variant.sides,
        chunk_steps=BACKWARD_CHUNK_STEPS,
        resident=limits.multiprocessors * max(1, min(tensor.min_blocks, fitting)),
        is_persistent=True,
        has_sum=has_sum,
        spectrum_bytes=(tensor.points * COMPLEX_BYTES + tensor.spectrum_bytes) * needs_spectrum,
        stash_bytes=0,
    )
    group, chunks, has_reduce, workspace = channel_groups(problem, wanted, blocks, problem.batch)
    return MmaVjpPlan(
        problem=problem,
        wanted=wanted,
        limits=limits,
        config=config,
        backward_config=config,
        variant=variant,
        backward=mma_backward_spec(tensor, config, variant),
        filter=filter_spec(config, FilterVariant(problem.filter_dtype, is_paired=False, is_general=lags.is_wrapped)),
        filter_backward=filter_backward_spec(config, problem.filter_dtype),
        reduce=reduce_spec(config),
        lags=lags,
        is_prepared=False,
        needs_spectrum=needs_spectrum,
        shared_bytes=tensor.shared_bytes,
        log2_batch_slots=0,
        resident_blocks=blocks.resident,
        channel_group=group,
        chunks=chunks,
        has_reduce=has_reduce,
        workspace=workspace,
        launches=launches_of(problem, wanted, has_sum, -(-problem.channels // group), has_reduce, 2 * needs_spectrum),
        reasons=(f"rows fit in {tensor.points} points: no padding is transformed, the input is real",),
        tensor=tensor,
    )
