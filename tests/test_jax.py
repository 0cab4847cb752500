"""`fftconv_cupy.jax.fftconv` on the CPU: values, gradients, and the transformations of JAX but `vmap`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from frameworks import direct
from vjp_cases import NAMES, agreement, converted, expected, vjp_case

from fftconv_cupy import fftconv, numeric
from fftconv_cupy.errors import InvalidArgumentError
from fftconv_cupy.problem import DTYPES, MODES

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
fj = pytest.importorskip("fftconv_cupy.jax")
jax_numpy = pytest.importorskip("fftconv_cupy.jax_numpy")

# Rows of one to three axes; K below, at and above L; in "same" a filter long enough to be folded.
SHAPES = (
    ((2, 3, 16), (3, 5)),
    ((3, 2, 33), (40,)),
    ((1, 1, 7), (1, 1)),
    ((2, 1, 3), (1, 100)),
    ((3, 32), (3, 32)),
    ((31,), (4,)),
)


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.mark.parametrize("precision", [None, "medium"])
def test_outputs_and_gradients_have_the_precision_of_their_call(precision):
    u, k = jnp.ones((2, 3, 16)), jnp.ones((3, 5))
    loss = lambda u, k: fj.fftconv(u, k, precision=precision).sum()  # noqa: E731
    text = str(jax.make_jaxpr(jax.vmap(jax.value_and_grad(loss, (0, 1)), (0, None)))(u[:, None], k))
    assert text.count(f"precision={precision!r}") >= 2
    assert "precision='highest'" not in text


def test_an_unknown_precision_is_refused():
    with pytest.raises(InvalidArgumentError, match="precision: got 'low'"):
        fj.fftconv(jnp.ones((2, 3, 16)), jnp.ones((3, 5)), precision="low")


@pytest.fixture
def x64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def plain(u: Any, k: Any, *, mode: str, in_gate: Any = None, out_gate: Any = None, skip: Any = None) -> Any:
    """Return the convolution of (B, H, L) with (H, K) in nothing but sums of jax.numpy, which JAX differentiates."""
    x = u if in_gate is None else u * in_gate
    seqlen, filter_len = u.shape[-1], k.shape[-1]
    full = sum(jnp.pad(x * k[:, j, None], ((0, 0), (0, 0), (j, filter_len - 1 - j))) for j in range(filter_len))
    if mode == "circular":
        y = sum(
            jnp.pad(piece, ((0, 0), (0, 0), (0, seqlen - piece.shape[-1])))
            for piece in (full[..., start : start + seqlen] for start in range(0, full.shape[-1], seqlen))
        )
    else:
        first = (filter_len - 1) // 2 if mode == "same" else 0
        y = full if mode == "full" else full[..., first : first + seqlen]
    if skip is not None:
        y = y.at[..., :seqlen].add(skip[:, None] * x)
    return y if out_gate is None else y * out_gate


def gradients_of(function: Any, arrays: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the gradients of ``sum(dy * function(...))`` with respect to every argument."""

    def loss(given: dict[str, Any]) -> Any:
        y = function(**given, **options)
        return jnp.sum(arrays["dy"].astype(jnp.promote_types(y.dtype, jnp.float32)) * y)

    return jax.jit(jax.grad(loss))({name: array for name, array in arrays.items() if name != "dy"})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_values_agree_with_float64_eagerly_and_under_jit(rng, mode, dtype):
    for flags, (u_shape, k_shape) in enumerate(SHAPES):
        given = vjp_case(rng, u_shape, k_shape, mode, dtype, flags)
        del given["dy"]
        on = converted("jax", given)
        y64 = direct(**given, mode=mode)
        for function in (fj.fftconv, jax.jit(fj.fftconv, static_argnames="mode")):
            y = function(**on, mode=mode)
            assert y.dtype == dtype
            assert isinstance(y, jax.Array)
            result = numeric.compare(np.asarray(y), y64, dtype)
            assert result.ok, (u_shape, k_shape, result)


@pytest.mark.parametrize("fft_size", [None, 32, 64, 128])
def test_circular_values_of_any_period(rng, fft_size):
    u, k = rng.standard_normal((2, 3, 31)).astype(np.float32), rng.standard_normal((3, 150)).astype(np.float32)
    y = fj.fftconv(jnp.asarray(u), jnp.asarray(k), mode="circular", fft_size=fft_size)
    assert numeric.compare(np.asarray(y), direct(u, k, mode="circular", fft_size=fft_size), "float32").ok


