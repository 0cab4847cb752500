"""The convolution problem as plain numbers: checked lengths, dtypes and flags, and the FFT size they ask for.

Nothing here knows an array, a framework or a GPU. The limit of the GPU at hand is applied by the plan.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message

MODES = ("causal", "full", "same", "circular")
DTYPES = ("float16", "bfloat16", "float32")
PRECISIONS = ("highest", "high", "medium")  # each as exact as the next, or more so
INTERMEDIATES = ("float32",)  # that can be asked for
CPU_DTYPES = (*DTYPES, "float64")
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class Problem:
    """One convolution, validated: what is computed, without where or how.

    Attributes:
        mode: one of `MODES`.
        batch: rows of a channel, B >= 0.
        channels: H >= 1.
        seqlen: points of an input row, L >= 1.
        filter_len: points of a filter row, K >= 1, as passed.
        dtype: of the input, the gates and the output, one of `CPU_DTYPES`.
        filter_dtype: of the filter, one of `CPU_DTYPES`.
        fft_size: real points of the transform; in circular mode the period N.
        shared_filter: one filter row serves all channels.
        in_gate: the input is multiplied by a gate.
        out_gate: the output is multiplied by a gate.
        skip: ``skip * (in_gate * u)`` is added before the output gate.
        initial_state: what came before the first point of a row is given.
        precision: the least exact arithmetic that will do on a GPU, one of `PRECISIONS`; None means the fastest whose
            error stays within 1.2 times the rounding of the output.
        intermediate: dtype of what lies between the passes of rows that a GPU transforms in several, one of
            `INTERMEDIATES`; None leaves it to the plan.
    """

    mode: str
    batch: int
    channels: int
    seqlen: int
    filter_len: int
    dtype: str
    filter_dtype: str
    fft_size: int
    shared_filter: bool = False
    in_gate: bool = False
    out_gate: bool = False
    skip: bool = False
    initial_state: bool = False
    precision: str | None = "highest"
    intermediate: str | None = None
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        """Hash once: problems are keys of the look-ups of every call.

        Strings stay out of it: their hash differs between processes, and a problem may be pickled into another one.
        """
        sizes = (self.batch, self.channels, self.seqlen, self.filter_len, self.fft_size)
        flags = (self.shared_filter, self.in_gate, self.out_gate, self.skip, self.initial_state)
        object.__setattr__(self, "_hash", hash(sizes + flags))

    def __hash__(self) -> int:
        """Return the hash made at construction."""
        return self._hash

    @property
    def out_len(self) -> int:
        """Points of an output row: L + K - 1 in mode "full", else L."""
        return self.seqlen + self.filter_len - 1 if self.mode == "full" else self.seqlen

    @property
    def taps(self) -> int:
        """Filter points that can reach the output: min(K, L) in mode "causal" without an initial state, else K."""
        is_cut = self.mode == "causal" and not self.initial_state
        return min(self.filter_len, self.seqlen) if is_cut else self.filter_len


class Wanted(NamedTuple):
    """The arguments of a convolution whose gradients are asked for."""

    u: bool = False
    k: bool = False
    in_gate: bool = False
    out_gate: bool = False
    skip: bool = False


class Gradients(NamedTuple):
    """What `fftconv_vjp` returns: for each argument its gradient, of its shape and dtype; None where not asked for."""

    u: Any = None
    k: Any = None
    in_gate: Any = None
    out_gate: Any = None
    skip: Any = None


class StateGradients(NamedTuple):
    """What `fftconv_vjp` returns of a call with an initial state: the same, and the gradient of that state."""

    u: Any = None
    k: Any = None
    in_gate: Any = None
    out_gate: Any = None
    skip: Any = None
    initial_state: Any = None


class States(NamedTuple):
    """The views of the states of a call, float32, with the K - 1 points of a row along the last axis; None if absent.

    Attributes:
        initial: what came before the first points.
        d_final: gradient of the final state.
        d_initial: for the gradient of the initial one, contiguous.
    """

    initial: Any = None
    d_final: Any = None
    d_initial: Any = None


def check_int(value: object, name: str, *, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`.

    Raises:
        InvalidTypeError: `value` is not an integer (a bool is not one here).
        InvalidArgumentError: it is smaller than `minimum`.
    """
    number = None if isinstance(value, bool) else _as_index(value)
    if number is None:
        raise InvalidTypeError(
            message(
                name, got=f"{value!r} of type {type(value).__name__}", allowed="an int", do=f"Pass {name} as an int."
            )
        )
    if number < minimum:
        raise InvalidArgumentError(
            message(name, got=number, allowed=f"an int >= {minimum}", do=f"Pass {name} of at least {minimum}.")
        )
    return number


