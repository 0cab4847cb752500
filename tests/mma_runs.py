"""Runs a case on tensor cores as the host runtime has them, through the API."""

from __future__ import annotations

import numpy as np
from host_runtime.harness import ORDERS
from kernel_runs import describe, host_gpu, place_all

from fftconv_cupy import fftconv, launch_mma, numeric
from fftconv_cupy.benchmarks.problems import Case, Inputs, make_inputs, reference_of
from fftconv_cupy.mma_plan import MmaPlan


def run(
    case: Case,
    precision: str,
    inputs: Inputs | None = None,
    *,
    order: str = ORDERS[0],
    race_check: bool = False,
    arch: str = "sm_90",
) -> tuple[np.ndarray, MmaPlan]:
    """Return the output of a case and the plan by which it was computed, which is one for tensor cores."""
    inputs = make_inputs(case) if inputs is None else inputs
    with host_gpu(arch, order=order, race_check=race_check):
        arguments, out = place_all(case, inputs, precision)
        fftconv(**arguments)
        *_, launcher = launch_mma._launchers.values()  # the first may be that which prepared the filter
        return out.take(), launcher.plan


def check(case: Case, precision: str, inputs: Inputs | None = None, *, orders: tuple[str, ...] = ORDERS) -> MmaPlan:
    """Run a case in several orders: the same bits in each, and within the bounds of `numeric`; return the plan."""
    inputs = make_inputs(case) if inputs is None else inputs
    results = []
    for order in orders:
        print(case.label, precision, order)  # seen where a test fails
        y, made = run(case, precision, inputs, order=order)
        results.append(y)
    assert all(y.tobytes() == results[0].tobytes() for y in results), "the order of the threads changes the result"
    y64 = reference_of(case, inputs)
    agreement = numeric.compare(results[0], y64, case.dtype, precision=precision, is_one_wave=case.is_one_wave)
    assert agreement.ok, f"{describe(agreement)}: {case.label} {precision}"
    return made
