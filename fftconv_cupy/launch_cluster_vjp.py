"""Runs the plans of gradients of rows that the blocks of a cluster share.

The kernel of rows is that of `launch_vjp`; the transforms of filters before it and of sums after it are those of
`launch_long` and `launch_long_vjp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fftconv_cupy import arrays, launch_long
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.cluster_plan import filter_problem, is_even
from fftconv_cupy.cluster_vjp_plan import ClusterVjpPlan, make_cluster_vjp_plan
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import device_table
from fftconv_cupy.launch_long_vjp import check_vjp, launch_sums_back
from fftconv_cupy.launch_vjp import Launcher, VjpCall, addresses_of, finish_sums, groups_of, launch_backward
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.problem import Gradients, Problem, Wanted

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
) -> None:
    """Compute the wanted gradients on the GPU of `u`, asynchronously on `stream`.

    Arguments and errors are those of `launch_vjp.run_vjp`; the problem has a `gradient_cluster`.
    """
    pointers, strides, bits = addresses_of(problem, dy, u, in_gate, out_gate, grads)
    is_vector = bits & 1 == 0
    launcher = _launchers[u.device, (problem, wanted, is_vector, isinstance(filt, FilterSpectrum))]
    made = launcher.plan
    if workspace is None and made.workspace_bytes:
        _, workspace = arrays.empty(u, (made.workspace_bytes // 4,), "float32", stream)
    memory = 0 if workspace is None else workspace.ptr
    spectrum = filt.ptr if isinstance(filt, FilterSpectrum) else memory + made.workspace.spectrum
    call = VjpCall.of(pointers, strides, spectrum, skip, grads, memory, stream)
    for first, channels, chunks in launcher.groups:
        if made.needs_spectrum and isinstance(filt, ArrayView) and not (first and problem.shared_filter):
            launch_long.transform_filters(
                filter_problem(problem, channels),
                filt,
                first,
                spectrum,
                memory + made.workspace.nbytes,
                is_vector=is_even(problem),
                stream=stream,
            )
        launch_backward(launcher, call, first, channels, chunks)
        finish_sums(launcher, call, first, channels, chunks, _launch_back)
    if problem.shared_filter and wanted.k:
        _launch_back(launcher, call, made.workspace.total, 1, 1, call.dk, 0, 1)


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what a problem that has a `gradient_cluster` on each of `archs` needs; see `launch_vjp.warm_vjp`."""
    return _launchers.warm([(problem, wanted, is_vector, False) for is_vector in (True, False)], archs)


def _plan(key: tuple[Problem, Wanted, bool, bool], limits: ArchLimits) -> ClusterVjpPlan:
    problem, wanted, is_vector, is_prepared = key
    return make_cluster_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared)


def _load(made: ClusterVjpPlan, kernels: Kernels, device: int) -> _Launcher:
    return _Launcher(
        plan=made,
        backward=kernels[made.backward],
        filter=kernels.get(made.filter),
        convert=None,
        filter_backward=kernels.get(made.filter_backward),
        reduce=kernels.get(made.reduce),
        twiddles=0,
        backward_twiddles=device_table(made.config, False, device),
        groups=groups_of(made),
        device=device,
    )


_launchers = Launchers(_plan, _load)


def _launch_back(
    launcher: _Launcher,
    call: VjpCall,
    sums: int,
    group_chunks: int,
    group_channels: int,
    dk: int,
    d_skip: int,
    channels: int,
) -> None:
    """Turn the sums at offset `sums` of the workspace into gradients; see `launch_vjp.launch_filter_backward`."""
    made = launcher.plan
    launch_sums_back(
        filter_problem(made.problem, channels),
        made.wanted,
        group_chunks,
        call.workspace + sums,
        call.workspace + made.workspace.nbytes,
        dk,
        d_skip,
        "float32" if call.skip_is_float else made.problem.dtype,
        launcher.device,
        call.stream,
    )
