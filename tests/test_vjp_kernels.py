"""The kernels of gradients on the host runtime, through the API, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from host_runtime.harness import ORDERS
from vjp_kernel_cases import VjpCase, case_of, check, drawn, judge, make_dy, run

from fftconv_cupy.benchmarks.problems import gradients_of, make_inputs
from fftconv_cupy.blocks import BLOCK_CONFIGS
from fftconv_cupy.problem import DTYPES

SEVERAL_ROWS = [points for points, config in BLOCK_CONFIGS.items() if config.rows > 1]
CASES_EACH = 6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", BLOCK_CONFIGS)
def test_gradients(points: int, dtype: str) -> None:
    for vjp_case in drawn(points, dtype, CASES_EACH):
        assert check(vjp_case).config.points == points


@pytest.mark.parametrize(("points", "arch"), [*((points, "sm_90") for points in BLOCK_CONFIGS), (16384, "sm_80")])
def test_no_races(points: int, arch: str) -> None:
    # More rows than a block has, in neither a multiple of its slots in B nor in H.
    batch, channels = (19, 3) if points in SEVERAL_ROWS else (5, 2)
    changes = {"batch": batch, "channels": channels, "seqlen": points - 2}
    check(VjpCase(case_of(points, **changes), arch=arch), race_check=True)


@pytest.mark.parametrize("wrt", [("u", "k"), ("k",), ("out_gate",)], ids="-".join)
def test_no_races_without_the_rest(wrt: tuple[str, ...]) -> None:
    """A transform that follows a transform, not an inverse one, needs a barrier of its own."""
    for points in (1024, 2048):
        check(VjpCase(case_of(points, batch=9), wrt), race_check=True)


@pytest.mark.parametrize("points", SEVERAL_ROWS)
def test_rows_and_slots(points: int) -> None:
    for batch, channels in ((1, 1), (2, 17), (3, 5), (7, 2), (15, 1), (16, 3), (17, 2), (33, 3)):
        check(VjpCase(case_of(points, batch=batch, channels=channels)), orders=("random",))


def test_blocks_take_several_chunks_of_several_steps() -> None:
    made = check(VjpCase(case_of(128, batch=300, channels=70)), orders=("ascending",))
    assert made.chunks.chunk_steps > 1
    assert made.chunks.count > 2 * made.chunks.blocks
    made = check(VjpCase(case_of(2048, batch=80, channels=3, filter_len=1027)), orders=("ascending",))
    assert made.chunks.group_chunks > 1
    assert made.chunks.group_steps % made.chunks.chunk_steps  # the last chunk of a group is shorter


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_many_chunks_of_a_channel_are_added_up_by_a_kernel(is_shared: bool) -> None:
    for points, batch in ((2048, 400), (16384, 20)):
        case = case_of(points, batch=batch, channels=2, seqlen=points - 1, filter_len=points, shared_filter=is_shared)
        made = check(VjpCase(case, arch="sm_80"), orders=("ascending",))
        assert made.has_reduce
    single = check(VjpCase(case_of(4096, batch=2, channels=1)), orders=("ascending",))
    assert not single.has_reduce


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_groups_of_channels(is_shared: bool) -> None:
    for points in (256, 2048):
        case = case_of(points, batch=5, channels=7, filter_dtype="float16", shared_filter=is_shared)
        made = check(VjpCase(case, has_groups=True), orders=("ascending",))
        assert made.channel_group < 7
        assert made.launches > 6


@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_taps_that_reach_no_output_have_gradient_zero(mode: str) -> None:
    case = case_of(128, mode=mode, seqlen=20, filter_len=300, fft_size=None if mode == "causal" else 128)
    grads, _ = run(VjpCase(case))
    dead = slice(20, None) if mode == "causal" else slice(20, 128 - 19)
    assert not grads.k[:, dead].any()
    assert grads.k[:, :20].all()


@pytest.mark.parametrize("points", [256, 1024, 2048, 16384])
def test_a_value_that_is_not_finite_stays_in_its_row_and_channel(points: int) -> None:
    case = case_of(points, batch=5, channels=3, filter_len=9)
    inputs, dy = make_inputs(case), make_dy(case)
    clean64 = gradients_of(case, inputs, dy)
    inputs.u[1, 0, points // 2] = np.nan
    dy[2, 2, 3] = np.inf
    grads, _ = run(VjpCase(case), inputs, dy)
    clean = np.ones((5, 3), bool)
    clean[1, 0] = clean[2, 2] = False
    for name in ("u", "in_gate", "out_gate"):
        grad = getattr(grads, name)
        assert np.isfinite(grad[clean]).all()
        error = np.linalg.norm(grad[clean].astype(float) - getattr(clean64, name)[clean])
        assert error < 1e-6 * np.linalg.norm(getattr(clean64, name)[clean])
    assert not np.isfinite(grads.u[2, 2]).all()
    assert np.isfinite(grads.k[1]).all()
    assert np.isfinite(grads.skip[1])
    assert not np.isfinite(grads.k[[0, 2]]).any(axis=-1).all() or not np.isfinite(grads.k[[0, 2]]).all()


@pytest.mark.parametrize("points", [128, 1024, 8192, 16384])
def test_sums_of_large_values_stay_in_range(points: int) -> None:
    """Products of two transforms would leave float32 where their sum over the ring, divided by M, does not."""
    case = case_of(points, "float32", batch=2, channels=1, filter_len=7, skip_dtype=None, in_gate=False, out_gate=False)
    inputs, dy = make_inputs(case), make_dy(case)
    scale = np.float32(2.0**56)
    inputs.u[...] = np.abs(inputs.u) * scale
    dy[...] = np.abs(dy) * scale
    grads, _ = run(VjpCase(case), inputs, dy)
    judge(case, grads, gradients_of(case, inputs, dy))


def test_the_same_in_every_run_and_whatever_else_is_asked_for() -> None:
    case = case_of(2048, batch=9)
    everything, _ = run(VjpCase(case))
    for order in ORDERS:
        again, _ = run(VjpCase(case), order=order)
        assert all(one.tobytes() == two.tobytes() for one, two in zip(everything, again, strict=True))
    only, _ = run(VjpCase(case, ("u",)))
    error = np.linalg.norm(only.u.astype(float) - everything.u.astype(float))
    assert error < 1e-6 * np.linalg.norm(everything.u.astype(float))
