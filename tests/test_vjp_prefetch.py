"""What the backward kernel asks L2 for ahead of its loads, on the host runtime, where a bad address is a fault."""

from __future__ import annotations

from typing import Any

import pytest
from host_runtime.cupy_host import to_cupy
from host_runtime.harness import forget_prefetched, take_prefetched
from kernel_runs import host_gpu
from vjp_kernel_cases import case_of, make_dy

from fftconv_cupy import fftconv_vjp, launch_vjp
from fftconv_cupy.benchmarks.problems import Case, make_inputs
from fftconv_cupy.mma_vjp_plan import MmaVjpPlan
from fftconv_cupy.problem import ITEM_BYTES
from fftconv_cupy.vjp_plan import VjpPlan

LINE = 128


def lines_of(case: Case, wrt: tuple[str, ...] | None = None) -> tuple[dict[str, dict[int, set[int]]], VjpPlan]:
    """Run a case; return the offsets in bytes that are asked for, by array and row, and the plan."""
    inputs = make_inputs(case)
    given = {"dy": make_dy(case), "u": inputs.u, "in_gate": inputs.in_gate, "out_gate": inputs.out_gate}
    with host_gpu("sm_90"):
        arrays: dict[str, Any] = {name: None if host is None else to_cupy(host) for name, host in given.items()}
        forget_prefetched()
        fftconv_vjp(
            arrays["dy"],
            arrays["u"],
            to_cupy(inputs.k),
            mode=case.mode,
            fft_size=case.fft_size,
            in_gate=arrays["in_gate"],
            out_gate=arrays["out_gate"],
            skip=None if inputs.skip is None else to_cupy(inputs.skip),
            wrt=wrt,
            precision=case.precision,
        )
        (launcher,) = launch_vjp._launchers.values()
        found: dict[str, dict[int, set[int]]] = {name: {} for name, array in arrays.items() if array is not None}
        for address in take_prefetched():
            (name,) = (name for name in found if 0 <= address - arrays[name].data.ptr < arrays[name].nbytes)
            row, offset = divmod(address - arrays[name].data.ptr, arrays[name].shape[-1] * arrays[name].itemsize)
            found[name].setdefault(row, set()).add(offset)
        return found, launcher.plan


@pytest.mark.parametrize(
    ("points", "dtype", "changes"),
    [
        (4096, "float16", {"channels": 2}),
        (4096, "float32", {"seqlen": 3001}),
        (4096, "bfloat16", {"channels": 2, "seqlen": 3002, "in_gate": False}),
        (8192, "float16", {"channels": 1, "out_gate": False, "skip_dtype": None}),
        (8192, "float32", {"channels": 1, "in_gate": False, "out_gate": False, "skip_dtype": None}),
        (8192, "bfloat16", {"channels": 1, "seqlen": 4098, "fft_size": 16384}),
        (16384, "float16", {"channels": 1, "seqlen": 16382, "skip_dtype": None}),  # by the blocks of a cluster together
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_rows_are_brought_into_l2(points: int, dtype: str, changes: dict[str, Any]) -> None:
    """All of dy and its gate, and of u and its gate all rows that follow another one in a chunk."""
    case = case_of(points, dtype, **changes)
    found, made = lines_of(case)
    assert made.config.points == points
    assert made.chunks.chunk_steps > 1
    assert made.chunks.group_chunks > 1 or made.backward_config.cluster_blocks > 1
    whole = set(range(0, case.seqlen * ITEM_BYTES[dtype], LINE))
    rows = range(case.batch * case.channels)
    following = {row for row in rows if row % case.batch % made.chunks.chunk_steps}
    gates = {"in_gate": case.in_gate, "out_gate": case.out_gate}
    assert set(found) == {"dy", "u", *(name for name, is_given in gates.items() if is_given)}
    for name, lines in found.items():
        assert all(offsets == whole for offsets in lines.values())
        wanted = set(rows) if name in ("dy", "out_gate") else following
        assert {row // case.channels + row % case.channels * case.batch for row in lines} == wanted


@pytest.mark.parametrize(("points", "seqlen"), [(2048, 2048), (4096, 4000)])
def test_the_rows_of_the_next_step_are_brought_into_l2_on_tensor_cores(points: int, seqlen: int) -> None:
    case = case_of(points, "float16", batch=9, channels=1, seqlen=seqlen, skip_dtype=None, precision="medium")
    found, made = lines_of(case)
    assert isinstance(made, MmaVjpPlan)
    step_rows = made.tensor.rows // made.variant.sides
    assert step_rows < made.chunks.chunk_steps * step_rows < case.batch
    whole = set(range(0, seqlen * ITEM_BYTES["float16"], LINE))
    following = {row for row in range(case.batch) if row // step_rows % made.chunks.chunk_steps}
    assert found == {name: dict.fromkeys(following, whole) for name in ("dy", "u", "in_gate", "out_gate")}


@pytest.mark.parametrize(
    ("points", "changes", "wrt"),
    [
        (2048, {}, None),
        (4096, {"seqlen": 6002}, None),  # with an imaginary part
        (4096, {}, ("u", "in_gate")),
    ],
    ids=["2048", "complex", "no sum"],
)
def test_nothing_is_asked_for_elsewhere(points: int, changes: dict[str, Any], wrt: tuple[str, ...] | None) -> None:
    found, _ = lines_of(case_of(points, "float16", **{"batch": 3, **changes}), wrt)
    assert not any(found.values())
