"""Rows that are cut into windows: the kernels' own sources on the host runtime, through the API, against float64."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from host_runtime.harness import ORDERS, HostLoadedKernel
from kernel_cases import LAYOUTS
from windows_cases import check, check_vjp, run, run_vjp, windows_gpu

from fftconv_cupy import chunks, numeric
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case, make_inputs, reference_of
from fftconv_cupy.blocks import BLOCK_CONFIGS, COMPLEX_BYTES
from fftconv_cupy.plan import FilterLags
from fftconv_cupy.problem import DTYPES, MODES
from fftconv_cupy.window_plan import make_window_plan
from fftconv_cupy.window_vjp_plan import make_window_vjp_plan

# (in_gate, out_gate, skip) as the kernels tell them apart: none, both gates, anything.
_EXTRAS = ((False, False, None), (True, True, None), (True, False, "float32"), (False, True, None), (True, True, "own"))
_SMALL = (128, 2048)


def case(mode: str, dtype: str, seqlen: int, filter_len: int, extras: int = 0, **changes: object) -> Case:
    in_gate, out_gate, skip = _EXTRAS[extras % len(_EXTRAS)]
    skip_dtype = dtype if skip == "own" else skip
    given = {"batch": 2, "channels": 2, "in_gate": in_gate, "out_gate": out_gate, "skip_dtype": skip_dtype, **changes}
    return Case(mode, dtype, seqlen, filter_len, **given)  # type: ignore[arg-type]


def lengths(points: int) -> list[tuple[int, int]]:
    """Return (L, K) around the edges of windows: whole and started ones, taps from one to those of all but a step."""
    return [
        (1, 1),
        (points // 2 + 1, points // 4),
        (2 * points, 1),
        (4 * points, points // 8),
        (4 * points + 1, points // 8 + 1),
        (5 * points - 2, points // 2 + 3),
        (5 * points + 3, points + 1),
        (3 * points + 6, 2 * points - points // 4),
    ]


def some_lengths(points: int, mode: str) -> list[tuple[int, tuple[int, int]]]:
    """Return the lengths and their numbers: of the smallest size all, of others a third, another one for each mode."""
    numbered = list(enumerate(lengths(points)))
    return numbered if points == _SMALL[0] else numbered[MODES.index(mode) % 3 :: 3]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("points", _SMALL)
def test_outputs_of_all_lengths(points: int, mode: str) -> None:
    for number, (seqlen, filter_len) in some_lengths(points, mode):
        if mode != "circular" or filter_len <= seqlen:
            dtype = DTYPES[(number + MODES.index(mode)) % 3]
            check(case(mode, dtype, seqlen, filter_len, number + points), points)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("points", _SMALL)
def test_gradients_of_all_lengths(points: int, mode: str) -> None:
    for number, (seqlen, filter_len) in some_lengths(points, mode):
        if mode != "circular" or filter_len <= seqlen:
            dtype = DTYPES[(number + MODES.index(mode)) % 3]
            shared = number % 3 == 1
            check_vjp(case(mode, dtype, seqlen, filter_len, number + points, shared_filter=shared), points)


@pytest.mark.parametrize("points", BLOCK_CONFIGS)
def test_every_size_in_several_orders_of_threads(points: int) -> None:
    extras = list(BLOCK_CONFIGS).index(points)
    orders = ORDERS if points <= 1024 else ORDERS[1:]
    check(case("causal", "float16", 4 * points, points // 4, extras, batch=1), points, orders=orders)
    check_vjp(case("same", "bfloat16", 3 * points, points // 4, extras + 1, batch=1), points, orders=orders)


@pytest.mark.parametrize(("points", "order"), [(128, "descending"), (2048, "random")])
def test_no_races(points: int, order: str) -> None:
    odd = case("circular", "float32", 3 * points + 1, points // 4, 4, batch=1)
    check(odd, points, orders=(order,), race_check=True)
    check_vjp(odd, points, orders=(order,), race_check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout(layout: str) -> None:
    for number, dtype in enumerate(DTYPES):
        check(case("full", dtype, 700, 50, number, layout=layout), 128)
        check_vjp(case("causal", dtype, 700, 51, number + 1, layout=layout), 128)


@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (1, 5), (3, 1), (17, 3)])
def test_batches_and_channels_that_fill_no_block(batch: int, channels: int) -> None:
    for seqlen in (100, 1000):
        check(case("causal", "float32", seqlen, 30, 2, batch=batch, channels=channels), 128)
        check_vjp(case("causal", "float32", seqlen, 30, 3, batch=batch, channels=channels), 128)


@pytest.mark.parametrize(
    "wrt", [("u",), ("k",), ("in_gate",), ("out_gate",), ("skip",), ("u", "k"), ("k", "out_gate"), ("in_gate", "skip")]
)
@pytest.mark.parametrize("extras", [1, 4])
def test_gradients_one_by_one(wrt: tuple[str, ...], extras: int) -> None:
    if extras == 4 or "skip" not in wrt:
        check_vjp(case("causal", "float32", 1001, 20, extras, wrt=wrt), 128)


@pytest.mark.parametrize("mode", MODES)
def test_prepared_filters(mode: str) -> None:
    for shared in (False, True):
        check(case(mode, "float16", 1000, 33, 1, prepared=True, shared_filter=shared), 128)


def test_a_padded_circular_row_wraps_at_its_period() -> None:
    for seqlen, fft_size in ((1000, 1024), (1024, 1024), (600, 2048)):
        check(case("circular", "float32", seqlen, 60, 4, fft_size=fft_size), 128)
        check_vjp(case("circular", "float32", seqlen, 60, 4, fft_size=fft_size), 128)


def test_what_is_not_finite_stays_in_its_row() -> None:
    spoiled = case("causal", "float32", 1000, 20, batch=3, channels=2)
    inputs = make_inputs(spoiled)
    assert np.isfinite(run(spoiled, 128)).all()
    for value in (np.nan, np.inf):
        u = inputs.u.copy()
        u[1, 0, 500] = value
        changed = replace(inputs, u=u)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("windows_cases.make_inputs", lambda _, changed=changed: changed)
            y = run(spoiled, 128)
        kept = np.ones((3, 2), bool)
        kept[1, 0] = False
        assert not np.isfinite(y[1, 0]).all()
        assert numeric.relative_error(y[kept], reference_of(spoiled, inputs)[kept]) < 1e-6


@pytest.mark.parametrize("shared", [False, True])
def test_groups_of_channels(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = case("causal", "float32", 1000, 30, 4, channels=5, shared_filter=shared)
    monkeypatch.setattr(sys.modules[FilterLags.__module__], "WORKSPACE_LIMIT", 2 * 128 * COMPLEX_BYTES)
    monkeypatch.setattr(chunks, "WORKSPACE_LIMIT", 8 * 128 * COMPLEX_BYTES)
    with windows_gpu(128):
        assert make_window_plan(grouped.problem, ARCHS["sm_90"]).channel_group == (5 if shared else 2)
        made = make_window_vjp_plan(grouped.problem, grouped.wanted, ARCHS["sm_90"]).backward
        assert made is not None
        assert made.channel_group < 5
    check(grouped, 128)
    channels, launch = [], HostLoadedKernel.launch

    def record(kernel: HostLoadedKernel, grid: tuple[int, int, int], *args: Any, **options: Any) -> None:
        if kernel.kernel.spec.entry == "fftconv_windows":  # the gradient of the output gate
            channels.append(grid[1] * grid[2])
        launch(kernel, grid, *args, **options)

    monkeypatch.setattr(HostLoadedKernel, "launch", record)
    check_vjp(grouped, 128)
    assert len(channels) == -(-5 // made.channel_group)
    assert sum(channels) == 5  # no block for a channel of another group


def test_equal_calls_give_equal_bits() -> None:
    again = case("causal", "bfloat16", 3000, 40, 4, batch=3)
    assert run(again, 128).tobytes() == run(again, 128).tobytes()
    for one, two in zip(run_vjp(again, 128), run_vjp(again, 128), strict=True):
        assert one.tobytes() == two.tobytes()