def check_precision(precision: object) -> str | None:
    """Return `precision` when it is None or one of `PRECISIONS`.

    Raises:
        InvalidTypeError: it is neither None nor a string.
        InvalidArgumentError: it is another string.
    """
    return _choice(precision, "precision", PRECISIONS)


def check_intermediate(intermediate: object) -> str | None:
    """Return `intermediate` when it is None or one of `INTERMEDIATES`.

    Raises:
        InvalidTypeError: it is neither None nor a string.
        InvalidArgumentError: it is another string.
    """
    return _choice(intermediate, "intermediate", INTERMEDIATES)


def _choice(value: object, name: str, choices: tuple[str, ...]) -> str | None:
    if value is None or (isinstance(value, str) and value in choices):
        return value
    error = InvalidArgumentError if isinstance(value, str) else InvalidTypeError
    allowed = ", ".join(map(repr, choices))
    raise error(message(name, got=repr(value), allowed=f"None, {allowed}", do="Pass one of these."))


def check_mode(mode: object) -> str:
    """Return `mode` when it is one of `MODES`.

    Raises:
        InvalidTypeError: `mode` is not a string.
        InvalidArgumentError: it is another string.
    """
    allowed = ", ".join(repr(name) for name in MODES)
    if not isinstance(mode, str):
        got = f"{mode!r} of type {type(mode).__name__}"
        raise InvalidTypeError(message("mode", got=got, allowed=allowed, do="Pass one of these strings."))
    if mode not in MODES:
        raise InvalidArgumentError(message("mode", got=repr(mode), allowed=allowed, do="Pass one of these strings."))
    return mode


def check_dtype(dtype: object, name: str, *, allowed: tuple[str, ...] = DTYPES) -> str:
    """Return `dtype` when it is one of the names in `allowed`.

    Raises:
        InvalidTypeError: it is anything else.
    """
    if not isinstance(dtype, str) or dtype not in allowed:
        got = repr(dtype) if isinstance(dtype, str) else f"{dtype!r} of type {type(dtype).__name__}"
        raise InvalidTypeError(
            message(name, got=got, allowed=", ".join(allowed), do=f"Pass {name} as one of these strings.")
        )
    return dtype


def needed_fft_size(mode: str, seqlen: int, filter_len: int) -> int:
    """Return the smallest number of real points with which the outputs of `mode` are free of wrapped terms.

    A transform of N points adds the term at index i to the output at i modulo N: the outputs asked for must meet none
    of the terms past N. In "same" the first (K-1)//2 terms are dropped and may be hit, hence L + K//2.
    In "circular" the wrap is wanted, and the least period is the row itself.
    """
    if mode == "causal":
        return seqlen + min(filter_len, seqlen) - 1
    if mode == "full":
        return seqlen + filter_len - 1
    if mode == "same":
        return seqlen + filter_len // 2
    return seqlen


def resolve_fft_size(mode: str, seqlen: int, filter_len: int, fft_size: int | None) -> int:
    """Return the FFT size in real points: the given one, checked, or the default.

    Args:
        mode: one of `MODES`.
        seqlen: L >= 1.
        filter_len: K >= 1.
        fft_size: a power of two >= 2 that is large enough, or None for the default: the smallest such power of two
            in the linear modes, L (of any value) in "circular".

    Raises:
        InvalidTypeError: `fft_size` is not an int.
        InvalidArgumentError: unknown mode, a length below 1, or a `fft_size` that is not a power of two or too small.
    """
    mode = check_mode(mode)
    seqlen = check_int(seqlen, "seqlen", minimum=1)
    filter_len = check_int(filter_len, "filter_len", minimum=1)
    needed = needed_fft_size(mode, seqlen, filter_len)
    smallest = max(2, 1 << (needed - 1).bit_length())
    if fft_size is None:
        return needed if mode == "circular" else smallest
    size = check_int(fft_size, "fft_size", minimum=2)
    if size & (size - 1):
        hint = f"Pass fft_size={max(smallest, 1 << size.bit_length())}, or leave it out" + (
            f" for the period L = {seqlen}." if mode == "circular" else "."
        )
        raise InvalidArgumentError(message("fft_size", got=size, allowed="a power of two from 2 on", do=hint))
    if size < needed:
        lengths = f"L = {seqlen}" if mode == "circular" else f"L = {seqlen} and K = {filter_len}"
        raise InvalidArgumentError(
            message(
                "fft_size",
                got=size,
                allowed=f"powers of two >= {needed} in mode {mode!r} with {lengths}",
                do=f"Pass fft_size={smallest} or larger, or leave it out.",
            )
        )
    return size


