"""A benchmark's session without a GPU: a clock that plays times, and cells that are on target."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fftconv_cupy.benchmarks import baselines, environment, kinds, targets
from fftconv_cupy.benchmarks.baselines import OURS, Implementation
from fftconv_cupy.benchmarks.data import Data
from fftconv_cupy.benchmarks.run import Session
from fftconv_cupy.benchmarks.suites import cells_of
from fftconv_cupy.benchmarks.timing import Timing
from fftconv_cupy.cli import main

RECORD_KEYS = [
    *("suite", "impl", "direction", "mode", "gated", "precision", "dtype", "filter", "framework"),
    *("fft_size", "batch", "channels", "seqlen", "filter_len", "ms", "runs_ms", "floor_ms", "scale"),
    *("error", "extra_mib", "burst_ms", "l2_flushed", "launches", "note"),
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

    def release(self):
        pass


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
    mode = "circular" if cell.mode == "circular" else "causal"
    figure = targets.figure_ms(mode, cell.gated, size, cell.direction)
    if cell.mode == "circular" and not cell.gated:
        figure = (targets.figure_ms("circular", True, size) or 0.0) / 2
    raw = 1.07 if cell.filter == "raw" and not cell.is_backward else 1.0
    wide = 1.3 if cell.dtype == "float32" else 1.0
    return figure * raw * wide / cell.scale if figure else 1.0


@pytest.fixture
def launches(monkeypatch):
    """Count one launch for ours, which otherwise asks for the plan of the GPU at hand."""
    monkeypatch.setattr(kinds, "launches", lambda cell, name: 1 if name == OURS else None)


def judged(ms_of, **options):
    """Return the records of every target's cell, and the verdicts."""
    timed = session(ms_of, **options)
    list(timed.run(cells_of("targets"), 1))
    return timed.records(), targets.check(timed.records())


def bench(*arguments):
    """Run ``fftconv bench``."""
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


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
    monkeypatch.setattr(kinds, "warm", lambda cell: None)
