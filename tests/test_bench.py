"""Sessions of ``fftconv bench`` without a GPU: records and their schema, void runs, what fails, the budget."""

from __future__ import annotations

import re

import bench_session
import numpy as np
import pytest
from bench_session import H100_COPY, RECORD_KEYS, FakeClock, on_target, session

import fftconv_cupy
from fftconv_cupy.benchmarks import device_code, environment, tables
from fftconv_cupy.benchmarks.baselines import OURS, Implementation
from fftconv_cupy.benchmarks.cells import cell_of
from fftconv_cupy.benchmarks.suites import cells_of
from fftconv_cupy.cli import options
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
        raise RuntimeError("illegal address")

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
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Out of memory allocating 1 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 8 GiB"),
        RuntimeError("RESOURCE_EXHAUSTED: while allocating"),
        RuntimeError("CUFFT_ALLOC_FAILED"),
    ],
)
def test_out_of_memory_is_a_record_that_says_so(error):
    def other(cell, data):
        if cell.seqlen == 256:
            raise error
        return lambda: 5.0

    ours = Implementation(OURS, None, lambda cell: True, lambda cell, data: lambda: 1.0)
    rfft = Implementation("torch.fft rfft", "torch", lambda cell: True, other)
    timed = session(on_target, implementations=[ours, rfft])
    cells = [cell_of("conv", "causal", size, gated=False, dtype="float16", filter="raw") for size in (256, 512)]
    assert len(list(timed.run(cells, 2))) == 4
    records = timed.records()
    assert [(r["impl"], r["seqlen"], r["ms"], r["note"]) for r in records] == [
        (OURS, 128, 1.0, None),
        ("torch.fft rfft", 128, 5.0, None),
        (OURS, 256, 1.0, None),
        ("torch.fft rfft", 256, None, "out of memory"),
    ]
    assert list(records[3]) == RECORD_KEYS
    assert (timed.failed, timed.notes) == (False, [])
    assert re.search(r"^torch.fft rfft +out of memory$", tables.text(records, options.table), re.MULTILINE)


@pytest.mark.usefixtures("launches")
def test_arrays_that_find_no_memory_are_records_too():
    def draw(cell):
        raise MemoryError("out of memory")

    timed = session(on_target, draw=draw)
    list(timed.run([cell_of("conv", "causal", 256, gated=False, dtype="float16")], 1))
    assert [(record["ms"], record["note"]) for record in timed.records()] == [(None, "out of memory")]
    assert not timed.failed


@pytest.mark.usefixtures("launches")
def test_no_cell_is_begun_when_the_budget_is_spent():
    seconds = iter([0, 1, 5, 9, 11, 12])
    timed = session(on_target, budget_s=10, now=lambda: next(seconds))
    cells = [cell_of("conv", "causal", size, gated=False, dtype="float16") for size in (256, 512)]
    assert len(list(timed.run(cells, 3))) == 3  # both of the first run and one of the second
    assert [len(record["runs_ms"]) for record in timed.records()] == [2, 1]
    assert timed.notes == ["The 10 seconds were over: of run 2, 1 of 2 problems were left out."]


@pytest.mark.usefixtures("launches")
def test_an_error_of_our_own_is_a_failure():
    def ours(cell, data):
        raise RuntimeError("illegal address")

    timed = session(on_target, implementations=[Implementation(OURS, None, lambda cell: True, ours)])
    list(timed.run(cells_of("float32")[:1], 1))
    assert timed.failed
    assert "illegal address" in timed.notes[0]


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
