"""`fftconv_vjp` on CPU arrays of NumPy, torch and JAX: gradients in the shapes and dtypes of the arguments."""

from __future__ import annotations

import doctest
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from frameworks import CPU_FRAMEWORKS, convert, to_float64
from vjp_cases import NAMES, agreement, converted, expected, vjp_case

import fftconv_cupy
from fftconv_cupy import Gradients, api, fftconv, fftconv_vjp, gradients, numeric, numpy_backend, prepare_filter
from fftconv_cupy.errors import InvalidTypeError
from fftconv_cupy.problem import DTYPES, MODES
from fftconv_cupy.readers import NUMPY_DTYPES

SHAPES = (
    ((2, 3, 1), (3, 1)),
    ((2, 3, 1), (3, 7)),
    ((2, 3, 7), (1,)),
    ((1, 1, 16), (1, 16)),
    ((3, 2, 33), (2, 5)),
    ((3, 2, 31), (64,)),
    ((2, 1, 64), (1, 200)),
    ((4, 127), (4, 127)),
    ((4, 100), (31,)),
    ((61,), (17,)),
    ((1,), (3,)),
    ((2, 2, 1100), (2, 1100)),
)


def check(framework, arrays, **options):
    """Compute in a framework, compare with float64 and return the gradients."""
    grads = fftconv_vjp(**converted(framework, arrays), **options)
    assert type(grads) is Gradients
    for name, grad, grad64 in zip(NAMES, grads, expected(arrays, **options), strict=True):
        assert (grad is None) == (name not in arrays)
        if grad is None:
            continue
        dtype = str(arrays[name].dtype)
        assert str(grad.dtype).removeprefix("torch.") == dtype
        assert tuple(grad.shape) == arrays[name].shape
        assert type(grad).__module__.partition(".")[0].startswith(framework)
        found = agreement(name, to_float64(grad), grad64, dtype)
        assert found.ok, (name, found)
    return grads


