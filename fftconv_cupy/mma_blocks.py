"""The kernels that transform rows on tensor cores: sizes, variants, and the specification of each.

They are for 16-bit arrays on sm_80 and later; kernels/mma_layout.cuh says how a block holds its rows. Adding a
transform size is one row of `_SHAPES`.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import CUDA_TYPES, EXTRAS, BackwardVariant, BlockConfig, fitting_configs
from fftconv_cupy.mma_params import MmaFilterParams
from fftconv_cupy.params import BwdParams, FwdParams
from fftconv_cupy.source import KernelSpec

DTYPES = ("float16", "bfloat16")
# Factors of the matrices of a pass, by its radix. In [1, 2), that by which rounding to halves costs least:
OUTER_SCALES = {
    8: 1.115234375,
    16: 1.8369140625,
    32: 1.8193359375,
}
# and one of about 1/4, by which the four passes of 16 points neither grow nor shrink random data.
MIDDLE_SCALE = 1.8603515625 / 8
PHASE = 0.25  # of the root: z^M = i
CONVERT_THREADS = 256
_WORD_BYTES = 16
# Complex points of transforms that were measured to be faster on tensor cores, with a raw filter too, and to keep the
# bounds of "medium" with rows of any magnitude; by dtype and extras. Those of float16 with any extras are in all: a
# filter is prepared for every call.
FASTER_POINTS = {
    ("bfloat16", "none"): (2048, 4096, 8192),
    ("bfloat16", "gates"): (4096, 8192),
    ("bfloat16", "any"): (4096, 8192),
    ("float16", "none"): (4096, 8192),
    ("float16", "gates"): (4096, 8192),
    ("float16", "any"): (4096, 8192),
}
# The same of gradients, by dtype. At 2048 points the error of bfloat16 is 1.2 times the rounding in some rows.
GRADIENT_POINTS = {"bfloat16": (4096, 8192), "float16": (2048, 4096, 8192)}
_OLDEST_CAPABILITY = 80


@dataclass(frozen=True, slots=True)
class MmaConfig:
    """How a block transforms rows of `points` complex points on tensor cores.

    Attributes:
        points: M, complex points of a row's transform.
        slabs: that a block holds side by side.
        tiles: neighbouring points that a thread reads at a time.
        min_blocks: blocks that should fit on a multiprocessor; bounds the registers of a thread.
    """

    points: int
    slabs: int
    tiles: int
    min_blocks: int

    @property
    def radix(self) -> int:
        """Lines of 256 points of a row."""
        return self.points // 256

    @property
    def lines(self) -> int:
        """Lines of a slab."""
        return max(16, self.radix)

    @property
    def strips(self) -> int:
        """Warps that share a slab."""
        return 32 // self.tiles

    @property
    def has_column_matrices(self) -> bool:
        """Whether the last pass has matrices of its own for each n1 (kernels/mma_layout.cuh)."""
        return self.lines == 16

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.slabs * self.lines // self.radix

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.slabs * self.strips

    @property
    def spectrum_words(self) -> int:
        """Words of 16 bytes of a channel's spectrum, with that of its exponent."""
        return self.radix * 32 * 2 + 1

    @property
    def spectrum_bytes(self) -> int:
        """Bytes of a channel's spectrum."""
        return self.spectrum_words * _WORD_BYTES

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: four bytes a point, and the magnitude of each strip of each row."""
        return self.slabs * self.lines * 1024 + self.rows * self.strips * 4


# points: slabs, tiles, and blocks a multiprocessor
_SHAPES = {
    2048: (2, 8, 3),
    4096: (2, 8, 3),
    8192: (1, 4, 3),
}
# The same of gradients, with a slab for each side of the product.
_BACKWARD_SHAPES = {
    2048: (2, 8, 2),
    4096: (2, 8, 2),
    8192: (2, 4, 1),
}
MMA_CONFIGS = {points: MmaConfig(points, *shape) for points, shape in _SHAPES.items()}
MMA_BACKWARD_CONFIGS = {points: MmaConfig(points, *shape) for points, shape in _BACKWARD_SHAPES.items()}
BACKWARD_CHUNK_STEPS = 32  # times that a block takes rows of a channel before it leaves the sum, at most


@dataclass(frozen=True, slots=True)
class MmaVariant:
    """Flags of the fused kernel.

    Attributes:
        dtype: storage type of the input, gates and output, one of `DTYPES`.
        is_wide: rows start at multiples of 16 bytes and have such lengths: neighbouring points are accessed together.
        has_tail: rows end inside the transform, or are not wide.
        extras: what there may be beside input and filter, one of `EXTRAS`.
    """

    dtype: str
    is_wide: bool
    has_tail: bool
    extras: str


@dataclass(frozen=True, slots=True)
class MmaBackwardVariant(BackwardVariant):
    """Flags of the kernel of gradients; `is_vector` is what `MmaVariant` calls `is_wide`.

    Rows are real, and there is no stash.
    """

    @property
    def sides(self) -> int:
        """Transforms of a row: of u, of dy, or of both."""
        return (self.has_out_gradient or self.has_sum) + (self.has_in_gradient or self.has_sum)


def fitting_mma_config(points: int, limits: ArchLimits) -> tuple[MmaConfig, BlockConfig] | None:
    """Return the smallest configuration of at least so many points that the GPU has room for, or None.

    The other one is that of the float32 transform of the same size, which makes the filter's spectrum.
    """
    if int(limits.arch.removeprefix("sm_")) < _OLDEST_CAPABILITY:
        return None
    for block in fitting_configs(limits):
        config = MMA_CONFIGS.get(block.points)
        if block.points >= points and config is not None and config.shared_bytes <= limits.block_shared_bytes:
            return config, block
    return None


def mma_variants() -> Iterator[MmaVariant]:
    """Yield the variants that a plan may name."""
    for dtype, extras in itertools.product(DTYPES, EXTRAS):
        for is_wide, has_tail in ((True, False), (True, True), (False, True)):
            yield MmaVariant(dtype, is_wide, has_tail, extras)


def mma_backward_variants() -> Iterator[MmaBackwardVariant]:
    """Yield the variants that a plan of gradients may name."""
    for variant, *wanted in itertools.product(mma_variants(), *3 * ((True, False),)):
        has_in_gradient, has_out_gradient, has_sum = wanted
        if any(wanted) and (variant.extras != "none" or not has_out_gradient):
            flags = (variant.dtype, False, variant.has_tail, variant.is_wide, variant.extras)
            yield MmaBackwardVariant(*flags, has_in_gradient, has_out_gradient, has_sum, stash_quads=0)


def mma_spec(config: MmaConfig, variant: MmaVariant) -> KernelSpec:
    """Return the fused kernel of a configuration and variant."""
    defines = (
        ("FFTCONV_LOG2_POINTS", str(config.points.bit_length() - 1)),
        ("FFTCONV_SLABS", str(config.slabs)),
        ("FFTCONV_TILES", str(config.tiles)),
        ("FFTCONV_MIN_BLOCKS", str(config.min_blocks)),
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_WIDE", str(int(variant.is_wide))),
        ("FFTCONV_HAS_TAIL", str(int(variant.has_tail))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(variant.extras))),
        ("FFTCONV_GAIN", f"{_gain(config)!r}f"),
        ("FFTCONV_SHARED_BYTES", str(config.shared_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(FwdParams))),
    )
    return KernelSpec("fftconv_mma_fwd", 2 * config.points, defines)


def mma_backward_spec(config: MmaConfig, block: BlockConfig, variant: MmaBackwardVariant) -> KernelSpec:
    """Return the kernel of gradients of a configuration and variant, whose sums `block` is to transform back."""
    defines = (
        ("FFTCONV_LOG2_POINTS", str(config.points.bit_length() - 1)),
        ("FFTCONV_SLABS", str(config.slabs)),
        ("FFTCONV_TILES", str(config.tiles)),
        ("FFTCONV_MIN_BLOCKS", str(config.min_blocks)),
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_WIDE", str(int(variant.is_vector))),
        ("FFTCONV_HAS_TAIL", str(int(variant.has_tail))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(variant.extras))),
        ("FFTCONV_HAS_IN_GRADIENT", str(int(variant.has_in_gradient))),
        ("FFTCONV_HAS_OUT_GRADIENT", str(int(variant.has_out_gradient))),
        ("FFTCONV_HAS_SUM", str(int(variant.has_sum))),
        ("FFTCONV_LOG2_EPT", str(block.log2_ept)),
        ("FFTCONV_GAIN", f"{_gain(config)!r}f"),
        ("FFTCONV_SHARED_BYTES", str(config.shared_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(BwdParams))),
    )
    return KernelSpec("fftconv_mma_bwd", 2 * config.points, defines)


def convert_spec(config: MmaConfig, block: BlockConfig) -> KernelSpec:
    """Return the kernel that brings the spectrum of a float32 transform into the form that `mma_spec` reads."""
    defines = (
        ("FFTCONV_LOG2_POINTS", str(config.points.bit_length() - 1)),
        ("FFTCONV_LOG2_EPT", str(block.log2_ept)),
        ("FFTCONV_THREADS", str(CONVERT_THREADS)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(MmaFilterParams))),
    )
    return KernelSpec("fftconv_mma_filter", 2 * config.points, defines)


def _gain(config: MmaConfig) -> float:
    """Return what takes back the scales of all matrices: the first, the last, and four of 16 points."""
    return 1 / (OUTER_SCALES[config.radix] ** 2 * MIDDLE_SCALE**4)
