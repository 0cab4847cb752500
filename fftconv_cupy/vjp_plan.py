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
from fftconv_cupy.plan import WORKSPACE_LIMIT, FilterLags, block_config, extras_of, filter_lags, precision_line
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec

_MANY_CHUNKS = 8  # sums of a channel that the filter's kernel adds up by itself
_MOST_CHUNKS = 16  # of a channel where there are enough channels for all blocks: each leaves a sum in the workspace
_GROUP_STEPS = 4  # what a group of channels costs beside its rows, in the time of a step
_MOST_TRIED = 200  # sizes of groups
_ALIGNMENT = 256  # of each part of the workspace, in bytes


@dataclass(frozen=True, slots=True)
class Chunks:
    """How the rows of some channels are dealt out to blocks; the words are those of kernels/params.cuh.

    Attributes:
        groups: channel groups, of the channels that a block takes side by side.
        group_steps: times that the batch slots of a block are filled for one of them.
        chunk_steps: of these in a chunk, after which a block leaves its sum.
        group_chunks: chunks of a channel group.
        blocks: blocks, or clusters of them, that share the chunks.
    """

    groups: int
    group_steps: int
    chunk_steps: int
    group_chunks: int
    blocks: int

    @property
    def count(self) -> int:
        """Chunks in all, and so sums that are left."""
        return self.groups * self.group_chunks


