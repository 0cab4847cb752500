"""`FlashDepthWiseConv1d`: the module of FlashFFTConv, and what is broken there."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch_cases import error  # noqa: E402

from fftconv_cupy import errors  # noqa: E402
from fftconv_cupy.torch import FlashDepthWiseConv1d, FlashDepthwiseConv1d  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def pair(channels=3, width=5, padding=2, is_bhl=True, dtype=None):
    """Return a module and the `Conv1d` in float64 whose weights it has."""
    torch.manual_seed(0)
    theirs = torch.nn.Conv1d(channels, channels, width, groups=channels, padding=padding)
    ours = FlashDepthWiseConv1d(channels, width, padding, theirs.weight, theirs.bias, is_bhl, dtype=dtype)
    if dtype is not None:
        theirs.load_state_dict({name: p.to(dtype) for name, p in theirs.state_dict().items()})
    return ours, theirs.double()


@pytest.mark.parametrize("is_bhl", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "padding"), [(3, 1), (5, 4), (4, 3), (7, 0), (4, "same"), (5, "same"), (1, 0)])
def test_it_is_conv1d_with_its_gradients(width, padding, dtype, is_bhl):
    for weight_dtype in (dtype, torch.float32):
        ours, theirs = pair(3, width, padding, is_bhl, weight_dtype)
        rows = torch.randn(2, 3, 20).to(dtype)
        x = (rows.clone() if is_bhl else rows.transpose(1, 2).contiguous()).requires_grad_()
        x64 = rows.double().requires_grad_()
        y, y64 = ours(x), theirs(x64)
        dy = torch.randn_like(y)
        y.backward(dy)
        y64.backward((dy if is_bhl else dy.transpose(1, 2)).double())
        back = (lambda t: t) if is_bhl else (lambda t: t.transpose(1, 2))
        for result, exact in (
            (back(y), y64),
            (back(x.grad), x64.grad),
            (ours.weights.grad, theirs.weight.grad.squeeze(1)),
            (ours.bias.grad, theirs.bias.grad),
        ):
            assert result.shape == exact.shape
            assert error(result, exact) <= 1.2 * error(exact.to(result.dtype), exact) + 1e-5
        assert (y.dtype, ours.weights.grad.dtype) == (dtype, weight_dtype)


def test_causal_padding_sees_no_later_point_and_a_number_adds_outputs():
    weights = torch.randn(3, 4)
    causal = FlashDepthWiseConv1d(3, 4, "causal", weights, None)
    both = FlashDepthWiseConv1d(3, 4, 3, weights, None)
    x = torch.randn(2, 3, 10)
    assert both(x).shape == (2, 3, 13)
    assert torch.equal(causal(x), both(x)[..., :10])
    changed = x.clone()
    changed[..., 6:] += 1
    assert torch.equal(causal(x)[..., :6], causal(changed)[..., :6])


def test_the_signature_is_that_of_flashfftconv():
    names = ["channels", "kernel_size", "padding", "weights", "bias", "is_bhl", "device", "dtype"]
    made = inspect.signature(FlashDepthWiseConv1d)
    assert list(made.parameters) == names
    assert FlashDepthwiseConv1d is FlashDepthWiseConv1d
    weights = torch.randn(3, 1, 5)
    module = FlashDepthWiseConv1d(3, 5, padding=2, weights=weights, bias=torch.ones(3), dtype=torch.bfloat16)
    assert (module.d, module.k, module.padding, module.is_bhl) == (3, 5, 2, True)
    assert {name: (p.dtype, p.shape) for name, p in module.named_parameters()} == {
        "weights": (torch.bfloat16, (3, 5)),
        "bias": (torch.bfloat16, (3,)),
    }
    weights.zero_()
    assert module.weights.all()
    assert repr(module) == "FlashDepthWiseConv1d(3, 5, padding=2, is_bhl=True)"
    assert "bias=None" in repr(FlashDepthWiseConv1d(3, 5, "causal", weights, None))
    assert FlashDepthWiseConv1d(3, 5, 2, weights, None, device="meta").weights.is_meta


def test_state_dicts_load_from_itself_conv1d_and_flashfftconv():
    ours, theirs = pair(3, 5)
    expected = ours(torch.ones(1, 3, 8))
    flat = theirs.weight.float().squeeze(1)
    for weights in (
        {"weights": flat},
        {"weights": flat[:, None]},
        {"weight": flat[:, None]},  # of Conv1d
        {"weights": flat.T.contiguous()},  # of FlashFFTConv for (B, L, D)
    ):
        for prefix in ("", "mixer.conv."):
            other, _ = pair(3, 5)
            torch.nn.init.zeros_(other.weights)
            model = other
            for name in reversed(prefix.split(".")[:-1]):
                outer = torch.nn.Module()
                outer.add_module(name, model)
                model = outer
            saved = {**weights, "bias": theirs.bias.float()}
            assert model.load_state_dict({prefix + name: t for name, t in saved.items()}, strict=True) == ([], [])
            assert torch.equal(other(torch.ones(1, 3, 8)), expected)
    again, _ = pair(3, 5)
    again.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == ["weights", "bias"]
    with pytest.raises(RuntimeError, match="size mismatch for weights"):
        again.load_state_dict({"weights": torch.ones(4, 5), "bias": torch.ones(3)})
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({"bias": torch.ones(3)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        again.load_state_dict({**ours.state_dict(), "extra": torch.ones(3)})


def test_copies_pickles_and_moves_compute_the_same():
    ours, _ = pair()
    x = torch.randn(2, 3, 8)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded, ours.eval()):
        assert torch.equal(other(x), ours(x))
    assert copy.deepcopy(ours).double()(x.double()).dtype is torch.float64


def test_autocast_casts_the_input_alone():
    ours, _ = pair()
    x = torch.randn(2, 3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, ours(x.bfloat16()))
    y.float().sum().backward()
    assert x.grad.dtype is ours.weights.grad.dtype is torch.float32


def test_it_trains():
    ours, theirs = pair(4, 5)
    torch.nn.init.zeros_(ours.weights)
    x = torch.randn(16, 4, 32)
    with torch.no_grad():
        target = theirs(x.double()).float()
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (ours(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-2 * losses[0]


def test_bad_arguments():
    weights, bias = torch.randn(3, 1, 5), torch.randn(3)
    bad = (
        (errors.InvalidTypeError, (3.0, 5, 2, weights, bias), "channels"),
        (errors.InvalidArgumentError, (0, 5, 2, weights, bias), "channels"),
        (errors.InvalidArgumentError, (3, 0, 2, weights, bias), "kernel_size"),
        (errors.InvalidArgumentError, (3, 129, 2, weights, bias), "kernel_size: got 129"),
        (errors.InvalidTypeError, (3, 5, 2.0, weights, bias), "padding"),
        (errors.InvalidArgumentError, (3, 5, -1, weights, bias), "padding"),
        (errors.InvalidArgumentError, (3, 5, "valid", weights, bias), "padding"),
        (errors.InvalidTypeError, (3, 5, 2, None, bias), "weights"),
        (errors.InvalidTypeError, (3, 5, 2, weights.numpy(), bias), "weights"),
        (errors.InvalidTypeError, (3, 5, 2, weights, [0.0] * 3), "bias"),
        (errors.InvalidArgumentError, (3, 4, 2, weights, bias), "weights.shape"),
        (errors.InvalidArgumentError, (3, 5, 2, weights.squeeze(1).T, bias), "weights.shape"),
        (errors.InvalidArgumentError, (3, 5, 2, weights, torch.ones(4)), "bias.shape"),
    )
    for kind, arguments, start in bad:
        with pytest.raises(kind) as raised:
            FlashDepthWiseConv1d(*arguments)
        assert type(raised.value) is kind
        assert str(raised.value).startswith(start)
    with pytest.raises(errors.InvalidTypeError, match="dtype"):
        FlashDepthWiseConv1d(3, 5, 2, weights, bias, dtype="float16")
    module = FlashDepthWiseConv1d(3, 5, 2, weights, bias)
    with pytest.raises(errors.InvalidTypeError, match="x: got an object of type numpy"):
        module(torch.ones(2, 3, 8).numpy())
    with pytest.raises(errors.InvalidArgumentError, match=r"weight\.shape"):
        module(torch.ones(2, 4, 8))
