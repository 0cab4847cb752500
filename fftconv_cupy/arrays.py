"""The one boundary to the array frameworks: arrays in (`readers`), and outputs, workspace, streams and copies here.

No other module knows that frameworks exist. Memory on a GPU is always taken from the pool of the framework that gets
it, on the stream that it is used on, so the framework's own rules of reuse hold.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import threading
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.problem import ITEM_BYTES
from fftconv_cupy.readers import BFLOAT16, NUMPY_DTYPES, ArrayView, cupy_stream, device_name, view
from fftconv_cupy.remembered import Made

__all__ = [
    "ArrayView",
    "byte_span",
    "check_stream_device",
    "contiguous_strides",
    "current_device",
    "current_stream",
    "device_name",
    "empty",
    "hand_over",
    "keep_alive",
    "mark_written",
    "record_use",
    "refuse_capture",
    "shares_memory",
    "stream_handle",
    "to_numpy",
    "unit_stride",
    "upload",
    "use_device",
    "view",
    "zero",
]

_OVERLAP_WORK = 10_000  # candidate solutions that NumPy may try before two interleaved arrays count as overlapping


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous array of `shape`."""
    return _contiguous[shape]


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    step, reversed_strides = 1, []
    for size in reversed(shape):
        reversed_strides.append(step)
        step *= size
    return tuple(reversed(reversed_strides))


_contiguous = Made(_contiguous_strides)


def empty(like: ArrayView, shape: tuple[int, ...], dtype: str, stream: int | None) -> tuple[Any, ArrayView]:
    """Allocate a C-contiguous array where and as the framework of `like` does.

    Args:
        like: gives framework and device, the current one where it is a GPU. JAX does not hand out memory to write to:
            its outputs are CuPy arrays (NumPy on the CPU) until `hand_over`.
        shape: of the new array.
        dtype: one of "float16", "bfloat16", "float32", "float64".
        stream: handle of the stream that the memory will be used on; None means the current one of the framework.
            Of no meaning on the CPU.

    Returns:
        The array, and its view (the view's `dtype` is `dtype`).
    """
    strides = _contiguous[shape]
    device = like.device
    if like.framework == "torch":
        torch = sys.modules["torch"]
        native, kind = torch._C, getattr(torch, dtype)
        if device < 0:
            tensor = torch.empty(shape, dtype=kind, device="cpu")
        elif stream is not None and stream != native._cuda_getCurrentRawStream(device):
            with _torch_stream(torch, device, stream):
                tensor = torch.empty(shape, dtype=kind, device=f"cuda:{device}")
        elif native._cuda_getDevice() == device:
            # The call that compiled graphs use, in a third of the time of torch.empty. It takes what torch holds for
            # the current device: not that which CuPy has set where torch has yet to set its own.
            tensor = native._dynamo.guards._empty_strided_cuda(tuple(shape), strides, kind)
        else:
            tensor = torch.empty(shape, dtype=kind, device=f"cuda:{device}")
        return tensor, ArrayView(tensor.data_ptr(), shape, strides, dtype, device, "torch", tensor)
    if device < 0:
        array = np.empty(shape, NUMPY_DTYPES[dtype])
        return array, ArrayView(array.ctypes.data, shape, strides, dtype, -1, "numpy", array)
    cupy = import_cupy()
    if stream is None or stream == cupy.cuda.get_current_stream(device).ptr:
        array = cupy.ndarray(shape, NUMPY_DTYPES[dtype])  # cupy.empty without its own call
    else:
        with cupy_stream(cupy, device, stream):
            array = cupy.ndarray(shape, NUMPY_DTYPES[dtype])
    return array, ArrayView(array.data.ptr, shape, strides, dtype, device, "cupy", array)


def unit_stride(array: ArrayView, stream: int) -> ArrayView:
    """Return a view of a C-contiguous copy of a GPU array, made on `stream`."""
    device, owner = array.device, array.owner
    if array.framework == "torch":
        torch = sys.modules["torch"]
        with _torch_stream(torch, device, stream):
            # contiguous() returns the tensor itself where it takes it for contiguous already; clone() always copies.
            copy = owner.detach().clone(memory_format=torch.contiguous_format)
        return ArrayView(
            copy.data_ptr(), array.shape, contiguous_strides(array.shape), array.dtype, device, "torch", copy
        )
    cupy = import_cupy()
    with cupy_stream(cupy, device, stream):
        # Bits are bits: CuPy need not know how to compute with bfloat16.
        bits = owner.view(np.uint16) if owner.dtype == BFLOAT16 else owner
        copy = bits.copy(order="C").view(owner.dtype)
    return ArrayView(
        copy.data.ptr, array.shape, contiguous_strides(array.shape), array.dtype, device, array.framework, copy
    )


