"""The examples and the README's snippets run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SNIPPETS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


def test_quickstart_agrees_with_direct_sums():
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "quickstart.py")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("input: the first 16384 bytes of argparse.py")
    names = [line.partition(":")[0].split(" on ")[0] for line in lines[1:-1]]
    assert names == ["NumPy", "CuPy", "torch", "JAX"]
    assert lines[-1].endswith("fine")


@pytest.mark.parametrize("number", range(4), ids=["torch", "jax", "cupy", "numpy"])
def test_snippets_of_the_readme(number):
    """Run on the CPU: the GPU's snippets with NumPy or CPU arrays in their place, and fewer channels."""
    framework = ("torch", "jax", "numpy", "numpy")[number]
    pytest.importorskip(framework)
    code = SNIPPETS[number].replace(', device="cuda"', "").replace("768", "4")
    code = code.replace("import cupy\n", "import numpy as cupy\n")
    names: dict[str, object] = {}
    exec(code, names)
    stated = re.search(r"# \((\d+(?:, \d+)*)\)$", SNIPPETS[number], re.MULTILINE)
    if stated:
        assert names["y"].shape == tuple(map(int, stated[1].split(", ")))
