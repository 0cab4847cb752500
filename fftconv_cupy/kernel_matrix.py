"""Every kernel that a plan may name: what the compile matrix checks, and what ``fftconv cache warm`` compiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.blocks import (
    BLOCK_CONFIGS,
    CUDA_TYPES,
    EXTRAS,
    QUAD_BYTES,
    REDUCE_THREADS,
    STATE_THREADS,
    BackwardVariant,
    BlockConfig,
    FilterVariant,
    ForwardVariant,
    WindowsVariant,
    backward_config,
    backward_spec,
    can_prefetch,
    filter_backward_spec,
    filter_spec,
    fitting_configs,
    forward_bytes,
    forward_spec,
    reduce_spec,
    stash_quads,
    state_spec,
    windows_backward_spec,
    windows_spec,
)
from fftconv_cupy.cluster_blocks import cluster_spec, fitting_cluster_configs, fitting_gradient_clusters, shared_bytes
from fftconv_cupy.errors import InvalidArgumentError, message
from fftconv_cupy.long_blocks import (
    LongConfig,
    LongGradients,
    LongVariant,
    long_backward_spec,
    long_config,
    long_configs,
    long_spec,
)
from fftconv_cupy.mma_blocks import (
    CONVERT_THREADS,
    MMA_BACKWARD_CONFIGS,
    convert_spec,
    fitting_mma_config,
    mma_backward_spec,
    mma_backward_variants,
    mma_spec,
    mma_variants,
)
from fftconv_cupy.problem import ITEM_BYTES
from fftconv_cupy.source import KernelSpec
from fftconv_cupy.triple_blocks import fitting_triples

_BOOLEANS = (False, True)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of an architecture.

    Attributes:
        spec: what is compiled.
        threads: of a block.
        min_blocks: blocks that should fit on a multiprocessor, which bounds the registers of a thread.
        shared_bytes: dynamic shared memory of a block.
        is_usual: not one of the many for a few of the gradients only.
    """

    spec: KernelSpec
    threads: int
    min_blocks: int
    shared_bytes: int
    is_usual: bool = True


def iter_kernels(arch: str | ArchLimits, *, fft_sizes: Iterable[int] | None = None) -> Iterator[Kernel]:
    """Yield every kernel that a plan for `arch` may name.

    Args:
        arch: name of one of `ARCHS`, or the limits of a GPU.
        fft_sizes: only kernels of these FFT sizes (real points); None yields all.

    Raises:
        InvalidArgumentError: an FFT size that no kernel of this architecture has.
    """
    limits = arch if isinstance(arch, ArchLimits) else arch_limits(arch)
    wanted = None if fft_sizes is None else set(fft_sizes)
    seen = set()
    by_size = itertools.chain(
        (_kernels(config, limits) for config in (*fitting_configs(limits), *fitting_triples(limits))),
        (_cluster_kernels(config, limits) for config in fitting_cluster_configs(limits)),
        (_gradient_kernels(config, limits) for config in fitting_gradient_clusters(limits)),
        (_long_kernels(config, limits) for config in long_configs(limits)),
    )
    for kernel in itertools.chain.from_iterable(by_size):
        seen.add(kernel.spec.fft_size)
        if wanted is None or kernel.spec.fft_size in wanted:
            yield kernel
    if wanted is not None and wanted - seen:
        raise InvalidArgumentError(
            message(
                "fft_size",
                got=", ".join(map(str, sorted(wanted - seen))),
                allowed=f"on {limits.arch} {', '.join(map(str, sorted(seen)))}",
                do="Pass one of these sizes.",
            )
        )


def iter_kernel_specs(arch: str | ArchLimits, *, fft_sizes: Iterable[int] | None = None) -> Iterator[KernelSpec]:
    """Yield the specs of the usual ones of `iter_kernels`: of gradients those of all inputs."""
    for kernel in iter_kernels(arch, fft_sizes=fft_sizes):
        if kernel.is_usual:
            yield kernel.spec


