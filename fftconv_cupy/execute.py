"""Carries out a checked call on the device of its arrays: allocate, compute, hand over."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from fftconv_cupy import arrays, numpy_backend
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.checks import Arguments, Call
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.plan import block_config
from fftconv_cupy.problem import Problem

_launch: ModuleType | None = None


def gpu_launcher() -> ModuleType:
    """Return the module `launch`, imported when the first array on a GPU comes: nothing else needs CuPy.

    Raises:
        MissingDependencyError: CuPy is not installed.
    """
    global _launch
    if _launch is None:
        import_cupy()
        from fftconv_cupy import launch

        _launch = launch
    return _launch


def on_cpu(call: Call, arguments: Arguments, out: Any) -> Any:
    """Compute with NumPy and return `out`, or a new array where that is None."""
    u, k, problem, target = arguments.u, arguments.k, call.problem, arguments.out
    if target is None:
        out, target = arrays.empty(u, call.out_shape, problem.dtype, None)
    numpy_backend.convolve(
        problem,
        _rows(u),
        k.data if isinstance(k, FilterSpectrum) else arrays.to_numpy(k),
        None if arguments.in_gate is None else _rows(arguments.in_gate),
        None if arguments.out_gate is None else _rows(arguments.out_gate),
        None if arguments.skip is None else arrays.to_numpy(arguments.skip),
        _rows(target),
    )
    return _returned(out, arguments, 0)


def on_gpu(call: Call, arguments: Arguments, out: Any, handle: int | None) -> Any:
    """Launch on the current device, which is that of the arrays; return `out`, or a new array where that is None.

    Args:
        call: the checked call.
        arguments: its views.
        out: what the caller gave as output.
        handle: of the stream; None means the current one of the framework of u.

    Raises:
        UnsupportedProblemError, UnsupportedDeviceError, MissingDependencyError: the GPU or what is installed will not
            do; found before anything is allocated.
        InvalidArgumentError: the stream is being captured, and the call cannot be.
    """
    launch = _launch or gpu_launcher()
    a, problem, target = arguments, call.problem, arguments.out
    if not call.is_checked:
        launch.check(problem, a.u.device)
        call.is_checked = True
    stream = arrays.current_stream(a.u) if handle is None else handle
    if not call.is_capturable:
        arrays.refuse_capture(stream)
    if target is None:
        out, target = arrays.empty(a.u, call.out_shape, problem.dtype, handle)
    borrowed = [array.owner for array in a.arrays()] if call.is_borrowed else None
    if handle is not None and a.u.framework == "torch":
        prepared = [a.k.data] if isinstance(a.k, FilterSpectrum) else []
        arrays.record_use([*(array.owner for _, array in a.inputs()), *prepared, out], a.u.device, stream)
    if problem.batch:
        for name in call.copied:
            setattr(a, name, arrays.unit_stride(getattr(a, name), stream))
        launch.run(problem, a.u, a.k, a.in_gate, a.out_gate, a.skip, target, stream)
    if borrowed is not None:
        arrays.keep_alive(tuple(borrowed), a.u.device, stream)
    return _returned(out, arguments, stream)


def prepare_on_cpu(problem: Problem, k: ArrayView) -> FilterSpectrum:
    """Transform a filter with NumPy."""
    with numpy_backend.expected_errors():
        data = numpy_backend.filter_spectrum(problem, arrays.to_numpy(k))
    data.flags.writeable = False
    points = numpy_backend.transform_points(problem)
    return FilterSpectrum.of(problem, -1, points, "numpy", data, data.ctypes.data, data.nbytes)


def prepare_on_gpu(problem: Problem, k: ArrayView, handle: int | None) -> FilterSpectrum:
    """Launch the transform of a filter on the current device, which is that of `k`."""
    launch = gpu_launcher()
    launch.check(problem, k.device)
    stream = arrays.current_stream(k) if handle is None else handle
    strategy, config = block_config(problem, launch.device_limits(k.device))
    is_copied = k.shape[-1] > 1 and k.strides[-1] != 1
    if k.framework != "torch" and (is_copied or k.is_borrowed):
        arrays.refuse_capture(stream)
    taps = arrays.unit_stride(k, stream) if is_copied else k
    data, spectrum = launch.prepare(problem, taps, stream)
    if k.is_borrowed:
        arrays.keep_alive((k.owner,), k.device, stream)
    if handle is not None and k.framework == "torch":
        arrays.record_use((k.owner,), k.device, stream)
    nbytes = problem.channels * config.points * COMPLEX_BYTES
    return FilterSpectrum.of(problem, k.device, config.points, strategy, data, spectrum.ptr, nbytes)


def _returned(result: Any, arguments: Arguments, stream: int) -> Any:
    """Return what the caller gets for a filled `result`."""
    if arguments.u.framework == "jax":
        return arrays.hand_over(result, arguments.u, stream)
    if arguments.out is not None:
        arrays.mark_written(arguments.out)
    return result


def _rows(array: ArrayView) -> np.ndarray[Any, Any]:
    """Return a CPU array of one to three axes as (B, H, L), sharing its memory."""
    return arrays.to_numpy(array)[(None,) * (3 - len(array.shape))]
