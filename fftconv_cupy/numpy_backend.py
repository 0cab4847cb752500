"""`fftconv` on the CPU: NumPy's real transforms in float64, the result rounded once to the dtype of the input.

Rows are transformed in groups that keep the float64 copies small. A row is never combined with another one, so a
non-finite value stays in its row.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.problem import Problem, needed_fft_size

Array = NDArray[Any]
_GROUP_POINTS = 1 << 20  # float64 points that are transformed at a time: 8 MiB, and as much for their spectrum


def transform_points(problem: Problem) -> int:
    """Return the real points of the transform that computes `problem` here.

    A linear mode takes the smallest power of two free of wrapped terms, whatever larger FFT size is asked for. A
    circular convolution takes its period N; but where N >= 2 L - 1 no lag between two points of a row wraps onto
    another, and 2 L - 1 points rounded up will do, however large N is.
    """
    if problem.mode != "circular":
        return _next_power_of_two(needed_fft_size(problem.mode, problem.seqlen, problem.filter_len))
    if problem.fft_size < 2 * problem.seqlen - 1:
        return problem.fft_size
    return _next_power_of_two(2 * problem.seqlen - 1)


def filter_spectrum(problem: Problem, k: Array) -> NDArray[np.complex128]:
    """Return the spectrum of a filter, (..., points / 2 + 1), for a filter ``k`` of shape (..., K)."""
    points = transform_points(problem)
    taps = k[..., : problem.taps].astype(np.float64)
    if problem.mode != "circular":
        return _rfft(_fold(taps, points), points)
    period, seqlen = problem.fft_size, problem.seqlen
    if taps.shape[-1] > period:
        taps = _fold(taps, period)
    if points == period:
        return _rfft(taps, points)
    # Taps 0 .. L-1 are lags forward, taps N-L+1 .. N-1 lags backward; the others reach no point of a row.
    wrapped = np.zeros((*taps.shape[:-1], points))
    ahead = taps[..., :seqlen]
    wrapped[..., : ahead.shape[-1]] = ahead
    first_back = period - seqlen + 1
    back = taps[..., first_back:]
    start = points - seqlen + 1
    wrapped[..., start : start + back.shape[-1]] = back
    return _rfft(wrapped, points)


def convolve(
    problem: Problem,
    u: Array,
    filt: Array,
    in_gate: Array | None,
    out_gate: Array | None,
    skip: Array | None,
    out: Array,
) -> None:
    """Fill `out` with ``out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))``.

    Args:
        problem: lengths, mode and FFT size.
        u: (B, H, L).
        filt: the filter, (H, K) or (K,) for all channels; or, complex, its spectrum as `filter_spectrum` returns it.
        in_gate: (B, H, L) or None.
        out_gate: (B, H, outputs) or None.
        skip: (H,) or None.
        out: (B, H, outputs), written in its own dtype. Must share no memory with the inputs.
    """
    points = transform_points(problem)
    rows = max(1, _GROUP_POINTS // points)
    channel_step = min(problem.channels, rows)
    batch_step = max(1, rows // channel_step)
    with expected_errors():
        is_spectrum = filt.dtype.kind == "c"
        if problem.shared_filter and not is_spectrum:
            filt, is_spectrum = filter_spectrum(problem, filt), True
        for first in range(0, problem.channels, channel_step):
            channels = slice(first, first + channel_step)
            h = filt if problem.shared_filter else filt[channels]
            if not is_spectrum:
                h = filter_spectrum(problem, h)
            for start in range(0, problem.batch, batch_step):
                group = (slice(start, start + batch_step), channels)
                x = u[group].astype(np.float64)
                if in_gate is not None:
                    x *= in_gate[group].astype(np.float64)
                y = _wanted(problem, np.fft.irfft(_rfft(x, points) * h, points))
                if skip is not None:
                    y[..., : problem.seqlen] += skip[channels, None].astype(np.float64) * x
                if out_gate is not None:
                    y *= out_gate[group].astype(np.float64)
                out[group] = _to_bfloat16(y) if problem.dtype == "bfloat16" else y


def expected_errors() -> np.errstate:
    """Return a context without warnings: float16 overflows to infinity and a row may hold NaN, and both are results."""
    return np.errstate(over="ignore", invalid="ignore")


def _wanted(problem: Problem, y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outputs that the mode asks for, out of those of a transform."""
    first = (problem.filter_len - 1) // 2 if problem.mode == "same" else 0
    return y[..., first : first + problem.out_len]


def _to_bfloat16(y: NDArray[np.float64]) -> Array:
    """Round to nearest even once; the cast alone rounds to float32 before, and a tie there loses what lay beyond it."""
    single = y.astype(np.float32)
    # Towards zero, with the last bit set where something was cut off: no tie is left that is none.
    bits = single.view(np.uint32) - (np.abs(single) > np.abs(y))
    bits |= single != y
    return bits.view(np.float32).astype(ml_dtypes.bfloat16)


def _rfft(x: Array, points: int) -> NDArray[np.complex128]:
    """Transform the last axis, zero-padded to `points`."""
    spectrum: NDArray[np.complex128] = np.fft.rfft(x, points)
    return spectrum


def _fold(taps: Array, period: int) -> Array:
    """Add up the taps whose indices are equal modulo `period`."""
    length = taps.shape[-1]
    if length <= period:
        return taps
    turns = -(-length // period)
    padded = np.zeros((*taps.shape[:-1], turns * period))
    padded[..., :length] = taps
    folded: Array = padded.reshape(*taps.shape[:-1], turns, period).sum(axis=-2)
    return folded


def _next_power_of_two(number: int) -> int:
    return 1 << max(1, (number - 1).bit_length())