def test_values_are_those_of_fftconv_in_float64(rng, x64):
    for mode in MODES:
        given = vjp_case(rng, (2, 3, 33), (3, 20), mode, "float64", k_dtype="float64", skip_dtype="float64")
        del given["dy"]
        y = fj.fftconv(**converted("jax", given), mode=mode)
        assert y.dtype == "float64"
        assert numeric.compare(np.asarray(y), fftconv(**given, mode=mode), "float64").ok


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_that_jax_finds_itself(rng, x64, mode, dtype, bound):
    for shapes in (((2, 3, 16), (3, 5)), ((2, 2, 9), (2, 13))):
        arrays = converted("jax", vjp_case(rng, *shapes, mode, dtype, k_dtype=dtype, skip_dtype=dtype))
        ours, theirs = gradients_of(fj.fftconv, arrays, mode=mode), gradients_of(plain, arrays, mode=mode)
        assert set(ours) == set(NAMES)
        for name in NAMES:
            assert ours[name].dtype == dtype
            assert numeric.relative_error(np.asarray(ours[name]), np.asarray(theirs[name], np.float64)) < bound, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_agree_with_float64_in_every_shape_and_dtype(rng, mode, dtype):
    for number, (u_shape, k_shape) in enumerate(SHAPES):
        k_dtype = DTYPES[number % 3]
        arrays = vjp_case(rng, u_shape, k_shape, mode, dtype, 7 if number % 2 else number, k_dtype)
        ours, wanted = gradients_of(fj.fftconv, converted("jax", arrays), mode=mode), expected(arrays, mode=mode)
        for name, grad in ours.items():
            assert grad.shape == arrays[name].shape
            assert grad.dtype == arrays[name].dtype
            result = agreement(name, np.asarray(grad), getattr(wanted, name), str(grad.dtype))
            assert result.ok, (name, u_shape, k_shape, result)


def test_circular_gradients_of_any_period(rng):
    for fft_size in (32, 64, 128):
        arrays = vjp_case(rng, (2, 3, 31), (3, 150), "circular", "float32")
        ours = gradients_of(fj.fftconv, converted("jax", arrays), mode="circular", fft_size=fft_size)
        wanted = expected(arrays, mode="circular", fft_size=fft_size)
        for name, grad in ours.items():
            assert agreement(name, np.asarray(grad), getattr(wanted, name), "float32").ok, name


def test_only_the_gradients_that_are_asked_for_are_computed(rng, monkeypatch):
    arrays = converted("jax", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32"))
    dy = arrays.pop("dy")
    asked = []
    compute = jax_numpy.gradients

    def remember(problem, wanted, *others):
        asked.append({name for name, is_wanted in wanted._asdict().items() if is_wanted})
        return compute(problem, wanted, *others)

    monkeypatch.setattr(jax_numpy, "gradients", remember)
    for names in (["k"], ["u", "skip"], ["out_gate"]):
        given = {name: arrays[name] for name in names}
        for transform in (jax.grad, lambda function: jax.jit(jax.grad(function))):
            asked.clear()
            jax.clear_caches()
            loss = transform(lambda some: jnp.sum(dy * fj.fftconv(**{**arrays, **some})))
            assert set(loss(given)) == set(names)
            assert asked == [set(names)]
    # An output that nothing depends on has no gradient to compute.
    asked.clear()
    jax.grad(lambda k: jax.lax.stop_gradient(fj.fftconv(arrays["u"], k)).sum() + k.sum())(arrays["k"])
    assert asked == []


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_filter_that_is_used_several_times_sums_its_gradients(rng, is_checkpointed):
    """The first input needs no gradient and the later ones do: what one call needs must not be that of another."""
    u, k = (jnp.asarray(rng.standard_normal(shape), "float32") for shape in ((2, 3, 64), (3, 20)))

    def by_fft(x, k):
        return jnp.fft.irfft(jnp.fft.rfft(x, 128) * jnp.fft.rfft(k, 128), 128)[..., :64]

    def energy(convolve, k, is_scanned):
        convolve = jax.checkpoint(convolve) if is_checkpointed else convolve
        x = u
        if is_scanned:
            x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(convolve(x, k)), None), x, length=3)
        else:
            for _ in range(3):
                x = jnp.tanh(convolve(x, k))
        return jnp.sum(x**2)

    for is_scanned in (False, True):
        ours, plain = (
            jax.jit(jax.grad(functools.partial(energy, convolve, is_scanned=is_scanned)))(k)
            for convolve in (fj.fftconv, by_fft)
        )
        assert numeric.relative_error(np.asarray(ours), np.asarray(plain, np.float64)) < 1e-5


def test_an_empty_batch_has_no_output_and_zero_gradients():
    u, k = jnp.zeros((0, 3, 16)), jnp.ones((3, 5))
    assert fj.fftconv(u, k, mode="full").shape == (0, 3, 20)
    grads = jax.grad(lambda u, k, skip: fj.fftconv(u, k, skip=skip).sum(), argnums=(0, 1, 2))(u, k, jnp.ones(3))
    assert [grad.shape for grad in grads] == [(0, 3, 16), (3, 5), (3,)]
    assert not any(np.any(grad) for grad in grads)


