"""Shared by all tests: GPU tests skip with a reason, random numbers are seeded from the test's name."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from fftconv_cupy.benchmarks.environment import gpu_count

# What JAX compiles here runs once or twice, on small arrays: without optimisation a test takes a quarter less.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    reason = gpu_count()[1] if gpu_items else ""
    if reason:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator whose seed is the test's own name: the same numbers in every run and in every order."""
    digest = hashlib.sha256(request.node.nodeid.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
