"""The public functions of short depthwise convolutions: read the arrays, check everything, compute on their device."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from fftconv_cupy import arrays, depthwise_execute
from fftconv_cupy.autograd import is_differentiated
from fftconv_cupy.depthwise_checks import Options, Views, check_state_memory, resolved
from fftconv_cupy.depthwise_problem import DepthwiseGradients
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.indices import index_view


def depthwise_conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    padding: str | int = "causal",
    activation: str | None = None,
    layout: str = "BHL",
    seq_idx: Any = None,
    initial_state: Any = None,
    return_final_state: bool = False,
    stream: Any = None,
) -> Any:
    """Correlate each channel of `x` with its few taps: ``y[t] = bias + sum_j weight[j] * x[t + j - left]``.

    As `torch.nn.Conv1d` with as many groups as channels: the taps are not flipped, as those of `fftconv` are. `x` is 0
    outside of its rows. Arrays and streams are treated as `fftconv` treats them: they come from one framework and lie
    on one device, nothing waits, and NumPy computes the same in float64 on the CPU. Arithmetic is float32 on a GPU, and
    only the result is rounded to the dtype of `x`. A value that is not finite may make its own row not finite, and no
    other.

    Any strides are used as they are, but for `x` and `seq_idx`, which are copied once on a GPU where their last axis
    does not have unit stride: a channels-last tensor is best passed as (B, L, D) with layout "BLH".

    Tensors that torch differentiates go to `fftconv_cupy.torch.depthwise_conv1d`, which is differentiable.

    Args:
        x: (B, D, L): batch, channels, points; (B, L, D) where `layout` is "BLH"; float16, bfloat16 or float32 (float64
            too on the CPU). B may be 0; D and L may not.
        weight: (D, K), of any of these dtypes whatever that of `x`, with K from 1 to 128.
        bias: (D,), likewise.
        padding: with zeros, as `torch.nn.Conv1d` understands it but for "causal":

            - ``"causal"``: K - 1 on the left: an output sees its own point and those before it; L outputs;
            - ``"same"``: (K - 1) // 2 on the left and the rest of K - 1 on the right; L outputs;
            - an int p: p on both sides; L + 2 p - K + 1 outputs.
        activation: None, or "silu" (also "swish"): ``z * sigmoid(z)`` of the output.
        layout: "BHL" or "BLH", of `x` and the output.
        seq_idx: (B, L) int32, for a causal convolution: which of the sequences that are packed in a row each point
            belongs to. A tap counts only where its point belongs to the sequence of the output. A negative index marks
            padding: the output there is 0.
        initial_state: (B, D, K - 1), of the dtype of `x`, for a causal convolution without `seq_idx`: the points before
            those of `x`, the oldest first, in either layout.
        return_final_state: return the last K - 1 points as well, the initial state of a call that goes on from here.
            Calls that are chained so give what one call gives.
        stream: as for `fftconv`.

    Returns:
        The output, a new contiguous array of the framework, device and dtype of `x`, (B, D, outputs) or
        (B, outputs, D); with `return_final_state` a pair of it and the final state, (B, D, K - 1).

    Raises:
        InvalidTypeError: an argument is not an array, has a dtype that is not allowed, or comes from another framework
            or device than `x`; an option of a wrong type; a JAX tracer.
        InvalidArgumentError: a shape or an option that does not go with the rest, such as a state with another padding
            than "causal", or with `seq_idx`; `stream` with tensors that torch differentiates.
        MissingDependencyError: the arrays are on a GPU and CuPy or NVRTC is not installed.
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        CompileError: a kernel could not be compiled.

    Example:
        >>> import numpy as np
        >>> x, weight = np.ones((1, 1, 4), np.float32), np.array([[1, 10, 100]], np.float32)
        >>> depthwise_conv1d(x, weight)
        array([[[100., 110., 111., 111.]]], dtype=float32)
    """
    handle = None if stream is None else arrays.stream_handle(stream)
    given = {"x": x, "weight": weight, "bias": bias, "seq_idx": seq_idx, "initial_state": initial_state}
    options = Options(padding, activation, layout, return_final_state)
    try:
        views = _views(given, handle)
    except InvalidTypeError:
        if not any(map(is_differentiated, given.values())):
            raise
        if stream is not None:
            _refuse_stream()
        # The one import of a higher layer, by name: the operator calls this function in its turn.
        return importlib.import_module("fftconv_cupy.torch").depthwise_conv1d(**given, **options._asdict())
    call = resolved(views, options)
    with_state = bool(return_final_state)
    return _carried_out(
        views,
        stream,
        lambda: depthwise_execute.on_cpu(call, views, with_state=with_state),
        lambda: depthwise_execute.on_gpu(call, views, handle, with_state=with_state),
    )


def depthwise_conv1d_vjp(
    dy: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    padding: str | int = "causal",
    activation: str | None = None,
    layout: str = "BHL",
    seq_idx: Any = None,
    initial_state: Any = None,
    d_final_state: Any = None,
    wrt: Iterable[str] | str | None = None,
    stream: Any = None,
) -> DepthwiseGradients:
    """Return the gradients of ``sum(dy * depthwise_conv1d(x, weight, ...))`` with respect to its arguments.

    Nothing has to be kept from the call of `depthwise_conv1d`: what the gradients need is computed again. Only the
    gradients in `wrt` are computed. Sums over batch and points are float32 on a GPU and float64 on the CPU, and each
    gradient is rounded once to its dtype. Equal calls give equal bits. Into a CUDA graph, calls with CuPy arrays can be
    captured without activation and without the gradients of `weight` and `bias`.

    Args:
        dy: the gradient of the output, of its shape and of the dtype of `x`.
        x: as for `depthwise_conv1d`, as are all that follow but `d_final_state` and `wrt`.
        weight: (D, K).
        bias: (D,) or None.
        padding: as there.
        activation: as there.
        layout: as there, of `x` and `dy`.
        seq_idx: as there.
        initial_state: as there.
        d_final_state: (B, D, K - 1), the gradient of the final state where that is used; of the dtype of `x`.
        wrt: the arguments whose gradients are computed: a name or several of "x", "weight", "bias" and "initial_state",
            each of them given in this call. None means all that were given.
        stream: as for `fftconv`.

    Returns:
        A named tuple of ``x``, ``weight``, ``bias``, ``initial_state``: for each a new contiguous array of the shape
        and dtype of the argument and of the framework and device of `x`, or None where it was not asked for. Those of
        `weight` and `bias` are summed over batch and points; where B is 0 they are 0.

    Raises:
        InvalidTypeError: as for `depthwise_conv1d`, for a tensor that torch differentiates, and where `wrt` holds
            something else than strings.
        InvalidArgumentError: as for `depthwise_conv1d`, and where `wrt` is empty or names something else than an
            argument of this call.
        MissingDependencyError, UnsupportedDeviceError, CompileError: as for `depthwise_conv1d`.

    Example:
        >>> import numpy as np
        >>> x, weight = np.array([[[1, 2, 3]]], np.float32), np.array([[1, 10]], np.float32)
        >>> grads = depthwise_conv1d_vjp(np.ones((1, 1, 3), np.float32), x, weight)
        >>> grads.x, grads.weight
        (array([[[11., 11., 10.]]], dtype=float32), array([[3., 6.]], dtype=float32))
    """
    handle = None if stream is None else arrays.stream_handle(stream)
    given = {"x": x, "weight": weight, "bias": bias, "seq_idx": seq_idx, "initial_state": initial_state, "dy": dy}
    if d_final_state is not None:
        given["d_final_state"] = d_final_state
    views = _views(given, handle)
    call = resolved(views, Options(padding, activation, layout), None if wrt is None else _names(wrt))
    gradients: DepthwiseGradients = _carried_out(
        views,
        stream,
        lambda: depthwise_execute.vjp_on_cpu(call, views),
        lambda: depthwise_execute.vjp_on_gpu(call, views, handle),
    )
    return gradients


def depthwise_conv1d_update(
    x: Any,
    state: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = None,
    cache_seqlens: Any = None,
    conv_state_indices: Any = None,
    stream: Any = None,
) -> Any:
    """Take one or a few steps of a causal convolution, in place on its state: ``causal_conv1d_update``'s semantics.

    Without `cache_seqlens`, ``state`` holds the last W points, the oldest first: the output is that of the points of
    the state followed by `x`, and the state is shifted to the left to take `x` in. With it, the state is a ring: row b
    has seen ``cache_seqlens[b]`` points before, point p lies at ``p % W``, and those of `x` are written behind them.
    Of more points than W the last ones are kept.

    Args:
        x: (B, D), or (B, D, S) for S steps; float16, bfloat16 or float32 (float64 too on the CPU).
        state: (B, D, W) with W >= K - 1, of the dtype of `x`, with any strides; written in place. Not of JAX.
        weight: (D, K), as for `depthwise_conv1d`.
        bias: (D,) or None.
        activation: None or "silu".
        cache_seqlens: (B,) int32, >= 0: the points that each row has seen.
        conv_state_indices: (B,) int32: the row of `state`, which is then (N, D, W), that each row of `x` goes on from.
            No row of `state` may be named twice. Where it is negative no state is touched and the output is 0. One that
            is no row of `state` is refused on the CPU, and gives NaN on a GPU, where no state is touched either.
        stream: as for `fftconv`.

    Returns:
        The outputs, a new contiguous array of the shape, framework, device and dtype of `x`.

    Raises:
        InvalidTypeError: as for `depthwise_conv1d`, for a JAX array, and for a tensor that requires grad in grad mode.
        InvalidArgumentError: a shape or an option that does not go with the rest; a state that is read-only or overlaps
            itself, `x`, `weight` or `bias`.
        MissingDependencyError, UnsupportedDeviceError, CompileError: as for `depthwise_conv1d`.

    Example:
        >>> import numpy as np
        >>> state, weight = np.zeros((1, 1, 2), np.float32), np.array([[1, 10, 100]], np.float32)
        >>> for point in (1, 2, 3):
        ...     y = depthwise_conv1d_update(np.full((1, 1), point, np.float32), state, weight)
        >>> y, state
        (array([[321.]], dtype=float32), array([[[2., 3.]]], dtype=float32))
    """
    handle = None if stream is None else arrays.stream_handle(stream)
    given = {"x": x, "weight": weight, "bias": bias, "state": state}
    rows = {"cache_seqlens": cache_seqlens, "conv_state_indices": conv_state_indices}
    views = _views(given | rows, handle)
    call = resolved(views, Options("causal", activation))
    check_state_memory(call, views)
    return _carried_out(
        views,
        stream,
        lambda: depthwise_execute.update_on_cpu(call, views),
        lambda: depthwise_execute.update_on_gpu(call, views, handle),
    )


_OPTIONAL = ("bias", "seq_idx", "initial_state", "cache_seqlens", "conv_state_indices")
_INDICES = ("seq_idx", "cache_seqlens", "conv_state_indices")


def _views(given: dict[str, Any], handle: int | None) -> Views:
    """Read the arrays that are given; None is one only in the place of an optional argument."""
    return {
        name: index_view(array, name, handle) if name in _INDICES else arrays.view(array, name, handle)
        for name, array in given.items()
        if array is not None or name not in _OPTIONAL
    }


def _carried_out(views: Views, stream: Any, on_cpu: Callable[[], Any], on_gpu: Callable[[], Any]) -> Any:
    """Compute on the device of the arrays, which is made the current one."""
    device = views["x"].device
    if stream is not None:
        arrays.check_stream_device(stream, device)
    if device < 0:
        return on_cpu()
    if device == arrays.current_device():
        return on_gpu()
    with arrays.use_device(device):
        return on_gpu()


def _names(wrt: Iterable[object] | str) -> tuple[object, ...]:
    """Return the names of `wrt` as a tuple, one name alone too; whether they are names is checked with the call."""
    if isinstance(wrt, str):
        return (wrt,)
    try:
        return tuple(wrt)
    except TypeError:
        raise InvalidTypeError(
            message(
                "wrt",
                got=f"an object of type {type(wrt).__name__}",
                allowed="names of arguments, as a string or an iterable of strings, or None for all",
                do="Pass wrt=('x', 'weight') and the like.",
            )
        ) from None


def _refuse_stream() -> None:
    raise InvalidArgumentError(
        message(
            "stream",
            got="stream with a tensor that torch differentiates",
            allowed="None there",
            do="Call it in a block of torch.cuda.stream, or under torch.no_grad().",
        )
    )
