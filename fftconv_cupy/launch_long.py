"""Runs the plans of rows that outgrow a block. `launch` is its counterpart for those that do not."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fftconv_cupy import arrays
from fftconv_cupy.archs import arch_limits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import CUDA_TYPES
from fftconv_cupy.compile import LoadedKernel, load_kernel, precompile
from fftconv_cupy.dependencies import import_cupy, import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import Rows, describe, device_table, lags_of, rows_of
from fftconv_cupy.long_params import LongParams, ScheduleParams, Taps
from fftconv_cupy.long_plan import LongPlan, make_long_plan
from fftconv_cupy.long_schedule import Schedule
from fftconv_cupy.plan import FilterLags, check_sizes
from fftconv_cupy.problem import ITEM_BYTES, Problem
from fftconv_cupy.tables import tile_table

STORAGE_TYPES = {dtype: index for index, dtype in enumerate(CUDA_TYPES)}  # of kernels/taps.cuh


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernel loaded on a device, and the addresses of its tables."""

    plan: LongPlan
    kernel: LoadedKernel
    row_twiddles: int
    tile_twiddles: int


_Key = tuple[Problem, int, bool, bool]
_launchers: dict[_Key, _Launcher] = {}
_tables: dict[tuple[tuple[int, ...], int], Any] = {}
_lock = threading.Lock()
_REMEMBERED = 4096  # configurations; beyond, the look-up starts anew


