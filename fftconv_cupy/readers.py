"""Arrays of every framework, read into one record without a copy.

A framework is recognised by the type of the array and through ``sys.modules``; none is ever imported here, but CuPy
when an array on a GPU comes. `arrays` is the other half of the boundary: outputs, streams, copies.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.problem import ITEM_BYTES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
ALLOWED_DTYPES = "float16, bfloat16 or float32, and float64 on the CPU"

_DTYPE_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED = 1, 2, 3, 13
_ARRAYS = "an array of NumPy, CuPy, torch or JAX, or any object with __dlpack__ or __cuda_array_interface__"


class ArrayView:
    """An array as the kernels see it.

    Attributes:
        ptr: address of the first element; 0 where the array is empty.
        shape: as in the framework.
        strides: in elements, as many as `shape` has entries.
        dtype: name of the dtype, one of "float16", "bfloat16", "float32", "float64".
        device: CUDA ordinal, or -1 for the CPU.
        framework: "numpy", "cupy", "torch" or "jax"; the one that allocates what is returned. Arrays of any other
            framework are taken as the CuPy (GPU) or NumPy (CPU) array that shares their memory.
        owner: array of `framework` that keeps the memory alive; for a JAX array on a GPU the CuPy array that shares it.
        is_borrowed: GPU memory of a framework whose rules of reuse are not known here (JAX, or one read through a
            protocol): `owner` must live until the kernels are done.
    """

    __slots__ = ("device", "dtype", "framework", "is_borrowed", "owner", "ptr", "shape", "strides")

    def __init__(
        self,
        ptr: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: str,
        device: int,
        framework: str,
        owner: Any,
    ) -> None:
        self.ptr = ptr
        self.shape = shape
        self.strides = strides
        self.dtype = dtype
        self.device = device
        self.framework = framework
        self.owner = owner
        self.is_borrowed = False

    def __repr__(self) -> str:
        """Return shape, strides, dtype and place, without the data."""
        place = device_name(self.device)
        return f"ArrayView({self.framework}, {tuple(self.shape)}, strides {tuple(self.strides)}, {self.dtype}, {place})"


Reader = Callable[[Any, str, "int | None"], ArrayView]


def view(obj: Any, name: str, stream: int | None = None) -> ArrayView:
    """Read an array.

    Args:
        obj: the array.
        name: of the argument, for messages.
        stream: handle of the CUDA stream that the array will be used on; None for the current one of its framework.

    Raises:
        InvalidTypeError: not an array, or one whose dtype, device, layout or state cannot be used.
        InvalidArgumentError: an array whose address or strides are no multiple of its element's size.
        MissingDependencyError: the array is on a GPU and CuPy is not installed.
    """
    reader = _READERS.get(type(obj))
    if reader is None:
        reader = _READERS[type(obj)] = _reader_for(type(obj))
    return reader(obj, name, stream)


def device_name(device: int) -> str:
    """Return "the CPU" or "cuda:<ordinal>"."""
    return "the CPU" if device < 0 else f"cuda:{device}"


def _reader_for(kind: type) -> Reader:
    torch, jax, cupy = (sys.modules.get(name) for name in ("torch", "jax", "cupy"))
    if issubclass(kind, np.ma.MaskedArray):
        return _refuse_masked
    if issubclass(kind, np.ndarray):
        return _read_numpy
    if torch is not None and issubclass(kind, torch.Tensor):
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:  # type: ignore[attr-defined]
            return _refuse_wrapped_tensor
        return _torch_reader(torch)
    if cupy is not None and issubclass(kind, cupy.ndarray):
        return _read_cupy
    if jax is not None and issubclass(kind, jax.core.Tracer):
        return _refuse_tracer
    if jax is not None and issubclass(kind, jax.Array):
        return _read_jax
    return _read_any


def _read_numpy(array: Any, name: str, stream: int | None) -> ArrayView:
    dtype = _dtype_name(array.dtype, name)
    strides = _element_strides(array.strides, array.dtype.itemsize, name)
    return ArrayView(array.ctypes.data, array.shape, strides, dtype, -1, "numpy", array)


def _read_cupy(array: Any, name: str, stream: int | None) -> ArrayView:
    dtype = _DTYPE_NAMES.get(array.dtype) or _dtype_name(array.dtype, name)
    item_bytes = ITEM_BYTES[dtype]
    memory = array.data
    ptr = memory.ptr
    if ptr % item_bytes:
        _refuse_misaligned(name, ptr, item_bytes)
    strides = _element_strides(array.strides, item_bytes, name)
    return ArrayView(ptr, array.shape, strides, dtype, memory.device_id, "cupy", array)


def _torch_reader(torch: Any) -> Reader:
    """Return the reader of tensors; a closure, because a look-up of ``torch`` in every call would cost more than it."""
    dtypes = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
    is_grad_enabled = torch.is_grad_enabled
    forward_ad = torch.autograd.forward_ad
    unpack_dual, is_fwd_grad_enabled = forward_ad.unpack_dual, torch._C._is_fwd_grad_enabled

    def read_torch(tensor: Any, name: str, stream: int | None) -> ArrayView:
        if tensor.requires_grad and is_grad_enabled():
            _refuse_gradient(name)
        if forward_ad._current_level >= 0 and is_fwd_grad_enabled() and unpack_dual(tensor).tangent is not None:
            _refuse_gradient(name)
        dtype = dtypes.get(tensor.dtype)
        if dtype is None:
            _refuse_dtype(name, str(tensor.dtype).removeprefix("torch."))
        try:
            ptr = tensor.data_ptr()
            shape = tensor.shape
            strides = tensor.stride()
        except RuntimeError as error:
            _refuse_tensor(name, tensor, error)
        if ptr % ITEM_BYTES[dtype]:
            _refuse_misaligned(name, ptr, ITEM_BYTES[dtype])
        if tensor.is_neg():
            _refuse_negated(name)
        if tensor.is_cuda:
            return ArrayView(ptr, shape, strides, dtype, tensor.get_device(), "torch", tensor)
        if not tensor.is_cpu or (ptr == 0 and tensor.numel()):
            _refuse_tensor(name, tensor, None)
        return ArrayView(ptr, shape, strides, dtype, -1, "torch", tensor)

    return read_torch


def _read_jax(array: Any, name: str, stream: int | None) -> ArrayView:
    dtype = _dtype_name(array.dtype, name)
    if array.is_deleted():
        _refuse(name, "a deleted JAX array", "an array that still has its data", "Do not donate or delete it before.")
    devices = array.devices()
    if len(devices) > 1:
        _refuse(
            name,
            f"a JAX array sharded over {len(devices)} devices",
            "an array on one device",
            "Call fftconv on each shard (array.addressable_shards), or gather it with jax.device_put.",
        )
    platform = next(iter(devices)).platform
    if platform == "cpu":
        host = np.asarray(array)
        strides = _element_strides(host.strides, host.dtype.itemsize, name)
        return ArrayView(host.ctypes.data, host.shape, strides, dtype, -1, "jax", array)
    if platform not in ("gpu", "cuda"):
        _refuse(name, f"a JAX array on platform {platform!r}", "the CPU or a CUDA GPU", "Move it with jax.device_put.")
    shared = _read_dlpack(array, name, stream)
    shared.framework = "jax"
    return shared


def _read_any(obj: Any, name: str, stream: int | None) -> ArrayView:
    """Read an object of an unknown type through the protocols that it has."""
    if _has(obj, "__dlpack__") and _has(obj, "__dlpack_device__"):
        return _read_dlpack(obj, name, stream)
    if _has(obj, "__cuda_array_interface__"):
        cupy = import_cupy()
        try:
            return _read_cuda_interface(cupy, obj, name, stream)
        except (TypeError, ValueError) as error:
            _refuse(name, f"an object of type {_type_name(obj)} ({error})", _ARRAYS, "Convert it to one of these.")
    _refuse(name, _shown(obj), _ARRAYS, "Convert it, for example with numpy.asarray, and give it a float dtype.")


def _read_cuda_interface(cupy: Any, obj: Any, name: str, stream: int | None) -> ArrayView:
    """Read an object by its CUDA array interface, ordered after the stream that the interface names."""
    interface = dict(obj.__cuda_array_interface__)
    producer = interface.pop("stream", None)  # left in, CuPy would wait for it on the host
    shared = _read_cupy(cupy.asarray(SimpleNamespace(__cuda_array_interface__=interface, owner=obj)), name, stream)
    shared.is_borrowed = True
    if producer is not None:
        with cupy.cuda.Device(shared.device):
            event = cupy.cuda.Event(disable_timing=True)
            event.record(cupy_stream(cupy, shared.device, producer))
            cupy_stream(cupy, shared.device, stream).wait_event(event)
    return shared


def _read_dlpack(obj: Any, name: str, stream: int | None) -> ArrayView:
    # NumPy reports a dtype that it does not know as RuntimeError; CuPy's are CUDA's errors, and none of ours.
    refusals: tuple[type[Exception], ...] = (BufferError, TypeError, ValueError)
    try:
        kind, ordinal = obj.__dlpack_device__()
        if kind in (_DLPACK_CPU, _DLPACK_CUDA_HOST):
            refusals += (RuntimeError,)
            shared = np.from_dlpack(obj)
        elif kind in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED):
            cupy = import_cupy()
            with cupy.cuda.Device(ordinal):
                current, target = cupy.cuda.get_current_stream(ordinal), cupy_stream(cupy, ordinal, stream)
                if target.ptr != current.ptr:  # an exporter built on CuPy would take `target` for its own stream
                    target.wait_event(current.record())
                with target:
                    shared = cupy.from_dlpack(obj)
        else:
            got = f"an object of type {_type_name(obj)} on DLPack device type {int(kind)}"
            _refuse(name, got, "the CPU or a CUDA GPU", "Copy it there.")
    except refusals as error:
        if isinstance(error, InvalidTypeError):
            raise
        _refuse(
            name,
            f"an object of type {_type_name(obj)} whose DLPack export fails ({error})",
            f"a strided array of {ALLOWED_DTYPES}",
            "Convert it to a NumPy or CuPy array first.",
        )
    if isinstance(shared, np.ndarray):
        return _read_numpy(shared, name, stream)
    seen = _read_cupy(shared, name, stream)
    seen.is_borrowed = True
    return seen


def cupy_stream(cupy: Any, device: int, stream: int | None) -> Any:
    """Return a context in which `stream` is CuPy's current stream; None stands for the one that already is."""
    if stream is None:
        return cupy.cuda.get_current_stream(device)
    if stream in (0, 1):
        return cupy.cuda.Stream.null
    if stream == 2:
        return cupy.cuda.Stream.ptds
    return cupy.cuda.Stream.from_external(_ExternalStream(stream))