def zero(array: ArrayView, stream: int) -> None:
    """Fill a contiguous array on the current GPU with zeros, asynchronously on `stream`."""
    first, past = byte_span(array)
    if past > first:
        import_cupy().cuda.runtime.memsetAsync(array.ptr, 0, past - first, stream)


def upload(table: np.ndarray[Any, Any], device: int) -> Any:
    """Return a CuPy array with the content of `table` on a GPU, complete: any stream may read it at once."""
    cupy = import_cupy()
    with cupy.cuda.Device(device):
        array = cupy.asarray(table)
        cupy.cuda.get_current_stream(device).synchronize()
    return array


def current_stream(array: ArrayView) -> int:
    """Return the handle of the current stream of the array's framework on the array's device (of CuPy for JAX)."""
    if array.framework == "torch":
        return cast(int, sys.modules["torch"]._C._cuda_getCurrentRawStream(array.device))
    return cast(int, import_cupy().cuda.get_current_stream(array.device).ptr)


def stream_handle(stream: Any) -> int:
    """Return the handle of a CUDA stream given as an int, or as an object with ``.ptr`` or ``.cuda_stream``.

    Raises:
        InvalidTypeError: it is neither.
        InvalidArgumentError: the handle is negative.
    """
    handle = stream
    for attribute in ("ptr", "cuda_stream"):
        if hasattr(stream, attribute):
            handle = getattr(stream, attribute)
            break
    try:
        if isinstance(handle, bool):
            raise TypeError
        number = operator.index(handle)
    except TypeError:
        got = f"{stream!r} of type {type(stream).__name__}"
        raise InvalidTypeError(
            message(
                "stream",
                got=got,
                allowed="an int handle, or an object with .ptr or .cuda_stream",
                do="Pass a stream of CuPy or torch, its handle, or None for the current stream.",
            )
        ) from None
    if number < 0:
        raise InvalidArgumentError(
            message("stream", got=number, allowed="a handle >= 0", do="Pass the handle of a CUDA stream.")
        )
    return number


def check_stream_device(stream: Any, device: int) -> None:
    """Refuse a stream object for arrays on the CPU, or one that names another device than the arrays'.

    Raises:
        InvalidArgumentError: the arrays are on the CPU.
        InvalidTypeError: the stream belongs to another GPU.
    """
    if device < 0:
        raise InvalidArgumentError(
            message("stream", got=f"{stream!r} for arrays on the CPU", allowed="None there", do="Leave stream out.")
        )
    # torch says device_index, CuPy device_id; CuPy's default streams, of every device, have -1.
    owner = getattr(stream, "device_index", getattr(stream, "device_id", device))
    if isinstance(owner, int) and owner >= 0 and owner != device:
        raise InvalidTypeError(
            message(
                "stream",
                got=f"a stream of {device_name(owner)}",
                allowed=f"a stream of {device_name(device)}, where the arrays are",
                do="Pass a stream of that device, or move the arrays.",
            )
        )


def current_device() -> int:
    """Return the CUDA ordinal of the calling thread's current device."""
    return cast(int, import_cupy().cuda.runtime.getDevice())


