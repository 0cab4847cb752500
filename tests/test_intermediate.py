"""Float32 between the passes of long rows, where it is asked for: every way to ask, and what plans tell of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fftconv_cupy import fftconv, fftconv_vjp, plan, warmup
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError
from fftconv_cupy.long_plan import LongPlan, make_long_plan
from fftconv_cupy.problem import make_problem

_U, _K = np.ones((2, 3, 16), np.float32), np.ones((3, 5), np.float32)


def test_long_rows_get_what_is_asked_for() -> None:
    problem = make_problem("causal", batch=4, channels=8, seqlen=1 << 17, filter_len=1 << 17)
    assert make_long_plan(problem, ARCHS["sm_90"]).intermediate == "float16"
    asked = replace(problem, intermediate="float32")
    assert make_long_plan(asked, ARCHS["sm_90"]).intermediate == "float32"
    for wrt in (None, ("u", "k")):
        made = plan(4, 8, 1 << 19, 1 << 19, intermediate="float32", wrt=wrt, arch="sm_90")
        assert "; float32 between the passes, as asked for\n" in str(made)
        assert "asked" not in str(plan(4, 8, 1 << 19, 1 << 19, wrt=wrt, arch="sm_90"))


@pytest.mark.parametrize(
    "call",
    [
        {"seqlen": 1000, "filter_len": 1000},
        {"seqlen": 4096, "filter_len": 4096, "dtype": "bfloat16", "precision": "medium"},
        {"seqlen": 1 << 17, "filter_len": 100},
        {"seqlen": 1 << 17, "filter_len": 1 << 17},
        {"seqlen": 1000, "filter_len": 1000, "wrt": "u"},
        {"seqlen": 1 << 17, "filter_len": 100, "wrt": "u"},
    ],
    ids=["block", "tensor cores", "windows", "cluster", "gradients", "gradients by windows"],
)
def test_plans_in_one_pass_say_that_nothing_lies_between(call: dict[str, Any]) -> None:
    made = plan(4, 8, **call, intermediate="float32", arch="sm_90")
    assert not isinstance(made, LongPlan)
    (line,) = (line for line in str(made).splitlines() if line.strip().startswith("precision"))
    assert line.endswith("; nothing lies between passes that could be float32")
    assert "nothing lies" not in str(plan(4, 8, **call, arch="sm_90"))


def test_what_is_warmed_up_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy", reason="warming up needs CuPy: pip install 'fftconv-cupy[cuda12]'")
    from fftconv_cupy import launchers

    monkeypatch.setattr(launchers, "precompile", lambda spec, arch: None)
    for intermediate, has_halves in ((None, "1"), ("float32", "0")):
        lines = warmup(4, 8, 1 << 19, 1 << 19, intermediate=intermediate, archs=["sm_90"])
        assert lines
        assert all(f"has_half_points={has_halves}" in line for line in lines)


def test_the_cpu_computes_the_same() -> None:
    assert fftconv(_U, _K, intermediate="float32").tobytes() == fftconv(_U, _K).tobytes()
    grads, plain = fftconv_vjp(_U, _U, _K, intermediate="float32"), fftconv_vjp(_U, _U, _K)
    assert grads.k.tobytes() == plain.k.tobytes()


def _torch_call(bad: Any) -> Any:
    torch = pytest.importorskip("torch")
    import fftconv_cupy.torch

    return fftconv_cupy.torch.fftconv(torch.ones(2, 16), torch.ones(5), intermediate=bad)


def _torch_module(bad: Any) -> Any:
    pytest.importorskip("torch")
    import fftconv_cupy.torch

    return fftconv_cupy.torch.FlashFFTConv(16, intermediate=bad)


def _jax_call(bad: Any) -> Any:
    jnp = pytest.importorskip("jax.numpy")
    import fftconv_cupy.jax

    return fftconv_cupy.jax.fftconv(jnp.ones((2, 16)), jnp.ones(5), intermediate=bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: fftconv(_U, _K, intermediate=bad),
        lambda bad: fftconv_vjp(_U, _U, _K, intermediate=bad),
        lambda bad: plan(2, 3, 16, 5, intermediate=bad, arch="sm_90"),
        lambda bad: warmup(2, 3, 16, 5, intermediate=bad, archs=["sm_90"]),
        _torch_call,
        _torch_module,
        _jax_call,
    ],
    ids=["fftconv", "fftconv_vjp", "plan", "warmup", "torch", "module", "jax"],
)
def test_anything_else_is_refused(call: Callable[[Any], Any]) -> None:
    fftconv(_U, _K, intermediate="float32")
    wrong = {InvalidArgumentError: ["float16"], InvalidTypeError: [np.float32, ["float32"]]}
    for error, bad in ((error, bad) for error, values in wrong.items() for bad in values):
        with pytest.raises(error, match=r"intermediate: got .*; allowed: None, 'float32'\. Pass one of these\."):
            call(bad)


def test_torch_hands_it_on_to_every_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    import fftconv_cupy.torch
    from fftconv_cupy import torch_operator, torch_states

    seen = []

    def record(name: str, compute: Callable[..., Any], *args: Any, **options: Any) -> Any:
        seen.append((name, options["intermediate"]))
        return compute(*args, **options)

    for module, name in ((m, n) for m in (torch_operator, torch_states) for n in ("fftconv", "fftconv_vjp")):
        monkeypatch.setattr(module, name, functools.partial(record, name, getattr(module, name)))
    u, k = torch.ones(2, 3, 9, requires_grad=True), torch.ones(3, 4)
    module = fftconv_cupy.torch.FlashFFTConv(16, intermediate="float32")
    for convolve in (
        lambda: fftconv_cupy.torch.fftconv(u, k, intermediate="float32"),
        lambda: fftconv_cupy.fftconv(u, k, intermediate="float32"),
        lambda: fftconv_cupy.torch.fftconv(u, k, intermediate="float32", return_final_state=True)[0],
        lambda: torch.func.vmap(lambda row: fftconv_cupy.torch.fftconv(row, k, intermediate="float32"))(u),
        lambda: module(u, k),
    ):
        seen.clear()
        (du,) = torch.autograd.grad(convolve().square().sum(), u, create_graph=True)
        du.sum().backward()
        assert {name for name, _ in seen} == {"fftconv", "fftconv_vjp"}
        assert {asked for _, asked in seen} == {"float32"}
    assert "intermediate='float32'" in repr(module)


def test_jax_hands_it_on_to_outputs_and_gradients() -> None:
    jax = pytest.importorskip("jax")
    import fftconv_cupy.jax

    def loss(u: Any, k: Any) -> Any:
        return fftconv_cupy.jax.fftconv(u, k, intermediate="float32").sum()

    text = str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(jax.numpy.ones((2, 3, 16)), jax.numpy.ones((3, 5))))
    assert text.count("intermediate='float32'") >= 2
    assert "intermediate=None" not in text


def test_rows_keep_the_exactness_of_those_in_one_pass() -> None:
    pytest.importorskip("cupy", reason="CuPy holds the arrays: pip install 'fftconv-cupy[cuda12]'")
    from kernel_runs import place_all
    from long_cases import LongCase, long_gpu

    from fftconv_cupy import launch_long, numeric
    from fftconv_cupy.benchmarks.problems import Case, make_inputs, reference_of

    case = Case("causal", "float16", 4096, 4096, 1, 1)
    inputs = make_inputs(case)
    with long_gpu(LongCase(case, is_half=True)):
        for intermediate in (None, "float32"):
            arguments, out = place_all(case, inputs)
            fftconv(**arguments, intermediate=intermediate)
        made = [launcher.plan for launcher in launch_long._launchers.values()]
        assert [one.intermediate for one in made] == ["float16", "float32"]
        agreement = numeric.compare(out.take(), reference_of(case, inputs), "float16")
    assert agreement.ok  # within 1.2 times the rounding of the output
