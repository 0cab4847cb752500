"""Which of the plans a call gets."""

from __future__ import annotations

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.cluster_plan import ClusterPlan, cluster_config, make_cluster_plan
from fftconv_cupy.cluster_vjp_plan import gradient_cluster, make_cluster_vjp_plan
from fftconv_cupy.long_plan import LongPlan, make_long_plan
from fftconv_cupy.long_vjp_plan import LongVjpPlan, make_long_vjp_plan
from fftconv_cupy.mma_plan import MmaPlan, make_mma_plan, mma_gradient_configs, precision_of
from fftconv_cupy.mma_vjp_plan import make_row_vjp_plan
from fftconv_cupy.plan import Plan, fits_block, make_plan
from fftconv_cupy.problem import ITEM_BYTES, Problem, Wanted
from fftconv_cupy.vjp_plan import VjpPlan
from fftconv_cupy.window_plan import WindowPlan, cut_of, make_window_plan
from fftconv_cupy.window_vjp_plan import WindowVjpPlan, make_window_vjp_plan

AnyPlan = Plan | ClusterPlan | LongPlan | WindowPlan | MmaPlan | VjpPlan | LongVjpPlan | WindowVjpPlan


def precision_of_call(problem: Problem, limits: ArchLimits) -> str:
    """Return the precision with which a GPU computes a problem."""
    is_cut = problem.initial_state or cut_of(problem, limits) is not None
    return "highest" if is_cut else precision_of(problem, limits)


def precision_of_gradients(problem: Problem, wanted: Wanted, limits: ArchLimits) -> str:
    """Return the precision with which a GPU computes gradients of a problem, from taps."""
    is_cut = problem.initial_state or cut_of(problem, limits) is not None
    return "highest" if is_cut or mma_gradient_configs(problem, wanted, limits) is None else "medium"


def plan_call(
    problem: Problem, limits: ArchLimits, wanted: Wanted | None, *, is_prepared: bool, is_contiguous: bool = True
) -> AnyPlan:
    """Plan a call; with `wanted` one for those gradients.

    Args:
        problem: the convolution; ``batch >= 1``.
        limits: of the GPU.
        wanted: which gradients; None means the output.
        is_prepared: the filter's spectrum comes with the call.
        is_contiguous: arrays are, so that rows are aligned as far as their lengths are even; else rows start anywhere.

    Raises:
        UnsupportedProblemError: the transform is larger than the kernels go.
    """
    item = ITEM_BYTES[problem.dtype]
    bits = (problem.seqlen | problem.out_len) * item
    is_vector, is_bulk = is_contiguous and bits % (2 * item) == 0, is_contiguous and bits % 16 == 0
    is_cut = problem.initial_state or cut_of(problem, limits) is not None
    if wanted is not None:
        if is_cut:
            return make_window_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared)
        if gradient_cluster(problem, limits) is not None:
            return make_cluster_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared)
        if not fits_block(problem, limits, can_pair=False):
            return make_long_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared)
        return make_row_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_wide=is_bulk, is_prepared=is_prepared)
    if is_cut:
        return make_window_plan(problem, limits, is_vector=is_vector, is_prepared=is_prepared)
    if precision_of(problem, limits) != "highest":
        return make_mma_plan(problem, limits, is_wide=is_bulk, is_prepared=is_prepared)
    if cluster_config(problem, limits) is not None:
        return make_cluster_plan(problem, limits, is_vector=is_vector, is_prepared=is_prepared)
    if not fits_block(problem, limits):
        return make_long_plan(problem, limits, is_vector=is_vector, is_prepared=is_prepared)
    return make_plan(problem, limits, is_vector=is_vector, is_bulk=is_bulk, is_prepared=is_prepared)
