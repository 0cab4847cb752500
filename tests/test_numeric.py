"""The error measure rejects what is wrong, and the float64 reference agrees with sums written out."""

from __future__ import annotations

import numpy as np
import pytest

from fftconv_cupy import numeric, reference
from fftconv_cupy.problem import MODES
from fftconv_cupy.readers import NUMPY_DTYPES

DTYPES = ("float16", "bfloat16", "float32")


def result(rng: np.random.Generator, shape: tuple[int, ...] = (2, 3, 4096)) -> np.ndarray:
    """Return a plausible convolution output in float64."""
    return rng.standard_normal(shape) * 0.02


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_result_is_accepted(rng, dtype):
    y64 = result(rng)
    agreement = numeric.compare(y64.astype(NUMPY_DTYPES[dtype]), y64, dtype)
    assert agreement.ok
    assert 0 < agreement.error < 3e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", ["zeros", "shifted", "conjugated", "unwritten", "one outlier", "half zeros"])
def test_wrong_results_are_rejected(rng, dtype, wrong):
    y64 = result(rng)
    y = y64.copy()
    if wrong == "zeros":
        y[:] = 0
    elif wrong == "shifted":
        y = np.roll(y64, 1, axis=-1)
    elif wrong == "conjugated":
        y = np.fft.irfft(np.fft.rfft(y64).conj(), y64.shape[-1])
    elif wrong == "unwritten":
        y[1, 2, -1] = np.nan
    elif wrong == "one outlier":
        y[1, 2, 7] += 0.02
    elif wrong == "half zeros":
        y[..., 2048:] = 0
    agreement = numeric.compare(y.astype(NUMPY_DTYPES[dtype]), y64, dtype)
    assert not agreement.ok


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_wrong_row_is_not_hidden_by_large_ones(rng, dtype):
    y64 = result(rng)
    y64[1, 1] *= 1e-4
    y = y64.copy()
    y[1, 1] = 0
    agreement = numeric.compare(y.astype(NUMPY_DTYPES[dtype]), y64, dtype)
    assert not agreement.ok
    assert agreement.row == (1, 1)


def test_sixteen_bit_intermediates_are_rejected_in_fp16(rng):
    """Rounding twice, as a kernel with float16 intermediates would, is past the bound."""
    y64 = result(rng)
    twice = (y64 * 1.1).astype(np.float16).astype(np.float64) / 1.1
    assert not numeric.compare(twice.astype(np.float16), y64, "float16").ok


def test_error_of_zero_reference():
    zeros = np.zeros((2, 8))
    assert numeric.relative_error(zeros, zeros) == 0.0
    assert numeric.relative_error(zeros + 1e-30, zeros) == np.inf


def test_bounds():
    y64 = np.linspace(0.1, 1.0, 4096)
    assert numeric.bound(y64, "float32") == 1e-6
    assert numeric.bound(y64, "float32", fft_size=32768) == 1e-6
    assert numeric.bound(y64, "float32", fft_size=65536) == 2e-6
    rounding = numeric.rounding_error(y64, "float16")
    assert numeric.bound(y64, "float16") == pytest.approx(1.2 * rounding + 1e-6)
    assert 1e-4 < rounding < 3e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_of_one_wave_may_err_more_where_roundings_are_in_step(rng, dtype):
    y64 = result(rng, (2, 2, 2048))
    options = {"precision": "medium", "is_one_wave": True}
    allowed = {"float16": (2.25e-3, 2.35e-3), "bfloat16": (2.75e-3, 2.9e-3)}[dtype]
    assert allowed[0] < numeric.bound(y64, dtype, **options) < allowed[1]
    y = y64 * (1 + np.array([[[0.0]], [[2.2e-3]]]))
    assert numeric.compare(y, y64, dtype, **options).ok
    assert not numeric.compare(y64 * 1.003, y64, dtype, **options).ok
    for others in ({"precision": "medium"}, {"is_one_wave": True}):
        assert not numeric.compare(y, y64, dtype, **others).ok
    assert numeric.compare_sum(y64, y64, "float32", **options).bound == pytest.approx(8**0.5 * 1e-3)


SUMS = [("float32", "highest"), ("float32", "medium"), ("float16", "highest")]


