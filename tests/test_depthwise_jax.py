"""`fftconv_cupy.jax.depthwise_conv1d`: values, gradients and transformations on the CPU, and the kernels' callback."""

from __future__ import annotations

import ctypes
import doctest
import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import test_jax_primitives
from bad_calls import MESSAGE
from depthwise_cases import NAMES, Loops, agreement, case, converted, packed, random
from test_depthwise_gpu_path import DepthwiseLauncher, memory_of

from fftconv_cupy import depthwise_numpy, execute, numeric
from fftconv_cupy.depthwise_problem import LAYOUTS, DepthwiseGradients, DepthwiseWanted
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError
from fftconv_cupy.problem import DTYPES

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
module = pytest.importorskip("fftconv_cupy.jax_depthwise")
primitives = pytest.importorskip("fftconv_cupy.jax_depthwise_primitives")
jax_depthwise_numpy = pytest.importorskip("fftconv_cupy.jax_depthwise_numpy")
depthwise_conv1d = pytest.importorskip("fftconv_cupy.jax").depthwise_conv1d

launcher = test_jax_primitives.launcher
kernels_on_the_host = test_jax_primitives.kernels_on_the_host


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


CASES = [
    {"padding": padding, "activation": activation, "layout": layout, "extra": extra}
    for padding, activation, layout, extra in itertools.product(
        ("causal", "same", 2), (None, "silu"), ("BHL", "BLH"), ("none", "state", "seq_idx")
    )
    if extra == "none" or padding == "causal"
]


def given(rng, c, sizes=(2, 3, 17, 4), **dtypes):
    arrays = case(
        rng,
        sizes,
        layout=c["layout"],
        with_state=c["extra"] == "state",
        with_seq_idx=c["extra"] == "seq_idx",
        **dtypes,
    )
    options = {name: c[name] for name in ("padding", "activation", "layout")}
    return arrays, options, {"return_final_state": True} if c["extra"] == "state" else {}


def gradients_of(function, arrays, cotangents):
    """Return the gradients of every array but the indices, and the results."""
    some = {name: array for name, array in arrays.items() if name != "seq_idx"}
    rest = {name: array for name, array in arrays.items() if name == "seq_idx"}
    results, transpose = jax.vjp(lambda some: function(**some, **rest), some)
    return results, transpose(cotangents if isinstance(results, tuple) else cotangents[0])[0]


