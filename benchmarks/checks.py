"""The checks of ``fftconv verify`` on outputs: each runs one case at one place and returns a finding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fftconv_cupy
from fftconv_cupy import numeric
from fftconv_cupy.benchmarks.places import Place
from fftconv_cupy.benchmarks.problems import Case, Inputs, make_inputs, reference_of
from fftconv_cupy.devices import device_limits
from fftconv_cupy.plans import precision_of_call

REPEATS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: name of the check.
        place: ``cpu``, ``cuda:0``, or an architecture that was compiled for.
        mode: of the case.
        dtype: of the case.
        label: the whole configuration.
        error: measured; relative error, or a count of what must not be.
        bound: largest error allowed.
        detail: what is wrong, empty where the error says it all.
        precision: of the case, as passed; the default is "default".
    """

    check: str
    place: str
    mode: str
    dtype: str
    label: str
    error: float
    bound: float
    detail: str = ""
    precision: str = "highest"

    @property
    def ok(self) -> bool:
        """Whether the error keeps its bound and nothing else is wrong."""
        return self.error <= self.bound and not self.detail


def accuracy(case: Case, place: Place) -> Finding:
    """Compare a case with float64; its output lies between guards, which must stay as they were."""
    inputs = make_inputs(case)
    y64 = reference_of(case, inputs)
    with place.current():
        guarded = place.guarded(y64.shape, case.dtype, case.layout)
        _convolve(case, placed(case, inputs, place), out=guarded.out)
        y, overwritten = guarded.read()
    agreement = _compare(case, place, y, y64)
    detail = f"{overwritten} elements beside the output overwritten" if overwritten else ""
    if not agreement.ok:
        where = "" if agreement.row is None else f" in row {agreement.row}"
        detail = ", ".join(filter(None, [f"error {agreement.error:.3g} > {agreement.bound:.3g}{where}", detail]))
    return finding("accuracy", case, place, agreement.error, agreement.bound, detail)


def repeats(case: Case, place: Place) -> Finding:
    """Run a case ten times on the same arrays: all outputs must have the same bits."""
    with place.current():
        arrays = placed(case, make_inputs(case), place)
        results = [place.download(_convolve(case, arrays)) for _ in range(REPEATS)]
    different = sum(_bits(y) != _bits(results[0]) for y in results)
    return finding("repeats", case, place, different, 0)


def confinement(case: Case, place: Place) -> Finding:
    """Plant NaN and infinity in two rows: every other row must stay within its bound."""
    inputs = make_inputs(case)
    y64 = reference_of(case, inputs)
    u = inputs.u.copy()
    u[1, 0, case.seqlen // 2] = np.nan
    u[-1, -1, 0] = np.inf
    with place.current():
        y = place.download(_convolve(case, placed(case, replace(inputs, u=u), place)))
    clean = np.ones(y.shape[:2], dtype=bool)
    clean[1, 0] = clean[-1, -1] = False
    agreement = _compare(case, place, y[clean], y64[clean])
    detail = "" if agreement.ok else "a non-finite value of one row reached another"
    return finding("confinement", case, place, agreement.error, agreement.bound, detail)


def two_streams(case: Case, place: Place) -> Finding:
    """Run a case with other inputs on each of two streams at once: the same bits as one after the other."""
    other = replace(case, scaled=not case.scaled)
    with place.current():
        arrays = [placed(c, make_inputs(c), place) for c in (case, other)]
        alone = [_bits(place.download(_convolve(c, a))) for c, a in zip((case, other), arrays, strict=True)]
        streams = [place.xp.cuda.Stream(non_blocking=True) for _ in arrays]
        place.xp.cuda.get_current_stream().synchronize()
        results: list[list[Any]] = [[], []]
        for _ in range(REPEATS):
            for number, stream in enumerate(streams):
                with stream:
                    results[number].append(_convolve(case, arrays[number]))
        for stream in streams:
            stream.synchronize()
        different = sum(_bits(place.download(y)) != alone[number] for number, ys in enumerate(results) for y in ys)
    return finding("two streams", case, place, different, 0)


def failed(check: str, case: Any, place: str, error: Exception) -> Finding:
    """Return the finding of a check that ended in an exception; `case` has a mode, a dtype and a label."""
    detail = f"{type(error).__name__}: {error}"
    precision = getattr(case, "precision", "highest") or "default"
    return Finding(check, place, case.mode, case.dtype, case.label, float("inf"), 0.0, detail, precision)


def finding(check: str, case: Case, place: Place, error: float, bound: float, detail: str = "") -> Finding:
    """Return what a check of a case found."""
    precision = case.precision or "default"
    return Finding(check, place.name, case.mode, case.dtype, case.label, error, bound, detail, precision)


def placed(case: Case, inputs: Inputs, place: Place) -> dict[str, Any]:
    """Return the arguments of `fftconv` at a place, in the case's layout."""
    k = place.lay_out(inputs.k, case.layout)
    if case.prepared:
        k = fftconv_cupy.prepare_filter(k, seqlen=case.seqlen, **options(case))
    return {
        "u": place.lay_out(inputs.u, case.layout),
        "k": k,
        "in_gate": None if inputs.in_gate is None else place.lay_out(inputs.in_gate, case.layout),
        "out_gate": None if inputs.out_gate is None else place.lay_out(inputs.out_gate, case.layout),
        "skip": None if inputs.skip is None else place.upload(inputs.skip),
    }


def _convolve(case: Case, arrays: dict[str, Any], out: Any = None) -> Any:
    return fftconv_cupy.fftconv(**arrays, **options(case), out=out)


def options(case: Case) -> dict[str, Any]:
    """Return the options of `fftconv` for a case."""
    return {"mode": case.mode, "fft_size": case.fft_size, "precision": case.precision}


def _compare(case: Case, place: Place, y: NDArray[Any], y64: NDArray[np.float64]) -> numeric.Agreement:
    """Compare outputs with float64, by the bound of the precision that the place computes them with."""
    precision = "highest"
    if place.is_gpu:
        precision = precision_of_call(case.problem, device_limits(place.ordinal))
    return numeric.compare(
        y, y64, case.dtype, fft_size=case.problem.fft_size, precision=precision, is_one_wave=case.is_one_wave
    )


def _bits(array: NDArray[Any]) -> bytes:
    return array.tobytes()
