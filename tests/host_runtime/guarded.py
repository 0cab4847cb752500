"""Host memory that ends exactly at an inaccessible page, so that an access past the end is a fault and not luck.

A kernel that touches the page raises ``MemoryFaultError``; anything else that does dies of it.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded_memory(nbytes: int, guard: str = "end") -> tuple[Any, int]:
    """Return (owner, address) of ``nbytes`` of zeros with an inaccessible page right behind them, or right before.

    The memory lives as long as the owner, a ctypes array of ``nbytes``.

    Args:
        nbytes: the size.
        guard: ``"end"`` or ``"start"``.
    """
    page = mmap.PAGESIZE
    body = -(-nbytes // page) * page
    memory = mmap.mmap(-1, body + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mprotect(start + (body if guard == "end" else 0), page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    offset = body - nbytes if guard == "end" else page
    return (ctypes.c_char * nbytes).from_buffer(memory, offset), start + offset


def guarded_array(values: npt.ArrayLike, dtype: npt.DTypeLike = None, guard: str = "end") -> npt.NDArray[Any]:
    """Return a C-contiguous copy of ``values`` in guarded memory.

    Args:
        values: the content.
        dtype: of the copy, default that of ``values``.
        guard: ``"end"`` or ``"start"``.
    """
    array = np.asarray(values, dtype)
    owner, _ = guarded_memory(array.nbytes, guard)
    copy = np.frombuffer(owner, np.uint8).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
