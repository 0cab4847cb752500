"""When rows are cut into windows, into which, and what the plan says of it; no GPU and no arrays."""

from __future__ import annotations

import pytest

from fftconv_cupy import plan
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.blocks import BLOCK_CONFIGS
from fftconv_cupy.errors import UnsupportedProblemError
from fftconv_cupy.plan import WORKSPACE_LIMIT
from fftconv_cupy.problem import MODES, Problem, Wanted, make_problem
from fftconv_cupy.window_plan import LEAST_GAIN, Cut, cut_of, make_window_plan
from fftconv_cupy.window_vjp_plan import make_window_vjp_plan

SM_90 = ARCHS["sm_90"]
LONG = (1 << 16, (1 << 16) + 1, 1 << 20, 1 << 24)


def problem(mode: str, seqlen: int, filter_len: int, **changes: object) -> Problem:
    given = {"batch": 2, "channels": 768, **changes}
    return make_problem(mode, seqlen=seqlen, filter_len=filter_len, **given)  # type: ignore[arg-type]


def cut(mode: str, seqlen: int, filter_len: int, **changes: object) -> Cut:
    found = cut_of(problem(mode, seqlen, filter_len, **changes), SM_90)
    assert found is not None
    return found


@pytest.mark.parametrize("filter_len", [1, 2, 127, 128, 4096, 8191, 16384])
@pytest.mark.parametrize("seqlen", LONG)
@pytest.mark.parametrize("mode", MODES)
def test_long_rows_with_filters_up_to_16384_taps_are_cut(mode: str, seqlen: int, filter_len: int) -> None:
    made = cut(mode, seqlen, filter_len)
    points = 2 * made.config.points
    lags = made.lags
    assert lags.positive + lags.negative == filter_len
    # What a window keeps is out of reach of wrapped terms, at even positions, and all of the row.
    assert made.lead >= lags.positive - 1
    assert made.lead + made.step - 1 + lags.negative <= points - 1
    assert made.step % 2 == made.lead % 2 == 0
    out_len = problem(mode, seqlen, filter_len).out_len
    assert (made.count(out_len) - 1) * made.step < out_len <= made.count(out_len) * made.step


@pytest.mark.parametrize("mode", MODES)
def test_gradients_keep_inputs_with_the_same_spectrum(mode: str) -> None:
    convolution = problem(mode, 1 << 20, 1001, in_gate=True, out_gate=True)
    made = make_window_vjp_plan(convolution, Wanted(u=True, k=True, in_gate=True, out_gate=True), SM_90)
    outputs = make_window_plan(convolution, SM_90)
    assert made.cut is not None
    assert (made.cut.config, made.cut.lags) == (outputs.config, outputs.lags)
    assert made.cut.lead >= made.cut.lags.negative
    assert made.cut.lead + made.cut.step - 1 + made.cut.lags.positive - 1 <= 2 * made.cut.config.points - 1


def test_short_filters_take_small_windows_and_long_ones_large_windows() -> None:
    sizes = [cut("causal", 1 << 20, filter_len).config.points for filter_len in (16, 128, 1024, 4096, 16384)]
    assert sizes == sorted(sizes)
    assert sizes[1] <= 2048
    assert sizes[-1] == 16384


def test_the_choice_depends_on_lengths_mode_and_size_alone() -> None:
    made = cut("causal", 1 << 18, 300)
    changes = ({"batch": 1}, {"channels": 3}, {"dtype": "float32"}, {"in_gate": True, "skip": True})
    assert all(cut("causal", 1 << 18, 300, **changed) == made for changed in changes)


def test_rows_that_fit_a_block_are_cut_only_where_that_is_clearly_cheaper() -> None:
    assert LEAST_GAIN > 1
    assert cut_of(problem("causal", 16384, 16384), SM_90) is None
    assert cut_of(problem("causal", 16384, 8192), SM_90) is None
    assert cut_of(problem("causal", 100, 5), SM_90) is None
    assert cut("causal", 16384, 128).config.points < 16384