@pytest.mark.parametrize(("number", "c"), list(enumerate(CASES)), ids=str)
def test_values_and_gradients_agree_with_sums_tap_by_tap(rng, number, c):
    dtype = DTYPES[number % 3]
    arrays, options, extra = given(rng, c, dtype=dtype, weight_dtype=DTYPES[number // 3 % 3])
    exact = Loops(arrays, **options)
    y64, dy = exact.outputs(), random(rng, exact.outputs().shape, dtype)
    d_final = random(rng, exact.final_state().shape, dtype) if extra else None
    cotangents = tuple(jnp.asarray(d) for d in (dy, d_final) if d is not None)
    compiled = jax.jit if number % 2 else lambda f: f
    function = compiled(functools.partial(depthwise_conv1d, **options, **extra))
    results, grads = gradients_of(function, converted("jax", arrays), cotangents)
    y = results[0] if extra else results
    assert y.dtype == dtype
    assert agreement("y", np.asarray(y), y64, dtype).ok
    if extra:
        assert np.array_equal(np.asarray(results[1]).astype(np.float64), exact.final_state())
    for name, grad64 in zip(NAMES, exact.gradients(dy, d_final), strict=True):
        if name in arrays:
            grad = np.asarray(grads[name])
            assert (grad.shape, grad.dtype) == (arrays[name].shape, arrays[name].dtype)
            assert agreement(name, grad, grad64, str(grad.dtype)).ok, name


@pytest.mark.parametrize("width", [1, 2, 128])
def test_every_width(rng, width):
    arrays = case(rng, (2, 3, 30, width), with_state=True)
    exact = Loops(arrays)
    dy = random(rng, (2, 3, 30), "float32")
    y, final = depthwise_conv1d(**converted("jax", arrays), return_final_state=True)
    assert agreement("y", np.asarray(y), exact.outputs(), "float32").ok
    assert final.shape == (2, 3, width - 1)
    _, grads = gradients_of(depthwise_conv1d, converted("jax", arrays), (jnp.asarray(dy),))
    for name, grad64 in zip(NAMES, exact.gradients(dy), strict=True):
        assert agreement(name, np.asarray(grads[name]), grad64, "float32").ok


def test_float64(rng, x64):
    arrays = case(rng, dtype="float64", weight_dtype="float64", bias_dtype="float64")
    y = depthwise_conv1d(**converted("jax", arrays), activation="silu")
    assert y.dtype == "float64"
    assert numeric.compare(np.asarray(y), Loops(arrays, activation="silu").outputs(), "float64").ok


@pytest.mark.parametrize("c", CASES[::5], ids=str)
def test_second_derivatives_are_those_that_jax_finds_itself(rng, c, x64):
    arrays, options, _ = given(rng, c, (2, 2, 6, 3), dtype="float64", weight_dtype="float64", bias_dtype="float64")
    on = converted("jax", arrays)
    rest = {"seq_idx": on.pop("seq_idx")} if "seq_idx" in on else {}

    def plain(x, weight, bias, seq_idx=None, initial_state=None, *, padding, activation, layout):
        rows = x if layout == "BHL" else x.swapaxes(1, 2)
        left, count = {"causal": (2, 6), "same": (1, 6), 2: (2, 8)}[padding]
        padded = jnp.pad(rows, ((0, 0), (0, 0), (left, count + 2 - left - 6)))
        if initial_state is not None:
            padded = padded.at[..., :2].set(initial_state)
        marks = None if seq_idx is None else jnp.pad(seq_idx, ((0, 0), (2, 0)), constant_values=-1)[:, None]
        z = bias[:, None]
        for j in range(3):
            term = weight[:, j, None] * padded[..., j : j + count]
            z = z + (term if marks is None else jnp.where(marks[..., j : j + 6] == marks[..., 2:], term, 0))
        z = z if marks is None else jnp.where(marks[..., 2:] >= 0, z, 0)
        y = jax.nn.silu(z) if activation else z
        return y if layout == "BHL" else y.swapaxes(1, 2)

    def along(function, given):
        grads = jax.grad(lambda some: jnp.sum(jnp.sin(function(**some, **rest, **options))))(given)
        return sum(jnp.sum(jnp.cos(given[name]) * grads[name]) for name in given)

    ours, theirs = (jax.jit(jax.grad(functools.partial(along, f)))(on) for f in (depthwise_conv1d, plain))
    for name in on:
        assert numeric.relative_error(np.asarray(ours[name]), np.asarray(theirs[name])) < 1e-12, name


def test_only_the_gradients_that_are_asked_for_are_computed(rng, monkeypatch):
    arrays = converted("jax", case(rng, with_state=True))
    asked, compute = [], jax_depthwise_numpy.gradients

    def remember(problem, wanted, *others, **more):
        asked.append({name for name, is_wanted in wanted._asdict().items() if is_wanted})
        return compute(problem, wanted, *others, **more)

    monkeypatch.setattr(jax_depthwise_numpy, "gradients", remember)
    for names in (["weight"], ["x", "bias"], ["initial_state"]):
        some = {name: arrays[name] for name in names}
        asked.clear()
        jax.clear_caches()
        jax.jit(jax.grad(lambda some: depthwise_conv1d(**{**arrays, **some}).sum()))(some)
        assert asked == [set(names)]


def test_an_empty_batch_has_no_output_and_zero_gradients(rng):
    arrays = converted("jax", case(rng, (0, 3, 16, 4)))
    grads = jax.grad(lambda some: depthwise_conv1d(**some).sum())(arrays)
    assert [grads[name].shape for name in ("x", "weight", "bias")] == [(0, 3, 16), (3, 4), (3,)]
    assert not any(np.any(grad) for grad in grads.values())


def test_a_value_that_is_not_finite_stays_in_its_row_and_sequence(rng):
    arrays = case(rng, (2, 3, 8, 3), with_seq_idx=True)
    arrays["seq_idx"][...] = [[0, 0, 0, 1, 1, 1, 1, 1]] * 2
    arrays["x"][1, 2, 1] = np.nan
    y, grads = gradients_of(depthwise_conv1d, converted("jax", arrays), (jnp.ones((2, 3, 8)),))
    assert np.argwhere(np.isnan(np.asarray(y))).tolist() == [[1, 2, 1], [1, 2, 2]]
    assert np.isfinite(np.asarray(grads["x"])).all()
    assert np.isfinite(np.asarray(grads["weight"])).all(axis=1).tolist() == [True, True, False]


AXES = [axes for axes in itertools.product((None, 0, 1), repeat=5) if any(a is not None for a in axes)]


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_vmap_is_a_loop_in_values_and_in_gradients_each_way_round(rng, layout):
    base = converted("jax", case(rng, (2, 3, 6, 4), layout=layout, with_state=True))
    base["seq_idx"] = jnp.asarray(packed(rng, 2, 6))
    names = ("x", "weight", "bias", "initial_state", "seq_idx")
    for number, axes in enumerate(AXES[LAYOUTS.index(layout) :: 67]):
        without = ("initial_state", "seq_idx")[number % 2]
        axis_of = {name: axis for name, axis in zip(names, axes, strict=True) if name != without}
        if all(axis is None for axis in axis_of.values()):
            continue
        arrays = {
            name: base[name]
            if axis is None
            else jnp.stack([jnp.roll(base[name] * (1 if name == "seq_idx" else i + 1), i) for i in range(3)], axis)
            for name, axis in axis_of.items()
        }
        floats = [name for name in arrays if name != "seq_idx"]

        def apply(given, layout=layout):
            return depthwise_conv1d(**given, layout=layout, activation="silu")

        def grads(given, floats=floats, apply=apply):
            some = {name: given[name] for name in floats}
            return jax.grad(lambda some: jnp.sum(jnp.sin(apply({**given, **some}))))(some)

        together = jax.jit(jax.vmap(lambda g, apply=apply, grads=grads: (apply(g), grads(g)), (axis_of,)))(arrays)
        alone = jax.jit(lambda g, apply=apply, grads=grads: (apply(g), grads(g)))
        items = [
            alone({n: a if axis_of[n] is None else jnp.take(a, i, axis_of[n]) for n, a in arrays.items()})
            for i in range(3)
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *items)
        for one, loop in zip(jax.tree.leaves(together), jax.tree.leaves(stacked), strict=True):
            assert numeric.relative_error(np.asarray(one), loop.astype(np.float64)) < 1e-5, axis_of


def test_vmap_over_rows_is_one_call_of_a_larger_batch():
    x, weight = jnp.ones((4, 2, 3, 8)), jnp.ones((3, 4))
    text = str(jax.make_jaxpr(jax.vmap(depthwise_conv1d, in_axes=(0, None)))(x, weight))
    assert "batch=8, channels=3" in text
    y, state = jax.vmap(lambda x: depthwise_conv1d(x, weight, return_final_state=True))(x)
    assert (y.shape, state.shape) == ((4, 2, 3, 8), (4, 2, 3, 3))


def test_checkpoint_and_scan(rng):
    x, weight = jnp.asarray(random(rng, (2, 3, 16), "float32")), jnp.asarray(random(rng, (3, 4), "float32"))

    def loss(x, weight, function):
        y, _ = jax.lax.scan(lambda carry, _: (jnp.tanh(function(carry, weight)), None), x, length=3)
        return jnp.sum(y**2)

    def loop(x, weight):
        for _ in range(3):
            x = jnp.tanh(depthwise_conv1d(x, weight))
        return jnp.sum(x**2)

    ours = jax.jit(jax.grad(functools.partial(loss, function=jax.checkpoint(depthwise_conv1d)), (0, 1)))(x, weight)
    for one, other in zip(ours, jax.grad(loop, (0, 1))(x, weight), strict=True):
        assert numeric.relative_error(np.asarray(one), np.asarray(other, np.float64)) < 1e-5


BAD = {
    "x": ({"x": np.ones((2, 3, 16), np.float32)}, InvalidTypeError),
    "weight": ({"weight": None}, InvalidTypeError),
    "bias": ({"bias": 1.0}, InvalidTypeError),
    "weight.shape": ({"weight": (3, 1, 4)}, InvalidArgumentError),
    "x.dtype": ({"x": jnp.ones((2, 3, 16), jnp.int32)}, InvalidTypeError),
    "seq_idx.dtype": ({"seq_idx": (2, 16)}, InvalidTypeError),
    "padding": ({"padding": "full"}, InvalidArgumentError),
    "activation": ({"activation": "gelu"}, InvalidArgumentError),
    "layout": ({"layout": "HLB"}, InvalidArgumentError),
    "return_final_state": ({"return_final_state": True, "padding": "same"}, InvalidArgumentError),
    "initial_state": ({"initial_state": (2, 3, 3), "padding": 3}, InvalidArgumentError),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("is_traced", [False, True])
def test_bad_calls_say_what_is_wrong(what, is_traced):
    changes, kind = BAD[what]
    changes = {name: jnp.ones(v) if isinstance(v, tuple) else v for name, v in changes.items()}
    arguments = {"x": jnp.ones((2, 3, 16)), "weight": jnp.ones((3, 4)), **changes}
    if is_traced and isinstance(arguments["weight"], jax.Array):
        traced = arguments.pop("weight")
        call = lambda: jax.jit(lambda weight: depthwise_conv1d(weight=weight, **arguments))(traced)  # noqa: E731
    else:
        call = lambda: depthwise_conv1d(**arguments)  # noqa: E731
    with pytest.raises(kind) as raised:
        call()
    assert type(raised.value) is kind
    parts = MESSAGE.fullmatch(str(raised.value))
    assert parts is not None
    assert parts["what"] == what


class JaxLauncher(DepthwiseLauncher):
    """Stands for `launch_depthwise` with the workspace of XLA's, which it spoils."""

    def load(self, problem, wanted, device):
        self.checked.append((problem, wanted, device))
        return 0 if wanted is None else 2006

    def run_vjp(self, problem, wanted, *views, workspace):
        ctypes.memset(workspace.ptr, 0xFF, 2006)
        *inputs, gradients, stream = views
        self.calls.append((problem, wanted, stream))
        assert DepthwiseWanted(*(grad is not None for grad in gradients)) == wanted
        grads = DepthwiseGradients(*map(memory_of, gradients))
        depthwise_numpy.vjp(problem, *map(memory_of, inputs), grads)


@pytest.fixture
def kernels(kernels_on_the_host, monkeypatch):
    """Run on the CPU what is lowered for CUDA, with NumPy in the place of the kernels."""
    stands_in = JaxLauncher()
    monkeypatch.setattr(execute, "_launch", SimpleNamespace(depthwise=stands_in))
    monkeypatch.setattr(primitives, "cuda_devices", lambda: [0, test_jax_primitives.DEVICE])
    return stands_in


@pytest.mark.parametrize("c", CASES, ids=str)
def test_the_callback_gives_the_kernels_xlas_buffers_and_stream(rng, kernels, c):
    arrays, options, extra = given(rng, c, dtype="bfloat16")
    exact = Loops(arrays, **options)
    dy = random(rng, exact.outputs().shape, "bfloat16")
    d_final = random(rng, exact.final_state().shape, "bfloat16") if extra else None
    problem = module.resolve(
        {name: module.abstract_view(jnp.asarray(a), name, is_index=name == "seq_idx") for name, a in arrays.items()},
        module.Options(**options, **extra),
    ).problem
    order = ("x", "weight", "bias", "seq_idx", "initial_state")
    operands = [jnp.asarray(arrays[name]) for name in order if name in arrays]
    results = jax.jit(lambda *on: primitives._forward_cuda(*on, problem=problem))(*operands)
    assert agreement("y", np.asarray(results[0]), exact.outputs(), "bfloat16").ok
    if extra:
        assert np.array_equal(np.asarray(results[1]).astype(np.float64), exact.final_state())
    for names in (NAMES, ("x",), ("weight",), ("bias", "initial_state")):
        wanted = DepthwiseWanted(*(name in names and name in arrays for name in NAMES))
        cotangents = [jnp.asarray(d) for d in (dy, d_final) if d is not None]
        compute = lambda *on, wanted=wanted: primitives._backward_cuda(*on, problem=problem, wanted=wanted)  # noqa: E731
        found = jax.jit(compute)(*cotangents, *operands)
        exact_grads = exact.gradients(dy, d_final)._asdict()
        for name, grad in zip([n for n, w in wanted._asdict().items() if w], found, strict=True):
            assert agreement(name, np.asarray(grad), exact_grads[name], str(grad.dtype)).ok, name
    assert {stream for *_, stream in kernels.calls} == {test_jax_primitives.STREAM}
    assert {device for *_, device in kernels.checked} == {0, test_jax_primitives.DEVICE}


def test_a_program_for_cuda_holds_a_callback_and_none_where_there_is_nothing_to_compute(kernels):
    def lowered(x):
        call = jax.jit(lambda x: jax.value_and_grad(lambda x: depthwise_conv1d(x, jnp.ones((3, 4))).sum())(x))
        return call.trace(x).lower(lowering_platforms=("cuda",)).as_text()

    assert lowered(jnp.ones((2, 3, 16))).count("xla_buffer_python_gpu_callback") == 2
    assert "xla_buffer_python_gpu_callback" not in lowered(jnp.ones((0, 3, 16)))


def test_the_examples_in_the_docstrings():
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
