"""Rows in parts under torch: states and their gradients, by autograd, `torch.func` and `torch.compile`."""

from __future__ import annotations

import itertools
import os
import shutil

import pytest

torch = pytest.importorskip("torch")

from torch.func import grad, hessian, jacrev, jvp, vmap  # noqa: E402
from torch_cases import arguments, detached, error, reference  # noqa: E402

import fftconv_cupy  # noqa: E402
from fftconv_cupy import prepare_filter  # noqa: E402
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError  # noqa: E402
from fftconv_cupy.torch import fftconv  # noqa: E402
from fftconv_cupy.torch_states import ARGUMENTS, forward_op, vjp_op  # noqa: E402

HAS_COMPILER = bool(os.environ.get("CI")) or any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def given(shape=(2, 3, 9), taps=5, dtype=torch.float64, **changes):
    """Return every tensor of a call, the initial state last."""
    tensors = arguments(shape=shape, taps=taps, dtype=dtype, **changes)
    state = torch.randn(*shape[:-1], taps - 1, dtype=dtype if dtype is torch.float64 else torch.float32)
    return tensors | {"initial_state": state.requires_grad_(changes.get("requires_grad", True))}


def defined(*, initial_state=None, in_gate=None, out_gate=None, skip=None, return_final_state=True, **tensors):
    """The definition in float64: the row goes on from its state, and leaves its last points."""
    u, k = tensors["u"].double(), tensors["k"]
    x = u if in_gate is None else u * in_gate.double()
    kept = k.shape[-1] - 1
    before = x.new_zeros(*x.shape[:-1], kept) if initial_state is None else initial_state.double()
    points = torch.cat((before, x), dim=-1)
    y = reference(points, k)[..., kept:]
    if skip is not None:
        y = y + (skip.double().unsqueeze(-1) if u.ndim > 1 else skip.double()) * x
    y = y if out_gate is None else y * out_gate.double()
    return (y, points[..., points.shape[-1] - kept :]) if return_final_state else y


def by_name(function, names=ARGUMENTS, **options):
    return lambda *args: function(**dict(zip(names, args, strict=True)), **options)


@pytest.mark.parametrize(
    "shape", [{}, {"shape": (2, 7), "taps": 12}, {"shape": (6,), "taps": 1}, {"shared": True}], ids=str
)
def test_gradients_agree_with_differences(shape):
    tensors = given(**shape)
    call = by_name(fftconv, return_final_state=True)
    assert torch.autograd.gradcheck(call, tuple(tensors.values()), check_forward_ad=True, check_batched_grad=True)
    for result, exact in zip(call(*tensors.values()), defined(**tensors), strict=True):
        assert torch.allclose(result, exact)


def test_second_derivatives_agree_with_differences():
    tensors = given((2, 1, 4), 3)
    for names in (ARGUMENTS, ("u", "k"), ("u", "k", "initial_state"), ("u", "k", "in_gate")):
        call = by_name(fftconv, names, return_final_state=True)
        assert torch.autograd.gradgradcheck(call, tuple(tensors[name] for name in names), check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_parts_have_the_gradients_of_the_whole(dtype):
    tensors = given((2, 3, 40), 17, dtype)
    exact = detached(tensors)
    state, outputs = tensors["initial_state"], []
    for first, end in ((0, 13), (13, 14), (14, 40)):
        part = {name: t[..., first:end] if name in ("u", "in_gate", "out_gate") else t for name, t in tensors.items()}
        y, state = fftconv(**part | {"initial_state": state}, return_final_state=True)
        assert (y.dtype, state.dtype) == (dtype, torch.float32)
        outputs.append(y)
    y, y64 = torch.cat(outputs, dim=-1), defined(**exact, return_final_state=False)
    dy = torch.randn_like(y)
    bound = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert error(y, y64) < bound
    y.backward(dy)
    y64.backward(dy.double())
    for name, tensor in tensors.items():
        assert tensor.grad.dtype is tensor.dtype
        assert error(tensor.grad, exact[name].grad) < bound


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("has_final", [False, True])
def test_opcheck(has_state, has_final):
    *tensors, state = given().values()
    inputs = (*tensors, state if has_state else None)
    torch.library.opcheck(forward_op, (*inputs, "causal", None, None, None, None, has_final))
    dy, d_final = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True), torch.randn_like(state)
    wrt = [True, True, False, True, False, has_state]
    torch.library.opcheck(vjp_op, (dy, d_final if has_final else None, *inputs, "causal", None, None, None, None, wrt))


def test_a_state_alone_is_differentiated():
    tensors = given()
    _, final = fftconv(**tensors, return_final_state=True)
    _, exact = defined(**tensors)
    leaves = [tensors[name] for name in ("u", "in_gate", "initial_state")]
    weights = torch.randn_like(final)
    for found, expected in zip(
        torch.autograd.grad(final, leaves, weights), torch.autograd.grad(exact, leaves, weights), strict=True
    ):
        assert torch.allclose(found, expected)
    y = fftconv(tensors["u"].detach(), tensors["k"].detach(), initial_state=tensors["initial_state"])
    assert y.requires_grad


def test_prepared_filters():
    tensors = given()
    taps = tensors.pop("k").detach()
    k = prepare_filter(taps, seqlen=9, initial_state=True)
    y, final = fftconv(k=k, **tensors, return_final_state=True)
    y64, final64 = defined(k=taps, **tensors)
    leaves = tuple(tensors.values())
    for found, expected in zip(
        torch.autograd.grad((y.sum(), final.sum()), leaves),
        torch.autograd.grad((y64.sum(), final64.sum()), leaves),
        strict=True,
    ):
        assert torch.allclose(found, expected)


