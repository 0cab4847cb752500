"""The public functions: read the arrays, check everything, then compute on the arrays' own device."""

from __future__ import annotations

from typing import Any

from fftconv_cupy import arrays, execute
from fftconv_cupy.arrays import view
from fftconv_cupy.autograd import by_operator, is_differentiated
from fftconv_cupy.checks import Arguments, Call, filter_problem, resolve
from fftconv_cupy.errors import InvalidTypeError
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.out_checks import check_out_memory
from fftconv_cupy.remembered import Remembered

_calls: Remembered[tuple[object, ...], Call] = Remembered()


def fftconv(
    u: Any,
    k: Any,
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: Any = None,
    out_gate: Any = None,
    skip: Any = None,
    out: Any = None,
    stream: Any = None,
    initial_state: Any = None,
    return_final_state: bool = False,
    precision: str | None = None,
    intermediate: str | None = None,
) -> Any:
    """Convolve the rows of `u` with the filter `k`: ``out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))``.

    Arrays may come from torch, JAX, CuPy or NumPy, or be anything with ``__dlpack__`` or ``__cuda_array_interface__``;
    all of one call come from one framework and lie on one device. On a GPU nothing is copied and nothing waits: the
    kernels are put on the stream and the call returns. On the CPU, NumPy computes the same in float64.

    Any strides along batch and channel are used as they are, but an input whose last axis does not have unit stride is
    copied once on a GPU, as is a `skip` with gaps. Arithmetic on a GPU is float32, or as `precision` says, and only the
    result is rounded to the dtype of `u`. A value that is not finite may make its own row not finite, and no other.

    Tensors that torch differentiates go to `fftconv_cupy.torch.fftconv`, which is differentiable.

    On a GPU, workspace comes from torch's pool for torch tensors, else from CuPy's, as do the outputs for JAX; JAX
    itself takes 75 % of the memory as it starts, unless XLA_PYTHON_CLIENT_PREALLOCATE=false is set. Arrays of JAX and
    of frameworks other than the four are held until a later call that uses such arrays finds the kernels done with
    them. Into a CUDA graph, calls with CuPy arrays can be captured with a prepared filter and no copied input, unless
    rows outgrow a block; those with torch tensors, under ``torch.cuda.graph``, always; the kernels must be loaded
    before (`warmup`).

    Args:
        u: (B, H, L), (H, L) or (L,): batch, channels, points; float16, bfloat16 or float32 (float64 too on the CPU).
            B may be 0; H and L may not.
        k: the filter, (H, K), or (K,) for all channels (for u of shape (L,) it is (K,)), of any of these dtypes
            whatever that of `u`. Or the result of `prepare_filter`.
        mode: with ``full[i] = sum_j u[i - j] k[j]``, i = 0 .. L+K-2, the output of a row is

            - ``"causal"``: its first L points; taps from L on do not matter;
            - ``"full"``: all L + K - 1 points;
            - ``"same"``: the L points from (K - 1) // 2 on;
            - ``"circular"``: the first L points of the circular convolution of size N = `fft_size` (default L, of any
              value) of the row, padded with zeros to N; `k` is folded modulo N.
        fft_size: real points of the transform, a power of two from 2 to what the GPU holds. In the linear modes the
            default is the smallest that keeps the outputs free of wrapped terms, and a larger one changes nothing: the
            kernels take the fewest points that will do, 3 * 2^k where these are faster (`plan` tells).
        in_gate: shape and dtype of `u`.
        out_gate: shape of the output, dtype of `u`.
        skip: (H,), float32 or of the dtype of `u`, added at the index of the input (t < L); (1,) for u of shape (L,).
        out: array for the result, with its shape, dtype, framework and device: writeable, of unit stride along the last
            axis, sharing no memory with an input. Not for JAX, whose arrays cannot be written to.
        stream: CUDA stream on the arrays' device to compute on: an int handle, or an object with ``.ptr`` or
            ``.cuda_stream``. Default: the current stream of the framework (of CuPy for JAX arrays, ordered after what
            JAX still computes). Not for arrays on the CPU. torch is told that the stream uses its tensors; CuPy has no
            such notice: keep its arrays alive until the stream has passed the call.
        initial_state: (B, H, K - 1) float32 (float64 where `u` is), with as many axes as `u`: what came before the
            rows, ``in_gate * u``, oldest first, zeros where less came. Default: zeros. Only in mode "causal", with K
            up to 16384. A row can be computed in parts of any lengths, each with the final state of the one before.
        return_final_state: also return the state after the rows, of the shape and dtype of an initial one.
        precision: the least exact arithmetic that will do, on a GPU: "highest" (float32), "high", or "medium" (tensor
            cores with 16-bit sums and twiddles). Default: that of a prepared filter, else "highest", the one whose
            error stays within 1.2 times the rounding of the output for every filter and in every row.
            Float32 arithmetic is used whatever is asked for where tensor cores were not measured to be faster: float32
            rows, GPUs before sm_80, most lengths, circular convolutions; "high" always means it. `plan` tells.
        intermediate: "float32" keeps what lies in memory between the passes of long rows in float32. Default: float16
            with scales of its own for outputs of 16-bit rows above an FFT size of 32768, whose error then stays within
            twice the rounding of the output; float32 for all else. Rows that a GPU transforms in one pass have nothing
            between, whatever is asked for. `plan` tells.

    Returns:
        The output, of the shape of `u`, but L + K - 1 points in mode "full": `out` where it was given, else a new
        contiguous array of the framework, device and dtype of `u`. For other frameworks than the four named it is a
        CuPy array on a GPU and a NumPy array on the CPU. With `return_final_state`, a tuple of it and the final state.

    Raises:
        InvalidTypeError: an argument is not an array, has a dtype that is not allowed, or comes from another framework
            or device than `u`; a JAX tracer.
        InvalidArgumentError: a shape, mode, `fft_size`, `out`, state or prepared filter that does not go with the rest;
            `out` or `stream` with tensors that torch differentiates.
            Its subclass UnsupportedProblemError: the transform does not fit the GPU.
        MissingDependencyError: the arrays are on a GPU and CuPy or NVRTC is not installed.
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        CompileError: a kernel could not be compiled.

    Example:
        >>> import numpy as np
        >>> fftconv(np.ones((1, 4), np.float32), np.array([1, 2, 3], np.float32))
        array([[1., 3., 6., 6.]], dtype=float32)
    """
    handle = None if stream is None else arrays.stream_handle(stream)
    arguments: Arguments | None = None
    try:
        arguments = Arguments(
            view(u, "u", handle),
            k if type(k) is FilterSpectrum else view(k, "k", handle),
            None if in_gate is None else view(in_gate, "in_gate", handle),
            None if out_gate is None else view(out_gate, "out_gate", handle),
            None if skip is None else view(skip, "skip", handle),
            None if out is None else view(out, "out", handle),
            None if initial_state is None else view(initial_state, "initial_state", handle),
        )
        arguments.returns_state = bool(return_final_state)
    except InvalidTypeError:
        if not any(map(is_differentiated, (u, k, in_gate, out_gate, skip, initial_state))):
            raise
    if arguments is None:
        optional = {"in_gate": in_gate, "out_gate": out_gate, "skip": skip}
        optional |= {"precision": precision, "intermediate": intermediate}
        states = {"initial_state": initial_state, "return_final_state": return_final_state}
        return by_operator(u, k, mode=mode, fft_size=fft_size, **optional, **states, out=out, stream=stream)
    call = resolved(arguments, mode, fft_size, precision, intermediate)
    device = arguments.u.device
    if arguments.out is not None:
        check_out_memory(call.spans, arguments, arguments.out)
    if stream is not None:
        arrays.check_stream_device(stream, device)
    if device < 0:
        return execute.on_cpu(call, arguments, out)
    if device == arrays.current_device():
        return execute.on_gpu(call, arguments, out, handle)
    with arrays.use_device(device):
        return execute.on_gpu(call, arguments, out, handle)


