"""Plans of rows that outgrow a block: sizes, workspace, and that tasks rely on tasks of lower numbers."""

from __future__ import annotations

import itertools

import pytest

from fftconv_cupy import plan
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.blocks import BLOCK_CONFIGS
from fftconv_cupy.cluster_plan import ClusterPlan
from fftconv_cupy.cluster_vjp_plan import ClusterVjpPlan
from fftconv_cupy.errors import UnsupportedProblemError
from fftconv_cupy.long_blocks import LongConfig
from fftconv_cupy.long_plan import COUNTER_BYTES, LongPlan, make_long_plan
from fftconv_cupy.long_vjp_plan import LongVjpPlan, make_long_vjp_plan
from fftconv_cupy.plan import WORKSPACE_LIMIT, fits_block, max_points
from fftconv_cupy.problem import Problem, Wanted, make_problem

SIZES = [1 << log2 for log2 in range(16, 25)]
SHAPES = ((1, 1), (64, 768), (1, 4096), (3, 5), (1000, 1), (8, 2))
ALL = Wanted(u=True, k=True, in_gate=True, out_gate=True, skip=True)


def _problem(fft_size: int, batch: int = 2, channels: int = 3, dtype: str = "float16", **changes: bool) -> Problem:
    lengths = {"seqlen": fft_size // 2, "filter_len": fft_size // 2}
    return make_problem("causal", batch=batch, channels=channels, dtype=dtype, **lengths, **changes)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_size_has_a_plan_that_fits_the_gpu(arch: str) -> None:
    limits = ARCHS[arch]
    for fft_size, dtype in itertools.product(SIZES, ("float16", "float32")):
        if fits_block(_problem(fft_size), limits):
            continue
        assert isinstance(plan(2, 3, fft_size // 2, fft_size // 2, dtype=dtype, arch=arch), (ClusterPlan, LongPlan))
        made = make_long_plan(_problem(fft_size, 2, 3, dtype), limits)
        config = made.config
        assert config.points == fft_size // 2 == config.rows * config.row.points
        assert config.shared_bytes <= limits.block_shared_bytes
        assert sum(config.tile_log2_radices) == config.log2_rows
        assert made.blocks <= limits.multiprocessors * config.resident(limits)
        assert isinstance(
            plan(2, 3, fft_size // 2, fft_size // 2, dtype=dtype, arch=arch, wrt="k"), (ClusterVjpPlan, LongVjpPlan)
        )


@pytest.mark.parametrize("arch", ["sm_75", "sm_86", "sm_90"])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_the_workspace_keeps_its_limit(arch: str, is_shared: bool) -> None:
    limits = ARCHS[arch]
    for fft_size, (batch, channels), dtype in itertools.product(SIZES, SHAPES, ("float16", "float32")):
        problem = _problem(fft_size, batch, channels, dtype, shared_filter=is_shared, skip=True)
        if fits_block(problem, limits):
            continue
        points = fft_size // 2
        for made, per_point in (
            (make_long_plan(problem, limits), 16),
            (make_long_vjp_plan(problem, ALL, limits), 40),
        ):
            small = COUNTER_BYTES * made.schedule.counters + made.schedule.slots * 8 * made.config.rows + 2048
            assert made.workspace_bytes <= max(WORKSPACE_LIMIT, per_point * points) + small
            assert small < 1 << 20
            assert made.launches == 1


def test_tasks_are_as_many_as_phases_of_rows_filters_and_sums() -> None:
    problem = _problem(1 << 18, 5, 7)
    made, made_vjp = make_long_plan(problem, ARCHS["sm_90"]), make_long_vjp_plan(problem, ALL, ARCHS["sm_90"])
    for schedule, phases, items in ((made.schedule, 3, 5 + 1), (made_vjp.schedule, 4, 5 + 1 + 1)):
        steps = schedule.lead + 7 * items + (phases - 1) * schedule.distance
        assert schedule.tasks == steps * phases * made.config.rows


def test_few_rows_and_many_need_the_same_workspace_from_some_number_on() -> None:
    sizes = {make_long_plan(_problem(1 << 20, 64, channels), ARCHS["sm_90"]).workspace_bytes for channels in (9, 768)}
    assert len(sizes) == 1


@pytest.mark.parametrize(("dtype", "intermediate"), [("float16", "float16"), ("bfloat16", "float16"), ("float32",) * 2])
def test_sixteen_bit_rows_have_sixteen_bits_between_the_passes(dtype: str, intermediate: str) -> None:
    problem = _problem(1 << 17, dtype=dtype)
    assert make_long_plan(problem, ARCHS["sm_90"]).intermediate == intermediate
    assert f"in {intermediate}" in str(make_long_plan(problem, ARCHS["sm_90"]))


def test_transforms_that_some_gpus_hold_in_a_block_have_float32_between_the_passes_of_others() -> None:
    assert make_long_plan(_problem(1 << 15), ARCHS["sm_75"]).intermediate == "float32"


def test_a_plan_tells_the_whole_story() -> None:
    text = str(plan(64, 768, 1 << 20, 1 << 20, in_gate=True, arch="sm_90"))
    for words in ("128 rows", "of 8192", "persistent blocks", "launches        1", "workspace", "outgrow a block"):
        assert words in text
    text = str(plan(64, 768, 1 << 20, 1 << 20, arch="sm_90", wrt=("u", "k")))
    for words in ("gradients du, dk", "sum of dk", "persistent blocks", "launches        1", "workspace"):
        assert words in text
    assert "circular filter" in str(plan(1, 1, 32768, 32768, mode="circular", arch="sm_90"))
    assert "one by one" in str(plan(1, 1, 32769, 32769, arch="sm_90"))


@pytest.mark.parametrize("arch", ARCHS)
def test_more_than_the_largest_transform_is_refused(arch: str) -> None:
    for wrt in (None, "k"):
        plan(1, 1, 1 << 23, 1 << 23, arch=arch, wrt=wrt)
        plan(1, 1, 1 << 23, 1 << 23, mode="circular", arch=arch, wrt=wrt)
        with pytest.raises(UnsupportedProblemError, match=r"16777216.*Shorten"):
            plan(1, 1, (1 << 23) + 1, (1 << 23) + 1, arch=arch, wrt=wrt)
        with pytest.raises(UnsupportedProblemError, match="8388608"):
            plan(1, 1, (1 << 23) + 1, 1 << 23, mode="circular", arch=arch, wrt=wrt)


def test_rows_that_fit_a_block_stay_there() -> None:
    for arch, limits in ARCHS.items():
        points = max_points(limits)
        assert plan(1, 1, points, points, arch=arch).config.points == points
        assert isinstance(plan(1, 1, 2 * points, 2 * points, arch=arch), (ClusterPlan, LongPlan))


def test_a_larger_fft_size_than_needed_changes_nothing() -> None:
    assert plan(1, 1, 100, 100, fft_size=1 << 20, arch="sm_90").config.points == 128


def test_a_split_in_longer_or_shorter_rows_can_be_asked_for() -> None:
    made = make_long_plan(_problem(1 << 18), ARCHS["sm_90"], row_points=2048)
    assert made.config == LongConfig(BLOCK_CONFIGS[2048], 6)


@pytest.mark.parametrize("mode", ["circular", "same"])
def test_warmup_compiles_for_raw_and_for_prepared_filters(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy", reason="warming up needs CuPy: pip install 'fftconv-cupy[cuda12]'")
    from fftconv_cupy import launch_long, launch_long_vjp, launchers

    compiled = set()
    monkeypatch.setattr(launchers, "precompile", lambda spec, arch: compiled.add(spec))
    problem = make_problem(mode, batch=4, channels=8, seqlen=30000, filter_len=36000)
    wanted = Wanted(u=True)
    launch_long.warm(problem, ["sm_90"])
    launch_long_vjp.warm_vjp(problem, wanted, ["sm_90"])
    for is_prepared in (False, True):
        limits = ARCHS["sm_90"]
        assert make_long_plan(problem, limits, is_prepared=is_prepared).kernel in compiled
        assert make_long_vjp_plan(problem, wanted, limits, is_prepared=is_prepared).kernel in compiled
