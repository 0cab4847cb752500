"""The launches that a depthwise plan is made of, kernels with their blocks; depthwise_rows has those of few taps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import REDUCE_COLUMNS, REDUCE_THREADS
from fftconv_cupy.depthwise_kernels import (
    GROUP_TAPS,
    LEAST_MATRIX_TAPS,
    MATRIX_DTYPES,
    MATRIX_SHAPES,
    MAX_GROUPS,
    MAX_MATRIX_STEPS,
    ROW_THREADS,
    RUN,
    TAPS_SHAPES,
    TILE_SHAPES,
    TILE_THREADS,
    VECTOR_BYTES,
    MatrixVariant,
    TapsVariant,
    TileVariant,
    has_matrix_products,
    matrix_spec,
    matrix_steps,
    reduce_spec,
    state_spec,
    taps_spec,
    tile_spec,
    update_spec,
)
from fftconv_cupy.depthwise_problem import DepthwiseProblem
from fftconv_cupy.problem import ITEM_BYTES
from fftconv_cupy.source import KernelSpec

_GRID_Y = 65535
WARP = 32
_WAVES = 4  # blocks that follow each other on a multiprocessor, so that the slowest one does not hold up much
_TAPS_BLOCKS = 2  # of a multiprocessor: those of depthwise_taps, about
_MATRIX_BLOCKS = 3 * _WAVES  # of depthwise_mma, for each of its places on a multiprocessor
_SYSTEM_BYTES = 1024  # of shared memory that each block takes beside its own


@dataclass(frozen=True, slots=True)
class Step:
    """A launch: a kernel, its blocks, and those of its arguments that are neither an address nor a stride.

    Attributes:
        role: "output", "slope" (dz), "input" (dx), "sums", "all" (dx and sums), "reduce", "state" or "update".
        spec: the kernel.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        grid: blocks.
        numbers: the last ints of the kernel's arguments, in their order.
    """

    role: str
    spec: KernelSpec
    threads: int
    shared_bytes: int
    grid: tuple[int, int, int]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Correlation:
    """out[t] = sum over j of tap[j] * in[t + j - pad] for out_begin <= t < out_end, before what follows it.

    Attributes:
        role: of the step.
        in_dtype: of the input.
        out_dtype: of the output.
        in_len: points of the input.
        out_begin: first output; one before 0 belongs to the state.
        out_end: past the last output.
        pad: points before the first one that output 0 sees.
        is_reversed: the taps are those of the problem from the last one on.
        epilogue: one of `depthwise_kernels.EPILOGUES`.
    """

    role: str
    in_dtype: str
    out_dtype: str
    in_len: int
    out_begin: int
    out_end: int
    pad: int
    is_reversed: bool = False
    epilogue: str = "none"


def grid_y(problem: DepthwiseProblem) -> int:
    """Return the blocks that walk the batch."""
    return min(problem.batch, _GRID_Y)


def row_alignment(problem: DepthwiseProblem) -> int:
    """Return the bytes at multiples of which all rows of contiguous arrays lie, as far as that tells kernels apart."""
    item = ITEM_BYTES[problem.dtype]
    if problem.layout == "BHL":
        bits = (problem.seqlen | problem.out_len) * item
        return item if bits % VECTOR_BYTES else VECTOR_BYTES
    return math.gcd(problem.channels * item, VECTOR_BYTES)


def sums_step(problem: DepthwiseProblem, limits: ArchLimits, dz_dtype: str, alignment: int) -> tuple[Step, int]:
    """Return the launch of depthwise_taps, and how many partial sums it leaves.

    Args:
        problem: the convolution.
        limits: of the GPU.
        dz_dtype: of the gradient before the activation.
        alignment: as for `correlation_step`.
    """
    groups = min(MAX_GROUPS, 1 << log2_of(-(-problem.width // GROUP_TAPS)))
    shape = _best_shape(TAPS_SHAPES, problem, problem.out_len, groups * GROUP_TAPS)
    variant = TapsVariant(
        in_dtype=problem.dtype,
        dz_dtype=dz_dtype,
        layout=problem.layout,
        shape=shape,
        groups=groups,
        has_seq_idx=problem.has_seq_idx,
        is_vector=has_vectors(problem, alignment),
    )
    channels, points = shape
    across = -(-problem.channels // channels)
    tap_blocks = -(-problem.width // (groups * GROUP_TAPS))
    time_tiles = -(-problem.out_len // points)
    blocks = _WAVES * limits.multiprocessors * _TAPS_BLOCKS
    chunks, chunk_items = deal(problem.batch * time_tiles, max(1, blocks // (across * tap_blocks)))
    correlation = Correlation("sums", problem.dtype, dz_dtype, problem.seqlen, 0, problem.out_len, problem.pad)
    step = Step(
        "sums",
        taps_spec(variant),
        TILE_THREADS,
        variant.shared_bytes,
        (across * chunks, tap_blocks, 1),
        numbers_of(problem, correlation, 1, points, 0, time_tiles, chunks, chunk_items),
    )
    return step, chunks


def reduce_step(problem: DepthwiseProblem, chunks: int) -> Step:
    """Return the launch of depthwise_reduce for `chunks` partial sums of each tap and channel."""
    grid = (-(-problem.channels // REDUCE_COLUMNS), problem.width + 1, 1)
    return Step("reduce", reduce_spec(), REDUCE_THREADS, 4 * REDUCE_THREADS, grid, (chunks,))


def state_step(problem: DepthwiseProblem) -> Step:
    """Return the launch of depthwise_state."""
    points = problem.channels * (problem.width - 1)
    grid = (-(-points // ROW_THREADS), grid_y(problem), 1)
    return Step("state", state_spec(problem.dtype), ROW_THREADS, 0, grid)


def update_step(problem: DepthwiseProblem) -> Step:
    """Return the launch of depthwise_update; `problem` is that of the new points."""
    grid = (-(-problem.channels // ROW_THREADS), grid_y(problem), 1)
    return Step("update", update_spec(problem.dtype), ROW_THREADS, 0, grid)


def has_vectors(problem: DepthwiseProblem, alignment: int) -> bool:
    """Return whether what goes through shared memory is accessed 16 bytes at a time; in BHL, wherever rows begin."""
    return problem.layout == "BHL" or alignment == VECTOR_BYTES


def suits_matrix(problem: DepthwiseProblem, limits: ArchLimits, correlation: Correlation) -> bool:
    """Return whether depthwise_mma is there for a correlation that is plain, and does it best."""
    has_many = problem.width >= LEAST_MATRIX_TAPS and matrix_steps(problem.width, correlation.pad) <= MAX_MATRIX_STEPS
    return has_many and correlation.in_dtype in MATRIX_DTYPES and has_matrix_products(limits)


def matrix_step(problem: DepthwiseProblem, limits: ArchLimits, correlation: Correlation, alignment: int) -> Step:
    """Return the launch of depthwise_mma."""
    variants = [
        MatrixVariant(
            dtype=problem.dtype,
            layout=problem.layout,
            shape=shape,
            steps=matrix_steps(problem.width, correlation.pad),
            is_split=problem.weight_dtype != problem.dtype,
            has_silu=correlation.epilogue == "silu",
            is_shifted=alignment < VECTOR_BYTES,
        )
        for shape in MATRIX_SHAPES[problem.layout]
    ]

    def counts(variant: MatrixVariant) -> tuple[int, int]:
        """Return the tiles side by side across the channels, and in time."""
        return -(-problem.channels // variant.shape[0]), -(-correlation.out_end // variant.shape[1])

    def places(variant: MatrixVariant) -> int:
        """Return the blocks that run at a time."""
        fitting = limits.multiprocessor_shared_bytes // (variant.shared_bytes + _SYSTEM_BYTES)
        return limits.multiprocessors * min(fitting, variant.min_blocks)

    def points_in_turn(variant: MatrixVariant) -> int:
        """Return the points that follow each other in such a place, those around tiles included."""
        turns = -(-problem.batch * math.prod(counts(variant)) // places(variant))
        return turns * variant.shape[0] * (variant.shape[1] + problem.width)

    variant = min(variants, key=points_in_turn)
    across, time_tiles = counts(variant)
    chunks, chunk_items = deal(problem.batch * time_tiles, max(1, _MATRIX_BLOCKS * places(variant) // across))
    return Step(
        correlation.role,
        matrix_spec(variant),
        TILE_THREADS,
        variant.shared_bytes,
        (across * chunks, 1, 1),
        numbers_of(problem, correlation, 1, variant.shape[1], 0, time_tiles, chunks, chunk_items),
    )


def tile_step(problem: DepthwiseProblem, correlation: Correlation, alignment: int) -> Step:
    """Return the launch of depthwise_tile."""
    # Tiles begin at multiples of a run of points, also before the first one.
    span = correlation.out_end - correlation.out_begin // RUN * RUN
    shape = _best_shape(TILE_SHAPES, problem, span, problem.width)
    variant = TileVariant(
        in_dtype=correlation.in_dtype,
        dy_dtype=problem.dtype,
        out_dtype=correlation.out_dtype,
        layout=problem.layout,
        shape=shape,
        width=problem.width,
        epilogue=correlation.epilogue,
        has_seq_idx=problem.has_seq_idx,
        is_vector=has_vectors(problem, alignment),
    )
    counts = (-(-problem.channels // shape[0]), -(-span // shape[1]))
    return Step(
        correlation.role,
        tile_spec(variant),
        TILE_THREADS,
        variant.shared_bytes,
        (counts[0] * counts[1], grid_y(problem), 1),
        numbers_of(problem, correlation, counts[problem.layout == "BHL"]),
    )


def numbers_of(
    problem: DepthwiseProblem,
    correlation: Correlation,
    tiles: int,
    tile_len: int = 0,
    log2_lanes: int = 0,
    time_tiles: int = 0,
    chunks: int = 0,
    chunk_items: int = 0,
) -> tuple[int, ...]:
    """Return the ints of `DepthwiseParams` from in_len on, in their order."""
    c = correlation
    lengths = (c.in_len, c.out_begin, c.out_end, problem.width, c.pad, int(c.is_reversed), problem.out_len)
    return (*lengths, tiles, tile_len, log2_lanes, time_tiles, chunks, chunk_items)


def log2_of(count: int) -> int:
    """Return the logarithm of the power of two that is not less than `count`."""
    return max(0, count - 1).bit_length()


def deal(items: int, most: int) -> tuple[int, int]:
    """Deal out items to at most `most` chunks of like size; return the chunks and the items of each."""
    chunk_items = -(-items // min(items, most))
    return -(-items // chunk_items), chunk_items


def _best_shape(
    shapes: Mapping[str, tuple[tuple[int, int], ...]], problem: DepthwiseProblem, span: int, halo: int
) -> tuple[int, int]:
    """Return the tile that covers all channels and `span` points with the fewest points, those around included."""

    def covered(shape: tuple[int, int]) -> int:
        channels, points = shape
        return -(-problem.channels // channels) * channels * -(-span // points) * (points + halo)

    return min(shapes[problem.layout], key=covered)
