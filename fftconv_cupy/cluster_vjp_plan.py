"""How gradients of rows that the blocks of a cluster share are computed, with which sizes and workspace, and why."""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import (
    QUAD_BYTES,
    REDUCE_THREADS,
    BackwardVariant,
    BlockConfig,
    backward_spec,
    reduce_spec,
    resident_blocks,
    stash_quads,
)
from fftconv_cupy.chunks import channel_groups
from fftconv_cupy.cluster_blocks import fitting_gradient_clusters
from fftconv_cupy.cluster_plan import SPECTRUM_LIMIT, filter_problem, is_even
from fftconv_cupy.long_blocks import long_config
from fftconv_cupy.long_plan import LongPlan, make_long_plan
from fftconv_cupy.long_vjp_plan import LongVjpPlan, make_sums_plan
from fftconv_cupy.plan import check_sizes, extras_of, filter_lags, fits_block, transform_of
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec
from fftconv_cupy.vjp_plan import VjpPlan, blocks_of, launches_of, reasons_of


@dataclass(frozen=True, slots=True)
class ClusterVjpPlan(VjpPlan):
    """How the gradients of one call on rows that a cluster shares are computed; ``print(plan)`` tells it in words.

    Attributes:
        filters: how the filters of a group of channels are transformed.
        sums_back: how the sums of a group of channels are turned into gradients of filters and skips.
    """

    filters: LongPlan
    sums_back: LongVjpPlan

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        kernels = [(self.backward, self.shared_bytes)]
        if self.needs_spectrum:
            kernels += self.filters.kernels
        if self.variant.has_sum:
            kernels += self.sums_back.kernels
        if self.has_reduce:
            kernels.append((self.reduce, REDUCE_THREADS * QUAD_BYTES))
        return tuple(kernels)

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a call takes beside its outputs: behind its own parts what the other two plans take."""
        filters = self.filters.workspace_bytes * self.needs_spectrum
        return self.workspace.nbytes + max(filters, self.sums_back.workspace_bytes * self.variant.has_sum)


def gradient_cluster(problem: Problem, limits: ArchLimits) -> BlockConfig | None:
    """Return the configuration of gradients that clusters compute; None where a block does, or only L2 is enough.

    Its transform has as many points as that of `make_long_plan`, which makes the filter's spectrum.
    """
    if fits_block(problem, limits, can_pair=False):
        return None
    points = long_config(transform_of(problem, can_pair=False)[1], limits).points
    return next((config for config in fitting_gradient_clusters(limits) if config.points == points), None)


def make_cluster_vjp_plan(
    problem: Problem, wanted: Wanted, limits: ArchLimits, *, is_vector: bool = True, is_prepared: bool = False
) -> ClusterVjpPlan:
    """Plan the gradients of a problem that has a `gradient_cluster`.

    Args:
        problem: the convolution; ``batch >= 1``.
        wanted: which gradients.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths, so two elements are accessed at a time.
        is_prepared: the filter's spectrum comes with the call.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        ValueError: the problem has no such configuration.
    """
    check_sizes(problem)
    config = gradient_cluster(problem, limits)
    if config is None:
        raise ValueError(f"no cluster computes gradients of {problem} on {limits.arch}: see gradient_cluster")
    has_sum = wanted.k or wanted.skip
    variant = BackwardVariant(
        dtype=problem.dtype,
        is_complex=max(problem.seqlen, problem.out_len) > config.points,
        has_tail=not problem.seqlen == problem.out_len == config.points or not is_vector,
        is_vector=is_vector,
        extras=extras_of(problem),
        has_in_gradient=wanted.u or wanted.in_gate,
        has_out_gradient=wanted.out_gate,
        has_sum=has_sum,
        stash_quads=stash_quads(config, limits) if has_sum else 0,
    )
    resident = resident_blocks(config, variant, limits)
    needs_spectrum = not is_prepared and (variant.has_in_gradient or variant.has_out_gradient)
    blocks = blocks_of(config, variant, 1, resident, needs_spectrum)
    group, chunks, has_reduce, workspace = channel_groups(problem, wanted, blocks, problem.batch, limit=SPECTRUM_LIMIT)
    filters = make_long_plan(filter_problem(problem, group), limits, is_vector=is_even(problem))
    chains = 1 if has_reduce else chunks.group_chunks
    sums_back = make_sums_plan(filter_problem(problem, group), wanted, limits, chains=chains)
    return ClusterVjpPlan(
        problem=problem,
        wanted=wanted,
        limits=limits,
        config=config,
        backward_config=config,
        variant=variant,
        backward=backward_spec(config, variant, filters.config.threads),
        filter=filters.kernel,
        filter_backward=sums_back.kernel,
        reduce=reduce_spec(config),
        lags=filter_lags(problem, "linear"),
        is_prepared=is_prepared,
        needs_spectrum=needs_spectrum,
        shared_bytes=variant.shared_bytes(config),
        log2_batch_slots=0,
        resident_blocks=resident,
        channel_group=group,
        chunks=chunks,
        has_reduce=has_reduce,
        workspace=workspace,
        launches=launches_of(problem, wanted, has_sum, -(-problem.channels // group), has_reduce, needs_spectrum),
        reasons=reasons_of(problem, wanted, config, variant, has_reduce),
        filters=filters,
        sums_back=sums_back,
    )
