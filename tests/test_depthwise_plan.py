"""Plans of depthwise convolutions: which kernels, how many blocks, how much workspace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from fftconv_cupy.archs import ARCHS
from fftconv_cupy.depthwise_matrix import iter_depthwise_kernels
from fftconv_cupy.depthwise_plan import (
    DepthwisePlan,
    make_depthwise_plan,
    make_depthwise_update_plan,
    make_depthwise_vjp_plan,
)
from fftconv_cupy.depthwise_problem import DepthwiseProblem, DepthwiseWanted, make_depthwise_problem
from fftconv_cupy.depthwise_steps import row_alignment

H100 = ARCHS["sm_90"]
ALL = DepthwiseWanted(x=True, weight=True, bias=True)


def problem_of(
    batch: int = 2, channels: int = 64, seqlen: int = 256, width: int = 4, **changes: Any
) -> DepthwiseProblem:
    return make_depthwise_problem(
        batch=batch, channels=channels, seqlen=seqlen, width=width, **{"bias_dtype": "float32", **changes}
    )


def entries(plan: DepthwisePlan) -> list[str]:
    return [step.spec.entry.removeprefix("depthwise_") for step in plan.steps]


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_few_taps_take_one_pass(layout: str) -> None:
    problem = problem_of(layout=layout, activation="silu")
    assert entries(make_depthwise_plan(problem, H100)) == ["fwd"]
    plan = make_depthwise_vjp_plan(problem, ALL, H100)
    assert entries(plan) == ["bwd", "reduce"]
    assert plan.dz_bytes == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 17, "dtype": "float32"}, "more than 16 taps"),
        ({"padding": 4}, "padding"),
        ({"has_seq_idx": True, "width": 9}, "packed sequences"),
        ({"has_initial_state": True}, "states"),
    ],
)
def test_all_else_goes_through_shared_memory(changes: dict[str, Any], reason: str) -> None:
    plan = make_depthwise_plan(problem_of(**changes), H100)
    assert entries(plan) == ["tile"]
    assert reason in " ".join(plan.reasons)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("width", [17, 64, 128])
def test_many_taps_of_16_bits_go_to_tensor_cores(width: int, layout: str, dtype: str) -> None:
    problem = problem_of(width=width, layout=layout, dtype=dtype)
    plan = make_depthwise_plan(problem, H100)
    assert entries(plan) == ["mma"]
    assert "tensor cores" in " ".join(plan.reasons)
    assert entries(make_depthwise_vjp_plan(problem, ALL, H100)) == ["mma", "taps", "reduce"]
    assert entries(make_depthwise_plan(problem, ARCHS["sm_75"])) == ["tile"]
    where_rows_begin_anywhere = make_depthwise_plan(problem, H100, alignment=2)
    assert entries(where_rows_begin_anywhere) == ["mma" if layout == "BHL" else "tile"]


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_a_small_batch_is_cut_into_tiles_for_most_multiprocessors(layout: str) -> None:
    (step,) = make_depthwise_plan(problem_of(1, 768, 2048, 64, layout=layout), H100).steps
    assert step.grid[0] > H100.multiprocessors


@pytest.mark.parametrize(("layout", "how"), [("BHL", "shifted"), ("BLH", "2 bytes")])
def test_few_taps_of_rows_that_are_not_aligned_take_one_pass_too(layout: str, how: str) -> None:
    problem = problem_of(layout=layout)
    outputs = make_depthwise_plan(problem, H100, alignment=2)
    assert entries(outputs) == ["fwd"]
    assert how in outputs.reasons[-1]
    assert outputs.steps[0].spec != make_depthwise_plan(problem, H100).steps[0].spec
    assert entries(make_depthwise_vjp_plan(problem, ALL, H100, alignment=2)) == ["bwd", "reduce"]


def test_the_alignment_of_contiguous_rows() -> None:
    assert [row_alignment(problem_of(seqlen=n)) for n in (256, 252, 255)] == [16, 2, 2]
    assert [row_alignment(problem_of(channels=n, layout="BLH")) for n in (64, 60, 62, 61)] == [16, 8, 4, 2]
    assert row_alignment(problem_of(channels=62, layout="BLH", dtype="float32")) == 8
    assert row_alignment(problem_of(seqlen=256, width=4, padding=2)) == 2  # 257 outputs


@pytest.mark.parametrize("width", [4, 16])
def test_threads_take_fewer_channels_where_rows_of_them_are_not_aligned(width: int) -> None:
    problem = problem_of(16, 8192, 8192, width, layout="BLH", bias_dtype=None)
    numbers = {}
    for alignment in (16, 4, 2):
        (step,) = make_depthwise_plan(problem, H100, alignment=alignment).steps
        vector = int(dict(step.spec.defines)["FFTCONV_VECTOR"])
        assert 2 * vector <= alignment
        assert step.grid[0] * step.threads * vector >= problem.channels
        numbers[alignment] = vector
    assert numbers[4] == 2
    assert numbers[2] == 1


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_packed_sequences_take_one_pass(layout: str) -> None:
    problem = problem_of(layout=layout, has_seq_idx=True)
    assert entries(make_depthwise_plan(problem, H100)) == ["fwd"]
    assert entries(make_depthwise_plan(problem, H100, alignment=2)) == ["fwd"]
    assert entries(make_depthwise_vjp_plan(problem, ALL, H100)) == ["bwd", "reduce"]
    assert entries(make_depthwise_vjp_plan(problem, DepthwiseWanted(x=True), H100)) == ["bwd"]


def test_a_final_state_is_a_copy() -> None:
    assert entries(make_depthwise_plan(problem_of(has_final_state=True), H100)) == ["fwd", "state"]


def test_a_final_state_without_a_gradient_changes_nothing() -> None:
    problem = problem_of(has_final_state=True)
    assert entries(make_depthwise_vjp_plan(problem, ALL, H100)) == ["bwd", "reduce"]
    assert entries(make_depthwise_vjp_plan(problem, ALL, H100, has_final_gradient=True)) == ["tile", "taps", "reduce"]


@pytest.mark.parametrize("activation", [None, "silu"])
def test_nothing_is_computed_that_is_not_wanted(activation: str | None) -> None:
    wanted = {name: DepthwiseWanted(**{name: True}) for name in ("x", "weight", "bias")}
    for width in (4, 40):
        problem = problem_of(width=width, activation=activation)
        only_x = make_depthwise_vjp_plan(problem, wanted["x"], H100)
        assert only_x.sums_bytes == 0
        assert "reduce" not in entries(only_x)
        for name in ("weight", "bias"):
            plan = make_depthwise_vjp_plan(problem, wanted[name], H100)
            assert all(step.role != "input" for step in plan.steps)
            assert ("FFTCONV_HAS_INPUT", "1") not in plan.steps[0].spec.defines


def test_workspace_does_not_grow_with_taps_times_points() -> None:
    problem = problem_of(batch=16, channels=8192, seqlen=8192, width=128, activation="silu")
    plan = make_depthwise_vjp_plan(problem, ALL, H100)
    points = 16 * 8192 * 8192
    assert plan.dz_bytes == 4 * points
    assert plan.sums_bytes < points


@pytest.mark.parametrize(("layout", "width"), [("BHL", 4), ("BLH", 4), ("BHL", 8), ("BLH", 8)])
def test_partial_sums_are_few_beside_the_points(layout: str, width: int) -> None:
    for channels, seqlen in itertools.product((768, 8192), (1024, 8192)):
        problem = problem_of(batch=16, channels=channels, seqlen=seqlen, width=width, layout=layout)
        plan = make_depthwise_vjp_plan(problem, ALL, H100)
        assert plan.sums_bytes < 0.15 * 6 * 16 * channels * seqlen
        blocks = plan.steps[0].grid[0]
        assert blocks >= H100.multiprocessors


def extreme_problems() -> Iterator[DepthwiseProblem]:
    for batch, channels, seqlen in ((1, 1, 1), (100_000, 3, 2), (2, 100_000, 1), (1, 1, 1 << 24), (70_000, 8, 8)):
        for width, layout in itertools.product((1, 4, 128), ("BHL", "BLH")):
            yield problem_of(batch, channels, seqlen, width, layout=layout, activation="silu", has_final_state=True)


@pytest.mark.parametrize("problem", list(extreme_problems()), ids=str)
@pytest.mark.parametrize("is_contiguous", [False, True])
def test_the_grid_fits_whatever_the_sizes(problem: DepthwiseProblem, *, is_contiguous: bool) -> None:
    alignment = row_alignment(problem) if is_contiguous else 2
    for arch in ("sm_75", "sm_90"):
        plans = (
            make_depthwise_plan(problem, ARCHS[arch], alignment=alignment),
            make_depthwise_vjp_plan(problem, ALL, ARCHS[arch], alignment=alignment, has_final_gradient=True),
            make_depthwise_update_plan(problem, ARCHS[arch]),
        )
        for step in itertools.chain.from_iterable(plan.steps for plan in plans):
            assert 1 <= step.grid[0] < 1 << 31
            assert all(1 <= size <= 65535 for size in step.grid[1:])
            assert step.shared_bytes <= ARCHS[arch].block_shared_bytes


@pytest.mark.parametrize("arch", list(ARCHS))
def test_every_kernel_fits_every_gpu(arch: str) -> None:
    for kernel in iter_depthwise_kernels(ARCHS[arch]):
        assert kernel.shared_bytes <= ARCHS[arch].block_shared_bytes


def test_the_plans_kernels_are_in_the_matrix() -> None:
    known = {kernel.spec.entry for kernel in iter_depthwise_kernels(H100)}
    problem = problem_of(width=20, activation="silu", has_final_state=True)
    plans = (
        make_depthwise_plan(problem_of(), H100),
        make_depthwise_plan(problem, H100),
        make_depthwise_vjp_plan(problem_of(), ALL, H100),
        make_depthwise_vjp_plan(problem, ALL, H100),
        make_depthwise_update_plan(problem, H100),
    )
    assert {step.spec.entry for plan in plans for step in plan.steps} == known


def test_the_plan_tells_itself() -> None:
    text = str(make_depthwise_vjp_plan(problem_of(width=20, activation="silu"), ALL, H100))
    assert "20 taps" in text
    assert "depthwise_tile" in text
    assert "workspace" in text
    assert "more than 16 taps" in text
