"""The checks of ``fftconv verify`` on states: a row convolved in two parts must be the row convolved at once."""

from __future__ import annotations

from typing import Any

import numpy as np

import fftconv_cupy
from fftconv_cupy import numeric
from fftconv_cupy.benchmarks.checks import Finding, finding, placed
from fftconv_cupy.benchmarks.places import Place
from fftconv_cupy.benchmarks.problems import Case, gradients_of, make_inputs, make_output_gradient, reference_of

_ROWS = ("u", "in_gate", "out_gate")  # arrays that have points


def states(case: Case, place: Place) -> Finding:
    """Convolve the parts of a row, the second one with the state of the first, and compare both with float64."""
    inputs = make_inputs(case)
    with place.current():
        first, second = _parts(case, placed(case, inputs, place))
        y, state = fftconv_cupy.fftconv(**first, mode=case.mode, return_final_state=True)
        rest, last = fftconv_cupy.fftconv(**second, mode=case.mode, initial_state=state, return_final_state=True)
        outputs = np.concatenate([place.download(y), place.download(rest)], axis=-1)
        tail = place.download(last)
    outputs_found = numeric.compare(outputs, reference_of(case, inputs), case.dtype, fft_size=case.problem.fft_size)
    x = inputs.u.astype(np.float64)
    if inputs.in_gate is not None:
        x = x * inputs.in_gate.astype(np.float64)
    kept = numeric.compare(tail, x[..., case.seqlen - (case.filter_len - 1) :], "float32")
    return _judged("states", case, place, {"output": outputs_found, "final state": kept})


def state_gradients(case: Case, place: Place) -> Finding:
    """Differentiate the parts of a row, the first one with its final state's gradient, and compare with float64."""
    inputs, dy = make_inputs(case), make_output_gradient(case)
    grads64 = gradients_of(case, inputs, dy)
    with place.current():
        first, second = _parts(case, placed(case, inputs, place))
        dy_first, dy_second = _halves(case, place.lay_out(dy, case.layout))
        _, state = fftconv_cupy.fftconv(**first, mode=case.mode, return_final_state=True)
        late = fftconv_cupy.fftconv_vjp(dy_second, **second, mode=case.mode, initial_state=state)
        early = fftconv_cupy.fftconv_vjp(
            dy_first, **first, mode=case.mode, d_final_state=late._asdict()["initial_state"]
        )
        du = np.concatenate([place.download(early.u), place.download(late.u)], axis=-1)
        dk = place.download(early.k).astype(np.float64) + place.download(late.k).astype(np.float64)
    of_u = numeric.compare(du, grads64.u, case.dtype, fft_size=case.problem.fft_size)
    of_k = numeric.compare_sum(dk, grads64.k, case.filter_dtype)
    return _judged("state gradients", case, place, {"gradient of u": of_u, "gradient of k": of_k})


def _judged(check: str, case: Case, place: Place, agreements: dict[str, numeric.Agreement]) -> Finding:
    """Return the finding of what is worst against its bound."""
    name, worst = max(agreements.items(), key=lambda item: item[1].error / item[1].bound)
    detail = "" if worst.ok else f"{name}: error {worst.error:.3g} > {worst.bound:.3g}"
    return finding(check, case, place, worst.error, worst.bound, detail)


CHECKS = (states, state_gradients)


def _parts(case: Case, arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of the calls for the two parts of the rows."""
    halves = {name: _halves(case, arrays[name]) for name in _ROWS if arrays[name] is not None}
    first, second = ({name: half[part] for name, half in halves.items()} for part in (0, 1))
    return {**arrays, **first}, {**arrays, **second}


def _halves(case: Case, array: Any) -> tuple[Any, Any]:
    """Cut the rows of an array: no part has a length that is round."""
    cut = case.seqlen // 3 + 1
    return array[..., :cut], array[..., cut:]
