"""`FlashFFTConv`: the convolution that the package of that name defines, of any size, and its life as a module."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch_cases import error  # noqa: E402

from fftconv_cupy import errors, prepare_filter  # noqa: E402
from fftconv_cupy import torch as module_of_torch  # noqa: E402
from fftconv_cupy.torch import FlashFFTConv  # noqa: E402

SIZES = (1, 2, 3, 7, 8, 12, 15, 16, 31, 32, 100)


def circular(u, k, size, in_gate=None, out_gate=None):
    """The definition, by torch's transforms in float64."""
    x = u.double() if in_gate is None else u.double() * in_gate.double()
    spectrum = torch.fft.fft(x, size) * torch.fft.fft(k.double(), size)
    y = torch.fft.ifft(spectrum).real[..., : u.shape[-1]]
    return y if out_gate is None else y * out_gate.double()


def case(points, taps, dtype, batch=2, channels=3):
    torch.manual_seed(points * 1000 + taps)
    rows = [torch.randn(batch, channels, points).to(dtype).requires_grad_() for _ in range(3)]
    return rows[0], torch.randn(channels, taps, requires_grad=True), *rows[1:]


def agree(module, tensors, names=("u", "k", "in_gate", "out_gate")):
    """Value and gradients agree with the definition to the rounding of their dtype."""
    y = module(*tensors)
    copies = [t.detach().double().requires_grad_() for t in tensors]
    y64 = circular(*copies[:2], module.seqlen, *copies[2:])
    assert y.dtype is tensors[0].dtype
    assert y.shape == tensors[0].shape
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad(y, tensors, dy)
    exact = torch.autograd.grad(y64, copies, dy.double())
    for name, result, wanted in zip(("y", *names), (y, *gradients), (y64, *exact), strict=False):
        rounding = error(wanted.to(result.dtype), wanted) if wanted.any() else 0.0
        bound = 1e-5 if name == "k" else 1.2 * rounding + 1e-6
        assert error(result, wanted) <= bound or not (wanted.any() or result.any()), (name, module, tensors[0].shape)


