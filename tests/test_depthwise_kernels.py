"""The depthwise kernels on the CPU, through the host runtime: outputs, gradients, decoding, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cupy")

from depthwise_kernel_cases import ANYWHERE, LARGE, DepthwiseCase, Exact, drawn, make_inputs
from depthwise_kernel_runs import check_gradients, check_outputs, run_gradients, run_outputs, view_of
from depthwise_update_cases import UpdateCase, check_update
from host_runtime.cupy_host import to_cupy
from host_runtime.harness import ORDERS

from fftconv_cupy import depthwise_steps, launch_depthwise, numeric

FAST = ["depthwise_fwd"]
TILED = ["depthwise_tile"]
MATRIX = ["depthwise_mma"]
FUSED = ["depthwise_bwd", "depthwise_reduce"]
OUTPUT_CASES = drawn("outputs", 1500)
GRADIENT_CASES = drawn("gradients", 1500)


@pytest.mark.parametrize("case", OUTPUT_CASES, ids=lambda case: case.label)
def test_outputs(case: DepthwiseCase) -> None:
    check_outputs(case, orders=ORDERS[1:])


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda case: case.label)
def test_gradients(case: DepthwiseCase) -> None:
    check_gradients(case, orders=ORDERS[1:])


@pytest.mark.parametrize("padding", ["causal", "same"])
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8])
def test_few_taps_of_aligned_rows_take_the_fast_kernels(width: int, layout: str, padding: str) -> None:
    case = DepthwiseCase((2, 40, 136, width), padding, layout=layout, activation="silu" if width % 2 else None)
    assert check_outputs(case, orders=ORDERS[:1]) == FAST
    assert check_gradients(case, orders=ORDERS[:1]) == FUSED


@pytest.mark.parametrize("case", ANYWHERE, ids=lambda case: case.label)
def test_few_taps_of_rows_that_begin_anywhere_take_the_fast_kernels(case: DepthwiseCase) -> None:
    assert check_outputs(case, orders=ORDERS[:1]) == FAST
    assert check_gradients(case, orders=ORDERS[:1]) == FUSED


@pytest.mark.parametrize(("layout", "placing"), [("BHL", "packed"), ("BHL", "odd"), ("BLH", "packed"), ("BLH", "odd")])
def test_packed_sequences_take_the_fast_kernels(layout: str, placing: str) -> None:
    case = DepthwiseCase((2, 24, 304, 4), layout=layout, activation="silu", special="seq_idx", placing=placing)
    assert check_outputs(case, orders=ORDERS[:1]) == FAST
    assert check_gradients(case, orders=ORDERS[:1]) == FUSED


def test_sequence_indices_have_an_alignment_too() -> None:
    case = DepthwiseCase((2, 8, 64, 4), special="seq_idx")
    x = view_of(to_cupy(np.zeros((2, 8, 64), np.float16)), "float16")
    ids = to_cupy(np.zeros((2, 72), np.int32))
    for first, alignment in ((0, 16), (4, 16), (1, 2)):
        seq_idx = view_of(ids[:, first : first + 64], "int32")
        assert launch_depthwise._alignment(case.problem, x, seq_idx=seq_idx) == alignment


@pytest.mark.parametrize(
    ("width", "layout", "dtype", "placing"),
    [
        (9, "BHL", "float16", "odd"),
        (16, "BHL", "float32", "packed"),
        (9, "BLH", "bfloat16", "packed"),
        (12, "BLH", "float16", "odd"),
        (16, "BLH", "float32", "packed"),
    ],
)
def test_a_dozen_taps_take_the_fast_kernels(width: int, layout: str, dtype: str, placing: str) -> None:
    case = DepthwiseCase((2, 24, 136, width), "same", dtype, layout=layout, placing=placing)
    assert check_outputs(case, orders=ORDERS[:1]) == FAST
    assert check_gradients(case, orders=ORDERS[:1]) == FUSED


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize(
    ("width", "padding"), [(17, "same"), (64, "causal"), (65, "more"), (127, "same"), (128, "causal")]
)
def test_many_taps_of_16_bits_take_tensor_cores(width: int, padding: str, layout: str) -> None:
    # An odd number of taps leaves as many outputs more as it finds points, eighty here.
    points = (width - 1) // 2 + 40 if padding == "more" else padding
    activation = "silu" if width % 2 else None
    for dtype, weight_dtype in (("float16", "float32"), ("bfloat16", "float16"), ("float16", "float16")):
        case = DepthwiseCase((2, 40, 136, width), points, dtype, weight_dtype, layout=layout, activation=activation)
        assert check_outputs(case, orders=ORDERS[:1]) == MATRIX


@pytest.mark.parametrize(("width", "seqlen", "placing"), [(20, 137, "packed"), (64, 304, "odd")])
def test_tensor_cores_take_rows_that_begin_anywhere(width: int, seqlen: int, placing: str) -> None:
    case = DepthwiseCase((2, 9, seqlen, width), "same", weight_dtype="float16", placing=placing)
    assert check_outputs(case, orders=ORDERS[:1]) == MATRIX


@pytest.mark.parametrize(
    ("dtype", "of_taps", "of_points"),
    [("float16", 1e-7, 1e3), ("float16", 1e7, 1e-3), ("bfloat16", 1e-30, 1.0), ("bfloat16", 1e30, 1.0)],
)
def test_taps_of_any_magnitude_are_as_exact_on_tensor_cores(dtype: str, of_taps: float, of_points: float) -> None:
    case = DepthwiseCase((2, 8, 136, 20), "same", dtype, bias_dtype=None)
    inputs = make_inputs(case)
    points, taps = inputs.x.astype(np.float32) * of_points, inputs.weight * np.float32(of_taps)
    inputs = inputs._replace(x=points.astype(inputs.x.dtype), weight=taps)
    y, _, entries = run_outputs(case, inputs)
    assert entries == MATRIX
    assert numeric.compare(y, Exact(case, inputs).outputs(), dtype).ok


def test_only_the_gradient_of_x_of_a_linear_convolution_is_a_convolution() -> None:
    assert check_gradients(DepthwiseCase((2, 40, 136, 4), "same", wanted="input"), orders=ORDERS[:1]) == FAST


@pytest.mark.parametrize("special", ["none", "states", "seq_idx"])
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_no_races(layout: str, special: str) -> None:
    width = 9 if special == "seq_idx" else 5  # of sequences, in shared memory
    case = DepthwiseCase((2, 40, 136, width), activation="silu", layout=layout, special=special)
    check_outputs(case, orders=ORDERS[:1], race_check=True)
    check_gradients(case, orders=ORDERS[:1], race_check=True)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_no_races_of_many_taps(layout: str) -> None:
    case = DepthwiseCase((2, 33, 300, 70), layout=layout, activation="silu", placing="odd")
    check_outputs(case, orders=ORDERS[:1], race_check=True)
    check_gradients(case, orders=ORDERS[:1], race_check=True)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_no_races_on_tensor_cores(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise_steps, "_MATRIX_BLOCKS", 0)
    case = DepthwiseCase((2, 40, 304, 20), layout=layout)
    inputs = make_inputs(case)
    inputs.x[1, 3, 50] = np.inf
    _, _, entries = run_outputs(case, inputs, race_check=True)
    assert entries == MATRIX


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.label)
def test_blocks_that_walk(case: DepthwiseCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise_steps, "_GRID_Y", 2)
    monkeypatch.setattr(depthwise_steps, "_MATRIX_BLOCKS", 0)
    check_outputs(case, orders=ORDERS[:1])
    check_gradients(case, orders=ORDERS[:1])


@pytest.mark.parametrize(("width", "dtype"), [(4, "float16"), (20, "float16"), (20, "float32")])
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_point_that_is_not_finite_stays_with_the_outputs_that_see_it(
    layout: str, width: int, dtype: str, bad: float
) -> None:
    case = DepthwiseCase((2, 8, 136, width), dtype=dtype, layout=layout, activation="silu")
    inputs = make_inputs(case)
    inputs.x[1, 3, 50] = bad
    y, _, _ = run_outputs(case, inputs)
    sees = np.zeros(y.shape, bool)
    sees[1, 3, 50 : 50 + width] = True
    assert np.isfinite(y[~sees].astype(np.float32)).all()
    assert (y[sees] != y[sees]).any() or np.isinf(y[sees].astype(np.float32)).any()


@pytest.mark.parametrize("placing", ["packed", "odd"])
@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_the_last_point_that_is_not_finite_stays_out_of_gradients_that_do_not_see_it(
    layout: str, width: int, placing: str
) -> None:
    case = DepthwiseCase((1, 8, 136, width), layout=layout, placing=placing)
    inputs = make_inputs(case)
    inputs.x[0, 3, -1] = np.inf
    grads, _ = run_gradients(case, inputs)
    is_finite = np.isfinite(grads.weight)
    # Only the last tap of the last output sees the last point.
    assert not is_finite[3, -1]
    assert is_finite[3, :-1].all()
    assert np.isfinite(grads.x.astype(np.float32)).all()


def test_the_metric_rejects_reversed_taps() -> None:
    case = DepthwiseCase((2, 8, 136, 4), dtype="float32")
    inputs = make_inputs(case)
    y, _, _ = run_outputs(case, inputs)
    reversed_taps = inputs._replace(weight=inputs.weight[:, ::-1])
    assert not numeric.compare(y, Exact(case, reversed_taps).outputs(), case.dtype).ok


@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("has_indices", [False, True])
@pytest.mark.parametrize(("width", "state_len"), [(1, 0), (2, 1), (4, 3), (4, 7), (16, 15)])
@pytest.mark.parametrize("steps", [None, 1, 3, 9])
def test_update(steps: int | None, width: int, state_len: int, *, is_ring: bool, has_indices: bool) -> None:
    check_update(UpdateCase(width, state_len, steps, is_ring, has_indices))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("weight_dtype", ["float16", "bfloat16", "float32"])
def test_update_of_any_dtypes(dtype: str, weight_dtype: str) -> None:
    case = UpdateCase(4, 5, 2, True, True, dtype=dtype, weight_dtype=weight_dtype, activation="silu")
    check_update(case)
    check_update(replace(case, bias_dtype=None, race_check=True))
