"""What a call with a state must be: causal, with a filter that is not too long, and states in float32."""

from __future__ import annotations

from typing import Protocol

from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.readers import ArrayView

LONGEST_FILTER = 16384
"""Taps of a filter that may have a state."""


class _Arguments(Protocol):
    """What is looked at of `checks.Arguments`."""

    u: ArrayView
    k: ArrayView | FilterSpectrum
    initial_state: ArrayView | None
    returns_state: bool


def check_states(arguments: _Arguments, mode: str, filter_len: int) -> bool:
    """Check all about the states of a call but their shapes, and return whether what came before matters.

    Raises:
        InvalidTypeError: a state of another dtype than float32 (float64 where that is the dtype of u).
        InvalidArgumentError: a mode without states, a filter too long for them, or one prepared for calls without.
    """
    k, dtype = arguments.k, "float64" if arguments.u.dtype == "float64" else "float32"
    given = {
        "initial_state": arguments.initial_state,
        "d_final_state": getattr(arguments, "d_final_state", None),
    }
    states = {name: state for name, state in given.items() if state is not None}
    for name in (*states, *(("return_final_state",) if arguments.returns_state else ())):
        check_has_states(name, mode, filter_len)
    for name, state in states.items():
        if state.dtype != dtype:
            raise InvalidTypeError(
                message(
                    f"{name}.dtype",
                    got=state.dtype,
                    allowed=f"{dtype}, with u of {arguments.u.dtype}",
                    do=f"Convert {name} to {dtype}.",
                )
            )
    is_stateful = isinstance(k, FilterSpectrum) and k.is_stateful
    if states and isinstance(k, FilterSpectrum) and not is_stateful:
        raise InvalidArgumentError(
            message(
                "k (prepared filter)",
                got=f"one for calls without {' and '.join(states)}",
                allowed="the taps, or a filter prepared for an initial state",
                do="Pass initial_state=True to prepare_filter.",
            )
        )
    return bool(states) or is_stateful


def check_has_states(name: str, mode: str, filter_len: int) -> None:
    """Check that calls of a mode and a filter have states, since the argument `name` is given.

    Raises:
        InvalidArgumentError: they have none.
    """
    if mode != "causal":
        raise InvalidArgumentError(
            message(
                name,
                got=f"a call in mode {mode!r}",
                allowed="mode 'causal' only",
                do=f"Leave {name} out, or use 'causal'.",
            )
        )
    if filter_len > LONGEST_FILTER:
        raise InvalidArgumentError(
            message(
                name,
                got=f"a filter with K = {filter_len}",
                allowed=f"K up to {LONGEST_FILTER}",
                do=f"Shorten the filter, or leave {name} out.",
            )
        )