def use_device(device: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `device` is the current CUDA device."""
    return cast("contextlib.AbstractContextManager[Any]", import_cupy().cuda.Device(device))


def to_numpy(array: ArrayView) -> np.ndarray[Any, Any]:
    """Return a CPU array as the NumPy array that shares its memory."""
    if array.framework == "torch":
        tensor = array.owner.detach()
        if array.dtype == "bfloat16":
            return cast("np.ndarray[Any, Any]", tensor.view(sys.modules["torch"].int16).numpy().view(BFLOAT16))
        return cast("np.ndarray[Any, Any]", tensor.numpy())
    return np.asarray(array.owner)


def mark_written(array: ArrayView) -> None:
    """Tell torch that a tensor given as ``out`` has changed, so that autograd refuses a stale saved copy of it."""
    if array.framework == "torch" and not array.owner.is_inference():
        sys.modules["torch"].autograd.graph.increment_version(array.owner)


def hand_over(result: Any, like: ArrayView, stream: int) -> Any:
    """Turn an output made by `empty` for a JAX array into a JAX array, without a copy on a GPU.

    Args:
        result: the CuPy array (NumPy on the CPU); the caller must not keep it.
        like: the JAX input.
        stream: handle of the stream that fills `result`.
    """
    jax = sys.modules["jax"]
    if like.device < 0:
        return jax.device_put(result, next(iter(like.owner.devices())))
    if result.size == 0:
        gpu = next(gpu for gpu in jax.local_devices(backend="cuda") if gpu.local_hardware_id == like.device)
        return jax.device_put(np.empty(result.shape, result.dtype), gpu)
    # JAX takes the array over in the order of CuPy's current stream.
    with cupy_stream(import_cupy(), like.device, stream):
        return jax.dlpack.from_dlpack(result)


_in_flight: list[tuple[Any, tuple[Any, ...]]] = []
_in_flight_lock = threading.Lock()


def keep_alive(owners: tuple[Any, ...], device: int, stream: int) -> None:
    """Keep borrowed arrays until `stream` has passed this point.

    JAX may reuse the memory of an array as soon as the last reference to it is gone, whatever still runs on a stream
    that it does not know; so may a framework that is not known here. Arrays of earlier calls whose point has passed are
    let go now, so those of the last call stay until the next one.
    """
    cupy = import_cupy()
    event = cupy.cuda.Event(disable_timing=True)
    event.record(cupy_stream(cupy, device, stream))
    with _in_flight_lock:
        _in_flight[:] = [entry for entry in _in_flight if not entry[0].done]
        _in_flight.append((event, owners))


def record_use(owners: Iterable[Any], device: int, stream: int) -> None:
    """Tell torch's allocator that `stream` uses these arrays, so that it does not reuse their memory too early.

    Args:
        owners: arrays; those that are no tensors are left alone.
        device: of the tensors.
        stream: handle of the stream; nothing is told where it is torch's current one.
    """
    torch = sys.modules["torch"]
    if stream != torch._C._cuda_getCurrentRawStream(device):
        user = _torch_other_stream(torch, device, stream)
        for owner in owners:
            if isinstance(owner, torch.Tensor):
                owner.record_stream(user)


def refuse_capture(stream: int) -> None:
    """Refuse a stream that is being captured into a CUDA graph.

    CuPy's pool would give workspace and copies to others when the call returns, while the graph goes on using them.

    Raises:
        InvalidArgumentError: it is being captured.
    """
    if import_cupy().cuda.runtime.streamIsCapturing(stream):
        raise InvalidArgumentError(
            message(
                "stream",
                got="a stream being captured into a CUDA graph, for a call that takes workspace",
                allowed="for a capture: a prepared filter and CuPy arrays of unit stride along the last axis, or torch",
                do="Call prepare_filter before the capture, pass contiguous arrays, ask for no gradient of k or skip.",
            )
        )


def _torch_stream(torch: Any, device: int, stream: int) -> contextlib.AbstractContextManager[Any]:
    if stream == torch._C._cuda_getCurrentRawStream(device):
        return contextlib.nullcontext()
    other = _torch_other_stream(torch, device, stream)
    return cast("contextlib.AbstractContextManager[Any]", torch.cuda.stream(other))


def _torch_other_stream(torch: Any, device: int, stream: int) -> Any:
    # torch takes the lowest bit of a handle for a mark of its own: 1, CUDA's other name of the default stream, is none.
    if stream in (0, 1):
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(stream, device=device)


def shares_memory(a: ArrayView, b: ArrayView) -> bool:
    """Return whether any byte belongs to both; arrays may interleave, such as parts of one tensor, and share none."""
    try:
        return np.shares_memory(_shadow(a), _shadow(b), max_work=_OVERLAP_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def byte_span(array: ArrayView) -> tuple[int, int]:
    """Return the bytes from an address to its array's first byte (<= 0) and past the last; (0, 0) where it is empty."""
    if 0 in array.shape:
        return 0, 0
    first = last = 0
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            first += (size - 1) * stride
        else:
            last += (size - 1) * stride
    item = ITEM_BYTES[array.dtype]
    return first * item, (last + 1) * item


def _shadow(array: ArrayView) -> np.ndarray[Any, Any]:
    """Return a NumPy array with the addresses of `array`, which may be a GPU's: it must never be read."""
    return np.asarray(_Addresses(array))


class _Addresses:
    def __init__(self, array: ArrayView) -> None:
        item = ITEM_BYTES[array.dtype]
        self.__array_interface__ = {
            "data": (array.ptr, True),
            "shape": tuple(array.shape),
            "strides": tuple(stride * item for stride in array.strides),
            "typestr": f"|V{item}",
            "version": 3,
        }
