"""Depthwise convolutions for tests: random arguments, and their outputs and gradients in float64, summed one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from frameworks import convert

from fftconv_cupy import DepthwiseGradients, numeric
from fftconv_cupy.readers import NUMPY_DTYPES

NAMES = DepthwiseGradients._fields
PADDINGS = ("causal", "same", 0, 1, 5)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype])


def case(
    rng: np.random.Generator,
    sizes: tuple[int, int, int, int] = (2, 3, 16, 4),
    *,
    dtype: str = "float32",
    weight_dtype: str = "float32",
    bias_dtype: str | None = "float32",
    layout: str = "BHL",
    with_state: bool = False,
    with_seq_idx: bool = False,
) -> dict[str, Any]:
    """Return the arrays of a call of B, D, L, K = `sizes`, by the names of their arguments."""
    batch, channels, seqlen, width = sizes
    arrays = {
        "x": random(rng, (batch, channels, seqlen) if layout == "BHL" else (batch, seqlen, channels), dtype),
        "weight": random(rng, (channels, width), weight_dtype),
    }
    if bias_dtype is not None:
        arrays["bias"] = random(rng, (channels,), bias_dtype)
    if with_state:
        arrays["initial_state"] = random(rng, (batch, channels, width - 1), dtype)
    if with_seq_idx:
        arrays["seq_idx"] = packed(rng, batch, seqlen)
    return arrays


def packed(rng: np.random.Generator, batch: int, seqlen: int) -> np.ndarray:
    """Return sequence indices: runs of random lengths, some of them padding."""
    rows = []
    for _ in range(batch):
        runs = rng.integers(1, 8, seqlen)
        marks = np.where(rng.random(seqlen) < 0.2, -1, np.arange(seqlen))
        rows.append(np.repeat(marks, runs)[:seqlen])
    return np.array(rows, np.int32).reshape(batch, seqlen)


def converted(framework: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: convert(framework, array) for name, array in arrays.items()}


def bounds_of(padding: Any, seqlen: int, width: int) -> tuple[int, int]:
    """Return the padding on the left and the number of outputs, as `torch.nn.Conv1d` has them."""
    if padding == "causal":
        return width - 1, seqlen
    if padding == "same":
        return (width - 1) // 2, seqlen
    return padding, seqlen + 2 * padding - width + 1


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


class Loops:
    """One call in float64, tap by tap.

    Args:
        arrays: as `case` returns them.
        padding: as for `depthwise_conv1d`, as are the others.
        activation: None or "silu".
        layout: of x.
    """

    def __init__(
        self, arrays: dict[str, Any], padding: Any = "causal", activation: str | None = None, layout: str = "BHL"
    ) -> None:
        x = arrays["x"].astype(np.float64)
        self.layout, self.activation = layout, activation
        self.x = x if layout == "BHL" else x.transpose(0, 2, 1)
        self.weight = arrays["weight"].astype(np.float64)
        batch, channels, seqlen = self.x.shape
        width = self.weight.shape[1]
        self.bias = arrays["bias"].astype(np.float64) if "bias" in arrays else np.zeros(channels)
        self.state = arrays["initial_state"].astype(np.float64) if "initial_state" in arrays else None
        self.seq_idx = arrays.get("seq_idx")
        self.pad, self.points = bounds_of(padding, seqlen, width)
        self.z = np.zeros((batch, channels, self.points))
        for b, d, t in np.ndindex(*self.z.shape):
            if not self.is_padding(b, t):
                self.z[b, d, t] = self.bias[d] + sum(self.weight[d, j] * value for j, _, value in self.seen(b, d, t))

    def is_padding(self, b: int, t: int) -> bool:
        return self.seq_idx is not None and self.seq_idx[b, t] < 0

    def seen(self, b: int, d: int, t: int) -> list[tuple[int, int, float]]:
        """Return tap, index of the point (negative: of the state) and its value, of those that output t sees."""
        found = []
        for j in range(self.weight.shape[1]):
            s = t + j - self.pad
            if 0 <= s < self.x.shape[2]:
                if self.seq_idx is None or self.seq_idx[b, s] == self.seq_idx[b, t]:
                    found.append((j, s, self.x[b, d, s]))
            elif s < 0 and self.state is not None:
                found.append((j, s, self.state[b, d, s]))
        return found

    def outputs(self) -> np.ndarray:
        """Return the outputs in the layout of the call."""
        y = self.z * np.vectorize(sigmoid, otypes=[float])(self.z) if self.activation else self.z
        return y if self.layout == "BHL" else y.transpose(0, 2, 1)

    def final_state(self) -> np.ndarray:
        """Return the last K - 1 points."""
        batch, channels, _ = self.x.shape
        before = np.zeros((batch, channels, self.weight.shape[1] - 1)) if self.state is None else self.state
        points = np.concatenate((before, self.x), axis=-1)
        return points[..., points.shape[-1] - before.shape[-1] :]

    def gradients(self, dy: np.ndarray, d_final_state: np.ndarray | None = None) -> DepthwiseGradients:
        """Return the gradients of ``sum(dy * outputs) + sum(d_final_state * final_state)``, `x`'s in its layout."""
        dz = dy.astype(np.float64) if self.layout == "BHL" else dy.astype(np.float64).transpose(0, 2, 1)
        if self.activation:
            s = np.vectorize(sigmoid, otypes=[float])(self.z)
            dz = dz * s * (1 + self.z * (1 - s))
        kept = self.weight.shape[1] - 1
        # The points of the state come first.
        d_points = np.zeros((*self.x.shape[:2], kept + self.x.shape[2]))
        d_weight, d_bias = np.zeros(self.weight.shape), np.zeros(self.bias.shape)
        for b, d, t in np.ndindex(*dz.shape):
            if self.is_padding(b, t):
                continue
            d_bias[d] += dz[b, d, t]
            for j, s, value in self.seen(b, d, t):
                d_points[b, d, kept + s] += dz[b, d, t] * self.weight[d, j]
                d_weight[d, j] += dz[b, d, t] * value
        if d_final_state is not None:
            d_points[..., d_points.shape[-1] - kept :] += d_final_state.astype(np.float64)
        dx = d_points[..., kept:]
        return DepthwiseGradients(
            dx if self.layout == "BHL" else dx.transpose(0, 2, 1), d_weight, d_bias, d_points[..., :kept]
        )


