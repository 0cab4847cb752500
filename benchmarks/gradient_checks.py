"""The checks of ``fftconv verify`` on gradients: each runs one case at one place and returns a finding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fftconv_cupy
from fftconv_cupy import numeric
from fftconv_cupy.benchmarks.checks import REPEATS, Finding, finding, options, placed
from fftconv_cupy.benchmarks.places import Array, Place
from fftconv_cupy.benchmarks.problems import Case, Inputs, gradients_of, make_inputs, make_output_gradient, terms_of
from fftconv_cupy.devices import device_limits
from fftconv_cupy.plans import precision_of_gradients
from fftconv_cupy.problem import Gradients

_SUMS = ("k", "skip")  # summed over the rows of a channel; the others have rows of their own


def gradients(case: Case, place: Place) -> Finding:
    """Compare the gradients that a case asks for with float64."""
    inputs, dy = make_inputs(case), make_output_gradient(case)
    grads = _differentiate(case, inputs, dy, place)
    return _judged("gradients", case, place, inputs, dy, grads, gradients_of(case, inputs, dy))


def gradient_repeats(case: Case, place: Place) -> Finding:
    """Run a case ten times on the same arrays: all gradients must have the same bits."""
    results = _differentiate_often(case, make_inputs(case), make_output_gradient(case), place, REPEATS)
    bits = [tuple(b"" if grad is None else grad.tobytes() for grad in grads) for grads in results]
    return finding("gradient repeats", case, place, sum(one != bits[0] for one in bits), 0)


def gradient_confinement(case: Case, place: Place) -> Finding:
    """Plant NaN in a row of u and infinity in one of dy: other rows, and sums over other channels, must stay right."""
    inputs, dy = make_inputs(case), make_output_gradient(case)
    grads64 = gradients_of(case, inputs, dy)
    u, spoilt_dy = inputs.u.copy(), dy.copy()
    u[1, 0, case.seqlen // 2] = np.nan
    spoilt_dy[-1, -1, 0] = np.inf
    grads = _differentiate(case, replace(inputs, u=u), spoilt_dy, place)
    clean = np.ones(u.shape[:2], dtype=bool)
    clean[1, 0] = clean[-1, -1] = False
    found = _judged("gradient confinement", case, place, inputs, dy, grads, grads64, clean)
    return found if found.ok else replace(found, detail=f"a non-finite value reached another row: {found.detail}")


CHECKS = (gradients, gradient_repeats, gradient_confinement)


def _differentiate(case: Case, inputs: Inputs, dy: Array, place: Place) -> Gradients:
    return _differentiate_often(case, inputs, dy, place, 1)[0]


def _differentiate_often(case: Case, inputs: Inputs, dy: Array, place: Place, times: int) -> list[Gradients]:
    """Return the gradients of several calls on the same arrays, as NumPy arrays.

    Raises:
        TypeError: a gradient is no array of the place.
    """
    with place.current():
        arrays, dy_there = placed(case, inputs, place), place.lay_out(dy, case.layout)
        results = []
        for _ in range(times):
            grads = fftconv_cupy.fftconv_vjp(dy_there, **arrays, wrt=case.wrt, **options(case))
            for name, grad in grads._asdict().items():
                if grad is not None and type(grad) is not place.xp.ndarray:
                    raise TypeError(f"the gradient of {name} is of type {type(grad).__name__}")
            results.append(Gradients(*(None if grad is None else place.download(grad) for grad in grads)))
    return results


def _judged(
    check: str,
    case: Case,
    place: Place,
    inputs: Inputs,
    dy: Array,
    grads: Gradients,
    grads64: Gradients,
    clean: NDArray[np.bool_] | None = None,
) -> Finding:
    """Return the finding of the gradient that is worst against its bound.

    Args:
        check: name of the check.
        case: the case.
        place: where it ran.
        inputs: of the case, whose shapes and dtypes the gradients must have.
        dy: the gradient of its output.
        grads: what was computed.
        grads64: the float64 gradients, None for what must not be there.
        clean: of each batch and channel, whether its row is judged; None judges all.
    """
    fault = _malformed(inputs, grads, grads64)
    if fault:
        return finding(check, case, place, float("inf"), 0, fault)
    precision = (
        precision_of_gradients(case.problem, case.wanted, device_limits(place.ordinal)) if place.is_gpu else "highest"
    )
    agreements: dict[str, numeric.Agreement] = {}
    for name, grad in grads._asdict().items():
        if grad is None:
            continue
        chosen: Any = slice(None)
        if clean is not None:
            chosen = clean.all(axis=0) if name in _SUMS else clean
        grad, grad64 = grad[chosen], getattr(grads64, name)[chosen]
        found = _compare(case, name, grad, grad64, precision)
        if name in _SUMS and not found.ok:  # its terms may cancel; they take transforms of their own, so only now
            found = _compare(case, name, grad, grad64, precision, getattr(terms_of(case, inputs, dy), name)[chosen])
        agreements[name] = found
    name, worst = max(agreements.items(), key=lambda item: item[1].error / item[1].bound)
    where = "" if worst.row is None else f" in row {worst.row}"
    detail = "" if worst.ok else f"gradient of {name}: error {worst.error:.3g} > {worst.bound:.3g}{where}"
    return finding(check, case, place, worst.error, worst.bound, detail)


def _malformed(inputs: Inputs, grads: Gradients, grads64: Gradients) -> str:
    """Return what is wrong with presence, shape or dtype of the gradients, or nothing."""
    faults = []
    for name, grad, grad64 in zip(Gradients._fields, grads, grads64, strict=True):
        like = getattr(inputs, name)
        if (grad is None) != (grad64 is None):
            faults.append(f"the gradient of {name} is {'missing' if grad is None else 'there unasked'}")
        elif grad is not None and (grad.shape, grad.dtype) != (like.shape, like.dtype):
            faults.append(f"the gradient of {name} is {grad.dtype} {grad.shape}, {name} {like.dtype} {like.shape}")
    return ", ".join(faults)


def _compare(
    case: Case,
    name: str,
    grad: Array,
    grad64: NDArray[np.float64],
    precision: str,
    terms: NDArray[np.float64] | None = None,
) -> numeric.Agreement:
    """Compare the gradient of one argument with float64, by the bound that holds for it."""
    options: dict[str, Any] = {"precision": precision, "is_one_wave": case.is_one_wave}
    if name in _SUMS:
        return numeric.compare_sum(grad, grad64, str(grad.dtype), terms=terms, **options)
    return numeric.compare(grad, grad64, case.dtype, fft_size=case.problem.fft_size, **options)
