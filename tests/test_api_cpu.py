"""`fftconv` on CPU arrays of NumPy, torch and JAX: the same semantics, the caller's framework and dtype back."""

from __future__ import annotations

import copy
import doctest
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from frameworks import CPU_FRAMEWORKS, convert, direct, to_float64

import fftconv_cupy
from fftconv_cupy import api, fftconv, numeric, prepare_filter
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError
from fftconv_cupy.problem import DTYPES, MODES
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.remembered import Remembered

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
)


def random(rng, shape, dtype):
    return rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype])


def out_shape(u, k, mode):
    return (*u.shape[:-1], u.shape[-1] + (k.shape[-1] - 1 if mode == "full" else 0))


def case(rng, u_shape, k_shape, mode, dtype, flags=7, k_dtype="float32", skip_dtype="float32"):
    """Return NumPy arguments; bits 0, 1 and 2 of `flags` are in_gate, out_gate and skip."""
    u, k = random(rng, u_shape, dtype), random(rng, k_shape, k_dtype)
    channels = u_shape[-2] if len(u_shape) > 1 else 1
    optional = {
        "in_gate": random(rng, u_shape, dtype),
        "out_gate": random(rng, out_shape(u, k, mode), dtype),
        "skip": random(rng, (channels,), skip_dtype),
    }
    return u, k, {name: value for bit, (name, value) in enumerate(optional.items()) if flags >> bit & 1}


