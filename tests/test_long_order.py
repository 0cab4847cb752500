"""Tasks of the kernels for long rows in another order than that of their numbers, as many blocks at work take them.

The host runtime has one block at a time, which takes all tasks in order. Here each launch does one task only, and the
next one is drawn from the first few that are left; a task that would have to wait is put back. So what a task relies on
must be in what it waits for.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
from host_runtime.harness import HostLoadedKernel, StuckError
from kernel_runs import place_all
from long_cases import LongCase, bytes_of, long_gpu, run_vjp
from vjp_kernel_cases import judge, make_dy

from fftconv_cupy import fftconv, launch_long, numeric
from fftconv_cupy.benchmarks.problems import Case, gradients_of, make_inputs, reference_of

WINDOW = 40  # tasks that may be at work at a time


class _OneByOne:
    """Launches a kernel for each task by itself, in a drawn order."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.put_back = 0

    def __call__(self, kernel: HostLoadedKernel, grid: Any, threads: int, params: Any, *_: Any) -> None:
        next_task = ctypes.cast(params.counters, ctypes.POINTER(ctypes.c_uint))
        left = list(range(params.schedule.tasks))
        while left:
            tried = self.draw.sample(range(min(WINDOW, len(left))), min(WINDOW, len(left)))
            for index in tried:
                next_task[0], params.schedule.tasks = left[index], left[index] + 1
                try:
                    kernel.kernel.launch((1, 1, 1), threads, kernel.smem_bytes, params)
                except StuckError:
                    self.put_back += 1
                    continue
                del left[index]
                break
            else:
                pytest.fail(f"none of the tasks {left[:WINDOW]} can be done")


def _played(monkeypatch: pytest.MonkeyPatch, seed: int) -> _OneByOne:
    one_by_one = _OneByOne(random.Random(seed))

    def launch(self: HostLoadedKernel, *arguments: Any, **_: Any) -> None:
        one_by_one(self, *arguments)

    monkeypatch.setattr(HostLoadedKernel, "launch", launch)
    return one_by_one


# Many slots; a few; no two rows at a time.
@pytest.mark.parametrize("rows_in_l2", [1000, 12, 7, 0])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_tasks_wait_for_all_they_need(monkeypatch: pytest.MonkeyPatch, rows_in_l2: int, is_shared: bool) -> None:
    one_by_one = _played(monkeypatch, rows_in_l2)
    for batch, channels in ((4, 4), (1, 7)):
        case = Case("causal", "float32", 4001, 4096, batch, channels, in_gate=True, shared_filter=is_shared)
        with long_gpu(LongCase(case, bytes_in_l2=bytes_of(4096, rows_in_l2))):
            inputs = make_inputs(case)
            arguments, out = place_all(case, inputs)
            fftconv(**arguments)
            (launcher,) = launch_long._launchers.values()
            agreement = numeric.compare(out.take(), reference_of(case, inputs), "float32")
        assert agreement.ok
        assert launcher.plan.schedule.slots <= batch * channels
    assert one_by_one.put_back > 0


@pytest.mark.parametrize("rows_in_l2", [1000, 16, 9, 0])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_tasks_of_gradients_wait_for_all_they_need(
    monkeypatch: pytest.MonkeyPatch, rows_in_l2: int, is_shared: bool
) -> None:
    one_by_one = _played(monkeypatch, rows_in_l2)
    for batch, channels in ((4, 3), (1, 6)):
        case = Case(
            "circular",
            "float32",
            4001,
            5000,
            batch,
            channels,
            out_gate=True,
            skip_dtype="float32",
            shared_filter=is_shared,
        )
        inputs, dy = make_inputs(case), make_dy(case)
        grads, _ = run_vjp(LongCase(case, bytes_in_l2=bytes_of(4096, rows_in_l2)), inputs, dy)
        judge(case, grads, gradients_of(case, inputs, dy))
    assert one_by_one.put_back > 0


def test_the_sums_have_the_same_bits_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("causal", "float32", 4001, 4096, 7, 2, in_gate=True)
    in_order, made = run_vjp(LongCase(case))
    assert made.schedule.chains > 1
    for seed in (1, 2):
        _played(monkeypatch, seed)
        drawn, _ = run_vjp(LongCase(case))
        assert drawn.k.tobytes() == in_order.k.tobytes()
