"""`fftconv_cupy.jax.fftconv` on a real GPU: our kernels on XLA's stream, under each transformation of JAX."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from frameworks import direct, to_float64
from vjp_cases import NAMES, agreement, expected, vjp_case

from fftconv_cupy import fftconv, numeric
from fftconv_cupy.errors import UnsupportedProblemError
from fftconv_cupy.problem import DTYPES, MODES
from fftconv_cupy.reference import fftconv_reference

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
fj = pytest.importorskip("fftconv_cupy.jax")

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        pytest.skip(f"JAX has no GPU ({error})")
    with jax.default_device(device):
        yield device


def put(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def loss(arrays: dict[str, Any], dy: Any, **options: Any) -> Any:
    y = fj.fftconv(**arrays, **options)
    return jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32))


def random(rng, shape, dtype="float32"):
    return jnp.asarray(rng.standard_normal(shape), dtype)


def compiled_text(function, *inputs) -> str:
    return jax.jit(function).lower(*inputs).compile().as_text()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_agree_with_float64(rng, mode, dtype):
    shapes = (((3, 2, 64), (2, 9)), ((2, 3, 33), (50,)), ((3, 100), (3, 100)), ((31,), (4,)), ((5, 2, 1024), (2, 1024)))
    for number, (u_shape, k_shape) in enumerate(shapes):
        given = vjp_case(rng, u_shape, k_shape, mode, dtype, 7 if number % 2 else number, DTYPES[number % 3])
        dy = given["dy"]
        inputs = {name: array for name, array in given.items() if name != "dy"}
        on = put(inputs)
        rows = {
            name: x if name in ("k", "skip") else x.reshape((1,) * (3 - x.ndim) + x.shape) for name, x in inputs.items()
        }
        y64, grads64 = fftconv_reference(**rows, mode=mode).reshape(dy.shape), expected(given, mode=mode)
        for transform in (lambda function: function, jax.jit):
            y = transform(lambda some: fj.fftconv(**some, mode=mode))(on)
            assert y.dtype == dtype
            assert {device.platform for device in y.devices()} == {"gpu"}
            assert numeric.compare(to_float64(y), y64, dtype).ok, (u_shape, k_shape)
            grads = transform(jax.grad(functools.partial(loss, mode=mode)))(on, jnp.asarray(dy))
            for name, grad in grads.items():
                assert grad.dtype == inputs[name].dtype
                result = agreement(name, np.asarray(grad), getattr(grads64, name), str(grad.dtype))
                assert result.ok, (name, u_shape, k_shape, result)


def test_the_result_has_the_bits_of_the_eager_function(rng):
    u, k, gate = random(rng, (4, 8, 512), "float16"), random(rng, (8, 512)), random(rng, (4, 8, 512), "float16")
    eager = fftconv(u, k, in_gate=gate)
    for function in (fj.fftconv, jax.jit(fj.fftconv)):
        assert np.array_equal(np.asarray(function(u, k, in_gate=gate)), np.asarray(eager))


@pytest.mark.parametrize("axes", [(0, None), (2, None), (None, 0), (0, 1)])
def test_vmap_is_a_loop(rng, axes):
    shapes = {"u": (3, 4, 64), "k": (4, 20)}
    arrays = [
        random(rng, shape if axis is None else tuple(np.insert(shape, axis, 5)))
        for shape, axis in zip(shapes.values(), axes, strict=True)
    ]

    def value_and_grads(u, k):
        y, transpose = jax.vjp(fj.fftconv, u, k)
        return y, *transpose(jnp.cos(y))

    together = jax.jit(jax.vmap(value_and_grads, in_axes=axes))(*arrays)
    for i in range(5):
        element = [x if axis is None else jnp.take(x, i, axis=axis) for x, axis in zip(arrays, axes, strict=True)]
        for whole, one in zip(together, value_and_grads(*element), strict=True):
            assert numeric.relative_error(np.asarray(whole[i]), np.asarray(one, np.float64)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_program_copies_nothing_to_the_host_and_transforms_nothing_itself(rng, dtype):
    u, k = random(rng, (2, 3, 64), dtype), random(rng, (3, 20))
    text = compiled_text(jax.value_and_grad(lambda u, k: jnp.sum(fj.fftconv(u, k)), argnums=(0, 1)), u, k)
    assert text.count("xla_buffer_python_gpu_callback_cmd_buffer") >= 2
    assert "fft_type" not in text
    assert "copy-start" not in text
    assert "S(5)" not in text  # XLA's mark of host memory


def test_the_kernels_come_between_what_xla_computes_before_and_after(rng):
    u, k = random(rng, (8, 64, 1024)), random(rng, (64, 1024))
    y = np.asarray(fj.fftconv(u, k), np.float64)

    @jax.jit
    def chain(u, k, factor):
        scaled = u
        for _ in range(20):
            scaled = jnp.sin(scaled * 0) + scaled  # work that takes a while
        return fj.fftconv(scaled * factor, k) / factor

    for number in range(1, 40):
        assert numeric.relative_error(np.asarray(chain(u, k, float(number))), y) < 1e-5


def test_repeated_calls_of_one_program_see_their_own_inputs(rng):
    """From the third call on XLA may replay a command buffer, with other addresses than it was recorded with."""
    k = random(rng, (16, 256))

    @jax.jit
    def train(k, u):
        value, grad = jax.value_and_grad(lambda k: jnp.mean(fj.fftconv(u, k).astype(jnp.float32) ** 2))(k)
        return value, k - 0.1 * grad, fj.fftconv(u * 2, k)

    kept = []
    for number in range(12):
        u = random(rng, (4, 16, 256), "bfloat16")
        value, stepped, y = train(k, u)
        kept.append((u, k, y))
        y64 = direct(np.asarray(u * 2), np.asarray(k))
        assert numeric.compare(to_float64(y), y64, "bfloat16").ok, number
        assert np.isfinite(float(value))
        k = stepped
    # The results of earlier calls are still what they were.
    for u, k, y in kept:
        assert numeric.compare(to_float64(y), direct(np.asarray(u * 2), np.asarray(k)), "bfloat16").ok


def test_inputs_may_be_donated(rng):
    u, k = rng.standard_normal((4, 8, 128)).astype(np.float32), random(rng, (8, 128))
    y64 = direct(u, np.asarray(k))
    function = jax.jit(fj.fftconv, donate_argnums=0)
    for _ in range(5):
        assert numeric.compare(to_float64(function(jnp.asarray(u), k)), y64, "float32").ok


def test_ten_repeats_have_the_same_bits(rng):
    u, k = random(rng, (5, 7, 300), "float16"), random(rng, (7, 200))
    program = jax.jit(jax.grad(lambda u, k: jnp.sum(fj.fftconv(u, k).astype(jnp.float32) ** 2), argnums=(0, 1)))
    first = [np.asarray(x) for x in program(u, k)]
    for _ in range(9):
        assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(first, program(u, k), strict=True))


def test_scan_checkpoint_and_second_derivatives(rng):
    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))

    def energy(k, u):
        carry, _ = jax.lax.scan(lambda x, _: (jnp.tanh(jax.checkpoint(fj.fftconv)(x, k)), None), u, length=3)
        return jnp.sum(carry**2)

    def curvature(k, u):
        return jnp.sum(jax.grad(energy)(k, u) ** 2)

    with jax.default_device(jax.devices("cpu")[0]):
        on_cpu = [jax.device_put(np.asarray(x), jax.devices("cpu")[0]) for x in (k, u)]
        wanted = [np.asarray(jax.jit(jax.grad(f))(*on_cpu), np.float64) for f in (energy, curvature)]
    for function, grad64 in zip((energy, curvature), wanted, strict=True):
        assert numeric.relative_error(np.asarray(jax.jit(jax.grad(function))(k, u)), grad64) < 1e-4


def test_float64_and_empty_batches_are_left_to_xla(rng):
    assert fj.fftconv(jnp.zeros((0, 3, 16)), jnp.ones((3, 5)), mode="full").shape == (0, 3, 20)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        u, k = random(rng, (2, 3, 64), "float64"), random(rng, (3, 20), "float64")
        assert numeric.relative_error(np.asarray(fj.fftconv(u, k)), direct(np.asarray(u), np.asarray(k))) < 1e-12
    finally:
        jax.config.update("jax_enable_x64", before)


def test_what_no_gpu_can_hold_is_refused_there_and_computed_on_the_cpu(rng):
    u, k = np.zeros((1, 1, 1 << 24), np.float32), np.ones((1, 1 << 20), np.float32)
    u[0, 0, -1] = 1.0
    for function in (fj.fftconv, jax.jit(fj.fftconv), jax.grad(lambda u, k: fj.fftconv(u, k).sum())):
        with pytest.raises(UnsupportedProblemError, match="FFT size"):
            function(jnp.asarray(u), jnp.asarray(k))
    cpu = jax.devices("cpu")[0]
    y = fj.fftconv(jax.device_put(u, cpu), jax.device_put(k, cpu))
    np.testing.assert_allclose(np.asarray(y)[0, 0, -3:], [0, 0, 1], atol=1e-5)


def test_eight_threads_at_once(rng):
    cases = [(random(rng, (3, 4, 50 + number)), random(rng, (4, 20))) for number in range(8)]
    expected64 = [direct(np.asarray(u), np.asarray(k)) for u, k in cases]
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait(timeout=60)
        with jax.default_device(jax.devices("cuda")[0]):
            return [to_float64(fj.fftconv(*cases[number])) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for results, y64 in zip(pool.map(work, range(8)), expected64, strict=True):
            assert all(numeric.compare(y, y64, "float32").ok for y in results)


@pytest.mark.parametrize("split", ["batch", "channels"])
def test_shard_map_over_two_gpus(rng, split):
    gpus = jax.devices("cuda")
    if len(gpus) < 2:
        pytest.skip("one GPU")
    spec = jax.sharding.PartitionSpec
    mesh = jax.sharding.Mesh(np.array(gpus[:2]), ("x",))
    rows, filters = (spec("x"), spec()) if split == "batch" else (spec(None, "x"), spec("x"))
    sharded = jax.shard_map(fj.fftconv, mesh=mesh, in_specs=(rows, filters), out_specs=rows)
    given = vjp_case(rng, (4, 8, 256), (8, 100), "causal", "float16", 0)
    dy = given.pop("dy")
    u = jax.device_put(given["u"], jax.sharding.NamedSharding(mesh, rows))
    k = jax.device_put(given["k"], jax.sharding.NamedSharding(mesh, filters))
    assert numeric.compare(to_float64(jax.jit(sharded)(u, k)), direct(**given), "float16").ok
    scaled = jax.device_put(dy, jax.sharding.NamedSharding(mesh, rows))
    grads = jax.jit(jax.grad(lambda u, k: jnp.sum(sharded(u, k).astype(jnp.float32) * scaled), argnums=(0, 1)))(u, k)
    grads64 = expected({"dy": dy, **given})
    for name, grad in zip(NAMES, grads, strict=False):
        assert agreement(name, np.asarray(grad), getattr(grads64, name), str(grad.dtype)).ok, name