@pytest.mark.parametrize(("dtype", "precision"), SUMS)
def test_sums_that_cancel_are_judged_by_what_they_add_up(dtype, precision):
    terms, y64 = np.array([3.0, 4.0]), np.array([0.0, 5e-3]).astype(np.float16).astype(np.float64)
    allowed = numeric.compare_sum(y64, y64, "float32", precision=precision).bound * 5  # of the terms' norm

    def judged(error, terms):
        return numeric.compare_sum(y64 + np.array([error, 0.0]), y64, dtype, precision=precision, terms=terms)

    assert not judged(0.9 * allowed, None).ok
    assert judged(0.9 * allowed, terms).ok
    assert not judged(1.1 * allowed, terms).ok
    # Sums that are larger than their terms' norm are judged by themselves.
    assert judged(0.9 * allowed, terms / 1e6).error == judged(0.9 * allowed, None).error
    assert not numeric.compare_sum(np.full(2, np.nan), y64, dtype, precision=precision, terms=terms).ok


def test_each_row_of_many_sums_that_cancel_is_judged_by_its_own_terms(rng):
    y64, terms = 1e-3 * rng.standard_normal((2, 2048)), np.ones((2, 2048))
    y = y64 + np.array([[0.0], [2.1e-3]])
    assert numeric.compare_sum(y, y64, "float32", precision="medium", terms=terms).row == (1,)
    terms[0] *= 1e3  # which is no excuse for the other row
    assert not numeric.compare_sum(y, y64, "float32", precision="medium", terms=terms).ok
    assert numeric.compare_sum(y, y64, "float32", precision="medium", terms=2 * np.ones_like(terms)).ok


def written_out(u, k, mode, size, in_gate, out_gate, skip):
    """Sum the definition term by term."""
    batch, channels, seqlen = u.shape
    filter_len = k.shape[-1]
    x = u * in_gate
    outputs = seqlen + filter_len - 1 if mode == "full" else seqlen
    y = np.zeros((batch, channels, outputs))
    for t in range(outputs):
        for i in range(seqlen):
            for j in range(filter_len):
                lag = t + (filter_len - 1) // 2 if mode == "same" else t
                hit = (i + j) % size == t if mode == "circular" else i + j == lag
                if hit:
                    y[..., t] += x[..., i] * k[:, j]
        if t < seqlen:
            y[..., t] += skip * x[..., t]
    return out_gate * y


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("seqlen", "filter_len"), [(1, 1), (5, 3), (4, 4), (3, 8), (7, 1), (2, 9)])
@pytest.mark.parametrize("direct", [True, False])
def test_reference_is_the_written_out_sum(rng, monkeypatch, mode, seqlen, filter_len, direct):
    if not direct:
        monkeypatch.setattr(reference, "_DIRECT_PRODUCTS", 0)
    size = 8 if mode == "circular" else None
    u, in_gate = rng.standard_normal((2, 2, 3, seqlen))
    k, skip = rng.standard_normal((3, filter_len)), rng.standard_normal(3)
    outputs = seqlen + filter_len - 1 if mode == "full" else seqlen
    out_gate = rng.standard_normal((2, 3, outputs))
    y = reference.fftconv_reference(u, k, mode=mode, fft_size=size, in_gate=in_gate, out_gate=out_gate, skip=skip)
    expected = written_out(u, k, mode, size, in_gate, out_gate, skip)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_reference_shares_a_filter_between_channels(rng):
    u, k = rng.standard_normal((2, 3, 50)), rng.standard_normal(7)
    np.testing.assert_array_equal(
        reference.fftconv_reference(u, k), reference.fftconv_reference(u, np.stack([k, k, k]))
    )


def test_reference_circular_defaults_to_the_row(rng):
    u, k = rng.standard_normal((1, 1, 7)), rng.standard_normal((1, 20))
    folded = np.zeros(7)
    for j, tap in enumerate(k[0]):
        folded[j % 7] += tap
    expected = np.fft.ifft(np.fft.fft(u[0, 0]) * np.fft.fft(folded)).real
    np.testing.assert_allclose(reference.fftconv_reference(u, k, mode="circular")[0, 0], expected, atol=1e-13)


def test_reference_names_an_unknown_mode(rng):
    with pytest.raises(ValueError, match="no such mode: 'valid'"):
        reference.fftconv_reference(rng.standard_normal((1, 1, 4)), rng.standard_normal((1, 2)), mode="valid")
