"""The gradients of the CPU backend, and of the reference that judges them, against what gradients are."""

from __future__ import annotations

import numpy as np
import pytest
from frameworks import direct
from vjp_cases import NAMES, expected, vjp_case

from fftconv_cupy import Gradients, numpy_backend
from fftconv_cupy.problem import CPU_DTYPES, MODES, make_problem
from fftconv_cupy.readers import NUMPY_DTYPES

LENGTHS = ((1, 1), (1, 5), (5, 1), (2, 2), (3, 7), (7, 3), (16, 16), (31, 17), (17, 64), (64, 200), (61, 61))


def case(rng, lengths, mode, *, shared=False, batch=2, channels=3, flags=7):
    seqlen, filter_len = lengths
    k_shape = (filter_len,) if shared else (channels, filter_len)
    return vjp_case(rng, (batch, channels, seqlen), k_shape, mode, "float64", flags, "float64", "float64")


def backend(arrays, *, mode="causal", fft_size=None, wrt=None, prepared=False):
    """Return the gradients named in `wrt`, of all that is given where that is None."""
    u, k, skip = arrays["u"], arrays["k"], arrays.get("skip")
    problem = make_problem(
        mode,
        batch=u.shape[0],
        channels=u.shape[1],
        seqlen=u.shape[2],
        filter_len=k.shape[-1],
        dtype="float64",
        filter_dtype="float64",
        fft_size=fft_size,
        shared_filter=k.ndim == 1,
        in_gate="in_gate" in arrays,
        out_gate="out_gate" in arrays,
        skip=skip is not None,
        dtypes=CPU_DTYPES,
    )
    wanted = [name for name in NAMES if name in arrays] if wrt is None else wrt
    grads = Gradients(**{name: np.full(arrays[name].shape, np.nan, arrays[name].dtype) for name in wanted})
    filt = numpy_backend.filter_spectrum(problem, k) if prepared else k
    gates = arrays.get("in_gate"), arrays.get("out_gate")
    numpy_backend.vjp(problem, arrays["dy"], u, filt, *gates, skip, grads)
    return grads


def error(y, y64):
    return np.linalg.norm(y - y64) / np.linalg.norm(y64) if y64.any() else np.abs(y).max()


def assert_close(grads, grads64, bound=2e-14):
    for name, grad, grad64 in zip(NAMES, grads, grads64, strict=True):
        assert (grad is None) == (grad64 is None), name
        if grad is not None:
            assert grad.shape == grad64.shape
            assert error(grad, grad64) < bound, name


def loss(arrays, name, change, **options):
    """Return sum(dy * y) with an argument changed, y summed directly as the definition says."""
    changed = {**arrays, name: arrays[name] + change}
    dy = changed.pop("dy")
    return np.sum(dy * direct(changed.pop("u"), changed.pop("k"), **changed, **options))


def slope(arrays, name, direction, **options):
    # The output is affine in each argument alone: the central difference has no error but rounding, at any step.
    return (loss(arrays, name, direction, **options) - loss(arrays, name, -direction, **options)) / 2


GRADIENTS = {"backend": backend, "reference": expected}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", GRADIENTS)
def test_every_entry_is_the_slope_of_the_loss(rng, which, mode):
    for lengths in ((1, 1), (1, 3), (4, 1), (4, 3), (3, 7), (5, 5)):
        for shared in (False, True):
            for fft_size in (None, 8) if mode == "circular" else (None,):
                arrays = case(rng, lengths, mode, shared=shared, channels=2)
                grads = GRADIENTS[which](arrays, mode=mode, fft_size=fft_size)
                for name, grad in zip(NAMES, grads, strict=True):
                    numeric = np.empty(grad.shape)
                    for index in np.ndindex(grad.shape):
                        step = np.zeros(grad.shape)
                        step[index] = 1.0
                        numeric[index] = slope(arrays, name, step, mode=mode, fft_size=fft_size)
                    assert np.linalg.norm(grad - numeric) <= 1e-12 * (1 + np.linalg.norm(numeric)), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", GRADIENTS)
