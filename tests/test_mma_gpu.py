"""Tensor cores on a real GPU: every size, dtype and precision, rows of any magnitude, and frameworks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernel_runs import describe

from fftconv_cupy import numeric, plan
from fftconv_cupy.benchmarks import checks, gradient_checks
from fftconv_cupy.benchmarks.places import Place
from fftconv_cupy.benchmarks.problems import Case
from fftconv_cupy.benchmarks.ranges import RANGES
from fftconv_cupy.mma_blocks import DTYPES, MMA_CONFIGS

pytestmark = pytest.mark.gpu

SIZES = sorted(MMA_CONFIGS)
GATES = {"in_gate": True, "out_gate": True}


def accurate(case: Case) -> None:
    """Compare a case with float64; skip where the GPU has no tensor cores for it."""
    options = {"mode": case.mode, "dtype": case.dtype}
    if plan(case.batch, case.channels, case.seqlen, case.filter_len, **options).limits.arch == "sm_75":
        pytest.skip("computed in float32")
    found = checks.accuracy(case, Place(0))
    assert found.ok, found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", SIZES)
def test_gradients(points: int, dtype: str) -> None:
    skipping = {"in_gate": True, "skip_dtype": "float32", "wrt": ("u", "k", "in_gate")}
    for shape, options in itertools.product(((9, 5), (64, 2)), ({}, GATES, skipping)):
        case = Case("causal", dtype, points, points, *shape, precision="medium", **options)
        for check in (gradient_checks.gradients, gradient_checks.gradient_repeats):
            found = check(case, Place(0))
            assert found.ok, found


@pytest.mark.parametrize("precision", ["medium"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", SIZES)
def test_outputs(points: int, dtype: str, precision: str) -> None:
    for shape, options in itertools.product(((9, 5), (64, 2)), ({}, GATES, {"skip_dtype": "float32"})):
        accurate(Case("causal", dtype, points, points, *shape, precision=precision, **options))
    accurate(Case("circular", dtype, points - 96, points - 96, 5, 3, precision=precision, prepared=True, **GATES))
    accurate(Case("same", dtype, points - 8, 77, 5, 3, precision=precision, layout="strided", in_gate=True))


@pytest.mark.parametrize("precision", ["medium"])
@pytest.mark.parametrize("points", SIZES)
@pytest.mark.parametrize("name", RANGES)
def test_rows_and_filters_of_any_magnitude(name: str, points: int, precision: str) -> None:
    for dtype in RANGES[name].dtypes:
        accurate(Case("causal", dtype, points, points, 8, 4, precision=precision, range=name))


@pytest.mark.parametrize("precision", ["medium"])
def test_repeats_streams_and_values_that_are_not_finite(precision: str) -> None:
    for seqlen in (4096, 8192):
        case = Case("causal", "bfloat16", seqlen, seqlen, 8, 16, precision=precision, **GATES)
        for check in (checks.repeats, checks.two_streams, checks.confinement):
            found = check(case, Place(0))
            assert found.ok, found


@pytest.mark.parametrize("precision", [None, "highest", "medium"])
def test_torch_and_its_module(precision: str | None) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no GPU")
    from fftconv_cupy import fftconv_vjp
    from fftconv_cupy.torch import FlashFFTConv

    torch.manual_seed(0)
    u = torch.randn(4, 6, 4096, device="cuda").bfloat16().requires_grad_()
    k = torch.randn(6, 4096, device="cuda", requires_grad=True)
    y = FlashFFTConv(8192, dtype=torch.bfloat16, precision=precision)(u, k)
    exact = torch.fft.irfft(torch.fft.rfft(u.double(), 8192) * torch.fft.rfft(k.double(), 8192), 8192)[..., :4096]
    found = numeric.compare(y.detach().float().cpu().numpy(), exact.detach().cpu().numpy(), "bfloat16")
    assert found.ok, describe(found)
    dy = torch.randn_like(y)
    du, dk = torch.autograd.grad(y, (u, k), dy)
    grads = fftconv_vjp(dy, u.detach(), k.detach(), precision=precision)
    assert torch.equal(du, grads.u)
    assert torch.equal(dk, grads.k)


@pytest.mark.parametrize("precision", ["medium"])
def test_jax(precision: str) -> None:
    jax = pytest.importorskip("jax")
    try:
        gpu = jax.devices("cuda")[0]
    except RuntimeError:
        pytest.skip("JAX has no GPU")
    from fftconv_cupy.jax import fftconv
    from fftconv_cupy.reference import fftconv_reference

    rng = np.random.default_rng(0)
    u, k = rng.standard_normal((3, 5, 4096)), rng.standard_normal((5, 4096)) / 64
    on = [jax.device_put(jax.numpy.asarray(x, dtype), gpu) for x, dtype in ((u, "bfloat16"), (k, "float32"))]
    y = jax.jit(lambda u, k: fftconv(u, k, precision=precision))(*on)
    exact = fftconv_reference(*(np.asarray(x).astype(np.float32) for x in on))
    found = numeric.compare(np.asarray(y), exact, "bfloat16", precision=precision)
    assert found.ok, describe(found)
