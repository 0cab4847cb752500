"""Arrays of int32 read like the others, through the float32 arrays that share their bits."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy import arrays
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.errors import InvalidTypeError, message

_ON_CPU, _ON_GPU = (1, 3), (2, 13)  # DLPack's device types


def index_view(obj: Any, name: str, stream: int | None = None) -> ArrayView:
    """Read an array of int32; the `dtype` of the view is "int32", and its `owner` a float32 array of the same memory.

    Args:
        obj: the array. JAX has no view of other bits: of its arrays this is a copy, made on their device.
        name: of the argument, for messages.
        stream: as for `arrays.view`.

    Raises:
        InvalidTypeError: not an array, not of int32, or one that cannot be read.
        InvalidArgumentError: an array whose address or strides are no multiple of its element's size.
        MissingDependencyError: the array is on a GPU and CuPy is not installed.
    """
    torch, jax, cupy = (sys.modules.get(module) for module in ("torch", "jax", "cupy"))
    is_protocol = False
    if torch is not None and isinstance(obj, torch.Tensor):
        _check_dtype(obj, name)
        bits = obj.view(torch.float32)
    elif jax is not None and isinstance(obj, jax.Array):
        _check_dtype(obj, name)
        bits = jax.lax.bitcast_convert_type(obj, np.float32)
    else:
        is_protocol = not (isinstance(obj, np.ndarray) or (cupy is not None and isinstance(obj, cupy.ndarray)))
        array = _exported(obj, name) if is_protocol else obj
        _check_dtype(array, name)
        bits = array.view(np.float32)
    seen = arrays.view(bits, name, stream)
    seen.dtype = "int32"
    seen.is_borrowed |= is_protocol and seen.device >= 0
    return seen


def to_numpy(indices: ArrayView) -> NDArray[np.int32]:
    """Return a view on the CPU as the NumPy array that shares its memory."""
    return arrays.to_numpy(indices).view(np.int32)


def _exported(obj: Any, name: str) -> Any:
    """Return an array of a framework that is not known here as the NumPy or CuPy array that shares its memory."""
    if not (hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__")):
        _refuse(name, f"an object of type {type(obj).__module__}.{type(obj).__qualname__}")
    kind, ordinal = obj.__dlpack_device__()
    try:
        if kind in _ON_CPU:
            return np.from_dlpack(obj)
        if kind in _ON_GPU:
            cupy = import_cupy()
            with cupy.cuda.Device(ordinal):
                return cupy.from_dlpack(obj)
    except (BufferError, TypeError, ValueError) as error:
        _refuse(name, f"an object of type {type(obj).__qualname__} whose DLPack export fails ({error})")
    _refuse(name, f"an object of type {type(obj).__qualname__} on DLPack device type {int(kind)}")


def _check_dtype(array: Any, name: str) -> None:
    dtype = array.dtype
    is_swapped = getattr(dtype, "isnative", True) is False
    if str(dtype).removeprefix("torch.") != "int32" or is_swapped:
        got = f"{dtype} (byte-swapped)" if is_swapped else str(dtype).removeprefix("torch.")
        do = f"Convert {name} to int32."
        raise InvalidTypeError(message(f"{name}.dtype", got=got, allowed="int32", do=do))


def _refuse(name: str, got: str) -> NoReturn:
    allowed = "an int32 array of NumPy, CuPy, torch or JAX, or any object with __dlpack__"
    raise InvalidTypeError(message(name, got=got, allowed=allowed, do="Convert it to one of these."))
