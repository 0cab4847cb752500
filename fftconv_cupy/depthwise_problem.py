"""A short depthwise convolution as plain numbers: checked lengths, dtypes and flags.

Nothing here knows an array, a framework or a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.problem import check_int

MAX_WIDTH = 128
"""The most taps that a depthwise convolution has; `fftconv` takes longer filters."""

LAYOUTS = ("BHL", "BLH")


@dataclass(frozen=True, slots=True)
class DepthwiseProblem:
    """One depthwise convolution, validated: what is computed, without where or how.

    Output t of a row is ``bias + sum_j weight[j] * x[t + j - pad]``, and x is 0 outside of its row, but for the points
    before it where there is an initial state.

    Attributes:
        batch: rows of a channel, B >= 0.
        channels: D >= 1.
        seqlen: points of an input row, L >= 1.
        width: taps, K, from 1 to `MAX_WIDTH`.
        out_len: points of an output row: L, and L + 2 pad - K + 1 where the padding is a number.
        pad: points before the first one that the first output sees: K - 1 where causal, (K - 1) // 2 for "same".
        dtype: of the input, the output and the states.
        weight_dtype: of the taps.
        bias_dtype: of the bias; None where there is none.
        layout: "BHL" where the arrays are (B, D, L), "BLH" where they are (B, L, D).
        activation: "silu", or None.
        has_seq_idx: a tap counts only where its input has the sequence index of the output; where that of the output is
            negative, which marks padding, the output is 0, without bias.
        has_initial_state: the K - 1 points before each row are given.
        has_final_state: the last K - 1 points are asked for.
    """

    batch: int
    channels: int
    seqlen: int
    width: int
    out_len: int
    pad: int
    dtype: str
    weight_dtype: str
    bias_dtype: str | None
    layout: str
    activation: str | None
    has_seq_idx: bool
    has_initial_state: bool
    has_final_state: bool
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        """Hash once: problems are keys of the look-ups of every call.

        Strings stay out of it: their hash differs between processes, and a problem may be pickled into another one.
        """
        sizes = (self.batch, self.channels, self.seqlen, self.width, self.out_len, self.pad)
        flags = (self.has_seq_idx, self.has_initial_state, self.has_final_state)
        object.__setattr__(self, "_hash", hash(sizes + flags))

    def __hash__(self) -> int:
        """Return the hash made at construction."""
        return self._hash


class DepthwiseWanted(NamedTuple):
    """The arguments of a depthwise convolution whose gradients are asked for."""

    x: bool = False
    weight: bool = False
    bias: bool = False
    initial_state: bool = False


class DepthwiseGradients(NamedTuple):
    """What `depthwise_conv1d_vjp` returns: for each argument its gradient, of its shape and dtype, or None."""

    x: Any = None
    weight: Any = None
    bias: Any = None
    initial_state: Any = None


def make_depthwise_problem(
    *,
    batch: int,
    channels: int,
    seqlen: int,
    width: int,
    padding: object = "causal",
    activation: object = None,
    layout: object = "BHL",
    dtype: str = "float16",
    weight_dtype: str = "float32",
    bias_dtype: str | None = None,
    has_seq_idx: bool = False,
    has_initial_state: bool = False,
    has_final_state: bool = False,
) -> DepthwiseProblem:
    """Check the options and return the problem; the other arguments are fields of `DepthwiseProblem`.

    Args:
        batch: B >= 0.
        channels: D >= 1.
        seqlen: L >= 1.
        width: K, from 1 to `MAX_WIDTH`.
        padding: "causal", "same" or the points on both sides.
        activation: None, "silu", or "swish", which is the same.
        layout: one of `LAYOUTS`.
        dtype: of the input.
        weight_dtype: of the taps.
        bias_dtype: of the bias, or None.
        has_seq_idx: see `DepthwiseProblem`, as for the rest; a problem of one tap has no states.
        has_initial_state: with an initial state.
        has_final_state: with a final state.

    Raises:
        InvalidTypeError: an option of a wrong type.
        InvalidArgumentError: an option that is not allowed, or a padding that leaves no output.
    """
    pad, out_len = _resolve_padding(padding, seqlen, width)
    return DepthwiseProblem(
        batch=batch,
        channels=channels,
        seqlen=seqlen,
        width=width,
        out_len=out_len,
        pad=pad,
        dtype=dtype,
        weight_dtype=weight_dtype,
        bias_dtype=bias_dtype,
        layout=check_layout(layout),
        activation=check_activation(activation),
        has_seq_idx=has_seq_idx,
        has_initial_state=has_initial_state and width > 1,
        has_final_state=has_final_state and width > 1,
    )


def check_layout(layout: object) -> str:
    """Return `layout` when it is one of `LAYOUTS`.

    Raises:
        InvalidTypeError: it is not a string.
        InvalidArgumentError: it is another string.
    """
    if not isinstance(layout, str) or layout not in LAYOUTS:
        _refuse_option("layout", layout, "'BHL' for (B, D, L), 'BLH' for (B, L, D)", not isinstance(layout, str))
    return layout


def check_activation(activation: object) -> str | None:
    """Return None, or "silu" by either of its names.

    Raises:
        InvalidTypeError: it is neither None nor a string.
        InvalidArgumentError: it is another string.
    """
    if activation is None:
        return None
    if not isinstance(activation, str) or activation not in ("silu", "swish"):
        _refuse_option("activation", activation, "None, 'silu' or 'swish'", not isinstance(activation, str))
    return "silu"


def make_depthwise_wanted(names: tuple[object, ...] | None, given: Sequence[str]) -> DepthwiseWanted:
    """Check the names of the gradients that are asked for.

    Args:
        names: fields of `DepthwiseGradients`; None means every one of `given`.
        given: the arguments that were passed.

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
            is_missing = name in DepthwiseGradients._fields
            got = f"{name!r}, which was not given" if is_missing else repr(name)
            do = f"Pass {name}, or leave {name!r} out of wrt." if is_missing else "Pass names of arguments."
            raise InvalidArgumentError(message("wrt", got=got, allowed=allowed, do=do))
    return DepthwiseWanted(*(name in names for name in DepthwiseWanted._fields))


