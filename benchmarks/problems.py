"""Problems to check: one record each, the inputs that belong to it, and the sets that ``fftconv verify`` runs."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.benchmarks.ranges import RANGES
from fftconv_cupy.errors import UnsupportedProblemError
from fftconv_cupy.long_vjp_plan import LongVjpPlan
from fftconv_cupy.mma_blocks import MMA_CONFIGS
from fftconv_cupy.mma_plan import MmaPlan
from fftconv_cupy.plan import LARGEST_FFT_SIZE, max_points
from fftconv_cupy.plans import AnyPlan, plan_call, precision_of_call
from fftconv_cupy.problem import CPU_DTYPES, DTYPES, MODES, Gradients, Problem, Wanted, make_problem
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference
from fftconv_cupy.window_vjp_plan import WindowVjpPlan

Array = NDArray[np.generic]

LEVELS = ("quick", "normal", "full")
LAYOUTS = ("packed", "strided", "transposed", "gapped", "broadcast")
"""How arrays lie in memory, see `fftconv_cupy.benchmarks.places`."""

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
_GPU_DTYPES = {**{dtype: dtype for dtype in DTYPES}, "float64": "float32"}
"""The CPU checks float64 in the sizes that a GPU has of float32."""
_FEW_ROWS_SIZE = 1 << 19  # from this FFT size on a case has two rows,
_ONE_ROW_SIZE = 1 << 23  # and from this one on a single one
_STREAMS = ((200, 4), (1000, 128), (30001, 300), (7, 2), (5000, 4096), (40000, 16384))
"""L and K of rows that are convolved in parts."""
_SHORT_FILTERS = ((9001, 31), (20000, 2), (40001, 128), (70000, 1025), (65536, 4096), (100_003, 16384))
"""L and K, one far below the other, of rows that may be cut into windows."""
_HALVES = ("float16", "bfloat16")
_RANGE_LENGTHS = {"quick": (4096,), "normal": (1024, 4096), "full": (256, 500, 1024, 2048, 4096, 8192, 16384)}
_RANGE_ROWS = (4, 2)


@dataclass(frozen=True, slots=True)
class Case:
    """One convolution, with everything that is needed to run it again.

    Attributes:
        mode: one of "causal", "full", "same", "circular".
        dtype: of u, the gates and the output.
        seqlen: L.
        filter_len: K.
        batch: B.
        channels: H.
        fft_size: as passed, None for the default.
        filter_dtype: of k.
        in_gate: with an input gate.
        out_gate: with an output gate.
        skip_dtype: dtype of the skip vector, None for none.
        shared_filter: k is (K,).
        prepared: the filter goes through `prepare_filter`.
        layout: one of `LAYOUTS`.
        scaled: the rows of u differ in scale by powers of two.
        precision: as passed.
        range: the name of a `fftconv_cupy.benchmarks.ranges.RANGES` for rows and filter, None for noise.
        wrt: the arguments whose gradients are asked for, where it is gradients that are checked; None for all.
    """

    mode: str
    dtype: str
    seqlen: int
    filter_len: int
    batch: int = 2
    channels: int = 3
    fft_size: int | None = None
    filter_dtype: str = "float32"
    in_gate: bool = False
    out_gate: bool = False
    skip_dtype: str | None = None
    shared_filter: bool = False
    prepared: bool = False
    layout: str = "packed"
    scaled: bool = False
    precision: str | None = "highest"
    range: str | None = None
    wrt: tuple[str, ...] | None = None

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
            filter_dtype=self.filter_dtype,
            fft_size=self.fft_size,
            shared_filter=self.shared_filter,
            in_gate=self.in_gate,
            out_gate=self.out_gate,
            skip=self.skip_dtype is not None,
            precision=self.precision,
            dtypes=CPU_DTYPES,
        )

    @property
    def given(self) -> tuple[str, ...]:
        """The arguments that there are gradients of: a prepared filter has none."""
        there = Gradients(True, not self.prepared, self.in_gate, self.out_gate, self.skip_dtype is not None)
        return tuple(name for name, is_given in there._asdict().items() if is_given)

    @property
    def wanted(self) -> Wanted:
        """The gradients that are asked for."""
        names = self.given if self.wrt is None else self.wrt
        return Wanted(*(name in names for name in Wanted._fields))

    @property
    def label(self) -> str:
        """The configuration on one line, as failures name it."""
        words = [f"{self.mode} {self.dtype} N={self.problem.fft_size} L={self.seqlen} K={self.filter_len}"]
        words.append(f"B={self.batch} H={self.channels} k={self.filter_dtype}")
        flags = {
            "in_gate": self.in_gate,
            "out_gate": self.out_gate,
            f"skip={self.skip_dtype}": self.skip_dtype is not None,
            "shared": self.shared_filter,
            "prepared": self.prepared,
            self.layout: self.layout != "packed",
            "scaled": self.scaled,
            f"precision={self.precision}": self.precision != "highest",
            f"range={self.range}": self.range is not None,
            f"wrt={','.join(self.wrt or ())}": self.wrt is not None,
        }
        return " ".join(words + [name for name, on in flags.items() if on])


@dataclass(frozen=True, slots=True)
class Inputs:
    """NumPy arrays of a case: u (B, H, L), k (H, K) or (K,), gates or None, skip (H,) or None."""

    u: Array
    k: Array
    in_gate: Array | None
    out_gate: Array | None
    skip: Array | None

    @property
    def named(self) -> dict[str, Any]:
        """The arrays by the names of the arguments that they are."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def make_inputs(case: Case) -> Inputs:
    """Draw the inputs of a case: the same ones in every run and on every machine.

    Taps are white with a sum of squares of 1, not decaying: each counts, and outputs are of the order of the inputs.
    """
    rng = _generator(case.label)
    problem = case.problem

    def draw(shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Array:
        values = rng.standard_normal(shape) * scale
        return values.astype(NUMPY_DTYPES[dtype])

    rows = (case.batch, case.channels, case.seqlen)
    u = draw(rows, case.dtype)
    if case.scaled:
        exponents = rng.integers(-6, 7, (case.batch, case.channels, 1))
        u = (u.astype(np.float64) * 2.0**exponents).astype(u.dtype)
    outputs = (case.batch, case.channels, problem.out_len)
    taps = (case.filter_len,) if case.shared_filter else (case.channels, case.filter_len)
    k = draw(taps, case.filter_dtype, case.filter_len**-0.5)
    if case.range is not None:
        made = RANGES[case.range]
        u = made.rows(u.astype(np.float64)).astype(u.dtype)
        k = made.taps(k.astype(np.float64)).astype(k.dtype)
    gate_rows = (1, *rows[1:]) if case.layout == "broadcast" else rows
    out_gate_rows = (1, *outputs[1:]) if case.layout == "broadcast" else outputs
    return Inputs(
        u=u,
        k=k,
        in_gate=np.broadcast_to(draw(gate_rows, case.dtype), rows) if case.in_gate else None,
        out_gate=np.broadcast_to(draw(out_gate_rows, case.dtype), outputs) if case.out_gate else None,
        skip=draw((case.channels,), case.skip_dtype) if case.skip_dtype else None,
    )


def make_output_gradient(case: Case) -> Array:
    """Draw the gradient of a case's output, (B, H, outputs): of a scale at which sums over a channel are of order 1."""
    shape = (case.batch, case.channels, case.problem.out_len)
    rows = (1, *shape[1:]) if case.layout == "broadcast" else shape
    values = _generator(f"dy of {case.label}").standard_normal(rows) * max(1, case.batch * case.seqlen) ** -0.5
    return np.broadcast_to(values.astype(NUMPY_DTYPES[case.dtype]), shape)


def reference_of(case: Case, inputs: Inputs) -> NDArray[np.float64]:
    """Return the float64 result of a case, (B, H, outputs)."""
    return fftconv_reference(**inputs.named, mode=case.mode, fft_size=case.fft_size)


def gradients_of(case: Case, inputs: Inputs, dy: Array) -> Gradients:
    """Return the float64 gradients that a case asks for, None for the rest."""
    grads = fftconv_vjp_reference(dy, **inputs.named, mode=case.mode, fft_size=case.fft_size)
    return Gradients(*(grad if is_wanted else None for grad, is_wanted in zip(grads, case.wanted, strict=True)))


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


def planned(case: Case, limits: ArchLimits, wanted: Wanted | None = None, *, has_state: bool = False) -> AnyPlan | None:
    """Return how a GPU computes a case, or with `wanted` those gradients of it; None: it cannot.

    With `has_state` there is an initial state.
    """
    problem = case.problem
    problem = replace(
        problem,
        batch=max(1, problem.batch),  # of an empty batch nothing is launched
        dtype=_GPU_DTYPES[problem.dtype],
        filter_dtype=_GPU_DTYPES[problem.filter_dtype],
        initial_state=has_state,
    )
    is_contiguous = case.layout != "strided"
    try:
        return plan_call(problem, limits, wanted, is_prepared=case.prepared, is_contiguous=is_contiguous)
    except UnsupportedProblemError:
        return None


def gradient_transform(case: Case, limits: ArchLimits) -> tuple[str, int] | None:
    """Return how the GPU computes gradients of a case, and in how many complex points; None: it cannot.

    How is "block" (rows that fit one), "long" (rows that outgrow it) or "windows" (of rows).
    """
    plan = planned(case, limits, case.wanted)
    if plan is None:
        return None
    if isinstance(plan, WindowVjpPlan):
        return "windows", (plan.backward or plan.forward).config.points  # type: ignore[union-attr]  # one is there
    return "long" if isinstance(plan, LongVjpPlan) else "block", plan.config.points


def _generator(name: str) -> np.random.Generator:
    """Return a generator whose seed is a name."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
