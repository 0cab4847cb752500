"""The block kernels: sizes, variants, shared memory, and the specification of each.

A block configuration says how a block transforms rows; a variant says which of the template's flags are set. Adding a
transform size is one row of `BLOCK_CONFIGS`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.params import (
    BwdParams,
    FilterBwdParams,
    FilterParams,
    FwdParams,
    ReduceParams,
    StateParams,
    WindowsBwdParams,
    WindowsParams,
)
from fftconv_cupy.problem import ITEM_BYTES
from fftconv_cupy.source import KernelSpec

COMPLEX_BYTES = 8
QUAD_BYTES = 16  # two complex points, accessed together
PERSISTENT = 1 << 30  # jobs of a block: no more blocks than the GPU holds at a time
REDUCE_THREADS = 256
STATE_THREADS = 256
REDUCE_COLUMNS = 32  # float4 columns that a block of fftconv_reduce adds up
CUDA_TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}
EXTRAS = ("none", "gates", "any")  # in the order of the kernel's enum
_BARRIER_BYTES = 16
SYSTEM_BYTES = 1 << 10  # of shared memory that each block takes beside what it asks for


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """How a block transforms rows of `points` complex points.

    Attributes:
        points: M, complex points of a row's transform.
        log2_radices: log2 of the radix of each pass of a root.
        log2_ept: log2 of the complex points that a thread holds.
        rows: rows a block transforms side by side.
        min_blocks: blocks that should fit on a multiprocessor; bounds the registers of a thread.
        prefetch_jobs: jobs (rows of a linear transform, pairs of a paired one) that a block takes one after the other
            while it prefetches the next; 0 where that does not pay, `PERSISTENT` where the GPU's blocks share all.
        backward_blocks: as `min_blocks`, for the backward kernel where it sums the filter's gradient.
        backward_prefetch: that kernel has rows brought into L2 ahead of their loads: see `has_prefetch`.
        has_register_sums: that sum is held in registers; else in L2.
        chunk_steps: times that a block fills its batch slots before it leaves the sum, at most.
        cluster_blocks: blocks that share a row, each with one of the nodes of its first pass (kernels/slices.cuh).
        backward_cluster: how a cluster computes a sum that is too long for the registers of one block, if it can.
        roots: nodes into which a row is split before the first pass: 1, or 3 for 3 * 2^k points (kernels/roots.cuh).
    """

    points: int
    log2_radices: tuple[int, ...]
    log2_ept: int
    rows: int
    min_blocks: int
    prefetch_jobs: tuple[int, int] = (0, 0)
    backward_blocks: int = 1
    backward_prefetch: bool = False
    has_register_sums: bool = True
    chunk_steps: int = 32
    cluster_blocks: int = 1
    backward_cluster: BlockConfig | None = None
    roots: int = 1

    @property
    def radices(self) -> tuple[int, ...]:
        """The factors of the points."""
        return (self.roots,) * (self.roots > 1) + tuple(1 << log2 for log2 in self.log2_radices)

    @property
    def row_threads(self) -> int:
        """Threads that share a row."""
        return self.points >> self.log2_ept

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows * self.row_threads // self.cluster_blocks

    @property
    def quads(self) -> int:
        """Pairs of complex points that a thread holds."""
        return (1 << self.log2_ept) // 2

    @property
    def exchange_bytes(self) -> int:
        """Shared memory of the exchange buffers: the rows, each group of a thread's points padded by two points."""
        return self.rows * (self.points + 2 * self.row_threads) * COMPLEX_BYTES // self.cluster_blocks

    @property
    def barrier_bytes(self) -> int:
        """Shared memory of the barriers of a cluster's block: two a warp."""
        return self.threads // 32 * _BARRIER_BYTES if self.cluster_blocks > 1 else 0


