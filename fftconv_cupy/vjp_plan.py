"""Which kernels compute the gradients of a problem on an architecture, with which sizes and workspace, and why."""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import (
    COMPLEX_BYTES,
    QUAD_BYTES,
    REDUCE_THREADS,
    BackwardVariant,
    BlockConfig,
    FilterVariant,
    backward_config,
    backward_spec,
    filter_backward_spec,
    filter_spec,
    reduce_spec,
    resident_blocks,
    stash_quads,
)
from fftconv_cupy.chunks import Blocks, Chunks, Workspace, channel_groups
from fftconv_cupy.plan import FilterLags, block_config, extras_of, filter_lags, gradients_line, precision_line
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec


@dataclass(frozen=True, slots=True)
class VjpPlan:
    """How the gradients of one call are computed; ``print(plan)`` tells it in words.

    Attributes:
        problem: the convolution.
        wanted: which gradients.
        limits: of the architecture.
        config: the block configuration.
        backward_config: that of the fused kernel: another one where blocks share a row.
        variant: flags of the fused kernel.
        backward: the fused kernel.
        filter: the kernel that makes the filter's spectrum.
        filter_backward: the kernel that turns sums into gradients of the filter and of skip.
        reduce: the kernel that adds up sums.
        lags: where the taps lie in the ring.
        is_prepared: the spectrum comes with the call.
        needs_spectrum: it is made by the call.
        shared_bytes: dynamic shared memory of a block of `backward`.
        log2_batch_slots: log2 of the rows of a block that differ in batch.
        resident_blocks: blocks of `backward`, or clusters, that the GPU holds at a time: at most so many are launched.
        channel_group: channels that are computed at a time.
        chunks: how the rows of a group are dealt out.
        has_reduce: sums are added up by `reduce` first.
        workspace: its parts.
        launches: kernels launched by a call.
        reasons: why it is so, a sentence each.
    """

    problem: Problem
    wanted: Wanted
    limits: ArchLimits
    config: BlockConfig
    backward_config: BlockConfig
    variant: BackwardVariant
    backward: KernelSpec
    filter: KernelSpec
    filter_backward: KernelSpec
    reduce: KernelSpec
    lags: FilterLags
    is_prepared: bool
    needs_spectrum: bool
    shared_bytes: int
    log2_batch_slots: int
    resident_blocks: int
    channel_group: int
    chunks: Chunks
    has_reduce: bool
    workspace: Workspace
    launches: int
    reasons: tuple[str, ...]

    @property
    def group_channels(self) -> int:
        """Channels that a block takes side by side."""
        return self.config.rows >> self.log2_batch_slots

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        exchange_bytes = self.config.exchange_bytes
        kernels = [(self.backward, self.shared_bytes)]
        if self.needs_spectrum:
            kernels.append((self.filter, exchange_bytes))
            if self.convert is not None:
                kernels.append((self.convert, 0))
        if self.variant.has_sum:
            kernels.append((self.filter_backward, exchange_bytes))
        if self.has_reduce:
            kernels.append((self.reduce, REDUCE_THREADS * QUAD_BYTES))
        return tuple(kernels)

    @property
    def convert(self) -> KernelSpec | None:
        """The kernel that brings the filter's spectrum into the form of the fused kernel, if that has its own."""
        return None

    @property
    def converted_offset(self) -> int:
        """Bytes from the filter's spectrum to where it is brought to."""
        return 0

    @property
    def backward_threads(self) -> int:
        """Threads of a block of the fused kernel."""
        return self.backward_config.threads

    @property
    def spectrum_quads(self) -> int:
        """Pairs of points, or words of as many bytes, of a channel's spectrum as the fused kernel reads it."""
        return self.config.points // 2

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a call takes beside its outputs."""
        return self.workspace.nbytes

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        lines = [
            gradients_line(self.problem, self.wanted, self.limits),
            *self._transform_lines(),
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes, {self.channel_group} channel(s) a group",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])

    def _transform_lines(self) -> list[str]:
        """Return what the plan says of the fused kernel."""
        config, variant = self.backward_config, self.variant
        radices = " x ".join(map(str, config.radices))
        return [
            precision_line(self.problem),
            f"  transforms      {transforms_of(variant)} a row of {config.points} complex points = {radices}",
            f"  block           {config.threads} threads, {1 << config.log2_ept} points each, {config.rows} row(s), "
            f"{self.shared_bytes} bytes of shared memory{_cluster_text(config)}",
            f"  U and dY        one after the other in registers; {stash_text(variant, config)}",
            f"  sum of dk       {sum_text(variant, config)}",
            grid_line(self.chunks, "clusters" if config.cluster_blocks > 1 else "persistent blocks"),
        ]


def make_vjp_plan(
    problem: Problem, wanted: Wanted, limits: ArchLimits, *, is_vector: bool = True, is_prepared: bool = False
) -> VjpPlan:
    """Plan the gradients of a problem for a GPU.

    Args:
        problem: the convolution; ``batch >= 1``.
        wanted: which gradients.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths, so two elements are accessed at a time.
        is_prepared: the filter's spectrum comes with the call.

    Raises:
        UnsupportedProblemError: the transform does not fit one block of this GPU, or an axis reaches 2^30.
    """
    _, config = block_config(problem, limits, can_pair=False)
    points = config.points
    is_whole = problem.seqlen == problem.out_len == points
    is_complex = max(problem.seqlen, problem.out_len) > points
    has_sum = wanted.k or wanted.skip
    used = backward_config(config, limits, has_sum=has_sum)
    variant = BackwardVariant(
        dtype=problem.dtype,
        is_complex=is_complex,
        has_tail=not is_whole or not is_vector,
        is_vector=is_vector,
        extras=extras_of(problem),
        has_in_gradient=wanted.u or wanted.in_gate,
        has_out_gradient=wanted.out_gate,
        has_sum=has_sum,
        stash_quads=stash_quads(used, limits) if has_sum else 0,
    )
    lags = filter_lags(problem, "linear")
    is_general = lags.is_wrapped or lags.positive > points
    slots = min(config.rows, 1 << max(0, problem.batch - 1).bit_length())
    resident = resident_blocks(used, variant, limits)
    needs_spectrum = not is_prepared and (variant.has_in_gradient or variant.has_out_gradient)
    blocks = blocks_of(used, variant, slots, resident, needs_spectrum)
    group, chunks, has_reduce, workspace = channel_groups(problem, wanted, blocks, problem.batch)
    return VjpPlan(
        problem=problem,
        wanted=wanted,
        limits=limits,
        config=config,
        backward_config=used,
        variant=variant,
        backward=backward_spec(used, variant, config.row_threads),
        filter=filter_spec(config, FilterVariant(problem.filter_dtype, is_paired=False, is_general=is_general)),
        filter_backward=filter_backward_spec(config, problem.filter_dtype),
        reduce=reduce_spec(config),
        lags=lags,
        is_prepared=is_prepared,
        needs_spectrum=needs_spectrum,
        shared_bytes=variant.shared_bytes(used),
        log2_batch_slots=slots.bit_length() - 1,
        resident_blocks=resident,
        channel_group=group,
        chunks=chunks,
        has_reduce=has_reduce,
        workspace=workspace,
        launches=launches_of(problem, wanted, has_sum, -(-problem.channels // group), has_reduce, needs_spectrum),
        reasons=reasons_of(problem, wanted, used, variant, has_reduce),
    )


def blocks_of(config: BlockConfig, variant: BackwardVariant, slots: int, resident: int, needs_spectrum: bool) -> Blocks:
    """Return what the blocks of a configuration need."""
    stash_bytes = (config.quads - variant.stash_quads) * config.threads * config.cluster_blocks * QUAD_BYTES
    return Blocks(
        points=config.points,
        channels=config.rows // slots,
        slots=slots,
        chunk_steps=config.chunk_steps,
        resident=resident,
        is_persistent=config.cluster_blocks == 1,
        has_sum=variant.has_sum,
        spectrum_bytes=config.points * COMPLEX_BYTES * needs_spectrum,
        stash_bytes=stash_bytes * variant.has_sum,
    )


def launches_of(
    problem: Problem, wanted: Wanted, has_sum: bool, groups: int, has_reduce: bool, spectrum_launches: int
) -> int:
    """Return the kernels that a call launches, of which `spectrum_launches` make a spectrum."""
    count = groups + has_reduce * groups
    if problem.shared_filter:
        return count + spectrum_launches + wanted.skip * groups + wanted.k * (groups + 1)
    return count + (spectrum_launches + has_sum) * groups


def transforms_of(variant: BackwardVariant) -> int:
    """Return the transforms of a row: of u and dy, and back to the gradients."""
    forward = variant.has_out_gradient or variant.has_sum, variant.has_in_gradient or variant.has_sum
    return sum(forward) + variant.has_out_gradient + variant.has_in_gradient


def grid_line(chunks: Chunks, units: str) -> str:
    """Return the line of a plan that tells how rows are dealt out, to blocks or clusters of them."""
    return (
        f"  grid            {chunks.blocks} {units}, {chunks.count} chunks of {chunks.chunk_steps} row(s) a batch slot"
    )


def _cluster_text(config: BlockConfig) -> str:
    return f"; a cluster of {config.cluster_blocks} shares a row" if config.cluster_blocks > 1 else ""


def stash_text(variant: BackwardVariant, config: BlockConfig) -> str:
    """Return where the spectrum of U lies meanwhile, in words."""
    if not variant.has_sum:
        return "no spectrum is kept"
    if variant.stash_quads == config.quads:
        return "the spectrum of U lies in shared memory meanwhile, in float32"
    return (
        f"the spectrum of U lies meanwhile in shared memory ({variant.stash_quads} of {config.quads} parts) and L2, "
        "in float32"
    )


def sum_text(variant: BackwardVariant, config: BlockConfig) -> str:
    """Return how the gradient of the filter is summed, in words."""
    if not variant.has_sum:
        return "none"
    where = "in registers" if config.has_register_sums else "in L2, by the threads that own it"
    return f"{where}, float32, over the rows of a block in their order; then over the blocks in theirs"


def reasons_of(
    problem: Problem, wanted: Wanted, config: BlockConfig, variant: BackwardVariant, has_reduce: bool
) -> tuple[str, ...]:
    """Return why gradients are computed so, a sentence each."""
    reasons = []
    if problem.mode == "circular":
        reasons.append("a circular filter is wrapped by hand, one row a transform: sums over pairs of rows would mix")
    if variant.has_sum and (config.cluster_blocks > 1 or not config.has_register_sums):
        held = 3 * config.points * COMPLEX_BYTES >> 10
        reasons.append(f"U, dY and the sum take {held} KB a row, more than a multiprocessor holds beside the exchange")
    if not variant.has_sum:
        reasons.append("neither dk nor dskip is wanted: nothing is summed")
    if has_reduce and problem.shared_filter:
        reasons.append("one filter for all channels: the sums of the channels are added up")
    elif has_reduce:
        reasons.append("many blocks share a channel: their sums are added up by a kernel of its own")
    if not variant.is_vector:
        reasons.append("an odd length, address or stride: elements are accessed one by one")
    return tuple(reasons)
