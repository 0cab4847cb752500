"""The suites: lists of cells, each the answer to one question."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from fftconv_cupy.benchmarks.cells import DIRECTIONS, FILTERS, Cell, Timed, cell_of
from fftconv_cupy.benchmarks.short import ShortCell
from fftconv_cupy.benchmarks.starts import STARTS, StartCell
from fftconv_cupy.benchmarks.training import TrainingCell
from fftconv_cupy.depthwise_problem import LAYOUTS
from fftconv_cupy.problem import PRECISIONS

HALF_DTYPES = ("float16", "bfloat16")
PUBLISHED_SIZES = tuple(1 << log2 for log2 in (8, 10, 12, 13, 14, 15, 16, 18, 20, 22))
"""FFT sizes of the published tables."""

_CAUSAL_SIZES = tuple(1 << log2 for log2 in range(8, 16))
_CIRCULAR_SIZES = tuple(1 << log2 for log2 in range(8, 15))


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


def _conv() -> Iterator[Cell]:
    """Yield the published tables' sizes and cases, in float16: outputs of both kinds of filters, and all gradients."""
    for size in PUBLISHED_SIZES:
        for mode in ("causal", "circular"):
            for gated in (False, True):
                for filter in FILTERS:
                    yield cell_of("conv", mode, size, gated=gated, dtype="float16", filter=filter)
                yield replace(
                    cell_of("conv", mode, size, gated=gated, dtype="float16", filter="raw"), direction="backward"
                )


def _short() -> Iterator[ShortCell]:
    """Yield the published table of short depthwise convolutions, in both layouts, and outputs of more taps."""
    for taps in (16, 64, 128):
        for layout in LAYOUTS:
            yield ShortCell.of(16, 8192, 8192, taps, layout=layout, direction="forward")
    for seqlen in (1024, 8192):
        for channels in (768, 8192):
            for taps in (3, 4, 5, 7):
                for layout in LAYOUTS:
                    for direction in DIRECTIONS:
                        yield ShortCell.of(16, channels, seqlen, taps, layout=layout, direction=direction)


def _models() -> Iterator[Timed]:
    """Yield what models call, each in training: a raw filter, outputs and all gradients."""
    hyena = Cell("models", "causal", True, "float16", 8, 768, 4096, 4096, "raw")
    evo = Cell("models", "causal", True, "bfloat16", 1, 4096, 8192, 8192, "raw")
    cells = (
        hyena,  # Hyena-s
        replace(hyena, seqlen=8192, filter_len=8192),
        replace(hyena, batch=1, seqlen=8192, filter_len=8192),
        Cell("models", "causal", True, "float16", 1, 256, 1 << 20, 1 << 20, "raw"),  # HyenaDNA
        replace(evo, filter_len=7),  # Evo 2's short, medium and long operators
        replace(evo, filter_len=128),
        evo,
        Cell("models", "same", True, "float16", 64, 960, 128, 255, "raw"),  # M2-BERT, which looks to both sides
    )
    for direction in DIRECTIONS:
        for cell in cells:
            yield replace(cell, direction=direction)
        for taps in (7, 128):
            short = ShortCell.of(1, 4096, 8192, taps, layout="BHL", direction=direction)
            yield replace(short, suite="models", dtype="bfloat16")


def _start() -> Iterator[StartCell]:
    """Yield the first call of a process, with an empty cache of kernels and with a filled one."""
    for start in STARTS:
        for direction in DIRECTIONS:
            yield StartCell.of(start, direction=direction)


def _training() -> Iterator[TrainingCell]:
    """Yield steps of the example's language model, from its own size up to texts of 8192 bytes."""
    for batch, seqlen, width in ((16, 256, 96), (8, 1024, 256), (2, 8192, 256)):
        for dtype in ("float32", "bfloat16"):
            yield TrainingCell.of(batch, width, seqlen, dtype=dtype)


def _precisions() -> Iterator[Cell]:
    """Yield 16-bit rows that fit a block with each precision: outputs, and all gradients."""
    for dtype, precision, size in itertools.product(HALF_DTYPES, PRECISIONS, _CAUSAL_SIZES):
        for gated in (False, True):
            cell = cell_of("precision", "causal", size, gated=gated, dtype=dtype)
            yield replace(cell, precision=precision)
            yield replace(cell, precision=precision, filter="raw", direction="backward")
        if size in _CIRCULAR_SIZES:
            yield replace(cell_of("precision", "circular", size, gated=True, dtype=dtype), precision=precision)


_PARTS = {
    "speed": _speed,
    "batch": _small_batch,
    "shapes": _shapes,
    "float32": _float32,
    "memory": _memory,
    "backward": _backward,
    "small": _small,
    "host": _host,
    "conv": _conv,
    "short": _short,
    "models": _models,
    "start": _start,
    "training": _training,
    "precision": _precisions,
}
_MADE_OF = {
    "conv": ("conv",),
    "short": ("short",),
    "overhead": ("host", "start"),
    "shapes": ("models", "shapes"),
    "model": ("training",),
    "precision": ("precision",),
    "targets": ("speed", "batch", "shapes", "float32", "memory", "backward", "small", "host"),
}

SUITES = tuple(dict.fromkeys((*_MADE_OF, *_PARTS)))
"""Names of suites: those to choose from first, then the parts that they are made of, which may be chosen alone too."""


def cells_of(suite: str) -> list[Timed]:
    """Return the cells of a suite of `SUITES`."""
    return [cell for part in _MADE_OF.get(suite, (suite,)) for cell in _PARTS[part]()]
