"""The kernel of gradients on tensor cores on the host runtime: accuracy by size, layout, range, what is asked for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from host_runtime.harness import ORDERS
from vjp_kernel_cases import VjpCase, check, judge, make_dy, run

from fftconv_cupy.benchmarks.problems import Case, gradients_of, make_inputs
from fftconv_cupy.benchmarks.ranges import RANGES
from fftconv_cupy.mma_blocks import DTYPES, MMA_BACKWARD_CONFIGS
from fftconv_cupy.mma_vjp_plan import MmaVjpPlan

_GATES = {"in_gate": True, "out_gate": True}
_SIZES = sorted(MMA_BACKWARD_CONFIGS)


def case_of(dtype: str, points: int, batch: int, channels: int = 2, **changes: Any) -> Case:
    """Return a case whose rows fill a transform."""
    changes = {"filter_len": points, **changes}
    return Case("causal", dtype, points, batch=batch, channels=channels, precision="medium", **changes)


def _with_dashes(name: str) -> str:
    return name.replace(" ", "-")


def check_medium(vjp_case: VjpCase, **options: Any) -> MmaVjpPlan:
    """Check a case but for the gradient of skip, and that it ran on tensor cores; return its plan."""
    wrt = vjp_case.wrt or tuple(name for name in vjp_case.case.given if name != "skip")
    made = check(replace(vjp_case, wrt=wrt), **options)
    assert isinstance(made, MmaVjpPlan)
    return made


@pytest.mark.parametrize("points", _SIZES)
def test_rows_that_fill_a_transform(points: int) -> None:
    row = _SIZES.index(points)
    # Of several rows of a block the last lacks a row of its own.
    made = check_medium(VjpCase(case_of(DTYPES[row % 2], points, 3 if points > 2048 else 7, 2 if row < 2 else 1)))
    assert made.tensor.points == points
    gated = case_of(DTYPES[1 - row % 2], points, 3, 1, filter_len=points // 2 + 1, **_GATES)
    check_medium(VjpCase(gated), orders=ORDERS[1:2])


@pytest.mark.parametrize("points", _SIZES)
def test_nothing_races(points: int) -> None:
    case = case_of("bfloat16", points, 5, 1, **_GATES)
    for order in ORDERS[: 1 if points > 4096 else 2]:
        run(VjpCase(case), order=order, race_check=True)


@pytest.mark.parametrize(
    "wrt", [("u",), ("k",), ("in_gate",), ("out_gate",), ("out_gate", "k"), ("u", "out_gate")], ids="-".join
)
def test_what_is_asked_for_alone(wrt: tuple[str, ...]) -> None:
    gated = case_of("float16", 2048, 5, skip_dtype="float32", **_GATES)
    check_medium(VjpCase(gated, wrt), orders=ORDERS[:1], race_check=True)


_MORE = (
    Case("circular", "bfloat16", 2000, 2000, 3, 2, precision="medium", **_GATES),
    Case("circular", "float16", 2048, 2048, 3, 2, 2048, precision="medium", in_gate=True),
    Case("same", "float16", 2040, 2001, 5, 3, precision="medium", out_gate=True, skip_dtype="float16"),
    Case("causal", "bfloat16", 1304, 1304, 3, 3, precision="medium", shared_filter=True, skip_dtype="float32"),
    Case("causal", "float16", 2048, 700, 3, 2, precision="medium", layout="odd", in_gate=True),
    Case("causal", "float16", 2048, 2048, 3, 2, precision="medium", layout="transposed", filter_dtype="bfloat16"),
)


@pytest.mark.parametrize("case", _MORE, ids=lambda case: case.label.replace(" ", "-"))
def test_modes_and_layouts(case: Case) -> None:
    made = check_medium(VjpCase(case), orders=ORDERS[:1])
    assert made.variant.is_vector == (case.layout != "odd")


def test_chunks_and_groups_of_channels() -> None:
    made = check_medium(VjpCase(case_of("float16", 2048, 80, 2), ("k",)), orders=ORDERS[:1])
    assert made.chunks.chunk_steps > 1
    assert made.chunks.group_chunks > 1
    made = check_medium(VjpCase(case_of("float16", 2048, 2, 5), has_groups=True), orders=ORDERS[:1])
    assert made.channel_group < 5


@pytest.mark.parametrize("name", RANGES, ids=_with_dashes)
def test_rows_and_filters_of_any_magnitude(name: str) -> None:
    for points, dtype in zip((2048, 4096), itertools.cycle(RANGES[name].dtypes)):
        check_medium(VjpCase(case_of(dtype, points, 4, range=name)), orders=ORDERS[:1])


@pytest.mark.parametrize("name", ["6e4", "2^60", "rows 1e6 apart"], ids=_with_dashes)
def test_gated_rows_of_any_magnitude(name: str) -> None:
    check_medium(VjpCase(case_of("bfloat16", 2048, 4, range=name, **_GATES)), orders=ORDERS[:1])


@pytest.mark.parametrize("points", [2048, 4096])
def test_a_value_that_is_not_finite_stays_in_its_row_and_channel(points: int) -> None:
    case = case_of("float16", points, 5, 3, skip_dtype="float32", **_GATES)
    inputs, dy = make_inputs(case), make_dy(case)
    clean64 = gradients_of(case, inputs, dy)
    inputs.u[1, 0, points // 2] = np.nan
    dy[4, 2, 3] = np.inf  # of a row that another one of its block repeats
    grads, _ = run(VjpCase(case, ("u", "k", "in_gate", "out_gate")), inputs, dy)
    clean = np.ones((5, 3), bool)
    clean[1, 0] = clean[4, 2] = False
    rows = {name: getattr(grads, name)[clean] for name in ("u", "in_gate", "out_gate")}
    rows64 = {name: getattr(clean64, name)[clean] for name in rows}
    sums = {name: getattr(grads, name)[1:2] for name in ("k",)}
    sums64 = {name: getattr(clean64, name)[1:2] for name in sums}
    judge(case, type(grads)(**rows, **sums), type(grads)(**rows64, **sums64))
    assert np.isnan(grads.k[[0, 2]]).all()
    assert np.isnan(grads.u[4, 2].astype(np.float32)).all()


def test_the_same_whatever_else_is_asked_for() -> None:
    case = case_of("bfloat16", 2048, 3, **_GATES)
    everything, _ = run(VjpCase(case))
    for name in ("k", "out_gate"):
        alone, _ = run(VjpCase(case, (name,)))
        assert getattr(alone, name).tobytes() == getattr(everything, name).tobytes()


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_other_architectures_compute_the_same(arch: str) -> None:
    case = VjpCase(case_of("float16", 2048, 3, 1))
    for one, two in zip(run(case)[0], run(replace(case, arch=arch))[0], strict=True):
        assert one is two is None or one.tobytes() == two.tobytes()
