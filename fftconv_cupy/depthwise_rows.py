"""The launches of few taps: depthwise_fwd and depthwise_bwd, whose threads hold taps and points in registers."""

from __future__ import annotations

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.depthwise_kernels import ROW_THREADS, RowVariant, row_spec
from fftconv_cupy.depthwise_problem import DepthwiseProblem
from fftconv_cupy.depthwise_steps import WARP, Correlation, Step, deal, grid_y, log2_of, numbers_of

_WAVES = {"BHL": 12, "BLH": 4}  # blocks of depthwise_bwd that follow each other on a multiprocessor
_WALK_WAVES = 8  # and of depthwise_fwd where threads walk down in time
_ROW_WARPS = 16  # of a multiprocessor, about
_SUM_POINTS = 256  # of a channel for each partial sum, at least, where there are enough for all blocks
_TIME_TILES = (512, 256, 128, 64, 32, 16)  # points that a thread walks down


def fused_step(
    problem: DepthwiseProblem, limits: ArchLimits, *, has_input: bool, has_sums: bool, alignment: int
) -> tuple[Step, int]:
    """Return the launch of depthwise_bwd, and how many partial sums it leaves.

    Args:
        problem: the convolution.
        limits: of the GPU.
        has_input: the gradient of x is made.
        has_sums: those of weight and bias are made.
        alignment: as for `correlation_step`.
    """
    is_rows = problem.layout == "BHL"
    variant = RowVariant(
        dtype=problem.dtype,
        layout=problem.layout,
        taps=problem.width,
        pad=problem.pad if is_rows else 0,
        has_silu=problem.activation == "silu",
        is_backward=True,
        has_input=has_input,
        has_sums=has_sums,
        alignment=alignment,
        has_seq_idx=problem.has_seq_idx,
    )
    extent = max(problem.seqlen, problem.out_len)
    if variant.is_shifted:  # vectors may begin as many points before a row
        extent += variant.shape.vector - 1
    places = limits.multiprocessors * _ROW_WARPS * WARP // ROW_THREADS
    blocks = _WAVES[problem.layout] * places
    if is_rows:
        vectors = -(-extent // variant.shape.vector)
        log2_lanes = min(log2_of(ROW_THREADS), log2_of(-(-vectors // variant.shape.repeat)))
        tile_len = variant.shape.vector * variant.shape.repeat << log2_lanes
        tiles, across = 1, -(-problem.channels // (ROW_THREADS >> log2_lanes))
        slots = 1
    else:
        columns = problem.channels // variant.shape.vector
        log2_lanes = _channel_lanes(columns, variant.shape.log2_lanes)
        tiles, slots = -(-columns // (1 << log2_lanes)), ROW_THREADS >> log2_lanes
        across = tiles
        tile_len = _time_tile(extent, problem.batch, blocks * slots // tiles, 32, _TIME_TILES[0])
    time_tiles = -(-extent // tile_len)
    items = problem.batch * time_tiles
    # As many sums as keep all blocks busy, but no more than are few beside the points they sum.
    most = max(problem.batch * extent // _SUM_POINTS, places * slots // across, 1)
    chunks, chunk_items = deal(items, min(most, max(1, blocks * slots // across)))
    correlation = Correlation("all", problem.dtype, problem.dtype, problem.seqlen, 0, problem.seqlen, problem.pad)
    step = Step(
        "all",
        row_spec(variant),
        ROW_THREADS,
        variant.shared_bytes,
        (across * -(-chunks // slots), 1, 1),
        numbers_of(problem, correlation, tiles, tile_len, log2_lanes, time_tiles, chunks, chunk_items),
    )
    return step, chunks


def row_step(problem: DepthwiseProblem, limits: ArchLimits, correlation: Correlation, alignment: int) -> Step:
    """Return the launch of depthwise_fwd."""
    is_rows = problem.layout == "BHL"
    variant = RowVariant(
        dtype=problem.dtype,
        layout=problem.layout,
        taps=problem.width,
        pad=correlation.pad if is_rows else 0,
        has_silu=correlation.epilogue == "silu",
        alignment=alignment,
        has_seq_idx=problem.has_seq_idx,
    )
    if is_rows:
        vectors = -(-correlation.out_end // variant.shape.vector)
        log2_lanes = min(log2_of(ROW_THREADS), log2_of(-(-vectors // variant.shape.repeat)))
        tiles = -(-vectors // (variant.shape.repeat << log2_lanes))
        across, tile_len = -(-problem.channels // (ROW_THREADS >> log2_lanes)), 0
    else:
        columns = problem.channels // variant.shape.vector
        log2_lanes = _channel_lanes(columns, variant.shape.log2_lanes)
        tiles = -(-columns // (1 << log2_lanes))
        warps = _WALK_WAVES * limits.multiprocessors * _ROW_WARPS
        wanted_tiles = warps * WARP // (tiles << log2_lanes)
        shortest, longest = 16 if problem.width <= 4 else 32, _TIME_TILES[0] if variant.shape.is_ring else 128
        tile_len = _time_tile(correlation.out_end, problem.batch, wanted_tiles, shortest, longest)
        across = -(-correlation.out_end // (tile_len * (ROW_THREADS >> log2_lanes)))
    return Step(
        correlation.role,
        row_spec(variant),
        ROW_THREADS,
        variant.shared_bytes,
        (tiles * across, grid_y(problem), 1),
        numbers_of(problem, correlation, tiles, tile_len, log2_lanes),
    )


def _channel_lanes(columns: int, most: int) -> int:
    """Return log2 of the threads side by side on `columns` vectors of channels: up to `most`, but few of them idle."""
    widest = min(most, log2_of(columns))
    for log2_lanes in range(widest, log2_of(WARP), -1):
        if -(-columns // (1 << log2_lanes)) << log2_lanes <= columns + columns // 16:
            return log2_lanes
    return min(widest, log2_of(WARP))


def _time_tile(extent: int, batch: int, wanted_tiles: int, shortest: int, longest: int) -> int:
    """Return the points that a thread walks down: many, so that few are read twice, but with tiles for all threads."""
    for tile_len in _TIME_TILES:
        if tile_len <= shortest or (tile_len <= longest and batch * -(-extent // tile_len) >= wanted_tiles):
            return tile_len
    return shortest
