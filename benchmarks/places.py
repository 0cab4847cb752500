"""Where a case runs, a GPU or the CPU, and how its arrays lie there.

Everything beside an array is NaN: a kernel that reads past a row poisons its result, and one that writes past a row
damages the guard that surrounds each output.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.readers import NUMPY_DTYPES

Array = NDArray[np.generic]

CPU = -1
_GUARD = 64  # elements before and after an output
_GAP = 3  # elements between the rows of a strided array


class Place:
    """The CPU with NumPy arrays, or one GPU with CuPy arrays."""

    def __init__(self, ordinal: int) -> None:
        """Choose a place.

        Args:
            ordinal: of the CUDA device, or `CPU`.

        Raises:
            MissingDependencyError: a GPU is named and CuPy is not installed.
        """
        self.ordinal = ordinal
        self.xp: Any = np if ordinal == CPU else import_cupy()

    @property
    def is_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.ordinal != CPU

    @property
    def name(self) -> str:
        """``cpu`` or ``cuda:<ordinal>``."""
        return f"cuda:{self.ordinal}" if self.is_gpu else "cpu"

    def current(self) -> AbstractContextManager[Any]:
        """Return a context in which allocations and CuPy calls mean this place."""
        return self.xp.cuda.Device(self.ordinal) if self.is_gpu else nullcontext()

    def upload(self, host: Array) -> Any:
        """Return a copy of a NumPy array, packed."""
        if not self.is_gpu:
            return np.array(host, order="C")
        array = self.xp.empty(host.shape, host.dtype)
        array.set(np.ascontiguousarray(host))
        return array

    def download(self, array: Any) -> Array:
        """Return a packed array as a NumPy array, once what computes it is done."""
        host: Array = array.get() if self.is_gpu else array
        return host

    def lay_out(self, host: Array, layout: str) -> Any:
        """Return an array equal to ``host`` that lies in memory as ``layout`` says.

        Args:
            host: up to three axes, the last along the row.
            layout: "packed"; "strided" has gaps between rows, so that rows start at odd elements; "transposed" has
                its first two axes the other way round; "gapped" has every second element along the row;
                "broadcast" keeps axes of stride 0.
        """
        if layout == "strided":
            padded = _nan((*host.shape[:-1], host.shape[-1] + _GAP), host.dtype)
            row = slice(1, 1 + host.shape[-1])
            padded[..., row] = host
            return self.upload(padded)[..., row]
        if layout == "transposed" and host.ndim == 3:
            return self.upload(host.transpose(1, 0, 2)).transpose(1, 0, 2)
        if layout == "gapped":
            padded = _nan((*host.shape[:-1], 2 * host.shape[-1]), host.dtype)
            padded[..., ::2] = host
            return self.upload(padded)[..., ::2]
        if layout == "broadcast" and host.ndim == 3 and host.strides[0] == 0:
            return self.xp.broadcast_to(self.upload(host[:1]), host.shape)
        return self.upload(host)

    def guarded(self, shape: tuple[int, ...], dtype: str, layout: str) -> Guarded:
        """Return an output of ``shape``, filled with NaN and surrounded by guards of NaN."""
        gap = _GAP if layout == "strided" else 0
        pitch = shape[-1] + gap
        first = _GUARD - 1 if gap else _GUARD
        rows = int(np.prod(shape[:-1]))
        buffer = self.upload(_nan((first + rows * pitch + _GUARD,), NUMPY_DTYPES[dtype]))
        return Guarded(self, buffer, first, (*shape[:-1], pitch), shape[-1])


@dataclass(frozen=True, slots=True)
class Guarded:
    """An output inside a larger buffer, see `Place.guarded`."""

    place: Place
    buffer: Any
    first: int
    pitched: tuple[int, ...]
    length: int

    @property
    def out(self) -> Any:
        """The array to pass as ``out=``."""
        return self._rows(self.buffer)[..., : self.length]

    def read(self) -> tuple[Array, int]:
        """Return the output as a NumPy array, and how many elements of the guards were overwritten."""
        host = self.place.download(self.buffer).copy()
        rows = self._rows(host)
        result = rows[..., : self.length].copy()
        # With the output itself made NaN again, every byte that differs is a guard's.
        rows[..., : self.length] = _nan((1,), host.dtype)
        untouched = _nan(host.shape, host.dtype)
        bits = np.dtype(f"u{host.dtype.itemsize}")
        return result, int(np.count_nonzero(host.view(bits) != untouched.view(bits)))

    def _rows(self, flat: Any) -> Any:
        size = int(np.prod(self.pitched))
        return flat[self.first : self.first + size].reshape(self.pitched)


def _nan(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return NaNs, of one bit pattern that arithmetic does not produce."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF)
    return array
