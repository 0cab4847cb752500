"""Short depthwise convolutions as cells to time: their arrays, a sample that judges results, and who computes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy import depthwise_conv1d, depthwise_conv1d_vjp, numeric
from fftconv_cupy.benchmarks.baselines import MOST_DIRECT_TAPS, OURS, Call, Implementation, call_of_torch
from fftconv_cupy.benchmarks.cells import Timed
from fftconv_cupy.benchmarks.data import Data, drawn, host, sampled
from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseProblem, make_depthwise_problem
from fftconv_cupy.problem import ITEM_BYTES


@dataclass(frozen=True, slots=True)
class ShortCell(Timed):
    """A causal depthwise convolution of a few taps, or its gradients by input and taps.

    Attributes:
        layout: "BHL" or "BLH".
    """

    layout: str = "BHL"

    @classmethod
    def of(cls, batch: int, channels: int, seqlen: int, taps: int, *, layout: str, direction: str) -> ShortCell:
        """Return a cell of the suite "short", in float16."""
        shape = (batch, channels, seqlen, taps)
        return cls("short", "causal", False, "float16", *shape, "raw", direction=direction, layout=layout)

    @property
    def problem(self) -> DepthwiseProblem:
        """The validated problem."""
        return make_depthwise_problem(
            batch=self.batch,
            channels=self.channels,
            seqlen=self.seqlen,
            width=self.filter_len,
            layout=self.layout,
            dtype=self.dtype,
        )

    @property
    def floor_bytes(self) -> int:
        """Bytes of the input and the output; backward of the input and of the gradients of both."""
        return (2 + self.is_backward) * self.batch * self.channels * self.seqlen * ITEM_BYTES[self.dtype]

    @property
    def own_facts(self) -> dict[str, Any]:
        """What only records of this kind of cells have."""
        return {"layout": self.layout}

    @property
    def remark(self) -> str:
        """The layout."""
        return f" {self.layout}"


def make_short_data(cell: ShortCell) -> Data:
    """Draw the arrays of a cell on the current GPU: input, taps (D, K) float32, and the output's gradient or None."""
    shape = (cell.batch, cell.channels, cell.seqlen)
    if cell.layout == "BLH":
        shape = (cell.batch, cell.seqlen, cell.channels)
    return Data(
        u=drawn(shape, cell.dtype, 1),
        k=drawn((cell.channels, cell.filter_len), "float32", 2, cell.filter_len**-0.5),
        in_gate=None,
        out_gate=None,
        dy=drawn(shape, cell.dtype, 3) if cell.is_backward else None,
    )


class ShortSample:
    """A few rows of a problem and their float64 results: outputs, or gradients."""

    def __init__(self, cell: ShortCell, data: Data) -> None:
        """Take rows of the first and the last batch, and compute them; of the taps' gradient one channel."""
        self._is_last = cell.layout == "BLH"
        self._batches, self._channels = sampled(cell.batch, cell.channels)
        taps = host(data.k).astype(np.float64)
        if not cell.is_backward:
            self._rows64 = self._convolved(self._rows(data.u, self._batches), taps[:, ::-1], 0)
            return
        self._rows64 = self._convolved(self._rows(data.dy, self._batches), taps, cell.filter_len - 1)
        self._dk64 = self._tap_gradient(cell, data, self._channels[-1])

    def error(self, result: Any) -> float:
        """Return the relative error of an output on the sampled rows, or the largest of the gradients'."""
        if not isinstance(result, DepthwiseGradients):
            return numeric.relative_error(self._rows(result, self._batches), self._rows64)
        of_taps = numeric.relative_error(host(result.weight)[self._channels[-1]], self._dk64)
        return max(of_taps, numeric.relative_error(self._rows(result.x, self._batches), self._rows64))

    def _rows(self, array: Any, batches: Iterable[int]) -> NDArray[np.float64]:
        """Return the sampled channels of some batches; those with channels last are read whole: CuPy copies no gaps."""
        if self._is_last:
            return np.stack([host(array[b])[:, self._channels].T for b in batches]).astype(np.float64)
        return np.stack([np.stack([host(array[b, h]) for h in self._channels]) for b in batches]).astype(np.float64)

    def _convolved(self, rows: NDArray[np.float64], taps: NDArray[np.float64], first: int) -> NDArray[np.float64]:
        """Return as many points as a row has, from `first` on, of the full convolution of each row with its taps."""
        points = slice(first, first + rows.shape[-1])
        return np.array(
            [
                [np.convolve(row, taps[h])[points] for row, h in zip(batch, self._channels, strict=True)]
                for batch in rows
            ]
        )

    def _tap_gradient(self, cell: ShortCell, data: Data, channel: int) -> NDArray[np.float64]:
        """Return the gradient of one channel's taps, (K,), for which the whole batch is read."""
        taps, index = cell.filter_len, self._channels.index(channel)
        total = np.zeros(taps)
        for batch in range(cell.batch):
            x, g = (self._rows(array, [batch])[0, index] for array in (data.u, data.dy))
            padded = np.pad(x, (taps - 1, 0))
            total += [np.dot(g, padded[j : j + len(g)]) for j in range(taps)]
        return total


