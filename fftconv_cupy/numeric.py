"""How far a result may be from float64, and how far it is: one measure for tests, ``fftconv verify`` and benchmarks.

The error of ``y`` is ``||y - y64|| / ||y64||`` with ``y64`` computed in float64 from the inputs as given. It is taken
over the whole tensor and, where a row has at least 1024 outputs, over each row, so a small row is not hidden by a large
one. A result of zeros has error 1, a shifted or conjugated one about 1.4; no absolute tolerance lets either pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.readers import NUMPY_DTYPES

ROW_OUTPUTS = 1024
"""Rows with at least this many outputs are judged one by one: in shorter rows rounding does not average out."""

_ROUNDING_FACTOR = 1.2
_LONG_ROUNDING_FACTOR = 2.0  # rows that outgrow a block are rounded to 16 bits between their passes too
_ROUNDING_SLACK = 1e-6
# By precision below "highest": float16 results may err by the first, bfloat16 ones by the second times their rounding.
_MMA_BOUNDS = {"medium": (1.1e-3, 1.2)}
# Of a row that is nearly one wave, and with it of its few sums, the roundings of those precisions are in step: about
# eight in turn change all of it by a factor, by less than this (four deviations), besides the errors above.
_IN_STEP = 2e-3
_FLOAT32_BOUND = 1e-6
_FLOAT32_LONG_BOUND = 2e-6
_LONG_FFT_SIZE = 32768
_FLOAT64_BOUND = 1e-13
_SUM_BOUND = 1e-5
_FLOAT64_SUM_BOUND = 1e-12
_MMA_SUM_BOUNDS = {"medium": 2e-3}
_FEW_FACTOR = 3.0  # of sums below `ROW_OUTPUTS` in number, with less than the highest precision


@dataclass(frozen=True, slots=True)
class Agreement:
    """What comparing a result with float64 gave.

    Attributes:
        error: relative error where it is largest against its bound.
        bound: the bound there.
        row: index of that row (all axes but the last), or None where the whole tensor is meant.
    """

    error: float
    bound: float
    row: tuple[int, ...] | None = None

    @property
    def ok(self) -> bool:
        """Whether the error keeps its bound; a NaN does not."""
        return self.error <= self.bound


def relative_error(y: NDArray[np.generic], y64: NDArray[np.float64]) -> float:
    """Return ``||y - y64|| / ||y64||``.

    A non-finite value in ``y`` gives inf. Where ``y64`` is zero throughout, so must ``y`` be: 0.0, else inf.
    """
    return float(_ratio(*_square_sums(y, y64, rows=False)))


def rounding_error(y64: NDArray[np.float64], dtype: str) -> float:
    """Return the error that rounding ``y64`` to ``dtype`` makes, which no result of that dtype can avoid."""
    with np.errstate(over="ignore"):
        return relative_error(y64.astype(NUMPY_DTYPES[dtype]), y64)


def bound(
    y64: NDArray[np.float64],
    dtype: str,
    *,
    fft_size: int = 0,
    precision: str = "highest",
    is_one_wave: bool = False,
) -> float:
    """Return the largest error allowed for a result of ``dtype``.

    Args:
        y64: the float64 result, whole or one row of it.
        dtype: dtype of the result: float16 and bfloat16 may err by 1.2 times their own rounding, float32 by 1e-6.
        fft_size: real points of the transform; of more than 32768 points 16-bit results may err by 2 times their
            rounding, float32 ones by 2e-6.
        precision: of the arithmetic. With "medium" float16 results of many points may err by 1.1e-3, and bfloat16 ones
            by 1.2 times their rounding.
        is_one_wave: nearly all of a row is one frequency or one point, and that is what the filter passes. With
            "medium" the error may then have a part of 2e-3 that is in step, besides these, as in a sum of squares.
    """
    if dtype in ("float16", "bfloat16"):
        return float(_rounded_bound(rounding_error(y64, dtype), dtype, fft_size, precision, is_one_wave))
    return _fixed_bound(dtype, fft_size)


def compare(
    y: NDArray[np.generic],
    y64: NDArray[np.float64],
    dtype: str,
    *,
    fft_size: int = 0,
    precision: str = "highest",
    is_one_wave: bool = False,
) -> Agreement:
    """Compare a result with float64, as a whole and row by row, and return where it is worst against its bound.

    Args:
        y: the result, (..., outputs), of any dtype that converts to float64.
        y64: the float64 result, same shape.
        dtype: dtype whose rounding the bound allows for, normally that of ``y``.
        fft_size: real points of the transform, see `bound`.
        precision: of the arithmetic, see `bound`.
        is_one_wave: of what the rows are, see `bound`.
    """
    allowed = bound(y64, dtype, fft_size=fft_size, precision=precision, is_one_wave=is_one_wave)
    whole = Agreement(relative_error(y, y64), allowed)
    if y64.ndim < 2 or y64.shape[-1] < ROW_OUTPUTS or not y64.size:
        return whole
    if dtype in ("float16", "bfloat16"):
        with np.errstate(over="ignore"):
            rounded = y64.astype(NUMPY_DTYPES[dtype])
        rounding = _ratio(*_square_sums(rounded, y64, rows=True))
        bounds = _rounded_bound(rounding, dtype, fft_size, precision, is_one_wave)
    else:
        bounds = _fixed_bound(dtype, fft_size)
    return _worst_of_rows(whole, _ratio(*_square_sums(y, y64, rows=True)), bounds)


def compare_sum(
    y: NDArray[np.generic],
    y64: NDArray[np.float64],
    dtype: str,
    *,
    precision: str = "highest",
    terms: NDArray[np.float64] | None = None,
    is_one_wave: bool = False,
) -> Agreement:
    """Compare a gradient that is summed over rows, that of the filter or of skip, with float64, as a whole.

    Its terms cancel, so float32 sums may err by 1e-5, besides 1.2 times the rounding of a 16-bit result. With "medium"
    the terms are products of 16-bit numbers, and sums may err by 2e-3, in each row of many taps too; fewer numbers by
    three times that, for theirs is not an average. A few sums may all cancel to next to nothing, a single one to any
    size: then the error is relative to `terms`, which tell what was added up.

    Args:
        y: the result, of any dtype that converts to float64.
        y64: the float64 result, same shape.
        dtype: dtype whose rounding the bound allows for, normally that of ``y``.
        precision: of the arithmetic.
        terms: of each sum, the root of the sum of the squares of its terms, same shape; None where the sums will do.
        is_one_wave: of what the rows are, see `bound`; both factors of the sums' terms may be.
    """
    allowed = _FLOAT64_SUM_BOUND if dtype == "float64" else _SUM_BOUND
    if precision != "highest":
        allowed = _MMA_SUM_BOUNDS[precision] * (_FEW_FACTOR if y64.size < ROW_OUTPUTS else 1)
        allowed = float(_with_steps(allowed, is_one_wave))
    if dtype in ("float16", "bfloat16"):
        with np.errstate(over="ignore"):
            rounded = y64.astype(NUMPY_DTYPES[dtype])
        allowed += _ROUNDING_FACTOR * float(_errors_of_sums(rounded, y64, terms, rows=False))
    whole = Agreement(float(_errors_of_sums(y, y64, terms, rows=False)), allowed)
    if precision == "highest" or y64.ndim < 2 or y64.shape[-1] < ROW_OUTPUTS:
        return whole
    return _worst_of_rows(whole, _errors_of_sums(y, y64, terms, rows=True), allowed)


def _errors_of_sums(
    y: NDArray[np.generic], y64: NDArray[np.float64], terms: NDArray[np.float64] | None, *, rows: bool
) -> NDArray[np.float64]:
    """Return the errors relative to the sums, or to their terms where these are larger."""
    difference, reference = _square_sums(y, y64, rows=rows)
    if terms is not None:
        reference = np.maximum(reference, np.sum(terms**2, axis=-1 if rows else None))
    return _ratio(difference, reference)


def _worst_of_rows(whole: Agreement, errors: NDArray[np.float64], bounds: Any) -> Agreement:
    """Return the row that is worst against its bound, of `bounds` or of one for all, or the whole where that is."""
    bounds = np.broadcast_to(bounds, errors.shape)
    excess = errors / bounds
    worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
    if not excess[worst] > whole.error / whole.bound:
        return whole
    return Agreement(float(errors[worst]), float(bounds[worst]), tuple(int(i) for i in worst))


def _rounded_bound(rounding: Any, dtype: str, fft_size: int, precision: str, is_one_wave: bool) -> Any:
    """Return the bound of 16-bit results whose own rounding errs by `rounding`, a number or an array."""
    if precision == "highest":
        factor = _LONG_ROUNDING_FACTOR if fft_size > _LONG_FFT_SIZE else _ROUNDING_FACTOR
        return factor * rounding + _ROUNDING_SLACK
    fixed, factor = _MMA_BOUNDS[precision]
    # Of few points the rounding may be larger than it is of many.
    allowed = np.maximum(fixed, 2.5 * rounding) if dtype == "float16" else factor * rounding + _ROUNDING_SLACK
    return _with_steps(allowed, is_one_wave)


def _with_steps(allowed: Any, is_one_wave: bool) -> Any:
    """Return a bound of less than the highest precision, with what is in step where rows are one wave."""
    return np.hypot(allowed, _IN_STEP) if is_one_wave else allowed


def _fixed_bound(dtype: str, fft_size: int) -> float:
    if dtype == "float64":
        return _FLOAT64_BOUND
    return _FLOAT32_LONG_BOUND if fft_size > _LONG_FFT_SIZE else _FLOAT32_BOUND


def _square_sums(
    y: NDArray[np.generic], y64: NDArray[np.float64], *, rows: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of squares of ``y - y64`` and of ``y64``, per row or over everything."""
    axis = -1 if rows else None
    with np.errstate(invalid="ignore", over="ignore"):
        difference = y.astype(np.float64) - y64
        return np.asarray(np.sum(difference**2, axis=axis)), np.asarray(np.sum(y64**2, axis=axis))


def _ratio(difference: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the square root of the ratio: inf for what is not finite, and 0 where both are zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(difference / reference)
    ratio = np.where(difference == 0.0, 0.0, ratio)
    return np.where(np.isfinite(ratio), ratio, np.inf)
