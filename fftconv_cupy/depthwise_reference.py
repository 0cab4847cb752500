"""Float64 reference of `depthwise_conv1d` and its gradients, sharing no code with the backends that it judges.

Every output is the product of the taps with the window of points that it sees, and all windows are laid side by side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.depthwise_problem import DepthwiseGradients

Array = NDArray[np.float64]


class DepthwiseReference:
    """One call, in float64.

    Args:
        x: (B, D, L), or (B, L, D) where `layout` is "BLH"; any real dtype, as the others.
        weight: (D, K).
        bias: (D,) or None.
        padding: "causal", "same" or a number.
        activation: "silu" or None.
        layout: of x, the output and its gradient.
        seq_idx: (B, L) or None.
        initial_state: (B, D, K - 1) or None.
    """

    def __init__(
        self,
        x: NDArray[np.generic],
        weight: NDArray[np.generic],
        bias: NDArray[np.generic] | None = None,
        *,
        padding: str | int = "causal",
        activation: str | None = None,
        layout: str = "BHL",
        seq_idx: NDArray[np.int32] | None = None,
        initial_state: NDArray[np.generic] | None = None,
    ) -> None:
        self._axes = (0, 1, 2) if layout == "BHL" else (0, 2, 1)
        rows = x.astype(np.float64).transpose(self._axes)
        self._weight = weight.astype(np.float64)
        self._length, width = rows.shape[2], self._weight.shape[1]
        named = {"causal": (width - 1, 0), "same": ((width - 1) // 2, width // 2)}
        left, right = named[padding] if isinstance(padding, str) else (padding, padding)
        self._left, self._activation = left, activation
        self._points = np.pad(rows, ((0, 0), (0, 0), (left, right)))
        if initial_state is not None:
            self._points[..., :left] = initial_state
        # [b, d, t, j]: the point that output t sees through tap j, 0 where it belongs to another sequence.
        self._windows = np.lib.stride_tricks.sliding_window_view(self._points, width, axis=2)
        self._counts = np.ones((1, 1, 1, 1), bool)
        if seq_idx is not None:
            marks = np.pad(seq_idx, ((0, 0), (left, 0)), constant_values=-1)
            seen = np.lib.stride_tricks.sliding_window_view(marks, width, axis=1)
            self._counts = ((seen == seq_idx[..., None]) & (seq_idx[..., None] >= 0))[:, None]
            self._windows = np.where(self._counts, self._windows, 0)
        self._z = np.einsum("bdtj,dj->bdt", self._windows, self._weight)
        if bias is not None:
            self._z += np.where(self._counts[..., -1], bias.astype(np.float64)[:, None], 0)

    def outputs(self) -> Array:
        """Return the outputs, in the layout of x."""
        y: Array = (self._z if self._activation is None else self._z * _sigmoid(self._z)).transpose(self._axes)
        return y

    def final_state(self) -> Array:
        """Return the last K - 1 points of a causal convolution, (B, D, K - 1)."""
        return self._points[..., self._length :]

    def gradients(
        self, dy: NDArray[np.generic], d_final_state: NDArray[np.generic] | None = None
    ) -> DepthwiseGradients:
        """Return the gradients of ``sum(dy * outputs) + sum(d_final_state * final_state)``; the state's always too."""
        dz = dy.astype(np.float64).transpose(self._axes)
        if self._activation is not None:
            sigmoid = _sigmoid(self._z)
            dz = dz * (sigmoid + self._z * sigmoid * (1 - sigmoid))
        dz = np.where(self._counts[..., -1], dz, 0)
        d_windows = np.where(self._counts, dz[..., None] * self._weight[:, None], 0)
        d_points = np.zeros(self._points.shape)
        for j in range(self._weight.shape[1]):
            d_points[..., j : j + dz.shape[2]] += d_windows[..., j]
        if d_final_state is not None:
            d_points[..., self._length :] += d_final_state.astype(np.float64)
        dx = d_points[..., self._left : self._left + self._length]
        return DepthwiseGradients(
            x=dx.transpose(self._axes),
            weight=np.einsum("bdt,bdtj->dj", dz, self._windows),
            bias=dz.sum(axis=(0, 2)),
            initial_state=d_points[..., : self._left],
        )


def _sigmoid(z: Array) -> Array:
    return np.exp(-np.logaddexp(0, -z))
