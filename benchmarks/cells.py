"""What is timed: one record a problem, and the suites that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fftconv_cupy.problem import ITEM_BYTES, Problem, Wanted, make_problem

FILTERS = ("prepared", "raw")
DIRECTIONS = ("forward", "backward")
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
        direction: "forward", or "backward" for all gradients, with a raw filter.
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
    direction: str = "forward"

    @property
    def is_backward(self) -> bool:
        """Whether gradients are timed."""
        return self.direction == "backward"

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
    def wanted(self) -> Wanted:
        """The gradients that are timed: all that there are, none in the forward direction."""
        backward, gates = self.is_backward, self.is_backward and self.gated
        return Wanted(u=backward, k=backward, in_gate=gates, out_gate=gates)

    @property
    def scale(self) -> float:
        """What a time is multiplied by to be one of B x H = 64 x 768."""
        return FULL_ROWS / (self.batch * self.channels)

    @property
    def floor_bytes(self) -> int:
        """Bytes of inputs and outputs, each read or written once; the filter, small beside them, is not counted.

        Forward these are u, the gates and the output; backward u, the gates, the gradient of the output, and the
        gradients of u and the gates.
        """
        tensors_in, tensors_out = 1 + self.gated, 1 + self.gated  # of the length of the input, and of the output
        if self.is_backward:
            tensors_in, tensors_out = 2 * tensors_in, tensors_out + self.gated
        points = tensors_in * self.seqlen + tensors_out * self.problem.out_len
        return self.batch * self.channels * points * ITEM_BYTES[self.dtype]

    @property
    def label(self) -> str:
        """The cell on one line."""
        gates = "gated" if self.gated else "plain"
        strided = " strided" if self.strided else ""
        shape = f"N={self.problem.fft_size} L={self.seqlen} K={self.filter_len} B={self.batch} H={self.channels}"
        backward = " backward" if self.is_backward else ""
        return f"{self.mode} {gates} {self.dtype} {shape}{strided} {self.filter}{backward}"


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
    yield Cell("memory", "causal", True, "float16", 1, 8192, 16384, 16384, "raw", direction="backward")
    yield Cell("memory", "causal", False, "bfloat16", 2, 65536, 1024, 1024, "raw", direction="backward")


def _backward() -> Iterator[Cell]:
    """Yield all gradients of the causal cells of the target table."""
    for dtype in HALF_DTYPES:
        for size in _CAUSAL_SIZES:
            for gated in (False, True):
                cell = cell_of("backward", "causal", size, gated=gated, dtype=dtype, filter="raw")
                yield replace(cell, direction="backward")


def _small() -> Iterator[Cell]:
    """Yield gradients of a single batch, where no sum is shared, and of a single channel, where all rows are summed."""
    for dtype in HALF_DTYPES:
        cell = cell_of("small", "causal", 8192, gated=True, dtype=dtype, filter="raw")
        for batch, channels in ((1, 768), (4096, 1)):
            yield replace(cell, batch=batch, channels=channels, direction="backward")


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
    "backward": _backward,
    "small": _small,
    "host": _host,
}
"""The suites; all of them together are the suite "targets"."""


def cells_of(suite: str) -> list[Cell]:
    """Return the cells of a suite of `SUITES`, or of "targets"."""
    names = tuple(SUITES) if suite == "targets" else (suite,)
    return [cell for name in names for cell in SUITES[name]()]
