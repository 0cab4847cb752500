"""The public gradient of `fftconv`, for who computes gradients by hand or teaches them to a framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fftconv_cupy import arrays, execute
from fftconv_cupy.api import resolved
from fftconv_cupy.arrays import view
from fftconv_cupy.checks import VjpArguments
from fftconv_cupy.errors import InvalidTypeError, message
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.problem import Gradients, StateGradients


def fftconv_vjp(
    dy: Any,
    u: Any,
    k: Any,
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: Any = None,
    out_gate: Any = None,
    skip: Any = None,
    wrt: Iterable[str] | str | None = None,
    stream: Any = None,
    initial_state: Any = None,
    d_final_state: Any = None,
    precision: str | None = None,
    intermediate: str | None = None,
) -> Gradients | StateGradients:
    """Return the gradients of ``sum(dy * fftconv(u, k, ...))`` with respect to the arguments of `fftconv`.

    Nothing has to be kept from the call of `fftconv`: what the gradients need is computed again. Only the gradients in
    `wrt` are computed. Arrays and streams are treated as `fftconv` treats them; arithmetic is float32 on a GPU, or
    as `precision` says, and float64 on the CPU; sums over batch and channels are so whatever is asked for, and each
    gradient is rounded once to its dtype. Equal calls give equal bits.

    A value that is not finite may make its own row not finite in the gradients of `u` and the gates, and that of its
    channel (all of it where the filter is shared) in those of `k` and `skip`; no other. Into a CUDA graph, calls with
    CuPy arrays can be captured with a prepared filter and without the gradient of `skip`.

    Args:
        dy: the gradient of the output, of its shape and of the dtype of `u`.
        u: as for `fftconv`, as are all that follow but `wrt`.
        k: the filter, or the result of `prepare_filter`, for which there is no gradient.
        mode: as for `fftconv`.
        fft_size: as for `fftconv`.
        in_gate: as for `fftconv`.
        out_gate: as for `fftconv`.
        skip: as for `fftconv`.
        wrt: the arguments whose gradients are computed: a name or several of "u", "k", "in_gate", "out_gate", "skip"
            and "initial_state", each of them given in this call. None means all that were given, but for a prepared
            filter.
        stream: as for `fftconv`.
        initial_state: as for `fftconv`.
        d_final_state: where `fftconv` returned a final state, its gradient, of that shape and dtype: the gradients are
            those of ``sum(dy * y) + sum(d_final_state * final_state)``.
        precision: as for `fftconv`, but "medium" is for taps: with a prepared filter gradients are computed in float32.
        intermediate: as for `fftconv`; what lies between the passes of gradients is float32 in any case.

    Returns:
        A named tuple of ``u``, ``k``, ``in_gate``, ``out_gate``, ``skip``: for each a new contiguous array of the
        shape and dtype of the argument and of the framework and device of `u`, or None where it was not asked for. The
        gradient of `k` is summed over the batch, and over the channels where one row serves all; it is 0 for taps that
        reach no output. That of `skip` is summed over batch and points. Where B is 0 these two are 0.
        Where `initial_state` was given, a last field ``initial_state`` holds its gradient, or None likewise.

    Raises:
        InvalidTypeError: as for `fftconv`, and where `wrt` holds something else than strings.
        InvalidArgumentError: as for `fftconv`, and where `wrt` is empty, or names something else than an array of this
            call, such as a prepared filter. Its subclass UnsupportedProblemError: the transform does not fit the GPU.
        MissingDependencyError, UnsupportedDeviceError, CompileError: as for `fftconv`.

    Example:
        >>> import numpy as np
        >>> u, k = np.array([[1, 2, 3]], np.float32), np.array([[1, 10]], np.float32)
        >>> grads = fftconv_vjp(np.ones((1, 3), np.float32), u, k)
        >>> grads.u, grads.k, grads.skip
        (array([[11., 11.,  1.]], dtype=float32), array([[6., 3.]], dtype=float32), None)
    """
    handle = None if stream is None else arrays.stream_handle(stream)
    arguments = VjpArguments(
        view(u, "u", handle),
        k if type(k) is FilterSpectrum else view(k, "k", handle),
        None if in_gate is None else view(in_gate, "in_gate", handle),
        None if out_gate is None else view(out_gate, "out_gate", handle),
        None if skip is None else view(skip, "skip", handle),
        initial_state=None if initial_state is None else view(initial_state, "initial_state", handle),
        dy=view(dy, "dy", handle),
        d_final_state=None if d_final_state is None else view(d_final_state, "d_final_state", handle),
        wrt=None if wrt is None else _names(wrt),
    )
    call = resolved(arguments, mode, fft_size, precision, intermediate)
    device = arguments.u.device
    if stream is not None:
        arrays.check_stream_device(stream, device)
    if device < 0:
        return execute.vjp_on_cpu(call, arguments)
    if device == arrays.current_device():
        return execute.vjp_on_gpu(call, arguments, handle)
    with arrays.use_device(device):
        return execute.vjp_on_gpu(call, arguments, handle)


def _names(wrt: Iterable[object]) -> tuple[object, ...]:
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
                do="Pass wrt=('u', 'k') and the like.",
            )
        ) from None
