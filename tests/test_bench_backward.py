"""``fftconv bench`` of gradients: what is timed, its floor, its error against float64, its memory and launches."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from bench_session import RECORD_KEYS, FakeClock, session
from click.testing import CliRunner

from fftconv_cupy import Gradients, ahead, fftconv_vjp
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks import baselines
from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.cells import Cell
from fftconv_cupy.benchmarks.data import Data, Sample, filter_gradient
from fftconv_cupy.benchmarks.suites import cells_of
from fftconv_cupy.benchmarks.timing import MIB, GpuClock
from fftconv_cupy.cli import main
from fftconv_cupy.problem import MODES
from fftconv_cupy.reference import fftconv_vjp_reference

CELL = Cell("backward", "causal", True, "float16", 3, 5, 64, 64, "raw", direction="backward")


def make_arrays(rng, cell):
    """Return what `make_data` draws on a GPU, as NumPy arrays."""
    rows, outputs = ((cell.batch, cell.channels, length) for length in (cell.seqlen, cell.problem.out_len))

    def draw(shape):
        return rng.standard_normal(shape).astype(cell.dtype)

    return Data(
        u=draw(rows),
        k=(rng.standard_normal((cell.channels, cell.filter_len)) / 8).astype(np.float32),
        in_gate=draw(rows) if cell.gated else None,
        out_gate=draw(outputs) if cell.gated else None,
        dy=draw(outputs),
    )


def in_torch(data):
    torch = pytest.importorskip("torch")
    return Data(*(None if array is None else torch.from_numpy(array) for array in (*data.arrays, data.dy)))


def named(name):
    return next(implementation for implementation in baselines.CONVOLUTIONS if implementation.name == name)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("name", [OURS, "torch.fft rfft"])
def test_implementations_compute_the_same_gradients(rng, gated, mode, name):
    cell = replace(CELL, mode=mode, gated=gated)
    data = make_arrays(rng, cell)
    sample = Sample(cell, data)
    implementation = named(name)
    call = implementation.prepare(cell, in_torch(data) if implementation.framework == "torch" else data)
    grads = call()
    assert [grad is not None for grad in grads] == list(cell.wanted)
    assert 1e-5 < sample.error(grads) < 4e-4
    assert sample.error(call()) == sample.error(grads)  # the graph is kept


@pytest.mark.parametrize("name", ["u", "k", "in_gate", "out_gate"])
def test_the_error_is_that_of_the_worst_gradient(rng, name):
    data = make_arrays(rng, CELL)
    sample = Sample(CELL, data)
    grads = named(OURS).prepare(CELL, data)()
    spoiled = getattr(grads, name).copy()
    spoiled[-1] *= 1.5
    assert sample.error(grads) < 3e-4
    assert 0.1 < sample.error(grads._replace(**{name: spoiled})) < 1


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("seqlen", "filter_len"), [(64, 64), (37, 100), (100, 30), (1, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_the_filter_gradient_of_the_sample_is_right(rng, monkeypatch, mode, seqlen, filter_len, gated):
    monkeypatch.setattr("fftconv_cupy.benchmarks.data._SUMMED_POINTS", 500)  # the batch is summed in several steps
    cell = replace(CELL, mode=mode, seqlen=seqlen, filter_len=filter_len, gated=gated, batch=7)
    data = make_arrays(rng, cell)
    gates = {"in_gate": data.in_gate, "out_gate": data.out_gate}
    dk = fftconv_vjp_reference(data.dy, data.u, data.k, mode=mode, **gates).k
    np.testing.assert_allclose(filter_gradient(cell, data, 2), dk[2], rtol=0, atol=1e-12 * np.abs(dk).max())


def test_the_floor_counts_what_is_read_and_written():
    rows = 3 * 5 * 2
    assert replace(CELL, gated=False).floor_bytes == rows * 3 * 64  # u, dy, du
    assert CELL.floor_bytes == rows * 7 * 64  # the gates and their gradients too
    full = replace(CELL, mode="full", filter_len=33)
    assert full.floor_bytes == rows * (4 * 64 + 3 * 96)
    assert replace(full, direction="forward").floor_bytes == rows * (2 * 64 + 2 * 96)


def test_cells_of_the_suites():
    backward = cells_of("backward")
    assert {(c.mode, c.filter, c.direction) for c in backward} == {("causal", "raw", "backward")}
    assert {(c.problem.fft_size, c.gated, c.dtype) for c in backward} == {
        (1 << log2, gated, dtype)
        for log2 in range(8, 16)
        for gated in (False, True)
        for dtype in ("float16", "bfloat16")
    }
    speed = {(c.problem.fft_size, c.batch, c.channels) for c in cells_of("speed") if c.mode == "causal"}
    assert {(c.problem.fft_size, c.batch, c.channels) for c in backward} == speed
    small = {(c.problem.fft_size, c.batch, c.channels, c.gated, c.direction) for c in cells_of("small")}
    assert small == {(8192, 1, 768, True, "backward"), (8192, 4096, 1, True, "backward")}


def test_who_can_differentiate_is_timed_beside_ours():
    for cell in (CELL, replace(CELL, suite="custom", seqlen=256, filter_len=256)):
        assert not named("cupyx rfft").suits(cell)
        assert all(named(name).suits(cell) for name in (OURS, "torch.fft rfft", "subquadratic-ops"))
    assert named("FlashFFTConv").suits(replace(CELL, seqlen=256, filter_len=256))
    assert not named("torch.fft rfft").suits(replace(CELL, dtype="bfloat16"))
    assert not named("torch.fft rfft").suits(replace(CELL, suite="small"))


def test_records_tell_the_direction_and_the_launches(monkeypatch):
    monkeypatch.setattr(ahead, "_current_limits", lambda name: ARCHS["sm_90"])
    timed = session(lambda cell: 1.0)
    list(timed.run([CELL], 1))
    (record,) = timed.records()
    assert list(record) == RECORD_KEYS
    assert (record["direction"], record["filter"]) == ("backward", "raw")
    assert record["floor_ms"] == pytest.approx(CELL.floor_bytes / FakeClock().copy_gb_per_s() / 1e6)
    assert record["launches"] == 3  # the filter's spectrum, the rows, the sums


@pytest.mark.parametrize("name", ["a tuple with gaps", "one array"])
def test_memory_does_not_count_what_is_returned(name):
    hooks = []

    class MemoryHook:
        def __enter__(self):
            hooks.append(self)

        def __exit__(self, *_):
            hooks.clear()

    def call():
        for size in (3, 2, 4):
            hooks[0].malloc_postprocess(mem_size=size * MIB)
        hooks[0].free_postprocess(mem_size=2 * MIB)
        array = SimpleNamespace(nbytes=3 * MIB)
        return array if name == "one array" else Gradients(u=array, skip=SimpleNamespace(nbytes=4 * MIB))

    clock = GpuClock.__new__(GpuClock)
    clock._cupy = SimpleNamespace(cuda=SimpleNamespace(MemoryHook=MemoryHook))
    clock._stream = SimpleNamespace(synchronize=lambda: None)
    assert clock.extra_mib(call, "cupy") == (6.0 if name == "one array" else 2.0)


def test_the_gradients_that_are_timed_are_all_that_there_are(rng):
    for gated in (False, True):
        cell = replace(CELL, gated=gated)
        data = make_arrays(rng, cell)
        grads = fftconv_vjp(data.dy, data.u, data.k, in_gate=data.in_gate, out_gate=data.out_gate)
        assert [grad is not None for grad in grads] == list(cell.wanted)
    assert not any(replace(CELL, direction="forward").wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_a_small_benchmark_of_gradients_on_the_gpu(tmp_path, framework):
    if framework == "torch" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("this torch has no CUDA")
    path = tmp_path / "bench.json"
    shape = ("--fft-size", "256", "--batch", "2", "--channels", "16", "--framework", framework)
    done = CliRunner().invoke(main, ["bench", *shape, "--direction", "backward", "--json", str(path)])
    assert done.exit_code == 0, done.output
    ours = [record for record in json.loads(path.read_text())["records"] if record["impl"] == OURS]
    assert [record["gated"] for record in ours] == [False, True]
    for record in ours:
        assert list(record) == RECORD_KEYS
        assert (record["direction"], record["filter"], record["framework"]) == ("backward", "raw", framework)
        assert 0 < record["ms"] < 1
        assert math.isfinite(record["error"])
        assert record["error"] < 4e-4
        assert record["launches"] == 3
