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
from fftconv_cupy.problem import Gradients
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference

Array = NDArray[np.generic]

_SAMPLED_CHANNELS = 4
_SUMMED_POINTS = 1 << 20  # of spectra that are summed at a time


@dataclass(frozen=True, slots=True)
class Data:
    """CuPy arrays of a problem: u (B, H, L), k (H, K) float32, gates or None, and the output's gradient or None."""

    u: Any
    k: Any
    in_gate: Any
    out_gate: Any
    dy: Any = None

    def to(self, framework: str) -> Data:
        """Return the same memory as arrays of ``"cupy"`` or ``"torch"``, or copies of it as those of ``"jax"``."""
        if framework == "cupy":
            return self
        convert = to_torch if framework == "torch" else to_jax
        return Data(*(None if array is None else convert(array) for array in (*self.arrays, self.dy)))

    def synchronized(self) -> Data:
        """Wait for all that was launched on the default stream, and return these arrays."""
        import_cupy().cuda.Stream.null.synchronize()
        return self

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """The arguments of a convolution in the order of the fields."""
        return self.u, self.k, self.in_gate, self.out_gate


def make_data(cell: Cell) -> Data:
    """Draw the arrays of a cell on the current GPU; each tap counts, and outputs are of the order of the inputs."""
    dtype, rows = cell.dtype, (cell.batch, cell.channels)
    u = drawn((cell.batch * (1 + cell.strided), cell.channels, cell.seqlen), dtype, 1)
    return Data(
        u=u[::2] if cell.strided else u,
        k=drawn((cell.channels, cell.filter_len), "float32", 2, cell.filter_len**-0.5),
        in_gate=drawn((*rows, cell.seqlen), dtype, 3) if cell.gated else None,
        out_gate=drawn((*rows, cell.problem.out_len), dtype, 4) if cell.gated else None,
        dy=drawn((*rows, cell.problem.out_len), dtype, 5) if cell.is_backward else None,
    )


def drawn(shape: tuple[int, ...], dtype: str, seed: int, scale: float = 1.0) -> Any:
    """Return normal random numbers of deviation ``scale`` as a CuPy array on the current GPU."""
    array = import_cupy().empty(shape, NUMPY_DTYPES[dtype])
    device_code.fill_normal(array, seed=seed, scale=scale)
    return array


def to_torch(array: Any) -> Any:
    """Return a torch tensor that shares a CuPy array's memory; bfloat16 goes as the integers of its bits."""
    import torch

    if str(array.dtype) == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def to_jax(array: Any) -> Any:
    """Return a JAX array on a CuPy array's GPU, copied through the host: neither library has to wait for the other."""
    import jax

    return jax.device_put(array.get(), jax.devices("cuda")[array.device.id])


class Sample:
    """A few rows of a problem and their float64 results: outputs, or gradients."""

    def __init__(self, cell: Cell, data: Data) -> None:
        """Take rows of the first and the last batch, and compute them."""
        self._batches, self._channels = sampled(cell.batch, cell.channels)
        u, in_gate, out_gate = map(self._rows, (data.u, data.in_gate, data.out_gate))
        k = np.stack([host(data.k[channel]) for channel in self._channels])
        gates = {"in_gate": in_gate, "out_gate": out_gate}
        if not cell.is_backward:
            self._y64 = fftconv_reference(u, k, mode=cell.mode, **gates)
            return
        self._grads64 = fftconv_vjp_reference(self._rows(data.dy), u, k, mode=cell.mode, **gates)
        self._dk64 = filter_gradient(cell, data, self._channels[-1])

    def error(self, result: Any) -> float:
        """Return the relative error of a result on the sampled rows.

        Args:
            result: the output, a CuPy array or a torch tensor; or gradients of such. Of those the largest error counts,
                that of the filter on one channel, which is summed over the whole batch.
        """
        if not isinstance(result, Gradients):
            return numeric.relative_error(self._rows(result), self._y64)
        errors = [numeric.relative_error(host(result.k[self._channels[-1]]), self._dk64)]
        for grad, grad64 in zip(
            (result.u, result.in_gate, result.out_gate),
            (self._grads64.u, self._grads64.in_gate, self._grads64.out_gate),
            strict=True,
        ):
            if grad64 is not None:
                errors.append(numeric.relative_error(self._rows(grad), grad64))
        return max(errors)

    def _rows(self, array: Any) -> Any:
        if array is None:
            return None
        return np.stack([np.stack([host(array[b, h]) for h in self._channels]) for b in self._batches])


def sampled(batch: int, channels: int) -> tuple[list[int], list[int]]:
    """Return the batches and the channels whose rows are compared with float64."""
    last = _SAMPLED_CHANNELS - 1
    return sorted({0, batch - 1}), sorted({round(i * (channels - 1) / last) for i in range(_SAMPLED_CHANNELS)})


def filter_gradient(cell: Cell, data: Data, channel: int) -> NDArray[np.float64]:
    """Return the float64 gradient of one channel's filter, (K,), for which the whole batch is read.

    Spectra are summed over the batch and transformed back once, so that thousands of rows take seconds.
    """
    problem = cell.problem
    first = (problem.filter_len - 1) // 2 if cell.mode == "same" else 0  # point of the convolution that is output 0
    size = problem.fft_size
    if cell.mode != "circular":
        size = 1 << (problem.seqlen + problem.out_len + problem.filter_len).bit_length()
    total = np.zeros(size // 2 + 1, np.complex128)
    step = max(1, _SUMMED_POINTS // size)
    for start in range(0, cell.batch, step):
        batches = range(start, min(start + step, cell.batch))
        x, g = (
            np.fft.rfft(_gated_rows(array, gate, batches, channel), size)
            for array, gate in ((data.u, data.in_gate), (data.dy, data.out_gate))
        )
        total += (x.conj() * g).sum(axis=0)
    lags: NDArray[np.float64] = np.fft.irfft(total, size)[(np.arange(problem.filter_len) - first) % size]
    return lags


def _gated_rows(array: Any, gate: Any, batches: range, channel: int) -> NDArray[np.float64]:
    # Row by row: a row is contiguous, so no kernel of CuPy's is needed to copy it.
    rows = np.stack([host(array[batch, channel]) for batch in batches]).astype(np.float64)
    return rows if gate is None else rows * _gated_rows(gate, None, batches, channel)


def host(array: Any) -> Array:
    """Return any framework's array as a NumPy array; torch's as float32, which holds every 16-bit number."""
    if hasattr(array, "detach"):
        array = array.detach().float().cpu().numpy()
    return np.asarray(array.get() if hasattr(array, "get") else array)
