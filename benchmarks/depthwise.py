"""The part of ``fftconv verify`` that checks short depthwise convolutions: cases, and what is checked of each."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fftconv_cupy
from fftconv_cupy import numeric
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.benchmarks.checks import REPEATS, Finding, failed
from fftconv_cupy.benchmarks.places import Place
from fftconv_cupy.depthwise_plan import make_depthwise_plan, make_depthwise_update_plan, make_depthwise_vjp_plan
from fftconv_cupy.depthwise_problem import (
    LAYOUTS,
    DepthwiseGradients,
    DepthwiseProblem,
    DepthwiseWanted,
    make_depthwise_problem,
)
from fftconv_cupy.depthwise_reference import DepthwiseReference
from fftconv_cupy.depthwise_steps import row_alignment
from fftconv_cupy.problem import CPU_DTYPES, DTYPES, ITEM_BYTES
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.source import KernelSpec

Array = NDArray[np.generic]

WIDTHS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 127, 128)
_PLACINGS = ("packed", "packed", "strided", "gapped")  # how x and dy lie in memory, see `Place.lay_out`
_ROWS = ((2, 8, 64), (1, 33, 257), (3, 5, 1), (2, 64, 130), (5, 1, 1023), (2, 24, 1000))
_EVERY = {"quick": 8, "normal": 8, "full": 16}  # every n-th case is also repeated, and looked at with a NaN in a row
_STEPS = (1, 1, 3, 7, 1)
_SUMS = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class DepthwiseCase:
    """One depthwise convolution, with everything that is needed to run it again.

    Attributes:
        layout: "BHL" or "BLH".
        dtype: of x.
        width: K.
        batch: B.
        channels: D.
        seqlen: L.
        padding: as for `depthwise_conv1d`.
        activation: as there.
        weight_dtype: of the taps.
        bias_dtype: of the bias, None for none.
        extra: "state" for an initial and a final state, "seq_idx" for packed sequences, or "".
        placing: how x and the gradient of the output lie in memory.
    """

    layout: str
    dtype: str
    width: int
    batch: int = 2
    channels: int = 8
    seqlen: int = 64
    padding: str | int = "causal"
    activation: str | None = None
    weight_dtype: str = "float32"
    bias_dtype: str | None = "float32"
    extra: str = ""
    placing: str = "packed"

    @property
    def problem(self) -> DepthwiseProblem:
        """The validated problem."""
        return make_depthwise_problem(
            batch=self.batch,
            channels=self.channels,
            seqlen=self.seqlen,
            width=self.width,
            padding=self.padding,
            activation=self.activation,
            layout=self.layout,
            dtype=self.dtype,
            weight_dtype=self.weight_dtype,
            bias_dtype=self.bias_dtype,
            has_seq_idx=self.extra == "seq_idx",
            has_initial_state=self.extra == "state",
            has_final_state=self.extra == "state",
        )

    @property
    def mode(self) -> str:
        """What stands in the place of a mode in the table of findings."""
        return self.layout

    @property
    def alignment(self) -> int:
        """Bytes at multiples of which all rows lie, once a gapped array is copied."""
        return row_alignment(self.problem) if self.placing != "strided" else ITEM_BYTES[self.dtype]

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `depthwise_conv1d` that are no arrays."""
        return {"padding": self.padding, "activation": self.activation, "layout": self.layout}

    @property
    def label(self) -> str:
        """The configuration on one line, as failures name it."""
        words = [f"depthwise {self.layout} {self.dtype} K={self.width} L={self.seqlen} B={self.batch}"]
        words += [f"D={self.channels} padding={self.padding} weight={self.weight_dtype} bias={self.bias_dtype}"]
        placing = self.placing if self.placing != "packed" else ""
        return " ".join(filter(None, [*words, self.activation, self.extra, placing]))