def make_problem(
    mode: str,
    *,
    batch: int,
    channels: int,
    seqlen: int,
    filter_len: int,
    dtype: str = "float16",
    filter_dtype: str = "float32",
    fft_size: int | None = None,
    shared_filter: bool = False,
    in_gate: bool = False,
    out_gate: bool = False,
    skip: bool = False,
    initial_state: bool = False,
    precision: object = "highest",
    intermediate: object = None,
    dtypes: tuple[str, ...] = DTYPES,
) -> Problem:
    """Check every number and return the problem; the arguments are the fields of `Problem`.

    Args:
        mode: one of `MODES`.
        batch: B >= 0.
        channels: H >= 1.
        seqlen: L >= 1.
        filter_len: K >= 1.
        dtype: name of the input's dtype.
        filter_dtype: name of the filter's dtype.
        fft_size: see `resolve_fft_size`.
        shared_filter: one filter row for all channels.
        in_gate: with an input gate.
        out_gate: with an output gate.
        skip: with a skip term.
        initial_state: with what came before the first points.
        precision: see `Problem`.
        intermediate: see `Problem`.
        dtypes: the names that `dtype` and `filter_dtype` may have.

    Raises:
        InvalidTypeError: a number that is no int, or a dtype not in `dtypes`.
        InvalidArgumentError: a number out of range, an unknown mode, precision or intermediate, an unusable
            `fft_size`.
    """
    mode = check_mode(mode)
    seqlen = check_int(seqlen, "seqlen", minimum=1)
    filter_len = check_int(filter_len, "filter_len", minimum=1)
    return Problem(
        mode=mode,
        batch=check_int(batch, "batch", minimum=0),
        channels=check_int(channels, "channels", minimum=1),
        seqlen=seqlen,
        filter_len=filter_len,
        dtype=check_dtype(dtype, "dtype", allowed=dtypes),
        filter_dtype=check_dtype(filter_dtype, "filter_dtype", allowed=dtypes),
        fft_size=resolve_fft_size(mode, seqlen, filter_len, fft_size),
        shared_filter=bool(shared_filter),
        in_gate=bool(in_gate),
        out_gate=bool(out_gate),
        skip=bool(skip),
        initial_state=bool(initial_state),
        precision=check_precision(precision),
        intermediate=check_intermediate(intermediate),
    )


def make_wanted(names: tuple[object, ...] | None, given: Sequence[str]) -> tuple[Wanted, bool]:
    """Check the names of the gradients that are asked for; return which, and whether that of the initial state.

    Args:
        names: fields of `StateGradients`; None means every one of `given`.
        given: the arguments that a gradient can be taken of: a filter is not among them where it was prepared.

    Raises:
        InvalidTypeError: a name that is no string.
        InvalidArgumentError: no name, or one of something else.
    """
    if names is None:
        names = tuple(given)
    allowed = ", ".join(repr(name) for name in given)
    if not names:
        do = "Name at least one, or pass None for all."
        raise InvalidArgumentError(message("wrt", got="no name", allowed=f"at least one of {allowed}", do=do))
    for name in names:
        if not isinstance(name, str):
            got = f"an item of type {type(name).__name__}"
            raise InvalidTypeError(message("wrt", got=got, allowed=allowed, do="Pass names of arguments, no arrays."))
        if name not in given:
            got, do = repr(name), "Pass names of arguments."
            if name == "k":
                got, do = "'k', a prepared filter", "Pass the taps as k, or leave 'k' out of wrt."
            elif name in StateGradients._fields:
                got, do = f"{name!r}, which was not given", f"Pass {name}, or leave {name!r} out of wrt."
            raise InvalidArgumentError(message("wrt", got=got, allowed=allowed, do=do))
    return Wanted(*(name in names for name in Wanted._fields)), "initial_state" in names


def _as_index(value: object) -> int | None:
    """Return `value` as an int when its type is an integer's, else None."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