def test_slopes_in_random_directions(rng, which, mode):
    for lengths in LENGTHS:
        for fft_size in (None, 64, 1024) if mode == "circular" else (None,):
            arrays = case(rng, lengths, mode, batch=3)
            grads = GRADIENTS[which](arrays, mode=mode, fft_size=fft_size)
            for name, grad in zip(NAMES, grads, strict=True):
                direction = rng.standard_normal(grad.shape)
                wanted = slope(arrays, name, direction, mode=mode, fft_size=fft_size)
                scale = np.linalg.norm(grad) * np.linalg.norm(direction)
                assert abs(np.sum(grad * direction) - wanted) <= 1e-12 * (1 + scale), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [*LENGTHS, (1000, 700), (301, 1000)], ids=str)
def test_agrees_with_the_reference(rng, mode, lengths):
    for fft_size in (None, 2048):
        for shared in (False, True):
            arrays = case(rng, lengths, mode, shared=shared)
            grads = backend(arrays, mode=mode, fft_size=fft_size)
            assert_close(grads, expected(arrays, mode=mode, fft_size=fft_size))
            assert all(map(np.array_equal, grads, backend(arrays, mode=mode, fft_size=fft_size, prepared=True)))


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize("mode", MODES)
def test_gates_and_skip(rng, mode, flags):
    arrays = case(rng, (20, 11), mode, flags=flags)
    assert_close(backend(arrays, mode=mode), expected(arrays, mode=mode))


@pytest.mark.parametrize("fft_size", [1, 2, 4, 8, 16, 32, 64, 1 << 40])
@pytest.mark.parametrize("filter_len", [1, 3, 8, 21, 70])
def test_circular_periods_around_the_row(rng, fft_size, filter_len):
    for seqlen in range(1, min(fft_size, 20) + 1):
        arrays = case(rng, (seqlen, filter_len), "circular", batch=1, channels=2)
        # A period longer than every lag wraps nothing back, as the next smaller one of these sizes shows.
        grads64 = expected(arrays, mode="circular", fft_size=min(fft_size, 256))
        given = fft_size if fft_size > 1 else None
        assert_close(backend(arrays, mode="circular", fft_size=given), grads64)


def test_circular_taps_a_period_apart_get_the_same_gradient(rng):
    dk = backend(case(rng, (13, 40), "circular"), mode="circular").k
    assert np.array_equal(dk[:, :13], dk[:, 13:26])
    assert np.array_equal(dk[:, :1], dk[:, 39:])


@pytest.mark.parametrize("shared", [False, True])
def test_taps_that_reach_no_output_get_zero(rng, shared):
    assert not backend(case(rng, (7, 30), "causal", shared=shared)).k[..., 7:].any()
    dk = backend(case(rng, (5, 64), "circular", shared=shared), mode="circular", fft_size=32).k
    unreached = np.arange(5, 28)
    assert not dk[..., unreached].any()
    assert not dk[..., unreached + 32].any()
    assert dk[..., [4, 28, 36, 60]].all()


def test_a_larger_size_changes_nothing_in_linear_modes(rng):
    for mode in ("causal", "full", "same"):
        arrays = case(rng, (50, 9), mode)
        assert all(map(np.array_equal, backend(arrays, mode=mode), backend(arrays, mode=mode, fft_size=1 << 30)))


@pytest.mark.parametrize("mode", MODES)
def test_linear_in_the_gradient_of_the_output(rng, mode):
    arrays = case(rng, (33, 12), mode)
    other = rng.standard_normal(arrays["dy"].shape)
    one, two = backend(arrays, mode=mode), backend({**arrays, "dy": other}, mode=mode)
    both = backend({**arrays, "dy": 3 * arrays["dy"] - other}, mode=mode)
    assert_close(both, Gradients(*(3 * a - b for a, b in zip(one, two, strict=True))))


@pytest.mark.parametrize("shared", [False, True])
def test_groups_of_rows_give_the_same(rng, monkeypatch, shared):
    arrays = case(rng, (33, 9), "causal", shared=shared, batch=5, channels=7)
    whole = backend(arrays)
    for points in (1, 64, 200, 1000):
        monkeypatch.setattr(numpy_backend, "_GROUP_POINTS", points)
        parts = backend(arrays)
        assert_close(parts, whole, 1e-14)  # sums over the batch are taken in another order
        for name in ("u", "in_gate", "out_gate"):
            assert np.array_equal(getattr(parts, name), getattr(whole, name))


