"""Runs the plans of gradients of rows that the blocks of a cluster share.

The kernel of rows is that of `launch_vjp`; the transforms of filters before it and of sums after it are those of
`launch_long` and `launch_long_vjp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from fftconv_cupy import launch_long
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.cluster_plan import filter_problem, is_even
from fftconv_cupy.cluster_vjp_plan import ClusterVjpPlan, make_cluster_vjp_plan
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import device_table
from fftconv_cupy.launch_long_vjp import check_vjp, launch_sums_back
from fftconv_cupy.launch_vjp import Call, Launcher, Rows, finish_shared_sum, finish_sums, launch_backward, steps_of
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.problem import Gradients, Problem, Wanted
from fftconv_cupy.vjp_calls import VjpKey, arrays_of_rows, begin, keys_of

__all__ = ["check_vjp", "run_vjp", "warm_vjp"]


@dataclass(frozen=True, slots=True)
class _Launcher(Launcher):
    """A plan with its kernels loaded on a device."""

    plan: ClusterVjpPlan
    device: int


def run_vjp(
    problem: Problem,
    wanted: Wanted,
    dy: ArrayView,
    u: ArrayView,
    filt: ArrayView | FilterSpectrum,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    grads: Gradients,
    stream: int,
    workspace: ArrayView | None = None,
    rows: Rows | None = None,
) -> Rows:
    """Compute the wanted gradients on the GPU of `u`, asynchronously on `stream`.

    Arguments, result and errors are those of `launch_vjp.run_vjp`; the problem has a `gradient_cluster`.
    """
    given = arrays_of_rows(dy, u, in_gate, out_gate, grads)
    call = begin(_launchers, steps_of, problem, wanted, given, filt, skip, grads, stream, workspace, rows)
    made = call.launcher.plan
    for step in call.steps:
        if made.needs_spectrum and isinstance(filt, ArrayView) and not (step.first and problem.shared_filter):
            launch_long.transform_filters(
                filter_problem(problem, step.channels),
                filt,
                step.first,
                call.spectrum,
                call.workspace + made.workspace.nbytes,
                is_vector=is_even(problem),
                stream=stream,
            )
        launch_backward(call, step)
        finish_sums(call, step, _launch_back)
    finish_shared_sum(call, _launch_back)
    return call.rows


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what a problem that has a `gradient_cluster` on each of `archs` needs; see `launch_vjp.warm_vjp`."""
    return _launchers.warm(keys_of(problem, wanted), archs)


def _plan(key: VjpKey, limits: ArchLimits) -> ClusterVjpPlan:
    return make_cluster_vjp_plan(key.problem, key.wanted, limits, is_vector=key.is_vector, is_prepared=key.is_prepared)


def _load(made: ClusterVjpPlan, kernels: Kernels, device: int) -> _Launcher:
    return _Launcher(
        plan=made,
        backward=kernels[made.backward],
        filter=None,
        convert=None,
        filter_backward=None,
        reduce=kernels.get(made.reduce),
        twiddles=0,
        backward_twiddles=device_table(made.config, False, device),
        device=device,
    )


_launchers = Launchers(_plan, _load)


def _launch_back(
    call: Call, sums: int, group_chunks: int, group_channels: int, dk: int, d_skip: int, channels: int
) -> None:
    """Turn the sums at offset `sums` of the workspace into gradients; see `launch_vjp.launch_filter_backward`."""
    launcher = cast(_Launcher, call.launcher)
    made = launcher.plan
    launch_sums_back(
        filter_problem(made.problem, channels),
        made.wanted,
        group_chunks,
        call.workspace + sums,
        call.workspace + made.workspace.nbytes,
        dk,
        d_skip,
        "float32" if call.rows.skip_is_float else made.problem.dtype,
        launcher.device,
        call.stream,
    )
