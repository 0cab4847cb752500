"""The torch operator: values, gradients of any order, what is computed and kept for them, autocast, bad calls."""

from __future__ import annotations

import copy
import doctest
import functools
import gc
import itertools

import numpy as np
import pytest
from bad_calls import MESSAGE

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_cases import NAMES, arguments, detached, error, reference  # noqa: E402

import fftconv_cupy  # noqa: E402
import fftconv_cupy.torch as module  # noqa: E402
from fftconv_cupy import numeric, prepare_filter, torch_operator  # noqa: E402
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError  # noqa: E402
from fftconv_cupy.problem import MODES  # noqa: E402
from fftconv_cupy.torch import fftconv  # noqa: E402
from fftconv_cupy.torch_operator import forward_op, vjp_op  # noqa: E402

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHAPES = (
    {},
    {"shape": (1, 1, 1), "taps": 1},
    {"shape": (2, 3, 7), "taps": 12},
    {"shape": (3, 8), "taps": 3},
    {"shape": (6,), "taps": 4},
    {"shape": (2, 2, 5), "taps": 3, "shared": True},
)


def call(tensors, **options):
    return fftconv(**tensors, **options)


def within_rounding(result, exact, dtype):
    """Rounded once and no worse."""
    values = result.detach().double().numpy()
    assert np.isfinite(values).all()
    agreement = numeric.compare(values, exact.detach().numpy(), dtype)
    assert agreement.ok, agreement


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_are_rounded_once(dtype, mode):
    tensors = arguments(mode, shape=(3, 4, 40), taps=17, dtype=DTYPES[dtype])
    exact = detached(tensors)
    y, y64 = call(tensors, mode=mode), reference(**exact, mode=mode)
    assert y.dtype is DTYPES[dtype]
    assert y.is_contiguous()
    within_rounding(y, y64, dtype)
    dy = torch.randn_like(y)
    y.backward(dy)
    y64.backward(dy.double())
    for name in NAMES:
        gradient = tensors[name].grad
        assert gradient.dtype is tensors[name].dtype
        if name in ("k", "skip"):
            assert error(gradient, exact[name].grad) <= 1e-5
        else:
            within_rounding(gradient, exact[name].grad, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_differences(mode, shape):
    tensors = arguments(mode, **shape)
    assert torch.autograd.gradcheck(
        lambda *args: call(dict(zip(NAMES, args, strict=True)), mode=mode),
        tuple(tensors.values()),
        check_forward_ad=True,
        check_batched_grad=True,
    )


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_agree_with_differences(mode):
    tensors = arguments(mode, shape=(2, 2, 4), taps=3)
    for names in (NAMES, *(() if mode != "causal" else (("u", "k"), ("k", "skip"), ("u", "k", "out_gate")))):
        given = {name: tensors[name] for name in dict.fromkeys(("u", "k", *names))}

        def convolve(*args, given=given):
            return call(dict(zip(given, args, strict=True)), mode=mode)

        assert torch.autograd.gradgradcheck(convolve, tuple(given.values()), check_fwd_over_rev=True)


def test_a_circular_convolution_of_a_given_size_is_differentiable():
    tensors = arguments("circular", shape=(2, 9), taps=20)
    assert torch.autograd.gradcheck(
        lambda *args: call(dict(zip(NAMES, args, strict=True)), mode="circular", fft_size=16), tuple(tensors.values())
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_bare", [False, True])
def test_opcheck(mode, is_bare):
    tensors = list(arguments(mode).values())
    if is_bare:
        tensors[2:] = [None] * 3
    options = (mode, 16 if mode == "circular" else None, None, None, None)
    torch.library.opcheck(forward_op, (*tensors, *options))
    dy = call(dict(zip(NAMES, tensors, strict=True)), mode=mode).detach().requires_grad_()
    for wrt in ([True, True] + [not is_bare] * 3, [False, True] + [False] * 3):
        torch.library.opcheck(vjp_op, (dy, *tensors, *options, wrt))


@pytest.fixture
def precisions(monkeypatch):
    """The precisions that calls of the operators ask for, those of outputs and of gradients."""
    seen = {"fftconv": [], "fftconv_vjp": []}

    def recording(name):
        compute = getattr(torch_operator, name)

        def record(*args, precision, **options):
            seen[name].append(precision)
            return compute(*args, precision=precision, **options)

        return record

    for name in seen:
        monkeypatch.setattr(torch_operator, name, recording(name))
    return seen


@pytest.mark.parametrize("precision", ["highest", "medium", None])
def test_every_derivative_has_the_precision_of_its_call(precisions, precision):
    tensors = arguments(shape=(2, 3, 9))
    y = fftconv(**tensors, precision=precision)
    (du,) = torch.autograd.grad(y.square().sum(), tensors["u"], create_graph=True)
    du.sum().backward()
    torch.func.jvp(lambda u: fftconv(u, tensors["k"], precision=precision), (tensors["u"],), (tensors["u"],))
    torch.func.vmap(lambda u: fftconv(u, tensors["k"], precision=precision))(tensors["u"])
    assert len(precisions["fftconv"]) > 2
    assert len(precisions["fftconv_vjp"]) > 1
    assert {*precisions["fftconv"], *precisions["fftconv_vjp"]} == {precision}


def test_the_function_of_the_package_hands_on_the_precision(precisions):
    fftconv_cupy.fftconv(**arguments(), precision="high")
    assert precisions["fftconv"] == ["high"]


@pytest.mark.parametrize("convolve", [fftconv, fftconv_cupy.fftconv])
def test_an_unknown_precision_is_refused(convolve):
    with pytest.raises(InvalidArgumentError, match="precision: got 'low'"):
        convolve(**arguments(), precision="low")


@pytest.fixture
def asked(monkeypatch):
    """The gradients that backward asks for, call by call."""
    calls = []
    compute = torch_operator.fftconv_vjp

    def record(*args, wrt, **options):
        calls.append(tuple(wrt))
        return compute(*args, wrt=wrt, **options)

    monkeypatch.setattr(torch_operator, "fftconv_vjp", record)
    return calls


def test_only_needed_gradients_are_computed(asked):
    for needed in itertools.chain.from_iterable(itertools.combinations(NAMES, n) for n in range(1, 6)):
        tensors = arguments()
        for name in set(NAMES) - set(needed):
            tensors[name].requires_grad_(False)
        exact = detached(tensors)
        call(tensors).square().sum().backward()
        reference(**exact).square().sum().backward()
        assert asked.pop() == needed
        assert not asked
        for name, tensor in tensors.items():
            if name in needed:
                assert error(tensor.grad, exact[name].grad) < 1e-12
            else:
                assert tensor.grad is None


def test_gradients_asked_of_the_graph_alone_are_computed(asked):
    tensors = arguments()
    y = call(tensors)
    torch.autograd.grad(y.sum(), tensors["k"], retain_graph=True)
    # torch tells an operator what required grad in the call, not what a pass asks for.
    assert asked.pop() == NAMES
    with torch.no_grad():
        assert call(tensors).grad_fn is None
    with torch.inference_mode():
        assert call(tensors).is_inference()
    assert not asked


def test_the_input_is_kept_only_where_a_gradient_depends_on_it():
    def kept(**needs):
        tensors = arguments("full")
        for name in NAMES:
            tensors[name].requires_grad_(needs.get(name, False))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
            y = call(tensors, mode="full")
        exact = detached(tensors)
        y.sum().backward()
        reference(**exact, mode="full").sum().backward()
        for name in needs:
            assert error(tensors[name].grad, exact[name].grad) < 1e-12
        return tensors["u"].data_ptr() in saved

    assert not kept(u=True)
    for other in NAMES[1:]:
        assert kept(u=True, **{other: True})


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_bits(use_reentrant):
    tensors, again = arguments(dtype=torch.float32), arguments(dtype=torch.float32)
    call(tensors).square().sum().backward()
    y = checkpoint(
        lambda *args: call(dict(zip(NAMES, args, strict=True))), *again.values(), use_reentrant=use_reentrant
    )
    y.square().sum().backward()
    for name in NAMES:
        assert torch.equal(tensors[name].grad, again[name].grad)


def test_views_and_expanded_tensors_of_any_strides():
    base = torch.randn(3, 7, 2, dtype=torch.float64, requires_grad=True)  # channels last
    taps = torch.randn(4, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(7, dtype=torch.float64, requires_grad=True)
    scale = torch.randn((), dtype=torch.float64, requires_grad=True)
    leaves = (base, taps, gate, scale)

    def compute(convolve):
        u = base.flip(-2).transpose(1, 2)[..., ::2]
        y = convolve(u, taps.expand(2, 4)[:, ::2], in_gate=gate[3:].expand(3, 2, 4), skip=scale.expand(2))
        return torch.autograd.grad(y.sum(), leaves)  # an expanded cotangent

    for gradient, exact in zip(compute(fftconv), compute(reference), strict=True):
        assert error(gradient, exact) < 1e-12


def test_writing_to_an_input_that_backward_needs_is_seen():
    u = torch.ones(2, 3, 8)
    k = torch.ones(3, 4, requires_grad=True)
    y = fftconv(u, k)
    u.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_an_empty_batch_has_gradients():
    tensors = arguments(shape=(0, 3, 9))
    y = call(tensors)
    assert y.shape == (0, 3, 9)
    y.sum().backward()
    for tensor in tensors.values():
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


@pytest.mark.parametrize("shared", [False, True])
def test_a_prepared_filter_gets_no_gradient_and_the_others_do(shared, asked):
    tensors = arguments("same", shared=shared)
    taps = tensors.pop("k").detach()
    k = prepare_filter(taps, seqlen=9, mode="same")
    y = fftconv(k=k, mode="same", **tensors)
    exact = detached(tensors)
    y64 = reference(k=taps, mode="same", **exact)
    assert torch.equal(y, fftconv_cupy.fftconv(k=k, mode="same", **{n: t.detach() for n, t in tensors.items()}))
    del k
    gc.collect()  # backward holds the spectrum's memory
    y.square().sum().backward()
    y64.square().sum().backward()
    assert asked == [("u", "in_gate", "out_gate", "skip")]
    for name in tensors:
        assert error(tensors[name].grad, exact[name].grad) < 1e-12
    k = prepare_filter(taps, seqlen=9, mode="same")
    convolve = lambda *args: fftconv(k=k, mode="same", **dict(zip(tensors, args, strict=True)))  # noqa: E731
    assert torch.autograd.gradgradcheck(convolve, tuple(tensors.values()))


@pytest.mark.filterwarnings("error")
def test_a_prepared_filter_is_taken_without_a_warning(request):
    request.addfinalizer(functools.partial(torch.set_warn_always, torch.is_warn_always_enabled()))
    torch.set_warn_always(True)  # not only the first time in this process
    k = prepare_filter(torch.ones(3, 4), seqlen=8)
    assert torch.equal(fftconv(torch.ones(2, 3, 8), k)[0, 0], torch.tensor([1.0, 2, 3, 4, 4, 4, 4, 4]))
    assert not k.data.flags.writeable


def test_a_prepared_filter_of_another_problem_is_refused():
    k = prepare_filter(torch.ones(3, 4), seqlen=8)
    u = torch.ones(2, 3, 8, requires_grad=True)
    for arguments_ in ((u[..., :7], k), (u[:, :2], k)):
        with pytest.raises(InvalidArgumentError, match="prepared filter"):
            fftconv(*arguments_)
    with pytest.raises(InvalidArgumentError, match="prepared filter"):
        fftconv(u, k, mode="same")


def test_autocast_casts_what_is_as_long_as_the_input():
    tensors = arguments(dtype=torch.float32, filter_dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(tensors)
    assert y.dtype is torch.bfloat16
    cast = {name: t if name in ("k", "skip") else t.bfloat16() for name, t in tensors.items()}
    assert torch.equal(y, call(cast))
    y.float().square().sum().backward()
    gradients = {name: t.grad for name, t in tensors.items()}
    again = arguments(dtype=torch.float32, filter_dtype=torch.float32)
    call({n: t if n in ("k", "skip") else t.bfloat16() for n, t in again.items()}).float().square().sum().backward()
    for name in NAMES:
        assert gradients[name].dtype is torch.float32
        assert torch.equal(gradients[name], again[name].grad)


def test_autocast_leaves_float64_and_takes_a_skip_of_another_16_bit_dtype():
    tensors = arguments()
    exact = call(tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(tensors), exact)
        y = fftconv(torch.ones(2, 3, 8).half(), torch.ones(3, 4).half(), skip=torch.full((3,), 2.0).half())
    assert y.dtype is torch.bfloat16
    assert y[0, 0].tolist() == [3, 4, 5, 6, 6, 6, 6, 6]


def test_the_general_function_hands_over_what_is_differentiated():
    for name in NAMES:
        tensors = {n: t if n == name else t.detach() for n, t in arguments().items()}
        y = fftconv_cupy.fftconv(**tensors)
        assert torch.equal(y, call(arguments()))
        y.sum().backward()
        assert tensors[name].grad is not None
    tensors = arguments(requires_grad=False)
    u = tensors.pop("u")
    y = torch.func.vmap(lambda rows: fftconv_cupy.fftconv(rows, tensors["k"]))(u)
    assert torch.equal(y, fftconv(u, tensors["k"]))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(u, u)
        primal, tangent = forward_ad.unpack_dual(fftconv_cupy.fftconv(dual, tensors["k"]))
        assert torch.equal(primal, tangent)


BAD = {
    "u": ({"u": np.ones((2, 3, 9))}, InvalidTypeError),
    "k": ({"k": None}, InvalidTypeError),
    "skip": ({"skip": 1.0}, InvalidTypeError),
    "mode": ({"mode": "valid"}, InvalidArgumentError),
    "mode's type": ({"mode": 1}, InvalidTypeError),
    "fft_size": ({"fft_size": 12}, InvalidArgumentError),
    "fft_size's type": ({"fft_size": 16.0}, InvalidTypeError),
    "in_gate.shape": ({"in_gate": torch.ones(2, 3, 8).double()}, InvalidArgumentError),
    "in_gate.dtype": ({"in_gate": torch.ones(2, 3, 9)}, InvalidTypeError),
    "k.dtype": ({"k": torch.ones(3, 5).long()}, InvalidTypeError),
    "k.shape": ({"k": torch.ones(2, 5)}, InvalidArgumentError),
    "u.shape": ({"u": torch.ones(1, 2, 3, 9).double()}, InvalidArgumentError),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_bad_calls_say_what_is_wrong(what, requires_grad):
    changes, kind = BAD[what]
    with pytest.raises(kind) as raised:
        fftconv(**{**arguments(requires_grad=requires_grad), **changes})
    assert type(raised.value) is kind
    parts = MESSAGE.fullmatch(str(raised.value))
    assert parts is not None
    assert parts["what"] == what.removesuffix("'s type")


def test_an_integer_of_numpy_is_an_fft_size():
    tensors = arguments()
    assert torch.equal(call(tensors, fft_size=np.int64(16)), call(tensors))


def test_results_share_no_memory_with_the_arguments_and_are_fresh():
    tensors = arguments()
    first = call(tensors)
    kept = copy.deepcopy(first.detach())
    second = call(tensors)
    second.detach().zero_()
    assert torch.equal(first, kept)


def test_the_examples_in_the_docstrings():
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
