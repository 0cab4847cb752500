"""CuPy arrays in host memory, and the library's GPU path on them: the whole API runs with no GPU.

Only what the library uses of CuPy is replaced: allocator, device, current stream, upload. Arithmetic on such arrays,
streams made by CuPy, DLPack and the CUDA array interface do not work; use :func:`to_cupy` and :func:`to_numpy`.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt
import pytest
from remembering import nothing_remembered

import fftconv_cupy.arrays
import fftconv_cupy.gpu
from fftconv_cupy import launch, launch_windows, launchers
from fftconv_cupy.devices import device_limits
from host_runtime.guarded import guarded_memory
from host_runtime.harness import host_loader

_ALIGNMENT = 16  # of CuPy's own memory 512; the remainder to it lies between an array's end and its guard page


class _Stream(contextlib.nullcontext["_Stream"]):
    """The default stream, on which everything is complete at once."""

    ptr = 0

    def synchronize(self) -> None:
        pass


class _Device(contextlib.nullcontext[None]):
    """A GPU of a chosen architecture."""

    compute_capability = "90"
    attributes = {"MultiProcessorCount": 2}  # noqa: RUF012  # so that persistent blocks have much to do

    def __init__(self, ordinal: int = 0) -> None:
        super().__init__()
        self.id = ordinal


def _allocate(nbytes: int) -> cupy.cuda.MemoryPointer:
    size = -(-max(nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
    owner, address = guarded_memory(size)
    ctypes.memset(address, 0xFF, size)  # NaNs: what is read before it is written shows
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, nbytes, owner, 0), 0)


def to_cupy(values: npt.ArrayLike, dtype: npt.DTypeLike = None) -> cupy.ndarray:
    """Return a C-contiguous CuPy array in host memory with a copy of ``values``, which ends at an inaccessible page."""
    values = np.asarray(values, dtype)
    array = cupy.ndarray(values.shape, values.dtype, _allocate(values.nbytes))
    to_numpy(array)[...] = values
    return array


def to_numpy(array: cupy.ndarray) -> npt.NDArray[Any]:
    """Return the NumPy array that shares the memory of a host-backed CuPy array, whatever its strides."""
    interface = {
        "shape": array.shape,
        "typestr": f"|V{array.dtype.itemsize}",  # bfloat16 has no type string of its own
        "data": (array.data.ptr, False),
        "strides": array.strides,
        "version": 3,
    }

    class Memory:
        __array_interface__ = interface
        keep = array

    return np.asarray(Memory()).view(array.dtype)


def _unit_stride(array: Any, stream: int) -> Any:
    copy = to_cupy(to_numpy(array.owner))
    return fftconv_cupy.arrays.view(copy, "copy", stream)


@contextlib.contextmanager
def host_backed_gpu(
    arch: str = "sm_90", *, race_check: bool = False, order: str = "ascending", seed: int = 0
) -> Iterator[None]:
    """Within this context CuPy arrays lie in host memory and the library's kernels run on the CPU.

    Args:
        arch: architecture of the GPU that is played, which chooses the plans.
        race_check: as for ``HostKernel``, as are order and seed.
        order: of the threads.
        seed: of the random order.
    """
    device = type("Device", (_Device,), {"compute_capability": arch.removeprefix("sm_")})
    stream = _Stream()
    loader = host_loader(race_check=race_check, order=order, seed=seed)
    old_allocator = cupy.cuda.get_allocator()
    with nothing_remembered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy.cuda, "get_current_stream", lambda device_id=-1: stream)
        patch.setattr(cupy.cuda, "Device", device)
        patch.setattr(cupy.cuda.runtime, "getDevice", lambda: 0)
        patch.setattr(cupy.cuda.runtime, "streamIsCapturing", lambda handle: False)
        patch.setattr(
            cupy.cuda.runtime, "memsetAsync", lambda ptr, value, size, stream: ctypes.memset(ptr, value, size)
        )
        patch.setattr(cupy, "asarray", to_cupy)
        patch.setattr(fftconv_cupy.arrays, "unit_stride", _unit_stride)
        for module in (launchers, launch, launch_windows):
            patch.setattr(module, "load_kernel", loader)
        cupy.cuda.set_allocator(_allocate)
        device_limits.cache_clear()
        try:
            yield
        finally:
            cupy.cuda.set_allocator(old_allocator)
            device_limits.cache_clear()
