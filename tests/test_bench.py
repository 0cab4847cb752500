"""``fftconv bench`` without a GPU: cells, records and their schema, void runs, the check against the targets."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import fftconv_cupy
from fftconv_cupy.benchmarks import baselines, cells, device_code, environment, run, targets
from fftconv_cupy.benchmarks.baselines import OURS, Implementation
from fftconv_cupy.benchmarks.cells import Cell, cell_of, cells_of
from fftconv_cupy.benchmarks.data import Data, Sample
from fftconv_cupy.benchmarks.run import Session
from fftconv_cupy.benchmarks.timing import Timing
from fftconv_cupy.cli import main
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.readers import NUMPY_DTYPES

RECORD_KEYS = [
    *("suite", "impl", "direction", "mode", "gated", "precision", "dtype", "filter", "framework"),
    *("fft_size", "batch", "channels", "seqlen", "filter_len", "ms", "floor_ms", "scale"),
    *("error", "extra_mib", "burst_ms", "l2_flushed", "launches"),
]
H100_COPY = 3020.0


class FakeClock:
    """A clock whose times are what a call returns, in ms scaled to B x H = 64 x 768."""

    l2_flushed = True

    def __init__(self, copies=()):
        self.copies = list(copies)

    def time(self, call):
        return Timing(call(), 120.0)

    def copy_gb_per_s(self):
        return self.copies.pop(0) if self.copies else H100_COPY

    def extra_mib(self, call, framework):
        return 12.5

    def host_ms(self, call):
        return 0.015


class FakeSample:
    """Rows that any result agrees with."""

    def __init__(self, cell, data):
        pass

    def error(self, result):
        return 2e-4


def session(ms_of, **options):
    """Return a session in which ours takes ``ms_of(cell)``, unscaled."""
    ours = Implementation(OURS, None, lambda cell: True, lambda cell, data: lambda: ms_of(cell))
    nothing = Data(None, None, None, None)
    options = {"implementations": [ours], "draw": lambda cell: nothing, "judge": FakeSample} | options
    return Session(options.pop("clock", FakeClock()), **options)


def on_target(cell):
    """Return a time that meets every target of a cell."""
    size = cell.problem.fft_size
    figure = targets.figure_ms("causal" if cell.mode != "circular" else "circular", cell.gated, size)
    if cell.mode == "circular" and not cell.gated:
        figure = targets.figure_ms("circular", True, size) / 2
    raw = 1.07 if cell.filter == "raw" else 1.0
    wide = 1.3 if cell.dtype == "float32" else 1.0
    return figure * raw * wide / cell.scale if figure else 1.0


@pytest.fixture
def launches(monkeypatch):
    """Count one launch for ours, which otherwise asks for the plan of the GPU at hand."""
    monkeypatch.setattr(run, "_launches", lambda cell, implementation: 1)


@pytest.mark.usefixtures("launches")
def test_records_have_the_schema_and_plain_units():
    cell = cell_of("speed", "causal", 16384, gated=True, dtype="float16")
    timed = session(on_target)
    assert len(list(timed.run([cell], 3))) == 3
    (record,) = timed.records()
    assert list(record) == RECORD_KEYS
    assert record["ms"] == pytest.approx(2.13 * 32 / 64)
    assert record["scale"] == 2.0
    # u, two gates and y, 32 x 768 rows of 8192 points of 2 bytes.
    assert record["floor_ms"] == pytest.approx(4 * 32 * 768 * 8192 * 2 / H100_COPY / 1e6)
    fixed = {"suite": "speed", "impl": OURS, "direction": "forward", "precision": "highest", "fft_size": 16384}
    assert {key: record[key] for key in fixed} == fixed
    assert record["l2_flushed"] is True


@pytest.mark.usefixtures("launches")
def test_a_run_with_a_slow_copy_is_void_and_the_median_of_three_others_counts():
    times = iter([9.0, 1.0, 3.0, 2.0])  # the first call is not timed: its result is compared with float64
    clock = FakeClock([H100_COPY, 2000.0, H100_COPY, 2951.0])
    timed = session(lambda cell: next(times), clock=clock, min_copy_gb_per_s=2950.0)
    list(timed.run([cell_of("speed", "causal", 256, gated=False, dtype="float16")], 3))
    assert timed.void_copies == [2000.0]
    assert timed.copies == [H100_COPY, H100_COPY, 2951.0]
    assert timed.records()[0]["ms"] == 2.0


@pytest.mark.usefixtures("launches")
def test_nothing_counts_where_every_copy_is_slow():
    timed = session(on_target, clock=FakeClock([100.0] * 9), min_copy_gb_per_s=2950.0)
    assert list(timed.run(cells_of("batch"), 3)) == []
    assert timed.copies == []


@pytest.mark.usefixtures("launches")
def test_what_fails_is_noted_and_the_rest_is_timed():
    def missing(cell, data):
        raise ImportError("no module named flashfftconv")

    def broken(cell, data):
        raise RuntimeError("out of memory")

    def ours(cell, data):
        if cell.seqlen == 128:
            raise fftconv_cupy.UnsupportedProblemError("too long")
        return lambda: 1.0

    implementations = [
        Implementation(OURS, None, lambda cell: True, ours),
        Implementation("flash", None, lambda cell: True, missing),
        Implementation("other", None, lambda cell: True, broken),
    ]
    timed = session(on_target, implementations=implementations)
    list(timed.run([cell_of("speed", "causal", size, gated=False, dtype="float16") for size in (256, 512)], 3))
    assert [(record["impl"], record["fft_size"]) for record in timed.records()] == [(OURS, 512)]
    assert len(timed.notes) == 4  # flash once, other on both cells, ours on one
    assert not timed.failed


@pytest.mark.usefixtures("launches")
def test_an_error_of_our_own_is_a_failure():
    def ours(cell, data):
        raise RuntimeError("illegal address")

    timed = session(on_target, implementations=[Implementation(OURS, None, lambda cell: True, ours)])
    list(timed.run(cells_of("float32")[:1], 1))
    assert timed.failed
    assert "illegal address" in timed.notes[0]


def judged(ms_of, **options):
    timed = session(ms_of, **options)
    list(timed.run(cells_of("targets"), 1))
    return timed.records(), targets.check(timed.records())


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
        "memory": 4 + 1,
        "host": 2,
    }


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize(
    ("slow", "factor", "what"),
    [
        (lambda c: c.suite == "speed" and c.filter == "prepared" and c.problem.fft_size == 512, 1.06, "time"),
        (lambda c: c.suite == "speed" and c.filter == "raw" and c.gated and c.seqlen == 16384, 1.02, "raw filter"),
        (lambda c: c.suite == "batch" and c.filter == "raw" and c.seqlen == 512, 1.15, "raw filter"),
        (lambda c: c.seqlen == 8191, 1.31, "shapes"),
        (lambda c: c.strided, 1.31, "strided"),
        (lambda c: c.mode == "full", 1.31, "shapes"),
        (lambda c: c.suite == "float32", 1.1, "float32"),
        (lambda c: c.mode == "circular" and not c.gated, 1.7, "circular plain"),
    ],
)
def test_a_slow_cell_misses_its_target_and_no_other_kind(slow, factor, what):
    cells_slow = [cell for cell in cells_of("targets") if slow(cell)]
    _, verdicts = judged(lambda cell: on_target(cell) * (factor if slow(cell) else 1.0))
    missed = [verdict for verdict in verdicts if not verdict.is_met]
    assert {verdict.what for verdict in missed} == {what}
    assert 0 < len(missed) <= len(cells_slow)


def test_figures():
    assert targets.figure_ms("causal", False, 256) == 0.032
    assert targets.figure_ms("circular", True, 16384) == 3.4
    assert targets.figure_ms("circular", True, 32768) is None
    assert targets.figure_ms("circular", False, 256) is None
    # 2.5 times the floor of 64 x 768 rows of 256 points, read and written in 2 bytes each.
    assert targets.figure_ms("causal", False, 512) == pytest.approx(2.5 * 64 * 768 * 256 * 4 / 3020e9 * 1e3)
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


def test_others_are_timed_beside_a_raw_filter_only():
    flash = next(i for i in baselines.IMPLEMENTATIONS if i.name == "FlashFFTConv")
    raw = cell_of("speed", "causal", 4096, gated=True, dtype="float16", filter="raw")
    assert flash.suits(raw)
    assert not flash.suits(cell_of("speed", "causal", 4096, gated=True, dtype="float16"))
    assert not flash.suits(Cell("custom", "causal", False, "float16", 4, 4, 1000, 1000, "raw"))
    assert not flash.suits(cell_of("custom", "causal", 4096, gated=True, dtype="float32", filter="raw"))
    assert all(i.suits(raw) for i in baselines.IMPLEMENTATIONS)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("name", [OURS, "torch.fft rfft"])
def test_implementations_compute_the_same(rng, gated, mode, name):
    """The calls that are timed, on CPU arrays; the sample of rows agrees with float64."""
    torch = pytest.importorskip("torch")
    cell = Cell("custom", mode, gated, "float16", 3, 5, 64, 64, "raw")
    rows = (3, 5, 64)
    u, in_gate, out_gate = (rng.standard_normal(rows).astype(np.float16) for _ in range(3))
    k = (rng.standard_normal((5, 64)) / 8).astype(np.float32)
    data = Data(u, k, in_gate if gated else None, out_gate if gated else None)
    sample = Sample(cell, data)
    (implementation,) = (i for i in baselines.IMPLEMENTATIONS if i.name == name)
    if implementation.framework == "torch":
        data = Data(*(None if array is None else torch.from_numpy(array) for array in data.arrays))
    error = sample.error(implementation.prepare(cell, data)())
    assert 1e-5 < error < 3e-4


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *arguments])


@pytest.fixture
def played_gpu(monkeypatch, launches):
    """Let the command see an H100 on which every cell is on target."""
    command = sys.modules["fftconv_cupy.cli.bench"]
    ours = Implementation(OURS, None, lambda cell: True, lambda cell, data: lambda: on_target(cell))
    rfft = Implementation("torch.fft rfft", "cupy", baselines._is_table_cell, lambda cell, data: lambda: 10.0)
    arrays = Data(None, None, None, None)
    monkeypatch.setattr(environment, "gpu_count", lambda: (1, ""))
    monkeypatch.setattr(environment, "gpu", lambda ordinal: {"gpu": "NVIDIA H100 80GB HBM3", "driver": "580.1"})
    monkeypatch.setattr(command, "import_cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(Device=nullcontext)))
    monkeypatch.setattr(command, "GpuClock", lambda ordinal: FakeClock())
    monkeypatch.setattr(command, "IMPLEMENTATIONS", (ours, rfft))
    monkeypatch.setattr(command, "Session", partial(Session, draw=lambda cell: arrays, judge=FakeSample))
    monkeypatch.setattr(fftconv_cupy, "warmup", lambda *sizes, **options: [])


@pytest.mark.usefixtures("played_gpu")
def test_the_targets_are_timed_judged_and_written(tmp_path):
    path = tmp_path / "targets.json"
    done = bench("--suite", "targets", "--json", str(path), "--commit", "abc")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("154 of 154 targets met")
    content = json.loads(path.read_text())
    assert list(content) == ["environment", "records"]
    described = content["environment"]
    assert {"gpu", "driver", "torch", "version", "command", "copy_gb_per_s"} <= set(described)
    assert described["commit"] == "abc"
    assert described["copies_gb_per_s"] == [H100_COPY] * 3
    assert all(list(record) == RECORD_KEYS for record in content["records"])


@pytest.mark.usefixtures("played_gpu")
def test_options_choose_and_the_table_shows_speed_ups():
    done = bench("--fft-size", "256", "--gates", "none", "--filter", "raw")
    assert done.exit_code == 0, done.output
    ours = next(line for line in done.output.splitlines() if line.endswith("2.00e-04") and OURS in line)
    # B = 64: 1.07 times 0.032 ms, and 10 ms for the rfft way.
    assert ours.split()[-6:] == ["64x768x128", "0.03424", "4.11", "292.06", "12.5", "2.00e-04"]


def test_without_a_gpu_bench_says_so_and_exits_with_3(monkeypatch):
    monkeypatch.setattr(environment, "gpu_count", lambda: (0, "none for this test"))
    done = bench()
    assert done.exit_code == 3
    assert "none for this test" in done.output


@pytest.mark.usefixtures("launches")
def test_check_judges_a_file(tmp_path):
    records, _ = judged(lambda cell: on_target(cell) * (2 if cell.strided else 1))
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"environment": {}, "records": records}))
    done = bench("--check", str(path))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum(line.endswith("MISSED") for line in lines) == 6
    assert lines[-1].startswith("148 of 154 targets met")


def test_options_name_cells():
    chosen_cells = sys.modules["fftconv_cupy.cli.bench"].chosen_cells
    given = dict.fromkeys(("seqlens", "sizes", "modes", "dtypes", "filters"), ())
    given |= {"gates": "all", "batch": None, "channels": None, "framework": "cupy"}
    assert {cell.problem.fft_size for cell in chosen_cells(given)} == {256, 1024, 4096, 8192, 16384, 32768}
    given |= {"seqlens": (1000,), "gates": "both", "batch": 2, "filters": ("raw",), "modes": ("circular", "same")}
    assert [(c.mode, c.seqlen, c.batch, c.channels, c.gated, c.filter) for c in chosen_cells(given)] == [
        ("circular", 1000, 2, 768, True, "raw"),
        ("same", 1000, 2, 768, True, "raw"),
    ]
    given |= {"sizes": (1000,)}
    with pytest.raises(Exception, match="no power of two"):
        chosen_cells(given)


def test_the_environment_names_versions_and_commit():
    described = environment.software()
    assert described["version"] == fftconv_cupy.__version__
    assert environment.commit() == "unknown" or len(environment.commit().removesuffix("-dirty")) == 40
    assert environment.command().startswith("fftconv")


def test_the_benchmarks_own_kernels_compile():
    try:
        nvrtc = import_nvrtc()
    except fftconv_cupy.MissingDependencyError as error:
        pytest.skip(str(error))
    for arch in ("sm_75", "sm_90"):
        program = nvrtc.createProgram(device_code.SOURCE, "benchmark.cu", (), ())
        nvrtc.compileProgram(program, (f"-arch={arch}", "-std=c++17"))
        nvrtc.destroyProgram(program)


@pytest.mark.gpu
def test_a_small_benchmark_on_the_gpu(tmp_path):
    path = tmp_path / "bench.json"
    done = bench("--fft-size", "256", "--batch", "2", "--channels", "16", "--json", str(path))
    assert done.exit_code == 0, done.output
    content = json.loads(path.read_text())
    assert {"gpu", "driver", "cuda", "nvrtc", "cupy", "version", "commit", "command", "copy_gb_per_s"} <= set(
        content["environment"]
    )
    ours = [record for record in content["records"] if record["impl"] == OURS]
    assert len(ours) == 4
    for record in ours:
        assert list(record) == RECORD_KEYS
        assert 0 < record["ms"] < 1
        assert math.isfinite(record["error"])
        assert record["error"] < 3e-4
        assert record["burst_ms"] >= 100
        assert record["launches"] == (1 if record["filter"] == "prepared" else 2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_random_numbers_on_the_gpu_are_normal(dtype):
    cupy = pytest.importorskip("cupy")
    array = cupy.empty(100_001, NUMPY_DTYPES[dtype])
    device_code.fill_normal(array, seed=3, scale=0.5)
    values = array.get().astype(np.float64)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(0.5, rel=0.01)
    assert len(np.unique(values)) > 100
