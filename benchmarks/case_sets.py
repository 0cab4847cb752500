"""The sets of cases that ``fftconv verify`` runs, by level."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.benchmarks.problems import LAYOUTS, Case, planned
from fftconv_cupy.benchmarks.ranges import RANGES
from fftconv_cupy.mma_blocks import MMA_CONFIGS
from fftconv_cupy.mma_plan import MmaPlan
from fftconv_cupy.plan import LARGEST_FFT_SIZE, max_points
from fftconv_cupy.plans import precision_of_call
from fftconv_cupy.problem import CPU_DTYPES, DTYPES, MODES

LEVELS = ("quick", "normal", "full")

_GATES: tuple[tuple[bool, bool, bool], ...] = (
    (False, False, False),
    (True, True, False),
    (True, False, True),
    (False, True, False),
    (True, True, True),
    (False, False, True),
)
_LENGTHS = (1, 2, 3, 5, 17, 31, 64, 97, 127, 128, 129, 251, 500, 511, 513, 1000, 1023, 1025, 2039, 4095, 4097)
_LONG_LENGTHS = (8191, 10007, 16383)
_SMALL_ROWS = ((1, 1), (3, 5), (33, 3), (17, 7), (2, 41))
_ROWS = ((1, 1), (1, 3), (2, 2), (3, 1), (3, 2))
_LARGEST_SIZES = {"quick": 1 << 17, "normal": 1 << 20, "full": LARGEST_FFT_SIZE}
"""FFT sizes of rows that outgrow a block go up to this one."""
_FEW_ROWS_SIZE = 1 << 19  # from this FFT size on a case has two rows,
_ONE_ROW_SIZE = 1 << 23  # and from this one on a single one
_STREAMS = ((200, 4), (1000, 128), (30001, 300), (7, 2), (5000, 4096), (40000, 16384))
"""L and K of rows that are convolved in parts."""
_SHORT_FILTERS = ((9001, 31), (20000, 2), (40001, 128), (70000, 1025), (65536, 4096), (100_003, 16384))
"""L and K, one far below the other, of rows that may be cut into windows."""
_HALVES = ("float16", "bfloat16")
_RANGE_LENGTHS = {"quick": (4096,), "normal": (1024, 4096), "full": (256, 500, 1024, 2048, 4096, 8192, 16384)}
_RANGE_ROWS = (4, 2)


def verify_cases(
    level: str, dtypes: Iterable[str], limits: ArchLimits, precisions: Iterable[str] = ("highest",)
) -> list[Case]:
    """Return the cases of a verification: every FFT size in every mode, odd lengths, and special cases.

    Args:
        level: "quick" has each size in each mode once, "normal" with each dtype, "full" also with each set of gates.
        dtypes: dtypes of u to take.
        limits: of the GPU; cases that it cannot compute are left out.
        precisions: those to take; of less than the highest there are such cases as the GPU computes with it.
    """
    dtypes, precisions = tuple(dtypes), tuple(precisions)
    draw = random.Random("fftconv verify")
    largest = 2 * max_points(limits)
    cases = [
        _vary(case, draw) for case in (*_size_cases(level, dtypes, draw, largest), *_length_cases(level, dtypes, draw))
    ]
    cases += _special_cases(level, dtypes)
    cases += [_vary(case, draw) for case in _short_filter_cases(level, dtypes, draw)]
    cases += [_few_rows(_vary(case, draw)) for case in _long_cases(level, dtypes, draw, largest)]
    cases = [case for case in dict.fromkeys(cases) if planned(case, limits) is not None]
    found = list(cases) if "highest" in precisions else []
    for precision in precisions:
        if precision != "highest":
            found += _tensor_core_cases(level, cases, dtypes, precision, limits)
        found += _range_cases(level, dtypes, precision, limits)
    return list(dict.fromkeys(found))


def _tensor_core_cases(
    level: str, cases: Iterable[Case], dtypes: tuple[str, ...], precision: str, limits: ArchLimits
) -> list[Case]:
    """Return the cases of 16-bit rows that tensor cores compute: all with level "full", else a share of each size."""
    draw = random.Random(f"{precision} of fftconv verify")
    halves = [dtype for dtype in _HALVES if dtype in dtypes]
    groups: dict[tuple[Any, ...], list[Case]] = {}
    whole = [Case("causal", dtype, points, points) for points, dtype in itertools.product(MMA_CONFIGS, halves)]
    for case in (*whole, *cases) if halves else ():
        dtype = case.dtype if case.dtype in halves else draw.choice(halves)
        skip_dtype = case.skip_dtype and "float32"
        case = replace(case, dtype=dtype, skip_dtype=skip_dtype, precision=precision)
        plan = planned(case, limits) if case.batch else None
        if isinstance(plan, MmaPlan):
            size = plan.tensor.points
            groups.setdefault((size,) if level == "quick" else (size, case.mode, dtype), []).append(case)
    if level == "full":
        return [case for group in groups.values() for case in group]
    return [case for group in groups.values() for case in draw.sample(group, min(2, len(group)))]


def _range_cases(level: str, dtypes: tuple[str, ...], precision: str, limits: ArchLimits) -> Iterator[Case]:
    """Yield rows and filters of unusual magnitude, that `precision` is computed with."""
    batch, channels = _RANGE_ROWS
    for seqlen, (name, made) in itertools.product(_RANGE_LENGTHS[level], RANGES.items()):
        for dtype in made.dtypes if level == "full" else made.dtypes[-1:]:
            case = Case("causal", dtype, seqlen, seqlen, batch, channels, precision=precision, range=name)
            plan = planned(case, limits)
            if dtype in dtypes and plan is not None and precision_of_call(case.problem, limits) == precision:
                yield case


def _size_cases(level: str, dtypes: tuple[str, ...], draw: random.Random, largest: int) -> Iterator[Case]:
    """Yield rows that use a transform of each size to its last point."""
    size = 2
    while size <= largest:
        half = size // 2
        shapes = {"causal": (half, half), "full": (half, half + 1), "same": (half, size), "circular": (size, size)}
        for mode in MODES:
            seqlen, filter_len = shapes[mode]
            for dtype in (draw.choice(dtypes),) if level == "quick" else dtypes:
                for gates in _GATES if level == "full" else (draw.choice(_GATES),):
                    yield _gated(Case(mode, dtype, seqlen, filter_len), gates, draw)
        size *= 2


def _length_cases(level: str, dtypes: tuple[str, ...], draw: random.Random) -> Iterator[Case]:
    """Yield odd, prime and power-of-two lengths and their neighbours, with short and long filters."""
    shapes = [
        (mode, seqlen, filter_len)
        for mode in MODES
        for seqlen in (_LENGTHS if level == "quick" else _LENGTHS + _LONG_LENGTHS)
        for filter_len in sorted({1, 2, 3, seqlen // 2 + 1, max(1, seqlen - 1), seqlen, seqlen + 1, 2 * seqlen + 1})
    ]
    if level != "full":
        shapes = draw.sample(shapes, 60 if level == "quick" else 300)
    for mode, seqlen, filter_len in shapes:
        yield _gated(Case(mode, draw.choice(dtypes), seqlen, filter_len), draw.choice(_GATES), draw)


def _short_filter_cases(level: str, dtypes: tuple[str, ...], draw: random.Random) -> Iterator[Case]:
    """Yield rows with far shorter filters: each shape once, in each mode, and in each mode with each dtype."""
    for seqlen, filter_len in _SHORT_FILTERS:
        for mode in (draw.choice(MODES),) if level == "quick" else MODES:
            for dtype in dtypes if level == "full" else (draw.choice(dtypes),):
                yield _gated(Case(mode, dtype, seqlen, filter_len), draw.choice(_GATES), draw)


def streamed_cases(level: str, dtypes: Iterable[str]) -> list[Case]:
    """Return causal cases whose rows are convolved in parts; those of "full" with each dtype."""
    draw = random.Random("streams of fftconv verify")
    dtypes = tuple(dtypes)
    return [
        # The gradient of a 16-bit filter would be rounded in each part.
        replace(_vary(_gated(Case("causal", dtype, *shape), gates, draw), draw), prepared=False, filter_dtype="float32")
        for shape in (_STREAMS[:3] if level == "quick" else _STREAMS)
        for dtype in (dtypes if level == "full" else (draw.choice(dtypes),))
        for gates in (_GATES if level == "full" else (draw.choice(_GATES),))
    ]


def _long_cases(level: str, dtypes: tuple[str, ...], draw: random.Random, block_size: int) -> Iterator[Case]:
    """Yield rows that outgrow a block, whose FFT size is above `block_size`: to the last point, and of odd lengths."""
    size = 2 * block_size
    while size <= _LARGEST_SIZES[level]:
        modes = ("causal",) if size >= _ONE_ROW_SIZE else (draw.choice(MODES),) if level == "quick" else MODES
        for mode in modes:
            rows = size // 2
            is_sampled = level != "full" or size >= _FEW_ROWS_SIZE
            for dtype in (draw.choice(dtypes),) if is_sampled else dtypes:
                seqlen = rows - draw.choice((0, 0, 1, rows // 3))
                yield _gated(Case(mode, dtype, seqlen, seqlen), draw.choice(_GATES), draw)
        size *= 2


def _few_rows(case: Case) -> Case:
    """Return a case of long rows with few of them, for their float64 reference takes seconds and gigabytes."""
    if case.problem.fft_size < _FEW_ROWS_SIZE:
        return case
    return replace(case, batch=1 if case.problem.fft_size >= _ONE_ROW_SIZE else 2, channels=1)


def _special_cases(level: str, dtypes: tuple[str, ...]) -> Iterator[Case]:
    for dtype in dtypes:
        # A period given: rows shorter than half of it, rows longer than half, filters folded several times.
        yield Case("circular", dtype, 100, 30, fft_size=256)
        yield Case("circular", dtype, 200, 1000, fft_size=256, batch=3, in_gate=True)
        yield Case("circular", dtype, 2048, 1, fft_size=2048, batch=5, scaled=True, prepared=True)
        yield Case("circular", dtype, 1024, 1024, batch=1, channels=7, out_gate=True)
        # A transform larger than needed changes nothing.
        yield Case("causal", dtype, 100, 100, fft_size=2048, layout="strided")
        yield Case("full", dtype, 33, 70, fft_size=1024, shared_filter=True)
        yield Case("same", dtype, 1024, 1025, fft_size=4096, skip_dtype="float32")
        yield Case("causal", dtype, 64, 64, batch=0)
        if level != "quick":
            # Past the 65535 blocks of a grid's y and z.
            yield Case("causal", dtype, 4, 3, batch=65537, channels=1)
            yield Case("circular", dtype, 4, 4, batch=2, channels=65537, in_gate=True, out_gate=True)


def _gated(case: Case, gates: tuple[bool, bool, bool], draw: random.Random) -> Case:
    in_gate, out_gate, skip = gates
    skip_dtype = draw.choice(("float32", case.dtype)) if skip else None
    return replace(case, in_gate=in_gate, out_gate=out_gate, skip_dtype=skip_dtype)


def _vary(case: Case, draw: random.Random) -> Case:
    """Draw what is not enumerated; the few rows of long transforms keep the float64 references quick."""
    batch, channels = draw.choice(_SMALL_ROWS if max(case.seqlen, case.filter_len) <= 512 else _ROWS)
    return replace(
        case,
        batch=batch,
        channels=channels,
        filter_dtype=draw.choice(DTYPES if case.dtype != "float64" else CPU_DTYPES),
        shared_filter=draw.random() < 0.2,
        prepared=draw.random() < 0.4,
        layout=draw.choice(LAYOUTS),
        scaled=draw.random() < 0.3,
    )