def test_filters_too_long_for_windows_are_left_to_whole_rows() -> None:
    assert cut_of(problem("causal", 1 << 20, 1 << 20), SM_90) is None
    assert cut_of(problem("causal", 1 << 20, 32768), SM_90) is None
    assert cut_of(problem("circular", 1 << 16, (1 << 16) + 3), SM_90) is None  # folded


@pytest.mark.parametrize("arch", ARCHS)
def test_windows_fit_every_architecture(arch: str) -> None:
    for filter_len in (1, 128, 1024):
        made = make_window_plan(problem("causal", 1 << 20, filter_len), ARCHS[arch])
        assert made.shared_bytes <= ARCHS[arch].block_shared_bytes
        assert made.launches == 2
        assert made.workspace_bytes <= WORKSPACE_LIMIT


def test_a_state_is_read_by_windows_however_short_the_row() -> None:
    for seqlen in (1, 100, 4096):
        for filter_len in (1, 2, 128, 16384):
            made = cut("causal", seqlen, filter_len, initial_state=True)
            assert made.lags.positive == filter_len  # taps past the row reach the state
    long = problem("causal", 100, 16384, initial_state=True)
    with pytest.raises(UnsupportedProblemError, match="K: got 16384 with an initial state; allowed: on sm_75 below"):
        make_window_plan(long, ARCHS["sm_75"])


def test_too_many_windows_for_a_grid_are_refused() -> None:
    with pytest.raises(UnsupportedProblemError, match="windows of a channel"):
        make_window_plan(problem("causal", (1 << 30) - 1, 3, batch=1 << 20), SM_90)


def test_the_workspace_is_limited_by_groups_of_channels() -> None:
    made = make_window_plan(problem("causal", 1 << 20, 16384, channels=5000), SM_90)
    groups = -(-5000 // made.channel_group)
    assert groups > 1
    assert made.launches == 2 * groups
    assert made.workspace_bytes <= WORKSPACE_LIMIT
    assert make_window_plan(problem("causal", 1 << 20, 16384, channels=5000), SM_90, is_prepared=True).launches == 1


def test_the_gradient_of_the_output_gate_takes_the_groups_of_the_others() -> None:
    convolution = problem("causal", 1 << 17, 100, channels=32768, out_gate=True)
    made = make_window_vjp_plan(convolution, Wanted(u=True, k=True, out_gate=True), SM_90)
    assert made.backward is not None
    assert made.forward is not None
    groups = -(-32768 // made.backward.channel_group)
    assert groups > 1
    assert (made.forward.channel_group, made.forward.launches) == (made.backward.channel_group, groups)
    assert made.forward.grid[1:] == (made.backward.channel_group, 1)
    assert made.launches == made.backward.launches + groups
    assert f"launches        {groups} (filter prepared)" in str(made)
    assert "and the others' spectrum for a prepared filter:" in str(made)
    alone = make_window_vjp_plan(convolution, Wanted(out_gate=True), SM_90)
    assert "dy in the place of the gate:\n" in str(alone)


def test_the_plan_says_why() -> None:
    said = str(plan(2, 768, 1 << 20, 128, in_gate=True, out_gate=True, arch="sm_90"))
    for words in ("windows", "imaginary part", "1 over global memory", "a filter of 128 taps", "ps a point"):
        assert words in said
    assert "the first window of a circular row" in str(plan(2, 8, 1 << 20, 128, mode="circular", arch="sm_90"))
    assert "one by one" in str(plan(2, 8, (1 << 20) + 1, 128, arch="sm_90"))
    said = str(plan(2, 768, 1 << 20, 128, out_gate=True, wrt=("u", "k", "out_gate"), arch="sm_90"))
    for words in (
        "gradients du, dk, dout_gate of",
        "windows  ",
        "3 transforms of",
        "dy in the place of the gate",
        "sum of dk",
    ):
        assert words in said
    assert set(BLOCK_CONFIGS) >= {made.config.points for made in (cut("full", 1 << 20, 77),)}
    said = str(plan(2, 768, 100, 128, initial_state=True, arch="sm_90"))
    assert "an initial state is the points before the first one" in said
