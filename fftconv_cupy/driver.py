"""The one call of CUDA's driver that CuPy does not offer: a launch with attributes, cuLaunchKernelEx."""

from __future__ import annotations

import ctypes
import struct
import sys
from functools import cache
from typing import Any

_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # of the enum CUlaunchAttributeID


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, of which the value is a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


_EARLY = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)  # read by every launch, never written
_EARLY_ADDRESS = ctypes.addressof(_EARLY)
# CUlaunchConfig: grid, threads, shared bytes, stream, attributes and their count, padded to the size of the structure.
_pack_config = struct.Struct("@3I3IIPPI0P").pack


@cache
def _launch_kernel_ex() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    function = ctypes.CDLL(name).cuLaunchKernelEx  # loaded already: CuPy links to it
    function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    function.restype = ctypes.c_int
    return function


def launch_early(
    function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, stream: int, address: int
) -> int:
    """Launch a kernel that may start while the one before it in the stream runs; return CUDA's status, 0 for success.

    The driver then starts the kernel once all blocks of the one before have called for it (programmatic dependent
    launch, CUDA C++ Programming Guide), so the kernel itself must wait before it reads what the other writes. GPUs of
    compute capability 9.0 and later.

    Args:
        function: handle of the kernel.
        grid: blocks in x, y and z.
        threads: threads a block, in x.
        shared_bytes: dynamic shared memory of a block.
        stream: handle of the stream.
        address: of the array of pointers to the kernel's arguments.
    """
    config = _pack_config(*grid, threads, 1, 1, shared_bytes, stream, _EARLY_ADDRESS, 1)
    status: int = _launch_kernel_ex()(config, function, address, None)
    return status
