"""`fftconv_cupy.jax.fftconv` under `vmap`: a loop over the mapped axis, in one call."""

from __future__ import annotations

import numpy as np
import pytest
from vjp_cases import NAMES, converted, expected, vjp_case

from fftconv_cupy import numeric

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
partial_eval = pytest.importorskip("jax.interpreters.partial_eval")
fj = pytest.importorskip("fftconv_cupy.jax")


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


# Mapped axes of u, k, in_gate, out_gate and skip.
AXES = [
    (0, None, None, None, None),
    (1, None, 0, None, None),
    (None, None, None, -1, None),
    (0, 0, 0, 0, 0),
    (None, 1, None, None, None),
    (2, None, None, None, 0),
    (None, -1, 1, 0, None),
]


VMAP_CASES = [((2, 3, 8), shared, axes) for shared in (False, True) for axes in AXES]
VMAP_CASES += [(shape, False, axes) for shape in ((3, 8), (8,)) for axes in (AXES[0], AXES[3], AXES[5])]


@pytest.mark.parametrize(("u_shape", "shared", "axes"), VMAP_CASES)
def test_vmap_is_a_loop_in_values_and_in_gradients_each_way_round(rng, u_shape, shared, axes):
    size, channels = 4, (u_shape[-2:-1] or (1,))[0]
    k_shape = (5,) if shared or len(u_shape) == 1 else (channels, 5)
    shapes = {"u": u_shape, "k": k_shape, "in_gate": u_shape, "out_gate": u_shape, "skip": (channels,)}
    axes = dict(zip(NAMES, axes, strict=True))
    # An axis past the last one of a short array is its last one.
    axes = {name: axis if axis is None else min(axis, len(shapes[name])) for name, axis in axes.items()}
    arrays = {
        name: jnp.asarray(
            rng.standard_normal(shape if axes[name] is None else np.insert(shape, axes[name] % (len(shape) + 1), size)),
            jnp.float32,
        )
        for name, shape in shapes.items()
    }

    def apply(given):
        return fj.fftconv(**given)

    def loss(given):
        return jnp.sum(jnp.sin(apply(given)))

    def element(i):
        return {name: x if axes[name] is None else jnp.take(x, i, axis=axes[name]) for name, x in arrays.items()}

    y = jax.vmap(apply, in_axes=(axes,))(arrays)
    each = jax.vmap(jax.grad(loss), in_axes=(axes,))(arrays)
    summed = jax.grad(lambda given: jnp.sum(jax.vmap(loss, in_axes=(axes,))(given)))(arrays)
    alone = jax.jit(lambda given: (apply(given), jax.grad(loss)(given)))
    rows, singles = zip(*(alone(element(i)) for i in range(size)), strict=True)
    np.testing.assert_allclose(y, np.stack(rows), rtol=1e-4, atol=1e-5)
    for name in NAMES:
        single = np.stack([grads[name] for grads in singles])
        assert numeric.relative_error(np.asarray(each[name]), single.astype(np.float64)) < 1e-5, name
        whole = single.sum(axis=0) if axes[name] is None else np.moveaxis(single, 0, axes[name])
        assert numeric.relative_error(np.asarray(summed[name]), whole.astype(np.float64)) < 1e-5, name


@pytest.mark.parametrize("names", [("u",), ("skip",), ("in_gate", "out_gate"), ("k", "skip")])
def test_vmap_of_some_gradients_is_a_loop_too(rng, names):
    arrays = converted("jax", vjp_case(rng, (2, 3, 8), (3, 5), "same", "float32"))
    del arrays["dy"]
    rows = jnp.asarray(rng.standard_normal((4, 2, 3, 8)), jnp.float32)

    def grads(u):
        def loss(some):
            return jnp.sum(jnp.sin(fj.fftconv(**{**arrays, "u": u, **some}, mode="same")))

        return jax.grad(loss)({name: u if name == "u" else arrays[name] for name in names})

    together, single = jax.vmap(grads)(rows), [grads(u) for u in rows]
    for name in names:
        stacked = np.stack([one[name] for one in single])
        assert numeric.relative_error(np.asarray(together[name]), stacked.astype(np.float64)) < 1e-5, name


def test_vmap_over_rows_is_one_convolution_of_a_larger_batch():
    u, k = jnp.ones((4, 2, 3, 8)), jnp.ones((3, 5))
    text = str(jax.make_jaxpr(jax.vmap(fj.fftconv, in_axes=(0, None)))(u, k))
    assert "batch=8, channels=3" in text
    grad = jax.vmap(jax.grad(lambda u: fj.fftconv(u, k).sum()))
    program = jax.make_jaxpr(grad)(u).jaxpr
    text = str(partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[0])  # as before a program is lowered
    assert text.count("batch=8, channels=3") == text.count("Problem(") > 0


def test_the_gradient_of_a_shared_filter_is_rounded_once_under_vmap(rng):
    u, k = rng.standard_normal((3, 40, 64)).astype(np.float32), rng.standard_normal(20).astype(np.float16)
    grads = jax.vmap(jax.grad(lambda k, u: fj.fftconv(u, k).sum()), in_axes=(None, 0))(jnp.asarray(k), jnp.asarray(u))
    assert grads.dtype == np.float16
    for i in range(3):
        wanted = expected({"dy": np.ones((40, 64), np.float32), "u": u[i], "k": k}).k
        assert numeric.compare_sum(np.asarray(grads[i]), wanted, "float16").ok


def test_vmap_nests(rng):
    u = jnp.asarray(rng.standard_normal((2, 3, 4, 8)), jnp.float32)
    k = jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32)
    y = jax.vmap(jax.vmap(fj.fftconv), in_axes=(0, None))(u, k)
    loop = jnp.stack([jnp.stack([fj.fftconv(u[i, j], k[j]) for j in range(3)]) for i in range(2)])
    np.testing.assert_allclose(y, loop, rtol=1e-5, atol=1e-5)
