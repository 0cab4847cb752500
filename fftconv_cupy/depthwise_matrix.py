"""Every depthwise kernel that a plan may name: what the compile matrix checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import CUDA_TYPES, REDUCE_THREADS
from fftconv_cupy.depthwise_kernels import (
    EPILOGUES,
    MATRIX_DTYPES,
    MATRIX_SHAPES,
    MAX_GROUPS,
    MAX_MATRIX_STEPS,
    MAX_ROW_TAPS,
    MAX_SEQUENCE_TAPS,
    ROW_THREADS,
    RUN,
    TAPS_SHAPES,
    TILE_SHAPES,
    TILE_THREADS,
    VECTOR_BYTES,
    MatrixVariant,
    RowVariant,
    TapsVariant,
    TileVariant,
    has_matrix_products,
    matrix_spec,
    min_tile_blocks,
    reduce_spec,
    row_spec,
    state_spec,
    taps_spec,
    tile_spec,
    update_spec,
)
from fftconv_cupy.depthwise_problem import LAYOUTS, MAX_WIDTH
from fftconv_cupy.kernel_matrix import Kernel
from fftconv_cupy.problem import ITEM_BYTES

_BOOLEANS = (False, True)
_ALIGNMENTS = (2, 4, 8, VECTOR_BYTES)  # of rows, in bytes


def iter_depthwise_kernels(limits: ArchLimits) -> Iterator[Kernel]:
    """Yield the kernels; of paddings that are numbers none, for there is one kernel for each.

    Args:
        limits: of the GPU.
    """
    yield from _row_kernels()
    for product in _matrix_variants() if has_matrix_products(limits) else ():
        yield Kernel(matrix_spec(product), TILE_THREADS, product.min_blocks, product.shared_bytes)
    for variant in _tile_variants():
        yield Kernel(tile_spec(variant), TILE_THREADS, min_tile_blocks(variant), variant.shared_bytes)
    for sums in _taps_variants():
        yield Kernel(taps_spec(sums), TILE_THREADS, min_tile_blocks(sums), sums.shared_bytes)
    yield Kernel(reduce_spec(), REDUCE_THREADS, 1, 4 * REDUCE_THREADS)
    for dtype in CUDA_TYPES:
        yield Kernel(update_spec(dtype), ROW_THREADS, 1, 0)
        yield Kernel(state_spec(dtype), ROW_THREADS, 1, 0)


def _row_kernels() -> Iterator[Kernel]:
    for dtype, layout, has_silu, alignment in itertools.product(CUDA_TYPES, LAYOUTS, _BOOLEANS, _ALIGNMENTS):
        if alignment < ITEM_BYTES[dtype] or (layout == "BHL" and alignment not in (VECTOR_BYTES, ITEM_BYTES[dtype])):
            continue
        for taps in range(1, MAX_ROW_TAPS + 1):
            # Causal, same, and the gradients of x of both.
            pads = {taps - 1, (taps - 1) // 2, taps // 2, 0} if layout == "BHL" else {0}
            for pad in sorted(pads):
                variants = [RowVariant(dtype, layout, taps, pad, has_silu, alignment=alignment)]
                flags = ((True, True), (False, True), *(((True, False),) if has_silu else ()))
                variants += [
                    replace(variants[0], is_backward=True, has_input=has_input, has_sums=has_sums)
                    for has_input, has_sums in flags
                ]
                if taps <= MAX_SEQUENCE_TAPS and pad in (0, taps - 1):  # of causal convolutions
                    variants.append(replace(variants[0], has_seq_idx=True))
                for variant in variants:
                    yield Kernel(row_spec(variant), ROW_THREADS, variant.shape.min_blocks, variant.shared_bytes)


def _matrix_variants() -> Iterator[MatrixVariant]:
    for layout, dtype, is_split, has_silu in itertools.product(LAYOUTS, MATRIX_DTYPES, _BOOLEANS, _BOOLEANS):
        for shape, steps in itertools.product(MATRIX_SHAPES[layout], range(1, MAX_MATRIX_STEPS + 1)):
            for is_shifted in _BOOLEANS if layout == "BHL" else (False,):
                yield MatrixVariant(dtype, layout, shape, steps, is_split, has_silu, is_shifted)


def _tile_variants() -> Iterator[TileVariant]:
    for layout, dtype, has_seq_idx, is_vector in itertools.product(LAYOUTS, CUDA_TYPES, _BOOLEANS, _BOOLEANS):
        if layout == "BHL" and not is_vector:
            continue
        for shape, taps, epilogue in itertools.product(TILE_SHAPES[layout], range(RUN, MAX_WIDTH + 1, RUN), EPILOGUES):
            out_dtype = "float32" if epilogue == "slope" else dtype
            in_dtypes = {dtype, "float32"} if epilogue == "none" else {dtype}  # dz is float32
            for in_dtype in sorted(in_dtypes):
                yield TileVariant(in_dtype, dtype, out_dtype, layout, shape, taps, epilogue, has_seq_idx, is_vector)


def _taps_variants() -> Iterator[TapsVariant]:
    counts = [1 << log2 for log2 in range(MAX_GROUPS.bit_length())]
    for layout, dtype, groups, has_seq_idx, is_vector in itertools.product(
        LAYOUTS, CUDA_TYPES, counts, _BOOLEANS, _BOOLEANS
    ):
        if layout == "BHL" and not is_vector:
            continue
        for shape, dz_dtype in itertools.product(TAPS_SHAPES[layout], sorted({dtype, "float32"})):
            yield TapsVariant(dtype, dz_dtype, layout, shape, groups, has_seq_idx, is_vector)
