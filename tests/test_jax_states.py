"""Rows in parts inside JAX: states and their gradients, under its transformations and by the kernels' callback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frameworks import at_address

from fftconv_cupy import execute, fftconv, fftconv_vjp, numeric, numpy_backend
from fftconv_cupy.errors import InvalidArgumentError
from fftconv_cupy.problem import ITEM_BYTES, Gradients
from fftconv_cupy.readers import NUMPY_DTYPES

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
fj = pytest.importorskip("fftconv_cupy.jax")

from test_jax_primitives import CALLBACK, DEVICE, STREAM, kernels_on_the_host, launcher, lowered_for  # noqa: E402, F401

NAMES = ("u", "k", "in_gate", "out_gate", "skip", "initial_state")


def drawn(rng, shape=(2, 3, 16), taps=5, dtype="float32", flags=15):
    """Return the arguments of a call that go with `flags`: in_gate, out_gate, skip and the state."""
    channels = shape[-2] if len(shape) > 1 else 1
    shapes = (
        shape,
        (channels, taps) if len(shape) > 1 else (taps,),
        shape,
        shape,
        (channels,),
        (*shape[:-1], taps - 1),
    )
    dtypes = (dtype, "float32", dtype, dtype, "float32", "float32")
    return {
        name: rng.standard_normal(size).astype(NUMPY_DTYPES[kind])
        for i, (name, size, kind) in enumerate(zip(NAMES, shapes, dtypes, strict=True))
        if i < 2 or flags >> (i - 2) & 1
    }


def exact(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("shape", "taps"), [((2, 3, 40), 17), ((3, 7), 12), ((6,), 1)])
def test_values_and_gradients_agree_with_float64(rng, shape, taps, dtype):
    for flags in (0, 8, 15, 9):
        arrays = drawn(rng, shape, taps, dtype, flags)
        given = {name: jnp.asarray(array) for name, array in arrays.items()}
        results, transpose = jax.vjp(lambda on: fj.fftconv(**on, return_final_state=True), given)
        results64 = fftconv(**exact(arrays), return_final_state=True)
        assert results[1].dtype == jnp.float32
        assert numeric.compare(np.asarray(results[0]), results64[0].reshape(shape), dtype).ok
        assert np.allclose(results[1], results64[1])
        cotangents = [rng.standard_normal(x.shape).astype(x.dtype) for x in results]
        grads = transpose(tuple(map(jnp.asarray, cotangents)))[0]
        dy, d_final = (x.astype(np.float64) for x in cotangents)
        grads64 = fftconv_vjp(dy, **exact(arrays), d_final_state=d_final)
        for name, grad in grads.items():
            grad64 = getattr(grads64, name)
            assert grad.dtype == arrays[name].dtype
            if grad.size:
                assert numeric.relative_error(np.asarray(grad, np.float64), grad64) < {"float32": 1e-6}.get(dtype, 1e-2)


def test_parts_scanned_are_the_whole(rng):
    u, k = rng.standard_normal((2, 3, 40)).astype(np.float32), rng.standard_normal((3, 9)).astype(np.float32)

    def whole(u, k):
        return fj.fftconv(u, k)

    def scanned(u, k):
        def step(state, part):
            y, state = fj.fftconv(part, k, initial_state=state, return_final_state=True)
            return state, y

        parts = jnp.moveaxis(u.reshape(2, 3, 5, 8), 2, 0)
        _, y = jax.lax.scan(step, jnp.zeros((2, 3, 8)), parts)
        return jnp.moveaxis(y, 0, 2).reshape(2, 3, 40)

    def loss(function):
        return jax.jit(jax.value_and_grad(lambda u, k: jnp.sum(jnp.sin(function(u, k))), argnums=(0, 1)))

    for one, other in zip(*(jax.tree.leaves(loss(f)(u, k)) for f in (whole, scanned)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_vmap_is_a_loop_in_values_and_gradients(rng):
    arrays = drawn(rng, (2, 3, 12), 4)
    for mapped in (("u",), ("initial_state",), ("k",), ("u", "initial_state", "skip"), NAMES):
        given = {n: jnp.asarray(np.stack([a, 2 * a, -a]) if n in mapped else a) for n, a in arrays.items()}
        axes = ({name: 0 if name in mapped else None for name in given},)

        def function(on):
            y, final = fj.fftconv(**on, return_final_state=True)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(final))

        found = jax.vmap(jax.value_and_grad(function), axes)(given)
        for i in range(3):
            one = jax.value_and_grad(function)({n: x[i] if n in mapped else x for n, x in given.items()})
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=2e-5, atol=2e-5)


def test_second_derivatives(rng):
    jax.config.update("jax_enable_x64", True)
    try:
        arrays = {name: jnp.asarray(a, jnp.float64) for name, a in exact(drawn(rng, (2, 2, 6), 3)).items()}

        def ours(on):
            y, final = fj.fftconv(**on, return_final_state=True)
            return jnp.sum(y**3) + jnp.sum(final**3)

        def plain(on):
            x = on["u"] * on["in_gate"]
            points = jnp.concatenate((on["initial_state"], x), -1)
            y = sum(on["k"][:, j, None] * points[..., 2 - j : 8 - j] for j in range(3)) + on["skip"][:, None] * x
            return jnp.sum((y * on["out_gate"]) ** 3) + jnp.sum(points[..., 6:] ** 3)

        def curvature(function):
            return jax.grad(lambda on: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(function)(on))))

        for a, b in zip(*(jax.tree.leaves(curvature(f)(arrays)) for f in (ours, plain)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8)
    finally:
        jax.config.update("jax_enable_x64", False)


def memory_of(seen: Any) -> Any:
    if seen is None:
        return None
    strides = tuple(stride * ITEM_BYTES[seen.dtype] for stride in seen.strides)
    return at_address(seen.ptr, seen.shape, strides, NUMPY_DTYPES[seen.dtype])


@pytest.fixture
def states_on_the_host(kernels_on_the_host, monkeypatch):  # noqa: F811
    """The same with the launcher of rows that go on from a state."""

    def run(problem, *views, stream, workspace, initial_state):
        assert stream == STREAM
        numpy_backend.convolve(problem, *map(memory_of, (*views, initial_state)))

    def run_vjp(problem, wanted, *views, workspace, states):
        *inputs, grads, stream = views
        kernels_on_the_host.runs.append((problem, wanted, inputs[0].device, stream))
        known = dict(zip(("initial_state", "d_final_state", "d_initial_state"), map(memory_of, states), strict=True))
        numpy_backend.vjp(problem, *map(memory_of, inputs), Gradients(*map(memory_of, grads)), **known)

    monkeypatch.setattr(
        execute._launch, "run", lambda problem, *views, **known: run(problem, *views[:-1], stream=views[-1], **known)
    )
    monkeypatch.setattr(execute._launch, "run_vjp", run_vjp)
    return kernels_on_the_host


def test_the_kernels_get_the_buffers_of_their_names(rng, states_on_the_host):
    from fftconv_cupy import jax_states_primitives as primitives
    from fftconv_cupy.checks import Arguments, resolve
    from fftconv_cupy.problem import StateGradients
    from fftconv_cupy.readers import view

    for flags in range(8, 16):
        arrays = drawn(rng, flags=flags)
        problem = resolve(Arguments(**{name: view(a, name) for name, a in arrays.items()}), "causal", None).problem
        operands = [jnp.asarray(a) for a in arrays.values()]
        (y,) = jax.jit(lambda *on, problem=problem: primitives._forward_cuda(*on, problem=problem))(*operands)
        assert numeric.compare(np.asarray(y), fftconv(**exact(arrays)), "float32").ok
        dy = rng.standard_normal((2, 3, 16)).astype(np.float32)
        d_final = rng.standard_normal((2, 3, 4)).astype(np.float32) if flags % 2 else None
        wanted = StateGradients(*(name in arrays and name != "k" for name in NAMES))
        ends = [dy] if d_final is None else [dy, d_final]
        found = jax.jit(
            lambda *on, problem=problem, wanted=wanted, has=d_final is not None: primitives._backward_cuda(
                *on, problem=problem, wanted=wanted, has_final=has
            )
        )(*ends, *operands)
        known = {} if d_final is None else {"d_final_state": d_final.astype(np.float64)}
        grads64 = fftconv_vjp(dy.astype(np.float64), **exact(arrays), **known)
        names = [name for name, is_wanted in wanted._asdict().items() if is_wanted]
        for name, grad in zip(names, found, strict=True):
            assert numeric.relative_error(np.asarray(grad), getattr(grads64, name)) < 1e-6, (flags, name)
        assert states_on_the_host.runs[-1][2:] == (DEVICE, STREAM)


def test_a_program_for_cuda_calls_the_kernels(launcher):  # noqa: F811
    u, k, state = jnp.ones((2, 3, 16)), jnp.ones((3, 5)), jnp.ones((2, 3, 4))

    def loss(u, k, state):
        y, final = fj.fftconv(u, k, initial_state=state, return_final_state=True)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(final))

    text = lowered_for("cuda", jax.grad(loss, argnums=(0, 1, 2)), u, k, state)
    assert text.count(CALLBACK) == 2
    assert "stablehlo.fft" not in text
    assert all(entry[1].initial_state for entry in launcher.loaded)


def test_what_has_no_state_is_refused():
    u, k = jnp.ones((2, 3, 16)), jnp.ones((3, 5))
    with pytest.raises(InvalidArgumentError, match="return_final_state: got a call in mode 'full'"):
        fj.fftconv(u, k, mode="full", return_final_state=True)
    with pytest.raises(InvalidArgumentError, match=r"initial_state\.shape"):
        fj.fftconv(u, k, initial_state=jnp.ones((2, 3, 5)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("flags", [0, 8, 15])
def test_values_and_gradients_on_a_gpu(rng, dtype, flags):
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU")
    arrays = drawn(rng, (2, 3, 300), 65, dtype, flags)
    given = {name: jnp.asarray(array) for name, array in arrays.items()}

    @jax.jit
    def both(on, cotangents):
        results, transpose = jax.vjp(lambda on: fj.fftconv(**on, return_final_state=True), on)
        return results, transpose(cotangents)[0]

    dy, d_final = (rng.standard_normal((2, 3, n)).astype(NUMPY_DTYPES[k]) for n, k in ((300, dtype), (64, "float32")))
    (y, final), grads = both(given, (jnp.asarray(dy), jnp.asarray(d_final)))
    y64, final64 = fftconv(**exact(arrays), return_final_state=True)
    assert numeric.compare(np.asarray(y), y64, dtype).ok
    assert numeric.relative_error(np.asarray(final, np.float64), final64) < 1e-6
    grads64 = fftconv_vjp(dy.astype(np.float64), **exact(arrays), d_final_state=d_final.astype(np.float64))
    for name, grad in grads.items():
        compare = numeric.compare_sum if name in ("k", "skip") else numeric.compare
        assert compare(np.asarray(grad), getattr(grads64, name), str(grad.dtype)).ok, name
