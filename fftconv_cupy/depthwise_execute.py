"""Carries out a checked depthwise call on the device of its arrays: allocate, compute, hand over."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from fftconv_cupy import arrays, depthwise_numpy, execute, indices
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.depthwise_checks import DepthwiseCall, Views
from fftconv_cupy.depthwise_problem import DepthwiseGradients
from fftconv_cupy.errors import InvalidArgumentError, message

_INDICES = ("seq_idx", "cache_seqlens", "conv_state_indices")
_State = tuple[Any, "ArrayView | None"]


def on_cpu(call: DepthwiseCall, views: Views, *, with_state: bool) -> Any:
    """Compute with NumPy; return the output, or it and the final state."""
    given = _on_host(views)
    out, target = arrays.empty(views["x"], call.out_shape, call.problem.dtype, None)
    state, state_view = _empty_state(call, views, None, with_state=with_state)
    depthwise_numpy.convolve(
        call.problem,
        **_named(given, "x", "weight", "bias", "seq_idx", "initial_state"),
        out=arrays.to_numpy(target),
        final_state=None if state_view is None else arrays.to_numpy(state_view),
    )
    return _returned(out, state, views, 0, with_state=with_state)


def on_gpu(call: DepthwiseCall, views: Views, handle: int | None, *, with_state: bool) -> Any:
    """Launch on the current device, which is that of the arrays; return the output, or it and the final state.

    Args:
        call: the checked call.
        views: its arrays.
        handle: of the stream; None means the current one of the framework of x.
        with_state: the final state is returned too.

    Raises:
        UnsupportedDeviceError, MissingDependencyError: the GPU or what is installed will not do; found before anything
            is allocated.
        InvalidArgumentError: the stream is being captured, and the call cannot be.
    """
    launch, problem, x = _ready(call, views), call.problem, views["x"]
    stream = _stream(call, x, handle)
    out, target = arrays.empty(x, call.out_shape, problem.dtype, handle)
    state, state_view = _empty_state(call, views, handle, with_state=with_state)
    _record_use(views, (out, state), handle, stream)
    if problem.batch:
        v = _inputs(call, views, stream)
        optional = (v.get(name) for name in ("bias", "seq_idx", "initial_state"))
        launch.run(problem, v["x"], v["weight"], *optional, target, state_view, stream)
    _keep_alive(call, views, stream)
    return _returned(out, state, views, stream, with_state=with_state)


def vjp_on_cpu(call: DepthwiseCall, views: Views) -> DepthwiseGradients:
    """Compute the gradients that are wanted with NumPy."""
    given = _on_host(views)
    results, targets = _empty_gradients(call, views, None)
    depthwise_numpy.vjp(
        call.problem,
        **_named(given, "dy", "x", "weight", "bias", "seq_idx", "initial_state", "d_final_state"),
        grads=DepthwiseGradients(*(None if view is None else arrays.to_numpy(view) for view in targets)),
    )
    return _returned_gradients(results, views, 0)


def vjp_on_gpu(call: DepthwiseCall, views: Views, handle: int | None) -> DepthwiseGradients:
    """Launch on the current device, which is that of the arrays; return the gradients that are wanted.

    Arguments and errors are those of `on_gpu`.
    """
    launch, problem, x = _ready(call, views), call.problem, views["x"]
    stream = _stream(call, x, handle)
    results, targets = _empty_gradients(call, views, handle)
    _record_use(views, results, handle, stream)
    wanted = call.wanted
    if not problem.has_initial_state:
        wanted, targets = wanted._replace(initial_state=False), targets._replace(initial_state=None)
    if problem.batch and any(wanted):
        v = _inputs(call, views, stream)
        optional = (v.get(name) for name in ("bias", "seq_idx", "initial_state", "d_final_state"))
        launch.run_vjp(problem, wanted, v["dy"], v["x"], v["weight"], *optional, targets, stream)
    else:
        for view in targets:
            if view is not None:
                arrays.zero(view, stream)  # sums over no rows
    _keep_alive(call, views, stream)
    return _returned_gradients(results, views, stream)


def update_on_cpu(call: DepthwiseCall, views: Views) -> Any:
    """Compute with NumPy, write the state, and return the output.

    Raises:
        InvalidArgumentError: an index that is no row of the state.
    """
    given = _on_host(views)
    rows, state = given.get("conv_state_indices"), given["state"]
    if rows is not None and rows.size and rows.max() >= state.shape[0]:
        raise InvalidArgumentError(
            message(
                "conv_state_indices",
                got=f"{rows.max()}",
                allowed=f"rows of state, 0 to {state.shape[0] - 1}, and negative ones for x that is left alone",
                do="Pass rows that state has.",
            )
        )
    x = views["x"]
    out, target = arrays.empty(x, call.out_shape, x.dtype, None)
    steps = (*x.shape, 1) if len(x.shape) == 2 else tuple(x.shape)
    depthwise_numpy.update(
        given["x"].reshape(steps),
        state,
        **_named(given, "weight", "bias", "cache_seqlens", "conv_state_indices"),
        activation=call.problem.activation,
        out=arrays.to_numpy(target).reshape(steps),
    )
    arrays.mark_written(views["state"])
    return out


def update_on_gpu(call: DepthwiseCall, views: Views, handle: int | None) -> Any:
    """Launch on the current device, which is that of the arrays; return the output.

    Arguments and errors are those of `on_gpu`.
    """
    launch, problem, x = _ready(call, views), call.problem, views["x"]
    stream = _stream(call, x, handle)
    out, target = arrays.empty(x, call.out_shape, problem.dtype, handle)
    _record_use(views, (out,), handle, stream)
    if problem.batch:
        v = _inputs(call, views, stream)
        optional = (v.get(name) for name in ("bias", "cache_seqlens", "conv_state_indices"))
        launch.run_update(problem, v["x"], v["state"], v["weight"], *optional, target, stream)
    _keep_alive(call, views, stream)
    arrays.mark_written(views["state"])
    return out


def _on_host(views: Views) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays as NumPy's, sharing their memory."""
    return {name: indices.to_numpy(view) if name in _INDICES else arrays.to_numpy(view) for name, view in views.items()}


