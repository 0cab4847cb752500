"""Runs the plans of rows that are cut into windows. `launch` is its counterpart for transforms of whole rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fftconv_cupy import arrays
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import STATE_THREADS, state_spec
from fftconv_cupy.compile import LoadedKernel, load_kernel, precompile
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import Rows, device_table, launch_filter, row_strides, rows_of
from fftconv_cupy.launchers import Kernels, Launchers, describe
from fftconv_cupy.params import Slot, StateParams, WindowsParams
from fftconv_cupy.problem import ITEM_BYTES, Problem
from fftconv_cupy.remembered import Made
from fftconv_cupy.window_plan import WindowPlan, checked_cut, make_window_plan


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernels loaded on a device, and the numbers that are the same in each call of the fused one."""

    plan: WindowPlan
    forward: LoadedKernel
    filter: LoadedKernel | None
    twiddles: int
    spectrum_stride: int
    sizes: tuple[int, ...]
    scale: float


_arguments = Slot(WindowsParams)


@dataclass(frozen=True, slots=True)
class Bound:
    """A configuration and the arrays of one call: 0 for what is absent, but an absent gate has strides (see `Rows`)."""

    launcher: _Launcher
    pointers: tuple[int, ...]
    strides: tuple[int, ...]
    skip: int
    skip_is_float: bool
    state: int
    state_strides: tuple[int, int]
    stream: int

    def launch(self, spectrum: int, first: int, channels: int, *, is_early: bool = False) -> None:
        """Launch the fused kernel on `channels` channels from `first` on, whose spectra lie at `spectrum`.

        `is_early`: it may start while the filter's kernel, launched before it, runs: it waits for the spectrum itself.
        """
        launcher, arguments, strides = self.launcher, _arguments, self.strides
        problem = launcher.plan.problem
        item = ITEM_BYTES[problem.dtype]
        u, in_gate, out_gate, y = (
            pointer and pointer + first * stride * item
            for pointer, stride in zip(self.pointers, strides[1::2], strict=True)
        )
        arguments.fill(
            # A gate that is absent has an address and strides that can be read: those of u, or of y.
            *(u, in_gate or u, out_gate or y, y),
            self.state and self.state + first * self.state_strides[1] * 4,
            *(spectrum, launcher.twiddles),
            self.skip and self.skip + first * (4 if self.skip_is_float else item),
            *(strides if out_gate else (*strides[:4], *strides[6:], *strides[6:])),
            *self.state_strides,
            launcher.spectrum_stride,
            problem.batch,
            channels,
            *launcher.sizes,
            int(self.skip_is_float),
            launcher.scale,
        )
        launcher.forward.launch(
            launcher.plan.grid_of(channels),
            launcher.plan.config.threads,
            arguments.params,
            self.stream,
            arguments.address,
            is_early=is_early,
        )


