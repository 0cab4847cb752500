"""What is timed: one record a problem, and the suites that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fftconv_cupy.problem import ITEM_BYTES, Problem, make_problem

FILTERS = ("prepared", "raw")
HALF_DTYPES = ("float16", "bfloat16")
FULL_ROWS = 64 * 768
"""B x H that times are scaled to, that of the published tables."""

_CAUSAL_SIZES = tuple(1 << log2 for log2 in range(8, 16))
_CIRCULAR_SIZES = tuple(1 << log2 for log2 in range(8, 15))


@dataclass(frozen=True, slots=True)
class Cell:
    """One problem to time.

    Attributes:
        suite: which question it answers, see `SUITES`.
        mode: as for `fftconv`.
        gated: with both gates, or with none.
        dtype: of u, the gates and the output; the filter is float32.
        batch: B.
        channels: H.
        seqlen: L.
        filter_len: K.
        filter: "prepared", or "raw" when each call transforms the filter.
        framework: whose arrays our library gets, "cupy" or "torch".
        strided: u is every second batch of a larger array.
    """

    suite: str
    mode: str
    gated: bool
    dtype: str
    batch: int
    channels: int
    seqlen: int
    filter_len: int
    filter: str = "prepared"
    framework: str = "cupy"
    strided: bool = False

    @property
    def problem(self) -> Problem:
        """The validated problem."""
        return make_problem(
            self.mode,
            batch=self.batch,
            channels=self.channels,
            seqlen=self.seqlen,
            filter_len=self.filter_len,
            dtype=self.dtype,
            in_gate=self.gated,
            out_gate=self.gated,
        )

    @property
    def scale(self) -> float:
        """What a time is multiplied by to be one of B x H = 64 x 768."""
        return FULL_ROWS / (self.batch * self.channels)

    @property
    def floor_bytes(self) -> int:
        """Bytes of inputs and output, each read or written once; the filter, small beside them, is not counted."""
        rows = self.batch * self.channels
        out_len = self.problem.out_len
        points = self.seqlen + out_len + (self.seqlen + out_len if self.gated else 0)
        return rows * points * ITEM_BYTES[self.dtype]

    @property
    def label(self) -> str:
        """The cell on one line."""
        gates = "gated" if self.gated else "plain"
        strided = " strided" if self.strided else ""
        shape = f"N={self.problem.fft_size} L={self.seqlen} K={self.filter_len} B={self.batch} H={self.channels}"
        return f"{self.mode} {gates} {self.dtype} {shape}{strided} {self.filter}"


def shape_of(fft_size: int) -> tuple[int, int]:
    """Return B and H of the published tables for an FFT size: 64 x 768, and less from 16384 points on."""
    return {16384: (32, 768), 32768: (16, 768)}.get(fft_size, (64, 768) if fft_size < 16384 else (8, 768))


def cell_of(suite: str, mode: str, fft_size: int, *, gated: bool, dtype: str, filter: str = "prepared") -> Cell:
    """Return the cell that fills an FFT size in the shape of the published tables: L = N / 2, circular L = N."""
    batch, channels = shape_of(fft_size)
    seqlen = fft_size if mode == "circular" else fft_size // 2
    return Cell(suite, mode, gated, dtype, batch, channels, seqlen, seqlen, filter)


def _speed() -> Iterator[Cell]:
    """Yield the cells of the target table: each size, plain and gated, both 16-bit dtypes, filter prepared and raw."""
    for dtype in HALF_DTYPES:
        for size in _CAUSAL_SIZES:
            for gated in (False, True):
                for filter in FILTERS:
                    yield cell_of("speed", "causal", size, gated=gated, dtype=dtype, filter=filter)
        for size in _CIRCULAR_SIZES:
            for filter in FILTERS:
                yield cell_of("speed", "circular", size, gated=True, dtype=dtype, filter=filter)
            yield cell_of("speed", "circular", size, gated=False, dtype=dtype)


def _small_batch() -> Iterator[Cell]:
    """Yield cells of batch 8, where making the spectrum weighs most."""
    for size in (1024, 8192, 32768):
        for filter in FILTERS:
            cell = cell_of("batch", "causal", size, gated=False, dtype="float16", filter=filter)
            yield replace(cell, batch=8)


def _shapes() -> Iterator[Cell]:
    """Yield odd lengths, a strided u, and modes with longer outputs, in the shapes of cells of the target table."""
    for dtype in HALF_DTYPES:
        for seqlen, size in ((1000, 2048), (4095, 8192), (8191, 16384)):
            for gated in (False, True):
                cell = cell_of("shapes", "causal", size, gated=gated, dtype=dtype)
                yield replace(cell, seqlen=seqlen, filter_len=seqlen)
        for size in (2048, 8192, 16384):
            cell = cell_of("shapes", "causal", size, gated=False, dtype=dtype)
            yield replace(cell, strided=True)
            yield replace(cell, mode="same")
            yield replace(cell, mode="full")


def _float32() -> Iterator[Cell]:
    for size in _CAUSAL_SIZES:
        yield cell_of("float32", "causal", size, gated=False, dtype="float32")


def _memory() -> Iterator[Cell]:
    """Yield raw filters of many channels, whose spectra together would take far more than the limit."""
    yield Cell("memory", "causal", True, "float16", 1, 8192, 16384, 16384, "raw")
    yield Cell("memory", "causal", False, "bfloat16", 2, 65536, 1024, 1024, "raw")
    yield Cell("memory", "circular", False, "float16", 2, 8192, 16384, 16384, "raw")
    yield Cell("memory", "causal", False, "float32", 512, 768, 128, 128, "raw")


def _host() -> Iterator[Cell]:
    """Yield the small problem on which the time of Python alone is measured."""
    for framework in ("cupy", "torch"):
        yield Cell("host", "causal", False, "float16", 2, 16, 128, 128, "prepared", framework)


SUITES = {
    "speed": _speed,
    "batch": _small_batch,
    "shapes": _shapes,
    "float32": _float32,
    "memory": _memory,
    "host": _host,
}
"""The suites; all of them together are the suite "targets"."""


def cells_of(suite: str) -> list[Cell]:
    """Return the cells of a suite of `SUITES`, or of "targets"."""
    names = tuple(SUITES) if suite == "targets" else (suite,)
    return [cell for name in names for cell in SUITES[name]()]
