"""The check of benchmark records against the targets, and the cells that are timed for them."""

from __future__ import annotations

import bench_session
import pytest
from bench_session import H100_COPY, FakeClock, judged, on_target, session

from fftconv_cupy.benchmarks import cells, targets
from fftconv_cupy.benchmarks.suites import cells_of

launches = bench_session.launches


@pytest.mark.usefixtures("launches")
def test_every_target_has_a_cell():
    records, verdicts = judged(on_target)
    assert len(records) == len(set(cells_of("targets")))
    assert all(verdict.is_met for verdict in verdicts), [v for v in verdicts if not v.is_met]
    counts = {what: sum(v.what == what for v in verdicts) for what in {v.what for v in verdicts}}
    assert counts == {
        "time": 2 * (8 + 8 + 7),
        "raw filter": 2 * (8 + 8 + 7) + 3,
        "shapes": 2 * (3 * 2 + 3 * 2),
        "strided": 2 * 3,
        "float32": 8,
        "circular plain": 2 * 7,
        "backward": 2 * (8 + 8),
        "small": 2 * 2,
        "memory": 4 + 1,
        "training memory": 2 + 1,
        "host": 2,
    }


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize(
    ("slow", "factor", "what"),
    [
        (lambda c: c.suite == "speed" and c.filter == "prepared" and c.problem.fft_size == 512, 1.06, "time"),
        (lambda c: c.suite == "speed" and c.filter == "raw" and c.gated and c.seqlen == 16384, 1.07, "raw filter"),
        (lambda c: c.suite == "batch" and c.filter == "raw" and c.seqlen == 512, 1.17, "raw filter"),
        (lambda c: c.seqlen == 8191, 1.37, "shapes"),
        (lambda c: c.strided, 1.37, "strided"),
        (lambda c: c.mode == "full", 1.37, "shapes"),
        (lambda c: c.suite == "float32", 1.14, "float32"),
        (lambda c: c.mode == "circular" and not c.gated, 1.7, "circular plain"),
        (lambda c: c.suite == "backward" and c.gated and c.seqlen == 16384, 1.06, "backward"),
        (lambda c: c.suite == "backward" and not c.gated and c.seqlen == 128, 1.06, "backward"),
        (lambda c: c.suite == "small" and c.channels == 1, 2.11, "small"),
    ],
)
def test_a_slow_cell_misses_its_target_and_no_other_kind(slow, factor, what):
    cells_slow = [cell for cell in cells_of("targets") if slow(cell)]
    _, verdicts = judged(lambda cell: on_target(cell) * (factor if slow(cell) else 1.0))
    missed = [verdict for verdict in verdicts if not verdict.is_met]
    assert {verdict.what for verdict in missed} == {what}
    assert 0 < len(missed) <= len(cells_slow)


@pytest.mark.usefixtures("launches")
def test_a_time_within_five_percent_of_its_figure_is_met():
    def slower(cell):
        ratio = {"shapes": 1.36, "float32": 1.12, "backward": 1.04, "small": 2.08}.get(cell.suite, 1.0)
        return on_target(cell) * (1.05 if cell.filter == "raw" and cell.suite in ("speed", "batch") else ratio)

    _, verdicts = judged(slower)
    assert [verdict for verdict in verdicts if not verdict.is_met] == []


@pytest.mark.usefixtures("launches")
def test_memory_has_no_tolerance():
    clock = FakeClock()
    clock.extra_mib = lambda call, framework: 64.01
    _, verdicts = judged(on_target, clock=clock)
    missed = {verdict.what for verdict in verdicts if not verdict.is_met}
    assert missed == {"memory", "training memory"}


@pytest.mark.usefixtures("launches")
def test_tensor_cores_have_figures_in_times_the_floor():
    timed = session(lambda cell: 1.3 * cell.floor_bytes / H100_COPY / 1e6)
    list(timed.run(cells_of("precision"), 1))
    verdicts = [v for v in targets.check(timed.records()) if v.what == "medium"]
    assert len(verdicts) == 2 * (8 * (2 + 2) + 7)  # dtypes; outputs, gradients; circular
    missed = {(v.what, v.limit / targets.TOLERANCE) for v in verdicts if not v.is_met}
    assert missed == {("medium", 1.2), ("medium", 1.13), ("medium", 1.15)}


def test_figures():
    assert targets.figure_ms("causal", False, 256) == 0.032
    assert targets.figure_ms("circular", True, 16384) == 3.4
    assert targets.figure_ms("circular", True, 32768) is None
    assert targets.figure_ms("circular", False, 256) is None
    # 2.5 times the floor of 64 x 768 rows of 256 points, read and written in 2 bytes each.
    assert targets.figure_ms("causal", False, 512) == pytest.approx(2.5 * 64 * 768 * 256 * 4 / 3020e9 * 1e3)
    assert targets.figure_ms("causal", True, 8192, "backward") == 2.15
    # Plain u, dy and du, gated seven tensors.
    plain, gated = (targets.figure_ms("causal", gated, 512, "backward") for gated in (False, True))
    assert plain == pytest.approx(3.6 * 64 * 768 * 256 * 6 / 3020e9 * 1e3)
    assert gated == pytest.approx(2.2 * 64 * 768 * 256 * 14 / 3020e9 * 1e3)
    for gated in (False, True):
        assert all(targets.figure_ms("causal", gated, 1 << log2, "backward") for log2 in range(8, 16))
    assert [targets.Verdict("time", "", ms, 1.05, "ms").word for ms in (1.05, 1.2, 1.3)] == ["met", "near", "MISSED"]


def test_cells_have_the_shapes_of_the_published_tables():
    speed = cells_of("speed")
    assert {(c.problem.fft_size, c.batch, c.channels) for c in speed if c.mode == "causal"} == {
        *((1 << log2, 64, 768) for log2 in range(8, 14)),
        (16384, 32, 768),
        (32768, 16, 768),
    }
    assert {c.problem.fft_size for c in speed if c.mode == "circular"} == {1 << log2 for log2 in range(8, 15)}
    assert {c.filter for c in speed} == set(cells.FILTERS)
    assert {c.seqlen for c in cells_of("shapes")} >= {1000, 4095, 8191}
