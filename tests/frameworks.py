"""Arrays of each framework for tests, CuPy's on host memory without a GPU, and a direct float64 sum to compare with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fftconv_cupy.readers import NUMPY_DTYPES

# Else JAX takes three quarters of a GPU's memory as it starts, from torch and CuPy in the same process.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

CPU_FRAMEWORKS = ("numpy", "torch", "jax")
FRAMEWORKS = (*CPU_FRAMEWORKS, "cupy")


def convert(framework: str, array: np.ndarray) -> Any:
    """Return an array of `framework` on the CPU (CuPy: wherever its allocator puts it) with the content of `array`."""
    if framework == "numpy":
        return array
    if framework == "torch":
        torch = pytest.importorskip("torch")
        if array.dtype == NUMPY_DTYPES["bfloat16"]:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())
    if framework == "jax":
        jax = pytest.importorskip("jax")
        # A copy: JAX may otherwise share the memory of an aligned NumPy array.
        return jax.device_put(array.copy(), jax.devices("cpu")[0])
    cupy = pytest.importorskip("cupy")
    result = cupy.empty(array.shape, array.dtype)
    host_memory(result)[...] = array
    return result


def to_float64(array: Any) -> np.ndarray:
    """Return the content of a CPU array, or of a CuPy array on host memory, in float64."""
    module = type(array).__module__
    if module.startswith("torch"):
        return array.double().numpy()
    if module.startswith("cupy"):
        array = host_memory(array)
    return np.asarray(array).astype(np.float64)


def host_memory(array: Any) -> np.ndarray:
    """Return the NumPy array at the addresses of a CuPy array that lies on host memory."""
    return at_address(array.data.ptr, array.shape, array.strides, array.dtype)


def at_address(ptr: int, shape: tuple[int, ...], byte_strides: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the NumPy array at a host address."""

    class Memory:
        __array_interface__ = {  # noqa: RUF012 - the protocol's own form
            "data": (ptr, False),
            "shape": tuple(shape),
            "strides": tuple(byte_strides),
            "typestr": f"|V{dtype.itemsize}",
            "version": 3,
        }

    return np.asarray(Memory()).view(dtype)


@contextlib.contextmanager
def cupy_on_host(device: int = 0) -> Iterator[Any]:
    """Make CuPy allocate host memory that says it is on GPU `device`, so that its arrays exist without a GPU."""
    cupy = pytest.importorskip("cupy")
    memory = cupy.cuda.memory

    def allocate(size: int) -> Any:
        buffer = np.empty(max(size, 1) + 512, np.uint8)
        address = -(-buffer.ctypes.data // 512) * 512  # as CuPy's own pool aligns
        return memory.MemoryPointer(memory.UnownedMemory(address, max(size, 1), buffer, device), 0)

    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(allocate)
    try:
        yield cupy
    finally:
        cupy.cuda.set_allocator(before)


@contextlib.contextmanager
def allocated(framework: str) -> Iterator[Callable[[np.ndarray], Any]]:
    """Yield the function that converts NumPy arrays to `framework`; CuPy arrays lie on host memory."""
    with cupy_on_host() if framework == "cupy" else contextlib.nullcontext():
        yield lambda array: convert(framework, array)


class World:
    """Makes arrays of one framework, and the arguments of calls with them."""

    def __init__(self, framework: str) -> None:
        self.framework = framework

    def array(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        return convert(self.framework, np.ones(shape, NUMPY_DTYPES.get(dtype, dtype)))

    def good(self, mode: str = "causal", dtype: str = "float32", **changes: Any) -> dict[str, Any]:
        """Return the arguments of a call with every array, of B, H, L, K = 2, 3, 16, 5, with some changed."""
        outputs = (2, 3, 20 if mode == "full" else 16)
        arguments = {
            "u": self.array((2, 3, 16), dtype),
            "k": self.array((3, 5)),
            "in_gate": self.array((2, 3, 16), dtype),
            "out_gate": self.array(outputs, dtype),
            "skip": self.array((3,)),
            "out": None if self.framework == "jax" else self.array(outputs, dtype),
            "mode": mode,
        }
        return {**arguments, **changes}


def direct(
    u: np.ndarray,
    k: np.ndarray,
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: np.ndarray | None = None,
    out_gate: np.ndarray | None = None,
    skip: np.ndarray | None = None,
) -> np.ndarray:
    """Return the convolution as its definition says it, summed term by term in float64; one to three axes as `u`."""
    shape = u.shape
    x = u.astype(np.float64).reshape((1,) * (3 - u.ndim) + shape)
    if in_gate is not None:
        x = x * in_gate.astype(np.float64).reshape(x.shape)
    _, channels, seqlen = x.shape
    taps = np.broadcast_to(np.atleast_2d(k.astype(np.float64)), (channels, k.shape[-1]))
    filter_len = taps.shape[-1]
    # lags[t, s]: index of the tap that carries input s to output t, where it is one.
    outputs = np.arange(seqlen + filter_len - 1 if mode == "full" else seqlen)
    if mode == "same":
        outputs = outputs + (filter_len - 1) // 2
    lags = outputs[:, None] - np.arange(seqlen)
    if mode == "circular":
        period = seqlen if fft_size is None else fft_size
        folded = np.zeros((channels, period))
        for j in range(filter_len):
            folded[:, j % period] += taps[:, j]
        taps, lags = folded, lags % period
    inside = (lags >= 0) & (lags < taps.shape[-1])
    weights = np.where(inside, taps[:, np.where(inside, lags, 0)], 0.0)
    y = np.einsum("hts,bhs->bht", weights, x)
    if skip is not None:
        y[..., :seqlen] += skip.astype(np.float64)[:, None] * x
    if out_gate is not None:
        y = y * out_gate.astype(np.float64).reshape(y.shape)
    return y.reshape(*shape[:-1], y.shape[-1])
