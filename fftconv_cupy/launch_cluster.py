"""Runs the plans of rows that the blocks of a cluster share. `launch` is its counterpart for those that fit a block.

A filter's spectrum is that of `launch_long`, whose transform has the same points in the same order, so a prepared
filter serves both, and the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fftconv_cupy import arrays, launch_long
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.cluster_plan import ClusterPlan, filter_problem, is_even, make_cluster_plan
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import Rows, device_table, rows_of
from fftconv_cupy.launch_long import check, prepare
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.params import FwdParams, packer
from fftconv_cupy.problem import ITEM_BYTES, Problem

__all__ = ["check", "prepare", "run", "warm"]


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernel loaded on a device."""

    plan: ClusterPlan
    kernel: LoadedKernel
    twiddles: int


_pack = packer(FwdParams).pack_into


def run(
    problem: Problem,
    u: ArrayView,
    filt: ArrayView | FilterSpectrum,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    out: ArrayView,
    stream: int,
    workspace: ArrayView | None = None,
    rows: Rows | None = None,
) -> Rows:
    """Compute a problem that has a `cluster_config`; arguments, result and errors are those of `launch_long.run`."""
    rows = rows or rows_of(problem, u, in_gate, out_gate, skip, out)
    item = ITEM_BYTES[problem.dtype]
    pointers = (u.ptr, 0 if in_gate is None else in_gate.ptr, 0 if out_gate is None else out_gate.ptr, out.ptr)
    bits = rows.bits | pointers[0] | pointers[1] | pointers[2] | pointers[3]
    is_prepared = isinstance(filt, FilterSpectrum)
    launcher = _launchers[u.device, (problem, bits & (2 * item - 1) == 0, is_prepared)]
    made = launcher.plan
    skip_ptr = 0 if skip is None else skip.ptr
    if isinstance(filt, FilterSpectrum):
        _launch(launcher, rows, pointers, filt.ptr, skip_ptr, 0, problem.channels, stream)
        return rows
    if workspace is None:
        _, workspace = arrays.empty(u, (made.workspace_bytes // 4,), "float32", stream)
    for first in range(0, problem.channels, made.channel_group):
        channels = min(made.channel_group, problem.channels - first)
        if first == 0 or not problem.shared_filter:
            launch_long.transform_filters(
                filter_problem(problem, channels),
                filt,
                first,
                workspace.ptr,
                workspace.ptr + made.spectrum_bytes,
                is_vector=is_even(problem),
                stream=stream,
            )
        _launch(launcher, rows, pointers, workspace.ptr, skip_ptr, first, channels, stream)
    return rows


def warm(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what a problem that has a `cluster_config` on each of `archs` may need; see `launch.warm`."""
    lines = _launchers.warm([(problem, is_vector, False) for is_vector in (True, False)], archs)
    if archs is None:
        made = make_cluster_plan(problem, device_limits(arrays.current_device()))
        launch_long.warm_filters(made.filter.problem, is_vector=is_even(problem))
    return lines


def _plan(key: tuple[Problem, bool, bool], limits: ArchLimits) -> ClusterPlan:
    problem, is_vector, is_prepared = key
    return make_cluster_plan(problem, limits, is_vector=is_vector, is_prepared=is_prepared)


def _load(made: ClusterPlan, kernels: Kernels, device: int) -> _Launcher:
    return _Launcher(made, kernels[made.kernel], device_table(made.config, False, device))


_launchers = Launchers(_plan, _load)


def _launch(
    launcher: _Launcher,
    rows: Rows,
    pointers: Sequence[int],
    spectrum: int,
    skip: int,
    first: int,
    channels: int,
    stream: int,
) -> None:
    """Launch the kernel on some channels.

    Args:
        launcher: the configuration.
        rows: what calls with such arrays have in common.
        pointers: addresses of u, in_gate, out_gate and y; 0 for a gate that is absent.
        spectrum: address of the spectrum of the first of the channels, or of that of all.
        skip: address of the skip, or 0.
        first: of the channels.
        channels: how many.
        stream: handle of the stream.
    """
    made, strides = launcher.plan, rows.strides
    problem = made.problem
    item = ITEM_BYTES[problem.dtype]
    u, in_gate, out_gate, y = (
        pointer and pointer + first * stride * item for pointer, stride in zip(pointers, strides[1::2], strict=True)
    )
    skip = skip and skip + first * (4 if rows.skip_is_float else item)
    params = FwdParams()
    _pack(
        params,
        0,
        # A gate that is absent has an address that can be read: that of u, or of the twiddles, longer than any row.
        *(u, in_gate or u, out_gate or launcher.twiddles, y, spectrum, launcher.twiddles, skip),
        *strides,
        0 if problem.shared_filter else made.config.points // 2,
        *(problem.batch, channels, problem.seqlen, problem.out_len, 0),
        *(made.turns, made.turns, 0, 0),
        *(int(problem.in_gate), int(problem.out_gate), int(rows.skip_is_float)),
        1.0 / made.config.points,
        0,
    )
    kernel, threads = launcher.kernel, made.config.threads
    kernel.launch(made.grid(channels), threads, params, stream)
