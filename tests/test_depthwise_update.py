"""Steps of a causal convolution, in place on the state, as `causal_conv1d_update` takes them."""

from __future__ import annotations

import numpy as np
import pytest
from depthwise_cases import agreement, converted, random, updated
from frameworks import allocated, convert, to_float64

from fftconv_cupy import depthwise_conv1d, depthwise_conv1d_update
from fftconv_cupy.errors import InvalidArgumentError
from fftconv_cupy.problem import DTYPES

FRAMEWORKS = ("numpy", "torch")


def step(rng, batch=3, channels=2, steps=1, width=4, size=None, dtype="float32", rows=None):
    """Return the arrays of an update."""
    return {
        "x": random(rng, (batch, channels) if steps is None else (batch, channels, steps), dtype),
        "state": random(rng, (rows or batch, channels, size or width), dtype),
        "weight": random(rng, (channels, width), "float32"),
        "bias": random(rng, (channels,), "float32"),
    }


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_it_is_the_reference_of_causal_conv1d(rng, framework, dtype, is_ring, is_mapped):
    for number, (steps, width, size) in enumerate(
        ((None, 4, 3), (1, 4, 4), (2, 4, 7), (5, 3, 2), (9, 4, 4), (3, 1, 1), (1, 2, 1), (3, 128, 127))
    ):
        arrays = step(rng, 3, 2, steps, width, size, dtype, rows=5 if is_mapped else None)
        if is_ring:
            arrays["cache_seqlens"] = np.array([0, number, 12345], np.int32)
        if is_mapped:
            arrays["conv_state_indices"] = np.array([4, -1, 2], np.int32)
        if number % 3 == 0:
            del arrays["bias"]
        activation = ("silu", None)[number % 2]
        before = arrays["state"].copy()
        y64, state64 = updated(**arrays, activation=activation)
        given = converted(framework, arrays)
        if framework == "numpy":
            given["state"] = before
        y = depthwise_conv1d_update(**given, activation=activation)
        assert type(y) is type(given["x"])
        assert tuple(y.shape) == arrays["x"].shape
        assert y.dtype == given["x"].dtype
        assert agreement("y", to_float64(y), y64, dtype).ok, number
        assert np.array_equal(to_float64(given["state"]), state64), number


@pytest.mark.parametrize("is_ring", [False, True])
def test_steps_are_the_whole_convolution(rng, is_ring):
    x, weight, bias = random(rng, (2, 3, 30), "float16"), random(rng, (3, 4), "float32"), random(rng, (3,), "float16")
    whole, final = depthwise_conv1d(x, weight, bias, activation="silu", return_final_state=True)
    state, first = np.zeros((2, 3, 5 if is_ring else 3), np.float16), 0
    for steps in (1, 1, 4, 7, 1, 16):
        seen = {"cache_seqlens": np.full(2, first, np.int32)} if is_ring else {}
        y = depthwise_conv1d_update(x[..., first : first + steps], state, weight, bias, activation="silu", **seen)
        assert np.array_equal(y, whole[..., first : first + steps])
        first += steps
    assert np.array_equal(np.roll(state, -30, axis=-1)[..., -3:] if is_ring else state, final)


def test_a_state_of_any_strides_is_written_in_place(rng):
    arrays = step(rng, 3, 2, 2, 4, 5)
    expected = {**arrays, "state": arrays["state"].copy()}
    y = depthwise_conv1d_update(**expected)
    base = np.full((5, 3, 6), 7.0, np.float32)
    state = base[:, :, ::-3].transpose(1, 2, 0)
    state[...] = arrays["state"]
    assert np.array_equal(depthwise_conv1d_update(**{**arrays, "state": state}), y)
    assert np.array_equal(state, expected["state"])
    assert (base[:, :, [0, 1, 3, 4]] == 7).all()


def test_rows_of_the_state_that_are_not_named_are_left_alone(rng):
    arrays = step(rng, 2, 3, 1, 4, 3, rows=6)
    before = arrays["state"].copy()
    y = depthwise_conv1d_update(**arrays, conv_state_indices=np.array([4, -1], np.int32))
    changed = (arrays["state"] != before).any(axis=(1, 2))
    assert changed.tolist() == [False, False, False, False, True, False]
    assert not y[1].any()


def test_an_index_past_the_state_is_refused_and_nothing_written(rng):
    arrays = step(rng, 2, 3, 1, 4, 3, rows=6)
    before = arrays["state"].copy()
    with pytest.raises(InvalidArgumentError, match=r"conv_state_indices: got 6; allowed: rows of state, 0 to 5"):
        depthwise_conv1d_update(**arrays, conv_state_indices=np.array([0, 6], np.int32))
    assert np.array_equal(arrays["state"], before)


def test_a_read_only_or_overlapping_state_is_refused(rng):
    arrays = step(rng, 2, 3, 1, 4, 3)
    arrays["state"].flags.writeable = False
    with pytest.raises(InvalidArgumentError, match="state: got a read-only array"):
        depthwise_conv1d_update(**arrays)
    buffer = np.zeros((2, 3, 8), np.float32)
    for x in (buffer[..., :1], buffer[..., 2:3]):
        with pytest.raises(InvalidArgumentError, match="state: got memory that overlaps x"):
            depthwise_conv1d_update(**{**arrays, "x": x, "state": buffer[..., :4]})
    depthwise_conv1d_update(**{**arrays, "x": buffer[..., 4:5], "state": buffer[..., :4]})
    wide = np.lib.stride_tricks.as_strided(buffer, (2, 3, 4), (0, 32, 4))
    with pytest.raises(InvalidArgumentError, match="share an address"):
        depthwise_conv1d_update(**{**arrays, "state": wide})


def test_an_empty_batch(rng):
    for framework in FRAMEWORKS:
        with allocated(framework):
            arrays = converted(framework, step(rng, 0, 3, 2, 4, 3))
            assert tuple(depthwise_conv1d_update(**arrays).shape) == (0, 3, 2)
            rows = convert(framework, random(rng, (4, 3, 3), "float32"))
            none = convert(framework, np.zeros(0, np.int32))
            assert depthwise_conv1d_update(**{**arrays, "state": rows}, conv_state_indices=none).shape[0] == 0


def test_torch_is_told_that_the_state_has_changed(rng):
    torch = pytest.importorskip("torch")
    arrays = converted("torch", step(rng))
    version = arrays["state"]._version
    depthwise_conv1d_update(**arrays)
    assert arrays["state"]._version > version
    arrays["weight"].requires_grad_()
    with torch.no_grad():
        depthwise_conv1d_update(**arrays)
