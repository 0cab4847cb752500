"""Cases of decoding with a depthwise convolution: a few steps, in place on a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from depthwise_kernel_runs import small, strided, view_of
from host_runtime.cupy_host import to_cupy, to_numpy
from host_runtime.harness import ORDERS
from kernel_runs import describe, host_gpu

from fftconv_cupy import launch_depthwise, numeric
from fftconv_cupy.depthwise_problem import make_depthwise_problem
from fftconv_cupy.readers import NUMPY_DTYPES

_UPDATE_BATCH, _UPDATE_CHANNELS = 4, 130


@dataclass(frozen=True, slots=True)
class UpdateCase:
    """A few steps of decoding.

    Attributes:
        width: of the filter.
        state_len: points that a row of the state holds.
        steps: new points, or None for one without an axis of its own.
        is_ring: with cache_seqlens.
        has_indices: with conv_state_indices, one of them negative, and more rows of the state.
        dtype: of the points.
        weight_dtype: of the taps.
        bias_dtype: of the bias, or None.
        activation: "silu" or None.
        race_check: look for races.
    """

    width: int
    state_len: int
    steps: int | None
    is_ring: bool
    has_indices: bool
    dtype: str = "float16"
    weight_dtype: str = "float32"
    bias_dtype: str | None = "float32"
    activation: str | None = None
    race_check: bool = False


class _UpdateInputs(NamedTuple):
    x: np.ndarray
    state: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    cache_seqlens: np.ndarray | None
    indices: np.ndarray | None


def _draw_update(case: UpdateCase) -> _UpdateInputs:
    generator = np.random.default_rng(case.width)
    batch, channels = _UPDATE_BATCH, _UPDATE_CHANNELS

    def draw(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return generator.standard_normal(shape).astype(NUMPY_DTYPES[dtype])

    return _UpdateInputs(
        draw((batch, channels) if case.steps is None else (batch, channels, case.steps), case.dtype),
        draw((batch + 3 * case.has_indices, channels, case.state_len), case.dtype),
        draw((channels, case.width), case.weight_dtype),
        None if case.bias_dtype is None else draw((channels,), case.bias_dtype),
        np.array([0, 2, 1000, 2**31 - 1], np.int32) if case.is_ring else None,
        np.array([5, -1, 0, 3], np.int32) if case.has_indices else None,
    )


def _exact_update(case: UpdateCase, inputs: _UpdateInputs) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs and states in float64: a ring is turned so that its oldest point comes first, and back."""
    points = inputs.x.astype(np.float64).reshape(_UPDATE_BATCH, _UPDATE_CHANNELS, -1)
    state, size = inputs.state.astype(np.float64), case.state_len
    y = np.zeros(points.shape)
    for row in range(_UPDATE_BATCH):
        index = row if inputs.indices is None else inputs.indices[row]
        if index < 0:
            continue
        turn = 0 if inputs.cache_seqlens is None or size == 0 else int(inputs.cache_seqlens[row]) % size
        seen = np.concatenate((np.roll(state[index], -turn, axis=1), points[row]), axis=1)
        for step in range(points.shape[2]):
            window = seen[:, size + step + 1 - case.width : size + step + 1]
            y[row, :, step] = (window * inputs.weight.astype(np.float64)).sum(axis=1)
        end = turn + points.shape[2] if inputs.cache_seqlens is not None else 0
        state[index] = np.roll(seen[:, seen.shape[1] - size :], end, axis=1)
        if inputs.bias is not None:
            y[row] += inputs.bias.astype(np.float64)[:, None]
    if case.activation:
        y = y / (1 + np.exp(-y))
    return y.reshape(inputs.x.shape), state


def check_update(case: UpdateCase) -> None:
    """Run a few steps of decoding: outputs within the bounds, the states of the rows exactly, and no others."""
    inputs = _draw_update(case)
    problem = make_depthwise_problem(
        batch=_UPDATE_BATCH,
        channels=_UPDATE_CHANNELS,
        seqlen=case.steps or 1,
        width=case.width,
        activation=case.activation,
        dtype=case.dtype,
        weight_dtype=case.weight_dtype,
        bias_dtype=case.bias_dtype,
    )
    with host_gpu("sm_90", order=ORDERS[1], race_check=case.race_check):
        state = to_cupy(inputs.state)
        out = to_cupy(np.full(inputs.x.shape, np.nan, inputs.x.dtype))
        launch_depthwise.run_update(
            problem,
            view_of(to_cupy(inputs.x), case.dtype),
            view_of(state, case.dtype),
            strided(inputs.weight, case.weight_dtype),
            small(inputs.bias, case.bias_dtype),
            small(inputs.cache_seqlens, None),
            small(inputs.indices, None),
            view_of(out, case.dtype),
            0,
        )
        y, after = to_numpy(out).copy(), to_numpy(state).copy()
    exact_y, exact_state = _exact_update(case, inputs)
    found = numeric.compare(y, exact_y, case.dtype)
    assert found.ok, describe(found)
    assert (after.astype(np.float64) == exact_state).all()