def test_a_value_that_is_not_finite_stays_in_its_row(rng):
    u, k = rng.standard_normal((2, 3, 16)).astype(np.float32), rng.standard_normal((3, 5)).astype(np.float32)
    u[1, 2, 3] = np.nan
    y, transpose = jax.vjp(fj.fftconv, jnp.asarray(u), jnp.asarray(k))
    _, dk = transpose(jnp.ones_like(y))
    finite = np.isfinite(np.asarray(y)).all(axis=-1)
    assert finite.tolist() == [[True] * 3, [True, True, False]]
    assert np.isfinite(np.asarray(dk)).all(axis=-1).tolist() == [True, True, False]


def test_checkpoint_scan_and_value_and_grad(rng):
    u = jnp.asarray(rng.standard_normal((2, 3, 16)), jnp.float32)
    k = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)

    def loss(function, u, k):
        y, _ = jax.lax.scan(lambda carry, _: (jnp.tanh(function(carry, k)), None), u, length=3)
        return jnp.sum(y**2)

    value, grads = jax.jit(jax.value_and_grad(lambda u, k: loss(jax.checkpoint(fj.fftconv), u, k), (0, 1)))(u, k)
    value0, grads0 = jax.value_and_grad(lambda u, k: loss(lambda u, k: plain(u, k, mode="causal"), u, k), (0, 1))(u, k)
    np.testing.assert_allclose(value, value0, rtol=1e-5)
    for ours, theirs in zip(grads, grads0, strict=True):
        assert numeric.relative_error(np.asarray(ours), np.asarray(theirs, np.float64)) < 1e-5


def test_second_derivatives_are_those_that_jax_finds_itself(rng, x64):
    for mode in MODES:
        case = vjp_case(rng, (2, 2, 6), (2, 4), mode, "float64", k_dtype="float64", skip_dtype="float64")
        arrays = converted("jax", case)
        dy = arrays.pop("dy")
        other = {name: jnp.cos(x) for name, x in arrays.items()}

        def along(function, given, mode=mode, dy=dy, other=other):
            grads = jax.grad(lambda some: jnp.sum(dy * function(**some, mode=mode) ** 2))(given)
            return sum(jnp.sum(grads[name] * other[name]) for name in given)

        ours = jax.jit(jax.grad(functools.partial(along, fj.fftconv)))(arrays)
        theirs = jax.jit(jax.grad(functools.partial(along, plain)))(arrays)
        for name in arrays:
            assert numeric.relative_error(np.asarray(ours[name]), np.asarray(theirs[name])) < 1e-12, (mode, name)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from fftconv_cupy.jax import fftconv
assert len(jax.devices("cpu")) == 4
mesh = Mesh(np.array(jax.devices("cpu")), ("x",))
rng = np.random.default_rng(0)
u, gate = (jnp.asarray(rng.standard_normal((4, 8, 32)), jnp.float32) for _ in range(2))
k, skip = jnp.asarray(rng.standard_normal((8, 20)), jnp.float32), jnp.asarray(rng.standard_normal(8), jnp.float32)
arrays = (u, k, gate, skip)
call = lambda u, k, gate, skip: fftconv(u, k, in_gate=gate, skip=skip)
loss = lambda function: lambda *given: jnp.sum(jnp.sin(function(*given)))
y, grads = call(*arrays), jax.grad(loss(call), argnums=(0, 1, 2, 3))(*arrays)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
rows, whole = P("x"), P()
of_channels = (P(None, "x"), P("x"), P(None, "x"), P("x"))
for specs, out in (((rows, whole, rows, whole), rows), (of_channels, P(None, "x"))):
    for checked in (True, False):
        sharded = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=out, check_vma=checked)
        close(sharded(*arrays), y)
        close(jax.jit(sharded)(*arrays), y)
        for ours, theirs in zip(jax.grad(loss(sharded), argnums=(0, 1, 2, 3))(*arrays), grads, strict=True):
            close(ours, theirs)
    # Gradients taken inside: those of what every device holds are summed over the devices.
    inner = jax.shard_map(jax.grad(loss(call), argnums=(0, 1, 2, 3)), mesh=mesh, in_specs=specs, out_specs=specs)
    for ours, theirs in zip(inner(*arrays), grads, strict=True):
        close(ours, theirs)
# Rows that every device holds, with filters of its own on each.
filters = jnp.asarray(rng.standard_normal((32, 20)), jnp.float32)
apart = jax.shard_map(fftconv, mesh=mesh, in_specs=(whole, rows), out_specs=P(None, "x"))
together = lambda u, k: jnp.concatenate([fftconv(u, k[i : i + 8]) for i in range(0, 32, 8)], axis=1)
close(apart(u, filters), together(u, filters))
for ours, theirs in zip(*(jax.grad(loss(f), argnums=(0, 1))(u, filters) for f in (apart, together)), strict=True):
    close(ours, theirs)
print("all agree")
"""


def test_shard_map_over_batch_or_channels_of_four_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "all agree" in done.stdout