# Chosen by timing on an H100 and an H200 (sm_90). Forward, 512 threads a multiprocessor with 128 registers each win at
# nearly every size; backward, 256 threads with 255 registers, of which the sum takes 64.
BLOCK_CONFIGS = {
    config.points: config
    for config in (
        BlockConfig(128, (3, 4), log2_ept=4, rows=16, min_blocks=6, backward_blocks=3),
        BlockConfig(256, (4, 4), log2_ept=5, rows=16, min_blocks=4, backward_blocks=2),
        BlockConfig(512, (4, 5), log2_ept=5, rows=8, min_blocks=4, backward_blocks=2),
        BlockConfig(1024, (5, 5), log2_ept=5, rows=4, min_blocks=4, backward_blocks=2),
        BlockConfig(2048, (4, 4, 3), log2_ept=5, rows=1, min_blocks=8, backward_blocks=4),
        BlockConfig(
            4096,
            (4, 4, 4),
            log2_ept=5,
            rows=1,
            min_blocks=4,
            prefetch_jobs=(4, 0),
            backward_blocks=2,
            backward_prefetch=True,
        ),
        BlockConfig(8192, (4, 4, 5), log2_ept=5, rows=1, min_blocks=2, prefetch_jobs=(4, 4), backward_prefetch=True),
        BlockConfig(
            16384,
            (4, 5, 5),
            log2_ept=5,
            rows=1,
            min_blocks=1,
            prefetch_jobs=(PERSISTENT, 4),
            backward_blocks=1,
            has_register_sums=False,
            chunk_steps=2,
            backward_cluster=BlockConfig(
                16384, (1, 4, 4, 5), log2_ept=5, rows=1, min_blocks=1, backward_prefetch=True, cluster_blocks=2
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class ForwardVariant:
    """Flags of the fused kernel.

    Attributes:
        dtype: storage type of the input, gates and output.
        is_paired: two rows are one cyclic transform; else a row is one negacyclic transform.
        is_complex: imaginary parts hold data: the second row, or points from M on.
        has_tail: rows end inside the transform.
        is_vector: two neighbouring elements are accessed at a time.
        extras: what there may be beside input and filter, one of `EXTRAS`: nothing, both gates, or any of the gates and
            the skip term.
        has_prefetch: the next rows of u are copied to shared memory while one is transformed.
    """

    dtype: str
    is_paired: bool
    is_complex: bool
    has_tail: bool
    is_vector: bool
    extras: str
    has_prefetch: bool


@dataclass(frozen=True, slots=True)
class FilterVariant:
    """Flags of the filter's kernel.

    Attributes:
        dtype: storage type of the filter.
        is_paired: the ring is cyclic.
        is_general: the filter is shifted, folded, or has more than M taps.
    """

    dtype: str
    is_paired: bool
    is_general: bool


@dataclass(frozen=True, slots=True)
class BackwardVariant:
    """Flags of the backward kernel; those that `ForwardVariant` has too mean the same.

    Attributes:
        dtype: storage type of the input, the gates, the output and their gradients.
        is_complex: imaginary parts hold data: points from M on.
        has_tail: rows end inside the transform.
        is_vector: two neighbouring elements are accessed at a time.
        extras: one of `EXTRAS`.
        has_in_gradient: the gradient of u or of the input gate is wanted.
        has_out_gradient: that of the output gate is.
        has_sum: that of the filter or of skip is.
        stash_quads: of the spectrum of a row, the pairs of points a thread that lie in shared memory, not in L2.
    """

    dtype: str
    is_complex: bool
    has_tail: bool
    is_vector: bool
    extras: str
    has_in_gradient: bool
    has_out_gradient: bool
    has_sum: bool
    stash_quads: int

    def min_blocks(self, config: BlockConfig) -> int:
        """Return the blocks that should fit on a multiprocessor: a sum takes registers and the stash."""
        return config.backward_blocks if self.has_sum else config.min_blocks

    def has_prefetch(self, config: BlockConfig) -> bool:
        """Return whether rows are brought into L2 ahead: with imaginary parts no register is left for it."""
        return config.backward_prefetch and self.has_sum and not self.is_complex

    def shared_bytes(self, config: BlockConfig) -> int:
        """Return the dynamic shared memory of a block."""
        stash_bytes = self.stash_quads * config.threads * QUAD_BYTES if self.has_sum else 0
        return config.exchange_bytes + config.barrier_bytes + stash_bytes


@dataclass(frozen=True, slots=True)
class WindowsVariant(BackwardVariant):
    """The same of the backward kernel of rows that are cut into windows, which are complex and have tails."""

    def min_blocks(self, config: BlockConfig) -> int:
        """Return the blocks that should fit on a multiprocessor: looking for what there is takes registers too."""
        return config.backward_blocks if self.has_sum or self.extras == "any" else config.min_blocks


def fitting_configs(limits: ArchLimits) -> list[BlockConfig]:
    """Return the block configurations whose exchange buffers fit a block of the GPU, smallest first."""
    return [config for config in BLOCK_CONFIGS.values() if config.exchange_bytes <= limits.block_shared_bytes]


def can_prefetch(config: BlockConfig, limits: ArchLimits, dtype: str, *, is_paired: bool) -> bool:
    """Return whether whole rows are prefetched: the GPU can, it pays, and it leaves room for as many blocks."""
    needed = forward_bytes(config, dtype, is_paired=is_paired, has_prefetch=True)
    return (
        limits.has_bulk_copy
        and config.prefetch_jobs[is_paired] > 0
        and needed <= limits.block_shared_bytes
        and config.min_blocks * (needed + SYSTEM_BYTES) <= limits.multiprocessor_shared_bytes
    )


def forward_bytes(config: BlockConfig, dtype: str, *, is_paired: bool, has_prefetch: bool) -> int:
    """Return the dynamic shared memory of a block of the fused kernel: exchange, prefetched rows, norms, barrier."""
    rows = config.points * ITEM_BYTES[dtype] * (2 if is_paired else 1) + _BARRIER_BYTES if has_prefetch else 0
    norms = config.row_threads // 32 * 8 if is_paired and config.row_threads > 32 else 0
    return config.exchange_bytes + rows + norms


def forward_spec(config: BlockConfig, variant: ForwardVariant) -> KernelSpec:
    """Return the fused kernel of a block configuration and variant."""
    shared_bytes = forward_bytes(config, variant.dtype, is_paired=variant.is_paired, has_prefetch=variant.has_prefetch)
    defines = (
        *_layout_defines(config, is_paired=variant.is_paired),
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_COMPLEX", str(int(variant.is_complex))),
        ("FFTCONV_HAS_TAIL", str(int(variant.has_tail))),
        ("FFTCONV_IS_VECTOR", str(int(variant.is_vector))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(variant.extras))),
        ("FFTCONV_HAS_PREFETCH", str(int(variant.has_prefetch))),
        ("FFTCONV_SHARED_BYTES", str(shared_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(FwdParams))),
    )
    return KernelSpec("fftconv_fwd", real_points(config, is_paired=variant.is_paired), defines)


def windows_spec(config: BlockConfig, dtype: str, extras: str, *, is_vector: bool) -> KernelSpec:
    """Return the kernel that convolves rows window by window; `extras` is one of `EXTRAS`."""
    defines = (
        *_layout_defines(config, is_paired=False),
        ("FFTCONV_IO_T", CUDA_TYPES[dtype]),
        ("FFTCONV_IS_VECTOR", str(int(is_vector))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(extras))),
        ("FFTCONV_SHARED_BYTES", str(config.exchange_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(WindowsParams))),
    )
    return KernelSpec("fftconv_windows", real_points(config, is_paired=False), defines)


def backward_config(config: BlockConfig, limits: ArchLimits, *, has_sum: bool) -> BlockConfig:
    """Return the configuration of the backward kernel: of a cluster where it helps to hold a sum."""
    cluster = config.backward_cluster
    return config if cluster is None or not has_sum or not limits.has_clusters else cluster


def stash_quads(config: BlockConfig, limits: ArchLimits) -> int:
    """Return the pairs of points a thread whose spectrum fits beside the other buffers of a multiprocessor."""
    buffers = config.exchange_bytes + config.barrier_bytes
    per_block = buffers + SYSTEM_BYTES
    blocks = max(1, min(config.backward_blocks, limits.multiprocessor_shared_bytes // per_block))
    share = min(limits.multiprocessor_shared_bytes // blocks - SYSTEM_BYTES, limits.block_shared_bytes)
    return max(0, min(config.quads, (share - buffers) // (config.threads * QUAD_BYTES)))


def resident_blocks(config: BlockConfig, variant: BackwardVariant, limits: ArchLimits) -> int:
    """Return the blocks, or clusters of them, of the backward kernel that the GPU holds at a time."""
    fitting = limits.multiprocessor_shared_bytes // (variant.shared_bytes(config) + SYSTEM_BYTES)
    return limits.at_a_time(max(1, min(variant.min_blocks(config), fitting)), config.cluster_blocks)


def backward_spec(config: BlockConfig, variant: BackwardVariant, spectrum_threads: int) -> KernelSpec:
    """Return the backward kernel; `spectrum_threads` share a row of the filter's spectrum, and of sums."""
    defines = (
        *_layout_defines(config, is_paired=False, min_blocks=variant.min_blocks(config)),
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_COMPLEX", str(int(variant.is_complex))),
        ("FFTCONV_HAS_TAIL", str(int(variant.has_tail))),
        ("FFTCONV_IS_VECTOR", str(int(variant.is_vector))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(variant.extras))),
        ("FFTCONV_HAS_IN_GRADIENT", str(int(variant.has_in_gradient))),
        ("FFTCONV_HAS_OUT_GRADIENT", str(int(variant.has_out_gradient))),
        ("FFTCONV_HAS_SUM", str(int(variant.has_sum))),
        ("FFTCONV_IS_SUM_IN_REGISTERS", str(int(config.has_register_sums))),
        ("FFTCONV_CLUSTER_BLOCKS", str(config.cluster_blocks)),
        ("FFTCONV_SPECTRUM_THREADS", str(spectrum_threads)),
        ("FFTCONV_HAS_PREFETCH", str(int(variant.has_prefetch(config)))),
        ("FFTCONV_STASH_QUADS", str(variant.stash_quads)),
        ("FFTCONV_SHARED_BYTES", str(variant.shared_bytes(config))),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(BwdParams))),
    )
    return KernelSpec("fftconv_bwd", real_points(config, is_paired=False), defines)


def windows_backward_spec(config: BlockConfig, variant: WindowsVariant) -> KernelSpec:
    """Return the kernel of the gradients of rows that are cut into windows; it has none of the output gate."""
    defines = (
        *_layout_defines(config, is_paired=False, min_blocks=variant.min_blocks(config)),
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_VECTOR", str(int(variant.is_vector))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(variant.extras))),
        ("FFTCONV_HAS_IN_GRADIENT", str(int(variant.has_in_gradient))),
        ("FFTCONV_HAS_SUM", str(int(variant.has_sum))),
        ("FFTCONV_IS_SUM_IN_REGISTERS", str(int(config.has_register_sums))),
        ("FFTCONV_STASH_QUADS", str(variant.stash_quads)),
        ("FFTCONV_SHARED_BYTES", str(variant.shared_bytes(config))),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(WindowsBwdParams))),
    )
    return KernelSpec("fftconv_windows_bwd", real_points(config, is_paired=False), defines)


def filter_backward_spec(config: BlockConfig, dtype: str) -> KernelSpec:
    """Return the kernel that turns sums into the gradient of a filter of `dtype`."""
    defines = (
        *_layout_defines(config, is_paired=False),
        ("FFTCONV_FILTER_T", CUDA_TYPES[dtype]),
        ("FFTCONV_SHARED_BYTES", str(config.exchange_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(FilterBwdParams))),
    )
    return KernelSpec("fftconv_filter_bwd", real_points(config, is_paired=False), defines)


def reduce_spec(config: BlockConfig) -> KernelSpec:
    """Return the kernel that adds up sums; it is the same for all sizes, and cached with each."""
    defines = (
        ("FFTCONV_THREADS", str(REDUCE_THREADS)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(ReduceParams))),
    )
    return KernelSpec("fftconv_reduce", real_points(config, is_paired=False), defines)


def state_spec(dtype: str) -> KernelSpec:
    """Return the kernel of the state after a row; it is the same for all sizes, and cached with the smallest."""
    defines = (
        ("FFTCONV_IO_T", CUDA_TYPES[dtype]),
        ("FFTCONV_THREADS", str(STATE_THREADS)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(StateParams))),
    )
    return KernelSpec("fftconv_state", real_points(BLOCK_CONFIGS[min(BLOCK_CONFIGS)], is_paired=False), defines)


