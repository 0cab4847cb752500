"""Every wrong depthwise call is refused before anything is computed, saying what was got and what to do."""

from __future__ import annotations

import numpy as np
import pytest
from bad_depthwise_calls import ARGUMENTS, SHAPES, all_bad_depthwise_calls, good
from frameworks import FRAMEWORKS, World, allocated
from refusals import check_names, check_refused, forbid_computing

from fftconv_cupy import arrays, depthwise_conv1d, depthwise_conv1d_update, depthwise_numpy
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError

BAD_CALLS = all_bad_depthwise_calls()


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch):
    forbid_computing(monkeypatch)

    def compute(*_, **__):
        raise AssertionError("the backend was called")

    for name in ("convolve", "vjp", "update"):
        monkeypatch.setattr(depthwise_numpy, name, compute)


def test_there_are_enough_and_each_has_a_name():
    check_names(BAD_CALLS, least=400)


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.name)
def test_bad_call(bad):
    check_refused(bad)


@pytest.mark.parametrize("call", ARGUMENTS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_call_that_the_bad_ones_vary_is_good(framework, call, monkeypatch):
    if framework == "jax" and call is depthwise_conv1d_update:
        pytest.skip("JAX arrays cannot be written to")
    monkeypatch.setattr(arrays, "current_device", lambda: 0)
    stream = {"stream": 0} if framework == "cupy" else {}  # there is no current one without a GPU
    with (
        allocated(framework),
        pytest.raises(AssertionError, match=r"the backend was called|launch\.depthwise was used"),
    ):
        call(**good(World(framework), call), **stream)


def test_torch_tensors_with_gradients_are_refused_where_they_would_be_lost():
    torch = pytest.importorskip("torch")
    world = World("torch")
    for name in ("x", "weight", "bias"):
        leaf = torch.ones(SHAPES[name], requires_grad=True)
        with pytest.raises(InvalidArgumentError, match="stream with a tensor that torch differentiates"):
            depthwise_conv1d(**good(world, depthwise_conv1d) | {name: leaf}, stream=0)
        with pytest.raises(InvalidTypeError, match=rf"{name}: got a torch tensor that requires grad.*no_grad"):
            depthwise_conv1d_update(**good(world, depthwise_conv1d_update) | {name: leaf})


def test_jax_tracers_are_sent_to_the_function_for_them():
    jax = pytest.importorskip("jax")
    arguments = good(World("jax"), depthwise_conv1d)
    x = arguments.pop("x")
    with pytest.raises(InvalidTypeError, match=r"x: got a JAX tracer.*fftconv_cupy\.jax"):
        jax.jit(lambda x: depthwise_conv1d(x, **arguments))(x)


def test_strides_between_elements():
    record = np.zeros((2, 3, 16), np.dtype([("a", np.float32), ("b", np.int8)]))
    with pytest.raises(InvalidArgumentError, match=r"x\.strides: got .* bytes"):
        depthwise_conv1d(record["a"], np.ones((3, 4), np.float32))
