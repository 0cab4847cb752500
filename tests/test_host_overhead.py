"""Warm calls launch what they need and nothing else, through every way into the library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cupy")
pytest.importorskip("torch")


def test_launches_of_warm_calls() -> None:
    # In a process of its own: it changes what torch's tensors say of themselves.
    script = Path(__file__).with_name("host_overhead.py")
    done = subprocess.run([sys.executable, script, "20"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = {line[:46].strip(): int(line[46:].split()[0]) for line in done.stdout.splitlines()}
    assert found == {
        "CuPy, prepared filter": 1,
        "CuPy, taps": 2,
        "CuPy, gradients": 3,
        "torch, prepared filter": 1,
        "torch, taps": 2,
        "torch's operator, prepared filter": 1,
        "torch's operator, taps": 2,
        "torch's operator, prepared filter, with grad": 1,
        "torch's operator, taps, with grad": 2,
        "torch's operator, taps, and backward": 5,
    }
