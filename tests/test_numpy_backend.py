"""The CPU backend against a sum written out, over modes, lengths, FFT sizes and groups of rows."""

from __future__ import annotations

import numpy as np
import pytest
from frameworks import direct

from fftconv_cupy import fftconv, numpy_backend
from fftconv_cupy.problem import CPU_DTYPES, MODES, make_problem
from fftconv_cupy.readers import NUMPY_DTYPES

LENGTHS = ((1, 1), (1, 5), (5, 1), (2, 2), (3, 7), (7, 3), (16, 16), (31, 17), (17, 64), (64, 200), (61, 61))


def problem_for(u, k, mode, fft_size=None, **flags):
    return make_problem(
        mode,
        batch=u.shape[0],
        channels=u.shape[1],
        seqlen=u.shape[2],
        filter_len=k.shape[-1],
        dtype="float64",
        filter_dtype="float64",
        fft_size=fft_size,
        shared_filter=k.ndim == 1,
        dtypes=CPU_DTYPES,
        **flags,
    )


def convolve(u, k, mode, fft_size=None, in_gate=None, out_gate=None, skip=None, *, prepared=False):
    problem = problem_for(u, k, mode, fft_size)
    out = np.full((*u.shape[:-1], problem.out_len), np.nan)
    filt = numpy_backend.filter_spectrum(problem, k) if prepared else k
    numpy_backend.convolve(problem, u, filt, in_gate, out_gate, skip, out)
    return out


def error(y, y64):
    return np.linalg.norm(y - y64) / np.linalg.norm(y64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_agrees_with_the_direct_sum(rng, mode, lengths):
    seqlen, filter_len = lengths
    u = rng.standard_normal((2, 3, seqlen))
    sizes = (None, 256, 1024) if mode == "circular" else (None, 1024)
    for k in (rng.standard_normal((3, filter_len)), rng.standard_normal(filter_len)):
        for fft_size in sizes:
            y64 = direct(u, k, mode=mode, fft_size=fft_size)
            y = convolve(u, k, mode, fft_size)
            assert error(y, y64) < 1e-14
            assert np.array_equal(y, convolve(u, k, mode, fft_size, prepared=True))


@pytest.mark.parametrize("fft_size", [1, 2, 4, 8, 16, 32, 64, 1 << 40])
@pytest.mark.parametrize("filter_len", [1, 3, 8, 21, 70])
def test_circular_periods_around_the_row(rng, fft_size, filter_len):
    for seqlen in range(1, min(fft_size, 20) + 1):
        u, k = rng.standard_normal((1, 2, seqlen)), rng.standard_normal((2, filter_len))
        # A period longer than every lag wraps nothing back, as the next smaller one of these sizes shows.
        y64 = direct(u, k, mode="circular", fft_size=min(fft_size, 256))
        given = fft_size if fft_size > 1 else None
        assert error(convolve(u, k, "circular", given), y64) < 1e-14


def test_a_larger_size_changes_nothing_in_linear_modes(rng):
    u, k = rng.standard_normal((2, 2, 50)), rng.standard_normal((2, 9))
    for mode in ("causal", "full", "same"):
        assert np.array_equal(convolve(u, k, mode), convolve(u, k, mode, 1 << 30))


@pytest.mark.parametrize("mode", MODES)
def test_gates_and_skip(rng, mode):
    u, k, skip = rng.standard_normal((3, 2, 20)), rng.standard_normal((2, 11)), rng.standard_normal(2)
    in_gate = rng.standard_normal(u.shape)
    out_gate = rng.standard_normal(direct(u, k, mode=mode).shape)
    for given in range(8):
        parts = {
            name: value if given >> bit & 1 else None
            for bit, (name, value) in enumerate((("in_gate", in_gate), ("out_gate", out_gate), ("skip", skip)))
        }
        assert error(convolve(u, k, mode, **parts), direct(u, k, mode=mode, **parts)) < 1e-14


@pytest.mark.parametrize("shared", [False, True])
def test_groups_of_rows_give_the_same(rng, monkeypatch, shared):
    u, gate = rng.standard_normal((5, 7, 33)), rng.standard_normal((5, 7, 33))
    k, skip = rng.standard_normal(9) if shared else rng.standard_normal((7, 9)), rng.standard_normal(7)
    whole = convolve(u, k, "causal", None, gate, gate, skip)
    for points in (1, 64, 200, 1000):
        monkeypatch.setattr(numpy_backend, "_GROUP_POINTS", points)
        assert np.array_equal(convolve(u, k, "causal", None, gate, gate, skip), whole)
        assert np.array_equal(convolve(u, k, "causal", None, gate, gate, skip, prepared=True), whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_stays_in_its_row(rng, bad):
    u, k = rng.standard_normal((3, 4, 50)), rng.standard_normal((4, 8))
    clean = convolve(u, k, "causal")
    u[1, 2, 7] = bad
    y = convolve(u, k, "causal")
    others = np.ones((3, 4), bool)
    others[1, 2] = False
    assert np.array_equal(y[others], clean[others])
    assert not np.isfinite(y[1, 2]).all()


def test_a_tiny_row_beside_a_huge_one_keeps_its_accuracy(rng):
    u, k = rng.standard_normal((2, 1, 64)), rng.standard_normal((1, 64))
    u[1] *= 1e-30
    y, y64 = convolve(u, k, "circular"), direct(u, k, mode="circular")
    assert error(y[1], y64[1]) < 1e-14


def test_bfloat16_is_rounded_once():
    tie = 1 + 2.0**-8  # between two bfloat16 numbers, of which the even one is 1
    y = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40, 1e-60, -1e-60, 3e38, 1e300, np.inf, -np.inf])
    rounded = [1, 1 + 2.0**-7, 1, -1 - 2.0**-7, 0, 0, 3e38, np.inf, np.inf, -np.inf]
    with np.errstate(over="ignore"):
        got = numpy_backend._to_bfloat16(y).astype(np.float64)
        assert np.isnan(numpy_backend._to_bfloat16(np.array([np.nan])).astype(np.float64))
    assert np.allclose(got, rounded, rtol=2**-8, atol=0)
    assert np.array_equal(got[:6], rounded[:6])
    u = np.ones(2, NUMPY_DTYPES["bfloat16"])
    assert fftconv(u, np.array([tie, 2.0**-40], np.float32))[1] == 1 + 2.0**-7


def test_bfloat16_is_the_nearest(rng):
    y = rng.standard_normal(2000) * 10.0 ** rng.integers(-36, 38, 2000)
    got = numpy_backend._to_bfloat16(y)
    away = np.abs(got.astype(np.float64) - y)
    bits = got.view(np.int16)
    for step in (-1, 1):
        assert (away <= np.abs((bits + np.int16(step)).view(got.dtype).astype(np.float64) - y)).all()
