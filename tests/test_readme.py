"""README and guide are true: their code runs as it stands, shapes and limits are the real ones, no link is dead."""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fftconv_cupy import numeric
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.plan import max_points
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
GUIDE = (REPOSITORY / "docs" / "guide.md").read_text()
# Of the snippets, in their order, first those of the README.
NAMES = ("torch", "jitted", "prepared", "gradients", "state", "layer", "flashfftconv", "jax", "depthwise")
SNIPPETS = dict(zip(NAMES, re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL), strict=True))
STATED_SHAPE = re.compile(r"^([\w.]+)(?: = .*?)?  # \((\d+(?:, \d+)*)\)", re.MULTILINE)

places = pytest.mark.parametrize("place", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])


@pytest.fixture
def run(monkeypatch):
    """Yield a function that runs a snippet and checks the shapes it states: on the CPU, or on a GPU as it stands."""
    contexts = contextlib.ExitStack()

    def run(name: str, place: str = "cpu") -> dict[str, Any]:
        code = SNIPPETS[name]
        framework = re.search(r"^import (\w+)", code, re.MULTILINE)[1]
        if framework == "cupy" and place == "cpu":
            code = code.replace("import cupy\n", "import numpy as cupy\n")
        names: dict[str, Any] = {}
        contexts.enter_context(prepare(framework, place, monkeypatch))
        exec(code, names)
        stated = STATED_SHAPE.findall(code)
        for expression, shape in stated:
            assert tuple(eval(expression, names).shape) == tuple(map(int, shape.split(", "))), expression
        names["stated"] = [expression for expression, _ in stated]
        return names

    with contexts:
        yield run


def prepare(framework: str, place: str, monkeypatch: pytest.MonkeyPatch) -> contextlib.AbstractContextManager[Any]:
    """Make a framework ready to compute at `place`, and return the context in which it does."""
    if framework == "torch":
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        # The default backend wants a C++ compiler on the CPU; what matters of ours is done with before it comes.
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        if place == "gpu" and not torch.cuda.is_available():
            pytest.skip("torch has no GPU")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: place == "gpu")
    if framework == "jax":
        jax = pytest.importorskip("jax")
        try:
            return jax.default_device(jax.devices({"cpu": "cpu", "gpu": "cuda"}[place])[0])
        except RuntimeError as error:
            pytest.skip(f"JAX has no GPU ({error})")
    return contextlib.nullcontext()


def host(array: Any) -> np.ndarray:
    """Return the content of any framework's array for NumPy; that of bfloat16 tensors as float32, which is exact."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        return (array.float() if array.element_size() == 2 else array).numpy()
    return array.get() if hasattr(array, "get") else np.asarray(array)


def agree(y: Any, u: Any, k: Any, dtype: str, **options: Any) -> bool:
    """Return whether a snippet's output is the convolution of its input, in float64."""
    arrays = {name: host(x) if name.endswith("gate") else x for name, x in options.items()}
    return numeric.compare(host(y), fftconv_reference(host(u), host(k), **arrays), dtype).ok


@places
def test_the_call_with_tensors_is_causal(run, place):
    names = run("torch", place)
    assert names["stated"] == ["y"]
    assert str(names["y"].dtype) == "torch.bfloat16"
    assert names["y"].device == names["u"].device
    assert names["y"].device.type == {"cpu": "cpu", "gpu": "cuda"}[place]
    assert agree(names["y"], names["u"], names["k"], "bfloat16")


@places
def test_the_jitted_call_is_causal(run, place):
    names = run("jitted", place)
    assert names["stated"] == ["y"]
    assert str(names["y"].dtype) == "bfloat16"
    u, k, y = (host(names[name]).astype(np.float64) for name in ("u", "k", "y"))
    assert numeric.compare(y, fftconv_reference(u, k), "bfloat16").ok


@places
def test_the_prepared_filter_gives_the_full_convolution(run, place):
    names = run("prepared", place)
    assert names["stated"] == ["y"]
    taps = np.ones((64, 300), np.float32)
    assert agree(names["y"], names["u"], taps, "float16", mode="full", in_gate=names["gate"])


def test_the_gradients_are_those_of_the_loss_that_is_named(run):
    names = run("gradients")
    assert names["stated"] == ["y", "grads.u", "grads.k"]
    u, k, skip, y, grads = (names[name] for name in ("u", "k", "skip", "y", "grads"))
    assert grads.skip is None
    wanted = fftconv_vjp_reference(2 * y, u, k, mode="circular", skip=skip)
    assert numeric.compare(grads.u, wanted.u, "float64").ok
    assert numeric.compare_sum(grads.k, wanted.k, "float64").ok
    towards = np.random.default_rng(0).standard_normal(k.shape)
    losses = [
        (names["fftconv"](u, k + step * towards, mode="circular", skip=skip) ** 2).sum() for step in (1e-4, -1e-4)
    ]
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx((grads.k * towards).sum(), rel=1e-6)


