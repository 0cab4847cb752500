"""The GPU path with less than the highest precision, on the host runtime: prepared filters, groups, warmup."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import Placed, host_gpu, place_all, to_cupy, to_numpy
from mma_runs import check, run

from fftconv_cupy import fftconv, fftconv_vjp, launch_mma, launch_vjp, mma_plan, plan, prepare_filter, warmup
from fftconv_cupy.benchmarks.problems import Case, make_inputs
from fftconv_cupy.errors import InvalidArgumentError

_CASE = Case("causal", "float16", 4096, 4096, batch=2, channels=5)


def _arrays(dtype: str = "float16") -> tuple[object, object]:
    inputs = make_inputs(replace(_CASE, dtype=dtype))
    return to_cupy(inputs.u), to_cupy(inputs.k)


@pytest.mark.parametrize("precision", ["medium"])
def test_a_prepared_filter_brings_its_precision(precision: str) -> None:
    expected, _ = run(_CASE, precision)
    with host_gpu():
        u, k = _arrays()
        prepared = prepare_filter(k, seqlen=4096, precision=precision)
        assert (prepared.precision, prepared.strategy, prepared.points) == (precision, precision, 4096)
        assert prepared.nbytes == 5 * (4096 * 4 + 16)
        for asked in (None, precision, "medium"):
            out = to_cupy(np.zeros((2, 5, 4096), np.float16))
            fftconv(u, prepared, precision=asked, out=out)
            assert _bytes(out) == expected.tobytes()


def _bytes(array: object) -> bytes:
    return to_numpy(array).tobytes()


def test_a_prepared_filter_is_not_used_where_more_is_asked() -> None:
    with host_gpu():
        u, k = _arrays()
        prepared = prepare_filter(k, seqlen=4096, precision="medium")
        for asked in ("highest", "high"):
            with pytest.raises(InvalidArgumentError, match=rf"precision: got '{asked}'; allowed: 'medium'"):
                fftconv(u, prepared, precision=asked)
        with pytest.raises(InvalidArgumentError, match=r"u.dtype: got float32; allowed: float16 or bfloat16"):
            fftconv(_arrays("float32")[0], prepared)
        with pytest.raises(InvalidArgumentError, match="precision: got 'highest'"):
            fftconv_vjp(u, u, prepared, wrt="u")


def test_a_filter_of_the_highest_precision_serves_every_call() -> None:
    with host_gpu():
        u, k = _arrays()
        prepared = prepare_filter(k, seqlen=4096)
        assert prepared.precision == "highest"
        assert _bytes(fftconv(u, prepared, precision="medium")) == _bytes(fftconv(u, k))
        assert not launch_mma._launchers


def test_a_gpu_without_tensor_cores_for_halves_runs_the_highest() -> None:
    with host_gpu("sm_75"):
        u, k = _arrays()
        prepared = prepare_filter(k, seqlen=4096, precision="medium")
        assert prepared.precision == "highest"
        assert _bytes(fftconv(u, prepared, precision="medium")) == _bytes(fftconv(u, k, precision="high"))
        assert not launch_mma._launchers


@pytest.mark.parametrize("asked", [None, "high", "medium"])
def test_gradients_take_tensor_cores_where_that_is_asked_for(asked: str | None) -> None:
    with host_gpu():
        u, k = _arrays()
        grads = fftconv_vjp(u, u, k, precision=asked)
        exact = fftconv_vjp(u, u, k, precision="highest")
        is_same = [_bytes(grads.u), _bytes(grads.k)] == [_bytes(exact.u), _bytes(exact.k)]
        assert is_same == (asked != "medium")
        # The spectrum of a prepared filter is that of a float32 transform.
        prepared = prepare_filter(k, seqlen=4096)
        assert _bytes(fftconv_vjp(u, u, prepared, wrt="u", precision=asked).u) == _bytes(exact.u)


def test_short_filters_are_still_cut_into_windows() -> None:
    assert type(plan(8, 64, 16384, 16, precision="medium", arch="sm_90")) is type(plan(8, 64, 16384, 16, arch="sm_90"))


def test_groups_of_channels_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(_CASE, channels=7, skip_dtype="float16", in_gate=True)
    expected, _ = run(case, "medium")
    planner = sys.modules[mma_plan.channel_group.__module__]
    monkeypatch.setattr(planner, "WORKSPACE_LIMIT", 3 * 4096 * 12)
    y, made = run(case, "medium")
    assert 1 < made.channel_group < 7
    assert y.tobytes() == expected.tobytes()


def test_many_channel_blocks_spread_over_grid_y_and_z(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mma_plan, "GRID_YZ", 2)
    made = check(Case("causal", "float16", 4096, 4096, batch=3, channels=5), "medium", orders=("ascending",))
    assert made.grid == (2, 2, 3)


def test_warmup_loads_what_calls_of_any_alignment_need() -> None:
    with host_gpu():
        lines = warmup(2, 5, 4096, 4096, precision="medium")
        assert {line.split(":")[0].split()[-1] for line in lines} == {
            "fftconv_mma_fwd",
            "fftconv_filter",
            "fftconv_mma_filter",
        }
        assert sum("fftconv_mma_fwd" in line for line in lines) == 2
        warm = dict(launch_mma._launchers)
        for layout in ("packed", "odd"):
            arguments, _ = place_all(replace(_CASE, layout=layout), make_inputs(_CASE), "medium")
            fftconv(**arguments)
        assert launch_mma._launchers == warm


def test_warmup_loads_what_gradients_of_any_alignment_need() -> None:
    with host_gpu():
        lines = warmup(2, 5, 4096, 4096, precision="medium", wrt="u")
        assert sum("fftconv_mma_bwd" in line for line in lines) == 2
        warm = dict(launch_vjp._launchers)
        for layout in ("packed", "even", "odd"):
            u = Placed.of(make_inputs(_CASE).u, layout).array
            fftconv_vjp(u, u, to_cupy(make_inputs(_CASE).k), wrt="u", precision="medium")
        assert launch_vjp._launchers == warm
