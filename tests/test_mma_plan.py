"""Which precision a call runs in, what its plan tells, and the constants of the kernels for tensor cores."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fftconv_cupy import fftconv, fftconv_vjp, numeric, plan, prepare_filter, warmup
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.arrays import view
from fftconv_cupy.blocks import BLOCK_CONFIGS, EXTRAS, QUAD_BYTES
from fftconv_cupy.checks import filter_problem
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, UnsupportedProblemError
from fftconv_cupy.kernel_matrix import iter_kernels
from fftconv_cupy.mma_blocks import (
    DTYPES,
    FASTER_POINTS,
    GRADIENT_POINTS,
    MIDDLE_SCALE,
    MMA_BACKWARD_CONFIGS,
    MMA_CONFIGS,
    OUTER_SCALES,
    PHASE,
)
from fftconv_cupy.mma_plan import make_mma_plan, precision_of
from fftconv_cupy.mma_tables import mma_table
from fftconv_cupy.mma_vjp_plan import MmaVjpPlan, make_row_vjp_plan
from fftconv_cupy.plan import Plan
from fftconv_cupy.problem import MODES, Problem, Wanted, make_problem

_CONFIGS = [pytest.param(config, id=f"M{points}") for points, config in MMA_CONFIGS.items()]


def problem(precision: str | None, dtype: str = "float16", mode: str = "causal", **changes: object) -> Problem:
    numbers = {"batch": 2, "channels": 3, "seqlen": 4096, "filter_len": 4096, **changes}
    return make_problem(mode, **numbers, dtype=dtype, precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_medium_runs_with_16_bits_from_sm_80_on_where_it_is_asked_for(
    arch: str, dtype: str, precision: str | None
) -> None:
    has_tensor_cores = arch != "sm_75" and dtype != "float32"
    expected = "medium" if has_tensor_cores and precision == "medium" else "highest"
    assert precision_of(problem(precision, dtype), ARCHS[arch]) == expected


@pytest.mark.parametrize(
    ("dtype", "changes", "expected"),
    [
        ("bfloat16", {"seqlen": 2048, "filter_len": 2048}, "medium"),
        ("float16", {"seqlen": 2048, "filter_len": 2048}, "highest"),  # whose bound it missed
        ("bfloat16", {"seqlen": 2048, "filter_len": 2048, "in_gate": True}, "highest"),
        ("bfloat16", {"in_gate": True, "out_gate": True}, "medium"),
        ("bfloat16", {"seqlen": 8192, "filter_len": 8192, "skip": True}, "medium"),
        ("bfloat16", {"seqlen": 1024, "filter_len": 1024}, "highest"),
        ("bfloat16", {"seqlen": 16384, "filter_len": 16384}, "highest"),
        ("bfloat16", {"seqlen": 4000}, "medium"),
        ("bfloat16", {"seqlen": 4001}, "highest"),  # read element by element
        ("bfloat16", {"mode": "same", "filter_len": 77}, "medium"),
        ("bfloat16", {"mode": "circular", "filter_len": 4096}, "highest"),  # two rows at a time
        ("bfloat16", {"mode": "circular", "seqlen": 4000, "filter_len": 4000}, "medium"),
        ("bfloat16", {"mode": "full", "seqlen": 4096, "filter_len": 2049}, "highest"),  # M = 4096 in float32
        ("bfloat16", {"seqlen": 40000, "filter_len": 40000}, "highest"),
    ],
)
def test_medium_runs_where_it_is_faster_and_within_its_bounds(
    dtype: str, changes: dict[str, object], expected: str
) -> None:
    asked = problem("medium", dtype, **changes)  # type: ignore[arg-type]
    assert precision_of(asked, ARCHS["sm_90"]) == expected
    for other in ("high", "highest"):
        assert precision_of(replace(asked, precision=other), ARCHS["sm_90"]) == "highest"


def test_a_filter_is_prepared_for_calls_with_any_extras_in_either_dtype() -> None:
    assert set(FASTER_POINTS) == set(itertools.product(DTYPES, EXTRAS))
    assert all(set(FASTER_POINTS["float16", "any"]) <= set(points) for points in FASTER_POINTS.values())
    for points in (4096, 8192):
        prepared = filter_problem(
            view(np.ones((3, points), np.float32), "k", None), points, "causal", None, precision="medium"
        )
        assert precision_of(prepared, ARCHS["sm_90"]) == "medium"


def test_a_plan_tells_the_precision() -> None:
    text = str(plan(64, 768, 4096, 4096, dtype="bfloat16", precision="medium", arch="sm_90"))
    assert "medium: tensor cores" in text
    assert "4096 complex points = 16 x 16 x 16" in text
    assert "launches        3" in text
    assert isinstance(plan(64, 768, 4096, 4096, precision="medium", arch="sm_75"), Plan)


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        ({"dtype": "float32"}, "medium"),
        ({"filter_len": 17, "seqlen": 1 << 14}, "high"),
        ({"seqlen": 40000, "filter_len": 40000}, "medium"),
        ({"arch": "sm_75"}, "medium"),
        ({}, "high"),
        ({"mode": "circular"}, "medium"),
        ({"wrt": ("u", "k"), "seqlen": 4095}, "medium"),
        ({"wrt": ("u", "k")}, "high"),
        ({"wrt": "u", "filter_len": 17, "seqlen": 1 << 14}, "medium"),
        ({"wrt": "u", "seqlen": 40000, "filter_len": 40000}, "high"),
        ({"initial_state": True, "filter_len": 64}, "medium"),
    ],
)
def test_a_plan_in_float32_says_so_and_what_would_have_done(call: dict[str, object], asked: str) -> None:
    numbers = {"batch": 2, "channels": 3, "seqlen": 4096, "filter_len": 4096, "arch": "sm_90", **call}
    for precision in (None, "highest"):
        assert "\n  precision       highest: float32 arithmetic\n" in str(plan(**numbers, precision=precision))
    text = str(plan(**numbers, precision=asked))
    assert f"precision       highest: float32 arithmetic; '{asked}' would do" in text


def test_a_plan_of_gradients_tells_the_precision() -> None:
    numbers = {"batch": 64, "channels": 768, "seqlen": 4096, "filter_len": 4096, "dtype": "bfloat16"}
    options = {"precision": "medium", "arch": "sm_90"}
    made = plan(**numbers, **options, wrt=("u", "k"))
    assert isinstance(made, MmaVjpPlan)
    text = str(made)
    assert "medium: tensor cores" in text
    assert "3 a row of 4096 complex points = 16 x 16 x 16" in text
    assert "in registers, float32" in text
    assert {spec.entry for spec, _ in made.kernels} > {"fftconv_mma_bwd", "fftconv_mma_filter", "fftconv_filter_bwd"}
    assert "  sum of dk       none" in str(plan(**numbers, **options, wrt="u"))
    for other in (
        plan(**numbers, **options, wrt="u", prepared=True),
        plan(**numbers, **{**options, "arch": "sm_75"}, wrt="u"),
        plan(**{**numbers, "dtype": "float32"}, **options, wrt="u"),
    ):
        assert not isinstance(other, MmaVjpPlan)


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != "sm_75"])
def test_plans_of_gradients_name_kernels_of_the_matrix(arch: str) -> None:
    specs = {kernel.spec for kernel in iter_kernels(arch, fft_sizes=[4096, 8192, 16384])}
    assert set(MMA_BACKWARD_CONFIGS) == set().union(*GRADIENT_POINTS.values())
    places = [(points, dtype) for dtype, sizes in GRADIENT_POINTS.items() for points in sizes]
    for (points, dtype), is_wide in itertools.product(places, (True, False)):
        convolution = make_problem(
            "causal", batch=3, channels=2, seqlen=points, filter_len=points, dtype=dtype, precision="medium"
        )
        for wanted in (Wanted(u=True, k=True), Wanted(u=True), Wanted(k=True)):
            made = make_row_vjp_plan(convolution, wanted, ARCHS[arch], is_wide=is_wide)
            assert isinstance(made, MmaVjpPlan)
            assert {spec for spec, _ in made.kernels} <= specs


def test_a_plan_that_is_not_for_tensor_cores_is_refused() -> None:
    with pytest.raises(UnsupportedProblemError, match=r"precision: got None .* allowed: 'highest'"):
        make_mma_plan(problem(None), ARCHS["sm_75"])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", MODES)
def test_plans_name_only_kernels_of_the_compile_matrix(arch: str, mode: str) -> None:
    known = {kernel.spec for kernel in iter_kernels(arch)}
    flags = [{}, {"in_gate": True}, {"in_gate": True, "out_gate": True}, {"skip": True}]
    for seqlen, taps, precision, options in itertools.product([1, 256, 4096, 8192], [1, 3000], ["medium"], flags):
        asked = problem(precision, "bfloat16", mode, seqlen=seqlen, filter_len=taps, **options)
        if precision_of(asked, ARCHS[arch]) == precision:
            for is_wide in (True, False):
                made = make_mma_plan(asked, ARCHS[arch], is_wide=is_wide)
                assert {made.forward, made.filter, made.convert} <= known


def test_groups_of_channels_bound_the_workspace() -> None:
    made = make_mma_plan(problem("medium", channels=1 << 16, seqlen=8192, filter_len=8192), ARCHS["sm_90"])
    assert made.workspace_bytes <= 256 << 20
    assert made.launches == 3 * -(-(1 << 16) // made.channel_group)


@pytest.mark.parametrize("bad", ["low", "Highest", ""])
def test_a_precision_of_another_name_is_refused(bad: str) -> None:
    for call in (
        lambda: fftconv(np.ones((1, 8), np.float32), np.ones(3, np.float32), precision=bad),
        lambda: fftconv_vjp(*np.ones((2, 1, 8), np.float32), np.ones(3, np.float32), precision=bad),
        lambda: prepare_filter(np.ones(3, np.float32), seqlen=8, precision=bad),
        lambda: plan(1, 1, 8, 3, precision=bad, arch="sm_90"),
        lambda: warmup(1, 1, 8, 3, precision=bad, archs="sm_90"),
    ):
        with pytest.raises(InvalidArgumentError, match=r"precision: got .*allowed: None, 'highest', 'high', 'medium'"):
            call()


@pytest.mark.parametrize("bad", [1, 0.5, b"high", ["high"]])
def test_a_precision_that_is_no_string_is_refused(bad: object) -> None:
    with pytest.raises(InvalidTypeError, match="precision: got"):
        fftconv(np.ones((1, 8), np.float32), np.ones(3, np.float32), precision=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["highest", "high", "medium", None])
def test_the_cpu_computes_the_same_with_any_precision(precision: str | None) -> None:
    rng = np.random.default_rng(0)
    u, k = rng.standard_normal((2, 3, 50)).astype(np.float16), rng.standard_normal((3, 20)).astype(np.float32)
    prepared = prepare_filter(k, seqlen=50, precision=precision)
    assert fftconv(u, k, precision=precision).tobytes() == fftconv(u, k).tobytes()
    assert fftconv(u, prepared, precision="medium").tobytes() == fftconv(u, k).tobytes()
    grads, plain = fftconv_vjp(u, u, k, precision=precision), fftconv_vjp(u, u, k)
    assert (grads.u.tobytes(), grads.k.tobytes()) == (plain.u.tobytes(), plain.k.tobytes())


def test_the_bounds_of_results_by_precision() -> None:
    exact = np.random.default_rng(0).standard_normal((3, 4096))
    fixed, factor = {"medium": 1.1e-3}, {"medium": 1.2}
    for precision in ("medium",):
        assert numeric.bound(exact, "float16", precision=precision) == fixed[precision]
        rounding = numeric.rounding_error(exact, "bfloat16")
        assert numeric.bound(exact, "bfloat16", precision=precision) == pytest.approx(
            factor[precision] * rounding, 2e-3
        )
        off = exact * (1 + 0.9 * fixed[precision])
        assert numeric.compare(off, exact, "float16", precision=precision).ok
        assert not numeric.compare(exact * (1 + 1.1 * fixed[precision]), exact, "float16", precision=precision).ok
        one_row = np.array([1, 1, 1 + 2 * fixed[precision]])[:, None] * exact
        assert numeric.compare(one_row, exact, "float16", precision=precision).row == (2,)


@pytest.mark.parametrize("config", _CONFIGS)
def test_configurations_are_whole(config) -> None:
    assert config.points in BLOCK_CONFIGS  # whose float32 transform makes the filter's spectrum
    assert config.rows & (config.rows - 1) == 0
    assert config.lines % (config.threads // 32) == 0
    assert mma_table(config).nbytes % QUAD_BYTES == 0


@pytest.mark.parametrize("radix", OUTER_SCALES)
def test_the_scales_of_the_matrices_lose_least(radix: int) -> None:
    turns = np.outer(np.arange(radix), np.arange(radix) + PHASE) / radix
    assert _loss(OUTER_SCALES[radix], turns) <= 1.001 * min(_loss(1 + i / 1024, turns) for i in range(1024)) + 1e-12


def test_the_scale_of_the_middle_matrices_loses_least() -> None:
    turns = np.outer(np.arange(16), np.arange(16)) / 16
    assert _loss(8 * MIDDLE_SCALE, turns) <= min(_loss(1 + i / 1024, turns) for i in range(1024)) + 1e-12


def _loss(scale: float, turns: np.ndarray) -> float:
    """Return the relative error of the parts of e(turns), scaled, as halves."""
    exact = scale * np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)])
    return float(np.linalg.norm(exact.astype(np.float16) - exact) / np.linalg.norm(exact))