def test_the_parts_of_a_stream_are_those_of_one_call(run):
    names = run("state")
    assert names["stated"] == ["rest", "state"]
    whole = names["fftconv"](names["u"], names["k"])
    assert np.allclose(names["first"], whole[..., :40_000])
    assert np.allclose(names["rest"], whole[..., 40_000:])


@places
def test_the_layer_is_compiled_and_trained(run, place):
    names = run("layer", place)
    assert names["stated"] == ["layer.k.grad"]
    layer, u, gate = names["layer"], names["u"], names["gate"]
    assert type(layer).__name__ == "OptimizedModule"
    k, skip = host(layer.k), host(layer.skip)
    assert layer.k.grad.dtype is layer.k.dtype
    y = layer(u, gate)
    assert agree(y, u, layer.k, "bfloat16", out_gate=gate, skip=skip)
    # The loss is the mean of the squares of what was rounded; so is its gradient, 2 y / n.
    dy = (2 * y.float() / y.numel()).bfloat16()
    wanted = fftconv_vjp_reference(host(dy), host(u), k, out_gate=host(gate), skip=skip)
    assert numeric.compare_sum(host(layer.k.grad), wanted.k, "float32").ok
    assert numeric.compare_sum(host(layer.skip.grad), wanted.skip, "float32").ok


def test_the_drop_in_is_causal_as_it_says(run):
    names = run("flashfftconv")
    assert names["stated"] == ["y"]
    u, k, gates = names["u"], names["k"], {name: names[name] for name in ("in_gate", "out_gate")}
    assert agree(names["y"], u, k, "bfloat16", **gates)
    assert agree(names["conv"](u, k), u, k, "bfloat16")
    size = names["conv"].seqlen
    assert f"FlashFFTConv({size}," in SNIPPETS["flashfftconv"]
    assert f"circular modulo {size}: causal for L, K <= {size // 2}" in SNIPPETS["flashfftconv"]


@places
def test_the_jax_step_lowers_the_loss(run, place):
    names = run("jax", place)
    assert str(names["u"].dtype) == "bfloat16"
    value, k = names["value"], names["k"]
    assert k.shape == (64, 4096)
    for _ in range(2):
        before, (value, k) = value, names["step"](k, names["u"], names["u"])
        assert value < 0.8 * before


def test_a_step_after_the_short_convolution_goes_on_from_its_state(run):
    names = run("depthwise")
    assert names["stated"] == ["weight.grad", "y"]
    x, weight, state, y = (names[name] for name in ("x", "weight", "state", "y"))
    assert (state.shape, str(state.dtype), str(y.dtype)) == ((2, 64, 3), "torch.bfloat16", "torch.bfloat16")
    # The state has taken up the new point; the two before it are the last of x.
    assert np.array_equal(host(state)[..., :2], host(x)[:, -2:].transpose(0, 2, 1))
    points = np.concatenate((host(x)[:, -3:-2].transpose(0, 2, 1), host(state)), axis=-1).astype(np.float64)
    z = (points * host(weight)).sum(axis=-1)
    assert numeric.compare(host(y), z / (1 + np.exp(-z)), "bfloat16").ok


def test_jax_has_no_half_precision_transform(run):
    """What README and guide say of `jnp.fft`; it is to be written anew on the day when this is no longer so."""
    u = run("jax")["u"]
    jnp = pytest.importorskip("jax.numpy")
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(ValueError, match="float32"):
            jnp.fft.rfft(u.astype(dtype))
    copy = u.astype("float32")
    spectrum = jnp.fft.rfft(copy, 2 * u.shape[-1])
    assert (copy.nbytes + spectrum.nbytes) / u.nbytes == pytest.approx(6, rel=1e-3)


def test_the_limits_of_each_gpu_are_those_of_the_plan():
    rows = re.findall(r"^\| ([\d., ]+) \| (\d+) \| (\d+) \|$", README, re.MULTILINE)
    listed = {}
    for capabilities, linear, circular in rows:
        for capability in capabilities.split(", "):
            listed[f"sm_{capability.replace('.', '')}"] = (int(linear), int(circular))
    assert listed == {arch: (2 * max_points(limits), max_points(limits)) for arch, limits in ARCHS.items()}


def test_links_lead_to_files_and_every_example_is_named():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
    programs = {path.name for path in (REPOSITORY / "examples").glob("*.py") if "__main__" in path.read_text()}
    assert programs == {Path(link).name for link in links if link.startswith("examples/")}
