"""Carries out a checked call on the device of its arrays: allocate, compute, hand over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any, cast

import numpy as np

from fftconv_cupy import arrays, numpy_backend
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.checks import Arguments, Call, VjpArguments
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.problem import ITEM_BYTES, PRECISIONS, Gradients, Problem, StateGradients, States

_launch: ModuleType | None = None


def gpu_launcher() -> ModuleType:
    """Return the module `gpu`, imported when the first array on a GPU comes: nothing else needs CuPy.

    Raises:
        MissingDependencyError: CuPy is not installed.
    """
    global _launch
    if _launch is None:
        import_cupy()
        from fftconv_cupy import gpu

        _launch = gpu
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
        None if arguments.initial_state is None else _rows(arguments.initial_state),
    )
    result = _returned(out, arguments, 0)
    return (result, _final_state_on_cpu(call, arguments)) if arguments.returns_state else result


def _final_state_on_cpu(call: Call, arguments: Arguments) -> Any:
    a = arguments
    state, view = _empty_state(call, a, None)
    numpy_backend.final_state(
        call.problem,
        _rows(a.u),
        None if a.in_gate is None else _rows(a.in_gate),
        None if a.initial_state is None else _rows(a.initial_state),
        _rows(view),
    )
    return _handed_over(state, a, 0)


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
        call.run = launch.runner(problem, a.u.device)
        call.is_checked = True
    stream = arrays.current_stream(a.u) if handle is None else handle
    if not call.is_capturable:
        arrays.refuse_capture(stream)
    if target is None:
        out, target = arrays.empty(a.u, call.out_shape, problem.dtype, handle)
    borrowed = _owners(a) if call.is_borrowed else None
    if handle is not None and a.u.framework == "torch":
        _record_use(a, [out], stream)
    state = None
    if problem.batch:
        if call.copied:
            _copy_gapped(call, a, stream)
        known = {} if a.initial_state is None else {"initial_state": a.initial_state}
        call.rows = call.run(problem, a.u, a.k, a.in_gate, a.out_gate, a.skip, target, stream, rows=call.rows, **known)
    if a.returns_state:
        state = _final_state_on_gpu(call, a, stream, handle)
    if borrowed is not None:
        arrays.keep_alive(borrowed, a.u.device, stream)
    result = _returned(out, arguments, stream)
    return (result, state) if a.returns_state else result


def _final_state_on_gpu(call: Call, arguments: Arguments, stream: int, handle: int | None) -> Any:
    a = arguments
    state, view = _empty_state(call, a, handle)
    if handle is not None and a.u.framework == "torch":
        arrays.record_use((state,), a.u.device, stream)
    if call.problem.batch:
        gpu_launcher().run_state(call.problem, a.u, a.in_gate, a.initial_state, view, stream)
    return _handed_over(state, a, stream)


def _empty_state(call: Call, arguments: Arguments, handle: int | None) -> tuple[Any, ArrayView]:
    """Allocate a state; return the array and its view."""
    dtype = "float64" if arguments.u.dtype == "float64" else "float32"
    return arrays.empty(arguments.u, call.state_shape, dtype, handle)


def _handed_over(state: Any, arguments: Arguments, stream: int) -> Any:
    """Return what the caller gets for a filled `state`."""
    return arrays.hand_over(state, arguments.u, stream) if arguments.u.framework == "jax" else state


def vjp_on_cpu(call: Call, arguments: VjpArguments) -> Gradients | StateGradients:
    """Compute the gradients that are wanted with NumPy."""
    a = arguments
    results, views = _empty_gradients(call, a, None)
    state = _empty_state(call, a, None) if call.wants_state else None
    given = {
        "initial_state": a.initial_state,
        "d_final_state": a.d_final_state,
        "d_initial_state": None if state is None else state[1],
    }
    known = {name: _rows(view) for name, view in given.items() if view is not None}
    numpy_backend.vjp(
        call.problem,
        _rows(a.dy),
        _rows(a.u),
        a.k.data if isinstance(a.k, FilterSpectrum) else arrays.to_numpy(a.k),
        None if a.in_gate is None else _rows(a.in_gate),
        None if a.out_gate is None else _rows(a.out_gate),
        None if a.skip is None else arrays.to_numpy(a.skip),
        Gradients(
            u=None if views.u is None else _rows(views.u),
            k=None if views.k is None else arrays.to_numpy(views.k),
            in_gate=None if views.in_gate is None else _rows(views.in_gate),
            out_gate=None if views.out_gate is None else _rows(views.out_gate),
            skip=None if views.skip is None else arrays.to_numpy(views.skip),
        ),
        **known,
    )
    return _returned_gradients(results, state, a, 0)


def vjp_on_gpu(call: Call, arguments: VjpArguments, handle: int | None) -> Gradients | StateGradients:
    """Launch on the current device, which is that of the arrays; return the gradients that are wanted.

    Arguments and errors are those of `on_gpu`.
    """
    launch = _launch or gpu_launcher()
    a, problem, wanted = arguments, call.problem, call.wanted
    if not call.is_checked:
        launch.check_vjp(problem, wanted, a.u.device)
        call.run = launch.vjp_runner(problem, a.u.device)
        call.is_checked = True
    stream = arrays.current_stream(a.u) if handle is None else handle
    if not call.is_capturable:
        arrays.refuse_capture(stream)
    results, views = _empty_gradients(call, a, handle)
    state = _empty_state(call, a, handle) if call.wants_state else None
    borrowed = _owners(a) if call.is_borrowed else None
    if handle is not None and a.u.framework == "torch":
        _record_use(a, results if state is None else (*results, state[0]), stream)
    if problem.batch:
        if call.copied:
            _copy_gapped(call, a, stream)
        known: dict[str, Any] = {"rows": call.rows}
        if problem.initial_state:
            known["states"] = States(a.initial_state, a.d_final_state, None if state is None else state[1])
        call.rows = call.run(problem, wanted, a.dy, a.u, a.k, a.in_gate, a.out_gate, a.skip, views, stream, **known)
    else:
        for view in views:
            if view is not None:
                arrays.zero(view, stream)  # sums over no rows
    if borrowed is not None:
        arrays.keep_alive(borrowed, a.u.device, stream)
    return _returned_gradients(results, state, a, stream)


def prepare_on_cpu(problem: Problem, k: ArrayView) -> FilterSpectrum:
    """Transform a filter with NumPy."""
    with numpy_backend.expected_errors():
        data = numpy_backend.filter_spectrum(problem, arrays.to_numpy(k))
    data.flags.writeable = False
    points = numpy_backend.transform_points(problem)
    strategy = "numpy-stateful" if problem.initial_state else "numpy"
    return FilterSpectrum.of(problem, -1, points, strategy, data, data.ctypes.data, data.nbytes)


def prepare_on_gpu(problem: Problem, k: ArrayView, handle: int | None) -> FilterSpectrum:
    """Launch the transform of a filter on the current device, which is that of `k`."""
    launch = gpu_launcher()
    launch.check(problem, k.device)
    stream = arrays.current_stream(k) if handle is None else handle
    strategy, points = launch.transform_of(problem, k.device)
    is_copied = k.shape[-1] > 1 and k.strides[-1] != 1
    needs_workspace = strategy == "long" or problem.precision != "highest"
    if k.framework != "torch" and (is_copied or k.is_borrowed or needs_workspace):
        arrays.refuse_capture(stream)
    taps = arrays.unit_stride(k, stream) if is_copied else k
    data, spectrum = launch.prepare(problem, taps, stream)
    if k.is_borrowed:
        arrays.keep_alive((k.owner,), k.device, stream)
    if handle is not None and k.framework == "torch":
        arrays.record_use((k.owner,), k.device, stream)
    nbytes = problem.channels * points * COMPLEX_BYTES
    if strategy in PRECISIONS:  # in a form of its own
        nbytes = math.prod(spectrum.shape) * ITEM_BYTES[spectrum.dtype]
    return FilterSpectrum.of(problem, k.device, points, strategy, data, spectrum.ptr, nbytes)


def _returned(result: Any, arguments: Arguments, stream: int) -> Any:
    """Return what the caller gets for a filled `result`."""
    if arguments.u.framework == "jax":
        return arrays.hand_over(result, arguments.u, stream)
    if arguments.out is not None:
        arrays.mark_written(arguments.out)
    return result


def _empty_gradients(call: Call, arguments: VjpArguments, handle: int | None) -> tuple[Gradients, Gradients]:
    """Allocate the gradients that are wanted; return the arrays and their views."""
    a = arguments
    inputs = (a.u, a.k, a.in_gate, a.out_gate, a.skip)
    results: list[Any] = [None] * len(inputs)
    views: list[ArrayView | None] = [None] * len(inputs)
    for index, is_wanted in enumerate(call.wanted):
        if is_wanted:
            like = cast(ArrayView, inputs[index])  # which all are that can be wanted
            results[index], views[index] = arrays.empty(like, like.shape, like.dtype, handle)
    return Gradients(*results), Gradients(*views)


def _returned_gradients(
    results: Gradients, state: tuple[Any, ArrayView] | None, arguments: VjpArguments, stream: int
) -> Gradients | StateGradients:
    """Return what the caller gets for filled `results` and the gradient of a state, an array and its view."""
    u = arguments.u
    if u.framework == "jax":
        results = Gradients(*(None if result is None else arrays.hand_over(result, u, stream) for result in results))
    if arguments.initial_state is None:
        return results
    return StateGradients(*results, None if state is None else _handed_over(state[0], arguments, stream))


def _owners(arguments: Arguments) -> tuple[Any, ...]:
    return tuple(array.owner for _, array in arguments.named())


def _record_use(arguments: Arguments, results: Iterable[Any], stream: int) -> None:
    """Tell torch that `stream` uses the inputs and the results."""
    k = arguments.k
    prepared = [k.data] if isinstance(k, FilterSpectrum) else []
    owners = [*(array.owner for _, array in arguments.inputs()), *prepared, *results]
    arrays.record_use(owners, arguments.u.device, stream)


def _copy_gapped(call: Call, arguments: Arguments, stream: int) -> None:
    """Replace the inputs without unit stride along the last axis by copies."""
    for name in call.copied:
        setattr(arguments, name, arrays.unit_stride(getattr(arguments, name), stream))


def _rows(array: ArrayView) -> np.ndarray[Any, Any]:
    """Return a CPU array of one to three axes as (B, H, L), sharing its memory."""
    return arrays.to_numpy(array)[(None,) * (3 - len(array.shape))]
