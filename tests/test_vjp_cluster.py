"""The backward kernel where the blocks of a cluster share a row for its sum, on the host runtime, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from host_runtime import cupy_host
from host_runtime.harness import ORDERS
from vjp_kernel_cases import VjpCase, case_of, check, judge, make_dy, run

from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import gradients_of, make_inputs
from fftconv_cupy.problem import Wanted, make_problem
from fftconv_cupy.vjp_plan import make_vjp_plan

POINTS = 16384
PLAIN = {"in_gate": False, "out_gate": False, "skip_dtype": None}
ANY = {"in_gate": False, "out_gate": True, "skip_dtype": "float32"}
GATES = {"in_gate": True, "out_gate": True, "skip_dtype": None}


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("float16", GATES),
        ("bfloat16", PLAIN),
        ("float32", {"channels": 3}),
        ("float16", {"seqlen": 16000, **PLAIN}),
        ("bfloat16", {"seqlen": 8194, "mode": "circular", **ANY}),  # ends just behind the middle of the transform
        ("float32", {"seqlen": 12000, "filter_len": 20000, "mode": "same", **GATES}),
        ("float16", {"seqlen": 16001, "layout": "odd", **ANY}),
        ("bfloat16", {"seqlen": 8193, "layout": "odd", "fft_size": 32768, **GATES}),
        ("float32", {"seqlen": 10001, "mode": "circular", "layout": "odd", **PLAIN}),
        ("float16", {"seqlen": 5000, "filter_len": 30000, "mode": "same", **GATES}),  # the upper half is empty
        ("float32", {"shared_filter": True, "filter_dtype": "bfloat16", "filter_len": 20000}),
        ("float16", {"seqlen": POINTS + 2, "filter_len": 99, **GATES}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_gradients(dtype: str, changes: dict[str, Any]) -> None:
    made = check(VjpCase(case_of(POINTS, dtype, **{"batch": 3, **changes})))
    assert made.backward_config.cluster_blocks > 1
    assert made.config.points == POINTS


@pytest.mark.parametrize("wrt", [("u", "k"), ("k",), ("skip", "in_gate"), ("out_gate", "k")], ids="-".join)
def test_some_of_the_gradients(wrt: tuple[str, ...]) -> None:
    made = check(VjpCase(case_of(POINTS, "float16", batch=2), wrt), orders=("descending",))
    assert made.backward_config.cluster_blocks > 1


@pytest.mark.parametrize(
    "wrt", [None, ("u", "k"), ("k",), ("out_gate", "k")], ids=lambda wrt: "-".join(wrt or ("all",))
)
def test_no_races(wrt: tuple[str, ...] | None) -> None:
    """An odd number of rows a chunk: the barriers of an exchange change their parity from row to row."""
    case = case_of(POINTS, batch=3, channels=1, seqlen=POINTS - 2)
    made = check(VjpCase(case, wrt), race_check=True)
    assert made.chunks.chunk_steps == 3


def test_each_cluster_has_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many clusters run at a time is the GPU's affair."""
    monkeypatch.setattr(cupy_host._Device, "attributes", {"MultiProcessorCount": 7})
    made = check(VjpCase(case_of(POINTS, "float16", batch=5, channels=4)), orders=("random",))
    assert made.chunks.blocks == made.chunks.count > made.resident_blocks == 3


def test_sums_of_large_values_stay_in_range() -> None:
    case = case_of(POINTS, batch=2, channels=1, filter_len=7, **PLAIN)
    inputs, dy = make_inputs(case), make_dy(case)
    scale = np.float32(2.0**56)
    inputs.u[...] = np.abs(inputs.u) * scale
    dy[...] = np.abs(dy) * scale
    grads, _ = run(VjpCase(case), inputs, dy)
    judge(case, grads, gradients_of(case, inputs, dy))


def test_the_same_in_every_run() -> None:
    case = case_of(POINTS, "bfloat16", batch=3)
    runs = [run(VjpCase(case), order=order)[0] for order in (*ORDERS, *ORDERS)]
    for again in runs[1:]:
        assert all(one.tobytes() == two.tobytes() for one, two in zip(runs[0], again, strict=True))


def test_a_block_has_a_row_of_its_own_where_a_cluster_does_not_help() -> None:
    row = {"batch": 4, "channels": 8, "filter_len": 9}
    real, longer = (make_problem("causal", seqlen=seqlen, **row) for seqlen in (POINTS, POINTS + 2))
    summed = Wanted(u=True, k=True)
    for arch in ("sm_90", "sm_100"):
        for problem in (real, longer):
            assert make_vjp_plan(problem, summed, ARCHS[arch]).backward_config.cluster_blocks > 1
    for problem, wanted, arch in ((real, summed, "sm_80"), (longer, summed, "sm_80"), (real, Wanted(u=True), "sm_90")):
        made = make_vjp_plan(problem, wanted, ARCHS[arch])
        assert made.config.points == POINTS
        assert made.backward_config is made.config
