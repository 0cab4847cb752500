"""The kernels for rows that outgrow a block: how transforms are split, variants, and the specification of each."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import (
    BLOCK_CONFIGS,
    COMPLEX_BYTES,
    CUDA_TYPES,
    EXTRAS,
    SYSTEM_BYTES,
    BlockConfig,
    fitting_configs,
)
from fftconv_cupy.long_params import LongBwdParams, LongParams
from fftconv_cupy.source import KernelSpec

_MOST_POINTS = 1 << 23  # of the largest transform
_THREADS = 512  # of a multiprocessor: each then has 128 registers
_NUMBER_BYTES = 16 + 128  # of shared memory, for the numbers of tasks and the largest value of each warp
_HALF_BYTES = 4  # of a complex point in float16
_ROWS = [config for config in BLOCK_CONFIGS.values() if config.row_threads >= 32]  # a warp or more each

# By log2 of the number of rows: log2 of the radices of a tile's passes.
_TILE_RADICES: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (2,),
    3: (3,),
    4: (4,),
    5: (5,),
    6: (3, 3),
    7: (4, 3),
    8: (4, 4),
    9: (4, 5),
    10: (5, 5),
    11: (3, 3, 5),
}


@dataclass(frozen=True, slots=True)
class LongConfig:
    """How a transform is split into rows that a block transforms: kernels/tile.cuh tells how.

    Attributes:
        row: the block configuration of a row of points; a block holds one.
        log2_rows: log2 of C, the number of rows.
    """

    row: BlockConfig
    log2_rows: int

    @property
    def rows(self) -> int:
        """C: rows of points, and tiles of columns."""
        return 1 << self.log2_rows

    @property
    def points(self) -> int:
        """M, complex points of a transform."""
        return self.row.points << self.log2_rows

    @property
    def tile_log2_radices(self) -> tuple[int, ...]:
        """Log2 of the radix of each pass over a tile."""
        return _TILE_RADICES[self.log2_rows]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.row.row_threads

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: the exchange buffer of a row, and a few numbers."""
        return self.row.exchange_bytes // self.row.rows + _NUMBER_BYTES

    def resident(self, limits: ArchLimits) -> int:
        """Return the blocks that a multiprocessor holds at a time, which bounds the registers of a thread."""
        fitting = limits.multiprocessor_shared_bytes // (self.shared_bytes + SYSTEM_BYTES)
        return max(1, min(_THREADS // self.threads, fitting))


@dataclass(frozen=True, slots=True)
class LongVariant:
    """Flags of the kernel for long rows; those that `ForwardVariant` has too mean the same.

    Attributes:
        dtype: storage type of the input, gates and output.
        is_complex: imaginary parts hold data: of rows or filters, points from M on.
        has_tail: rows end inside the transform.
        is_vector: two neighbouring elements are accessed at a time.
        extras: one of `EXTRAS`.
        has_half_points: what lies between the phases is float16, not float32.
    """

    dtype: str
    is_complex: bool
    has_tail: bool
    is_vector: bool
    extras: str
    has_half_points: bool = False


@dataclass(frozen=True, slots=True)
class LongGradients:
    """Which gradients the kernel of them makes; the fields are as those of `BackwardVariant`."""

    has_in_gradient: bool
    has_out_gradient: bool
    has_sum: bool

    @property
    def sequences(self) -> int:
        """Of points between the phases: those of the input, of the output's gradient, or both."""
        needs_x = self.has_out_gradient or self.has_sum
        return needs_x + (self.has_in_gradient or self.has_sum)


def long_config(points: int, limits: ArchLimits, *, row_points: int | None = None) -> LongConfig:
    """Return how a transform of at least `points` complex points is split.

    Args:
        points: the least that will do.
        limits: of the GPU.
        row_points: R, complex points of a row; None means the best for the GPU.
    """
    if row_points is None:
        row = max((row for row in _ROWS if _fits(row, limits)), key=lambda row: row.points)
    else:
        row = BLOCK_CONFIGS[row_points]
    log2_rows = max(1, (points - 1).bit_length() - (row.points.bit_length() - 1))
    return LongConfig(row, log2_rows)


def long_configs(limits: ArchLimits) -> list[LongConfig]:
    """Return every configuration that a plan may name, smallest first."""
    row = long_config(1, limits).row
    largest = fitting_configs(limits)[-1].points
    return [
        config
        for log2_rows in _TILE_RADICES
        if (config := LongConfig(row, log2_rows)).points > largest and config.points <= _MOST_POINTS
    ]


def _fits(row: BlockConfig, limits: ArchLimits) -> bool:
    """Return whether a block of the GPU can hold a row, and two a multiprocessor's threads."""
    return LongConfig(row, 0).shared_bytes <= limits.block_shared_bytes and 2 * row.row_threads <= _THREADS


def long_spec(config: LongConfig, variant: LongVariant, limits: ArchLimits) -> KernelSpec:
    """Return the kernel for long rows of a configuration and variant."""
    return _spec("fftconv_long", config, variant, limits, LongParams)


def long_backward_spec(
    config: LongConfig, variant: LongVariant, gradients: LongGradients, limits: ArchLimits
) -> KernelSpec:
    """Return the kernel for gradients of long rows."""
    flags = (
        ("FFTCONV_HAS_IN_GRADIENT", str(int(gradients.has_in_gradient))),
        ("FFTCONV_HAS_OUT_GRADIENT", str(int(gradients.has_out_gradient))),
        ("FFTCONV_HAS_SUM", str(int(gradients.has_sum))),
    )
    return _spec("fftconv_long_bwd", config, variant, limits, LongBwdParams, flags)


def _spec(
    entry: str,
    config: LongConfig,
    variant: LongVariant,
    limits: ArchLimits,
    params: type[ctypes.Structure],
    flags: tuple[tuple[str, str], ...] = (),
) -> KernelSpec:
    row = config.row
    defines = (
        ("FFTCONV_LOG2_POINTS", str(row.points.bit_length() - 1)),
        ("FFTCONV_LOG2_EPT", str(row.log2_ept)),
        ("FFTCONV_LOG2_RADICES", ", ".join(map(str, row.log2_radices))),
        ("FFTCONV_TILE_LOG2_RADICES", ", ".join(map(str, config.tile_log2_radices))),
        ("FFTCONV_MIN_BLOCKS", str(config.resident(limits))),
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_COMPLEX", str(int(variant.is_complex))),
        ("FFTCONV_HAS_TAIL", str(int(variant.has_tail))),
        ("FFTCONV_IS_VECTOR", str(int(variant.is_vector))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(variant.extras))),
        ("FFTCONV_HAS_HALF_POINTS", str(int(variant.has_half_points))),
        *flags,
        ("FFTCONV_SHARED_BYTES", str(config.shared_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(params))),
    )
    return KernelSpec(entry, 2 * config.points, defines)


def point_bytes(config: LongConfig, *, is_half: bool = False) -> int:
    """Return the bytes that the points of a row take between the phases."""
    return config.points * (_HALF_BYTES if is_half else COMPLEX_BYTES)
