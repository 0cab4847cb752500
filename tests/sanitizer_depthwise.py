"""The depthwise kernels for ``sanitizer_slice.py``: a call of each variant, and whether its results are right."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from depthwise_kernel_cases import DepthwiseCase, DepthwiseInputs, Exact, make_inputs

from fftconv_cupy import depthwise_conv1d, depthwise_conv1d_update, depthwise_conv1d_vjp
from fftconv_cupy.numeric import compare, compare_sum

_CASES = tuple(
    DepthwiseCase(
        (2, 40 - seqlen % 2, seqlen, width),  # odd lengths go with rows that begin anywhere, in both layouts
        "causal" if special != "none" else "same",
        dtype,
        weight_dtype="float16",
        bias_dtype=None if seqlen == 72 else "float32",
        layout=layout,
        activation=("silu", None)[width % 2],
        special=special,
    )
    for layout in ("BHL", "BLH")
    for dtype, seqlen, width, special in (
        ("float16", 200, 4, "none"),
        ("float16", 203, 4, "none"),
        ("float32", 1003, 5, "none"),
        ("float16", 72, 8, "none"),
        ("float16", 72, 16, "none"),
        ("float16", 301, 70, "none"),
        ("bfloat16", 304, 70, "none"),
        ("float32", 304, 128, "none"),
        ("float16", 72, 4, "states"),
        ("float16", 72, 5, "seq_idx"),
        ("float16", 73, 5, "seq_idx"),
    )
)

_UPDATES = ((4, "float32"), (4, None), (1, None))  # taps, dtype of the bias


def _rows(case: DepthwiseCase, array: np.ndarray) -> np.ndarray:
    """Return an array of rows in the layout of the case, or one in it as rows."""
    return array if case.layout == "BHL" else array.transpose(0, 2, 1)


def _on_gpu(case: DepthwiseCase, inputs: DepthwiseInputs) -> dict[str, Any]:
    arrays = {name: array for name, array in inputs._asdict().items() if array is not None}
    return {
        name: cupy.asarray(np.ascontiguousarray(_rows(case, array)) if name in ("x", "dy") else array)
        for name, array in arrays.items()
    }


def check(case: DepthwiseCase) -> list[str]:
    """Compute outputs and gradients; return what is wrong."""
    inputs = make_inputs(case)
    arrays, exact = _on_gpu(case, inputs), Exact(case, inputs)
    options = {"padding": case.padding, "activation": case.activation, "layout": case.layout}
    dy, d_final_state = arrays.pop("dy"), arrays.pop("d_final_state", None)
    has_state = case.problem.has_final_state
    y = depthwise_conv1d(**arrays, **options, return_final_state=has_state)
    y = y[0] if has_state else y
    grads = depthwise_conv1d_vjp(dy, **arrays, **options, d_final_state=d_final_state)
    found = {"output": compare(_rows(case, cupy.asnumpy(y)), exact.outputs(), case.dtype)}
    for name, grad, grad64 in zip(grads._fields, grads, exact.gradients(), strict=True):
        if grad is not None:
            values = _rows(case, cupy.asnumpy(grad)) if name == "x" else cupy.asnumpy(grad)
            judge = compare_sum if name in ("weight", "bias") else compare
            found[f"gradient of {name}"] = judge(values, grad64, str(values.dtype))
    return [f"{case.label}, {name}: {one.error:.2e}" for name, one in found.items() if not one.ok]


def check_update(width: int, bias_dtype: str | None) -> list[str]:
    """Decode a step at a time and hold the outputs against those of the whole sequence; return what is wrong."""
    special = "initial" if width > 1 else "none"
    case = DepthwiseCase((3, 130, 9, width), bias_dtype=bias_dtype, activation="silu", special=special)
    inputs = make_inputs(case)
    arrays = _on_gpu(case, inputs)
    x, weight, bias = arrays["x"], arrays["weight"], arrays.get("bias")
    state = arrays["initial_state"].copy() if width > 1 else cupy.zeros((3, 130, 1), x.dtype)  # which no tap reads
    steps = [
        depthwise_conv1d_update(cupy.ascontiguousarray(x[..., t]), state, weight, bias, activation="silu")
        for t in range(case.sizes[2])
    ]
    y = np.stack([cupy.asnumpy(step) for step in steps], axis=-1)
    found = compare(y, Exact(case, inputs).outputs(), case.dtype)
    return [] if found.ok else [f"{case.label}, update: {found.error:.2e}"]


def check_all() -> tuple[int, list[str]]:
    """Return how many calls were made, and what is wrong."""
    wrong = [line for case in _CASES for line in check(case)]
    for width, bias_dtype in _UPDATES:
        wrong += check_update(width, bias_dtype)
    return len(_CASES) + len(_UPDATES), wrong
