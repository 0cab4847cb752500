"""Runs the depthwise kernels on the host runtime, on arrays that lie in memory as a case says."""

from __future__ import annotations

from typing import Any

import numpy as np
from depthwise_kernel_cases import DepthwiseCase, DepthwiseInputs, Exact, make_inputs
from host_runtime.cupy_host import to_cupy
from host_runtime.harness import ORDERS
from kernel_runs import Placed, describe, host_gpu

from fftconv_cupy import launch_depthwise, numeric
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.depthwise_problem import DepthwiseGradients
from fftconv_cupy.readers import NUMPY_DTYPES


def view_of(array: Any, dtype: str) -> ArrayView:
    """Return the view of a CuPy array in host memory."""
    strides = tuple(stride // array.dtype.itemsize for stride in array.strides)
    return ArrayView(array.data.ptr, array.shape, strides, dtype, 0, "cupy", array)


def _place_rows(case: DepthwiseCase, host: np.ndarray) -> Placed:
    return Placed.of(host if case.layout == "BHL" else host.transpose(0, 2, 1), case.placing)


def _take_rows(case: DepthwiseCase, placed: Placed) -> np.ndarray:
    values = placed.take()
    return values if case.layout == "BHL" else values.transpose(0, 2, 1)


def small(host: np.ndarray | None, dtype: str | None) -> ArrayView | None:
    """Place an array of one axis; a dtype of None means int32."""
    return None if host is None else view_of(to_cupy(host), dtype or "int32")


def strided(host: np.ndarray, dtype: str) -> ArrayView:
    """Place the taps, or a state, so that no stride is 1."""
    spread = to_cupy(np.repeat(host, 2, axis=-1))
    return view_of(spread[..., ::2], dtype)


def run_outputs(
    case: DepthwiseCase, inputs: DepthwiseInputs, *, order: str = ORDERS[0], race_check: bool = False
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Run a case; return the outputs, the final state, and the entries of the kernels."""
    problem = case.problem
    with host_gpu(case.arch, order=order, race_check=race_check):
        out = _place_rows(case, np.full_like(inputs.dy, np.nan))
        final = None
        if problem.has_final_state:
            final = Placed.poisoned((*inputs.x.shape[:2], problem.width - 1), case.dtype, "odd")
        launch_depthwise.run(
            problem,
            view_of(_place_rows(case, inputs.x).array, case.dtype),
            strided(inputs.weight, case.weight_dtype),
            small(inputs.bias, case.bias_dtype),
            small(inputs.seq_idx, None),
            None if inputs.initial_state is None else strided(inputs.initial_state, case.dtype),
            view_of(out.array, case.dtype),
            None if final is None else view_of(final.array, case.dtype),
            0,
        )
        (launcher,) = launch_depthwise._launchers.values()
        entries = [step.spec.entry for step in launcher.plan.steps]
        return _take_rows(case, out), None if final is None else final.take(), entries


def run_gradients(
    case: DepthwiseCase, inputs: DepthwiseInputs, *, order: str = ORDERS[0], race_check: bool = False
) -> tuple[DepthwiseGradients, list[str]]:
    """Run the gradients of a case; return them, and the entries of the kernels."""
    problem, wanted = case.problem, case.wanted_gradients
    with host_gpu(case.arch, order=order, race_check=race_check):
        shapes = (inputs.weight.shape, (problem.channels,), (*inputs.x.shape[:2], problem.width - 1))
        dtypes = (case.weight_dtype, case.bias_dtype or "", case.dtype)
        placed: list[Placed | None] = [_place_rows(case, np.full_like(inputs.x, np.nan)) if wanted.x else None]
        for shape, dtype, is_wanted in zip(shapes, dtypes, wanted[1:], strict=True):
            buffer = to_cupy(np.full(shape, np.nan, NUMPY_DTYPES[dtype])) if is_wanted else None
            placed.append(None if buffer is None else Placed(buffer, buffer))
        views = [
            None if one is None else view_of(one.array, dtype)
            for one, dtype in zip(placed, (case.dtype, *dtypes), strict=True)
        ]
        launch_depthwise.run_vjp(
            problem,
            wanted,
            view_of(_place_rows(case, inputs.dy).array, case.dtype),
            view_of(_place_rows(case, inputs.x).array, case.dtype),
            strided(inputs.weight, case.weight_dtype),
            small(inputs.bias, case.bias_dtype),
            small(inputs.seq_idx, None),
            None if inputs.initial_state is None else strided(inputs.initial_state, case.dtype),
            None if inputs.d_final_state is None else strided(inputs.d_final_state, case.dtype),
            DepthwiseGradients(*views),
            0,
        )
        (launcher,) = launch_depthwise._launchers.values()
        entries = [step.spec.entry for step in launcher.plan.steps]
        d_x = None if placed[0] is None else _take_rows(case, placed[0])
        return DepthwiseGradients(d_x, *(None if one is None else one.take() for one in placed[1:])), entries


def check_outputs(case: DepthwiseCase, *, orders: tuple[str, ...] = ORDERS, race_check: bool = False) -> list[str]:
    """Run a case in several orders: the same bits in each, and within the bounds; return the kernels' entries."""
    inputs = make_inputs(case)
    results = []
    for order in orders:
        print(case.label, order)  # seen where a test fails
        y, final, entries = run_outputs(case, inputs, order=order, race_check=race_check)
        results.append((y.tobytes(), None if final is None else final.tobytes()))
    assert all(result == results[0] for result in results), "the order of the threads changes the result"
    exact = Exact(case, inputs)
    found = numeric.compare(y, exact.outputs(), case.dtype)
    assert found.ok, f"{describe(found)}: {case.label}"
    if final is not None:
        assert (final.astype(np.float64) == exact.final_state()).all()
    return entries


def check_gradients(case: DepthwiseCase, *, orders: tuple[str, ...] = ORDERS, race_check: bool = False) -> list[str]:
    """Run the gradients of a case as `check_outputs` the outputs: only those that are wanted come."""
    inputs = make_inputs(case)
    results = []
    for order in orders:
        print(case.label, order)  # seen where a test fails
        grads, entries = run_gradients(case, inputs, order=order, race_check=race_check)
        results.append([None if grad is None else grad.tobytes() for grad in grads])
    assert all(result == results[0] for result in results), "the order of the threads changes the result"
    dtypes = {"weight": case.weight_dtype, "bias": case.bias_dtype}
    for name, grad, exact in zip(DepthwiseGradients._fields, grads, Exact(case, inputs).gradients(), strict=True):
        assert (grad is not None) == getattr(case.wanted_gradients, name)
        if grad is None:
            continue
        compare = numeric.compare_sum if name in dtypes else numeric.compare
        found = compare(grad, exact, dtypes.get(name) or case.dtype)
        assert found.ok, f"{name}: {describe(found)}: {case.label}"
    return entries
