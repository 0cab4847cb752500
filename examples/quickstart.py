"""Convolve a real byte sequence with NumPy, CuPy, torch and JAX arrays, and compare with sums written out in float64.

The sequence is source text of Python's own standard library. Each byte value gets a vector of 64 channels, each channel
a causal filter that decays at its own rate. What is not installed, or has no GPU, is skipped and said to be.

    python examples/quickstart.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fftconv_cupy

LENGTH = 16384
CHANNELS = 64
SAMPLED = 200  # outputs a channel that are summed directly
TOLERANCE = 1e-6  # float32


def byte_sequence() -> np.ndarray:
    """Return the first bytes of a module of the standard library, as integers (LENGTH,)."""
    path = Path(argparse.__file__)
    text = path.read_bytes()
    if len(text) < LENGTH:
        sys.exit(f"{path} has only {len(text)} bytes")
    print(f"input: the first {LENGTH} bytes of {path.name} of Python {sys.version.split()[0]}")
    return np.frombuffer(text[:LENGTH], dtype=np.uint8)


def embed(sequence: np.ndarray) -> np.ndarray:
    """Return u (1, CHANNELS, LENGTH) float32: a random vector for each byte value."""
    vectors = np.random.default_rng(0).standard_normal((256, CHANNELS), dtype=np.float32)
    return np.ascontiguousarray(vectors[sequence].T[None])


def decaying_filters() -> np.ndarray:
    """Return k (CHANNELS, LENGTH) float32: exponentials that fall to 1/e within 10 to 10,000 characters."""
    rates = np.geomspace(1 / 10, 1 / 10_000, CHANNELS)
    lags = np.arange(LENGTH)
    return (rates[:, None] * np.exp(-rates[:, None] * lags)).astype(np.float32)


def disagreement(y: np.ndarray, u: np.ndarray, k: np.ndarray) -> float:
    """Return the relative error of y (1, CHANNELS, LENGTH) on sampled outputs, each summed directly in float64."""
    u64, k64 = u[0].astype(np.float64), k.astype(np.float64)
    times = np.unique(np.linspace(0, LENGTH - 1, SAMPLED).astype(int))
    direct = np.stack([(u64[:, : t + 1] * k64[:, t::-1]).sum(axis=-1) for t in times], axis=-1)
    return float(np.linalg.norm(y[0][:, times] - direct) / np.linalg.norm(direct))


def frameworks() -> Iterator[tuple[str, Callable[[np.ndarray], Any] | None, Callable[[Any], np.ndarray], str]]:
    """Yield for each framework: name, how to get an array in and out of it, and why it is skipped where it is."""
    yield "NumPy", np.asarray, np.asarray, ""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        yield "CuPy", cupy.asarray, cupy.asnumpy, ""
    except ImportError:
        yield "CuPy", None, np.asarray, "not installed"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        yield "CuPy", None, np.asarray, f"no GPU ({error})"
    try:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield f"torch on {device}", lambda a: torch.from_numpy(a).to(device), lambda t: t.cpu().numpy(), ""
    except ImportError:
        yield "torch", None, np.asarray, "not installed"
    try:
        import jax

        yield f"JAX on {jax.default_backend()}", jax.numpy.asarray, np.asarray, ""
    except ImportError:
        yield "JAX", None, np.asarray, "not installed"


def main() -> None:
    """Run every framework that is there; exits with 1 where one disagrees."""
    u, k = embed(byte_sequence()), decaying_filters()
    worst = 0.0
    for name, put, get, reason in frameworks():
        if put is None:
            print(f"{name}: skipped, {reason}")
            continue
        y = fftconv_cupy.fftconv(put(u), put(k), mode="causal")
        error = disagreement(get(y), u, k)
        worst = max(worst, error)
        print(f"{name}: {type(y).__module__}.{type(y).__name__} of shape {tuple(y.shape)}, off by {error:.1e}")
    agrees = worst <= TOLERANCE
    print(f"relative disagreement with direct float64 sums: {worst:.1e}, {'fine' if agrees else 'TOO MUCH'}")
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
