"""Running cases that are cut into windows through the API, on the host runtime, and what they should give."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from host_runtime import cupy_host
from host_runtime.cupy_host import to_cupy, to_numpy
from host_runtime.harness import ORDERS, require_compiler
from kernel_runs import Placed, _loader, describe
from vjp_kernel_cases import judge

from fftconv_cupy import fftconv, fftconv_vjp, launch_windows, launch_windows_vjp, numeric, prepare_filter, window_plan
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.benchmarks.problems import Case, gradients_of, make_inputs, make_output_gradient, reference_of
from fftconv_cupy.blocks import BLOCK_CONFIGS
from fftconv_cupy.problem import Gradients


@contextlib.contextmanager
def windows_gpu(
    points: int, arch: str = "sm_90", *, order: str = ORDERS[0], race_check: bool = False
) -> Iterator[None]:
    """Play a GPU on which every row is cut into windows of `points` complex points."""
    require_compiler()

    def only(limits: ArchLimits) -> list[Any]:
        return [BLOCK_CONFIGS[points]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_host, "host_loader", _loader)
        patch.setattr(window_plan, "fitting_configs", only)
        patch.setattr(window_plan, "_whole_cost", lambda *_: (math.inf, "whole rows"))
        window_plan.cut_of.cache_clear()
        try:
            with cupy_host.host_backed_gpu(arch, order=order, race_check=race_check):
                yield
        finally:
            window_plan.cut_of.cache_clear()


def arguments_of(case: Case) -> dict[str, Any]:
    """Return the arguments of `fftconv` as CuPy arrays, each in a buffer of poison: beside u as its layout says."""
    inputs = make_inputs(case)

    def place(host: np.ndarray | None, layout: str) -> Any:
        return None if host is None else Placed.of(host, layout).array

    return {
        "u": place(inputs.u, case.layout),
        "k": to_cupy(inputs.k) if case.shared_filter else place(inputs.k[None], "channel-strided")[0],
        "in_gate": place(inputs.in_gate, "batch-strided"),
        "out_gate": place(inputs.out_gate, "transposed"),
        "skip": None if inputs.skip is None else to_cupy(inputs.skip),
        "mode": case.mode,
        "fft_size": case.fft_size,
    }


def run(case: Case, points: int, **gpu: Any) -> np.ndarray:
    """Convolve window by window; fail where something beside the output was written."""
    with windows_gpu(points, **gpu):
        arguments = arguments_of(case)
        if case.prepared:
            arguments["k"] = prepare_filter(arguments["k"], seqlen=case.seqlen, mode=case.mode, fft_size=case.fft_size)
            assert arguments["k"].strategy == "windows"
        out = Placed.poisoned((case.batch, case.channels, case.problem.out_len), case.dtype, "channel-strided")
        fftconv(**arguments, out=out.array)
        assert launch_windows._launchers, "rows were not cut"
        return out.take()


def run_vjp(case: Case, points: int, **gpu: Any) -> Gradients:
    """Return the gradients that a case asks for, as NumPy arrays."""
    with windows_gpu(points, **gpu):
        dy = Placed.of(make_output_gradient(case), "transposed").array
        grads = fftconv_vjp(dy, **arguments_of(case), wrt=case.wrt)
        assert launch_windows_vjp._launchers or launch_windows._launchers, "rows were not cut"
        return Gradients(*(None if grad is None else to_numpy(grad).copy() for grad in grads))


def check(case: Case, points: int, *, orders: tuple[str, ...] = ORDERS[:1], race_check: bool = False) -> None:
    """Convolve in several orders of threads: the same bits in each, within the bounds."""
    results = [run(case, points, order=order, race_check=race_check) for order in orders]
    assert all(y.tobytes() == results[0].tobytes() for y in results), "the order of the threads changes the result"
    y64 = reference_of(case, make_inputs(case))
    found = numeric.compare(results[0], y64, case.dtype, fft_size=case.problem.fft_size)
    assert found.ok, f"{describe(found)}: {case.label}"


def check_vjp(case: Case, points: int, *, orders: tuple[str, ...] = ORDERS[:1], race_check: bool = False) -> None:
    """Compute gradients likewise."""
    results = [run_vjp(case, points, order=order, race_check=race_check) for order in orders]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is two is None or one.tobytes() == two.tobytes(), "the order of the threads changes the result"
    grads64 = gradients_of(case, make_inputs(case), make_output_gradient(case))
    judge(case, results[0], grads64)