@dataclass(frozen=True, slots=True)
class DepthwiseJob:
    """One check of one case; what a `verification.Job` is for long convolutions."""

    check: Callable[[DepthwiseCase, Place], Finding]
    case: DepthwiseCase
    is_of_gradients: bool = False

    def fits(self, limits: ArchLimits) -> bool:
        """Whether a GPU can compute what is checked: each can."""
        return True

    def specs(self, limits: ArchLimits) -> list[KernelSpec]:
        """Return the kernels that a GPU computes it with."""
        problem = self.case.problem
        if self.check is update:
            return [step.spec for step in make_depthwise_update_plan(problem, limits).steps]
        wanted = DepthwiseWanted(True, True, problem.bias_dtype is not None, problem.has_initial_state)
        alignment, is_final = self.case.alignment, problem.has_final_state
        made = make_depthwise_plan(problem, limits, alignment=alignment)
        if self.check is not outputs:
            made = make_depthwise_vjp_plan(problem, wanted, limits, alignment=alignment, has_final_gradient=is_final)
        return [step.spec for step in made.steps]

    def run(self, place: Place) -> Finding:
        """Run the check; an exception is a finding too."""
        try:
            return self.check(self.case, place)
        except Exception as error:
            return failed(f"depthwise {self.check.__name__}", self.case, place.name, error)


def jobs_for(level: str, dtypes: Iterable[str]) -> list[DepthwiseJob]:
    """Return what to check.

    Args:
        level: "quick" has each width in each layout once, "normal" with each dtype, "full" with and without activation.
        dtypes: dtypes of x to take.
    """
    dtypes = tuple(dtypes)
    cases = _cases(level, dtypes)
    few = cases[:: _EVERY[level]]
    cases += _large_grids(dtypes) if level != "quick" else []
    plain = [replace(case, extra="", seqlen=max(case.seqlen, 64)) for case in few]
    return [
        *(DepthwiseJob(outputs, case) for case in cases),
        *(DepthwiseJob(gradients, case) for case in cases),
        *(DepthwiseJob(repeats, case) for case in few),
        *(DepthwiseJob(confinement, case) for case in plain),
        *(DepthwiseJob(update, replace(case, extra="", padding="causal", placing="packed")) for case in few),
    ]


def outputs(case: DepthwiseCase, place: Place) -> Finding:
    """Compare the output with float64, and the final state with the points that it is made of."""
    arrays = make_inputs(case)
    exact = _reference(case, arrays)
    with place.current():
        y, state = _convolve(case, _placed(case, arrays, place), place)
    agreement = numeric.compare(y, exact.outputs(), case.dtype)
    detail = "" if agreement.ok else f"error {agreement.error:.3g} > {agreement.bound:.3g}"
    if state is not None and not np.array_equal(state.astype(np.float64), exact.final_state()):
        detail = "the final state is not that of the last points"
    return _finding("depthwise", case, place, agreement.error, agreement.bound, detail)


def gradients(case: DepthwiseCase, place: Place) -> Finding:
    """Compare all gradients with float64; return the finding of the one that is worst against its bound."""
    arrays, cotangents = make_inputs(case), make_cotangents(case)
    exact = _reference(case, arrays).gradients(cotangents["dy"], cotangents.get("d_final_state"))
    with place.current():
        grads = _differentiate(case, _placed(case, arrays, place), _placed(case, cotangents, place), place)
    error, bound, detail = 0.0, 1.0, ""
    for name, grad in grads.items():
        like = arrays[name]
        if (grad.shape, grad.dtype) != (like.shape, like.dtype):
            return _finding("depthwise gradients", case, place, float("inf"), 0, f"{name}: {grad.dtype} {grad.shape}")
        compare = numeric.compare_sum if name in _SUMS else numeric.compare
        found = compare(grad, getattr(exact, name), str(grad.dtype))
        if found.error / found.bound >= error / bound:
            error, bound = found.error, found.bound
            detail = "" if found.ok else f"gradient of {name}: error {error:.3g} > {bound:.3g}"
    return _finding("depthwise gradients", case, place, error, bound, detail)


def repeats(case: DepthwiseCase, place: Place) -> Finding:
    """Run a case ten times on the same arrays: outputs and gradients must have the same bits."""
    with place.current():
        arrays, cotangents = (_placed(case, a, place) for a in (make_inputs(case), make_cotangents(case)))
        results = []
        for _ in range(REPEATS):
            y, _ = _convolve(case, arrays, place)
            grads = _differentiate(case, arrays, cotangents, place)
            results.append([array.tobytes() for array in (y, *grads.values())])
    return _finding("depthwise repeats", case, place, sum(result != results[0] for result in results), 0)


