"""Runs the plans of gradients of rows that are cut into windows; what follows their sums is that of `launch_vjp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fftconv_cupy import launch_windows
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import rows_of
from fftconv_cupy.launch_vjp import (
    Launcher,
    Rows,
    Step,
    finish_shared_sum,
    finish_sums,
    launch_backward,
    load,
    steps_of,
)
from fftconv_cupy.launchers import Launchers
from fftconv_cupy.params import Slot, WindowsBwdParams
from fftconv_cupy.problem import ITEM_BYTES, Gradients, Problem, States, Wanted
from fftconv_cupy.vjp_calls import VjpKey, arrays_of_rows, begin, keys_of
from fftconv_cupy.vjp_plan import VjpPlan
from fftconv_cupy.window_plan import checked_cut
from fftconv_cupy.window_vjp_plan import backward_cut, make_backward_plan

_arguments = Slot(WindowsBwdParams)


def check_vjp(problem: Problem, wanted: Wanted, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Arguments and errors are those of `launch_vjp.check_vjp`.
    """
    checked_cut(problem, device_limits(device))
    import_nvrtc()


def run_vjp(
    problem: Problem,
    wanted: Wanted,
    dy: ArrayView,
    u: ArrayView,
    filt: ArrayView | FilterSpectrum,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    grads: Gradients,
    stream: int,
    workspace: ArrayView | None = None,
    rows: Any = None,
    states: States | None = None,
) -> Any:
    """Compute the wanted gradients on the GPU of `u`, asynchronously on `stream`.

    Arguments, result and errors are those of `launch_vjp.run_vjp`; `states` are those of a call with an initial state.
    """
    states = states or States()
    if not (states.d_initial or any(wanted._replace(out_gate=False))):
        # dy * z: the convolution with dy in the place of the gate.
        return launch_windows.run(
            problem, u, filt, in_gate, dy, skip, grads.out_gate, stream, workspace, rows, states.initial
        )
    # The gradient of the output gate is that of another kernel.
    given = arrays_of_rows(dy, u, in_gate, out_gate, grads)[:-1]
    call = begin(
        _launchers, _steps_of, problem, wanted, given, filt, skip, grads, stream, workspace, rows, tuple(states)
    )
    forward = None
    if wanted.out_gate:
        out_rows = rows_of(problem, u, in_gate, dy, skip, grads.out_gate)
        forward = launch_windows.bind(
            problem, u, in_gate, dy, skip, grads.out_gate, stream, out_rows, states.initial, is_prepared=True
        )
    for step in call.steps:
        if isinstance(filt, ArrayView) and step.filter is not None:
            step.filter.launch(filt, call.spectrum, stream)
        launch_backward(call, step, _arguments)
        finish_sums(call, step)
        if forward is not None:
            forward.launch(call.spectrum + step.spectrum, step.first, step.channels)
    finish_shared_sum(call)
    return call.rows


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what gradients of rows that are cut into windows, on all of `archs`, need; see `launch_vjp.warm_vjp`."""
    has_rest = any(wanted._replace(out_gate=False))
    # The gradient of an initial state is none of those in `wanted`.
    with_state = (*((False,) if has_rest else ()), *((True,) if problem.initial_state else ()))
    keys = [key for wants_state in with_state for key in keys_of(problem, wanted, wants_state=wants_state)]
    lines = launch_windows.warm(problem, archs, is_prepared=has_rest) if wanted.out_gate else []
    return list(dict.fromkeys(lines + _launchers.warm(keys, archs)))


def _plan(key: VjpKey, limits: ArchLimits) -> VjpPlan:
    return make_backward_plan(
        key.problem,
        key.wanted,
        limits,
        is_vector=key.is_vector,
        is_prepared=key.is_prepared,
        wants_state=key.wants_state,
    )


_launchers = Launchers(_plan, load)


def _steps_of(launcher: Launcher, rows: Rows) -> tuple[Step, ...]:
    made = launcher.plan
    problem, cut = made.problem, backward_cut(made.problem, made.limits)
    windows = (problem.filter_len - 1, cut.count(problem.seqlen), cut.step, cut.lead, cut.origin, cut.period)
    return steps_of(launcher, rows, windows, (ITEM_BYTES["float32"],) * len(States._fields))
