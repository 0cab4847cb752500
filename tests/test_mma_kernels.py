"""The kernels for tensor cores on the host runtime: accuracy by size, mode and layout, range, what is not finite."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from host_runtime.harness import ORDERS
from mma_runs import check, run

from fftconv_cupy import numeric
from fftconv_cupy.benchmarks.problems import Case, make_inputs, reference_of
from fftconv_cupy.benchmarks.ranges import RANGES
from fftconv_cupy.mma_blocks import DTYPES, MMA_CONFIGS

_GATES = {"in_gate": True, "out_gate": True}
_SIZES = sorted(MMA_CONFIGS)
_KERNELS = [
    pytest.param(
        points, precision, DTYPES[(row + column) % 2], id=f"M{points}-{precision}-{DTYPES[(row + column) % 2]}"
    )
    for (row, points), (column, precision) in itertools.product(enumerate(_SIZES), enumerate(["medium"]))
]


@pytest.mark.parametrize(("points", "precision", "dtype"), _KERNELS)
def test_rows_that_fill_a_transform(points: int, precision: str, dtype: str) -> None:
    plain = Case("causal", dtype, points, points, batch=3, channels=2)
    assert check(plain, precision).tensor.points == points
    check(replace(plain, **_GATES, filter_len=points // 2 + 1, layout="transposed"), precision)


@pytest.mark.parametrize(("points", "precision", "dtype"), _KERNELS)
def test_rows_that_end_inside_a_transform(points: int, precision: str, dtype: str) -> None:
    length = points - 8
    gated = Case("same", dtype, length, 31, batch=2, channels=3, out_gate=True, skip_dtype="float32")
    made = check(gated, precision)
    assert (made.tensor.points, dict(made.forward.defines)["FFTCONV_IS_WIDE"]) == (points, "1")
    odd = Case("causal", dtype, length, points, batch=1, channels=2, in_gate=True, layout="odd")
    made = check(odd, precision)
    assert (made.tensor.points, dict(made.forward.defines)["FFTCONV_IS_WIDE"]) == (points, "0")


_MORE = (
    Case("circular", "bfloat16", 2000, 2000, 5, 2, **_GATES),
    Case("circular", "float16", 1096, 3000, 3, 2, in_gate=True),
    Case("circular", "float16", 1200, 100, 1, 2, 4096, skip_dtype="float16"),
    Case("causal", "bfloat16", 1304, 1304, 3, 3, shared_filter=True, skip_dtype="bfloat16", **_GATES),
    Case("causal", "float16", 2048, 2048, 2, 5, prepared=True, layout="channel-strided"),
    Case("same", "float16", 1504, 2001, 3, 2, prepared=True, scaled=True, layout="reversed", filter_dtype="bfloat16"),
    Case("causal", "bfloat16", 2048, 5000, 3, 2, layout="broadcast", scaled=True, in_gate=True),
)


@pytest.mark.parametrize("precision", ["medium"])
@pytest.mark.parametrize("case", _MORE, ids=lambda case: case.label.replace(" ", "-"))
def test_modes_layouts_and_prepared_filters(case: Case, precision: str) -> None:
    check(case, precision, orders=ORDERS[:1])


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_other_architectures_compute_the_same(arch: str) -> None:
    case = Case("causal", "bfloat16", 2048, 2048, batch=2, channels=1)
    assert run(case, "medium", arch=arch)[0].tobytes() == run(case, "medium")[0].tobytes()


@pytest.mark.parametrize(
    ("points", "precision", "options"),
    [
        (2048, "medium", {"batch": 9}),
        (4096, "medium", _GATES),
        (8192, "medium", {"skip_dtype": "float32"}),
    ],
    ids=["M2048", "M4096", "M8192"],
)
def test_nothing_races(points: int, precision: str, options: dict[str, object]) -> None:
    case = Case("causal", "bfloat16", points, points, **{"batch": 3, "channels": 1, **options})
    for order in ORDERS:
        run(case, precision, order=order, race_check=True)


_BATCH = 4


@pytest.mark.parametrize("precision", ["medium"])
@pytest.mark.parametrize("name", RANGES)
def test_rows_and_filters_of_any_magnitude(name: str, precision: str) -> None:
    for points, dtype in zip((2048, 4096), itertools.cycle(RANGES[name].dtypes)):
        check(Case("causal", dtype, points, points, _BATCH, 2, range=name), precision, orders=ORDERS[:1])


@pytest.mark.parametrize("precision", ["medium"])
@pytest.mark.parametrize("name", ["6e4", "1e-6", "2^60", "2^-60", "rows 1e6 apart"])
def test_gated_rows_of_any_magnitude(name: str, precision: str) -> None:
    case = Case("causal", "bfloat16", 4096, 4096, _BATCH, 2, range=name, **_GATES)
    check(case, precision, orders=ORDERS[:1])


@pytest.mark.parametrize("precision", ["medium"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [10, 300])
def test_filters_that_pass_few_frequencies_keep_the_bound_of_the_whole(decay: int, dtype: str, precision: str) -> None:
    # Not that of each row: one that has little of what such a filter passes keeps the rounding of the rest.
    case = Case("causal", dtype, 4096, 4096, 6, 2)
    taps = np.exp(-np.arange(4096) / decay)
    inputs = replace(make_inputs(case), k=np.float32(taps / np.linalg.norm(taps)) * np.ones((2, 1), np.float32))
    y64 = reference_of(case, inputs)
    error = numeric.relative_error(run(case, precision, inputs)[0], y64)
    assert error <= numeric.bound(y64, dtype, precision=precision)


@pytest.mark.parametrize("precision", ["medium"])
def test_rows_whose_sums_float32_does_not_hold(precision: str) -> None:
    case = Case("causal", "bfloat16", 4096, 4096, _BATCH, 2)
    inputs = make_inputs(case)
    large = 2.0**120 * np.sign(inputs.u.astype(np.float64))
    check(case, precision, replace(inputs, u=large.astype(inputs.u.dtype)), orders=ORDERS[:1])


def test_products_of_gates_that_no_half_holds_are_scaled() -> None:
    case = Case("causal", "float16", 4096, 4096, _BATCH, 2, in_gate=True)
    inputs = make_inputs(case)
    u, gate = (np.float16(6e4) * np.sign(x) for x in (inputs.u, inputs.in_gate))
    check(case, "medium", replace(inputs, u=u, in_gate=gate, k=inputs.k * np.float32(2.0**-20)), orders=ORDERS[:1])


@pytest.mark.parametrize("precision", ["medium"])
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_a_skip_of_another_size_than_the_filter(size: float, precision: str) -> None:
    case = Case("causal", "bfloat16", 4096, 4096, _BATCH, 2, skip_dtype="float32")
    inputs = make_inputs(case)
    check(case, precision, replace(inputs, skip=np.float32(size) * inputs.skip), orders=ORDERS[:1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    case = Case("causal", "float16", 4096, 4096, batch=9, channels=2, in_gate=True)
    inputs = make_inputs(case)
    u, gate = inputs.u.copy(), inputs.in_gate.copy()
    u[3, 0, 100] = bad
    gate[5, 1, 511] = bad
    y, _ = run(case, "medium", replace(inputs, u=u, in_gate=gate))
    is_clean = np.ones((9, 2), bool)
    is_clean[3, 0] = is_clean[5, 1] = False
    assert not np.isfinite(y[~is_clean].astype(np.float32)).all(axis=-1).any()
    clean = run(case, "medium", inputs)[0]
    assert y[is_clean].tobytes() == clean[is_clean].tobytes()


def test_a_filter_that_is_not_finite_spoils_its_channel_only() -> None:
    case = Case("causal", "float16", 4096, 4096, batch=1, channels=16, skip_dtype="float32")
    inputs = make_inputs(case)
    k, skip = inputs.k.copy(), inputs.skip.copy()
    k[3, 7] = np.inf
    skip[4] = np.nan
    y, _ = run(case, "medium", replace(inputs, k=k, skip=skip))
    spoilt = np.isin(np.arange(16), (3, 4))
    assert np.isnan(y[:, spoilt].astype(np.float32)).all()
    assert y[:, ~spoilt].tobytes() == run(case, "medium", inputs)[0][:, ~spoilt].tobytes()


def test_zeros_stay_zeros() -> None:
    case = Case("causal", "bfloat16", 4096, 4096, batch=3, channels=2)
    inputs = make_inputs(case)
    u, k = inputs.u.copy(), inputs.k.copy()
    u[1] = 0
    k[1] = 0
    y, _ = run(case, "medium", replace(inputs, u=u, k=k))
    assert not y[1].astype(np.float32).any()
    assert not y[:, 1].astype(np.float32).any()
    assert y[0, 0].astype(np.float32).any()
