"""What is timed: what every kind of cell tells of itself, and the long convolutions among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fftconv_cupy.problem import ITEM_BYTES, Problem, Wanted, make_problem

FILTERS = ("prepared", "raw")
DIRECTIONS = ("forward", "backward")
FULL_ROWS = 64 * 768
"""B x H that times are scaled to, that of the published tables."""

_SHAPES = {  # B and H of the published tables, from each FFT size on
    1: (64, 768),
    1 << 14: (32, 768),
    1 << 15: (16, 768),
    1 << 16: (8, 768),
    1 << 17: (8, 384),
    1 << 18: (8, 192),
    1 << 19: (8, 96),
    1 << 20: (8, 48),
    1 << 21: (8, 32),
    1 << 22: (8, 16),
}


@dataclass(frozen=True, slots=True)
class Timed:
    """What every kind of cell has: the fields of its records, and how its time is taken and shown.

    Attributes:
        suite: which question it answers, see `fftconv_cupy.benchmarks.suites`.
        mode: as for `fftconv`.
        gated: with both gates, or with none.
        dtype: of u, the gates and the output; the filter is float32.
        batch: B.
        channels: H.
        seqlen: L.
        filter_len: K.
        filter: "prepared", or "raw" when each call transforms the filter.
        framework: whose arrays our library gets, "cupy" or "torch".
        direction: "forward", or "backward" for all gradients, with a raw filter.
        precision: as for `fftconv`.
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
    direction: str = "forward"
    precision: str = "highest"

    @property
    def is_backward(self) -> bool:
        """Whether gradients are timed."""
        return self.direction == "backward"

    @property
    def fft_size(self) -> int | None:
        """Real points of the transform, where there is one."""
        return None

    @property
    def measured(self) -> str:
        """How the time is taken: on the "gpu" between events, on the "host", or by the call "itself"."""
        return "gpu"

    @property
    def scale(self) -> float:
        """What a time is multiplied by in tables."""
        return 1.0

    @property
    def floor_bytes(self) -> int | None:
        """Bytes that have to be read and written, where they say what the least time is."""
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of a record that say what was timed, those of a kind of cells last."""
        return {
            "direction": self.direction,
            "mode": self.mode,
            "gated": self.gated,
            "precision": self.precision,
            "dtype": self.dtype,
            "filter": self.filter,
            "framework": self.framework,
            "fft_size": self.fft_size,
            "batch": self.batch,
            "channels": self.channels,
            "seqlen": self.seqlen,
            "filter_len": self.filter_len,
            **self.own_facts,
        }

    @property
    def own_facts(self) -> dict[str, Any]:
        """What only records of this kind of cells have."""
        return {}

    @property
    def recorded_suite(self) -> str:
        """The suite as records name it."""
        return self.suite

    @property
    def label(self) -> str:
        """The cell on one line."""
        gates = "gated" if self.gated else "plain"
        shape = f"L={self.seqlen} K={self.filter_len} B={self.batch} H={self.channels}"
        backward = " backward" if self.is_backward else ""
        precision = "" if self.precision == "highest" else f" {self.precision}"
        return f"{self.mode} {gates} {self.dtype} {shape} {self.filter}{backward}{precision}{self.remark}"

    @property
    def remark(self) -> str:
        """What a kind of cell adds to its label."""
        return ""


@dataclass(frozen=True, slots=True)
class Cell(Timed):
    """A long convolution, or all of its gradients.

    Attributes:
        strided: u is every second batch of a larger array.
    """

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
            precision=self.precision,
        )

    @property
    def wanted(self) -> Wanted:
        """The gradients that are timed: all that there are, none in the forward direction."""
        backward, gates = self.is_backward, self.is_backward and self.gated
        return Wanted(u=backward, k=backward, in_gate=gates, out_gate=gates)

    @property
    def fft_size(self) -> int:
        """Real points of the transform."""
        return self.problem.fft_size

    @property
    def measured(self) -> str:
        """How the time is taken: in the suite "host" that of Python alone."""
        return "host" if self.suite == "host" else "gpu"

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
    def recorded_suite(self) -> str:
        """The suite as records name it: strided cells have one of their own."""
        return "strided" if self.strided else self.suite

    @property
    def remark(self) -> str:
        """The FFT size, and whether u is strided."""
        return f" N={self.fft_size}{' strided' if self.strided else ''}"


def shape_of(fft_size: int) -> tuple[int, int]:
    """Return B and H of the published tables for an FFT size: 64 x 768, and less from 16384 points on."""
    return _SHAPES[max(size for size in _SHAPES if size <= fft_size)]


def cell_of(suite: str, mode: str, fft_size: int, *, gated: bool, dtype: str, filter: str = "prepared") -> Cell:
    """Return the cell that fills an FFT size in the shape of the published tables: L = N / 2, circular L = N."""
    batch, channels = shape_of(fft_size)
    seqlen = fft_size if mode == "circular" else fft_size // 2
    return Cell(suite, mode, gated, dtype, batch, channels, seqlen, seqlen, filter)
