"""The depthwise kernels: tile shapes, variants, shared memory, and the specification of each."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import CUDA_TYPES, REDUCE_THREADS
from fftconv_cupy.depthwise_params import (
    DepthwiseParams,
    DepthwiseReduceParams,
    DepthwiseStateParams,
    DepthwiseUpdateParams,
)
from fftconv_cupy.depthwise_shapes import ROW_SHAPES, SEQUENCE_SHAPES, RowShape
from fftconv_cupy.problem import ITEM_BYTES
from fftconv_cupy.source import KernelSpec

VECTOR_BYTES = 16
ROW_THREADS = 128  # of depthwise_fwd, depthwise_bwd, depthwise_update and depthwise_state
TILE_THREADS = 256  # of depthwise_tile, depthwise_taps and depthwise_mma
RUN = 16  # points of a thread of depthwise_tile, and points between gaps in shared memory
GROUP_TAPS = 8  # of a thread of depthwise_taps
MAX_GROUPS = 8  # of taps in a block of it
MAX_ROW_TAPS = 16  # of depthwise_fwd and depthwise_bwd
MAX_SEQUENCE_TAPS = 8  # of these with sequence indices
EPILOGUES = ("none", "silu", "slope")  # in the order of the kernel's enum
MATRIX_DTYPES = ("float16", "bfloat16")  # of depthwise_mma, as CUDA's tensor cores have them
MAX_MATRIX_STEPS = 9  # of 16 taps: as many as the longest filter takes
LEAST_MATRIX_TAPS = 9  # for which tensor cores are worth it where registers cannot do without them
CHUNK_POINTS = 8  # that depthwise_mma moves at a time
_SHIFTED_VECTORS, _SHIFTED_BLOCKS = 2, 4  # at most, of a thread and of a multiprocessor, where vectors are shifted
_NARROW_ROWS = 16  # at most, of depthwise_fwd where threads take fewer channels
_NARROW_BLOCKS = {False: (5, 4), True: (5, 3)}  # there, by direction: of few taps, of more or with sequence indices
MATRIX_TILES = 2  # of 128 outputs that a warp of it takes at a time
_MATRIX_CAPABILITY = 80
_AXES = ("BHL", "BLH")  # in the order of the kernels' enum
_CACHE_FOLDER = 0  # of FFT sizes

TILE_SHAPES = {"BHL": ((1, 4096), (4, 1024), (16, 256)), "BLH": ((32, 128), (8, 512))}
"""Channels and points of a block of depthwise_tile, by layout."""

TAPS_SHAPES = {"BHL": ((1, 2048), (4, 512), (16, 128)), "BLH": ((32, 64), (8, 256))}
"""The same of depthwise_taps."""

MATRIX_SHAPES = {"BHL": ((8, 2048), (8, 1024), (16, 512), (32, 256)), "BLH": ((32, 512), (32, 256))}
"""The same of depthwise_mma."""


@dataclass(frozen=True, slots=True)
class RowVariant:
    """Flags of depthwise_fwd, and with `has_input` and `has_sums` of depthwise_bwd.

    Attributes:
        dtype: of x and y.
        layout: "BHL" or "BLH".
        taps: width of the filter.
        pad: of the problem where the layout is BHL, where it is a constant of the kernel; else 0.
        has_silu: with the activation.
        is_backward: depthwise_bwd.
        has_input: the gradient of x is made.
        has_sums: the gradients of weight and bias are made.
        alignment: bytes at multiples of which all rows lie: those of a vector or fewer.
        has_seq_idx: with sequence indices.
    """

    dtype: str
    layout: str
    taps: int
    pad: int
    has_silu: bool
    is_backward: bool = False
    has_input: bool = False
    has_sums: bool = False
    alignment: int = VECTOR_BYTES
    has_seq_idx: bool = False

    @property
    def is_shifted(self) -> bool:
        """Vectors are read around a thread's points, and shifted in registers."""
        return self.layout == "BHL" and self.alignment < VECTOR_BYTES

    @property
    def shape(self) -> RowShape:
        """What a thread takes: the row of `ROW_SHAPES` that holds for so many taps, as far as the alignment allows."""
        item = ITEM_BYTES[self.dtype]
        table = SEQUENCE_SHAPES if self.has_seq_idx else ROW_SHAPES
        rows = table[self.layout, self.is_backward, item]
        shape = next(shape for most_taps, shape in rows if self.taps <= most_taps)
        if self.alignment == VECTOR_BYTES:
            return shape
        if self.layout == "BHL":  # more registers for what is shifted
            repeat, min_blocks = min(shape.repeat, _SHIFTED_VECTORS), min(shape.min_blocks, _SHIFTED_BLOCKS)
            return shape._replace(repeat=repeat, min_blocks=min_blocks)
        # Fewer bytes for each thread, so more threads and rows; and the longest pieces of rows, whose ends are shared.
        narrower = max(1, shape.vector * item // self.alignment)
        has_many = self.taps > 8 or self.has_seq_idx
        return shape._replace(
            vector=shape.vector // narrower,
            repeat=shape.repeat if self.is_backward or self.has_seq_idx else min(_NARROW_ROWS, shape.repeat * narrower),
            min_blocks=min(_NARROW_BLOCKS[self.is_backward][has_many], shape.min_blocks * narrower),
            log2_lanes=ROW_THREADS.bit_length() - 1,
        )

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: taps of its channels; in BHL sums of its warps, or of shorter rows."""
        if self.layout == "BLH":
            return 0 if self.is_backward else 4 * (self.taps + 1) * (ROW_THREADS * self.shape.vector + 4)
        return 4 * ROW_THREADS * (self.taps + 1) if self.has_sums else 0


@dataclass(frozen=True, slots=True)
class TileVariant:
    """Flags of depthwise_tile.

    Attributes:
        in_dtype: of what is correlated: x, dy, or dz, which is float32.
        dy_dtype: of dy, and of the gradient of the final state.
        out_dtype: of what is written.
        layout: "BHL" or "BLH".
        shape: one of `TILE_SHAPES`.
        width: of the filter.
        epilogue: one of `EPILOGUES`.
        has_seq_idx: with sequence indices.
        is_vector: 16 bytes are accessed together; always so in "BHL", where rows may begin anywhere.
    """

    in_dtype: str
    dy_dtype: str
    out_dtype: str
    layout: str
    shape: tuple[int, int]
    width: int
    epilogue: str
    has_seq_idx: bool
    is_vector: bool

    @property
    def taps(self) -> int:
        """Taps that shared memory has room for."""
        return -(-self.width // RUN) * RUN

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: points, taps, sequence indices."""
        channels, points = self.shape
        pitch = _gapped(points + self.taps)
        return 4 * (channels * (pitch + self.taps + 4) + (pitch if self.has_seq_idx else 0))


@dataclass(frozen=True, slots=True)
class TapsVariant:
    """Flags of depthwise_taps; those that it shares with `TileVariant` mean the same.

    Attributes:
        in_dtype: of x.
        dz_dtype: of dz.
        layout: "BHL" or "BLH".
        shape: one of `TAPS_SHAPES`.
        groups: of 8 taps that a block takes.
        has_seq_idx: with sequence indices.
        is_vector: 16 bytes are accessed together.
    """

    in_dtype: str
    dz_dtype: str
    layout: str
    shape: tuple[int, int]
    groups: int
    has_seq_idx: bool
    is_vector: bool

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: points of x and dz, sequence indices of both."""
        channels, points = self.shape
        pitches = _gapped(points + -(-self.groups // 2) * RUN) + _gapped(points)
        return 4 * pitches * (channels + self.has_seq_idx)


@dataclass(frozen=True, slots=True)
class MatrixVariant:
    """Flags of depthwise_mma.

    Attributes:
        dtype: of x and y, one of `MATRIX_DTYPES`.
        layout: "BHL" or "BLH".
        shape: one of `MATRIX_SHAPES`.
        steps: of 16 taps, see `matrix_steps`.
        is_split: a tap is the sum of two numbers of `dtype`, since that of the taps is another one.
        has_silu: with the activation.
        is_shifted: rows begin at no multiple of 16 bytes, and are shifted in registers.
    """

    dtype: str
    layout: str
    shape: tuple[int, int]
    steps: int
    is_split: bool
    has_silu: bool
    is_shifted: bool

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: points; taps, twice; factors."""
        channels, points = self.shape
        pitch = -(-(points // CHUNK_POINTS + 2 * self.steps + 1) // 8) * 8
        return channels * (pitch * VECTOR_BYTES + (1 + self.is_split) * (8 * self.steps + 8) * 8 + 4)

    @property
    def min_blocks(self) -> int:
        """Blocks that should fit on a multiprocessor; bounds the registers of a thread."""
        return 2 if self.steps > 5 else 3


def matrix_steps(width: int, pad: int) -> int:
    """Return the products of 16 taps each that a row of 8 outputs takes, see kernels/depthwise_mma.cu."""
    shift = -pad % CHUNK_POINTS
    return -(-(width + shift + CHUNK_POINTS - 1) // 16)


def has_matrix_products(limits: ArchLimits) -> bool:
    """Return whether the GPU can run depthwise_mma."""
    return int(limits.arch.removeprefix("sm_")) >= _MATRIX_CAPABILITY


def row_spec(variant: RowVariant) -> KernelSpec:
    """Return depthwise_fwd or depthwise_bwd."""
    defines = [
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_AXIS", str(_AXES.index(variant.layout))),
        ("FFTCONV_TAPS", str(variant.taps)),
        ("FFTCONV_PAD", str(variant.pad)),
        ("FFTCONV_VECTOR", str(variant.shape.vector)),
        ("FFTCONV_REPEAT", str(variant.shape.repeat)),
        ("FFTCONV_IS_RING", str(int(variant.shape.is_ring))),
        ("FFTCONV_THREADS", str(ROW_THREADS)),
        ("FFTCONV_MIN_BLOCKS", str(variant.shape.min_blocks)),
        ("FFTCONV_IS_SHIFTED", str(int(variant.is_shifted))),
        ("FFTCONV_HAS_SILU", str(int(variant.has_silu))),
        ("FFTCONV_HAS_SEQ_IDX", str(int(variant.has_seq_idx))),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(DepthwiseParams))),
    ]
    if variant.is_backward:
        defines += [
            ("FFTCONV_HAS_INPUT", str(int(variant.has_input))),
            ("FFTCONV_HAS_SUMS", str(int(variant.has_sums))),
        ]
    return KernelSpec("depthwise_bwd" if variant.is_backward else "depthwise_fwd", _CACHE_FOLDER, tuple(defines))


def tile_spec(variant: TileVariant) -> KernelSpec:
    """Return depthwise_tile."""
    defines = (
        ("FFTCONV_IN_T", CUDA_TYPES[variant.in_dtype]),
        ("FFTCONV_DY_T", CUDA_TYPES[variant.dy_dtype]),
        ("FFTCONV_OUT_T", CUDA_TYPES[variant.out_dtype]),
        ("FFTCONV_EPILOGUE", str(EPILOGUES.index(variant.epilogue))),
        ("FFTCONV_TAPS", str(variant.taps)),
        *_tile_defines(variant, (variant.in_dtype, variant.out_dtype)),
    )
    return KernelSpec("depthwise_tile", _CACHE_FOLDER, defines)


def taps_spec(variant: TapsVariant) -> KernelSpec:
    """Return depthwise_taps."""
    defines = (
        ("FFTCONV_IN_T", CUDA_TYPES[variant.in_dtype]),
        ("FFTCONV_DY_T", CUDA_TYPES[variant.dz_dtype]),
        ("FFTCONV_GROUPS", str(variant.groups)),
        ("FFTCONV_THREADS", str(TILE_THREADS)),
        *_tile_defines(variant, (variant.in_dtype, variant.dz_dtype)),
    )
    return KernelSpec("depthwise_taps", _CACHE_FOLDER, defines)


def matrix_spec(variant: MatrixVariant) -> KernelSpec:
    """Return depthwise_mma."""
    defines = (
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_AXIS", str(_AXES.index(variant.layout))),
        ("FFTCONV_STEPS", str(variant.steps)),
        ("FFTCONV_TILES", str(MATRIX_TILES)),
        ("FFTCONV_IS_SPLIT", str(int(variant.is_split))),
        ("FFTCONV_IS_SCALED", str(int(variant.is_split and variant.dtype == "float16"))),
        ("FFTCONV_IS_SHIFTED", str(int(variant.is_shifted))),
        ("FFTCONV_HAS_SILU", str(int(variant.has_silu))),
        ("FFTCONV_CHANNELS", str(variant.shape[0])),
        ("FFTCONV_POINTS", str(variant.shape[1])),
        ("FFTCONV_THREADS", str(TILE_THREADS)),
        ("FFTCONV_MIN_BLOCKS", str(variant.min_blocks)),
        ("FFTCONV_SHARED_BYTES", str(variant.shared_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(DepthwiseParams))),
    )
    return KernelSpec("depthwise_mma", _CACHE_FOLDER, defines)


def reduce_spec() -> KernelSpec:
    """Return depthwise_reduce."""
    defines = (
        ("FFTCONV_THREADS", str(REDUCE_THREADS)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(DepthwiseReduceParams))),
    )
    return KernelSpec("depthwise_reduce", _CACHE_FOLDER, defines)


def update_spec(dtype: str) -> KernelSpec:
    """Return depthwise_update."""
    return _point_spec("depthwise_update", dtype, DepthwiseUpdateParams)


def state_spec(dtype: str) -> KernelSpec:
    """Return depthwise_state."""
    return _point_spec("depthwise_state", dtype, DepthwiseStateParams)


def min_tile_blocks(variant: TileVariant | TapsVariant) -> int:
    """Return the blocks of depthwise_tile or depthwise_taps that should fit on a multiprocessor."""
    return 1 if variant.has_seq_idx else 2


def _point_spec(entry: str, dtype: str, params: type[ctypes.Structure]) -> KernelSpec:
    defines = (
        ("FFTCONV_IO_T", CUDA_TYPES[dtype]),
        ("FFTCONV_THREADS", str(ROW_THREADS)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(params))),
    )
    return KernelSpec(entry, _CACHE_FOLDER, defines)


def _tile_defines(variant: TileVariant | TapsVariant, dtypes: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    vector = VECTOR_BYTES // max(ITEM_BYTES[dtype] for dtype in dtypes) if variant.is_vector else 1
    return (
        ("FFTCONV_AXIS", str(_AXES.index(variant.layout))),
        ("FFTCONV_HAS_SEQ_IDX", str(int(variant.has_seq_idx))),
        ("FFTCONV_VECTOR", str(vector)),
        ("FFTCONV_CHANNELS", str(variant.shape[0])),
        ("FFTCONV_POINTS", str(variant.shape[1])),
        ("FFTCONV_MIN_BLOCKS", str(min_tile_blocks(variant))),
        ("FFTCONV_SHARED_BYTES", str(variant.shared_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(DepthwiseParams))),
    )


def _gapped(points: int) -> int:
    """Return the elements of shared memory that hold `points` points, see kernels/depthwise_tile.cuh."""
    return points + points // RUN * 4
