"""Runs cases on rows that outgrow a block: on the host runtime, through the API, with blocks of little memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from host_runtime.cupy_host import to_cupy, to_numpy
from host_runtime.harness import ORDERS
from kernel_runs import Placed, describe, host_gpu, place_all
from vjp_kernel_cases import judge, make_dy

from fftconv_cupy import (
    fftconv,
    fftconv_vjp,
    gpu,
    launch_long,
    launch_long_vjp,
    long_plan,
    long_schedule,
    long_vjp_plan,
    numeric,
    prepare_filter,
)
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case, Inputs, gradients_of, make_inputs, reference_of
from fftconv_cupy.blocks import BLOCK_CONFIGS, COMPLEX_BYTES
from fftconv_cupy.long_blocks import LongConfig
from fftconv_cupy.long_plan import LongPlan
from fftconv_cupy.long_vjp_plan import LongVjpPlan
from fftconv_cupy.problem import Gradients

ROWS = (2048, 4096, 8192)
LONG_FFT_SIZE = 65536


@dataclass(frozen=True, slots=True)
class LongCase:
    """A case, and how it is run.

    Attributes:
        case: the convolution.
        row_points: that a block can hold, on this GPU.
        bytes_in_l2: for what lies between the phases; None means the library's limit.
        wrt: the gradients that are asked for; None means all.
        is_half: what lies between the phases of 16-bit rows is float16, as of an FFT size above 32768.
    """

    case: Case
    row_points: int = ROWS[0]
    bytes_in_l2: int | None = None
    wrt: tuple[str, ...] | None = None
    is_half: bool = False

    @property
    def label(self) -> str:
        return f"{self.case.label} by rows of {self.row_points}, {self.bytes_in_l2} bytes in L2"


@contextlib.contextmanager
def long_gpu(long_case: LongCase, *, order: str = ORDERS[0], race_check: bool = False) -> Iterator[None]:
    """Play a GPU whose blocks hold rows of so many points only; no row is cut into windows."""
    shared_bytes = LongConfig(BLOCK_CONFIGS[long_case.row_points], 1).shared_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "sm_90", replace(ARCHS["sm_90"], block_shared_bytes=shared_bytes))
        patch.setattr(gpu, "cut_of", lambda problem, limits: None)
        if long_case.is_half:
            patch.setattr(long_plan, "_LONG_FFT_SIZE", 0)
            patch.setattr(long_vjp_plan, "_INTERMEDIATE", "float16")
        if long_case.bytes_in_l2 is not None:
            patch.setattr(long_schedule, "_BYTES_IN_L2", long_case.bytes_in_l2)
        with host_gpu("sm_90", order=order, race_check=race_check):
            yield


def run(
    long_case: LongCase, inputs: Inputs | None = None, *, order: str = ORDERS[0], race_check: bool = False
) -> tuple[np.ndarray, LongPlan]:
    """Run a case; return the output and the plan of the call."""
    case = long_case.case
    inputs = make_inputs(case) if inputs is None else inputs
    with long_gpu(long_case, order=order, race_check=race_check):
        arguments, out = place_all(case, inputs)
        fftconv(**arguments)
        *_, launcher = launch_long._launchers.values()  # the one before may be that of the prepared filter
        return out.take(), launcher.plan


def check(long_case: LongCase, *, orders: tuple[str, ...] = ORDERS, race_check: bool = False) -> LongPlan:
    """Run a case in several orders: the same bits in each, and within the bounds of `numeric`; return the plan."""
    case = long_case.case
    inputs = make_inputs(case)
    results = []
    for order in orders:
        print(long_case.label, order)  # seen where a test fails
        y, made = run(long_case, inputs, order=order, race_check=race_check)
        results.append(y)
    assert all(y.tobytes() == results[0].tobytes() for y in results), "the order of the threads changes the result"
    agreement = compare(long_case, results[0], reference_of(case, inputs))
    assert agreement.ok, f"{describe(agreement)}: {long_case.label}"
    return made


def compare(long_case: LongCase, y: np.ndarray, y64: np.ndarray) -> numeric.Agreement:
    """Compare an output with float64, by the bound of an FFT size that the library treats as this case is treated."""
    fft_size = LONG_FFT_SIZE if long_case.is_half else min(long_case.case.problem.fft_size, LONG_FFT_SIZE // 2)
    return numeric.compare(y, y64, long_case.case.dtype, fft_size=fft_size)


def run_vjp(
    long_case: LongCase,
    inputs: Inputs | None = None,
    dy: np.ndarray | None = None,
    *,
    order: str = ORDERS[0],
    race_check: bool = False,
) -> tuple[Gradients, LongVjpPlan]:
    """Run a case's gradients; return them and the plan of the call."""
    case = long_case.case
    inputs = make_inputs(case) if inputs is None else inputs
    dy = make_dy(case) if dy is None else dy

    def place(host: np.ndarray | None, layout: str = "packed") -> Any:
        return None if host is None else Placed.of(host, layout).array

    with long_gpu(long_case, order=order, race_check=race_check):
        k = to_cupy(inputs.k) if case.shared_filter else place(inputs.k[None], "channel-strided")[0]
        if case.prepared:
            k = prepare_filter(k, seqlen=case.seqlen, mode=case.mode, fft_size=case.fft_size)
        grads = fftconv_vjp(
            place(dy),
            place(inputs.u, case.layout),
            k,
            mode=case.mode,
            fft_size=case.fft_size,
            in_gate=place(inputs.in_gate),
            out_gate=place(inputs.out_gate),
            skip=None if inputs.skip is None else to_cupy(inputs.skip),
            wrt=long_case.wrt,
        )
        (launcher,) = launch_long_vjp._launchers.values()
        return Gradients(*(None if grad is None else to_numpy(grad).copy() for grad in grads)), launcher.plan


def check_vjp(long_case: LongCase, *, orders: tuple[str, ...] = ORDERS, race_check: bool = False) -> LongVjpPlan:
    """Run a case's gradients in several orders: the same bits in each, and within the bounds; return the plan."""
    case = long_case.case
    inputs, dy = make_inputs(case), make_dy(case)
    results = []
    for order in orders:
        print(long_case.label, order)  # seen where a test fails
        grads, made = run_vjp(long_case, inputs, dy, order=order, race_check=race_check)
        results.append(grads)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is two is None or one.tobytes() == two.tobytes(), "the order of the threads changes the result"
    judge(case, results[0], gradients_of(replace(case, wrt=long_case.wrt), inputs, dy))
    return made


def bytes_of(points: int, rows: int) -> int:
    """Return the bytes of the points of so many rows."""
    return rows * points * COMPLEX_BYTES