def _prepare_ours(cell: ShortCell, data: Data) -> Call:
    x, weight, layout = data.u, data.k, cell.layout
    if cell.is_backward:
        dy = data.dy
        return lambda: depthwise_conv1d_vjp(dy, x, weight, layout=layout)
    return lambda: depthwise_conv1d(x, weight, layout=layout)


def _prepare_torch(cell: ShortCell, data: Data) -> Call:
    import torch

    taps, points = cell.filter_len, cell.seqlen

    def convolve(x: Any, weight: Any) -> Any:
        y = torch.nn.functional.conv1d(x, weight[:, None], padding=taps - 1, groups=cell.channels)
        return y[..., :points]

    return call_of_torch(convolve, _in_dtype(data), DepthwiseGradients)


def _prepare_causal_conv1d(cell: ShortCell, data: Data) -> Call:
    from causal_conv1d import causal_conv1d_fn

    def convolve(x: Any, weight: Any) -> Any:
        return causal_conv1d_fn(x, weight) if cell.layout == "BHL" else causal_conv1d_fn(x.mT, weight).mT

    return call_of_torch(convolve, _in_dtype(data), DepthwiseGradients)


def _prepare_flash(cell: ShortCell, data: Data) -> Call:
    from flashfftconv.depthwise_1d import conv1dFunc

    is_first, points, bias = cell.layout == "BHL", cell.seqlen, data.u.new_zeros(cell.channels)
    data = _in_dtype(data)
    if not is_first:
        data = replace(data, k=data.k.mT.contiguous())

    def convolve(x: Any, weight: Any) -> Any:
        y = conv1dFunc.apply(x, weight, bias, cell.filter_len - 1, is_first)
        return y[..., :points] if is_first else y[:, :points]

    return call_of_torch(convolve, data, DepthwiseGradients)


def _in_dtype(data: Data) -> Data:
    """Return the arrays with the taps in the dtype of the input, as the others want them."""
    return replace(data, k=data.k.to(data.u.dtype))


def _suits_torch(cell: ShortCell) -> bool:
    return cell.layout == "BHL" and cell.filter_len <= MOST_DIRECT_TAPS


def _suits_flash(cell: ShortCell) -> bool:
    return not cell.is_backward or cell.layout == "BHL"


DEPTHWISE = (
    Implementation(OURS, None, lambda cell: True, _prepare_ours, ShortCell),
    Implementation("torch conv1d", "torch", _suits_torch, _prepare_torch, ShortCell),
    Implementation("FlashFFTConv", "torch", _suits_flash, _prepare_flash, ShortCell),
    Implementation("causal-conv1d", "torch", lambda cell: 2 <= cell.filter_len <= 4, _prepare_causal_conv1d, ShortCell),
)
