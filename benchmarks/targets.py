"""The figures that convolutions and their gradients have to meet on an H100 80GB HBM3, and a check of records.

Every time is met within `TOLERANCE` of its figure, also where that is a ratio to another time. Memory and the time of
Python alone have no tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.cells import DIRECTIONS, FULL_ROWS, shape_of

Record = dict[str, Any]

MIN_COPY_GB_PER_S = 2950.0
TOLERANCE = 1.05  # met: within 5 % of a figure
NEAR = 1.25

# Times in ms for B x H = 64 x 768 and 16-bit dtypes, by direction, mode, gated and FFT size: forward with a prepared
# filter, backward of all gradients with a raw one. For other sizes the ratio to the floor is set, at 3020 GB/s.
_MS = {
    ("forward", "causal", False): {256: 0.032, 1024: 0.083, 4096: 0.36, 8192: 0.77, 16384: 1.76, 32768: 3.84},
    ("forward", "causal", True): {256: 0.040, 1024: 0.107, 4096: 0.41, 8192: 0.88, 16384: 2.13, 32768: 4.5},
    ("forward", "circular", True): {256: 0.050, 1024: 0.20, 4096: 0.75, 8192: 1.60, 16384: 3.4},
    ("backward", "causal", True): {1024: 0.26, 4096: 1.03, 8192: 2.15, 16384: 4.9, 32768: 10.8},
}
_FLOOR_RATIO = {
    ("forward", "causal", False): {512: 2.5, 2048: 2.5},
    ("forward", "causal", True): {512: 1.6, 2048: 1.6},
    ("forward", "circular", True): {512: 1.5, 2048: 1.5},
    ("backward", "causal", False): {
        **dict.fromkeys((512, 1024, 2048, 4096), 3.6),
        256: 4.0,
        8192: 3.8,
        16384: 4.3,
        32768: 4.6,
    },
    ("backward", "causal", True): {256: 2.6, 512: 2.2, 2048: 2.2},
}
# Of tensor cores, in times the floor, by direction, mode, gated and precision: FFT size.
_SIZES = tuple(1 << log2 for log2 in range(8, 16))
_TENSOR_CORE_RATIOS = {
    ("forward", "causal", False, "medium"): (2.2, 1.6, 1.6, 1.55, 1.55, 1.55, 1.7, 1.9),
    ("forward", "causal", True, "medium"): (1.5, 1.2, 1.2, 1.13, 1.13, 1.13, 1.2, 1.3),
    ("forward", "circular", True, "medium"): (1.3, 1.2, 1.2, 1.15, 1.15, 1.15, 1.2),
    ("backward", "causal", True, "medium"): (1.9, 1.5, 1.5, 1.45, 1.45, 1.45, 1.5, 1.65),
    ("backward", "causal", False, "medium"): (2.6, 2.1, 2.1, 2.0, 2.0, 2.0, 2.2, 2.4),
}
_TENSORS = {("forward", False): 2, ("forward", True): 4, ("backward", False): 3, ("backward", True): 7}
_RATED_GB_PER_S = 3020.0

RAW_FACTOR = 1.08
RAW_MS = 0.006
RAW_FACTOR_SMALL_BATCH = 1.18
SHAPES_FACTOR = 1.3
FLOAT32_FACTOR = 1.4
FLOAT32_FACTOR_NEAR_FLOOR = 2.1
CIRCULAR_PLAIN_FACTOR = 1.6
SMALL_FACTOR = 2.0
EXTRA_MIB = 64.0
HOST_MS = 0.020


@dataclass(frozen=True, slots=True)
class Verdict:
    """One cell against its figure: ``measured`` is met when it is at most ``limit``."""

    what: str
    cell: str
    measured: float
    limit: float
    unit: str

    @property
    def is_met(self) -> bool:
        """Whether the figure is met."""
        return self.measured <= self.limit

    @property
    def word(self) -> str:
        """The verdict in one word: met, near (a time within 1.25 times its figure) or MISSED."""
        if self.is_met:
            return "met"
        return "near" if self.measured <= self.limit * NEAR / TOLERANCE and self.unit == "ms" else "MISSED"


def figure_ms(mode: str, gated: bool, fft_size: int, direction: str = "forward") -> float | None:
    """Return the time set for a cell of the target table in ms, scaled to B x H = 64 x 768, or None."""
    key = (direction, mode, gated)
    ms = _MS.get(key, {}).get(fft_size)
    ratio = _FLOOR_RATIO.get(key, {}).get(fft_size)
    if ms is not None or ratio is None:
        return ms
    seqlen = fft_size if mode == "circular" else fft_size // 2
    floor_bytes = FULL_ROWS * seqlen * 2 * _TENSORS[direction, gated]
    return ratio * floor_bytes / _RATED_GB_PER_S / 1e6


def check(records: Sequence[Record]) -> list[Verdict]:
    """Return every figure that the records of the suite "targets" let us judge, met or not."""
    ours = [record for record in records if record["impl"] == OURS and record["ms"] is not None]
    verdicts = []
    for judge in (_speed, _raw, _shapes, _float32, _circular_plain, _backward, _small, _memory, _host, _precision):
        verdicts += list(judge(ours))
    return verdicts


def _speed(ours: Sequence[Record]) -> Iterator[Verdict]:
    for record in ours:
        figure = figure_ms(record["mode"], record["gated"], record["fft_size"])
        if record["suite"] == "speed" and record["filter"] == "prepared" and figure is not None:
            yield Verdict("time", _name(record), record["ms"] * record["scale"], TOLERANCE * figure, "ms")


def _raw(ours: Sequence[Record]) -> Iterator[Verdict]:
    """A raw filter against the same cell with a prepared one."""
    for record in ours:
        prepared = _find(ours, record, filter="prepared")
        if record["suite"] in ("speed", "batch") and record["filter"] == "raw" and prepared:
            few = record["batch"] < 16
            limit = prepared["ms"] * (RAW_FACTOR_SMALL_BATCH if few else RAW_FACTOR) + (0.0 if few else RAW_MS)
            yield Verdict("raw filter", _name(record), record["ms"], TOLERANCE * limit, "ms unscaled")


def _shapes(ours: Sequence[Record]) -> Iterator[Verdict]:
    """Odd lengths, strided u, "same" and "full" against the causal cell that fills the same FFT size."""
    for record in ours:
        if record["suite"] not in ("shapes", "strided"):
            continue
        seqlen = record["fft_size"] // 2
        whole = _find(ours, record, suite="speed", mode="causal", filter="prepared", seqlen=seqlen, filter_len=seqlen)
        if whole:
            limit = TOLERANCE * SHAPES_FACTOR
            yield Verdict(record["suite"], _name(record), record["ms"] / whole["ms"], limit, "x whole")


def _float32(ours: Sequence[Record]) -> Iterator[Verdict]:
    for record in ours:
        half = _find(ours, record, suite="speed", dtype="float16")
        if record["suite"] == "float32" and half:
            is_near_floor = half["ms"] <= 2 * half["floor_ms"]
            limit = TOLERANCE * (FLOAT32_FACTOR_NEAR_FLOOR if is_near_floor else FLOAT32_FACTOR)
            yield Verdict("float32", _name(record), record["ms"] / half["ms"], limit, "x float16")


def _circular_plain(ours: Sequence[Record]) -> Iterator[Verdict]:
    for record in ours:
        gated = _find(ours, record, gated=True)
        if record["suite"] == "speed" and record["mode"] == "circular" and not record["gated"] and gated:
            limit = TOLERANCE * CIRCULAR_PLAIN_FACTOR * gated["ms"] / gated["floor_ms"]
            yield Verdict("circular plain", _name(record), record["ms"] / record["floor_ms"], limit, "x floor")


def _backward(ours: Sequence[Record]) -> Iterator[Verdict]:
    for record in ours:
        figure = figure_ms(record["mode"], record["gated"], record["fft_size"], "backward")
        if record["suite"] == "backward" and figure is not None:
            yield Verdict("backward", _name(record), record["ms"] * record["scale"], TOLERANCE * figure, "ms")


def _small(ours: Sequence[Record]) -> Iterator[Verdict]:
    """Gradients of a single batch or channel against those of the full batch, by the time of a row."""
    for record in (record for record in ours if record["suite"] == "small"):
        batch, channels = shape_of(record["fft_size"])
        full = _find(ours, record, suite="backward", batch=batch, channels=channels)
        if full:
            per_row = record["ms"] * record["scale"] / (full["ms"] * full["scale"])
            yield Verdict("small", _name(record), per_row, TOLERANCE * SMALL_FACTOR, "x full batch")


def _memory(ours: Sequence[Record]) -> Iterator[Verdict]:
    """Every memory cell, and in each direction the one of the other cells that takes most.

    Nothing is kept from forward for backward, so training takes as much beside outputs and gradients as the larger.
    """
    cells = [record for record in ours if record["suite"] == "memory"]
    for direction in DIRECTIONS:
        others = [r for r in ours if r["suite"] not in ("memory", "host") and r["direction"] == direction]
        cells += sorted(others, key=lambda record: record["extra_mib"])[-1:]
    for record in cells:
        what = "training memory" if record["direction"] == "backward" else "memory"
        yield Verdict(what, _name(record), record["extra_mib"], EXTRA_MIB, "MiB")


def _host(ours: Sequence[Record]) -> Iterator[Verdict]:
    for record in ours:
        if record["suite"] == "host":
            yield Verdict("host", f"{record['framework']} arrays, prepared", record["ms"] * 1e3, HOST_MS * 1e3, "us")


def _precision(ours: Sequence[Record]) -> Iterator[Verdict]:
    for record in ours:
        key = (record["direction"], record["mode"], record["gated"], record["precision"])
        if record["suite"] == "precision" and key in _TENSOR_CORE_RATIOS:
            limit = dict(zip(_SIZES, _TENSOR_CORE_RATIOS[key], strict=False))[record["fft_size"]]
            ratio = record["ms"] / record["floor_ms"]
            yield Verdict(record["precision"], _name(record), ratio, TOLERANCE * limit, "x floor")


def _find(records: Sequence[Record], like: Record, **changes: Any) -> Record | None:
    """Return the record that differs from another in the given fields only, as far as fields describe the problem."""
    keys = ("suite", "mode", "gated", "dtype", "filter", "fft_size", "batch", "channels", "seqlen", "filter_len")
    wanted = {key: changes.get(key, like[key]) for key in keys}
    return next((record for record in records if all(record[key] == value for key, value in wanted.items())), None)


def _name(record: Record) -> str:
    gates = "gated" if record["gated"] else "plain"
    words = [record["mode"], gates, record["dtype"], f"N={record['fft_size']}"]
    if record["seqlen"] * (1 if record["mode"] == "circular" else 2) != record["fft_size"]:
        words.append(f"L={record['seqlen']}")
    return " ".join([*words, f"B={record['batch']} H={record['channels']}"])