def updated(
    x: np.ndarray,
    state: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    activation: str | None = None,
    cache_seqlens: np.ndarray | None = None,
    conv_state_indices: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return output and state after an update, point by point: each is put into the state before its output is found.

    A ring of W points holds point p at p % W; one that is shifted is a ring that has seen as many points as it holds,
    turned back at the end.
    """
    state = state.astype(np.float64)
    steps = x.astype(np.float64).reshape(*x.shape[:2], -1)
    size, width = state.shape[2], weight.shape[1]
    y = np.zeros(steps.shape)
    for b, d in np.ndindex(*steps.shape[:2]):
        row = b if conv_state_indices is None else int(conv_state_indices[b])
        if row < 0:
            continue
        seen = size if cache_seqlens is None else int(cache_seqlens[b])
        points = {p: state[row, d, p % size] for p in range(seen - width + 1, seen)}
        for i in range(steps.shape[2]):
            points[seen + i] = steps[b, d, i]
            taps = (weight[d, j].astype(np.float64) * points[seen + i - width + 1 + j] for j in range(width))
            z = sum(taps) + (0.0 if bias is None else float(bias[d]))
            y[b, d, i] = z * sigmoid(z) if activation else z
            if cache_seqlens is None:
                state[row, d] = [*state[row, d, 1:], steps[b, d, i]]
            else:
                state[row, d, (seen + i) % size] = steps[b, d, i]
    return y.reshape(x.shape), state


def agreement(name: str, result: np.ndarray, exact: np.ndarray, dtype: str) -> numeric.Agreement:
    """Compare an output, or the gradient of the argument `name`, with float64, by the bound that holds for it."""
    if name in ("weight", "bias"):
        return numeric.compare_sum(result, exact, dtype)
    return numeric.compare(result, exact, dtype)
