"""Runs the plans of gradients of rows that are cut into windows; what follows their sums is that of `launch_vjp`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fftconv_cupy import arrays, launch_windows
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.chunks import Chunks
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import launch_filter, row_strides, rows_of
from fftconv_cupy.launch_vjp import Launcher, VjpCall, finish_sums, launch_filter_backward, load
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.params import ChunkPlan, Windows, WindowsBwdParams
from fftconv_cupy.problem import ITEM_BYTES, Gradients, Problem, States, Wanted
from fftconv_cupy.vjp_plan import VjpPlan
from fftconv_cupy.window_plan import Cut, checked_cut
from fftconv_cupy.window_vjp_plan import backward_cut, make_backward_plan


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernels loaded on a device, as of whole rows, and how it cuts rows."""

    whole: Launcher
    cut: Cut

    @property
    def plan(self) -> VjpPlan:
        """The plan."""
        return self.whole.plan


_Key = tuple[Problem, Wanted, bool, bool, bool]


def check_vjp(problem: Problem, wanted: Wanted, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Arguments and errors are those of `launch_vjp.check_vjp`.
    """
    checked_cut(problem, device_limits(device))
    import_nvrtc()


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
    states: States | None = None,
) -> None:
    """Compute the wanted gradients on the GPU of `u`, asynchronously on `stream`.

    Arguments and errors are those of `launch_vjp.run_vjp`; `states` are those of a call with an initial state.
    """
    states = states or States()
    if not (states.d_initial or any(wanted._replace(out_gate=False))):
        # dy * z: the convolution with dy in the place of the gate.
        launch_windows.run(problem, u, filt, in_gate, dy, skip, grads.out_gate, stream, workspace, None, states.initial)
        return
    is_prepared = isinstance(filt, FilterSpectrum)
    key, call = _call_of(
        problem, wanted, dy, u, in_gate, out_gate, skip, grads, states, stream, is_prepared=is_prepared
    )
    windows = _launchers[u.device, key]
    launcher = windows.whole
    made = launcher.plan
    if workspace is None and made.workspace_bytes:
        _, workspace = arrays.empty(u, (made.workspace_bytes // 4,), "float32", stream)
    call.workspace = 0 if workspace is None else workspace.ptr
    call.spectrum = filt.ptr if isinstance(filt, FilterSpectrum) else call.workspace + made.workspace.spectrum
    forward = None
    if wanted.out_gate:
        rows = rows_of(problem, u, in_gate, dy, skip, grads.out_gate)
        forward = launch_windows.bind(
            problem, u, in_gate, dy, skip, grads.out_gate, stream, rows, states.initial, is_prepared=True
        )
    for first, channels, chunks in launcher.groups:
        if launcher.filter is not None and isinstance(filt, ArrayView) and not (first and problem.shared_filter):
            launch_filter(launcher.filter, made, filt, launcher.twiddles, call.spectrum, first, channels, stream)
        own = first * made.config.points * COMPLEX_BYTES if is_prepared and not problem.shared_filter else 0
        _launch_backward(launcher, windows.cut, call, call.spectrum + own, first, channels, chunks)
        finish_sums(launcher, call, first, channels, chunks)
        if forward is not None:
            forward.launch(call.spectrum + own, first, channels)
    if problem.shared_filter and wanted.k:
        launch_filter_backward(launcher, call, made.workspace.total, 1, 1, call.dk, 0, 1)


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what gradients of rows that are cut into windows, on all of `archs`, need; see `launch_vjp.warm_vjp`."""
    has_rest = any(wanted._replace(out_gate=False))
    # The gradient of an initial state is none of those in `wanted`.
    with_state = (*((False,) if has_rest else ()), *((True,) if problem.initial_state else ()))
    keys = [
        (problem, wanted, wants_state, is_vector, False)
        for is_vector, wants_state in itertools.product((True, False), with_state)
    ]
    lines = launch_windows.warm(problem, archs, is_prepared=has_rest) if wanted.out_gate else []
    return list(dict.fromkeys(lines + _launchers.warm(keys, archs)))


def _call_of(
    problem: Problem,
    wanted: Wanted,
    dy: ArrayView,
    u: ArrayView,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    grads: Gradients,
    states: States,
    stream: int,
    *,
    is_prepared: bool,
) -> tuple[_Key, VjpCall]:
    """Return the key of the configuration of a call, and its addresses; those of workspace are still to come."""
    item = ITEM_BYTES[problem.dtype]
    bits = (problem.seqlen | problem.out_len) * item
    pointers: list[int] = []
    strides: list[int] = []
    # A gate that is absent has an address that can be read.
    for array in (u, in_gate or u, out_gate or dy, dy, grads.u, grads.in_gate):
        pair = (0, 0) if array is None else row_strides(array)
        pointers.append(0 if array is None else array.ptr)
        strides += pair
        bits |= pointers[-1] | (pair[0] | pair[1]) * item
    for array in (states.initial, states.d_final, states.d_initial):
        pointers.append(0 if array is None else array.ptr)
        strides += (0, 0) if array is None else row_strides(array)
    wants_state = states.d_initial is not None
    call = VjpCall(
        pointers,
        strides,
        spectrum=0,
        skip=0 if skip is None else skip.ptr,
        skip_is_float=skip is None or skip.dtype == "float32",
        dk=0 if grads.k is None else grads.k.ptr,
        d_skip=0 if grads.skip is None else grads.skip.ptr,
        workspace=0,
        stream=stream,
    )
    return (problem, wanted, wants_state, bits & (2 * item - 1) == 0, is_prepared), call


def _plan(key: _Key, limits: ArchLimits) -> VjpPlan:
    problem, wanted, wants_state, is_vector, is_prepared = key
    return make_backward_plan(
        problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared, wants_state=wants_state
    )


def _load(made: VjpPlan, kernels: Kernels, device: int) -> _Launcher:
    return _Launcher(load(made, kernels, device), backward_cut(made.problem, made.limits))


_launchers = Launchers(_plan, _load)


def _launch_backward(
    launcher: Launcher, cut: Cut, call: VjpCall, spectrum: int, first: int, channels: int, chunks: Chunks
) -> None:
    """Launch the fused kernel on `channels` channels from `first` on, whose spectra lie at `spectrum`."""
    made = launcher.plan
    problem, points = made.problem, made.config.points
    item = ITEM_BYTES[problem.dtype]
    items = (item,) * 6 + (4,) * 3
    pointers = [
        pointer and pointer + first * stride * size
        for pointer, stride, size in zip(call.pointers, call.strides[1::2], items, strict=True)
    ]
    params = WindowsBwdParams(
        *pointers,
        spectrum,
        launcher.twiddles,
        call.skip and call.skip + first * (4 if call.skip_is_float else item),
        call.workspace + made.workspace.sums,
        call.workspace + made.workspace.stash,
        tuple(call.strides),
        0 if problem.shared_filter else points // 2,
        chunks.count,
        ChunkPlan(chunks.group_steps, chunks.chunk_steps, chunks.group_chunks),
        problem.batch,
        channels,
        problem.seqlen,
        problem.out_len,
        problem.filter_len - 1,
        Windows(cut.count(problem.seqlen), cut.step, cut.lead, cut.origin, cut.period),
        made.log2_batch_slots,
        problem.in_gate,
        problem.out_gate,
        int(call.skip_is_float),
        1.0 / points,
        0,
    )
    launcher.backward.launch((min(chunks.blocks, chunks.count), 1, 1), made.config.threads, params, call.stream)