@cache
def _kernels(config: BlockConfig, limits: ArchLimits) -> tuple[Kernel, ...]:
    kernels = []
    pairings = _BOOLEANS[: 1 if config.roots > 1 else 2]
    for dtype, is_paired, is_general in itertools.product(CUDA_TYPES, pairings, _BOOLEANS):
        spec = filter_spec(config, FilterVariant(dtype, is_paired, is_general))
        kernels.append(Kernel(spec, config.threads, config.min_blocks, config.exchange_bytes))
    for variant in _forward_variants(config, limits):
        shared_bytes = forward_bytes(
            config, variant.dtype, is_paired=variant.is_paired, has_prefetch=variant.has_prefetch
        )
        kernels.append(Kernel(forward_spec(config, variant), config.threads, config.min_blocks, shared_bytes))
    for dtype in CUDA_TYPES:
        spec = filter_backward_spec(config, dtype)
        kernels.append(Kernel(spec, config.threads, config.min_blocks, config.exchange_bytes))
    kernels.append(Kernel(reduce_spec(config), REDUCE_THREADS, 1, REDUCE_THREADS * QUAD_BYTES))
    if config.roots > 1:
        return (*kernels, *_gradient_kernels(config, limits))
    return (
        *kernels,
        *_gradient_kernels(config, limits),
        *_window_kernels(config, limits),
        *_mma_kernels(config, limits),
    )


def _gradient_kernels(config: BlockConfig, limits: ArchLimits) -> Iterator[Kernel]:
    """Yield the kernels of gradients of rows that fit a block, or a cluster, whose filters are those of long rows."""
    threads = long_config(config.points, limits).threads if config.cluster_blocks > 1 else config.row_threads
    for used, gradients in _backward_variants(config, limits):
        has_rows = gradients.has_in_gradient and gradients.has_out_gradient == (gradients.extras != "none")
        yield Kernel(
            backward_spec(used, gradients, threads),
            used.threads,
            gradients.min_blocks(used),
            gradients.shared_bytes(used),
            is_usual=has_rows and gradients.has_sum,
        )


def _mma_kernels(config: BlockConfig, limits: ArchLimits) -> Iterator[Kernel]:
    """Yield the kernels of transforms on tensor cores."""
    fitting = fitting_mma_config(config.points, limits)
    if fitting is not None and fitting[0].points == config.points:
        tensor = fitting[0]
        yield Kernel(convert_spec(tensor, config), CONVERT_THREADS, 1, 0)
        for variant in mma_variants():
            yield Kernel(mma_spec(tensor, variant), tensor.threads, tensor.min_blocks, tensor.shared_bytes)
        used = MMA_BACKWARD_CONFIGS[tensor.points]
        for gradients in mma_backward_variants():
            has_rows = gradients.has_in_gradient and gradients.has_out_gradient == (gradients.extras != "none")
            yield Kernel(
                mma_backward_spec(used, config, gradients),
                used.threads,
                used.min_blocks,
                used.shared_bytes,
                is_usual=has_rows and gradients.has_sum,
            )


def _window_kernels(config: BlockConfig, limits: ArchLimits) -> Iterator[Kernel]:
    """Yield the kernels of rows that are cut into windows."""
    for is_vector, dtype, extras in itertools.product(_BOOLEANS, CUDA_TYPES, EXTRAS):
        spec = windows_spec(config, dtype, extras, is_vector=is_vector)
        yield Kernel(spec, config.threads, config.min_blocks, config.exchange_bytes)
        for has_in_gradient, has_sum in ((True, True), (True, False), (False, True)):
            if extras == "any" and not has_in_gradient:
                continue  # a plan has it computed all the same
            quads = stash_quads(config, limits) if has_sum else 0
            variant = WindowsVariant(dtype, True, True, is_vector, extras, has_in_gradient, False, has_sum, quads)
            yield Kernel(
                windows_backward_spec(config, variant),
                config.threads,
                variant.min_blocks(config),
                variant.shared_bytes(config),
                is_usual=has_in_gradient and has_sum,
            )
    if config.points == min(BLOCK_CONFIGS):
        for dtype in CUDA_TYPES:
            yield Kernel(state_spec(dtype), STATE_THREADS, 1, 0)


