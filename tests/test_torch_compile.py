"""The torch operator under `torch.compile` and `torch.export`: one graph, for any shape, with the eager gradients."""

from __future__ import annotations

import os
import shutil

import pytest

torch = pytest.importorskip("torch")

from torch_cases import NAMES, arguments, error  # noqa: E402

import fftconv_cupy  # noqa: E402
from fftconv_cupy import prepare_filter  # noqa: E402
from fftconv_cupy.errors import InvalidArgumentError  # noqa: E402
from fftconv_cupy.problem import MODES  # noqa: E402
from fftconv_cupy.torch import FlashFFTConv, fftconv  # noqa: E402

HAS_COMPILER = bool(os.environ.get("CI")) or any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))
pytestmark = [
    pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def layer(*args, mode="causal", **options):
    """The convolution between operations that are fused with others, not with it."""
    u, *others = args
    return fftconv(**dict(zip(NAMES, (u.sin(), *others), strict=False)), mode=mode, **options).cos()


def agree(compiled, eager, args):
    """Values and gradients agree."""
    leaves = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
    y, expected = compiled(*args), eager(*args)
    assert error(y, expected) < 1e-6
    gradients = (torch.autograd.grad(result.square().sum(), leaves) for result in (y, expected))
    for gradient, exact in zip(*gradients, strict=True):
        assert error(gradient, exact) < 1e-5


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("mode", MODES)
def test_one_graph_with_every_argument(mode):
    args = arguments(mode, dtype=torch.float32).values()
    eager = lambda *args: layer(*args, mode=mode)  # noqa: E731
    agree(torch.compile(eager, fullgraph=True), eager, tuple(args))
    assert graphs() == 1


def test_one_graph_serves_every_shape():
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for shape, taps in (((2, 3, 9), 5), ((4, 3, 12), 7), ((3, 5, 33), 2), ((8, 7, 16), 15)):
        agree(compiled, layer, tuple(arguments(shape=shape, taps=taps, dtype=torch.float32).values()))
    assert graphs() == 1


def test_the_length_of_a_full_output_is_dynamic():
    eager = lambda u, k: layer(u, k, mode="full")  # noqa: E731
    compiled = torch.compile(eager, fullgraph=True, dynamic=True)
    for shape, taps in (((2, 3, 9), 5), ((4, 3, 12), 7)):
        tensors = arguments(shape=shape, taps=taps, dtype=torch.float32)
        agree(compiled, eager, (tensors["u"], tensors["k"]))
    assert graphs() == 1


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # torch guards the CPU's spectrum so
def test_a_prepared_filter_is_an_input_of_the_graph():
    taps = torch.randn(3, 5)
    u = torch.randn(2, 3, 9, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)
    for scale in (1, 2):
        agree(compiled, layer, (u, prepare_filter(taps * scale, seqlen=9)))
    assert graphs() == 1


def test_autocast_in_a_graph():
    def eager(u, k):
        with torch.autocast("cpu", torch.bfloat16):
            return fftconv(u, k)

    tensors = arguments(dtype=torch.float32)
    y = torch.compile(eager, fullgraph=True)(tensors["u"], tensors["k"])
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, eager(tensors["u"], tensors["k"]))


def test_transformations_in_a_graph():
    tensors = arguments(dtype=torch.float32, requires_grad=False)
    u, k = tensors["u"], tensors["k"]
    for transformed in (
        lambda u, k: torch.func.grad(lambda u: fftconv(u, k).square().sum())(u),
        lambda u, k: torch.func.vmap(lambda u: fftconv(u, k))(u),
        lambda u, k: torch.func.vmap(lambda u, k: fftconv(u, k), (None, 0))(u, torch.stack([k, k])),
    ):
        assert error(torch.compile(transformed, fullgraph=True)(u, k), transformed(u, k)) < 1e-6


def test_only_needed_gradients_are_in_the_graph():
    tensors = arguments(dtype=torch.float32)
    for name in NAMES[1:]:
        tensors[name].requires_grad_(False)
    agree(torch.compile(layer, fullgraph=True), layer, tuple(tensors.values()))


def test_the_module_in_one_graph():
    module = FlashFFTConv(32, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True)
    for points, taps in ((16, 16), (16, 32), (32, 32)):
        agree(compiled, module, (torch.randn(2, 3, points, requires_grad=True), torch.randn(3, taps)))


def test_a_compiled_call_raises_the_same_errors():
    with pytest.raises(InvalidArgumentError, match=r"in_gate\.shape"):
        torch.compile(lambda u, k, g: fftconv(u, k, in_gate=g))(
            torch.ones(2, 3, 9), torch.ones(3, 4), torch.ones(2, 3, 8)
        )


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_general_function_breaks_the_graph_and_no_result(requires_grad):
    general = lambda u, k: fftconv_cupy.fftconv(u.sin(), k).cos()  # noqa: E731
    tensors = arguments(dtype=torch.float32, requires_grad=requires_grad)
    u, k = tensors["u"], tensors["k"]
    assert error(torch.compile(general)(u, k), general(u, k)) < 1e-6
    if requires_grad:
        agree(torch.compile(general), general, (u, k))


def test_export_holds_the_operator():
    class Layer(torch.nn.Module):
        def forward(self, u, k):
            return fftconv(u, k, mode="same")

    batch = torch.export.Dim("batch")
    example = (torch.randn(2, 3, 9), torch.randn(3, 5))
    exported = torch.export.export(Layer(), example, dynamic_shapes=({0: batch}, None))
    assert "fftconv_cupy.fftconv" in exported.graph_module.code
    u = torch.randn(7, 3, 9)
    assert torch.equal(exported.module()(u, example[1]), fftconv(u, example[1], mode="same"))
