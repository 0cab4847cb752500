"""Every wrong call of `fftconv_vjp` is refused before anything is computed, in the words of `fftconv` where it can."""

from __future__ import annotations

import numpy as np
import pytest
from bad_vjp_calls import all_bad_vjp_calls, good
from frameworks import FRAMEWORKS, World, allocated, convert
from refusals import check_names, check_refused, forbid_computing

from fftconv_cupy import arrays, fftconv_vjp
from fftconv_cupy.errors import InvalidTypeError

BAD_CALLS = all_bad_vjp_calls()


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch):
    forbid_computing(monkeypatch)


def test_there_are_enough_and_each_has_a_name():
    check_names(BAD_CALLS, least=400)


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.name)
def test_bad_call(bad):
    check_refused(bad)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("mode", ["causal", "full"])
def test_the_call_that_the_bad_ones_vary_is_good(framework, mode, monkeypatch):
    monkeypatch.setattr(arrays, "current_device", lambda: 0)
    stream = {"stream": 0} if framework == "cupy" else {}  # there is no current one without a GPU
    reached = r"the backend was called|launch\.check_vjp was used"
    with allocated(framework), pytest.raises(AssertionError, match=reached):
        fftconv_vjp(**good(World(framework), mode), **stream)


def test_what_may_be_asked_for_is_told():
    ones = np.ones((2, 3, 16), np.float32)
    with pytest.raises(ValueError, match=r"wrt: got 'x'; allowed: 'u', 'k', 'out_gate'\. "):
        fftconv_vjp(ones, ones, np.ones((3, 5), np.float32), out_gate=ones, wrt="x")


def test_torch_tensors_that_require_grad():
    torch = pytest.importorskip("torch")
    arguments = good(World("torch"))
    for name in ("dy", "u", "k", "in_gate", "out_gate", "skip"):
        needing = arguments[name].clone().requires_grad_()
        with pytest.raises(InvalidTypeError, match=f"{name}: got a torch tensor that requires grad"):
            fftconv_vjp(**{**arguments, name: needing})
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(arguments["dy"], torch.ones_like(arguments["dy"]))
        with pytest.raises(InvalidTypeError, match="tangent"):
            fftconv_vjp(**{**arguments, "dy": dual})


def test_jax_tracers():
    jax = pytest.importorskip("jax")
    u, k = convert("jax", np.ones((2, 3, 16), np.float32)), convert("jax", np.ones((3, 5), np.float32))
    with pytest.raises(InvalidTypeError, match="dy: got a JAX tracer"):
        jax.jit(lambda dy: fftconv_vjp(dy, u, k).u)(u)
