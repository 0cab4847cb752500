"""Rows and filters of unusual magnitude, which are to be convolved as exactly as any others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Range:
    """How inputs are made from white noise, along the last axis.

    Attributes:
        dtypes: of rows that can hold them.
        rows: from noise (B, H, L) of deviation 1.
        taps: from the taps (H, K) or (K,), noise whose sum of squares is about 1.
        is_one_wave: nearly all of a row is one frequency, or one point: roundings are in step, see `numeric.bound`.
    """

    dtypes: tuple[str, ...]
    rows: Callable[[Values], Values]
    taps: Callable[[Values], Values] = lambda k: k
    is_one_wave: bool = False


def _signs(values: Values) -> Values:
    return np.resize([1.0, -1.0], values.shape[-1])


def _spikes(u: Values) -> Values:
    spiked = 1e-3 * u
    spiked[..., u.shape[-1] // 3] = 200
    return spiked


def _rows_apart(u: Values) -> Values:
    """Return rows whose neighbours in the batch differ by six and more orders of magnitude."""
    return u * 10.0 ** np.resize([0, 6, -6, 3], len(u))[:, None, None]


_HALVES = ("float16", "bfloat16")

# Where nearly all of a row is one frequency, so is the filter strong there: a filter that takes it away leaves the
# rounding of what it takes. Outputs stay within the dtype.
RANGES = {
    "a mean of 100 sigma": Range(_HALVES, lambda u: 100 + u, abs, is_one_wave=True),
    "alternating signs of 6e4": Range(
        _HALVES,
        lambda u: 6e4 * _signs(u) + u,
        lambda k: abs(k) * _signs(k) / (2 * k.shape[-1] ** 0.5),
        is_one_wave=True,
    ),
    "6e4": Range(_HALVES, lambda u: 6e4 * np.sign(u), lambda k: k / 64),
    "spikes": Range(_HALVES, _spikes, is_one_wave=True),
    "1e-6": Range(("bfloat16",), lambda u: 1e-6 * u),
    "2^60": Range(("bfloat16",), lambda u: 2.0**60 * u),
    "2^-60": Range(("bfloat16",), lambda u: 2.0**-60 * u),
    "rows 1e6 apart": Range(("bfloat16",), _rows_apart),
    "taps of 2^40": Range(("bfloat16",), lambda u: u, lambda k: 2.0**40 * k),
    "taps of 2^-70": Range(("bfloat16",), lambda u: u, lambda k: 2.0**-70 * k),
}
"""By name."""