def check(problem: Problem, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Args:
        problem: a problem that is cut into windows.
        device: ordinal of the device.

    Raises:
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        UnsupportedProblemError: see `window_plan.checked_cut`.
        MissingDependencyError: NVRTC is not installed.
    """
    checked_cut(problem, device_limits(device))
    import_nvrtc()


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
    initial_state: ArrayView | None = None,
) -> Rows:
    """Compute a problem that is cut into windows; arguments and result are those of `launch.run`.

    `initial_state` is float32, with the K - 1 points before the first one of a row along the last axis, or None.

    Raises:
        UnsupportedProblemError: see `window_plan.checked_cut`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    rows = rows or rows_of(problem, u, in_gate, out_gate, skip, out)
    is_prepared = isinstance(filt, FilterSpectrum)
    bound = bind(problem, u, in_gate, out_gate, skip, out, stream, rows, initial_state, is_prepared=is_prepared)
    if isinstance(filt, FilterSpectrum):
        bound.launch(filt.ptr, 0, problem.channels)
        return rows
    launcher = bound.launcher
    if workspace is None:
        _, workspace = arrays.empty(u, (launcher.plan.workspace_bytes // 4,), "float32", stream)
    group = launcher.plan.channel_group
    for first in range(0, problem.channels, group):
        channels = min(group, problem.channels - first)
        has_new_filter = first == 0 or not problem.shared_filter
        if has_new_filter and launcher.filter is not None:
            launch_filter(
                launcher.filter, launcher.plan, filt, launcher.twiddles, workspace.ptr, first, channels, stream
            )
        is_early = has_new_filter and launcher.plan.limits.has_dependent_launch
        bound.launch(workspace.ptr, first, channels, is_early=is_early)
    return rows


def bind(
    problem: Problem,
    u: ArrayView,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    out: ArrayView,
    stream: int,
    rows: Rows,
    initial_state: ArrayView | None,
    *,
    is_prepared: bool,
) -> Bound:
    """Return what launches the fused kernel on the arrays of a call; the arguments are those of `run`."""
    item = ITEM_BYTES[problem.dtype]
    pointers = (u.ptr, 0 if in_gate is None else in_gate.ptr, 0 if out_gate is None else out_gate.ptr, out.ptr)
    bits = rows.bits | pointers[0] | pointers[1] | pointers[2] | pointers[3]
    return Bound(
        _launchers[u.device, (problem, bits & (2 * item - 1) == 0, is_prepared)],
        pointers,
        rows.strides,
        0 if skip is None else skip.ptr,
        rows.skip_is_float,
        0 if initial_state is None else initial_state.ptr,
        (0, 0) if initial_state is None else row_strides(initial_state),
        stream,
    )


def prepare(problem: Problem, k: ArrayView, stream: int) -> tuple[Any, ArrayView]:
    """Compute the spectrum of a filter on its GPU, asynchronously on `stream`; return the array and its view.

    Args:
        problem: the problem that the spectrum is for; its batch and dtype do not matter.
        k: the filter, (H, K) | (K,).
        stream: handle of a stream of that GPU.

    Raises:
        UnsupportedProblemError: see `window_plan.checked_cut`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    limits = device_limits(k.device)
    made = make_window_plan(problem, limits)
    rows = 1 if problem.shared_filter else problem.channels
    data, view = arrays.empty(k, (rows * made.config.points * 2,), "float32", stream)
    kernel = load_kernel(made.filter, limits.arch, made.config.exchange_bytes, k.device)
    launch_filter(kernel, made, k, device_table(made.config, False, k.device), view.ptr, 0, problem.channels, stream)
    return data, view


def run_state(
    problem: Problem,
    u: ArrayView,
    in_gate: ArrayView | None,
    initial_state: ArrayView | None,
    final_state: ArrayView,
    stream: int,
) -> None:
    """Fill the state after each row: its last K - 1 gated inputs, after those of the state before it.

    Args:
        problem: the problem, with ``batch >= 1``.
        u: the input, (B, H, L) | (H, L) | (L,).
        in_gate: of the input's shape, or None.
        initial_state: float32, with K - 1 points along the last axis, or None for zeros.
        final_state: of the same shape and dtype, contiguous.
        stream: handle of a stream of that GPU.

    Raises:
        CompileError, MissingDependencyError: the kernel had to be compiled and could not be.
    """
    state_len = problem.filter_len - 1
    if state_len == 0:
        return
    given = (u, in_gate, initial_state)
    strides = tuple(stride for array in given for stride in ((0, 0) if array is None else row_strides(array)))
    params = StateParams(
        *(0 if array is None else array.ptr for array in given),
        final_state.ptr,
        strides,
        problem.batch,
        problem.channels,
        problem.seqlen,
        state_len,
    )
    values = problem.batch * problem.channels * state_len
    kernel = _state_kernels[problem.dtype, u.device]
    kernel.launch((-(-values // STATE_THREADS), 1, 1), STATE_THREADS, params, stream)


def _state_kernel(key: tuple[str, int]) -> LoadedKernel:
    dtype, device = key
    return load_kernel(state_spec(dtype), device_limits(device).arch, 0, device)


_state_kernels = Made(_state_kernel)


def warm(problem: Problem, archs: Sequence[str] | None = None, *, is_prepared: bool = False) -> list[str]:
    """Compile what a problem that is cut into windows, on all of `archs`, may need; see `launch.warm`.

    `is_prepared`: for calls with a prepared filter.
    """
    lines = _launchers.warm([(problem, is_vector, is_prepared) for is_vector in (True, False)], archs)
    return lines + warm_state(problem, archs) if problem.initial_state else lines


def warm_state(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, the kernel of `run_state`; return a line for it, as `warm` does."""
    state = state_spec(problem.dtype)
    if archs is None:
        key = (problem.dtype, arrays.current_device())
        _state_kernels.keep(key, _state_kernel(key))
        return [describe(state, device_limits(arrays.current_device()))]
    for arch in archs:
        precompile(state, arch)
    return [describe(state, arch_limits(arch)) for arch in archs]


def _plan(key: tuple[Problem, bool, bool], limits: ArchLimits) -> WindowPlan:
    problem, is_vector, is_prepared = key
    return make_window_plan(problem, limits, is_vector=is_vector, is_prepared=is_prepared)


def _load(made: WindowPlan, kernels: Kernels, device: int) -> _Launcher:
    problem, cut, config = made.problem, made.cut, made.config
    return _Launcher(
        plan=made,
        forward=kernels[made.forward],
        filter=kernels.get(made.filter),
        twiddles=device_table(config, False, device),
        spectrum_stride=0 if problem.shared_filter else config.points // 2,
        sizes=(
            *(problem.seqlen, problem.out_len, problem.filter_len - 1),
            *(cut.count(problem.out_len), cut.step, cut.lead, cut.origin, cut.period),
            *(int(problem.in_gate), int(problem.out_gate)),
        ),
        scale=1.0 / config.points,
    )


_launchers = Launchers(_plan, _load)
