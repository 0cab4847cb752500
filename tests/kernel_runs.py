"""Runs a case on the host runtime through the API, on arrays that lie in memory as it says."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from kernel_cases import KernelCase

try:
    import cupy
except ImportError:
    if os.environ.get("CI", "").lower() == "true":
        raise
    pytest.skip("CuPy holds the arrays of these tests: pip install 'fftconv-cupy[cuda12]'", allow_module_level=True)

from host_runtime import cupy_host
from host_runtime.cupy_host import to_cupy, to_numpy
from host_runtime.harness import ORDERS, host_loader, require_compiler

from fftconv_cupy import fftconv, launch, mma_plan, numeric, prepare_filter, window_plan
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case, Inputs, make_inputs, reference_of
from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.mma_blocks import MMA_CONFIGS
from fftconv_cupy.plan import Plan, block_config, make_plan
from fftconv_cupy.readers import NUMPY_DTYPES

# name: (shape of the buffer, the array in it); what lies beside the array is poison.
_LAYOUTS: dict[str, tuple[Any, Any]] = {
    "packed": (lambda b, h, n: (b, h, n), lambda a: a),
    "batch-strided": (lambda b, h, n: (2 * b, h, n), lambda a: a[1::2]),
    "channel-strided": (lambda b, h, n: (b, 3 * h, n), lambda a: a[:, 1::3]),
    "transposed": (lambda b, h, n: (h, b, n), lambda a: a.transpose(1, 0, 2)),
    "reversed": (lambda b, h, n: (b, h + 1, n), lambda a: a[::-1, :0:-1]),
    "even": (lambda b, h, n: (b, h, n + 4), lambda a: a[..., 2:-2]),  # not at multiples of 16 bytes
    "odd": (lambda b, h, n: (b, h, n + 3), lambda a: a[..., 1:-2]),  # not even at multiples of two elements
}
_ALIGNED = tuple(_LAYOUTS)[:-2]

_loader = cache(host_loader)
_PLANNER = sys.modules[make_plan.__module__]  # the package's attribute "plan" is the function


@dataclass(frozen=True, slots=True)
class Placed:
    """An array in a buffer whose other elements are poison: NaNs of a bit pattern that arithmetic does not produce."""

    buffer: Any
    array: Any

    @classmethod
    def of(cls, host: np.ndarray, layout: str) -> Placed:
        """Place a copy of a (B, H, n) array; with "broadcast" a stride of 0 along the batch is kept."""
        if layout == "broadcast" and host.strides[0] == 0:
            buffer = to_cupy(host[:1])
            return cls(buffer, cupy.broadcast_to(buffer, host.shape))
        shape_of, array_of = _LAYOUTS[layout if layout in _LAYOUTS else "packed"]
        poisoned = np.empty(shape_of(*host.shape), host.dtype)
        poisoned.view(np.uint8).fill(0xFF)
        buffer = to_cupy(poisoned)
        array = array_of(buffer)
        to_numpy(array)[...] = host
        return cls(buffer, array)

    @classmethod
    def poisoned(cls, shape: tuple[int, ...], dtype: str, layout: str) -> Placed:
        """Place an output, which is poison too."""
        poison = np.empty(shape, NUMPY_DTYPES[dtype])
        poison.view(np.uint8).fill(0xFF)
        return cls.of(poison, layout)

    def take(self) -> np.ndarray:
        """Return a copy of the array; fail where its buffer was written beside it."""
        values = to_numpy(self.array).copy()
        to_numpy(self.array).view(f"u{values.itemsize}")[...] = np.iinfo(f"u{values.itemsize}").max
        assert (to_numpy(self.buffer).view(np.uint8) == 0xFF).all(), "written beside the output"
        return values


def place_all(case: Case, inputs: Inputs, precision: str | None = None) -> tuple[dict[str, Any], Placed]:
    """Return the arguments of `fftconv` and the output; u lies as the case says, the others in other ways.

    The precision is that of the case where none is given.
    """
    precision = precision or case.precision

    def place(host: np.ndarray | None, turn: int) -> Any:
        if host is None:
            return None
        layout = case.layout if case.layout == "broadcast" else _ALIGNED[(len(case.label) + turn) % len(_ALIGNED)]
        return Placed.of(host, layout).array

    k = to_cupy(inputs.k) if case.shared_filter else place(inputs.k[None], 4)[0]
    if case.prepared:
        lengths = {"seqlen": case.seqlen, "fft_size": case.fft_size}
        k = prepare_filter(k, mode=case.mode, **lengths, precision=precision)
    outputs = (*inputs.u.shape[:2], case.problem.out_len)
    out = Placed.poisoned(outputs, case.dtype, _ALIGNED[len(case.label) % len(_ALIGNED)])
    arguments = {
        "u": Placed.of(inputs.u, case.layout).array,
        "k": k,
        "in_gate": place(inputs.in_gate, 1),
        "out_gate": place(inputs.out_gate, 2),
        "skip": None if inputs.skip is None else to_cupy(inputs.skip),
        "out": out.array,
    }
    return {**arguments, "mode": case.mode, "fft_size": case.fft_size, "precision": precision}, out


@contextlib.contextmanager
def host_gpu(arch: str = "sm_90", *, order: str = ORDERS[0], race_check: bool = False) -> Iterator[None]:
    """Play a GPU, as `host_backed_gpu`; kernels stay loaded for the next time. Skips without a C++ compiler.

    Rows that fit a block are transformed as a whole, however short their filter is, and on tensor cores wherever there
    is a kernel for that.
    """
    require_compiler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_host, "host_loader", _loader)
        patch.setattr(window_plan, "LEAST_GAIN", math.inf)
        sizes = tuple(MMA_CONFIGS)
        for table in ("FASTER_POINTS", "GRADIENT_POINTS"):
            patch.setattr(mma_plan, table, dict.fromkeys(getattr(mma_plan, table), sizes))
        window_plan.cut_of.cache_clear()
        try:
            with cupy_host.host_backed_gpu(arch, order=order, race_check=race_check):
                yield
        finally:
            window_plan.cut_of.cache_clear()


def run(
    kernel_case: KernelCase, inputs: Inputs | None = None, *, order: str = ORDERS[0], race_check: bool = False
) -> tuple[np.ndarray, Plan]:
    """Run a case through the API; return the output and the plan by which it was computed."""
    case = kernel_case.case
    inputs = make_inputs(case) if inputs is None else inputs
    points = block_config(case.problem, ARCHS[kernel_case.arch])[1].points
    with pytest.MonkeyPatch.context() as patch, host_gpu(kernel_case.arch, order=order, race_check=race_check):
        if kernel_case.split == "channel groups":
            patch.setattr(_PLANNER, "WORKSPACE_LIMIT", 2 * points * COMPLEX_BYTES)
        if kernel_case.split == "grid z":
            patch.setattr(_PLANNER, "GRID_YZ", 2)
        arguments, out = place_all(case, inputs)
        fftconv(**arguments)
        (launcher,) = launch._launchers.values()
        return out.take(), launcher.plan


def describe(agreement: numeric.Agreement) -> str:
    """Return an error and its bound on one line."""
    where = "" if agreement.row is None else f" in row {agreement.row}"
    return f"error {agreement.error:.2g} > {agreement.bound:.2g}{where}"


def check(kernel_case: KernelCase, *, orders: tuple[str, ...] = ORDERS, race_check: bool = False) -> Plan:
    """Run a case in several orders: the same bits in each, and within the bounds of `numeric`; return the plan."""
    case = kernel_case.case
    inputs = make_inputs(case)
    results = []
    for order in orders:
        print(kernel_case.label, order)  # seen where a test fails
        y, made = run(kernel_case, inputs, order=order, race_check=race_check)
        results.append(y)
    assert all(y.tobytes() == results[0].tobytes() for y in results), "the order of the threads changes the result"
    agreement = numeric.compare(results[0], reference_of(case, inputs), case.dtype, fft_size=case.problem.fft_size)
    assert agreement.ok, f"{describe(agreement)}: {kernel_case.label}"
    return made
