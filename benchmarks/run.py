"""Timing cells: several passes over all of them, each with its own copy bandwidth, and a record for each result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import fftconv_cupy
from fftconv_cupy.benchmarks import kinds
from fftconv_cupy.benchmarks.baselines import OURS, Implementation
from fftconv_cupy.benchmarks.cells import Timed
from fftconv_cupy.benchmarks.timing import Timing

OUT_OF_MEMORY = "out of memory"

_SPARE_RUNS = 2  # tried in place of void ones
_MEMORY_WORDS = (OUT_OF_MEMORY, "RESOURCE_EXHAUSTED", "CUFFT_ALLOC_FAILED", "cudaErrorMemoryAllocation")

Record = dict[str, Any]


class Clock(Protocol):
    """What a session needs of a GPU; `fftconv_cupy.benchmarks.timing.GpuClock` is one."""

    l2_flushed: bool

    def time(self, call: Callable[[], Any]) -> Timing:
        """Return the time of a call."""

    def copy_gb_per_s(self) -> float:
        """Return the bandwidth of a copy."""

    def extra_mib(self, call: Callable[[], Any], framework: str) -> float | None:
        """Return the memory that a call takes beside its inputs and its output, None where that is not known."""

    def host_ms(self, call: Callable[[], Any]) -> float:
        """Return the time that Python spends in a call."""

    def release(self) -> None:
        """Give memory that no array holds any more back to the GPU, for other libraries to take."""


@dataclass(slots=True)
class _Result:
    """What is known of one implementation on one cell."""

    framework: str
    error: float | None = None
    extra_mib: float | None = None
    launches: int | None = None
    note: str | None = None
    timings: list[Timing] = field(default_factory=list)


@dataclass(slots=True)
class Session:
    """Times cells and keeps what comes out.

    Attributes:
        clock: of the GPU.
        min_copy_gb_per_s: a run whose copy is slower is void: something else uses the GPU, or it is throttled.
        implementations: what is timed.
        budget_s: no cell is begun after so many seconds; None means that there is no end to it.
        draw: makes the arrays of a cell.
        judge: makes the sample of rows that gives the error.
        now: the clock of the budget, in seconds.
        copies: bandwidth of each run that counts, in GB/s.
        void_copies: of those that do not.
        notes: what could not be timed, and why.
        missing: names of implementations that are not installed.
        failed: our own implementation raised an error that is none of the environment's.
    """

    clock: Clock
    min_copy_gb_per_s: float = 0.0
    implementations: Sequence[Implementation] = kinds.IMPLEMENTATIONS
    budget_s: float | None = None
    draw: Callable[[Timed], Any] = kinds.draw
    judge: Callable[[Timed, Any], Any] = kinds.judge
    now: Callable[[], float] = time.monotonic
    copies: list[float] = field(default_factory=list)
    void_copies: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    failed: bool = False
    _results: dict[tuple[Timed, str], _Result] = field(default_factory=dict)
    _dropped: set[tuple[Timed, str]] = field(default_factory=set)

    def run(self, cells: Sequence[Timed], runs: int) -> Iterator[None]:
        """Time every cell in each of several runs; yields after each cell of a run that counts."""
        started = self.now()
        for _ in range(runs + _SPARE_RUNS):
            if len(self.copies) == runs:
                return
            copy = self.clock.copy_gb_per_s()
            if copy < self.min_copy_gb_per_s:
                self.void_copies.append(copy)
                continue
            self.copies.append(copy)
            for number, cell in enumerate(cells):
                if self.budget_s is not None and self.now() - started > self.budget_s:
                    left = f"of run {len(self.copies)}, {len(cells) - number} of {len(cells)} problems were left out"
                    self.notes.append(f"The {self.budget_s:g} seconds were over: {left}.")
                    return
                self._time_cell(cell)
                yield

    def records(self) -> list[Record]:
        """Return a record for each cell and implementation, with the medians over the runs; times are not scaled."""
        copy = statistics.median(self.copies)
        return [self._record(cell, name, result, copy) for (cell, name), result in self._results.items()]

    def _time_cell(self, cell: Timed) -> None:
        wanted = [i for i in self.implementations if i.takes(cell) and (cell, i.name) not in self._dropped]
        if not wanted:
            return
        data = sample = None
        for implementation in wanted:
            try:
                data = data if data is not None else self.draw(cell)
                if sample is None and (cell, implementation.name) not in self._results:
                    sample = self.judge(cell, data)
                self._time(cell, implementation, data, sample)
            except Exception as error:
                self._drop(cell, implementation, error)
            self.clock.release()

    def _drop(self, cell: Timed, implementation: Implementation, error: Exception) -> None:
        """Leave out what cannot be timed, and note why: another library that is missing once, for all cells."""
        is_missing = isinstance(error, ImportError)
        if is_missing and implementation.name != OURS:
            self.implementations = [i for i in self.implementations if i is not implementation]
            self.missing.add(implementation.name)
            self.notes.append(f"{implementation.name} is not timed: {error}")
            return
        self._dropped.add((cell, implementation.name))
        if is_out_of_memory(error):
            framework = implementation.framework or cell.framework
            self._results[cell, implementation.name] = _Result(framework, note=OUT_OF_MEMORY)
            return
        self.notes.append(f"{implementation.name}, {cell.label}: not timed: {type(error).__name__}: {error}")
        is_expected = is_missing or isinstance(error, fftconv_cupy.UnsupportedProblemError)
        self.failed |= implementation.name == OURS and not is_expected

    def _time(self, cell: Timed, implementation: Implementation, data: Any, sample: Any) -> None:
        framework = implementation.framework or cell.framework
        call = implementation.prepare(cell, None if data is None else data.to(framework))
        result = self._results.get((cell, implementation.name), _Result(framework))
        if cell.measured == "itself":
            result.timings.append(Timing(call(), 0.0))
        else:
            if not result.timings:
                if framework == "jax":  # the peak of its memory is seen at the first call only
                    result.extra_mib = self.clock.extra_mib(call, framework)
                result.error = None if sample is None else sample.error(call())
                if framework != "jax":
                    result.extra_mib = self.clock.extra_mib(call, framework)
                result.launches = kinds.launches(cell, implementation.name)
            is_host = cell.measured == "host"
            result.timings.append(Timing(self.clock.host_ms(call), 0.0) if is_host else self.clock.time(call))
        self._results[cell, implementation.name] = result

    def _record(self, cell: Timed, name: str, result: _Result, copy: float) -> Record:
        runs_ms = [timing.ms for timing in result.timings]
        is_timed = bool(runs_ms) and result.note is None
        return {
            "suite": cell.recorded_suite,
            "impl": name,
            **cell.facts,
            "framework": result.framework,
            "ms": statistics.median(runs_ms) if is_timed else None,
            "runs_ms": runs_ms if is_timed else [],
            "floor_ms": None if cell.floor_bytes is None else cell.floor_bytes / copy / 1e6,
            "scale": cell.scale,
            "error": result.error,
            "extra_mib": result.extra_mib,
            "burst_ms": statistics.median(timing.burst_ms for timing in result.timings) if is_timed else None,
            "l2_flushed": self.clock.l2_flushed and cell.measured == "gpu",
            "launches": result.launches,
            "note": result.note,
        }


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of any library says that the GPU's memory does not suffice."""
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or any(word.lower() in str(error).lower() for word in _MEMORY_WORDS)