def check(framework, u, k, optional, dtype, **options):
    """Convolve in a framework, compare with the direct sum and return what was computed."""
    y = fftconv(
        convert(framework, u),
        convert(framework, k),
        **{name: convert(framework, value) for name, value in optional.items()},
        **options,
    )
    y64 = direct(u, k, **optional, **options)
    assert str(y.dtype).removeprefix("torch.") == dtype
    assert tuple(y.shape) == y64.shape
    assert type(y).__module__.partition(".")[0].startswith(framework)
    agreement = numeric.compare(to_float64(y), y64, dtype)
    assert agreement.ok, agreement
    return y


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_agrees_with_the_direct_sum(rng, framework, dtype, mode):
    for number, (u_shape, k_shape) in enumerate(SHAPES):
        check(framework, *case(rng, u_shape, k_shape, mode, dtype, flags=number % 8), dtype, mode=mode)


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_gates_and_skip(rng, framework, flags):
    for mode in ("causal", "full"):
        check(framework, *case(rng, (2, 3, 21), (3, 9), mode, "float32", flags), "float32", mode=mode)


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("k_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_filter_and_skip_are_free(rng, framework, dtype, k_dtype):
    for skip_dtype in {dtype, "float32"}:
        arguments = case(rng, (2, 3, 20), (3, 20), "causal", dtype, 7, k_dtype, skip_dtype)
        check(framework, *arguments, dtype)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_float64(rng, framework):
    for k_dtype in ("float64", "float16"):
        arguments = case(rng, (2, 3, 20), (3, 20), "same", "float64", 7, k_dtype, "float64")
        check(framework, *arguments, "float64", mode="same")
    check(framework, *case(rng, (2, 3, 20), (3, 20), "same", "float16", 7, "float64"), "float16", mode="same")


def test_float64_of_jax(rng):
    jax = pytest.importorskip("jax")
    with jax.experimental.enable_x64() if not hasattr(jax, "enable_x64") else jax.enable_x64(True):
        check("jax", *case(rng, (2, 3, 20), (3, 20), "same", "float64", 7, "float64"), "float64", mode="same")


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
def test_fft_size(rng, framework):
    u, k, optional = case(rng, (2, 3, 50), (3, 30), "causal", "float32")
    usual = to_float64(check(framework, u, k, optional, "float32"))
    assert np.array_equal(to_float64(check(framework, u, k, optional, "float32", fft_size=4096)), usual)
    for size in (64, 128, 1024):
        check(framework, u, k, optional, "float32", mode="circular", fft_size=size)


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_prepared_filters(rng, framework, mode):
    for k_shape in ((3, 9), (9,)):
        u, k, optional = case(rng, (2, 3, 16), k_shape, mode, "float16")
        prepared = prepare_filter(convert(framework, k), seqlen=16, mode=mode)
        optional = {name: convert(framework, value) for name, value in optional.items()}
        y = fftconv(convert(framework, u), prepared, mode=mode, **optional)
        raw = fftconv(convert(framework, u), convert(framework, k), mode=mode, **optional)
        assert np.array_equal(to_float64(y), to_float64(raw))
        # Any batch, rank and dtype of the input, and another framework.
        other = random(rng, (3, 16), "float32")
        assert np.array_equal(fftconv(other, prepared, mode=mode), fftconv(other, k, mode=mode))


def test_prepared_filter_is_a_record(rng):
    k = random(rng, (3, 9), "float32")
    prepared = prepare_filter(k, seqlen=16, mode="circular", fft_size=32)
    assert (prepared.mode, prepared.seqlen, prepared.filter_len, prepared.fft_size) == ("circular", 16, 9, 32)
    assert (prepared.channels, prepared.shared, prepared.dtype, prepared.device) == (3, False, "float32", -1)
    assert prepared.nbytes == prepared.data.nbytes
    assert prepared.ptr == prepared.data.ctypes.data
    assert len(repr(prepared)) < 160
    assert "L = 16" in repr(prepared)
    with pytest.raises(AttributeError):
        prepared.seqlen = 17
    with pytest.raises(ValueError, match="read-only"):
        prepared.data[0, 0] = 0
    assert prepare_filter(k[0], seqlen=4).shared
    y = fftconv(np.ones((3, 16), np.float32), prepared, mode="circular", fft_size=32)
    k[:] = 0  # the spectrum is a copy
    again = fftconv(np.ones((3, 16), np.float32), prepared, mode="circular", fft_size=32)
    assert np.array_equal(y, again)


def test_a_prepared_filter_is_its_own_copy_and_is_not_pickled():
    prepared = prepare_filter(np.ones((3, 9), np.float32), seqlen=16)
    assert copy.copy(prepared) is prepared
    assert copy.deepcopy({"k": prepared})["k"] is prepared
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(InvalidTypeError, match="call prepare_filter where they are loaded"):
            pickle.dumps(prepared, protocol)


@pytest.mark.filterwarnings("error")
def test_preparing_a_filter_that_is_not_finite_warns_of_nothing():
    k = np.ones((2, 40), np.float32)
    k[0, 1], k[1, -1] = np.inf, -np.inf
    for mode in MODES:
        fftconv(np.ones((2, 64), np.float32), prepare_filter(k, seqlen=64, mode=mode), mode=mode)


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_gives_an_empty_result(framework, mode):
    u, k = np.zeros((0, 3, 16), np.float16), np.ones((3, 5), np.float32)
    y = fftconv(convert(framework, u), convert(framework, k), mode=mode)
    assert tuple(y.shape) == out_shape(u, k, mode)
    assert str(y.dtype).endswith("float16")


STRIDED = {
    "transposed": lambda a: a.transpose(2, 1, 0).copy().transpose(2, 1, 0),
    "batch step": lambda a: np.repeat(a, 2, axis=0)[::2],
    "channel step": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
    "point step": lambda a: np.repeat(a, 2, axis=2)[..., ::2],
    "sliced": lambda a: np.pad(a, ((1, 1), (2, 1), (3, 2)))[1:-1, 2:-1, 3:-2],
    "reversed": lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
}


@pytest.mark.parametrize("layout", STRIDED)
def test_strides_of_numpy_arrays(rng, layout):
    u, k, optional = case(rng, (4, 3, 15), (3, 15), "causal", "float32")
    expected = fftconv(u, k, **optional)
    relaid = STRIDED[layout]
    optional = {name: relaid(value) if value.ndim == 3 else value for name, value in optional.items()}
    assert np.array_equal(fftconv(relaid(u), relaid(k[None])[0], **optional), expected)


@pytest.mark.parametrize("layout", [name for name in STRIDED if name != "reversed"])
def test_strides_of_torch_tensors(rng, layout):
    torch = pytest.importorskip("torch")
    u, k, _ = case(rng, (4, 3, 15), (3, 15), "causal", "float32")
    strided = torch.from_numpy(STRIDED[layout](u))
    y = fftconv(strided, torch.from_numpy(k))
    assert y.is_contiguous()
    assert np.array_equal(y.numpy(), fftconv(u, k))


def test_broadcast_inputs_are_read_as_they_are(rng):
    row, k = random(rng, (1, 1, 20), "float32"), random(rng, (3, 20), "float32")
    y = fftconv(np.broadcast_to(row, (2, 3, 20)), k, in_gate=np.broadcast_to(row, (2, 3, 20)))
    whole = np.repeat(np.repeat(row, 3, 1), 2, 0)
    assert np.array_equal(y, fftconv(whole, k, in_gate=whole))


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_out_is_filled_and_returned(rng, framework):
    for mode in MODES:
        u, k, optional = case(rng, (2, 3, 16), (3, 9), mode, "bfloat16")
        optional = {name: convert(framework, value) for name, value in optional.items()}
        u, k = convert(framework, u), convert(framework, k)
        y = fftconv(u, k, mode=mode, **optional)
        padded = convert(framework, np.zeros((4, 5, y.shape[-1] + 3), NUMPY_DTYPES["bfloat16"]))
        out = padded[1:3, 1:4, 1:-2]
        assert fftconv(u, k, mode=mode, out=out, **optional) is out
        assert np.array_equal(to_float64(out), to_float64(y))
        assert np.count_nonzero(to_float64(padded)) == np.count_nonzero(to_float64(y))


def test_out_between_the_inputs_of_one_buffer(rng):
    """Parts of one buffer interleave and share nothing, as a model's fused projections do."""
    buffer = random(rng, (4, 9, 16), "float32")
    u, gate, out = buffer[:, :3], buffer[:, 3:6], buffer[:, 6:]
    k = random(rng, (3, 5), "float32")
    expected = fftconv(u.copy(), k, in_gate=gate.copy())
    assert fftconv(u, k, in_gate=gate, out=out) is out
    assert np.array_equal(out, expected)


def test_autograd_sees_that_out_was_written():
    torch = pytest.importorskip("torch")
    out = torch.ones(2, 3, 16)
    weight = torch.ones(2, 3, 16, requires_grad=True)
    loss = (weight * out).sum()
    fftconv(torch.ones(2, 3, 16), torch.ones(3, 4), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_that_need_no_gradient_here():
    torch = pytest.importorskip("torch")
    u = torch.ones(2, 3, 16)
    k = torch.nn.Parameter(torch.ones(3, 4))
    with torch.no_grad():
        y = fftconv(u, k)
        prepare_filter(k, seqlen=16)
    assert type(y) is torch.Tensor
    assert not y.requires_grad
    assert torch.equal(fftconv(u, k.detach()), y)
    with torch.inference_mode():
        held = torch.empty(2, 3, 16)
        assert torch.equal(fftconv(u, k, out=held), y)


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_value_stays_in_its_row(rng, framework, bad):
    u, k, _ = case(rng, (3, 4, 32), (4, 8), "causal", "float16")
    clean = to_float64(fftconv(convert(framework, u), convert(framework, k)))
    u[1, 2, 7] = bad
    y = to_float64(fftconv(convert(framework, u), convert(framework, k)))
    touched = np.zeros((3, 4), bool)
    touched[1, 2] = True
    assert np.array_equal(y[~touched], clean[~touched])
    assert not np.isfinite(y[1, 2]).all()


@pytest.mark.filterwarnings("error")
def test_overflow_to_infinity_warns_of_nothing():
    u = np.full((1, 1, 64), 60_000, np.float16)
    y = fftconv(u, np.ones((1, 64), np.float32))
    assert np.isfinite(y[0, 0, 0])
    assert np.isinf(y[0, 0, -1])


def test_a_repeated_signature_is_checked_once(rng, monkeypatch):
    u, k = random(rng, (2, 3, 19), "float32"), random(rng, (3, 5), "float32")
    expected = fftconv(u, k)

    def unexpected(*_):
        raise RuntimeError("checked again")

    monkeypatch.setattr(api, "resolve", unexpected)
    assert np.array_equal(fftconv(u, k), expected)
    with pytest.raises(RuntimeError, match="checked again"):
        fftconv(u, k, mode="same")
    with pytest.raises(RuntimeError, match="checked again"):
        fftconv(u, k[:, :4])


def test_equal_but_wrong_sizes_are_not_taken_for_known_ones():
    u, k = np.ones((2, 3, 16), np.float32), np.ones((3, 5), np.float32)
    fftconv(u, k, fft_size=32)
    with pytest.raises(InvalidTypeError, match=r"32\.0 of type float"):
        fftconv(u, k, fft_size=32.0)


def test_remembered_calls_are_bounded(monkeypatch):
    monkeypatch.setattr(api, "_calls", Remembered(limit=5))
    for seqlen in range(1, 20):
        fftconv(np.ones(seqlen, np.float32), np.ones(2, np.float32))
        assert len(api._calls) <= 5


def test_out_overlap_is_looked_at_in_every_call():
    u, k = np.ones((2, 3, 16), np.float32), np.ones((3, 5), np.float32)
    fftconv(u, k, out=np.empty_like(u))
    with pytest.raises(InvalidArgumentError, match="overlaps u"):
        fftconv(u, k, out=u)


def test_eight_threads_at_once(rng):
    cases = [case(rng, (3, 4, 50 + number), (4, 20), "causal", "float32") for number in range(8)]
    expected = [fftconv(u, k, **optional) for u, k, optional in cases]
    barrier = threading.Barrier(8)

    def work(number):
        u, k, optional = cases[number]
        barrier.wait(timeout=30)
        return all(np.array_equal(fftconv(u, k, **optional), expected[number]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, jax.numpy as jnp
from fftconv_cupy import fftconv
u, k = jnp.ones((2, 4, 16)), jnp.ones((4, 3))
second = jax.devices()[1]
y = fftconv(jax.device_put(u, second), jax.device_put(k, second))
assert y.devices() == {second}, y.devices()
mesh = jax.sharding.Mesh(jax.devices(), ("x",))
for spec in (jax.sharding.PartitionSpec("x"), jax.sharding.PartitionSpec()):
    try:
        fftconv(jax.device_put(u, jax.sharding.NamedSharding(mesh, spec)), k)
    except TypeError as error:
        assert "u: got a JAX array sharded over 2 devices" in str(error), error
    else:
        raise SystemExit("no error")
"""


def test_jax_arrays_on_several_devices():
    pytest.importorskip("jax")
    subprocess.run([sys.executable, "-c", SHARDED], check=True, timeout=120)


def test_examples_in_the_docstrings():
    assert doctest.testmod(api).failed == 0


def test_plan_needs_no_gpu():
    made = fftconv_cupy.plan(8, 768, 4096, 4096, arch="sm_90", in_gate=True, prepared=True)
    assert made.problem.in_gate
    assert made.is_prepared
    text = str(made)
    for word in ("8192", "threads", "shared memory", "grid", "launches", "workspace", "why"):
        assert word in text
    odd = fftconv_cupy.plan(8, 768, 999, 999, arch="sm_90")
    assert dict(odd.forward.defines)["FFTCONV_IS_VECTOR"] == "0"


def test_the_types_of_what_is_returned_are_public():
    assert type(fftconv_cupy.plan(1, 1, 16, 16, arch="sm_90")) is fftconv_cupy.Plan
    assert type(prepare_filter(np.ones(3, np.float32), seqlen=16)) is fftconv_cupy.FilterSpectrum
    assert {"Plan", "FilterSpectrum"} <= set(fftconv_cupy.__all__)


def test_version():
    assert fftconv_cupy.__version__.count(".") == 2