def check(problem: Problem, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Args:
        problem: a problem that does not fit a block.
        device: ordinal of the device.

    Raises:
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        UnsupportedProblemError: see `plan.check_sizes`.
        MissingDependencyError: NVRTC is not installed.
    """
    device_limits(device)
    check_sizes(problem)
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
) -> Rows:
    """Compute a validated problem on the GPU of `u`, asynchronously on `stream`, into `out`.

    Args:
        problem: the problem, with ``batch >= 1``.
        u: the input, (B, H, L) | (H, L) | (L,).
        filt: the filter, (H, K) | (K,), or its spectrum.
        in_gate: of the input's shape, or None.
        out_gate: of the output's shape, or None.
        skip: (H,), or None.
        out: the output.
        stream: handle of a stream of that GPU.
        workspace: as many bytes as the plan says, or more; None allocates it.
        rows: what a call with arrays of these shapes and strides has returned; None finds it out.

    Returns:
        What such calls have in common.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    rows = rows or rows_of(problem, u, in_gate, out_gate, skip, out)
    item = ITEM_BYTES[problem.dtype]
    pointers = (u.ptr, 0 if in_gate is None else in_gate.ptr, 0 if out_gate is None else out_gate.ptr, out.ptr)
    bits = rows.bits | pointers[0] | pointers[1] | pointers[2] | pointers[3]
    launcher = launcher_of((problem, u.device, bits & (2 * item - 1) == 0, isinstance(filt, FilterSpectrum)))
    made = launcher.plan
    if workspace is None:
        _, workspace = arrays.empty(u, (made.workspace_bytes // 4,), "float32", stream)
    spectrum = filt.ptr if isinstance(filt, FilterSpectrum) else workspace.ptr + made.workspace.spectrum
    params = _params(launcher, filt, spectrum)
    params.points, params.scales = workspace.ptr + made.workspace.points, workspace.ptr + made.workspace.scales
    # A gate that is absent has an address and strides that can be read: those of u, or of y.
    params.u, params.y = pointers[0], pointers[3]
    params.in_gate, params.out_gate = pointers[1] or pointers[0], pointers[2] or pointers[3]
    params.strides[:] = rows.strides if pointers[2] else (*rows.strides[:4], *rows.strides[6:], *rows.strides[6:])
    params.skip = 0 if skip is None else skip.ptr
    params.skip_is_float = skip is None or skip.dtype == "float32"
    _launch(launcher, params, workspace.ptr, stream)
    return rows


def prepare(problem: Problem, k: ArrayView, stream: int) -> tuple[Any, ArrayView]:
    """Compute the spectrum of a filter on its GPU, asynchronously on `stream`; return the array and its view.

    Args:
        problem: the problem that the spectrum is for; its batch and dtype do not matter.
        k: the filter, (H, K) | (K,).
        stream: handle of a stream of that GPU.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    is_vector = problem.seqlen % 2 == problem.out_len % 2 == 0  # as the kernel of calls with contiguous arrays
    filters = replace(problem, batch=0)
    made = launcher_of((filters, k.device, is_vector, False)).plan
    rows = 1 if problem.shared_filter else problem.channels
    data, view = arrays.empty(k, (rows * made.config.points * 2,), "float32", stream)
    _, workspace = arrays.empty(k, (made.workspace_bytes // 4,), "float32", stream)
    transform_filters(filters, k, 0, view.ptr, workspace.ptr, is_vector=is_vector, stream=stream)
    return data, view


def transform_filters(
    problem: Problem, k: ArrayView, first: int, spectrum: int, workspace: int, *, is_vector: bool, stream: int
) -> None:
    """Compute the spectra of filters on their GPU, asynchronously on `stream`.

    Args:
        problem: as many channels of the problem as are to be transformed, with ``batch == 0``.
        k: the filters of all channels, (H, K) | (K,).
        first: of the channels to be transformed.
        spectrum: address of what is written, 8 bytes a complex point.
        workspace: address of as many bytes as the problem's plan says.
        is_vector: as of `make_long_plan`.
        stream: handle of a stream of that GPU.
    """
    launcher = launcher_of((problem, k.device, is_vector, False))
    params = _params(launcher, k, spectrum)
    params.taps.filter += first * params.taps.stride * ITEM_BYTES[problem.filter_dtype]
    _launch(launcher, params, workspace, stream)


def warm(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, every kernel that arrays of any alignment may need.

    Args:
        problem: a problem that does not fit a block, on none of `archs`.
        archs: architectures to compile for into the cache on disk; None means for the current device, and load there.

    Returns:
        A line for each kernel: architecture, FFT size, entry and template flags.
    """
    lines = []
    for is_vector, is_prepared in itertools.product((True, False), (False, True)):
        if archs is None:
            made = launcher_of((problem, arrays.current_device(), is_vector, is_prepared)).plan
            lines.append(describe(made.kernel, made.limits))
        for arch in archs or ():
            made = make_long_plan(problem, arch_limits(arch), is_vector=is_vector, is_prepared=is_prepared)
            precompile(made.kernel, arch)
            lines.append(describe(made.kernel, made.limits))
    return list(dict.fromkeys(lines))


def launcher_of(key: _Key) -> _Launcher:
    """Return the plan of a configuration and its kernel: looked up, or made and loaded."""
    launcher = _launchers.get(key)
    if launcher is not None:
        return launcher
    problem, device, is_vector, is_prepared = key
    made = make_long_plan(problem, device_limits(device), is_vector=is_vector, is_prepared=is_prepared)
    launcher = _Launcher(
        plan=made,
        kernel=load_kernel(made.kernel, made.limits.arch, made.config.shared_bytes, device),
        row_twiddles=device_table(made.config.row, True, device),
        tile_twiddles=tile_twiddles(made.config.tile_log2_radices, device),
    )
    with _lock:
        if len(_launchers) >= _REMEMBERED:
            _launchers.clear()
        return _launchers.setdefault(key, launcher)


def tile_twiddles(log2_radices: tuple[int, ...], device: int) -> int:
    """Return the address of the twiddles of a tile's passes on a device; 0 where there are none."""
    if len(log2_radices) == 1:
        return 0
    key = (log2_radices, device)
    with _lock:
        if key not in _tables:
            _tables[key] = arrays.upload(tile_table(log2_radices), device)
        return int(_tables[key].data.ptr)


def schedule_params(schedule: Schedule) -> ScheduleParams:
    """Return the structure that the kernels take."""
    return ScheduleParams(*(getattr(schedule, name) for name, *_ in ScheduleParams._fields_))


def _params(launcher: _Launcher, filt: ArrayView | FilterSpectrum, spectrum: int) -> LongParams:
    """Return the arguments but for the rows."""
    made = launcher.plan
    problem = made.problem
    params = LongParams(
        row_twiddles=launcher.row_twiddles,
        tile_twiddles=launcher.tile_twiddles,
        spectrum=spectrum,
        taps=taps_of(problem, filt, made.lags),
        schedule=schedule_params(made.schedule),
        in_len=problem.seqlen,
        out_len=problem.out_len,
        has_in_gate=problem.in_gate,
        has_out_gate=problem.out_gate,
        skip_scale=1.0 / made.config.points,
    )
    return params


def taps_of(problem: Problem, filt: ArrayView | FilterSpectrum, lags: FilterLags) -> Taps:
    """Return the structure that the kernels take; the taps of a prepared filter are not looked at."""
    stride = filt.strides[0] if isinstance(filt, ArrayView) and len(filt.strides) == 2 else 0
    return Taps(filt.ptr, stride, problem.filter_len, STORAGE_TYPES[problem.filter_dtype], lags_of(lags))


def clear_counters(address: int, nbytes: int, stream: int) -> None:
    """Set the counters of a call to zero, asynchronously on `stream`."""
    import_cupy().cuda.runtime.memsetAsync(address, 0, nbytes, stream)


def _launch(launcher: _Launcher, params: LongParams, workspace: int, stream: int) -> None:
    """Set the counters to zero and launch the kernel."""
    made = launcher.plan
    params.counters = workspace + made.workspace.counters
    clear_counters(params.counters, made.workspace.nbytes - made.workspace.counters, stream)
    launcher.kernel.launch((made.blocks, 1, 1), made.config.threads, params, stream)
