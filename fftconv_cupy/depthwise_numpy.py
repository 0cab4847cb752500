"""The short depthwise convolution on the CPU: sums over taps in float64, each result rounded once to its dtype.

Whatever the layout, rows are worked on as (batch, channels, points), in groups that keep the float64 copies small. A
row is never combined with another one, but in the gradients that sum over rows; so a non-finite value stays in its row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseProblem
from fftconv_cupy.numpy_backend import expected_errors, store

Array = NDArray[Any]
Float64 = NDArray[np.float64]
_GROUP_POINTS = 1 << 20  # points of a group: 8 MiB in float64


def convolve(
    problem: DepthwiseProblem,
    x: Array,
    weight: Array,
    bias: Array | None,
    seq_idx: NDArray[np.int32] | None,
    initial_state: Array | None,
    out: Array,
    final_state: Array | None,
) -> None:
    """Fill `out` with the activated convolution, and `final_state` with the last K - 1 points of the rows.

    Args:
        problem: lengths, layout, activation.
        x: (B, D, L) or (B, L, D), as the layout says.
        weight: (D, K).
        bias: (D,) or None.
        seq_idx: (B, L) or None.
        initial_state: (B, D, K - 1) or None.
        out: like `x`, but of the outputs' length; written in its own dtype. Must share no memory with the inputs.
        final_state: (B, D, K - 1) or None, written likewise.
    """
    x, out = _as_rows(problem, x), _as_rows(problem, out)
    with expected_errors():
        for channels, batches in _groups(problem):
            for batch in batches:
                group = _Group(problem, (batch, channels), x, weight, bias, seq_idx, initial_state)
                z = group.outputs()
                store(out, group.index, z if problem.activation is None else z * _sigmoid(z))
                if final_state is not None:
                    store(final_state, group.index, group.padded[..., problem.seqlen :])


def vjp(
    problem: DepthwiseProblem,
    dy: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    seq_idx: NDArray[np.int32] | None,
    initial_state: Array | None,
    d_final_state: Array | None,
    grads: DepthwiseGradients,
) -> None:
    """Fill `grads` with the gradients of ``sum(dy * y) + sum(d_final_state * final_state)``.

    Args:
        problem: lengths, layout, activation.
        dy: of the shape of the output.
        x: as for `convolve`, as are the arguments that follow.
        weight: (D, K).
        bias: (D,) or None.
        seq_idx: (B, L) or None.
        initial_state: (B, D, K - 1) or None.
        d_final_state: (B, D, K - 1) or None.
        grads: arrays with the shapes of the arguments, written in their own dtypes; what is None is not computed.
    """
    x, dy = _as_rows(problem, x), _as_rows(problem, dy)
    dx = None if grads.x is None else _as_rows(problem, grads.x)
    with expected_errors():
        for channels, batches in _groups(problem):
            count = weight[channels].shape[0]
            d_weight, d_bias = np.zeros((count, problem.width)), np.zeros(count)
            for batch in batches:
                group = _Group(problem, (batch, channels), x, weight, bias, seq_idx, initial_state)
                dz = group.before_activation(dy[group.index].astype(np.float64))
                if dx is not None or grads.initial_state is not None:
                    d_padded = group.input_gradients(dz)
                    if d_final_state is not None:
                        d_padded[..., problem.seqlen :] += d_final_state[group.index].astype(np.float64)
                    if dx is not None:
                        store(dx, group.index, d_padded[..., problem.pad : problem.pad + problem.seqlen])
                    if grads.initial_state is not None:
                        store(grads.initial_state, group.index, d_padded[..., : problem.pad])
                if grads.weight is not None:
                    d_weight += group.tap_gradients(dz)
                d_bias += dz.sum(axis=(0, 2))
            if grads.weight is not None:
                store(grads.weight, (channels,), d_weight)
            if grads.bias is not None:
                store(grads.bias, (channels,), d_bias)


def update(
    x: Array,
    state: Array,
    weight: Array,
    bias: Array | None,
    cache_seqlens: NDArray[np.int32] | None,
    conv_state_indices: NDArray[np.int32] | None,
    activation: str | None,
    out: Array,
) -> None:
    """Fill `out` with the outputs of a few more points, and put these into `state`.

    Args:
        x: (B, D, S).
        state: (N, D, W), written in place.
        weight: (D, K) with K - 1 <= W.
        bias: (D,) or None.
        cache_seqlens: (B,) or None; see `fftconv_cupy.depthwise_conv1d_update`, as for the next.
        conv_state_indices: (B,) with entries below N, or None.
        activation: "silu" or None.
        out: (B, D, S).
    """
    batch, _, steps = x.shape
    size, width = state.shape[2], weight.shape[1]
    taps = weight.astype(np.float64)
    kept = min(steps, size)  # of more points than the state holds, only the last are kept
    with expected_errors():
        for b in range(batch):
            row = b if conv_state_indices is None else int(conv_state_indices[b])
            if row < 0:
                out[b] = 0
                continue
            first = size if cache_seqlens is None else int(cache_seqlens[b])
            before = state[row][:, np.arange(first - width + 1, first) % size]
            points = np.concatenate((before, x[b]), axis=-1).astype(np.float64)
            z = sum((taps[:, j, None] * points[:, j : j + steps] for j in range(width)), np.zeros(x[b].shape))
            if bias is not None:
                z = z + bias[:, None].astype(np.float64)
            store(out, (slice(b, b + 1),), (z if activation is None else z * _sigmoid(z))[None])
            if cache_seqlens is None:
                state[row] = np.concatenate((state[row], x[b]), axis=-1)[:, -size:]
            else:
                state[row][:, np.arange(first + steps - kept, first + steps) % size] = x[b][:, steps - kept :]


class _Group:
    """Some rows of a call, padded: with the initial state where there is one, with zeros elsewhere."""

    def __init__(
        self,
        problem: DepthwiseProblem,
        index: tuple[slice, slice],
        x: Array,
        weight: Array,
        bias: Array | None,
        seq_idx: NDArray[np.int32] | None,
        initial_state: Array | None,
    ) -> None:
        self._problem, self.index = problem, index
        rows = x[index].astype(np.float64)
        self.padded: Float64 = np.zeros((*rows.shape[:2], problem.out_len + problem.width - 1))
        """The points that the taps see: output t sees those from t to t + K - 1."""
        self.padded[..., problem.pad : problem.pad + problem.seqlen] = rows
        if initial_state is not None:
            self.padded[..., : problem.pad] = initial_state[index].astype(np.float64)
        self._taps = weight[index[1]].astype(np.float64)
        self._bias = None if bias is None else bias[index[1], None].astype(np.float64)
        self._seq_idx = None
        if seq_idx is not None:
            here = seq_idx[index[0], None]
            self._seq_idx = np.pad(here, ((0, 0), (0, 0), (problem.pad, 0)), constant_values=-1)
            self._is_padding = here < 0

    def _counts(self, j: int) -> Any:
        """Return where tap j and its output belong to one sequence; True where there are none."""
        if self._seq_idx is None:
            return True
        here = self._seq_idx[..., self._problem.pad :]
        return (self._seq_idx[..., j : j + self._problem.out_len] == here) & (here >= 0)

    def outputs(self) -> Float64:
        """Return the outputs before the activation."""
        shape, points = self.padded.shape[:2], self._problem.out_len
        z = np.zeros((*shape, points))
        for j in range(self._problem.width):
            np.add(z, self._taps[:, j, None] * self.padded[..., j : j + points], out=z, where=self._counts(j))
        if self._bias is not None:
            z += self._bias
        return z if self._seq_idx is None else np.where(self._is_padding, 0.0, z)

    def before_activation(self, dy: Float64) -> Float64:
        """Return the gradient before the activation."""
        if self._problem.activation is not None:
            z = self.outputs()
            sigmoid = _sigmoid(z)
            dy = dy * sigmoid * (1 + z * (1 - sigmoid))
        return dy if self._seq_idx is None else np.where(self._is_padding, 0.0, dy)

    def input_gradients(self, dz: Float64) -> Float64:
        """Return the gradient of `padded`."""
        d_padded, points = np.zeros(self.padded.shape), self._problem.out_len
        for j in range(self._problem.width):
            seen = d_padded[..., j : j + points]
            np.add(seen, self._taps[:, j, None] * dz, out=seen, where=self._counts(j))
        return d_padded

    def tap_gradients(self, dz: Float64) -> Float64:
        """Return the gradient of the taps, (channels, K), summed over these batches."""
        points = self._problem.out_len
        sums = np.empty((self.padded.shape[1], self._problem.width))
        for j in range(self._problem.width):
            sums[:, j] = (dz * self.padded[..., j : j + points]).sum(axis=(0, 2), where=self._counts(j))
        return sums


def _as_rows(problem: DepthwiseProblem, array: Array) -> Array:
    """Return a view (batch, channels, points) of an array in the problem's layout."""
    return array if problem.layout == "BHL" else array.swapaxes(1, 2)


def _groups(problem: DepthwiseProblem) -> Iterator[tuple[slice, list[slice]]]:
    """Yield groups of channels, and for each the groups of batches that are computed at a time."""
    rows = max(1, _GROUP_POINTS // (problem.out_len + problem.width))
    channel_step = min(problem.channels, rows)
    batch_step = max(1, rows // channel_step)
    batches = [slice(start, start + batch_step) for start in range(0, problem.batch, batch_step)]
    for first in range(0, problem.channels, channel_step):
        yield slice(first, first + channel_step), batches


def _sigmoid(z: Float64) -> Float64:
    result: Float64 = 1 / (1 + np.exp(-z))
    return result
