"""What ``fftconv bench`` times: every way computes the same on CPU arrays, as its sample of rows tells."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest

import fftconv_cupy
from fftconv_cupy import DepthwiseGradients
from fftconv_cupy.benchmarks import baselines, kinds, starts
from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.cells import Cell, cell_of
from fftconv_cupy.benchmarks.data import Data, Sample
from fftconv_cupy.benchmarks.short import DEPTHWISE, ShortCell, ShortSample
from fftconv_cupy.benchmarks.starts import StartCell
from fftconv_cupy.benchmarks.suites import SUITES, cells_of
from fftconv_cupy.benchmarks.training import TrainingCell, training_step

DIRECT = "torch conv1d"
LONG = (OURS, "torch.fft rfft", "torch.fft fft", "JAX rfft")


def named(name, implementations=baselines.CONVOLUTIONS):
    return next(implementation for implementation in implementations if implementation.name == name)


def converted(data, framework, monkeypatch):
    """Return NumPy data as that of a framework on the CPU."""
    if framework == "torch":
        convert = pytest.importorskip("torch").from_numpy
    elif framework == "jax":
        convert = pytest.importorskip("jax.numpy").asarray
        monkeypatch.setattr(Data, "synchronized", lambda self: self)
    else:
        return data
    return Data(*(None if array is None else convert(array) for array in (*data.arrays, data.dy)))


def make_arrays(rng, cell):
    rows, outputs = ((cell.batch, cell.channels, length) for length in (cell.seqlen, cell.problem.out_len))

    def draw(shape):
        return rng.standard_normal(shape).astype(cell.dtype)

    k = (rng.standard_normal((cell.channels, cell.filter_len)) / cell.filter_len**0.5).astype(np.float32)
    gates = [draw(rows), draw(outputs)] if cell.gated else [None, None]
    return Data(draw(rows), k, *gates, draw(outputs) if cell.is_backward else None)


def test_others_are_timed_beside_a_raw_filter_only():
    flash = next(i for i in baselines.CONVOLUTIONS if i.name == "FlashFFTConv")
    raw = cell_of("speed", "causal", 4096, gated=True, dtype="float16", filter="raw")
    assert flash.suits(raw)
    assert not flash.suits(cell_of("speed", "causal", 4096, gated=True, dtype="float16"))
    assert not flash.suits(Cell("custom", "causal", False, "float16", 4, 4, 1000, 1000, "raw"))
    assert not flash.suits(cell_of("custom", "causal", 4096, gated=True, dtype="float32", filter="raw"))
    assert {i.name for i in baselines.CONVOLUTIONS if not i.suits(raw)} == {"torch conv1d"}  # for few taps
    few = replace(raw, suite="models", filter_len=7)
    assert {i.name for i in baselines.CONVOLUTIONS if not i.suits(few)} == {"subquadratic-ops"}  # for K = L


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("name", "mode", "filter_len"),
    [
        *((name, mode, 64) for name in LONG for mode in ("causal", "circular")),
        *((name, mode, 7) for name in (*LONG, DIRECT) for mode in ("causal", "same")),
        *((name, "same", 127) for name in LONG),
    ],
)
def test_implementations_compute_the_same(rng, monkeypatch, name, mode, filter_len, gated, direction):
    """The calls that are timed agree with float64 on the sample of rows, and go on to do so."""
    cell = Cell("models", mode, gated, "float16", 3, 5, 64, filter_len, "raw", direction=direction)
    implementation = named(name)
    assert implementation.suits(cell)
    data = make_arrays(rng, cell)
    sample = Sample(cell, data)
    call = implementation.prepare(cell, converted(data, implementation.framework, monkeypatch))
    result = call()
    # The direct way rounds the taps, and the gated input, to float16.
    assert 1e-5 < sample.error(result) < (1e-3 if name == DIRECT else 4e-4)
    assert sample.error(call()) == sample.error(result)


def test_ours_is_timed_with_the_precision_of_the_cell(rng, monkeypatch):
    seen = []
    for name in ("fftconv", "fftconv_vjp", "prepare_filter"):
        call = getattr(fftconv_cupy, name)

        def record(*args, _call=call, precision, **options):
            seen.append(precision)
            return _call(*args, precision=precision, **options)

        monkeypatch.setattr(fftconv_cupy, name, record)
    for options in ({"filter": "prepared"}, {"filter": "raw", "direction": "backward"}):
        cell = Cell("custom", "causal", False, "float16", 2, 3, 64, 64, precision="medium", **options)
        assert cell.problem.precision == "medium"
        assert cell.label.endswith(" medium N=128")
        named(OURS).prepare(cell, make_arrays(rng, cell))()
    assert seen == ["medium"] * 3


def short_arrays(rng, cell):
    shape = (cell.batch, cell.channels, cell.seqlen)
    x, dy = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
    if cell.layout == "BLH":
        x, dy = (np.ascontiguousarray(array.transpose(0, 2, 1)) for array in (x, dy))
    k = rng.standard_normal((cell.channels, cell.filter_len)).astype(np.float16).astype(np.float32)
    return Data(x, k, None, None, dy if cell.is_backward else None)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("taps", [1, 3, 4])
@pytest.mark.parametrize(("name", "layout"), [(OURS, "BHL"), (OURS, "BLH"), (DIRECT, "BHL")])
def test_short_convolutions_compute_the_same(rng, monkeypatch, name, layout, taps, direction):
    cell = ShortCell.of(3, 6, 50, taps, layout=layout, direction=direction)
    implementation = named(name, DEPTHWISE)
    assert implementation.takes(cell)
    assert not implementation.takes(Cell("models", "causal", False, "float16", 3, 6, 50, taps, "raw"))
    data = short_arrays(rng, cell)
    sample = ShortSample(cell, data)
    result = implementation.prepare(cell, converted(data, implementation.framework, monkeypatch))()
    # With the taps in float16 products are exact, but torch may sum them in float16 on the CPU.
    assert sample.error(result) < (2e-3 if name == DIRECT else 3e-4)


@pytest.mark.parametrize("spoiled", ["x", "weight"])
def test_the_error_of_short_gradients_is_that_of_the_worst(rng, spoiled):
    cell = ShortCell.of(3, 6, 50, 3, layout="BHL", direction="backward")
    data = short_arrays(rng, cell)
    sample = ShortSample(cell, data)
    grads = named(OURS, DEPTHWISE).prepare(cell, data)()
    assert isinstance(grads, DepthwiseGradients)
    array = getattr(grads, spoiled).copy()
    array[-1] *= 1.5
    assert 0.1 < sample.error(grads._replace(**{spoiled: array})) < 1


def test_short_floors_and_who_else_is_timed():
    forward = ShortCell.of(16, 768, 1024, 3, layout="BHL", direction="forward")
    assert forward.floor_bytes == 2 * 16 * 768 * 1024 * 2
    assert replace(forward, direction="backward").floor_bytes == 3 * 16 * 768 * 1024 * 2
    names = [i.name for i in DEPTHWISE if i.takes(forward)]
    assert names == [OURS, DIRECT, "FlashFFTConv", "causal-conv1d"]
    assert [i.name for i in DEPTHWISE if i.takes(replace(forward, filter_len=5, layout="BLH"))] == names[::2]
    assert [i.name for i in DEPTHWISE if i.takes(replace(forward, layout="BLH", direction="backward"))] == names[::3]


@pytest.mark.parametrize("convolve", ["fftconv", "torch_fftconv"])
def test_a_training_step_is_one_of_the_example(convolve):
    pytest.importorskip("torch")
    step = training_step(TrainingCell.of(2, 8, 32, dtype="float32"), convolve, device="cpu")
    losses = [float(step()) for _ in range(10)]
    assert math.log(256) * 0.8 < losses[0] < math.log(256) * 1.3
    assert losses[-1] < losses[0] - 0.02


def test_both_ways_of_training_start_alike():
    pytest.importorskip("torch")
    cell = TrainingCell.of(2, 8, 32, dtype="float32")
    losses = [float(training_step(cell, convolve, device="cpu")()) for convolve in ("fftconv", "torch_fftconv")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_start_is_timed_with_a_cache_that_is_empty_or_was_filled(monkeypatch):
    calls = []

    def first_call_ms(cell, folder, ordinal):
        calls.append(folder)
        return 10.0 * len(calls)

    monkeypatch.setattr(starts, "first_call_ms", first_call_ms)
    monkeypatch.setattr(starts, "import_cupy", MagicMock)
    (ours,) = starts.STARTED
    cold, cached = (StartCell.of(start, direction="forward") for start in starts.STARTS)
    assert ours.prepare(cold, None)() == 10
    assert ours.prepare(cached, None)() == 30  # the second process on one folder
    assert calls[1] == calls[2] != calls[0]


def test_a_process_that_fails_to_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"a process that starts fftconv failed: .+"):
        starts.first_call_ms(StartCell.of("cold", direction="forward"), str(tmp_path), 99)


@pytest.mark.parametrize("suite", SUITES)
def test_suites_are_lists_of_different_cells_that_somebody_times(suite):
    cells = cells_of(suite)
    assert cells
    assert len(set(cells)) == len(cells)
    for cell in cells:
        assert any(i.takes(cell) and i.name == OURS for i in kinds.IMPLEMENTATIONS)
        assert kinds.cell_of_record({"suite": cell.recorded_suite, **cell.facts}) == cell


def test_the_sweep_has_the_published_sizes_in_every_case():
    cells = cells_of("conv")
    sizes = {256, 1024, 4096, 8192, 16384, 32768, 65536, 1 << 18, 1 << 20, 1 << 22}
    assert {cell.fft_size for cell in cells} == sizes
    assert len(cells) == len(sizes) * 2 * 2 * 3
    shapes = {cell.fft_size: (cell.batch, cell.channels) for cell in cells}
    assert [shapes[1 << n] for n in (13, 14, 15, 16, 18, 20, 22)] == [
        *((64, 768), (32, 768), (16, 768), (8, 768)),
        *((8, 192), (8, 48), (8, 16)),
    ]