@pytest.mark.parametrize("size", SIZES)
def test_every_length_of_rows_and_filter(size):
    module = FlashFFTConv(size, dtype=torch.float32)
    lengths = sorted({1, 2, size // 2, size // 2 + 1, size - 1, size} & set(range(1, size + 1)))
    for points, taps in itertools.product(lengths, lengths):
        tensors = case(points, taps, torch.float32)
        agree(module, tensors)
        agree(module, tensors[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [256, 512])
def test_a_part_of_the_published_grid(size, batch, dtype):
    module = FlashFFTConv(size, dtype=dtype)
    for points, taps in ((size // 2, size // 2), (size, size), (size // 2, size)):
        tensors = case(points, taps, dtype, batch, channels=11)
        agree(module, tensors)
        agree(module, tensors[:2])


def test_half_the_size_is_causal_and_a_filter_of_the_whole_size_is_bidirectional():
    u, k = torch.randn(2, 3, 8), torch.randn(3, 16)
    module = FlashFFTConv(16)
    lags = torch.arange(8)[:, None] - torch.arange(8)
    causal = torch.where(lags >= 0, k[:, lags.clamp(min=0)], 0.0)
    assert error(module(u, k[:, :8]), torch.einsum("hts,bhs->bht", causal, u)) < 1e-6
    assert error(module(u, k), torch.einsum("hts,bhs->bht", k[:, lags % 16], u)) < 1e-6


def test_the_cheaper_of_equal_convolutions_is_computed(monkeypatch):
    calls = []
    monkeypatch.setattr(module_of_torch, "fftconv", lambda u, k, **options: calls.append((k, options)))
    expected = {  # size, L, K: mode, fft_size and taps
        (16, 8, 8): ("causal", None, 8),
        (16, 8, 9): ("causal", None, 9),
        (16, 8, 10): ("circular", 16, 10),
        (16, 16, 16): ("circular", None, 16),
        (12, 12, 12): ("circular", None, 12),
        (12, 6, 7): ("causal", None, 7),
        (12, 6, 12): ("same", None, 11),
        (1, 1, 1): ("causal", None, 1),
    }
    for (size, points, taps), wanted in expected.items():
        FlashFFTConv(size)(torch.ones(1, points), torch.ones(1, taps))
        k, options = calls.pop()
        assert (options.get("mode", "causal"), options.get("fft_size"), k.shape[-1]) == wanted


def test_the_signature_is_that_of_flashfftconv():
    made = inspect.signature(FlashFFTConv)
    assert [*made.parameters][:3] == ["seqlen", "dtype", "use_32_butterfly"]
    assert made.parameters["precision"].kind is inspect.Parameter.KEYWORD_ONLY
    assert made.parameters["dtype"].default is torch.float16
    module = FlashFFTConv(16, torch.bfloat16, use_32_butterfly=False).train()
    assert (module.seqlen, module.dtype, module.use_32_butterfly) == (16, torch.bfloat16, False)
    u, k, pre, post = (t.detach() for t in case(8, 8, torch.bfloat16))
    y = module(u, k, pre, post)
    for same in (module(u, k, pregate=pre, postgate=post), module(u, k, in_gate=pre, out_gate=post)):
        assert torch.equal(y, same)
    ones = torch.ones_like(u)
    assert torch.equal(module(u, k, pre), module(u, k, pre, ones))
    assert torch.equal(module(u, k, postgate=post), module(u, k, ones, post))


def test_none_of_its_limits():
    module = FlashFFTConv(30, dtype=torch.float16).eval()
    for shape, k_shape in (((1, 7, 15), (7, 9)), ((7, 15), (9,)), ((15,), (9,)), ((0, 7, 15), (7, 9))):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            u = torch.randn(shape).to(dtype).requires_grad_()
            for filter_dtype in (torch.float16, torch.float32):
                module(u, torch.randn(k_shape).to(filter_dtype)).sum().backward()
            assert u.grad.shape == u.shape
    rows = torch.randn(2, 15, 7, requires_grad=True)
    y = module(rows.transpose(1, 2), torch.ones(7, 4))
    assert error(y, module(rows.transpose(1, 2).contiguous(), torch.ones(7, 4))) == 0
    y.sum().backward()
    assert rows.grad.shape == rows.shape


def test_a_filter_shared_by_the_channels_wraps_too():
    module = FlashFFTConv(12)
    u, k = torch.randn(2, 3, 6), torch.randn(12, requires_grad=True)
    y = module(u, k)
    assert error(y, circular(u, k.expand(3, 12), 12)) < 1e-6
    y.sum().backward()
    each = k.detach().expand(3, 12).clone().requires_grad_()
    module(u, each).sum().backward()
    assert error(k.grad, each.grad.sum(0)) < 1e-5


@pytest.mark.parametrize(("points", "taps"), [(8, 8), (16, 16), (12, 9)])
def test_the_module_hands_on_its_precision(monkeypatch, points, taps):
    seen, compute = [], module_of_torch.fftconv

    def convolve(u, k, *, precision, **options):
        seen.append(precision)
        return compute(u, k, precision=precision, **options)

    monkeypatch.setattr(module_of_torch, "fftconv", convolve)
    FlashFFTConv(16, precision="medium")(torch.ones(2, 3, points), torch.ones(3, taps))
    assert seen == ["medium"]


def test_bad_arguments():
    u, k = torch.ones(2, 3, 8), torch.ones(3, 8)
    bad = (
        (errors.InvalidTypeError, lambda: FlashFFTConv(16.0), "seqlen"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(0), "seqlen"),
        (errors.InvalidTypeError, lambda: FlashFFTConv(16, dtype="float16"), "dtype"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(16, precision="low"), "precision: got 'low'"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(7)(u, k), "u.shape: got 8 points"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(8)(u, torch.ones(3, 9)), "k.shape: got 9 points"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(16)(u, k, u, pregate=u), "in_gate: got in_gate and pregate"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(16)(u, k, None, u, postgate=u), "out_gate"),
        (errors.InvalidTypeError, lambda: FlashFFTConv(16)(u.numpy(), k), "u"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(16)(torch.tensor(1.0), k), "u.shape"),
        (errors.InvalidArgumentError, lambda: FlashFFTConv(16)(u, k[:2]), "k.shape"),
        (errors.InvalidTypeError, lambda: FlashFFTConv(16)(u, prepare_filter(k, seqlen=8)), "k: got an object of type"),
    )
    for kind, call, start in bad:
        with pytest.raises(kind) as raised:
            call()
        assert type(raised.value) is kind
        assert str(raised.value).startswith(start)


class Model(torch.nn.Module):
    def __init__(self, size=16):
        super().__init__()
        self.k = torch.nn.Parameter(torch.randn(3, size // 2))
        self.conv = FlashFFTConv(size, dtype=torch.bfloat16)

    def forward(self, u):
        return self.conv(u, self.k)


def test_copies_pickles_and_moves_compute_the_same():
    model, u = Model(), torch.randn(2, 3, 8)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded, model.to("cpu", torch.float32)):
        assert torch.equal(other(u), model(u))
        assert other.conv.dtype is torch.bfloat16
    assert model.double()(u.double()).dtype is torch.float64
    assert list(model.state_dict()) == ["k"]
    assert list(FlashFFTConv(16).state_dict()) == []
    assert repr(FlashFFTConv(16)) == "FlashFFTConv(16, dtype=torch.float16)"
    high = FlashFFTConv(16, precision="high")
    assert repr(pickle.loads(pickle.dumps(high))) == "FlashFFTConv(16, dtype=torch.float16, precision='high')"


# Buffers of FlashFFTConv, by size: the state dicts of models that used it hold them.
BUFFERS = {
    512: "f_sqrt_N_fft f_sqrt_N_ifft twiddle_factors_fft twiddle_factors_ifft twid",
    4096: "f_sqrt_N_fft f_sqrt_N_ifft twiddle_factors_fft_16_16 twiddle_factors_ifft_16_16 twiddle_factors_fft_16_256 "
    "twiddle_factors_ifft_16_256",
    16384: "f_16_fft f_16_ifft f_32_fft f_32_ifft twiddle_factors_fft_32_32 twiddle_factors_ifft_32_32 "
    "twiddle_factors_fft_16_1K twiddle_factors_ifft_16_1K",
    65536: "f_16_fft_real f_16_ifft_real f_16_fft_imag f_16_ifft_imag f_16_fft f_16_ifft twiddle_factors_fft_16_16 "
    "twiddle_factors_fft_real twiddle_factors_ifft_real twiddle_factors_fft_imag twiddle_factors_ifft_imag",
}


@pytest.mark.parametrize("size", BUFFERS)
def test_a_state_dict_of_flashfftconv_loads(size):
    constants = {name: torch.ones(2, 2) for name in BUFFERS[size].split()}
    FlashFFTConv(size).load_state_dict(constants, strict=True)
    model = Model(size)
    saved = {"k": torch.full((3, size // 2), 2.0), **{f"conv.{name}": value for name, value in constants.items()}}
    assert model.load_state_dict(saved, strict=True) == ([], [])
    assert torch.equal(model.k, saved["k"])
    assert len(saved) == 1 + len(constants)
    for unknown in ("conv.weight", "f_16_fft"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            model.load_state_dict({**saved, unknown: torch.ones(1)}, strict=True)
