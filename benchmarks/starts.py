"""What the first call of a process takes: with no kernel compiled yet, and with all of them in the cache on disk.

Run as a program, ``python -m fftconv_cupy.benchmarks.starts SHAPE...``, this makes that call and prints its time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from fftconv_cupy.benchmarks.baselines import OURS, Call, Implementation
from fftconv_cupy.benchmarks.cells import DIRECTIONS, Timed
from fftconv_cupy.dependencies import import_cupy

STARTS = ("cold", "cached")
_LONGEST_S = 300


@dataclass(frozen=True, slots=True)
class StartCell(Timed):
    """The first call of a process, from the arrays to the end of its kernels.

    Attributes:
        start: "cold" with an empty cache of kernels, "cached" with one in which they lie.
    """

    start: str = "cold"

    @classmethod
    def of(cls, start: str, *, direction: str) -> StartCell:
        """Return a cell of the suite "start": a gated causal convolution at FFT size 8192."""
        shape = (8, 64, 4096, 4096)
        return cls("start", "causal", True, "float16", *shape, "raw", direction=direction, start=start)

    @property
    def measured(self) -> str:
        """How the time is taken: the call returns it."""
        return "itself"

    @property
    def own_facts(self) -> dict[str, Any]:
        """What only records of this kind of cells have."""
        return {"start": self.start}

    @property
    def remark(self) -> str:
        """Which start it is."""
        return f" {self.start} start"


def _prepare(cell: StartCell, data: None) -> Call:
    """Return a call that starts a process and returns the milliseconds of its first convolution.

    The cache of the cached start is filled by a process before.
    """
    ordinal = import_cupy().cuda.Device().id

    def call() -> float:
        with tempfile.TemporaryDirectory(prefix="fftconv-start-") as folder:
            if cell.start == "cached":
                first_call_ms(cell, folder, ordinal)
            return first_call_ms(cell, folder, ordinal)

    return call


def first_call_ms(cell: StartCell, folder: str, ordinal: int) -> float:
    """Return the time of the first call in a new process whose cache of kernels is ``folder``.

    Raises:
        RuntimeError: the process failed; the message holds the last line that it printed.
    """
    numbers = (ordinal, cell.batch, cell.channels, cell.seqlen, cell.filter_len)
    command = [sys.executable, "-m", "fftconv_cupy.benchmarks.starts", cell.direction, *map(str, numbers)]
    environment = {**os.environ, "FFTCONV_CACHE_DIR": folder, "CUDA_CACHE_DISABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LONGEST_S)
    if done.returncode:
        raise RuntimeError(f"a process that starts fftconv failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return float(done.stdout)


def _first_call(direction: str, ordinal: int, batch: int, channels: int, seqlen: int, filter_len: int) -> float:
    """Return the milliseconds of one call in this process, on zeros: the GPU and CuPy are up before it."""
    import fftconv_cupy

    cupy = import_cupy()
    with cupy.cuda.Device(ordinal):
        rows, gate, dy = (cupy.zeros((batch, channels, seqlen), "float16") for _ in range(3))
        k = cupy.zeros((channels, filter_len), "float32")
        cupy.cuda.Stream.null.synchronize()
        started = time.perf_counter()
        if direction == DIRECTIONS[1]:
            fftconv_cupy.fftconv_vjp(dy, rows, k, in_gate=gate, out_gate=gate)
        else:
            fftconv_cupy.fftconv(rows, k, in_gate=gate, out_gate=gate)
        cupy.cuda.Stream.null.synchronize()
        return (time.perf_counter() - started) * 1e3


STARTED = (Implementation(OURS, None, lambda cell: True, _prepare, StartCell),)

if __name__ == "__main__":
    sys.stdout.write(f"{_first_call(sys.argv[1], *map(int, sys.argv[2:]))}\n")