def _cluster_kernels(config: BlockConfig, limits: ArchLimits) -> Iterator[Kernel]:
    """Yield the kernels of rows that a cluster shares; the usual ones are those of rows that fill a transform."""
    spectrum = long_config(config.points, limits)
    flags = itertools.product(_BOOLEANS, repeat=3)
    for (is_complex, has_tail, is_vector), dtype, extras in itertools.product(flags, CUDA_TYPES, EXTRAS):
        if not has_tail and (is_complex or not is_vector):
            continue  # as forward
        variant = ForwardVariant(dtype, False, is_complex, has_tail, is_vector, extras, has_prefetch=False)
        spec = cluster_spec(config, variant, spectrum)
        yield Kernel(spec, config.threads, config.min_blocks, shared_bytes(config), is_usual=not has_tail)


@cache
def _long_kernels(config: LongConfig, limits: ArchLimits) -> tuple[Kernel, ...]:
    """Return the kernels of rows that outgrow a block; the usual ones are those of rows that fill a transform."""
    kernels = []
    flags = itertools.product(_BOOLEANS, repeat=3)
    for (is_complex, has_tail, is_vector), dtype, extras in itertools.product(flags, CUDA_TYPES, EXTRAS):
        if not is_vector and not has_tail:
            continue  # as forward
        variant = LongVariant(dtype, is_complex, has_tail, is_vector, extras)
        halves = _BOOLEANS if ITEM_BYTES[dtype] == 2 else (False,)
        specs = [
            (long_spec(config, replace(variant, has_half_points=is_half), limits), is_half == halves[-1])
            for is_half in halves
        ]
        for wanted in itertools.product(_BOOLEANS, repeat=3):
            gradients = LongGradients(*wanted)
            if any(wanted) and (extras != "none" or not gradients.has_out_gradient):
                has_rows = gradients.has_in_gradient and gradients.has_out_gradient == (extras != "none")
                specs.append((long_backward_spec(config, variant, gradients, limits), has_rows and gradients.has_sum))
        kernels += [
            Kernel(spec, config.threads, config.resident(limits), config.shared_bytes, is_usual and not has_tail)
            for spec, is_usual in specs
        ]
    return tuple(kernels)


def _forward_variants(config: BlockConfig, limits: ArchLimits) -> Iterator[ForwardVariant]:
    """Yield the variants that a plan may name."""
    flags = itertools.product(_BOOLEANS, repeat=5)
    for (is_paired, is_complex, has_tail, is_vector, has_prefetch), dtype, extras in itertools.product(
        flags, CUDA_TYPES, EXTRAS
    ):
        variant = ForwardVariant(dtype, is_paired, is_complex, has_tail, is_vector, extras, has_prefetch)
        if variant.is_paired and not variant.is_complex:
            continue  # the second row is the imaginary part
        if variant.is_paired and config.roots > 1:
            continue  # circular rows are paired where N is a power of two
        if variant.is_complex and not variant.is_paired and not variant.has_tail:
            continue  # rows of 2M points exactly leave no room for a filter
        if not variant.is_vector and not variant.has_tail:
            continue  # odd addresses are no reason for a kernel of their own: the test of the length costs little there
        if variant.has_prefetch and (
            variant.has_tail
            or not variant.is_vector
            or not can_prefetch(config, limits, dtype, is_paired=variant.is_paired)
        ):
            continue
        yield variant


def _backward_variants(config: BlockConfig, limits: ArchLimits) -> Iterator[tuple[BlockConfig, BackwardVariant]]:
    """Yield the variants that a plan of gradients may name, each with its configuration."""
    flags = itertools.product(_BOOLEANS, repeat=6)
    for (is_complex, has_tail, is_vector, *wanted), dtype, extras in itertools.product(flags, CUDA_TYPES, EXTRAS):
        has_in_gradient, has_out_gradient, has_sum = wanted
        if not any(wanted) or (has_out_gradient and extras == "none"):
            continue
        if not has_tail and (is_complex or not is_vector):
            continue  # as forward
        used = backward_config(config, limits, has_sum=has_sum)
        quads = stash_quads(used, limits) if has_sum else 0
        flags_of_row = (dtype, is_complex, has_tail, is_vector, extras)
        yield used, BackwardVariant(*flags_of_row, has_in_gradient, has_out_gradient, has_sum, quads)
