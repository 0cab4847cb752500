"""The kernels for long rows on the host runtime, through the API, against float64."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from long_cases import ROWS, LongCase, bytes_of, check, check_vjp, compare, run, run_vjp
from vjp_kernel_cases import make_dy

from fftconv_cupy.benchmarks.problems import Case, Inputs, gradients_of, make_inputs, reference_of
from fftconv_cupy.numeric import relative_error
from fftconv_cupy.problem import DTYPES, MODES

# Rows and filters by mode, in halves of 4096 points and more: the edges of a transform of 4096 complex points.
_LENGTHS = {
    "causal": ((2, 0, 2, 0), (2, -1, 5, 3), (2, 1, 0, 1), (4, -2, 0, 3)),
    "full": ((2, 0, 2, 1), (1, 3, 3, -4), (0, 1, 4, 0)),
    "same": ((2, 0, 4, 0), (3, 1, 1, 0), (2, -3, 2, 7)),
    "circular": ((2, 0, 2, 0), (2, -3, 6, 1), (1, 5, 0, 9)),
}
_GATES = ((False, False, False), (True, True, False), (True, False, True), (False, True, False), (False, False, True))
_HALF = 2048


def _cases(seed: str) -> Iterator[Case]:
    """Yield a case for each mode, length and dtype; the rest is drawn."""
    draw = random.Random(seed)
    for mode in MODES:
        for halves, more, filter_halves, more_taps in _LENGTHS[mode]:
            for dtype in DTYPES:
                in_gate, out_gate, skip = draw.choice(_GATES)
                batch, channels = draw.choice(((1, 1), (1, 3), (3, 2), (2, 1)))
                yield Case(
                    mode,
                    dtype,
                    halves * _HALF + more,
                    filter_halves * _HALF + more_taps,
                    batch,
                    channels,
                    filter_dtype=draw.choice(DTYPES),
                    in_gate=in_gate,
                    out_gate=out_gate,
                    skip_dtype=draw.choice(("float32", dtype)) if skip else None,
                    shared_filter=draw.random() < 0.3,
                    prepared=draw.random() < 0.3,
                    layout=draw.choice(("packed", "transposed", "batch-strided", "odd", "reversed")),
                )


@pytest.mark.parametrize("case", list(_cases("outputs"))[::4], ids=lambda case: case.label)
def test_outputs(case: Case) -> None:
    check(LongCase(case), orders=("random",))


@pytest.mark.parametrize("case", list(_cases("gradients"))[::4], ids=lambda case: case.label)
def test_gradients(case: Case) -> None:
    check_vjp(LongCase(case), orders=("random",))


@pytest.mark.parametrize("row_points", ROWS)
def test_every_order_of_threads_gives_the_same_bits(row_points: int) -> None:
    case = Case("causal", "float32", 2 * row_points - 2, row_points, 2, 2, in_gate=True, skip_dtype="float32")
    assert check(LongCase(case, row_points)).config.row.points == row_points
    assert check_vjp(LongCase(case, row_points)).config.row.points == row_points


@pytest.mark.parametrize("log2_rows", [1, 2, 5, 6, 8])
def test_every_number_of_rows(log2_rows: int) -> None:
    points = ROWS[0] << log2_rows
    case = Case("causal", "float32", points - 1, points // 3, 1, 1)
    assert check(LongCase(case), orders=("descending",)).config.log2_rows == log2_rows
    if log2_rows < 7:
        assert check_vjp(LongCase(case), orders=("descending",)).config.log2_rows == log2_rows


@pytest.mark.parametrize("seqlen", [2 * _HALF, 2 * _HALF - 1, 3 * _HALF])
def test_no_races(seqlen: int) -> None:
    gates = {"in_gate": True, "out_gate": True, "skip_dtype": "float32"}
    mode = "same" if seqlen > 2 * _HALF else "circular"
    points = (16 if seqlen == 2 * _HALF else 2) * _HALF  # two passes over tiles, or one
    case = Case(mode, "float32", points // 2 + seqlen, 999, 2, 1, **gates)
    check(LongCase(case), orders=("random",), race_check=True)
    check_vjp(LongCase(case), orders=("random",), race_check=True)


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("rows_in_l2", [1000, 12, 6, 0])
def test_slots_are_used_again(rows_in_l2: int, is_shared: bool) -> None:
    for batch, channels in ((5, 4), (1, 9)):
        case = Case("causal", "float32", 4001, 4096, batch, channels, in_gate=True, shared_filter=is_shared)
        long_case = LongCase(case, bytes_in_l2=bytes_of(4096, rows_in_l2))
        made, made_vjp = check(long_case, orders=("random",)), check_vjp(long_case, orders=("random",))
        if rows_in_l2 == 0:
            assert made.schedule.slots == made_vjp.schedule.slots == 1
            assert made.schedule.distance == made_vjp.schedule.distance == 0
        if rows_in_l2 <= 6:
            assert made.schedule.slots < batch * channels


def test_values_that_are_not_finite_stay_in_their_row() -> None:
    case = Case("causal", "float32", 4000, 4000, 3, 2)
    long_case = LongCase(case, bytes_in_l2=0)
    inputs = make_inputs(case)
    inputs.u[1, 0, 17], inputs.u[2, 1, -1] = np.nan, np.inf
    y, _ = run(long_case, inputs)
    grads, _ = run_vjp(long_case, inputs)
    clean = np.ones((3, 2), bool)
    clean[1, 0] = clean[2, 1] = False
    assert np.isfinite(y[clean]).all()
    assert np.isfinite(grads.u).all()  # which does not depend on u
    assert not np.isfinite(grads.k).any()  # each channel has such a row
    inputs.u[~clean] = 0.0
    assert compare(long_case, y[clean], reference_of(case, inputs)[clean]).ok


def _spike(inputs: Inputs) -> None:
    inputs.u[...] = 0.0
    inputs.u[..., 1234] = 3.0


def _largest(inputs: Inputs) -> None:
    inputs.u[...] = np.sign(inputs.u.astype(np.float32)) * 6e4
    inputs.k[...] *= 0.1


def _mean_of_100_sigma(inputs: Inputs) -> None:
    inputs.u[...] = inputs.u.astype(np.float32) + 100.0
    inputs.k[...] += np.abs(inputs.k).mean()


def _tiny(inputs: Inputs) -> None:
    inputs.u[...] = inputs.u.astype(np.float32) * 2.0**-60


def _huge(inputs: Inputs) -> None:
    inputs.u[...] = inputs.u.astype(np.float32) * 2.0**60


def _rows_of_unlike_scale(inputs: Inputs) -> None:
    inputs.u[0] = inputs.u[0].astype(np.float32) * 1e3
    inputs.u[1] = inputs.u[1].astype(np.float32) * 1e-3


@pytest.mark.parametrize(
    ("dtype", "change"),
    [
        ("float16", _spike),
        ("float16", _largest),
        ("float16", _mean_of_100_sigma),
        ("float16", _rows_of_unlike_scale),
        ("bfloat16", _spike),
        ("bfloat16", _mean_of_100_sigma),
        ("bfloat16", _tiny),
        ("bfloat16", _huge),
    ],
)
def test_sixteen_bits_between_the_phases_lose_no_more_than_the_output(
    dtype: str, change: Callable[[Inputs], None]
) -> None:
    case = Case("causal", dtype, 8192, 8192, 2, 1)
    long_case = LongCase(case, is_half=True)
    inputs = make_inputs(case)
    change(inputs)
    y, made = run(long_case, inputs)
    assert made.intermediate == "float16"
    assert compare(long_case, y, reference_of(case, inputs)).ok


@pytest.mark.parametrize("case", list(_cases("halves"))[::5], ids=lambda case: case.label)
def test_outputs_with_sixteen_bits_between_the_phases(case: Case) -> None:
    dtype = "float16" if case.dtype == "float32" else case.dtype
    check(LongCase(replace(case, dtype=dtype, skip_dtype=case.skip_dtype and "float32"), is_half=True))


def test_sixteen_bits_between_the_phases_are_half_as_many_bytes() -> None:
    case = Case("causal", "float16", 16384, 8192, 3, 2, in_gate=True)
    _, whole = run(LongCase(case))
    long_case = LongCase(case, bytes_in_l2=0, is_half=True)
    made = check(long_case, race_check=True)
    assert (whole.intermediate, made.intermediate) == ("float32", "float16")
    assert whole.workspace.scales / whole.schedule.slots == 2 * made.workspace.scales / made.schedule.slots


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_with_sixteen_bits_between_the_phases(dtype: str, is_shared: bool) -> None:
    gates = {"in_gate": True, "out_gate": True, "skip_dtype": "float32"}
    case = Case("causal", dtype, 4096, 4096, 4, 2, shared_filter=is_shared, **gates)
    long_case = LongCase(case, bytes_in_l2=bytes_of(4096, 5), is_half=True)
    inputs, dy = make_inputs(case), make_dy(case)
    expected = gradients_of(case, inputs, dy)
    grads, made = run_vjp(long_case, inputs, dy, order="random", race_check=True)
    assert made.intermediate == "float16"
    for name in ("u", "in_gate", "out_gate"):
        assert compare(long_case, getattr(grads, name), getattr(expected, name)).ok, name
    for name in ("k", "skip"):
        assert relative_error(getattr(grads, name), getattr(expected, name)) < 4e-4 * (4 if name == "skip" else 1)


@pytest.mark.parametrize("wrt", [("u",), ("k",), ("out_gate",), ("in_gate", "skip"), ("out_gate", "k")], ids="-".join)
def test_only_what_is_asked_for(wrt: tuple[str, ...]) -> None:
    gates = {"in_gate": True, "out_gate": True, "skip_dtype": "float32"}
    for is_shared in (False, True):
        case = Case("same", "float32", 3000, 2500, 3, 2, shared_filter=is_shared, **gates)
        check_vjp(LongCase(case, wrt=wrt), orders=("random",), race_check=True)


def test_equal_calls_give_equal_bits_and_plans() -> None:
    case = Case("causal", "float16", 5000, 300, 4, 3, out_gate=True)
    first, again = run_vjp(LongCase(case))[0], run_vjp(LongCase(case))[0]
    assert first.k.tobytes() == again.k.tobytes()