def filter_spec(config: BlockConfig, variant: FilterVariant) -> KernelSpec:
    """Return the kernel that makes the spectrum of a filter."""
    defines = (
        *_layout_defines(config, is_paired=variant.is_paired),
        ("FFTCONV_FILTER_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_GENERAL", str(int(variant.is_general))),
        ("FFTCONV_SHARED_BYTES", str(config.exchange_bytes)),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(FilterParams))),
    )
    return KernelSpec("fftconv_filter", real_points(config, is_paired=variant.is_paired), defines)


def real_points(config: BlockConfig, *, is_paired: bool) -> int:
    """Return the FFT size of a block's transform in real points."""
    return config.points if is_paired else 2 * config.points


def _layout_defines(
    config: BlockConfig, *, is_paired: bool, min_blocks: int | None = None
) -> tuple[tuple[str, str], ...]:
    return (
        ("FFTCONV_ROOTS", str(config.roots)),
        ("FFTCONV_LOG2_POINTS", str((config.points // config.roots).bit_length() - 1)),
        ("FFTCONV_LOG2_EPT", str(config.log2_ept)),
        ("FFTCONV_LOG2_RADICES", ", ".join(map(str, config.log2_radices))),
        ("FFTCONV_QUARTERS", "0" if is_paired else "1"),
        ("FFTCONV_ROWS", str(config.rows)),
        ("FFTCONV_MIN_BLOCKS", str(min_blocks or config.min_blocks)),
    )
