"""From the views of a depthwise call's arguments to its problem: the rules about frameworks, devices, dtypes, shapes.

They depend on shapes, strides, dtypes and devices alone, so they run once for calls that agree in these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fftconv_cupy.arrays import ArrayView, byte_span, device_name, shares_memory
from fftconv_cupy.depthwise_problem import (
    MAX_WIDTH,
    DepthwiseGradients,
    DepthwiseProblem,
    DepthwiseWanted,
    check_layout,
    make_depthwise_problem,
    make_depthwise_wanted,
)
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.problem import DTYPES
from fftconv_cupy.remembered import Remembered

Views = dict[str, ArrayView]
"""The arrays of a call by the names of their arguments, `x` first; those left out are absent."""

_ROWS = ("x", "dy", "seq_idx")  # the kernels want unit stride along their last axis, and take any strides else
_OF_X = ("dy", "initial_state", "d_final_state", "state")  # have the dtype of x
_OVERLAPPING = ("state", "x", "weight", "bias")  # what is written, and what it must not share memory with
_CAUSAL_ONLY = ("seq_idx", "initial_state", "d_final_state")
_WITHOUT_SEQ_IDX = ("initial_state", "d_final_state")


class Options(NamedTuple):
    """What the caller says beside the arrays, not yet checked."""

    padding: object = "causal"
    activation: object = None
    layout: object = "BHL"
    return_final_state: object = False


@dataclass(slots=True)
class DepthwiseCall:
    """What calls with the same signature have in common.

    Attributes:
        problem: the problem.
        out_shape: of the output.
        state_shape: (B, D, K - 1).
        copied: names of the inputs whose strides a GPU cannot use: it needs a copy of each.
        is_borrowed: an array's memory is borrowed (see `ArrayView`).
        is_capturable: a CUDA graph may hold the call: it takes no memory that CuPy would give to others after it.
        wanted: the gradients that are asked for.
        spans: of an update's state, first, and its inputs: the name, and the bytes from its address to its first byte
            and past its last one.
        is_checked: the GPU is known to be able to compute it; set by the first call.
    """

    problem: DepthwiseProblem
    out_shape: tuple[int, ...]
    state_shape: tuple[int, ...]
    copied: tuple[str, ...]
    is_borrowed: bool
    is_capturable: bool
    wanted: DepthwiseWanted
    spans: tuple[tuple[str, int, int], ...] = ()
    is_checked: bool = False


_calls: Remembered[Any, DepthwiseCall] = Remembered()


def resolved(views: Views, options: Options, wrt: tuple[object, ...] | None = None) -> DepthwiseCall:
    """Return the checked call; one look-up where a call of the same signature has been checked before.

    Args:
        views: the arrays; those of gradients hold `dy`, those of an update `state`.
        options: the options.
        wrt: names of the gradients that are asked for; None means all.

    Raises:
        InvalidTypeError: a dtype, framework or device that does not go with the others, an option of a wrong type.
        InvalidArgumentError: a shape, an option or a name of a gradient that is not allowed.
    """
    # 1.0 and True are equal to 1, and no padding.
    key = (options, type(options.padding), type(options.return_final_state), wrt, *map(_signature, views.items()))
    try:
        call = _calls.get(key)
    except TypeError:  # an option that cannot be hashed is refused in words
        call = None
    if call is None:
        call = _calls.keep(key, resolve(views, options, wrt))
    return call


def resolve(views: Views, options: Options, wrt: tuple[object, ...] | None = None) -> DepthwiseCall:
    """Check a call and return what it computes; arguments and errors are those of `resolved`."""
    x, weight = views["x"], views["weight"]
    layout = check_layout(options.layout)
    _check_places(views)
    _check_dtypes(views)
    batch, channels, seqlen = _rows(x, layout, is_update="state" in views)
    width = _width(weight, channels)
    _check_states(views, options)
    problem = make_depthwise_problem(
        batch=batch,
        channels=channels,
        seqlen=seqlen,
        width=width,
        padding=options.padding,
        activation=options.activation,
        layout=layout,
        dtype=x.dtype,
        weight_dtype=weight.dtype,
        bias_dtype=views["bias"].dtype if "bias" in views else None,
        has_seq_idx="seq_idx" in views,
        has_initial_state="initial_state" in views,
        has_final_state=bool(options.return_final_state) or "d_final_state" in views,
    )
    points = (channels, problem.out_len) if layout == "BHL" else (problem.out_len, channels)
    out_shape = tuple(x.shape) if "state" in views else (batch, *points)
    if "state" in views:
        _check_state(views["state"], views, width)
    _check_shapes(views, out_shape, (batch, channels, seqlen), width)
    wanted = DepthwiseWanted()
    if "dy" in views:
        wanted = make_depthwise_wanted(wrt, [name for name in DepthwiseGradients._fields if name in views])
    copied = tuple(name for name in _ROWS if name in views and _is_gapped(views[name]) and "state" not in views)
    is_borrowed = any(array.is_borrowed for array in views.values())
    # Sums over rows go through workspace, as does the gradient before an activation.
    has_workspace = wanted.weight or wanted.bias or (any(wanted) and problem.activation is not None)
    takes_memory = bool(copied) or is_borrowed or has_workspace
    return DepthwiseCall(
        problem,
        out_shape,
        (batch, channels, width - 1),
        copied,
        is_borrowed,
        # In a capture torch allocates from a pool of the graph's own.
        is_capturable=x.framework == "torch" or not takes_memory,
        wanted=wanted,
        spans=tuple((name, *byte_span(views[name])) for name in _OVERLAPPING if "state" in views and name in views),
    )


def check_state_memory(call: DepthwiseCall, views: Views) -> None:
    """Refuse a `state` that cannot be written, or shares memory with an input: what a signature does not tell.

    Raises:
        InvalidArgumentError: so it is, or it takes too long to tell that no memory is shared.
    """
    state = views["state"]
    if isinstance(state.owner, np.ndarray) and not state.owner.flags.writeable:
        _refuse_state("a read-only array")
    (_, first, past), *others = call.spans
    low, high = state.ptr + first, state.ptr + past
    for name, first, past in others:
        array = views[name]
        if low < array.ptr + past and array.ptr + first < high and shares_memory(state, array):
            _refuse_state(f"memory that overlaps {name}")


def _signature(named: tuple[str, ArrayView]) -> tuple[object, ...]:
    name, array = named
    return (name, array.framework, array.device, array.dtype, array.shape, array.strides, array.is_borrowed)


def _is_gapped(array: ArrayView) -> bool:
    return array.shape[-1] > 1 and array.strides[-1] != 1


def _check_places(views: Views) -> None:
    """All arrays come from the framework of x and lie on its device."""
    x = views["x"]
    for name, array in views.items():
        if array.framework != x.framework:
            raise InvalidTypeError(
                message(
                    f"{name}'s framework",
                    got=f"{array.framework} (on {device_name(array.device)})",
                    allowed=f"{x.framework} (on {device_name(x.device)}), as x",
                    do=f"Convert {name} or x, so that all arrays come from one framework.",
                )
            )
        if array.device != x.device:
            raise InvalidTypeError(
                message(
                    f"{name}'s device",
                    got=device_name(array.device),
                    allowed=f"{device_name(x.device)}, as x",
                    do=f"Move {name} to the device of x, or x to that of {name}.",
                )
            )
    if "state" in views and x.framework == "jax":
        raise InvalidTypeError(
            message(
                "state",
                got="a JAX array",
                allowed="an array that can be written to, which those of JAX cannot",
                do="Call depthwise_conv1d with initial_state and return_final_state=True.",
            )
        )


def _check_dtypes(views: Views) -> None:
    x = views["x"]
    for name, array in views.items():
        if array.dtype == "float64" and x.device >= 0:
            raise InvalidTypeError(
                message(
                    f"{name}.dtype",
                    got=f"float64 on {device_name(x.device)}",
                    allowed=f"{', '.join(DTYPES)} there; float64 on the CPU only",
                    do=f"Convert {name} to float32.",
                )
            )
        if name in _OF_X and array.dtype != x.dtype:
            raise InvalidTypeError(
                message(
                    f"{name}.dtype", got=array.dtype, allowed=f"{x.dtype}, as x", do=f"Convert {name} to {x.dtype}."
                )
            )


def _rows(x: ArrayView, layout: str, *, is_update: bool) -> tuple[int, int, int]:
    """Return B, D and L of x."""
    shape = tuple(x.shape)
    names = "(B, D) or (B, D, S)" if is_update else "(B, D, L)" if layout == "BHL" else "(B, L, D)"
    if is_update and len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        got = f"{tuple(x.shape)}, {len(shape)} axes"
        allowed = names if is_update else f"{names} in layout {layout!r}"
        raise InvalidArgumentError(message("x.shape", got=got, allowed=allowed, do="Reshape x."))
    batch, channels, seqlen = shape if layout == "BHL" else (shape[0], shape[2], shape[1])
    if not (channels and seqlen):
        raise InvalidArgumentError(
            message(
                "x.shape",
                got=f"{tuple(x.shape)}",
                allowed=f"{names} with D >= 1 and {'S' if is_update else 'L'} >= 1 (only B may be 0)",
                do="Pass at least one point of at least one channel.",
            )
        )
    return batch, channels, seqlen


def _width(weight: ArrayView, channels: int) -> int:
    shape = tuple(weight.shape)
    if len(shape) != 2 or shape[0] != channels or not 1 <= shape[1] <= MAX_WIDTH:
        do = "Reshape weight, one row of taps a channel."
        if len(shape) == 2 and shape[0] == channels:
            do = "Pass at least one tap." if shape[1] == 0 else "Use fftconv for longer filters, with the taps flipped."
        allowed = f"({channels}, K) with K from 1 to {MAX_WIDTH}"
        raise InvalidArgumentError(message("weight.shape", got=f"{shape}", allowed=allowed, do=do))
    return shape[1]


def _check_states(views: Views, options: Options) -> None:
    """States and sequence indices are for causal convolutions, and not for one and the same call."""
    asked = options.return_final_state
    if not isinstance(asked, bool):
        got = f"{asked!r} of type {type(asked).__name__}"
        do = "Pass one of these."
        raise InvalidTypeError(message("return_final_state", got=got, allowed="True or False", do=do))
    given = [name for name in _CAUSAL_ONLY if name in views] + (["return_final_state"] if asked else [])
    is_causal = isinstance(options.padding, str) and options.padding == "causal"
    for name in given:
        if not is_causal:
            raise InvalidArgumentError(
                message(
                    name,
                    got=f"{name} with padding={options.padding!r}",
                    allowed="it with padding='causal' only",
                    do=f"Leave {name} out, or pass padding='causal'.",
                )
            )
        if "seq_idx" in views and (name in _WITHOUT_SEQ_IDX or name == "return_final_state"):
            raise InvalidArgumentError(
                message(
                    name,
                    got=f"{name} with seq_idx",
                    allowed="one of them: packed sequences begin and end within the rows",
                    do=f"Leave {name} or seq_idx out.",
                )
            )


def _check_shapes(views: Views, out_shape: tuple[int, ...], sizes: tuple[int, int, int], width: int) -> None:
    batch, channels, seqlen = sizes
    state_shape = (batch, channels, width - 1)
    shapes = {
        "bias": (channels,),
        "seq_idx": (batch, seqlen),
        "initial_state": state_shape,
        "dy": out_shape,
        "d_final_state": state_shape,
        "cache_seqlens": (batch,),
        "conv_state_indices": (batch,),
    }
    for name, array in views.items():
        if name in shapes and tuple(array.shape) != shapes[name]:
            raise InvalidArgumentError(
                message(
                    f"{name}.shape",
                    got=f"{tuple(array.shape)}",
                    allowed=f"{shapes[name]}, with x of shape {tuple(views['x'].shape)} and K = {width}",
                    do=f"Pass {name} of that shape; nothing is broadcast.",
                )
            )


def _check_state(state: ArrayView, views: Views, width: int) -> None:
    """The state of an update is written in place: it has room for K - 1 points, and no element at two indices."""
    shape, x = tuple(state.shape), views["x"]
    is_mapped = "conv_state_indices" in views
    rows = "N" if is_mapped else str(x.shape[0])
    is_shaped = len(shape) == 3 and shape[1] == x.shape[1] and (is_mapped or shape[0] == x.shape[0])
    least = max(width - 1, 1)
    if not is_shaped or shape[2] < least or (is_mapped and x.shape[0] and not shape[0]):
        raise InvalidArgumentError(
            message(
                "state.shape",
                got=f"{shape}",
                allowed=f"({rows}, {x.shape[1]}, W), W >= {least}, with x of shape {tuple(x.shape)} and K = {width}",
                do="Pass a state of that shape.",
            )
        )
    span = 0 if 0 in shape else 1
    for stride, size in sorted((abs(s), n) for s, n in zip(state.strides, shape, strict=True) if n > 1):
        if stride < span:
            _refuse_state(f"strides {tuple(state.strides)}, by which two of its elements may share an address")
        span += stride * (size - 1)


def _refuse_state(got: str) -> NoReturn:
    raise InvalidArgumentError(
        message(
            "state",
            got=got,
            allowed="a writeable array that overlaps neither itself nor an input",
            do="Pass a contiguous array of its own.",
        )
    )
