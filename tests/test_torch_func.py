"""The torch operator under `torch.func`: derivatives of derivatives in both modes, and every way to map it."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap  # noqa: E402
from torch.utils import _pytree  # noqa: E402
from torch_cases import NAMES, arguments, reference  # noqa: E402

from fftconv_cupy import prepare_filter  # noqa: E402
from fftconv_cupy.problem import MODES  # noqa: E402
from fftconv_cupy.torch import fftconv  # noqa: E402
from fftconv_cupy.torch_operator import forward_op  # noqa: E402

ALL = tuple(range(len(NAMES)))


def scalar(convolve, mode="causal"):
    """A function of the five tensors whose derivatives of every order are not zero."""
    return lambda *args: convolve(**dict(zip(NAMES, args, strict=True)), mode=mode).pow(3).sum()


def flat(tree):
    return torch.cat([leaf.detach().flatten() for leaf in _pytree.tree_leaves(tree)])


def close(tree, other):
    return torch.allclose(flat(tree), flat(other), rtol=1e-9, atol=1e-9)


def given(mode="causal", **changes):
    return tuple(arguments(mode, **{"shape": (2, 7), "taps": 4, "requires_grad": False, **changes}).values())


TRANSFORMS = {
    "grad": lambda f: grad(f, ALL),
    "jacfwd": lambda f: jacfwd(f, ALL),
    "forward over reverse": lambda f: hessian(f, ALL),
    "reverse over forward": lambda f: jacrev(jacfwd(f, ALL), ALL),
    "reverse twice": lambda f: jacrev(jacrev(f, ALL), ALL),
    "forward twice": lambda f: jacfwd(jacfwd(f, ALL), ALL),
    "reverse thrice": lambda f: grad(lambda *a: flat_sum(jacrev(jacrev(f, ALL), ALL)(*a)), ALL),
    "forward over reverse twice": lambda f: jacfwd(lambda *a: flat_sum(jacrev(jacrev(f, ALL), ALL)(*a)), ALL),
}


def flat_sum(tree):
    return sum(leaf.pow(2).sum() for leaf in _pytree.tree_leaves(tree))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("mode", ["causal", "full"])
def test_nested_derivatives_are_those_of_the_plain_convolution(name, mode):
    transform, args = TRANSFORMS[name], given(mode, shape=(2, 5), taps=3)
    assert close(transform(scalar(fftconv, mode))(*args), transform(scalar(reference, mode))(*args))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch.func.linearize itself
def test_jvp_vjp_and_linearize():
    args, tangents = given(), tuple(t + 1 for t in given())
    assert close(jvp(scalar(fftconv), args, tangents), jvp(scalar(reference), args, tangents))
    (y, pull), (y64, pull64) = vjp(scalar(fftconv), *args), vjp(scalar(reference), *args)
    assert close((y, pull(y)), (y64, pull64(y64)))
    _, push = linearize(lambda u: fftconv(u, args[1]), args[0])
    assert close(push(args[0]), reference(args[0], args[1]))


def test_a_transformation_inside_ordinary_autograd_is_differentiated_too():
    for transform in (lambda f: grad(f, ALL), lambda f: lambda *a: jvp(f, a, given())):
        gradients = []
        for convolve in (fftconv, reference):
            leaves = tuple(t.requires_grad_() for t in given())
            gradients.append(torch.autograd.grad(flat_sum(transform(scalar(convolve))(*leaves)), leaves))
        assert close(*gradients)


def test_a_transformation_differentiates_under_no_grad():
    with torch.no_grad():
        assert close(grad(scalar(fftconv), ALL)(*given()), grad(scalar(reference), ALL)(*given()))


def mapped_arguments(shape, shared, dims, size=3):
    torch.manual_seed(0)
    channels = shape[-2] if len(shape) > 1 else 1
    shapes = (shape, (4,) if shared else (channels, 4), shape, shape, (channels,))
    made = [s if d is None else (size, *s) if d == 0 else (*s, size) for s, d in zip(shapes, dims, strict=True)]
    return [torch.randn(s, dtype=torch.float64) for s in made]


def one_by_one(call, dims, args, size=3):
    calls = [call(*(a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True))) for i in range(size)]
    return [torch.stack(column) for column in zip(*calls, strict=True)]


FILTERED = [((2, 3, 6), True), ((2, 3, 6), False), ((3, 6), True), ((3, 6), False), ((6,), True)]
DIMS = [dims for dims in itertools.product((None, 0, -1), repeat=5) if any(d is not None for d in dims)]


@pytest.mark.parametrize(("shape", "shared"), FILTERED, ids=str)
def test_vmap_is_the_calls_one_by_one(shape, shared):
    convolve = lambda *args: (fftconv(**dict(zip(NAMES, args, strict=True)), mode="same"),)  # noqa: E731
    for dims in DIMS[:: 1 if shape == (3, 6) else 3]:
        args = mapped_arguments(shape, shared, dims)
        assert close(vmap(convolve, dims)(*args), one_by_one(convolve, dims, args)), dims


@pytest.mark.parametrize(("shape", "shared"), FILTERED, ids=str)
@pytest.mark.parametrize("wrt", [ALL, (0, 2, 3), (1,), (4,)], ids=str)
def test_vmap_of_the_gradients_is_the_calls_one_by_one(shape, shared, wrt):
    gradients = grad(scalar(fftconv), wrt)
    for dims in DIMS[::7]:
        args = mapped_arguments(shape, shared, dims)
        assert close(vmap(gradients, dims)(*args), one_by_one(gradients, dims, args)), dims


def test_a_mapped_gradient_of_a_shared_filter_is_rounded_after_the_sum():
    """By channel it would leave float16, with both signs."""
    u = torch.full((2, 4, 8), 100.0, dtype=torch.float16)
    u[:, 1::2] *= -1
    u[:, 0, 0] += 1
    k, dy = torch.ones(2, 3, dtype=torch.float16), torch.full((4, 8), 200.0, dtype=torch.float16)

    def gradient(u, k):
        return vjp(lambda k: fftconv(u, k), k)[1](dy)[0]

    expected = torch.stack([gradient(*pair) for pair in zip(u, k, strict=True)])
    assert torch.isfinite(expected).all()
    assert torch.equal(vmap(gradient)(u, k), expected)
    assert torch.equal(vmap(gradient, in_dims=(0, None))(u, k[0]), expected)


def test_vmap_of_an_empty_batch():
    u = torch.ones(3, 0, 2, 8)
    assert vmap(fftconv, (0, None))(u, torch.ones(2, 4)).shape == u.shape
    assert vmap(fftconv, (0, 0))(u, torch.ones(3, 2, 4)).shape == u.shape


@pytest.mark.parametrize("shared", [True, False])
def test_vmap_with_a_prepared_filter(shared):
    u, taps, in_gate, _, skip = given(shape=(3, 2, 6), shared=shared)
    k = prepare_filter(taps, seqlen=6)
    skips = torch.stack([skip, skip + 1, skip + 2])

    def loss(u, skip, k):
        return fftconv(u, k, in_gate=in_gate[0], skip=skip).pow(2).sum()

    for dims, args in (((0, None), (u, skip)), ((0, 0), (u, skips)), ((None, 0), (u[0], skips))):
        found = vmap(grad(lambda u, s: loss(u, s, k), (0, 1)), dims)(*args)
        exact = vmap(grad(lambda u, s: loss(u, s, taps), (0, 1)), dims)(*args)
        assert close(found, exact)


def test_nested_vmaps_and_a_mapped_hessian():
    u, k = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    y = vmap(vmap(fftconv, (0, None)))(u, k)
    for i in range(2):
        assert close(y[i], reference(u[i], k[i]))
    ensemble = tuple(torch.stack([t, t + 1]) for t in given(shape=(2, 4), taps=3))
    assert close(vmap(hessian(scalar(fftconv), ALL))(*ensemble), vmap(hessian(scalar(reference), ALL))(*ensemble))


@pytest.mark.parametrize("mode", MODES)
def test_the_operator_itself_can_be_mapped_and_differentiated(mode):
    u, k, *_ = given(mode, shape=(3, 2, 6))
    loss = lambda u: forward_op(u, k, None, None, None, mode, None, None, None, None).pow(2).sum()  # noqa: E731
    exact = vmap(grad(lambda u: reference(u, k, mode=mode).pow(2).sum()))(u)
    assert close(vmap(grad(loss))(u), exact)


def test_gradients_of_each_example_of_a_batch():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = torch.nn.Parameter(torch.randn(2, 4, dtype=torch.float64))
            self.skip = torch.nn.Parameter(torch.randn(2, dtype=torch.float64))

        def forward(self, u):
            return fftconv(u, self.k, skip=self.skip)

    layer, u = Layer(), torch.randn(3, 2, 8, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    loss = lambda p, u: functional_call(layer, p, (u,)).pow(2).sum()  # noqa: E731
    found = vmap(grad(loss), (None, 0))(parameters, u)
    for i in range(3):
        layer.zero_grad()
        layer(u[i]).pow(2).sum().backward()
        assert close({n: g[i] for n, g in found.items()}, {n: p.grad for n, p in layer.named_parameters()})


def test_autocast_under_a_transformation():
    u, k = torch.ones(2, 3, 8), torch.ones(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        seen = []
        gradient = grad(lambda u: seen.append(y := fftconv(u, k)) or y.float().sum())(u)
    assert seen[0].dtype is torch.bfloat16
    assert gradient.dtype is torch.float32
    assert gradient[0, 0].tolist() == [4, 4, 4, 4, 4, 3, 2, 1]
