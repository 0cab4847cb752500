"""Timing cells: several passes over all of them, each with its own copy bandwidth, and a record for each result."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import fftconv_cupy
from fftconv_cupy.arrays import current_device
from fftconv_cupy.benchmarks.baselines import IMPLEMENTATIONS, OURS, Implementation
from fftconv_cupy.benchmarks.cells import Cell
from fftconv_cupy.benchmarks.data import Data, Sample, make_data
from fftconv_cupy.benchmarks.timing import Timing
from fftconv_cupy.launch import device_limits
from fftconv_cupy.vjp_plan import make_vjp_plan

_SPARE_RUNS = 2  # tried in place of void ones

Record = dict[str, Any]


class Clock(Protocol):
    """What a session needs of a GPU; `fftconv_cupy.benchmarks.timing.GpuClock` is one."""

    l2_flushed: bool

    def time(self, call: Callable[[], Any]) -> Timing:
        """Return the time of a call."""

    def copy_gb_per_s(self) -> float:
        """Return the bandwidth of a copy."""

    def extra_mib(self, call: Callable[[], Any], framework: str) -> float:
        """Return the memory that a call takes beside its inputs and its output."""

    def host_ms(self, call: Callable[[], Any]) -> float:
        """Return the time that Python spends in a call."""


@dataclass(slots=True)
class _Result:
    """What is known of one implementation on one cell."""

    framework: str
    error: float
    extra_mib: float
    launches: int | None
    timings: list[Timing] = field(default_factory=list)


@dataclass(slots=True)
class Session:
    """Times cells and keeps what comes out.

    Attributes:
        clock: of the GPU.
        min_copy_gb_per_s: a run whose copy is slower is void: something else uses the GPU, or it is throttled.
        implementations: what is timed.
        draw: makes the arrays of a cell.
        judge: makes the sample of rows that gives the error.
        copies: bandwidth of each run that counts, in GB/s.
        void_copies: of those that do not.
        notes: what could not be timed, and why.
        failed: our own implementation raised an error that is none of the environment's.
    """

    clock: Clock
    min_copy_gb_per_s: float = 0.0
    implementations: Sequence[Implementation] = IMPLEMENTATIONS
    draw: Callable[[Cell], Data] = make_data
    judge: Callable[[Cell, Data], Any] = Sample
    copies: list[float] = field(default_factory=list)
    void_copies: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    _results: dict[tuple[Cell, str], _Result] = field(default_factory=dict)
    _dropped: set[tuple[Cell, str]] = field(default_factory=set)

    def run(self, cells: Sequence[Cell], runs: int) -> Iterator[None]:
        """Time every cell in each of several runs; yields after each cell of a run that counts."""
        for _ in range(runs + _SPARE_RUNS):
            if len(self.copies) == runs:
                return
            copy = self.clock.copy_gb_per_s()
            if copy < self.min_copy_gb_per_s:
                self.void_copies.append(copy)
                continue
            self.copies.append(copy)
            for cell in cells:
                self._time_cell(cell)
                yield

    def records(self) -> list[Record]:
        """Return a record for each cell and implementation, with the medians over the runs; times are not scaled."""
        copy = statistics.median(self.copies)
        return [self._record(cell, name, result, copy) for (cell, name), result in self._results.items()]

    def _time_cell(self, cell: Cell) -> None:
        wanted = [i for i in self.implementations if i.suits(cell) and (cell, i.name) not in self._dropped]
        if not wanted:
            return
        data = self.draw(cell)
        sample = None
        for implementation in wanted:
            try:
                if (cell, implementation.name) not in self._results:
                    sample = sample or self.judge(cell, data)
                self._time(cell, implementation, data, sample)
            except Exception as error:
                self._drop(cell, implementation, error)

    def _drop(self, cell: Cell, implementation: Implementation, error: Exception) -> None:
        """Leave out what cannot be timed, and note why: another library that is missing once, for all cells."""
        is_missing = isinstance(error, ImportError)
        if is_missing and implementation.name != OURS:
            self.implementations = [i for i in self.implementations if i is not implementation]
            self.notes.append(f"{implementation.name} is not timed: {error}")
            return
        self._dropped.add((cell, implementation.name))
        self.notes.append(f"{implementation.name}, {cell.label}: not timed: {type(error).__name__}: {error}")
        is_expected = is_missing or isinstance(error, fftconv_cupy.UnsupportedProblemError)
        self.failed |= implementation.name == OURS and not is_expected

    def _time(self, cell: Cell, implementation: Implementation, data: Data, sample: Any) -> None:
        framework = implementation.framework or cell.framework
        call = implementation.prepare(cell, data.to(framework))
        result = self._results.get((cell, implementation.name))
        if result is None:
            error = sample.error(call())
            result = _Result(framework, error, self.clock.extra_mib(call, framework), _launches(cell, implementation))
        if cell.suite == "host":
            result.timings.append(Timing(self.clock.host_ms(call), 0.0))
        else:
            result.timings.append(self.clock.time(call))
        self._results[cell, implementation.name] = result

    def _record(self, cell: Cell, name: str, result: _Result, copy: float) -> Record:
        is_host = cell.suite == "host"
        return {
            "suite": "strided" if cell.strided else cell.suite,
            "impl": name,
            "direction": cell.direction,
            "mode": cell.mode,
            "gated": cell.gated,
            "precision": "highest",
            "dtype": cell.dtype,
            "filter": cell.filter,
            "framework": result.framework,
            "fft_size": cell.problem.fft_size,
            "batch": cell.batch,
            "channels": cell.channels,
            "seqlen": cell.seqlen,
            "filter_len": cell.filter_len,
            "ms": statistics.median(timing.ms for timing in result.timings),
            "floor_ms": cell.floor_bytes / copy / 1e6,
            "scale": cell.scale,
            "error": result.error,
            "extra_mib": result.extra_mib,
            "burst_ms": statistics.median(timing.burst_ms for timing in result.timings),
            "l2_flushed": self.clock.l2_flushed and not is_host,
            "launches": result.launches,
        }


def _launches(cell: Cell, implementation: Implementation) -> int | None:
    """Return the kernels that a call of ours launches; what others launch is not known."""
    if implementation.name != OURS:
        return None
    if cell.is_backward:
        return make_vjp_plan(cell.problem, cell.wanted, device_limits(current_device())).launches
    planned = fftconv_cupy.plan(
        cell.batch,
        cell.channels,
        cell.seqlen,
        cell.filter_len,
        mode=cell.mode,
        dtype=cell.dtype,
        in_gate=cell.gated,
        out_gate=cell.gated,
        prepared=cell.filter == "prepared",
    )
    return planned.launches