@dataclass(frozen=True, slots=True)
class Workspace:
    """Offsets in bytes of the parts of a call's workspace, and its size."""

    spectrum: int
    sums: int
    stash: int
    reduced: int
    total: int
    nbytes: int


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
        if self.variant.has_sum:
            kernels.append((self.filter_backward, exchange_bytes))
        if self.has_reduce:
            kernels.append((self.reduce, REDUCE_THREADS * QUAD_BYTES))
        return tuple(kernels)

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a call takes beside its outputs."""
        return self.workspace.nbytes

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        problem, config, variant = self.problem, self.backward_config, self.variant
        radices = " x ".join(str(1 << log2) for log2 in config.log2_radices)
        units = "clusters" if config.cluster_blocks > 1 else "persistent blocks"
        wanted = ", ".join(f"d{name}" for name, is_wanted in self.wanted._asdict().items() if is_wanted)
        forward = variant.has_out_gradient or variant.has_sum, variant.has_in_gradient or variant.has_sum
        transforms = sum(forward) + variant.has_out_gradient + variant.has_in_gradient
        lines = [
            f"fftconv_vjp {problem.mode}: {wanted} of u ({problem.batch}, {problem.channels}, {problem.seqlen}) "
            f"{problem.dtype}, k ({'' if problem.shared_filter else f'{problem.channels}, '}{problem.filter_len}) "
            f"{problem.filter_dtype} on {self.limits.arch}",
            precision_line(problem),
            f"  transforms      {transforms} a row of {config.points} complex points = {radices}",
            f"  block           {config.threads} threads, {1 << config.log2_ept} points each, {config.rows} row(s), "
            f"{self.shared_bytes} bytes of shared memory{_cluster_text(config)}",
            f"  U and dY        one after the other in registers; {stash_text(variant, config)}",
            f"  sum of dk       {sum_text(variant, config)}",
            f"  grid            {self.chunks.blocks} {units}, {self.chunks.count} chunks of "
            f"{self.chunks.chunk_steps} row(s) a batch slot",
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes, {self.channel_group} channel(s) a group",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])


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
    group, chunks, has_reduce, workspace = channel_groups(
        problem, wanted, used, variant, slots, resident, needs_spectrum, problem.batch
    )
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
        launches=launches_of(problem, wanted, variant, -(-problem.channels // group), has_reduce, needs_spectrum),
        reasons=reasons_of(problem, wanted, used, variant, has_reduce),
    )


def make_chunks(channels: int, jobs: int, config: BlockConfig, batch_slots: int, resident: int) -> Chunks:
    """Deal out the jobs of each of `channels` channels, its rows or windows of them, to at most `resident` blocks.

    Long chunks leave few sums; but there are enough of them for all blocks, and they are short enough that the blocks
    work on a few channels at a time, whose spectra stay in L2.
    """
    groups = -(-channels // (config.rows // batch_slots))
    group_steps = -(-jobs // batch_slots)
    longest = max(config.chunk_steps, -(-group_steps // _MOST_CHUNKS))
    chunk_steps = min(longest, -(-groups * group_steps // resident))
    group_chunks = -(-group_steps // chunk_steps)
    chunk_steps = -(-group_steps // group_chunks)
    # How many clusters a GPU holds depends on how its multiprocessors are grouped: each takes one chunk.
    most = resident if config.cluster_blocks == 1 else groups * group_chunks
    return Chunks(groups, group_steps, chunk_steps, group_chunks, min(most, groups * group_chunks))


Group = tuple[int, Chunks, bool, Workspace]  # channels; how their rows are dealt out; sums are reduced; workspace


def channel_groups(
    problem: Problem,
    wanted: Wanted,
    config: BlockConfig,
    variant: BackwardVariant,
    slots: int,
    resident: int,
    needs_spectrum: bool,
    jobs: int,
    *,
    limit: int | None = None,
) -> Group:
    """Return the channels of a group and what follows: as many as the workspace limit allows, or somewhat fewer.

    All blocks wait for the last chunks of a group. Of several groups, those are taken that are done soonest.

    Args:
        problem: the convolution.
        wanted: which gradients.
        config: the block configuration.
        variant: flags of the kernel.
        slots: batch slots of a block.
        resident: blocks that the GPU holds at a time, or clusters.
        needs_spectrum: it lies in the workspace.
        jobs: of a channel, its rows or windows of them.
        limit: of the workspace, in bytes; None means `WORKSPACE_LIMIT`.
    """

    def of_channels(channels: int) -> Group:
        chunks = make_chunks(channels, jobs, config, slots, resident)
        has_reduce = variant.has_sum and (problem.shared_filter or chunks.group_chunks > _MANY_CHUNKS)
        row_bytes = config.points * COMPLEX_BYTES
        stash_bytes = (config.quads - variant.stash_quads) * config.threads * config.cluster_blocks * QUAD_BYTES
        sizes = (
            row_bytes * (1 if problem.shared_filter else channels) * needs_spectrum,
            row_bytes * (config.rows // slots) * chunks.count * variant.has_sum,
            stash_bytes * chunks.blocks * variant.has_sum,
            row_bytes * channels * has_reduce,
            row_bytes * (has_reduce and problem.shared_filter and wanted.k),
        )
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        return channels, chunks, has_reduce, Workspace(*offsets)

    def fits(group: Group) -> bool:
        return group[3].nbytes <= (limit or WORKSPACE_LIMIT) or group[0] == 1

    def duration(group: Group) -> int:
        """Return the time of all groups, in that of a step."""
        whole, rest = divmod(problem.channels, group[0])
        groups = [group[1]] * whole + ([make_chunks(rest, jobs, config, slots, resident)] if rest else [])
        return sum(-(-chunks.count // resident) * chunks.chunk_steps + _GROUP_STEPS for chunks in groups)

    most = problem.channels
    while not fits(of_channels(most)):
        most = max(1, min(most - 1, most * 15 // 16))
    if most == problem.channels:
        return of_channels(most)
    fewer = range(most, most // 2, -max(1, most // _MOST_TRIED))
    return min(filter(fits, map(of_channels, fewer)), key=duration)


def launches_of(
    problem: Problem, wanted: Wanted, variant: BackwardVariant, groups: int, has_reduce: bool, needs_spectrum: bool
) -> int:
    """Return the kernels that a call launches."""
    count = groups + has_reduce * groups
    if problem.shared_filter:
        return count + needs_spectrum + wanted.skip * groups + wanted.k * (groups + 1)
    return count + (needs_spectrum + variant.has_sum) * groups


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
