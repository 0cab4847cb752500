"""The depthwise torch operators under `torch.func`, `torch.compile` and `torch.export`."""

from __future__ import annotations

import itertools
import os
import shutil

import pytest

torch = pytest.importorskip("torch")

from depthwise_torch_cases import CASES, arguments, as_list, given, reference  # noqa: E402
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap  # noqa: E402
from torch_cases import error  # noqa: E402

from fftconv_cupy.torch import FlashDepthWiseConv1d, depthwise_conv1d, depthwise_conv1d_update  # noqa: E402

HAS_COMPILER = bool(os.environ.get("CI")) or any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))
compiles = [
    pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


def flat(tree):
    return torch.cat([leaf.detach().flatten() for leaf in torch.utils._pytree.tree_leaves(tree)])


def close(tree, other):
    return torch.allclose(flat(tree), flat(other), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_transformations_of_torch_func_nest(activation):
    tensors = arguments((2, 2, 4, 3), state=True, requires_grad=False)
    args, every = tuple(tensors.values()), (0, 1, 2, 3)

    def scalar(function):
        def loss(*args):
            y, final = function(**dict(zip(tensors, args, strict=True)), activation=activation, return_final_state=True)
            return y.pow(3).sum() + final.pow(3).sum()

        return loss

    for transform in (
        lambda f: grad(f, every),
        lambda f: hessian(f, every),
        lambda f: jacrev(jacfwd(f, every), every),
        lambda f: jacrev(jacrev(f, every), every),
        lambda f: lambda *a: jvp(f, a, tuple(t + 1 for t in a)),
    ):
        assert close(transform(scalar(depthwise_conv1d))(*args), transform(scalar(reference))(*args))


DIMS = [dims for dims in itertools.product((None, 0, -1), repeat=5) if any(d is not None for d in dims)]


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_vmap_is_the_calls_one_by_one(layout):
    names = ("x", "weight", "bias", "initial_state", "seq_idx")
    base = arguments((2, 3, 6, 4), layout=layout, state=True, requires_grad=False)
    base["seq_idx"] = torch.randint(-1, 2, (2, 6), dtype=torch.int32)

    def at(dims):
        def mapped(name, dim):
            parts = [base[name] * (i + 1) if name != "seq_idx" else base[name].roll(i, -1) for i in range(3)]
            return base[name] if dim is None else torch.stack(parts, dim if dim == 0 else base[name].ndim)

        return [mapped(name, dim) for name, dim in zip(names, dims, strict=True)]

    def scalar(x, weight, bias, state, seq_idx):
        extra = {"initial_state": state} if seq_idx is None else {"seq_idx": seq_idx}
        return depthwise_conv1d(x, weight, bias, layout=layout, activation="silu", **extra)

    def total(*args):
        return scalar(*args).pow(2).sum()

    for dims in DIMS[::3]:
        for without in (3, 4):
            args, used = at(dims), list(dims)
            args[without], used[without] = None, None
            if all(d is None for d in used):
                continue
            wrt = (0, 1, 2, 3) if without == 4 else (0, 1, 2)
            for function in (scalar, grad(total, wrt), grad(total, 0)):
                found = vmap(function, tuple(used))(*args)
                each = [
                    function(*(a if d is None else a.select(d, i) for a, d in zip(args, used, strict=True)))
                    for i in range(3)
                ]
                stacked = torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *each)
                assert close(found, stacked), (dims, without)


def test_the_final_state_is_mapped_too():
    tensors = arguments(state=True, requires_grad=False)
    x = torch.stack([tensors["x"], 2 * tensors["x"]], 1)
    weights = torch.stack([tensors["weight"], 3 * tensors["weight"]])
    for weight, dim in ((weights, 0), (tensors["weight"], None)):
        call = lambda x, w: depthwise_conv1d(x, w, return_final_state=True)  # noqa: E731
        y, final = vmap(call, (1, dim))(x, weight)
        for i in range(2):
            expected = call(x[:, i], weight if dim is None else weight[i])
            assert torch.allclose(y[i], expected[0])
            assert torch.equal(final[i], expected[1])


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("fresh_dynamo")
class TestCompiled:
    pytestmark = compiles

    @pytest.mark.parametrize("case", CASES[::4], ids=str)
    def test_one_graph_with_the_eager_gradients(self, case):
        ours, _, tensors = given(case, dtype=torch.float32)
        args = tuple(tensors.values())
        eager = lambda x, *rest: [y.cos() for y in as_list(ours(x.sin(), *rest))]  # noqa: E731
        compiled = torch.compile(eager, fullgraph=True)
        for y, expected in zip(compiled(*args), eager(*args), strict=True):
            assert error(y, expected) < 1e-6
        pairs = [torch.autograd.grad(sum(y.sum() for y in f(*args)), args) for f in (compiled, eager)]
        for gradient, exact in zip(*pairs, strict=True):
            assert error(gradient, exact) < 1e-5
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

    def test_one_graph_serves_every_shape(self):
        layer = lambda x, w, b: depthwise_conv1d(x.sin(), w, b, padding=2, activation="silu").cos()  # noqa: E731
        compiled = torch.compile(layer, fullgraph=True, dynamic=True)
        for sizes in ((2, 3, 9, 4), (4, 5, 12, 3), (3, 2, 33, 5)):
            args = tuple(arguments(sizes, dtype=torch.float32).values())
            assert error(compiled(*args), layer(*args)) < 1e-6
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

    def test_an_update_in_a_graph_writes_the_state(self):
        step = lambda x, state, w: depthwise_conv1d_update(x.sin(), state, w, activation="silu").cos()  # noqa: E731
        compiled = torch.compile(step, fullgraph=True)
        x, weight = torch.randn(2, 3), torch.randn(3, 4)
        states = [torch.zeros(2, 3, 3) for _ in range(2)]
        for _ in range(3):
            assert error(compiled(x, states[0], weight), step(x, states[1], weight)) < 1e-6
        assert torch.allclose(*states)

    def test_export_holds_the_operator(self):
        class Layer(torch.nn.Module):
            def forward(self, x, weight):
                return depthwise_conv1d(x, weight, padding="same")

        example = (torch.randn(2, 3, 9), torch.randn(3, 5))
        dynamic = ({0: torch.export.Dim("batch")}, None)
        exported = torch.export.export(Layer(), example, dynamic_shapes=dynamic)
        assert "fftconv_cupy.depthwise_conv1d" in exported.graph_module.code
        x = torch.randn(7, 3, 9)
        assert torch.equal(exported.module()(x, example[1]), Layer()(x, example[1]))


def test_gradients_of_each_example_of_a_batch():
    layer = FlashDepthWiseConv1d(3, 4, "causal", torch.randn(3, 4).double(), torch.randn(3).double())
    x = torch.randn(5, 2, 3, 8, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    found = vmap(grad(lambda p, x: functional_call(layer, p, (x,)).pow(2).sum()), (None, 0))(parameters, x)
    for i in range(5):
        layer.zero_grad()
        layer(x[i]).pow(2).sum().backward()
        assert close({n: g[i] for n, g in found.items()}, {n: p.grad for n, p in layer.named_parameters()})