def _named(given: dict[str, np.ndarray[Any, Any]], *names: str) -> dict[str, Any]:
    """Return some of the arguments, None for those left out."""
    return {name: given.get(name) for name in names}


def _ready(call: DepthwiseCall, views: Views) -> ModuleType:
    """Return the launcher, which has been asked whether the GPU will do."""
    launch: ModuleType = execute.gpu_launcher().depthwise
    if not call.is_checked:
        launch.check(call.problem, views["x"].device)
        call.is_checked = True
    return launch


def _stream(call: DepthwiseCall, x: ArrayView, handle: int | None) -> int:
    """Return the handle of the stream of a call, which is not being captured where the call cannot be."""
    stream = arrays.current_stream(x) if handle is None else handle
    if not call.is_capturable and import_cupy().cuda.runtime.streamIsCapturing(stream):
        # CuPy's pool would give workspace and copies to others when the call returns, while the graph goes on.
        raise InvalidArgumentError(
            message(
                "stream",
                got="a stream being captured into a CUDA graph, for a call that takes workspace",
                allowed="for a capture: torch, or CuPy arrays that need no copy and no gradients that need workspace",
                do="Pass contiguous arrays; capture gradients of x alone, without activation, or use torch.",
            )
        )
    return stream


def _empty_state(call: DepthwiseCall, views: Views, handle: int | None, *, with_state: bool) -> _State:
    """Allocate the final state where it is returned; it has no view where it is empty."""
    if not with_state:
        return None, None
    state, view = arrays.empty(views["x"], call.state_shape, call.problem.dtype, handle)
    return state, view if call.problem.has_final_state else None


def _empty_gradients(
    call: DepthwiseCall, views: Views, handle: int | None
) -> tuple[DepthwiseGradients, DepthwiseGradients]:
    """Allocate the gradients that are wanted; return the arrays and their views."""
    results: list[Any] = []
    targets: list[ArrayView | None] = []
    for name, is_wanted in zip(DepthwiseGradients._fields, call.wanted, strict=True):
        result = view = None
        if is_wanted:
            like = views[name]
            result, view = arrays.empty(like, tuple(like.shape), like.dtype, handle)
        results.append(result)
        targets.append(view)
    return DepthwiseGradients(*results), DepthwiseGradients(*targets)


def _inputs(call: DepthwiseCall, views: Views, stream: int) -> Views:
    """Return what the kernels read: copies of what has strides that they cannot use, and no states without points."""
    if call.copied:
        views = views | {name: arrays.unit_stride(views[name], stream) for name in call.copied}
    if call.problem.width == 1:
        views = {name: view for name, view in views.items() if name not in ("initial_state", "d_final_state")}
    return views


def _record_use(views: Views, results: Iterable[Any], handle: int | None, stream: int) -> None:
    """Tell torch that a stream which was given uses the inputs and the results."""
    x = views["x"]
    if handle is not None and x.framework == "torch":
        arrays.record_use([*(view.owner for view in views.values()), *results], x.device, stream)


def _keep_alive(call: DepthwiseCall, views: Views, stream: int) -> None:
    if call.is_borrowed:
        arrays.keep_alive(tuple(view.owner for view in views.values()), views["x"].device, stream)


def _returned(out: Any, state: Any, views: Views, stream: int, *, with_state: bool) -> Any:
    """Return what the caller gets for filled results."""
    x = views["x"]
    if x.framework == "jax":
        out = arrays.hand_over(out, x, stream)
        state = arrays.hand_over(state, x, stream) if with_state else None
    return (out, state) if with_state else out


def _returned_gradients(results: DepthwiseGradients, views: Views, stream: int) -> DepthwiseGradients:
    x = views["x"]
    if x.framework != "jax":
        return results
    return DepthwiseGradients(*(None if one is None else arrays.hand_over(one, x, stream) for one in results))
