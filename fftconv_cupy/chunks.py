"""How the rows of a call for gradients are dealt out to blocks, and the workspace that this takes."""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.plan import WORKSPACE_LIMIT
from fftconv_cupy.problem import Problem, Wanted

_MANY_CHUNKS = 8  # sums of a channel that the filter's kernel adds up by itself
_MOST_CHUNKS = 16  # of a channel where there are enough channels for all blocks: each leaves a sum in the workspace
_GROUP_STEPS = 4  # what a group of channels costs beside its rows, in the time of a step
_MOST_TRIED = 200  # sizes of groups
_ALIGNMENT = 256  # of each part of the workspace, in bytes


@dataclass(frozen=True, slots=True)
class Blocks:
    """What the blocks of a kernel of gradients need and leave, for dealing out rows to them.

    Attributes:
        points: complex points of a row.
        channels: that a block takes side by side.
        slots: rows of each of them.
        chunk_steps: times that a block fills its batch slots before it leaves the sum, at most.
        resident: blocks, or clusters of them, that the GPU holds at a time.
        is_persistent: they take chunks one after the other; clusters take one each.
        has_sum: whether there is one.
        spectrum_bytes: workspace for the spectrum of a channel's filter.
        stash_bytes: workspace of a block, or of a cluster.
    """

    points: int
    channels: int
    slots: int
    chunk_steps: int
    resident: int
    is_persistent: bool
    has_sum: bool
    spectrum_bytes: int
    stash_bytes: int


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


def make_chunks(channels: int, jobs: int, blocks: Blocks) -> Chunks:
    """Deal out the jobs of each of `channels` channels, its rows or windows of them, to blocks.

    Long chunks leave few sums; but there are enough of them for all blocks, and they are short enough that the blocks
    work on a few channels at a time, whose spectra stay in L2.
    """
    groups = -(-channels // blocks.channels)
    group_steps = -(-jobs // blocks.slots)
    longest = max(blocks.chunk_steps, -(-group_steps // _MOST_CHUNKS))
    chunk_steps = min(longest, -(-groups * group_steps // blocks.resident))
    group_chunks = -(-group_steps // chunk_steps)
    chunk_steps = -(-group_steps // group_chunks)
    # How many clusters a GPU holds depends on how its multiprocessors are grouped: each takes one chunk.
    most = blocks.resident if blocks.is_persistent else groups * group_chunks
    return Chunks(groups, group_steps, chunk_steps, group_chunks, min(most, groups * group_chunks))


Group = tuple[int, Chunks, bool, Workspace]  # channels; how their rows are dealt out; sums are reduced; workspace


def channel_groups(
    problem: Problem,
    wanted: Wanted,
    blocks: Blocks,
    jobs: int,
    *,
    limit: int | None = None,
) -> Group:
    """Return the channels of a group and what follows: as many as the workspace limit allows, or somewhat fewer.

    All blocks wait for the last chunks of a group. Of several groups, those are taken that are done soonest.

    Args:
        problem: the convolution.
        wanted: which gradients.
        blocks: what they need and leave.
        jobs: of a channel, its rows or windows of them.
        limit: of the workspace, in bytes; None means `WORKSPACE_LIMIT`.
    """

    def of_channels(channels: int) -> Group:
        chunks = make_chunks(channels, jobs, blocks)
        has_reduce = blocks.has_sum and (problem.shared_filter or chunks.group_chunks > _MANY_CHUNKS)
        row_bytes = blocks.points * COMPLEX_BYTES
        sizes = (
            blocks.spectrum_bytes * (1 if problem.shared_filter else channels),
            row_bytes * blocks.channels * chunks.count * blocks.has_sum,
            blocks.stash_bytes * chunks.blocks,
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
        groups = [group[1]] * whole + ([make_chunks(rest, jobs, blocks)] if rest else [])
        return sum(-(-chunks.count // blocks.resident) * chunks.chunk_steps + _GROUP_STEPS for chunks in groups)

    most = problem.channels
    while not fits(of_channels(most)):
        most = max(1, min(most - 1, most * 15 // 16))
    if most == problem.channels:
        return of_channels(most)
    fewer = range(most, most // 2, -max(1, most // _MOST_TRIED))
    return min(filter(fits, map(of_channels, fewer)), key=duration)