def test_transformations_of_torch_func_nest():
    args = tuple(given((2, 2, 4), 3, requires_grad=False).values())
    every = tuple(range(len(args)))

    def scalar(function):
        def loss(*args):
            y, final = function(**dict(zip(ARGUMENTS, args, strict=True)), return_final_state=True)
            return y.pow(3).sum() + final.pow(3).sum()

        return loss

    for transform in (
        lambda f: grad(f, every),
        lambda f: hessian(f, every),
        lambda f: jacrev(jacrev(f, every), every),
        lambda f: lambda *a: jvp(f, a, tuple(t + 1 for t in a)),
    ):
        found, exact = transform(scalar(fftconv))(*args), transform(scalar(defined))(*args)
        for one, other in zip(*map(torch.utils._pytree.tree_leaves, (found, exact)), strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("has_final", [False, True])
def test_vmap_is_the_calls_one_by_one(has_final):
    base = given((2, 3, 6), 4, requires_grad=False)
    for dims in list(itertools.product((None, 0), repeat=6))[1::5]:
        args = [t if d is None else torch.stack([t, 2 * t, -t]) for t, d in zip(base.values(), dims, strict=True)]

        def total(*args):
            result = fftconv(**dict(zip(ARGUMENTS, args, strict=True)), return_final_state=has_final)
            return sum(t.pow(2).sum() for t in (result if has_final else (result,)))

        for function in (by_name(fftconv, return_final_state=has_final), grad(total, tuple(range(6)))):
            found = vmap(function, dims)(*args)
            for i in range(3):
                one = function(*(t if d is None else t[i] for t, d in zip(args, dims, strict=True)))
                for mapped, single in zip(*map(torch.utils._pytree.tree_leaves, (found, one)), strict=True):
                    assert torch.allclose(mapped[i], single, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_one_graph_serves_every_length():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def eager(u, k, state):
        y, final = fftconv(u.sin(), k, initial_state=state, return_final_state=True)
        return y.cos(), 2 * final

    compiled = torch.compile(eager, fullgraph=True, dynamic=True)
    for shape, taps in (((2, 3, 9), 5), ((4, 3, 12), 7)):
        tensors = given(shape, taps, torch.float32)
        leaves = [tensors[name] for name in ("u", "k", "initial_state")]
        results = [
            torch.autograd.grad(sum(t.square().sum() for t in function(*leaves)), leaves)
            for function in (compiled, eager)
        ]
        for found, exact in zip(*results, strict=True):
            assert error(found, exact) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_autocast_leaves_states_in_float32():
    tensors = given(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = fftconv(**tensors, return_final_state=True)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert error(y, defined(**tensors)[0]) < 2e-2


def test_the_general_function_hands_over_what_is_differentiated():
    tensors = given()
    y, final = fftconv_cupy.fftconv(**tensors, return_final_state=True)
    expected = fftconv(**tensors, return_final_state=True)
    assert torch.equal(y, expected[0])
    assert torch.equal(final, expected[1])
    assert y.requires_grad
    assert final.requires_grad


def test_what_has_no_state_is_refused():
    tensors = given()
    with pytest.raises(InvalidArgumentError, match="initial_state: got a call in mode 'same'"):
        fftconv(**tensors, mode="same")
    with pytest.raises(InvalidArgumentError, match=r"initial_state\.shape"):
        fftconv(**tensors | {"initial_state": torch.zeros(2, 3, 3, dtype=torch.float64)})
    with pytest.raises(InvalidTypeError, match=r"initial_state\.dtype"):
        fftconv(**tensors | {"initial_state": torch.zeros(2, 3, 4)})
    with pytest.raises(InvalidTypeError, match="initial_state: got an object of type"):
        fftconv(**tensors | {"initial_state": [0.0]})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("seqlen", "taps"), [(300, 65), (50, 200), (20_000, 4096)])
def test_parts_on_a_gpu(dtype, seqlen, taps):
    if not torch.cuda.is_available():
        pytest.skip("torch has no GPU")
    tensors = {name: t.detach().cuda().requires_grad_() for name, t in given((2, 3, seqlen), taps, dtype).items()}
    tensors["k"] = (tensors["k"].detach() / taps**0.5).requires_grad_()
    exact = detached(tensors)
    results, exact_results = fftconv(**tensors, return_final_state=True), defined(**exact)
    weights = [torch.randn_like(result) for result in results]
    grads = torch.autograd.grad(results, tuple(tensors.values()), weights)
    exact_grads = torch.autograd.grad(exact_results, tuple(exact.values()), [weight.double() for weight in weights])
    rounded = {name: 2e-6 if t.dtype is torch.float32 else 4e-4 for name, t in tensors.items()}
    bounds = {**rounded, "k": 1e-5, "skip": 1e-5, "y": rounded["u"], "final": 2e-6}
    found = dict(zip(("y", "final", *tensors), (*results, *grads), strict=True))
    wanted = dict(zip(("y", "final", *tensors), (*exact_results, *exact_grads), strict=True))
    for name, result in found.items():
        assert error(result, wanted[name]) <= bounds[name], name


@pytest.mark.gpu
def test_states_in_a_graph_that_cuda_captures():
    if not torch.cuda.is_available():
        pytest.skip("torch has no GPU")
    tensors = {name: t.detach().half() for name, t in given((2, 3, 300), 65, torch.float32).items()}
    tensors = {n: (t.float() if n in ("k", "skip", "initial_state") else t).cuda() for n, t in tensors.items()}
    expected = fftconv(**tensors, return_final_state=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fftconv(**tensors, return_final_state=True)
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, expected, strict=True):
        assert torch.equal(one, other)