def check_padding(padding: object) -> str | int:
    """Return `padding` when it is "causal", "same" or an int of at least 0.

    Raises:
        InvalidTypeError: it is neither a string nor an int.
        InvalidArgumentError: it is another string, or negative.
    """
    if isinstance(padding, str) and padding in ("causal", "same"):
        return padding
    try:
        return check_int(padding, "padding", minimum=0)
    except InvalidTypeError:
        _refuse_option("padding", padding, "'causal', 'same', or an int >= 0", not isinstance(padding, str))


def _resolve_padding(padding: object, seqlen: int, width: int) -> tuple[int, int]:
    """Return the points before the first one that the first output sees, and the number of outputs."""
    points = check_padding(padding)
    if isinstance(points, str):
        return (width - 1) // (1 if points == "causal" else 2), seqlen
    out_len = seqlen + 2 * points - width + 1
    if out_len < 1:
        raise InvalidArgumentError(
            message(
                "padding",
                got=f"{points}, with L = {seqlen} and K = {width}: {out_len} outputs",
                allowed=f"at least {(width - seqlen + 1) // 2} there, so that there is an output",
                do="Pad more, or pass padding='causal' or 'same' for L outputs.",
            )
        )
    return points, out_len


def _refuse_option(name: str, value: object, allowed: str, is_type: bool) -> NoReturn:
    got = f"{value!r} of type {type(value).__name__}" if is_type else repr(value)
    error = InvalidTypeError if is_type else InvalidArgumentError
    raise error(message(name, got=got, allowed=allowed, do="Pass one of these."))