class _ExternalStream:
    """A stream that somebody else owns, in the form that CuPy takes (the CUDA stream protocol, version 0)."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._handle)


@functools.lru_cache(maxsize=4096)
def _element_strides(strides: tuple[int, ...], item_bytes: int, name: str) -> tuple[int, ...]:
    """Return strides in elements for strides in bytes."""
    if not any(stride % item_bytes for stride in strides):
        return tuple(stride // item_bytes for stride in strides)
    raise InvalidArgumentError(
        message(
            f"{name}.strides",
            got=f"{strides} bytes",
            allowed=f"multiples of the element's {item_bytes} bytes",
            do=f"Pass a contiguous copy of {name}.",
        )
    )


def _dtype_name(dtype: Any, name: str) -> str:
    found = _DTYPE_NAMES.get(dtype)
    if found is None:
        _refuse_dtype(name, str(dtype), is_swapped=getattr(dtype, "isnative", True) is False)
    return found


def _has(obj: Any, attribute: str) -> bool:
    """Return whether `obj` has the attribute; some frameworks raise errors of their own when it is looked up."""
    try:
        return getattr(obj, attribute, None) is not None
    except Exception:
        return False


def _type_name(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _shown(obj: Any) -> str:
    if obj is None:
        return "None"
    if isinstance(obj, (bool, int, float, complex, str)):
        return f"{obj!r} of type {type(obj).__name__}"
    return f"an object of type {_type_name(obj)}"


def _refuse(name: str, got: str, allowed: str, do: str) -> NoReturn:
    raise InvalidTypeError(message(name, got=got, allowed=allowed, do=do))


def _refuse_dtype(name: str, dtype: str, *, is_swapped: bool = False) -> NoReturn:
    do = f"Convert {name} to a real floating-point dtype of these."
    if is_swapped:
        dtype += " (byte-swapped)"
        do = f"Convert {name} to native byte order: array.astype(array.dtype.newbyteorder('='))."
    _refuse(f"{name}.dtype", dtype, ALLOWED_DTYPES, do)


def _refuse_misaligned(name: str, ptr: int, item_bytes: int) -> NoReturn:
    raise InvalidArgumentError(
        message(
            f"{name}'s address",
            got=hex(ptr),
            allowed=f"a multiple of the element's {item_bytes} bytes",
            do=f"Pass a copy of {name}.",
        )
    )


def _refuse_gradient(name: str) -> NoReturn:
    _refuse(
        name,
        "a torch tensor that requires grad, or has a tangent, while grad mode is on",
        "tensors that need no gradient here, where it would be lost",
        f"Call it under torch.no_grad(), or pass {name}.detach().",
    )


def _refuse_negated(name: str) -> NoReturn:
    _refuse(
        name,
        "a torch tensor with the negative bit set",
        "a tensor whose memory holds its values",
        f"Pass {name}.resolve_neg().",
    )


def _refuse_tensor(name: str, tensor: Any, error: Exception | None) -> NoReturn:
    why = "" if error is None else f" ({str(error).splitlines()[0]})"
    got = f"a torch tensor on device {tensor.device} with layout {tensor.layout} and no memory to read{why}"
    allowed = "a strided tensor with memory on the CPU or a CUDA GPU"
    do = "Use .to_dense() or .to(device); call it outside torch.func transforms."
    _refuse(name, got, allowed, do)


def _refuse_wrapped_tensor(obj: Any, name: str, stream: int | None) -> NoReturn:
    _refuse(
        name,
        f"a {_type_name(obj)}, a tensor subclass that computes by itself",
        "torch.Tensor, torch.nn.Parameter and plain subclasses of them",
        "Pass the plain tensor that it holds.",
    )


def _refuse_masked(obj: Any, name: str, stream: int | None) -> NoReturn:
    _refuse(name, "a masked array", "an array without a mask", f"Pass {name}.filled(0).")


def _refuse_tracer(obj: Any, name: str, stream: int | None) -> NoReturn:
    _refuse(
        name,
        f"a JAX tracer ({type(obj).__name__})",
        "JAX arrays with data, outside jit, grad and vmap",
        "Under a JAX transformation use fftconv_cupy.jax.fftconv.",
    )


_READERS: dict[type, Reader] = {}