def same(one, two):
    """Return whether two gradients hold the same bits, or are both None."""
    return (one is None and two is None) or np.array_equal(to_float64(one), to_float64(two))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_agrees_with_the_reference(rng, framework, dtype, mode):
    for number, (u_shape, k_shape) in enumerate(SHAPES):
        check(framework, vjp_case(rng, u_shape, k_shape, mode, dtype, flags=7 - number % 8), mode=mode)


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_gates_and_skip(rng, framework, flags):
    for mode in MODES:
        check(framework, vjp_case(rng, (2, 3, 21), (3, 9), mode, "float32", flags), mode=mode)


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("k_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_filter_and_skip_have_their_own_dtypes(rng, framework, dtype, k_dtype):
    for skip_dtype in {dtype, "float32"}:
        check(framework, vjp_case(rng, (2, 3, 20), (3, 20), "causal", dtype, 7, k_dtype, skip_dtype))


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("mode", MODES)
def test_float64(rng, framework, mode):
    check(framework, vjp_case(rng, (2, 3, 20), (3, 25), mode, "float64", 7, "float64", "float64"), mode=mode)
    check(framework, vjp_case(rng, (2, 3, 20), (20,), mode, "float16", 7, "float64"), mode=mode)


def test_float64_of_jax(rng):
    jax = pytest.importorskip("jax")
    with jax.experimental.enable_x64() if not hasattr(jax, "enable_x64") else jax.enable_x64(True):
        check("jax", vjp_case(rng, (2, 3, 20), (3, 20), "same", "float64", 7, "float64", "float64"), mode="same")


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_fft_size(rng, framework):
    arrays = vjp_case(rng, (2, 3, 50), (3, 30), "causal", "float32")
    assert all(map(same, check(framework, arrays), check(framework, arrays, fft_size=4096)))
    for size in (64, 128, 1024):
        check(framework, arrays, mode="circular", fft_size=size)


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_prepared_filters_have_no_gradient(rng, framework, mode):
    for k_shape in ((3, 9), (9,)):
        arrays = vjp_case(rng, (2, 3, 16), k_shape, mode, "float16")
        whole = fftconv_vjp(**converted(framework, arrays), mode=mode)
        prepared = prepare_filter(convert(framework, arrays["k"]), seqlen=16, mode=mode)
        grads = fftconv_vjp(**{**converted(framework, arrays), "k": prepared}, mode=mode)
        assert grads.k is None
        assert all(map(same, grads, whole._replace(k=None)))


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_a_shared_filter_gets_the_sum_over_channels(rng, framework):
    arrays = vjp_case(rng, (2, 3, 16), (9,), "full", "float32")
    shared = fftconv_vjp(**converted(framework, arrays), mode="full")
    arrays["k"] = np.tile(arrays["k"], (3, 1))
    own = fftconv_vjp(**converted(framework, arrays), mode="full")
    summed = to_float64(own.k).sum(axis=0)
    assert np.linalg.norm(to_float64(shared.k) - summed) < 1e-6 * np.linalg.norm(summed)
    assert all(map(same, shared._replace(k=None), own._replace(k=None)))


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_wrt_computes_these_gradients_alone_with_the_same_bits(rng, framework):
    arrays = converted(framework, vjp_case(rng, (2, 3, 33), (3, 40), "causal", "bfloat16"))
    whole = fftconv_vjp(**arrays)
    for number in range(1, 32):
        names = [name for bit, name in enumerate(NAMES) if number >> bit & 1]
        grads = fftconv_vjp(**arrays, wrt=names)
        for name in NAMES:
            assert same(getattr(grads, name), getattr(whole, name) if name in names else None)


def test_wrt_takes_a_name_or_any_iterable_of_names(rng):
    arrays = vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32")
    whole = fftconv_vjp(**arrays)
    pair = Gradients(k=whole.k, skip=whole.skip)
    for wrt in (["k", "skip"], ("skip", "k"), {"k", "skip"}, {"k": 1, "skip": 2}, iter(["k", "skip", "k"])):
        assert all(map(same, fftconv_vjp(**arrays, wrt=wrt), pair))
    for name in NAMES:
        assert all(map(same, fftconv_vjp(**arrays, wrt=name), Gradients(**{name: getattr(whole, name)})))


def test_the_backend_gets_no_memory_for_what_is_not_asked_for(rng, monkeypatch):
    seen = []
    compute = numpy_backend.vjp
    monkeypatch.setattr(numpy_backend, "vjp", lambda *args: (seen.append(args[-1]), compute(*args)))
    arrays = vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32")
    fftconv_vjp(**arrays, wrt=("in_gate", "k"))
    assert [grad is not None for grad in seen[0]] == [False, True, True, False, False]


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch(rng, framework, mode):
    for k_shape in ((3, 40), (5,)):
        arrays = vjp_case(rng, (0, 3, 16), k_shape, mode, "float16")
        grads = fftconv_vjp(**converted(framework, arrays), mode=mode)
        for name in NAMES:
            grad = getattr(grads, name)
            assert tuple(grad.shape) == arrays[name].shape
            assert str(grad.dtype).removeprefix("torch.") == str(arrays[name].dtype)
            assert not to_float64(grad).any()


LAYOUTS = {
    "transposed": lambda a: a.transpose(2, 1, 0).copy().transpose(2, 1, 0),
    "point step": lambda a: np.repeat(a, 2, axis=2)[..., ::2],
    "sliced": lambda a: np.pad(a, ((1, 1), (2, 1), (3, 2)))[1:-1, 2:-1, 3:-2],
    "reversed": lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
}


@pytest.mark.parametrize(
    ("framework", "layout"),
    # torch has no negative strides.
    [("numpy", name) for name in LAYOUTS] + [("torch", name) for name in LAYOUTS if name != "reversed"],
)
def test_strides(rng, framework, layout):
    arrays = vjp_case(rng, (4, 3, 15), (3, 15), "causal", "float32")
    whole = fftconv_vjp(**arrays)
    relaid = {
        "k": LAYOUTS[layout](arrays["k"][None])[0],
        "skip": np.repeat(arrays["skip"], 2)[::2],
        **{name: LAYOUTS[layout](array) for name, array in arrays.items() if array.ndim == 3},
    }
    if framework == "torch":
        torch = pytest.importorskip("torch")
        relaid = {name: torch.from_numpy(array) for name, array in relaid.items()}
    grads = fftconv_vjp(**relaid)
    for name in NAMES:
        grad = getattr(grads, name)
        assert grad.is_contiguous() if framework == "torch" else grad.flags.c_contiguous
        assert same(grad, getattr(whole, name))


def test_the_gradient_of_a_sum_may_be_one_number_broadcast(rng):
    torch = pytest.importorskip("torch")
    arrays = vjp_case(rng, (2, 3, 16), (3, 5), "full", "float32")
    ones = {**arrays, "dy": np.ones_like(arrays["dy"])}
    broadcast = converted("torch", arrays) | {"dy": torch.ones(()).expand(2, 3, 20)}
    assert all(map(same, fftconv_vjp(**broadcast, mode="full"), fftconv_vjp(**ones, mode="full")))


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_the_arguments_stay_as_they_are(rng, framework):
    arrays = vjp_case(rng, (2, 3, 16), (3, 5), "causal", "bfloat16")
    given = converted(framework, {name: array.copy() for name, array in arrays.items()})
    grads = fftconv_vjp(**given)
    assert all(np.array_equal(to_float64(given[name]), to_float64(arrays[name])) for name in arrays)
    assert not any(np.shares_memory(to_numpy(grad), to_numpy(given[name])) for grad in grads for name in given)


def to_numpy(array):
    return array if isinstance(array, np.ndarray) else array.view(pytest.importorskip("torch").uint8).numpy()


def test_tensors_that_need_no_gradient_here(rng):
    torch = pytest.importorskip("torch")
    arrays = converted("torch", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32"))
    whole = fftconv_vjp(**arrays)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            grads = fftconv_vjp(**{name: torch.nn.Parameter(tensor) for name, tensor in arrays.items()})
            for grad, known in zip(grads, whole, strict=True):
                assert type(grad) is torch.Tensor
                assert not grad.requires_grad
                assert torch.equal(grad, known)


def test_agrees_with_autograd_of_torch(rng):
    torch = pytest.importorskip("torch")
    arrays = converted("torch", vjp_case(rng, (2, 3, 33), (3, 20), "full", "float64", 7, "float64", "float64"))
    leaves = {name: arrays[name].clone().requires_grad_() for name in NAMES}
    x = leaves["in_gate"] * leaves["u"]
    z = torch.fft.irfft(torch.fft.rfft(x, 128) * torch.fft.rfft(leaves["k"], 128), 128)[..., :52]
    z = z + torch.nn.functional.pad(leaves["skip"][:, None] * x, (0, 19))
    (leaves["out_gate"] * z).backward(arrays["dy"])
    for name, grad in zip(NAMES, fftconv_vjp(**arrays, mode="full"), strict=True):
        assert torch.allclose(grad, leaves[name].grad, rtol=0, atol=1e-11), name


def test_steps_along_the_gradient_find_the_filter(rng):
    """Training, by hand: the taps that made the data come back."""
    u = rng.standard_normal((4, 2, 64)).astype(np.float32)
    taps = rng.standard_normal((2, 8)).astype(np.float32)
    y, k = fftconv(u, taps), np.zeros_like(taps)
    for _ in range(200):
        k -= fftconv_vjp(fftconv(u, k) - y, u, k, wrt="k").k / 400
    assert np.linalg.norm(k - taps) < 1e-4 * np.linalg.norm(taps)


@pytest.mark.filterwarnings("error")
def test_overflow_to_infinity_warns_of_nothing():
    dy = np.full((1, 1, 64), 60_000, np.float16)
    grads = fftconv_vjp(dy, dy, np.ones((1, 64), np.float16))
    assert np.isinf(grads.u[0, 0, 0])
    assert np.isinf(grads.k).all()
    assert np.isfinite(grads.u[0, 0, -1])


def test_a_repeated_signature_is_checked_once(rng, monkeypatch):
    arrays = vjp_case(rng, (2, 3, 19), (3, 5), "causal", "float32", flags=0)
    fftconv(arrays["u"], arrays["k"])
    known = fftconv_vjp(**arrays)

    def unexpected(*_):
        raise RuntimeError("checked again")

    monkeypatch.setattr(api, "resolve", unexpected)
    assert all(map(same, fftconv_vjp(**arrays), known))
    for changes in ({"wrt": "u"}, {"mode": "same"}, {"dy": arrays["dy"][:, :, ::-1]}, {"skip": np.ones(3, np.float32)}):
        with pytest.raises(RuntimeError, match="checked again"):
            fftconv_vjp(**{**arrays, **changes})


def test_equal_but_wrong_sizes_are_not_taken_for_known_ones(rng):
    arrays = vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32")
    fftconv_vjp(**arrays, fft_size=32)
    with pytest.raises(InvalidTypeError, match=r"32\.0 of type float"):
        fftconv_vjp(**arrays, fft_size=32.0)


def test_eight_threads_at_once_and_repeats_give_the_same_bits(rng):
    cases = [vjp_case(rng, (3, 4, 50 + number), (4, 20), "causal", "float32") for number in range(8)]
    known = [fftconv_vjp(**arrays) for arrays in cases]
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait(timeout=30)
        return all(all(map(same, fftconv_vjp(**cases[number]), known[number])) for _ in range(10))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_example_in_the_docstring():
    assert doctest.testmod(gradients).failed == 0


def test_public_names():
    assert {"fftconv_vjp", "Gradients"} <= set(fftconv_cupy.__all__)
    assert Gradients._fields == ("u", "k", "in_gate", "out_gate", "skip")


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_the_bound_of_sums_rejects_wrong_filter_gradients(rng, dtype):
    dk64 = rng.standard_normal((3, 40))
    rounded = dk64.astype(NUMPY_DTYPES[dtype])
    assert numeric.compare_sum(rounded, dk64, dtype).ok
    assert numeric.compare_sum(dk64 * (1 + 1e-13), dk64, dtype).ok
    wrong = (np.zeros_like(dk64), np.roll(dk64, 1, axis=-1), dk64[:, ::-1], rounded * 1.1, np.full_like(dk64, np.nan))
    assert not any(numeric.compare_sum(dk, dk64, dtype).ok for dk in wrong)
    assert numeric.compare_sum(np.zeros(3), np.zeros(3), dtype).ok
