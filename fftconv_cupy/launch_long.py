"""Runs the plans of rows that outgrow a block. `launch` is its counterpart for those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fftconv_cupy import arrays
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import CUDA_TYPES
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.dependencies import import_cupy, import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import Rows, device_table, lags_of, rows_of
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.long_params import LongParams, ScheduleParams, Taps
from fftconv_cupy.long_plan import LongPlan, make_long_plan
from fftconv_cupy.long_schedule import Schedule
from fftconv_cupy.plan import FilterLags, check_sizes
from fftconv_cupy.problem import ITEM_BYTES, Problem
from fftconv_cupy.remembered import Made
from fftconv_cupy.tables import tile_table

STORAGE_TYPES = {dtype: index for index, dtype in enumerate(CUDA_TYPES)}  # of kernels/taps.cuh


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernel loaded on a device, and the addresses of its tables."""

    plan: LongPlan
    kernel: LoadedKernel
    row_twiddles: int
    tile_twiddles: int


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
    """Compute a problem that does not fit a block; arguments and result are those of `launch.run`.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    rows = rows or rows_of(problem, u, in_gate, out_gate, skip, out)
    item = ITEM_BYTES[problem.dtype]
    pointers = (u.ptr, 0 if in_gate is None else in_gate.ptr, 0 if out_gate is None else out_gate.ptr, out.ptr)
    bits = rows.bits | pointers[0] | pointers[1] | pointers[2] | pointers[3]
    launcher = _launchers[u.device, (problem, bits & (2 * item - 1) == 0, isinstance(filt, FilterSpectrum))]
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
    made = _launchers[k.device, (filters, is_vector, False)].plan
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
    launcher = _launchers[k.device, (problem, is_vector, False)]
    params = _params(launcher, k, spectrum)
    params.taps.filter += first * params.taps.stride * ITEM_BYTES[problem.filter_dtype]
    _launch(launcher, params, workspace, stream)


def warm(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what a problem that does not fit a block, on none of `archs`, may need; see `launch.warm`."""
    keys = [(problem, is_vector, is_prepared) for is_vector in (True, False) for is_prepared in (False, True)]
    return _launchers.warm(keys, archs)


def warm_filters(problem: Problem, *, is_vector: bool) -> None:
    """Load what `transform_filters` needs on the current device."""
    _launchers.warm([(problem, is_vector, False)], None)


def _plan(key: tuple[Problem, bool, bool], limits: ArchLimits) -> LongPlan:
    problem, is_vector, is_prepared = key
    return make_long_plan(problem, limits, is_vector=is_vector, is_prepared=is_prepared)


def _load(made: LongPlan, kernels: Kernels, device: int) -> _Launcher:
    row_twiddles = device_table(made.config.row, True, device)
    return _Launcher(made, kernels[made.kernel], row_twiddles, tile_twiddles(made.config.tile_log2_radices, device))


_launchers = Launchers(_plan, _load)


def tile_twiddles(log2_radices: tuple[int, ...], device: int) -> int:
    """Return the address of the twiddles of a tile's passes on a device; 0 where there are none."""
    return 0 if len(log2_radices) == 1 else int(_tables[log2_radices, device].data.ptr)


def _table(key: tuple[tuple[int, ...], int]) -> Any:
    log2_radices, device = key
    return arrays.upload(tile_table(log2_radices), device)


_tables = Made(_table, limit=None)


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
