"""The depthwise torch operators: values, gradients of any order, transformations, autocast, compilation, bad calls."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
from bad_calls import MESSAGE

torch = pytest.importorskip("torch")

from depthwise_torch_cases import CASES, NAMES, arguments, as_list, detached, given, reference  # noqa: E402
from torch_cases import error  # noqa: E402

import fftconv_cupy  # noqa: E402
import fftconv_cupy.torch_depthwise as module  # noqa: E402
from fftconv_cupy import numeric, torch_depthwise_operator  # noqa: E402
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError  # noqa: E402
from fftconv_cupy.torch import depthwise_conv1d, depthwise_conv1d_update  # noqa: E402
from fftconv_cupy.torch_depthwise_operator import forward_op, update_op, vjp_op  # noqa: E402

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_are_rounded_once(dtype, case):
    ours, theirs, tensors = given(case, (2, 3, 40, 7), dtype=DTYPES[dtype])
    exact = detached(tensors)
    results, wanted = as_list(ours(*tensors.values())), as_list(theirs(*exact.values()))
    cotangents = [torch.randn(y.shape).to(y.dtype) for y in results]
    for y, y64 in zip(results, wanted, strict=True):
        assert y.dtype is DTYPES[dtype]
        assert y.is_contiguous()
        assert numeric.compare(y.detach().double().numpy(), y64.detach().numpy(), dtype).ok
    torch.autograd.backward(results, cotangents)
    torch.autograd.backward(wanted, [c.double() for c in cotangents])
    for name, tensor in tensors.items():
        gradient = tensor.grad
        assert gradient.dtype is tensor.dtype
        if name in ("weight", "bias"):
            assert error(gradient, exact[name].grad) <= 1e-5
        else:
            assert numeric.compare(gradient.double().numpy(), exact[name].grad.numpy(), dtype).ok


@pytest.mark.parametrize("sizes", [(2, 3, 9, 4), (1, 1, 1, 1), (2, 2, 3, 6), (1, 2, 5, 2)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_agree_with_differences(case, sizes):
    if case.get("padding") == 0 and sizes[2] < sizes[3]:
        pytest.skip("no output")
    ours, _, tensors = given(case, sizes)
    args = tuple(tensors.values())
    assert torch.autograd.gradcheck(ours, args, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_derivatives_agree_with_differences(case):
    ours, _, tensors = given(case, (2, 2, 5, 3))
    assert torch.autograd.gradgradcheck(ours, tuple(tensors.values()), check_fwd_over_rev=True)
    frozen = {name: tensor.detach() for name, tensor in tensors.items()}
    for name in tensors:
        some = lambda tensor, name=name: ours(*{**frozen, name: tensor}.values())  # noqa: E731
        assert torch.autograd.gradgradcheck(some, (tensors[name],), check_fwd_over_rev=True)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_packed_sequences_are_differentiable(activation):
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, -1, -1, 3], [-1, 2, 2, 2, 2, 2, 2, -1]], dtype=torch.int32)
    tensors = arguments((2, 3, 8, 3))
    ours = lambda *args: depthwise_conv1d(*args, seq_idx=seq_idx, activation=activation)  # noqa: E731
    assert torch.allclose(
        ours(*tensors.values()), reference(**tensors, seq_idx=seq_idx, activation=activation), rtol=1e-12, atol=1e-12
    )
    assert torch.autograd.gradcheck(ours, tuple(tensors.values()), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(ours, tuple(tensors.values()))


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_opcheck(case):
    _, _, tensors = given(case)
    options = (str(case.get("padding", "causal")), case["activation"], case["layout"])
    x, weight, bias, *state = tensors.values()
    args = (x, weight, bias, None, *(state or [None]))
    torch.library.opcheck(forward_op, (*args, *options, bool(state)))
    y, final = forward_op(*args, *options, bool(state))
    for wrt in ([True, True, True, bool(state)], [False, True, False, False]):
        d_final = final.detach().requires_grad_() if state else None
        torch.library.opcheck(vjp_op, (y.detach().requires_grad_(), d_final, *args, *options, wrt))


def test_opcheck_of_the_update():
    x, state, weight, bias = torch.randn(2, 3, 2), torch.randn(4, 3, 5), torch.randn(3, 4), torch.randn(3)
    seen, rows = torch.tensor([3, 9], dtype=torch.int32), torch.tensor([3, -1], dtype=torch.int32)
    torch.library.opcheck(update_op, (x, state, weight, bias, seen, rows, "silu"))
    torch.library.opcheck(update_op, (x[..., 0], state[:2], weight, None, None, None, None))


@pytest.fixture
def asked(monkeypatch):
    """The gradients that backward asks for, call by call."""
    calls = []
    compute = torch_depthwise_operator.depthwise_conv1d_vjp

    def record(*args, wrt, **options):
        calls.append(tuple(wrt))
        return compute(*args, wrt=wrt, **options)

    monkeypatch.setattr(torch_depthwise_operator, "depthwise_conv1d_vjp", record)
    return calls


def test_only_needed_gradients_are_computed(asked):
    for needed in itertools.chain.from_iterable(itertools.combinations(NAMES, n) for n in range(1, 5)):
        tensors = arguments(state=True)
        for name in set(NAMES) - set(needed):
            tensors[name].requires_grad_(False)
        exact = detached(tensors)
        depthwise_conv1d(**tensors).square().sum().backward()
        reference(**exact).square().sum().backward()
        assert asked.pop() == needed
        assert not asked
        for name, tensor in tensors.items():
            if name in needed:
                assert error(tensor.grad, exact[name].grad) < 1e-12
            else:
                assert tensor.grad is None


def test_the_input_is_kept_only_where_a_gradient_depends_on_it():
    def kept(activation=None, **needs):
        tensors = arguments(state=True)
        for name in NAMES:
            tensors[name].requires_grad_(needs.get(name, False))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
            y = depthwise_conv1d(**tensors, activation=activation)
        exact = detached(tensors)
        y.sum().backward()
        reference(**exact, activation=activation).sum().backward()
        for name in needs:
            assert error(tensors[name].grad, exact[name].grad) < 1e-12
        return tensors["x"].data_ptr() in saved

    assert not kept(x=True, bias=True, initial_state=True)
    assert kept(x=True, weight=True)
    assert kept(x=True, activation="silu")


def test_the_gradient_of_the_final_state_alone():
    for layout in ("BHL", "BLH"):
        tensors = arguments((2, 3, 2, 5), layout=layout, state=True)
        exact = detached(tensors)
        for function, leaves in ((depthwise_conv1d, tensors), (reference, exact)):
            _, final = function(**leaves, layout=layout, return_final_state=True)
            final.square().sum().backward()
        for name in ("x", "initial_state"):
            assert torch.allclose(tensors[name].grad, exact[name].grad)
        assert not tensors["weight"].grad.any()


def test_views_and_expanded_tensors_of_any_strides():
    base = torch.randn(3, 7, 2, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def compute(function):
        x = base.flip(-2).transpose(1, 2)[..., ::2]
        y = function(x, taps.expand(2, 6)[:, ::2], taps[:1].expand(2))
        return torch.autograd.grad(y.sum(), (base, taps))  # an expanded cotangent

    for gradient, exact in zip(compute(depthwise_conv1d), compute(reference), strict=True):
        assert error(gradient, exact) < 1e-12


def test_autocast_casts_the_input_and_leaves_the_taps():
    tensors = arguments(dtype=torch.float32, state=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = depthwise_conv1d(**tensors, return_final_state=True)
    assert y.dtype is final.dtype is torch.bfloat16
    cast = {name: t if name in ("weight", "bias") else t.bfloat16() for name, t in tensors.items()}
    assert torch.equal(y, depthwise_conv1d(**cast))
    y.float().square().sum().backward()
    assert all(tensor.grad.dtype is torch.float32 for tensor in tensors.values())
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv1d(**arguments()).dtype is torch.float64
        state = torch.zeros(2, 3, 3)
        assert depthwise_conv1d_update(torch.ones(2, 3).bfloat16(), state, torch.ones(3, 4)).dtype is torch.float32
    assert state[..., -1].all()


def test_an_empty_batch_has_gradients():
    tensors = arguments((0, 3, 9, 4), state=True)
    y = depthwise_conv1d(**tensors)
    y.sum().backward()
    for tensor in tensors.values():
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_the_general_function_hands_over_what_is_differentiated():
    for name in NAMES:
        tensors = {n: t if n == name else t.detach() for n, t in arguments(state=True).items()}
        y, final = fftconv_cupy.depthwise_conv1d(**tensors, activation="silu", return_final_state=True)
        (y.sum() + final.sum()).backward()
        assert tensors[name].grad is not None
    tensors = arguments(requires_grad=False)
    mapped = torch.func.vmap(lambda w: fftconv_cupy.depthwise_conv1d(tensors["x"], w))(tensors["weight"][None])
    assert torch.equal(mapped[0], depthwise_conv1d(tensors["x"], tensors["weight"]))


BAD = {
    "x": ({"x": np.ones((2, 3, 9))}, InvalidTypeError),
    "weight": ({"weight": None}, InvalidTypeError),
    "bias": ({"bias": 1.0}, InvalidTypeError),
    "padding": ({"padding": "valid"}, InvalidArgumentError),
    "padding's type": ({"padding": 1.5}, InvalidTypeError),
    "padding's digits": ({"padding": "3"}, InvalidArgumentError),
    "activation": ({"activation": "relu"}, InvalidArgumentError),
    "layout": ({"layout": "LBH"}, InvalidArgumentError),
    "return_final_state": ({"return_final_state": 1}, InvalidTypeError),
    "weight.shape": ({"weight": torch.ones(3, 1, 4)}, InvalidArgumentError),
    "bias.shape": ({"bias": torch.ones(2)}, InvalidArgumentError),
    "initial_state": ({"initial_state": torch.ones(2, 3, 3).double(), "padding": 1}, InvalidArgumentError),
    "initial_state.dtype": ({"initial_state": torch.ones(2, 3, 3)}, InvalidTypeError),
    "seq_idx.dtype": ({"seq_idx": torch.ones(2, 9).long()}, InvalidTypeError),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_bad_calls_say_what_is_wrong(what, requires_grad):
    changes, kind = BAD[what]
    with pytest.raises(kind) as raised:
        depthwise_conv1d(**{**arguments(requires_grad=requires_grad), **changes})
    assert type(raised.value) is kind
    parts = MESSAGE.fullmatch(str(raised.value))
    assert parts is not None
    assert parts["what"] == what.partition("'s ")[0]


def test_the_examples_in_the_docstrings():
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
