"""Arrays of a timed problem, random and of its full size, and a sample of its rows that judges the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy import numeric
from fftconv_cupy.benchmarks import device_code
from fftconv_cupy.benchmarks.cells import Cell
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_reference

Array = NDArray[np.generic]

_SAMPLED_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Data:
    """CuPy arrays of a problem: u (B, H, L), k (H, K) float32, and gates or None."""

    u: Any
    k: Any
    in_gate: Any
    out_gate: Any

    def to(self, framework: str) -> Data:
        """Return the same memory as arrays of ``"cupy"`` or ``"torch"``."""
        if framework == "cupy":
            return self
        return Data(*(None if array is None else to_torch(array) for array in self.arrays))

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """The arrays in the order of the fields."""
        return self.u, self.k, self.in_gate, self.out_gate


def make_data(cell: Cell) -> Data:
    """Draw the arrays of a cell on the current GPU; each tap counts, and outputs are of the order of the inputs."""
    cupy = import_cupy()
    dtype = NUMPY_DTYPES[cell.dtype]

    def draw(shape: tuple[int, ...], dtype: Any, seed: int, scale: float = 1.0) -> Any:
        array = cupy.empty(shape, dtype)
        device_code.fill_normal(array, seed=seed, scale=scale)
        return array

    rows = (cell.batch, cell.channels)
    u = draw((cell.batch * (1 + cell.strided), cell.channels, cell.seqlen), dtype, 1)
    return Data(
        u=u[::2] if cell.strided else u,
        k=draw((cell.channels, cell.filter_len), "float32", 2, cell.filter_len**-0.5),
        in_gate=draw((*rows, cell.seqlen), dtype, 3) if cell.gated else None,
        out_gate=draw((*rows, cell.problem.out_len), dtype, 4) if cell.gated else None,
    )


def to_torch(array: Any) -> Any:
    """Return a torch tensor that shares a CuPy array's memory; bfloat16 goes as the integers of its bits."""
    import torch

    if str(array.dtype) == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


class Sample:
    """A few rows of a problem and their float64 result."""

    def __init__(self, cell: Cell, data: Data) -> None:
        """Take rows of the first and the last batch, and compute them."""
        self._batches = sorted({0, cell.batch - 1})
        self._channels = sorted(
            {round(i * (cell.channels - 1) / (_SAMPLED_CHANNELS - 1)) for i in range(_SAMPLED_CHANNELS)}
        )
        self._y64 = fftconv_reference(
            self._rows(data.u),
            np.stack([_host(data.k[channel]) for channel in self._channels]),
            mode=cell.mode,
            in_gate=None if data.in_gate is None else self._rows(data.in_gate),
            out_gate=None if data.out_gate is None else self._rows(data.out_gate),
        )

    def error(self, y: Any) -> float:
        """Return the relative error of a result, a CuPy array or a torch tensor, on the sampled rows."""
        return numeric.relative_error(self._rows(y), self._y64)

    def _rows(self, array: Any) -> Array:
        return np.stack([np.stack([_host(array[b, h]) for h in self._channels]) for b in self._batches])


def _host(row: Any) -> Array:
    """Return a row as a NumPy array; a torch row as float32, which holds every 16-bit number."""
    if isinstance(row, np.ndarray):
        return row
    return np.asarray(row.get() if hasattr(row, "get") else row.float().cpu().numpy())
