"""The README is true: its code runs as it stands, its shapes and limits are the real ones, its links lead somewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fftconv_cupy import numeric

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
SNIPPETS = dict(
    zip(
        ("torch", "prepared", "gradients", "torch_layer", "flashfftconv", "jax_step"),
        re.findall(r"```python\n(.*?)```", README, re.DOTALL),
        strict=True,
    )
)
STATED_SHAPE = re.compile(r"^([\w.]+)(?: = .*?)?  # \((\d+(?:, \d+)*)\)", re.MULTILINE)

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run_on_cpu(monkeypatch) -> Run:
    """The function that runs a snippet on the CPU, whatever this machine has, and returns its names."""
    return functools.partial(run, monkeypatch, on_gpu=False)


@pytest.fixture
def run_on_gpu(monkeypatch) -> Run:
    """The function that runs a snippet as it stands."""
    return functools.partial(run, monkeypatch, on_gpu=True)


def run(monkeypatch, name: str, *, on_gpu: bool) -> dict[str, Any]:
    """Run a snippet, check the shapes that it states, and return its names."""
    code = SNIPPETS[name]
    framework = re.search(r"^import (\w+)", code, re.MULTILINE)[1]
    if framework == "cupy" and not on_gpu:
        code = code.replace("import cupy\n", "import numpy as cupy\n")
    else:
        module = pytest.importorskip(framework)
    if framework == "torch":
        module.manual_seed(0)
        # Inductor wants a compiler on the CPU: what is ours of a graph is whole before it.
        monkeypatch.setattr(module, "compile", functools.partial(module.compile, backend="aot_eager"))
        if not on_gpu:
            monkeypatch.setattr(module.cuda, "is_available", lambda: False)
    if framework == "jax":
        monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu" if on_gpu else "cpu")
    names: dict[str, Any] = {}
    exec(code, names)
    for expression, shape in STATED_SHAPE.findall(code):
        assert tuple(eval(expression, names).shape) == tuple(map(int, shape.split(", "))), expression
    return names


def host(array: Any) -> np.ndarray:
    """Return the content of any framework's array as a NumPy array, 16-bit floats of torch as float32."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        return (array.float() if array.element_size() == 2 else array).numpy()
    return array.get() if hasattr(array, "get") else np.asarray(array)


def agrees(y: Any, y64: np.ndarray, dtype: str) -> bool:
    return numeric.compare(host(y), y64, dtype, fft_size=8192).ok
