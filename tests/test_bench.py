"""``fftconv bench`` without a GPU: records and their schema, void runs, what is timed, the command."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import bench_session
import numpy as np
import pytest
from bench_session import H100_COPY, RECORD_KEYS, FakeClock, FakeSample, judged, on_target, session
from click.testing import CliRunner

import fftconv_cupy
from fftconv_cupy.benchmarks import baselines, device_code, environment
from fftconv_cupy.benchmarks.baselines import OURS, Implementation
from fftconv_cupy.benchmarks.cells import Cell, cell_of, cells_of
from fftconv_cupy.benchmarks.data import Data, Sample
from fftconv_cupy.benchmarks.run import Session
from fftconv_cupy.cli import main
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.readers import NUMPY_DTYPES

launches = bench_session.launches


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
    monkeypatch.setattr(command, "warm_forward", lambda problem: [])
    monkeypatch.setattr(command, "warm_vjp", lambda problem, wanted: [])


@pytest.mark.usefixtures("played_gpu")
def test_the_targets_are_timed_judged_and_written(tmp_path):
    path = tmp_path / "targets.json"
    done = bench("--suite", "targets", "--json", str(path), "--commit", "abc")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("193 of 193 targets met")
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


@pytest.mark.usefixtures("played_gpu")
def test_gradients_are_compared_with_gradients():
    done = bench("--fft-size", "8192", "--gates", "both", "--filter", "raw", "--direction", "all")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines() if line.endswith("2.00e-04") and OURS in line]
    assert [line[:3] for line in lines] == [["custom", "causal", "gated"], ["custom", "backward", "causal"]]
    # 10 ms for the rfft way in either direction.
    assert [line[-5:-2] for line in lines] == [["0.9416", "1.77", "10.62"], ["2.15", "2.30", "4.65"]]


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
    assert lines[-1].startswith("187 of 193 targets met")


def test_options_name_cells():
    chosen_cells = sys.modules["fftconv_cupy.cli.bench"].chosen_cells
    given = dict.fromkeys(("seqlens", "sizes", "modes", "dtypes", "filters"), ())
    given |= {"gates": "all", "batch": None, "channels": None, "framework": "cupy", "direction": "forward"}
    assert {cell.problem.fft_size for cell in chosen_cells(given)} == {256, 1024, 4096, 8192, 16384, 32768}
    given |= {"seqlens": (1000,), "gates": "both", "batch": 2, "filters": ("raw",), "modes": ("circular", "same")}
    assert [(c.mode, c.seqlen, c.batch, c.channels, c.gated, c.filter) for c in chosen_cells(given)] == [
        ("circular", 1000, 2, 768, True, "raw"),
        ("same", 1000, 2, 768, True, "raw"),
    ]
    given |= {"direction": "all", "filters": (), "modes": ("full",)}
    assert [(c.filter, c.direction) for c in chosen_cells(given)] == [
        ("prepared", "forward"),
        ("raw", "forward"),
        ("raw", "backward"),
    ]
    with pytest.raises(Exception, match="a raw filter"):
        chosen_cells(given | {"filters": ("prepared",)})
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