def subsets():
    return [[name for bit, name in enumerate(NAMES) if number >> bit & 1] for number in range(1, 32)]


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_has_the_same_bits_whatever_else_is_computed(rng, mode):
    arrays = case(rng, (33, 40), mode)
    whole = backend(arrays, mode=mode)
    for wrt in subsets():
        grads = backend(arrays, mode=mode, wrt=wrt)
        for name in NAMES:
            grad = getattr(grads, name)
            assert (grad is not None) == (name in wrt)
            assert grad is None or np.array_equal(grad, getattr(whole, name))


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_only_what_is_asked_for_is_transformed(rng, monkeypatch, shared, prepared):
    arrays = case(rng, (33, 12), "causal", shared=shared)
    counts = {"rfft": 0, "irfft": 0}

    def counted(name, transform):
        def wrapped(*args):
            counts[name] += 1
            return transform(*args)

        return wrapped

    for name in counts:
        monkeypatch.setattr(np.fft, name, counted(name, getattr(np.fft, name)))
    for wrt in subsets():
        is_input, is_filter, is_gate = bool({"u", "in_gate"} & set(wrt)), "k" in wrt, "out_gate" in wrt
        counts.update(rfft=0, irfft=0)
        backend(arrays, wrt=wrt, prepared=prepared)
        # Of dy, of u and of the filter there, of du, dk and the output back.
        there = (is_input or is_filter) + (is_filter or is_gate) + (prepared or is_input or is_gate)
        assert counts == {"rfft": there, "irfft": is_input + is_filter + is_gate}, wrt


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["dy", "u", "in_gate", "out_gate"])
def test_a_non_finite_value_stays_in_its_row_and_its_channel(rng, where, bad):
    arrays = case(rng, (50, 8), "causal", batch=3, channels=4)
    clean = backend(arrays)
    arrays[where][1, 2, 7] = bad
    grads = backend(arrays)
    rows = np.ones((3, 4), bool)
    rows[1, 2] = False
    channels = np.arange(4) != 2
    for name in NAMES:
        others = channels if name in ("k", "skip") else rows
        assert np.array_equal(getattr(grads, name)[others], getattr(clean, name)[others]), name
    assert not np.isfinite(grads.k[2]).all()
    assert not np.isfinite(grads.skip[2])


def test_a_non_finite_tap_leaves_the_gradients_that_do_not_read_it(rng):
    arrays = case(rng, (20, 8), "causal")
    clean = backend(arrays)
    arrays["k"][1, 3] = np.nan
    grads = backend(arrays)
    assert np.array_equal(grads.k, clean.k)
    assert np.array_equal(grads.skip, clean.skip)
    assert np.array_equal(grads.u[:, [0, 2]], clean.u[:, [0, 2]])
    assert not np.isfinite(grads.u[:, 1]).any()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_gives_zeros_for_what_is_summed(rng, mode, shared):
    arrays = case(rng, (20, 30), mode, shared=shared, batch=0)
    for grads in (backend(arrays, mode=mode), expected(arrays, mode=mode)):
        for name in NAMES:
            assert getattr(grads, name).shape == arrays[name].shape
        assert not grads.k.any()
        assert not grads.skip.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_each_gradient_is_rounded_once(rng, dtype):
    arrays = case(rng, (64, 33), "same", batch=5)
    # Values that the dtype holds, so that the float64 gradients are of the same arguments.
    arrays = {name: array.astype(NUMPY_DTYPES[dtype]).astype(np.float64) for name, array in arrays.items()}
    whole = backend(arrays, mode="same")
    rounded = backend({name: array.astype(NUMPY_DTYPES[dtype]) for name, array in arrays.items()}, mode="same")
    for name in NAMES:
        grad64 = getattr(whole, name)
        nearest = numpy_backend._to_bfloat16(grad64) if dtype == "bfloat16" else grad64.astype(dtype)
        assert np.array_equal(getattr(rounded, name), nearest), name


def test_the_reference_refuses_an_unknown_mode(rng):
    with pytest.raises(ValueError, match="no such mode: 'valid'"):
        expected(case(rng, (5, 3), "causal"), mode="valid")
