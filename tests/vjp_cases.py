"""Arguments of `fftconv_vjp` for tests, their float64 gradients, and the comparison of the two."""

from __future__ import annotations

from typing import Any

import numpy as np
from frameworks import convert

from fftconv_cupy import Gradients, numeric
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_vjp_reference

NAMES = Gradients._fields


def vjp_case(
    rng: np.random.Generator,
    u_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    mode: str,
    dtype: str,
    flags: int = 7,
    k_dtype: str = "float32",
    skip_dtype: str = "float32",
) -> dict[str, Any]:
    """Return NumPy arrays by the names of their arguments; bits 0, 1, 2 of `flags` are in_gate, out_gate and skip."""

    def random(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype])

    out_shape = (*u_shape[:-1], u_shape[-1] + (k_shape[-1] - 1 if mode == "full" else 0))
    arrays = {"dy": random(out_shape, dtype), "u": random(u_shape, dtype), "k": random(k_shape, k_dtype)}
    optional = {
        "in_gate": random(u_shape, dtype),
        "out_gate": random(out_shape, dtype),
        "skip": random(u_shape[-2:-1] or (1,), skip_dtype),
    }
    return arrays | {name: array for bit, (name, array) in enumerate(optional.items()) if flags >> bit & 1}


def converted(framework: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as arrays of a framework."""
    return {name: convert(framework, array) for name, array in arrays.items()}


def expected(arrays: dict[str, Any], **options: Any) -> Gradients:
    """Return the float64 gradients, each of the shape of its argument."""

    def as_rows(array: np.ndarray) -> np.ndarray:
        return array.reshape((1,) * (3 - array.ndim) + array.shape)

    rows = {name: array if name in ("k", "skip") else as_rows(array) for name, array in arrays.items()}
    grads = fftconv_vjp_reference(**rows, **options)
    return Gradients(
        *(None if g is None else g.reshape(arrays[name].shape) for name, g in zip(NAMES, grads, strict=True))
    )


def agreement(
    name: str, grad: np.ndarray, grad64: np.ndarray, dtype: str, fft_size: int = 0, **options: Any
) -> numeric.Agreement:
    """Compare the gradient of the argument `name` with float64, by the bound that holds for it and its `options`."""
    if name in ("k", "skip"):
        return numeric.compare_sum(grad, grad64, dtype, **options)
    return numeric.compare(grad, grad64, dtype, fft_size=fft_size, **options)