def confinement(case: DepthwiseCase, place: Place) -> Finding:
    """Plant NaN in a row: every other row, and the sums of every other channel, must stay right."""
    arrays, cotangents = make_inputs(case), make_cotangents(case)
    exact = _reference(case, arrays)
    arrays["x"] = arrays["x"].copy()
    arrays["x"][(0, 0, case.seqlen // 2) if case.layout == "BHL" else (0, case.seqlen // 2, 0)] = np.nan
    with place.current():
        there = _placed(case, arrays, place)
        y, _ = _convolve(case, there, place)
        grads = _differentiate(case, there, _placed(case, cotangents, place), place)
    rows, rows64 = y, exact.outputs()
    if case.layout == "BLH":
        rows, rows64 = rows.swapaxes(1, 2), rows64.swapaxes(1, 2)
    clean = np.ones(rows.shape[:2], bool)
    clean[0, 0] = False
    weight64 = exact.gradients(cotangents["dy"]).weight
    found = [numeric.compare(rows[clean], rows64[clean], case.dtype)]
    if case.channels > 1:
        found.append(numeric.compare_sum(grads["weight"][1:], weight64[1:], case.weight_dtype))
    worst = max(found, key=lambda agreement: agreement.error / agreement.bound)
    detail = "" if worst.ok else "a non-finite value of one row reached another"
    return _finding("depthwise confinement", case, place, worst.error, worst.bound, detail)


def update(case: DepthwiseCase, place: Place) -> Finding:
    """Take a few steps in place on a ring of a state: the outputs are those of the whole convolution."""
    steps = replace(case, layout="BHL", seqlen=sum(_STEPS))
    arrays = make_inputs(steps)
    y64 = _reference(steps, arrays).outputs()
    size, first, pieces = case.width + 2, 0, []
    with place.current():
        there = {name: place.upload(array) for name, array in arrays.items()}
        x = there.pop("x")
        state = place.upload(np.zeros((case.batch, case.channels, size), NUMPY_DTYPES[case.dtype]))
        for count in _STEPS:
            seen = place.upload(np.full(case.batch, first, np.int32))
            y = fftconv_cupy.depthwise_conv1d_update(
                x[..., first : first + count], state, **there, activation=case.activation, cache_seqlens=seen
            )
            pieces.append(place.download(y))
            first += count
        ring = place.download(state)
    agreement = numeric.compare(np.concatenate(pieces, axis=-1), y64, case.dtype)
    detail = "" if agreement.ok else f"error {agreement.error:.3g} > {agreement.bound:.3g}"
    kept = np.arange(max(0, first - size), first)
    if not np.array_equal(ring[..., kept % size], arrays["x"][..., kept]):
        detail = "the state does not hold the last points"
    return _finding("depthwise update", case, place, agreement.error, agreement.bound, detail)


def make_inputs(case: DepthwiseCase) -> dict[str, Array]:
    """Draw the arrays of a case, by the names of their arguments: the same ones in every run and on every machine."""
    rng = _generator(case.label)
    rows = (case.batch, case.channels, case.seqlen)
    arrays = {
        "x": _draw(rng, rows if case.layout == "BHL" else (rows[0], rows[2], rows[1]), case.dtype),
        "weight": _draw(rng, (case.channels, case.width), case.weight_dtype, case.width**-0.5),
    }
    if case.bias_dtype is not None:
        arrays["bias"] = _draw(rng, (case.channels,), case.bias_dtype)
    if case.extra == "state":
        arrays["initial_state"] = _draw(rng, (*rows[:2], case.width - 1), case.dtype)
    if case.extra == "seq_idx":
        lengths = rng.integers(1, 50, (case.batch, case.seqlen))
        marks = np.where(rng.random(lengths.shape) < 0.2, -1, np.arange(case.seqlen))
        arrays["seq_idx"] = np.array(
            [np.repeat(m, n)[: case.seqlen] for m, n in zip(marks, lengths, strict=True)], np.int32
        ).reshape(lengths.shape)
    return arrays


def make_cotangents(case: DepthwiseCase) -> dict[str, Array]:
    """Draw the gradients of a case's output, and of its final state where it has one."""
    rng, points = _generator(f"dy of {case.label}"), case.problem.out_len
    rows = (case.batch, case.channels, points) if case.layout == "BHL" else (case.batch, points, case.channels)
    arrays = {"dy": _draw(rng, rows, case.dtype, max(1, case.batch * points) ** -0.5)}
    if case.extra == "state":
        arrays["d_final_state"] = _draw(rng, (case.batch, case.channels, case.width - 1), case.dtype)
    return arrays


def _cases(level: str, dtypes: tuple[str, ...]) -> list[DepthwiseCase]:
    draw = random.Random("depthwise fftconv verify")
    return list(dict.fromkeys(_vary(case, draw) for case in _enumerated(level, dtypes, draw)))


def _large_grids(dtypes: tuple[str, ...]) -> list[DepthwiseCase]:
    """Return cases past the 65535 blocks of a grid's y and z."""
    return [
        DepthwiseCase(layout, dtypes[0], 4, batch=batch, channels=channels, seqlen=3, activation="silu")
        for layout in LAYOUTS
        for batch, channels in ((65537, 2), (1, 65537))
    ]


def _enumerated(level: str, dtypes: tuple[str, ...], draw: random.Random) -> Iterator[DepthwiseCase]:
    for width, layout in itertools.product(WIDTHS, LAYOUTS):
        for dtype in (draw.choice(dtypes),) if level == "quick" else dtypes:
            for activation in (None, "silu") if level == "full" else (draw.choice((None, "silu")),):
                yield DepthwiseCase(layout, dtype, width, activation=activation)


def _vary(case: DepthwiseCase, draw: random.Random) -> DepthwiseCase:
    """Draw what is not enumerated."""
    batch, channels, seqlen = draw.choice(_ROWS)
    allowed = DTYPES if case.dtype != "float64" else CPU_DTYPES
    padding = draw.choice(("causal", "causal", "same", max(2, (case.width - seqlen + 2) // 2)))
    return replace(
        case,
        batch=batch,
        channels=channels,
        seqlen=seqlen,
        padding=padding,
        weight_dtype=draw.choice(allowed),
        bias_dtype=draw.choice((None, *allowed)),
        extra=draw.choice(("", "", "state", "seq_idx")) if padding == "causal" else "",
        placing=draw.choice(_PLACINGS),
    )


def _placed(case: DepthwiseCase, arrays: dict[str, Array], place: Place) -> dict[str, Any]:
    return {
        name: place.lay_out(array, case.placing) if name in ("x", "dy") else place.upload(array)
        for name, array in arrays.items()
    }


def _convolve(case: DepthwiseCase, arrays: dict[str, Any], place: Place) -> tuple[Array, Array | None]:
    """Return output and final state; the latter only where the case has states."""
    if case.extra != "state":
        return place.download(fftconv_cupy.depthwise_conv1d(**arrays, **case.options)), None
    y, state = fftconv_cupy.depthwise_conv1d(**arrays, **case.options, return_final_state=True)
    return place.download(y), place.download(state)


def _differentiate(
    case: DepthwiseCase, arrays: dict[str, Any], cotangents: dict[str, Any], place: Place
) -> dict[str, Array]:
    grads: DepthwiseGradients = fftconv_cupy.depthwise_conv1d_vjp(**cotangents, **arrays, **case.options)
    return {name: place.download(grad) for name, grad in grads._asdict().items() if grad is not None}


def _reference(case: DepthwiseCase, arrays: dict[str, Array]) -> DepthwiseReference:
    return DepthwiseReference(**arrays, **case.options)  # type: ignore[arg-type]


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Array:
    values = rng.standard_normal(shape) * scale
    return values.astype(NUMPY_DTYPES[dtype])


def _generator(name: str) -> np.random.Generator:
    """Return a generator whose seed is a name."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def _finding(check: str, case: DepthwiseCase, place: Place, error: float, bound: float, detail: str = "") -> Finding:
    return Finding(check, place.name, case.mode, case.dtype, case.label, error, bound, detail)
