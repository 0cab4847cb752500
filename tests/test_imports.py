"""Imports go one way, each module imports alone, and no array framework is imported before one of its arrays comes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fftconv_cupy

PACKAGE = Path(fftconv_cupy.__file__).parent

# From the lowest layer to the highest: a module imports from lower layers only.
LAYERS = (
    ("errors", "params", "_version", "long_schedule", "mma_params", "remembered", "depthwise_shapes"),
    ("autograd", "long_params"),
    ("problem", "source", "archs", "dependencies", "cache"),
    ("driver", "readers", "blocks", "reference", "depthwise_problem", "depthwise_params"),
    ("long_blocks", "mma_blocks", "compile", "devices", "depthwise_kernels", "depthwise_reference"),
    ("cluster_blocks", "triple_blocks"),
    ("arrays", "filters", "plan", "kernel_matrix", "tables", "numpy_backend", "numeric", "depthwise_steps"),
    ("filter_checks", "out_checks", "state_checks", "launchers", "depthwise_rows"),
    (
        "checks",
        "chunks",
        "window_plan",
        "long_plan",
        "mma_plan",
        "mma_tables",
        "jax_numpy",
        "depthwise_checks",
        "depthwise_numpy",
        "depthwise_matrix",
        "depthwise_plan",
        "indices",
        "jax_depthwise_numpy",
        "jax_inputs",
    ),
    ("vjp_plan", "cluster_plan", "long_vjp_plan"),
    ("launch", "window_vjp_plan", "mma_vjp_plan"),
    ("launch_windows", "launch_long", "launch_mma", "launch_depthwise", "cluster_vjp_plan", "vjp_calls"),
    ("launch_vjp", "launch_cluster", "plans"),
    ("launch_long_vjp", "launch_windows_vjp"),
    ("launch_cluster_vjp",),
    ("gpu",),
    ("execute",),
    ("ahead", "api", "jax_primitives", "jax_states_numpy", "depthwise_execute"),
    ("gradients", "depthwise", "jax_depthwise_primitives", "jax_states_primitives"),
    ("torch_operator", "torch_eager", "jax_depthwise", "jax_states"),
    ("torch_states", "torch_depthwise_batching", "torch_depthwise_operator", "jax"),
    ("torch_batching",),
    ("torch_derivatives",),
    ("torch_states_derivatives", "torch_depthwise_derivatives"),
    ("torch_depthwise",),
    ("torch",),
    ("__init__",),
    ("__main__",),
)
STDLIB_ONLY = (
    "errors",
    "params",
    "problem",
    "remembered",
    "source",
    "archs",
    "blocks",
    "plan",
    "kernel_matrix",
    "chunks",
    "vjp_plan",
    "window_plan",
    "depthwise_problem",
    "cluster_blocks",
    "cluster_plan",
    "triple_blocks",
    "long_blocks",
    "long_params",
    "long_plan",
    "long_schedule",
    "long_vjp_plan",
    "mma_blocks",
    "mma_params",
    "mma_plan",
    "cache",
    "_version",
)
FRAMEWORKS = ("cupy", "cupyx", "torch", "jax")
# Imported by who has the framework only.
JAX_MODULES = (
    "jax",
    "jax_depthwise",
    "jax_depthwise_numpy",
    "jax_depthwise_primitives",
    "jax_inputs",
    "jax_numpy",
    "jax_primitives",
    "jax_states",
    "jax_states_numpy",
    "jax_states_primitives",
)
TORCH_MODULES = (
    "torch",
    "torch_batching",
    "torch_eager",
    "torch_states",
    "torch_states_derivatives",
    "torch_depthwise",
    "torch_depthwise_batching",
    "torch_depthwise_derivatives",
    "torch_depthwise_operator",
    "torch_derivatives",
    "torch_operator",
)
FRAMEWORK_MODULES = JAX_MODULES + TORCH_MODULES

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def imports_of(module: str) -> list[tuple[str, ast.stmt]]:
    """Return every import of a module, wherever in it: (dotted name, statement)."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            if node.module == "fftconv_cupy":
                found += [(f"fftconv_cupy.{alias.name}", node) for alias in node.names]
            else:
                found.append((str(node.module), node))
    return found


def test_every_module_has_a_layer():
    assert sorted(LAYER_OF) == MODULES


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_imports_go_down(module):
    for name, node in imports_of(module):
        package, _, inner = name.partition(".")
        if package == "fftconv_cupy" and inner not in ("kernels", "__version__"):
            inner = inner.partition(".")[0]
            for own in (JAX_MODULES, TORCH_MODULES):
                assert inner not in own or module in own, f"{module}, line {node.lineno}: imports {name}"
            assert LAYER_OF.get(inner, 99) < LAYER_OF[module], f"{module}, line {node.lineno}: imports {name}"


@pytest.mark.parametrize("module", STDLIB_ONLY)
def test_the_plain_modules_import_the_standard_library_only(module):
    for name, node in imports_of(module):
        package, _, inner = name.partition(".")
        allowed = package in sys.stdlib_module_names or inner in STDLIB_ONLY
        assert allowed, f"{module}, line {node.lineno}: imports {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if name not in FRAMEWORK_MODULES])
def test_frameworks_are_imported_in_one_place(module):
    for name, node in imports_of(module):
        package = name.partition(".")[0]
        if package in FRAMEWORKS:
            assert (module, package) == ("dependencies", "cupy"), f"{module}, line {node.lineno}: imports {name}"
            assert node.col_offset > 0, "imported only when asked for"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_each_module_imports_alone_and_without_frameworks():
    """Each in a process of its own, forked from one that has what the library depends on, and nothing of itself."""
    names = [f"fftconv_cupy.{name}" for name in MODULES if not name.startswith("__") and name not in FRAMEWORK_MODULES]
    names += ["fftconv_cupy", "fftconv_cupy.kernels", "fftconv_cupy.cli", "fftconv_cupy.benchmarks"]
    run(
        f"""
import importlib, os, sys
import click, ml_dtypes, numpy
sys.modules.update(dict.fromkeys({FRAMEWORKS!r}))
assert "fftconv_cupy" not in sys.modules
for name in {names!r}:
    child = os.fork()
    if not child:
        importlib.import_module(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
    )


def test_frameworks_come_in_with_their_arrays():
    check = f"assert not {{name.partition('.')[0] for name in sys.modules}} & set({FRAMEWORKS!r})"
    run(
        "import sys, numpy as np, fftconv_cupy;"
        "u, k = np.ones((2, 3, 16), np.float32), np.ones((3, 5), np.float32);"
        "p = fftconv_cupy.prepare_filter(k, seqlen=16);"
        "fftconv_cupy.fftconv(u, k, out=np.empty_like(u)); fftconv_cupy.fftconv(u, p);"
        f"print(fftconv_cupy.plan(8, 768, 4096, 4096, arch='sm_90')); {check}"
    )


@pytest.mark.parametrize("module", ["fftconv_cupy", "fftconv_cupy.torch as fftconv_cupy"])
def test_a_torch_call_imports_no_other_framework(module):
    pytest.importorskip("torch")
    run(
        f"import warnings; warnings.simplefilter('ignore'); import sys, torch, {module};"
        "fftconv_cupy.fftconv(torch.ones(2, 3, 16), torch.ones(3, 5));"
        "assert 'cupy' not in sys.modules and 'jax' not in sys.modules"
    )


def test_public_names():
    assert sorted(fftconv_cupy.__all__) == fftconv_cupy.__all__
    for name in fftconv_cupy.__all__:
        assert hasattr(fftconv_cupy, name)
    assert (PACKAGE / "py.typed").is_file()
