"""Depthwise convolutions on the CPU by NumPy: values, gradients, states and packed sequences, in every framework."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
from depthwise_cases import NAMES, PADDINGS, Loops, agreement, case, converted, random
from frameworks import CPU_FRAMEWORKS, convert, to_float64
from pairwise import pairwise_cover

from fftconv_cupy import depthwise, depthwise_conv1d, depthwise_conv1d_vjp, depthwise_numpy
from fftconv_cupy.problem import CPU_DTYPES
from fftconv_cupy.readers import NUMPY_DTYPES

WIDTHS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 127, 128)
AXES = {
    "sizes": [(2, 3, 16), (1, 1, 1), (3, 2, 7), (1, 5, 33), (2, 1, 130)],
    "width": list(WIDTHS),
    "padding": ["causal", "same", "int"],
    "activation": [None, "silu"],
    "layout": ["BHL", "BLH"],
    "dtype": list(CPU_DTYPES),
    "weight_dtype": list(CPU_DTYPES),
    "bias_dtype": [None, *CPU_DTYPES],
    "extra": ["none", "state", "seq_idx"],
    "framework": list(CPU_FRAMEWORKS),
}


def is_allowed(c):
    return (c["extra"] == "none" or c["padding"] == "causal") and (
        c["framework"] != "jax" or "float64" not in (c["dtype"], c["weight_dtype"], c["bias_dtype"])
    )


# Of half a million combinations every 131st, which is prime to the lengths of the axes.
SOME = itertools.islice(itertools.product(*AXES.values()), 0, None, 131)
ALLOWED = [c for c in (dict(zip(AXES, values, strict=True)) for values in SOME) if is_allowed(c)]
CASES = [ALLOWED[i] for i in pairwise_cover(ALLOWED)]


def test_every_value_of_every_axis_is_in_some_case():
    for axis, values in AXES.items():
        assert {c[axis] for c in CASES} == set(values)


def padding_of(c):
    _, _, seqlen = c["sizes"]
    return max(1, (c["width"] - seqlen + 1) // 2 + 1) if c["padding"] == "int" else c["padding"]


def make(rng, c):
    arrays = case(
        rng,
        (*c["sizes"], c["width"]),
        **{name: c[name] for name in ("dtype", "weight_dtype", "bias_dtype", "layout")},
        with_state=c["extra"] == "state",
        with_seq_idx=c["extra"] == "seq_idx",
    )
    options = {"padding": padding_of(c), "activation": c["activation"], "layout": c["layout"]}
    return arrays, options


@pytest.mark.parametrize("c", CASES, ids=str)
def test_values_and_gradients_agree_with_sums_tap_by_tap(rng, c):
    arrays, options = make(rng, c)
    exact = Loops(arrays, **options)
    given = converted(c["framework"], arrays)
    result = depthwise_conv1d(**given, **options, return_final_state=c["extra"] == "state")
    d_final = None
    if c["extra"] == "state":
        result, final = result
        assert np.array_equal(to_float64(final), exact.final_state())
        d_final = random(rng, exact.final_state().shape, c["dtype"])
    assert type(result) is type(given["x"])
    assert result.dtype == given["x"].dtype
    y = exact.outputs()
    assert agreement("y", to_float64(result), y, c["dtype"]).ok
    dy = random(rng, y.shape, c["dtype"])
    d_final_given = {} if d_final is None else {"d_final_state": convert(c["framework"], d_final)}
    grads = depthwise_conv1d_vjp(convert(c["framework"], dy), **given, **options, **d_final_given)
    for name, grad, grad64 in zip(NAMES, grads, exact.gradients(dy, d_final), strict=True):
        if name not in arrays:
            assert grad is None
            continue
        assert tuple(grad.shape) == arrays[name].shape
        assert grad.dtype == given[name].dtype
        found = agreement(name, to_float64(grad), grad64, str(arrays[name].dtype))
        assert found.ok, (name, found)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("padding", PADDINGS)
def test_it_is_the_convolution_of_torch(rng, padding, width):
    torch = pytest.importorskip("torch")
    arrays = converted("torch", case(rng, (2, 3, 9, width), dtype="float64", weight_dtype="float64"))
    x, weight, bias = arrays["x"], arrays["weight"], arrays["bias"].double()
    y = depthwise_conv1d(x, weight, bias, padding=padding)
    left = width - 1 if padding == "causal" else padding
    expected = torch.nn.functional.conv1d(x, weight[:, None], bias, padding=left, groups=3)
    if padding == "causal":
        expected = expected[..., :9]
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_chunks_with_their_states_are_one_call(rng, layout):
    arrays = case(rng, (2, 3, 40, 5), dtype="bfloat16", layout=layout)
    whole = depthwise_conv1d(**arrays, activation="silu", layout=layout)
    axis, state, pieces, first = 2 if layout == "BHL" else 1, None, [], 0
    for length in (1, 2, 17, 3, 17):
        x = np.take(arrays["x"], range(first, first + length), axis)
        y, state = depthwise_conv1d(
            **{**arrays, "x": x}, activation="silu", layout=layout, initial_state=state, return_final_state=True
        )
        pieces.append(y)
        first += length
    assert np.array_equal(np.concatenate(pieces, axis), whole)


def test_packed_sequences_are_the_calls_one_by_one(rng):
    arrays = case(rng, (1, 3, 20, 4))
    lengths = (1, 3, 9, 7)
    seq_idx = np.repeat(np.arange(4, dtype=np.int32), lengths)[None]
    y = depthwise_conv1d(**arrays, seq_idx=seq_idx)
    first = 0
    for length in lengths:
        one = depthwise_conv1d(**{**arrays, "x": arrays["x"][..., first : first + length]})
        assert np.array_equal(y[..., first : first + length], one)
        first += length


def test_a_negative_index_marks_padding_whose_output_is_0(rng):
    arrays = case(rng, (1, 2, 8, 3))
    arrays["x"][..., 3:5] = np.nan
    seq_idx = np.array([[0, 0, 0, -1, -1, 2, 2, 2]], np.int32)
    y = depthwise_conv1d(**arrays, seq_idx=seq_idx)
    assert not y[..., 3:5].any()
    assert np.isfinite(y).all()
    grads = depthwise_conv1d_vjp(np.ones_like(y), **arrays, seq_idx=seq_idx)
    assert not grads.x[..., 3:5].any()
    assert np.isfinite(grads.weight).all()
    assert grads.bias.tolist() == [6, 6]


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_a_value_that_is_not_finite_stays_in_its_row(rng, layout):
    arrays = case(rng, (2, 3, 16, 4), layout=layout)
    arrays["x"][(1, 2, 5) if layout == "BHL" else (1, 5, 2)] = np.nan
    y = depthwise_conv1d(**arrays, layout=layout)
    rows = y if layout == "BHL" else y.transpose(0, 2, 1)
    assert np.argwhere(np.isnan(rows)).tolist() == [[1, 2, t] for t in (5, 6, 7, 8)]
    grads = depthwise_conv1d_vjp(np.ones_like(y), **arrays, layout=layout)
    assert np.isfinite(grads.weight).all(axis=1).tolist() == [True, True, False]
    assert np.isfinite(grads.x).all()
    assert np.isfinite(grads.bias).all()


def test_only_what_is_wanted_is_returned(rng):
    arrays = case(rng, with_state=True)
    dy = random(rng, (2, 3, 16), "float32")
    whole = depthwise_conv1d_vjp(dy, **arrays)
    for names in (("x",), ("weight",), ("bias",), ("initial_state", "weight"), NAMES):
        grads = depthwise_conv1d_vjp(dy, **arrays, wrt=iter(names))
        for name, grad, known in zip(NAMES, grads, whole, strict=True):
            assert np.array_equal(grad, known) if name in names else grad is None
    assert depthwise_conv1d_vjp(dy, **arrays, wrt="bias").bias is not None


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_an_empty_batch_has_no_output_and_zero_sums(rng, framework):
    arrays = converted(framework, case(rng, (0, 3, 16, 4), with_state=True))
    y, state = depthwise_conv1d(**arrays, return_final_state=True)
    assert tuple(y.shape) == (0, 3, 16)
    assert tuple(state.shape) == (0, 3, 3)
    grads = depthwise_conv1d_vjp(y, **arrays)
    assert not to_float64(grads.weight).any()
    assert not to_float64(grads.bias).any()
    assert tuple(grads.initial_state.shape) == (0, 3, 3)


def test_any_strides_give_the_same_bits(rng):
    for layout in ("BHL", "BLH"):
        arrays = case(rng, (3, 4, 20, 5), layout=layout, with_state=True)
        dy = random(rng, arrays["x"].shape, "float32")
        y, grads = (
            depthwise_conv1d(**arrays, layout=layout),
            depthwise_conv1d_vjp(dy, **arrays, layout=layout),
        )
        strided = {}
        for name, array in {**arrays, "dy": dy}.items():
            base = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
            strided[name] = base[(slice(None, None, -2),) * array.ndim]
            strided[name][...] = array
        dy_strided = strided.pop("dy")
        assert np.array_equal(depthwise_conv1d(**strided, layout=layout), y)
        for one, other in zip(depthwise_conv1d_vjp(dy_strided, **strided, layout=layout), grads, strict=True):
            assert np.array_equal(one, other)


def test_rows_are_worked_on_in_groups_of_any_size(rng, monkeypatch):
    arrays = case(rng, (3, 5, 30, 4), with_state=True)
    dy = random(rng, (3, 5, 30), "float32")
    y, grads = depthwise_conv1d(**arrays), depthwise_conv1d_vjp(dy, **arrays)
    for points in (1, 70, 300):
        monkeypatch.setattr(depthwise_numpy, "_GROUP_POINTS", points)
        assert np.array_equal(depthwise_conv1d(**arrays), y)
        for name, one, other in zip(NAMES, depthwise_conv1d_vjp(dy, **arrays), grads, strict=True):
            assert agreement(name, one, other.astype(np.float64), "float32").ok


@pytest.mark.filterwarnings("error")
def test_a_point_at_the_far_end_of_float16_overflows_without_a_warning(rng):
    arrays = {"x": np.full((1, 1, 4), 6e4, np.float16), "weight": np.ones((1, 3), np.float16)}
    assert np.isinf(depthwise_conv1d(**arrays, activation="silu")[0, 0, 1:]).all()
    assert not depthwise_conv1d(x=-arrays["x"], weight=arrays["weight"], activation="swish").any()


def test_indices_come_from_any_array_that_exports_them(rng):
    arrays = case(rng, with_seq_idx=True)

    class Exported:
        def __dlpack__(self, **options):
            return arrays["seq_idx"].__dlpack__(**options)

        def __dlpack_device__(self):
            return arrays["seq_idx"].__dlpack_device__()

    y = depthwise_conv1d(**arrays)
    assert np.array_equal(depthwise_conv1d(**{**arrays, "seq_idx": Exported()}), y)
    rows = np.zeros((16, 4), np.int32)[:, ::2]
    rows.T[...] = arrays["seq_idx"]
    assert np.array_equal(depthwise_conv1d(**{**arrays, "seq_idx": rows.T}), y)


def test_results_are_rounded_once():
    # A tie of bfloat16 in float32, which loses the last term; it is none in fact.
    x = np.array([[[1.0, 2.0**-8, 2.0**-30]]]).astype(NUMPY_DTYPES["bfloat16"])
    assert float(depthwise_conv1d(x, np.ones((1, 3), np.float32))[0, 0, 2]) == 1 + 2.0**-7


def test_the_examples_in_the_docstrings():
    failed, tried = doctest.testmod(depthwise)
    assert tried
    assert not failed
