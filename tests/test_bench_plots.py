"""Pictures of ``fftconv bench --plot``: the times, the floor and the ratios that they show."""

from __future__ import annotations

import pytest

from fftconv_cupy.benchmarks import plots
from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.cells import cell_of
from fftconv_cupy.errors import InvalidArgumentError

RFFT = "torch.fft rfft"


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that draws records and returns the panels that hold something."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    figures = []
    monkeypatch.setattr(figure, "savefig", lambda self, *_, **__: figures.append(self))

    def draw(records, how=plots.draw):
        how(records, tmp_path / "out.png", "an H100")
        return [axes for axes in figures.pop().axes if axes.axison]

    return draw


def record(impl, size, ms, **facts):
    cell = cell_of("conv", "causal", size, gated=True, dtype="float16", filter="raw")
    rest = {"ms": ms, "floor_ms": 0.1, "scale": cell.scale, "note": None}
    return {"suite": "conv", "impl": impl, **cell.facts, **rest, **facts}


def test_times_and_floor_are_drawn_over_length_in_log_log(drawn):
    records = [record(OURS, size, size / 1024) for size in (4096, 1024, 16384)]
    records += [record(RFFT, 1024, 12.0), record(RFFT, 4096, 20.0)]
    above, below = drawn(records)
    assert (above.get_xscale(), above.get_yscale()) == ("log", "log")
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in above.get_lines()}
    # At 16384 the batch is half as large, and the time is shown twice as long.
    assert lines["fftconv"] == ([512, 2048, 8192], [1.0, 4.0, 32.0])
    assert lines[RFFT] == ([512, 2048], [12.0, 20.0])
    assert lines["floor: memory alone"][0] == [512, 2048, 8192]
    assert [bar.get_height() for bar in below.patches] == [12.0, 5.0]
    assert [label.get_text() for label in above.get_xticklabels()] == ["512", "2K", "8K"]


def test_ways_without_memory_and_with_two_filters_have_gaps_and_two_lines(drawn):
    records = [record(OURS, size, 1.0, filter=filter) for size in (256, 512) for filter in ("prepared", "raw")]
    records += [record(RFFT, 256, 3.0), record(RFFT, 512, None, note="out of memory")]
    above, below = drawn(records)
    labels = [line.get_label() for line in above.get_lines()]
    assert labels == ["floor: memory alone", "fftconv, prepared filter", "fftconv, raw filter", RFFT]
    assert [bar.get_height() for bar in below.patches] == [3.0]


def test_ours_alone_is_drawn_without_bars_and_others_say_that_they_are_published(drawn):
    ours = [record(OURS, size, 1.0) for size in (256, 512)]
    assert len(drawn(ours)) == 1
    other_mode = [record(OURS, size, 1.0, mode="full") for size in (256, 512)]
    published = record(RFFT, 256, 3.0, note="published", floor_ms=7.0)  # at another bandwidth
    above, _ = drawn([*ours, *other_mode, published])  # the kind that is compared, alone
    lines = {line.get_label(): list(line.get_ydata()) for line in above.get_lines()}
    assert lines[f"{RFFT} (published)"] == [3.0]
    assert lines["floor: memory alone"] == [0.1, 0.1]
    assert above.get_title() == "conv: causal, gated, float16"


def test_a_bar_of_a_wrong_result_says_so(drawn):
    errors = {256: 2e-4, 512: 1.4}
    records = [record(impl, size, ms, error=errors[size]) for impl, ms in ((OURS, 1.0), (RFFT, 3.0)) for size in errors]
    _, below = drawn(records)
    assert [text.get_text() for text in below.texts] == ["3.0", "3.0 (wrong)"]


def test_one_length_is_refused(drawn):
    with pytest.raises(InvalidArgumentError, match="timed at two lengths"):
        drawn([record(OURS, 256, 1.0), record(RFFT, 256, 1.0)])


def test_errors_are_drawn_over_time_a_line_for_each_dtype_and_precision(drawn):
    records = [
        record(OURS, size, ms * size / 1024, precision=precision, error=error, dtype=dtype, direction=direction)
        for size in (16384, 8192)
        for dtype in ("float16", "bfloat16")
        for direction in ("backward", "forward")
        for precision, ms, error in (("highest", 1.0, 2e-4), ("medium", 0.5, 1e-3))
    ]
    outputs, gradients = drawn(records, plots.draw_errors)
    assert (outputs.get_title(), gradients.get_title()) == ("causal, gated, outputs", "causal, gated, gradients")
    assert (outputs.get_xscale(), outputs.get_yscale()) == ("log", "log")
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in outputs.get_lines()}
    assert len(lines) == 4
    # At 16384 the batch is half as large, and the time is shown twice as long.
    assert lines["float16, medium"] == ([4.0, 16.0], [1e-3, 1e-3])
    assert [text.get_text() for text in outputs.texts][:2] == ["4K", "8K"]
