"""The kernel of rows that the blocks of a cluster share: sizes, and the specification of each."""

from __future__ import annotations

import ctypes

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import CUDA_TYPES, EXTRAS, SYSTEM_BYTES, BlockConfig, ForwardVariant, stash_quads
from fftconv_cupy.long_blocks import LongConfig
from fftconv_cupy.params import FwdParams
from fftconv_cupy.source import KernelSpec

# The first radix is the number of blocks; the second one is 16, as kernels/slices.cuh wants it.
CLUSTER_CONFIGS = {
    config.points: config
    for config in (
        BlockConfig(32768, (2, 4, 4, 5), log2_ept=5, rows=1, min_blocks=2, cluster_blocks=4),
        BlockConfig(65536, (2, 4, 5, 5), log2_ept=5, rows=1, min_blocks=1, cluster_blocks=4),
        BlockConfig(131072, (3, 4, 5, 5), log2_ept=5, rows=1, min_blocks=1, cluster_blocks=8),
    )
}


# Of gradients: rows whose sums the registers of a cluster hold.
GRADIENT_CLUSTERS = {
    config.points: config
    for config in (
        BlockConfig(32768, (2, 4, 4, 5), log2_ept=5, rows=1, min_blocks=1, backward_prefetch=True, cluster_blocks=4),
        BlockConfig(65536, (3, 4, 4, 5), log2_ept=5, rows=1, min_blocks=1, backward_prefetch=True, cluster_blocks=8),
    )
}


def fitting_gradient_clusters(limits: ArchLimits) -> list[BlockConfig]:
    """Return the configurations of gradients that a GPU can run, with all of the stash in shared memory."""
    return [
        config
        for config in GRADIENT_CLUSTERS.values()
        if limits.has_clusters and stash_quads(config, limits) == config.quads
    ]


def fitting_cluster_configs(limits: ArchLimits) -> list[BlockConfig]:
    """Return the configurations that a GPU can run, with as many blocks on a multiprocessor as they are made for."""
    return [
        config
        for config in CLUSTER_CONFIGS.values()
        if limits.has_clusters
        and shared_bytes(config) <= limits.block_shared_bytes
        and config.min_blocks * (shared_bytes(config) + SYSTEM_BYTES) <= limits.multiprocessor_shared_bytes
    ]


def shared_bytes(config: BlockConfig) -> int:
    """Return the dynamic shared memory of a block: the exchange buffer, and two barriers a warp."""
    return config.exchange_bytes + config.barrier_bytes


def cluster_spec(config: BlockConfig, variant: ForwardVariant, spectrum: LongConfig) -> KernelSpec:
    """Return the kernel of a configuration and variant; `spectrum`: how the transform of the filter is split."""
    defines = (
        ("FFTCONV_LOG2_POINTS", str(config.points.bit_length() - 1)),
        ("FFTCONV_LOG2_EPT", str(config.log2_ept)),
        ("FFTCONV_LOG2_RADICES", ", ".join(map(str, config.log2_radices))),
        ("FFTCONV_CLUSTER_BLOCKS", str(config.cluster_blocks)),
        ("FFTCONV_MIN_BLOCKS", str(config.min_blocks)),
        ("FFTCONV_IO_T", CUDA_TYPES[variant.dtype]),
        ("FFTCONV_IS_COMPLEX", str(int(variant.is_complex))),
        ("FFTCONV_HAS_TAIL", str(int(variant.has_tail))),
        ("FFTCONV_IS_VECTOR", str(int(variant.is_vector))),
        ("FFTCONV_EXTRAS", str(EXTRAS.index(variant.extras))),
        ("FFTCONV_SPECTRUM_THREADS", str(spectrum.threads)),
        ("FFTCONV_SHARED_BYTES", str(shared_bytes(config))),
        ("FFTCONV_PARAMS_BYTES", str(ctypes.sizeof(FwdParams))),
    )
    return KernelSpec("fftconv_cluster", 2 * config.points, defines)
