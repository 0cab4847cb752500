"""Eager calls of torch leave out the dispatcher where nothing but autograd looks at them, and nowhere else."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch_cases import arguments  # noqa: E402

import fftconv_cupy.torch as module  # noqa: E402
from fftconv_cupy import execute, prepare_filter, torch_derivatives  # noqa: E402
from fftconv_cupy.problem import MODES  # noqa: E402
from fftconv_cupy.torch import fftconv  # noqa: E402
from fftconv_cupy.torch_operator import forward_op  # noqa: E402


@pytest.fixture
def dispatched(monkeypatch):
    """The names of the operators that are called."""
    calls = []

    def record(where, name):
        op = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *args: calls.append(name) or op(*args))

    record(module, "forward_op")
    record(torch_derivatives, "vjp_op")
    return calls


@pytest.mark.parametrize("mode", MODES)
def test_plain_calls_give_what_the_operator_gives_without_it(mode, dispatched):
    tensors = arguments(mode, dtype=torch.float32)
    y, exact = fftconv(**tensors, mode=mode), forward_op(*tensors.values(), mode, None, None, None, None)
    assert torch.equal(y, exact)
    for found, expected in zip(
        torch.autograd.grad(y.square().sum(), tuple(tensors.values())),
        torch.autograd.grad(exact.square().sum(), tuple(tensors.values())),
        strict=True,
    ):
        assert torch.equal(found, expected)
    assert not dispatched
    with torch.no_grad():
        assert torch.equal(fftconv(**tensors, mode=mode), exact)
    prepared = prepare_filter(tensors.pop("k").detach(), seqlen=9, mode=mode)
    assert torch.equal(fftconv(k=prepared, mode=mode, **tensors), exact)
    assert not dispatched
    torch.autograd.grad(fftconv(k=prepared, mode=mode, **tensors).sum(), tensors["u"], create_graph=True)
    assert dispatched == ["vjp_op"]


class Recorded(TorchDispatchMode):
    """Takes down what is dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_modes_and_profilers_see_the_operator(dispatched):
    tensors = {name: tensor.detach() for name, tensor in arguments(dtype=torch.float32).items()}
    with Recorded() as seen:
        fftconv(**tensors)
    assert "fftconv_cupy::fftconv" in seen.names
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert type(fftconv(fake.from_tensor(tensors["u"]), tensors["k"])) is not torch.Tensor
    with torch.autograd.profiler.profile() as profile:
        fftconv(**tensors)
    assert "fftconv_cupy::fftconv" in {event.name for event in profile.function_events}
    assert len(dispatched) == 3


def test_autocast_casts_without_the_dispatcher(dispatched):
    tensors = arguments(dtype=torch.float32)
    inputs = (*tensors.values(), "causal", None, None, None, None)
    results = []
    for call in (lambda: fftconv(**tensors), lambda: forward_op(*inputs)):
        with torch.autocast("cpu", torch.bfloat16):
            y = call()
        results.append((y, *torch.autograd.grad(y.float().square().sum(), tuple(tensors.values()))))
    assert results[0][0].dtype is torch.bfloat16
    assert all(map(torch.equal, *results))
    assert not dispatched


def test_the_backward_of_a_plain_call_is_seen_too(dispatched):
    tensors = arguments(dtype=torch.float32)
    y = fftconv(**tensors)
    with Recorded() as seen:
        y.sum().backward()
    assert "fftconv_cupy::fftconv_vjp" in seen.names


class Plain(torch.Tensor):
    """A subclass without behaviour of its own."""


def test_tensors_that_the_dispatcher_knows_to_read(dispatched):
    u, k = torch.randn(2, 3, 9), torch.randn(3, 4)
    negated = torch._neg_view(u)
    assert torch.equal(fftconv(negated, k), -fftconv(u, k))
    y = fftconv(negated, k.clone().requires_grad_())
    y.backward(torch._neg_view(torch.ones_like(y)))
    assert fftconv(u.to("meta"), k.to("meta")).is_meta
    assert type(fftconv(u.as_subclass(Plain), k)) is type(
        forward_op(u.as_subclass(Plain), k, *[None] * 3, "causal", None, None, None, None)
    )
    assert dispatched == ["forward_op", "forward_op", "vjp_op", "forward_op", "forward_op"]


def test_gradients_take_the_precision_of_their_call(monkeypatch):
    asked = []
    differentiate = execute.vjp_on_cpu
    monkeypatch.setattr(
        execute, "vjp_on_cpu", lambda call, given: asked.append(call.problem.precision) or differentiate(call, given)
    )
    tensors = arguments("causal", dtype=torch.float32)
    for precision in ("medium", None):
        fftconv(**tensors, precision=precision).sum().backward()
        forward_op(*tensors.values(), "causal", None, precision, None, None).sum().backward()
    assert asked == ["medium", "medium", None, None]