def prepare_filter(
    k: Any,
    *,
    seqlen: int,
    mode: str = "causal",
    fft_size: int | None = None,
    stream: Any = None,
    initial_state: bool = False,
    precision: str | None = None,
) -> FilterSpectrum:
    """Transform a filter once, for any number of calls of `fftconv` that take the result in place of `k`.

    The result serves any batch size, gates, skip and dtype of the input, and any framework, but only rows of `seqlen`
    points, this `mode`, this `fft_size`, the channels of `k` and its device: with anything else `fftconv` raises. On a
    GPU it is filled on the stream like any output; to use it on another stream, order that one after it, and keep the
    spectrum alive until that one is done with it.

    Args:
        k: the filter, (H, K), or (K,) for all channels, as for `fftconv`.
        seqlen: L, points of the rows that it will convolve.
        mode: as for `fftconv`.
        fft_size: as for `fftconv`, which is then called with the same.
        stream: as for `fftconv`.
        initial_state: calls may have an initial state.
        precision: of the calls; "medium" is for rows of float16 and bfloat16 only. Default: "highest", which serves
            rows of every dtype, and gradients.

    Returns:
        The spectrum, 8 bytes a complex point and channel on a GPU. Its attributes cannot be changed; its `data` must
        not be written to. It cannot be pickled.

    Raises:
        InvalidTypeError, InvalidArgumentError, UnsupportedProblemError, MissingDependencyError,
        UnsupportedDeviceError, CompileError: as for `fftconv`.

    Example:
        >>> import numpy as np
        >>> k = prepare_filter(np.array([1, 2, 3], np.float32), seqlen=4)
        >>> fftconv(np.ones((1, 4), np.float32), k)
        array([[1., 3., 6., 6.]], dtype=float32)
    """
    handle = None if stream is None else arrays.stream_handle(stream)
    taps = view(k, "k", handle)
    problem = filter_problem(taps, seqlen, mode, fft_size, initial_state=bool(initial_state), precision=precision)
    if stream is not None:
        arrays.check_stream_device(stream, taps.device)
    if taps.device < 0:
        return execute.prepare_on_cpu(problem, taps)
    with arrays.use_device(taps.device):
        return execute.prepare_on_gpu(problem, taps, handle)


def resolved(
    arguments: Arguments,
    mode: str,
    fft_size: int | None,
    precision: str | None = None,
    intermediate: str | None = None,
) -> Call:
    """Return the checked call; one look-up where a call of the same signature has been checked before."""
    key = (precision, intermediate, *arguments.signature(mode, fft_size))
    try:
        call = _calls.get(key)
    except TypeError:  # a mode or size that cannot be hashed: resolve refuses it in words
        call = None
    if call is None:
        call = _calls.keep(key, resolve(arguments, mode, fft_size, precision, intermediate))
    return call
