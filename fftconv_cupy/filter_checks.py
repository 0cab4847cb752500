"""The rules about filters: the shapes of taps, and what a prepared filter is good for."""

from __future__ import annotations

from typing import NoReturn

from fftconv_cupy.errors import InvalidArgumentError, message
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.problem import PRECISIONS, Problem
from fftconv_cupy.readers import ArrayView


def filter_shape(k: ArrayView | FilterSpectrum, u: ArrayView, channels: int) -> tuple[int, bool]:
    """Return K and whether the filter is shared.

    Raises:
        InvalidArgumentError: the filter has another shape than goes with `u`, which has so many channels.
    """
    wanted = "(K,)" if len(u.shape) == 1 else f"({channels}, K), or (K,) for all channels"
    allowed = f"{wanted}, with u of shape {tuple(u.shape)}"
    if isinstance(k, FilterSpectrum):
        if not k.shared and (len(u.shape) == 1 or k.channels != channels):
            _refuse_prepared("H", "no channel axis" if len(u.shape) == 1 else channels, k.channels, f"Pass {allowed}")
        return k.filter_len, k.shared
    shape = k.shape
    is_shared = len(shape) == 1
    if 0 in shape or not (is_shared or (len(shape) == 2 and len(u.shape) > 1 and shape[0] == channels)):
        refuse_filter(k, allowed)
    return shape[-1], is_shared


def refuse_filter(k: ArrayView, allowed: str) -> NoReturn:
    """Raise that a filter has another shape than those `allowed`."""
    do = "Pass at least one tap." if 0 in k.shape else "Reshape or cut k."
    raise InvalidArgumentError(message("k.shape", got=f"{tuple(k.shape)}", allowed=allowed, do=do))


def check_prepared(k: FilterSpectrum, mode: str, seqlen: int) -> None:
    """Refuse a prepared filter for another mode or length of rows."""
    if k.mode != mode:
        _refuse_prepared("mode", repr(mode), repr(k.mode), f"Pass mode={k.mode!r} to fftconv too")
    if k.seqlen != seqlen:
        _refuse_prepared("seqlen", seqlen, k.seqlen, f"Pass u with L = {k.seqlen}")


def check_prepared_size(k: FilterSpectrum, problem: Problem) -> None:
    """Refuse a prepared filter of another FFT size."""
    if k.fft_size == problem.fft_size:
        return
    # A period that is no power of two comes from leaving fft_size out, and cannot be passed.
    is_default = k.fft_size < 2 or k.fft_size & (k.fft_size - 1)
    do = "Leave fft_size out here too" if is_default else f"Pass fft_size={k.fft_size} to fftconv too"
    _refuse_prepared("fft_size", problem.fft_size, k.fft_size, do)


def check_prepared_rows(k: FilterSpectrum) -> None:
    """Refuse a prepared filter for pairs of rows: gradients are computed row by row."""
    if k.strategy == "paired":
        got, allowed = f"one for pairs of rows (circular, N = {k.fft_size})", "for gradients on a GPU the taps"
        raise InvalidArgumentError(message("k (prepared filter)", got=got, allowed=allowed, do="Pass the taps as k."))


def filter_precision(k: FilterSpectrum, asked: str | None, dtype: str) -> str:
    """Return the precision of a prepared filter, which is at least what is asked for."""
    if asked is not None and PRECISIONS.index(asked) < PRECISIONS.index(k.precision):
        do = f"Leave precision out, or pass {k.precision!r}; gradients take a filter of the highest"
        _refuse_prepared("precision", repr(asked), repr(k.precision), do)
    if k.precision != "highest" and dtype not in ("float16", "bfloat16"):
        _refuse_prepared("u.dtype", dtype, f"float16 or bfloat16 with precision {k.precision!r}", "Convert u")
    return k.precision


def _refuse_prepared(what: str, got: object, prepared: object, do: str) -> NoReturn:
    raise InvalidArgumentError(
        message(
            f"k (prepared filter): {what}",
            got=got,
            allowed=f"{prepared}, for which the filter was prepared",
            do=f"{do}, or prepare the filter for this call.",
        )
    )
