"""Float64 reference of `fftconv`: short, slow, and sharing no code or idea with the backends that it judges.

The linear convolution is computed first, by direct summation or by complex transforms of twice the length needed, and
every mode is then cut or folded out of it, as the modes are defined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DIRECT_PRODUCTS = 1 << 16
"""Up to this many products a row the convolution is summed directly."""

Array = NDArray[np.float64]


def fftconv_reference(
    u: NDArray[np.generic],
    k: NDArray[np.generic],
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: NDArray[np.generic] | None = None,
    out_gate: NDArray[np.generic] | None = None,
    skip: NDArray[np.generic] | None = None,
) -> Array:
    """Return ``out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))`` in float64.

    Args:
        u: (B, H, L) input, any real dtype.
        k: (H, K) filter, or (K,) for all channels.
        mode: "causal", "full", "same" or "circular".
        fft_size: size N of the circular convolution, default L; of no effect in the other modes.
        in_gate: (B, H, L).
        out_gate: (B, H, outputs).
        skip: (H,), added at index t < L.
    """
    x = u.astype(np.float64)
    if in_gate is not None:
        x = x * in_gate.astype(np.float64)
    taps = np.broadcast_to(np.atleast_2d(k.astype(np.float64)), (x.shape[1], k.shape[-1]))
    seqlen = x.shape[-1]
    y = _cut(convolve(x, taps), mode, seqlen, k.shape[-1], seqlen if fft_size is None else fft_size)
    if skip is not None:
        y[..., :seqlen] += skip.astype(np.float64)[:, None] * x
    if out_gate is not None:
        y = y * out_gate.astype(np.float64)
    return y


def convolve(x: Array, taps: Array) -> Array:
    """Return the linear convolution of each row: (B, H, L) with (H, K) gives (B, H, L+K-1)."""
    seqlen, filter_len = x.shape[-1], taps.shape[-1]
    if seqlen * filter_len <= _DIRECT_PRODUCTS:
        return _convolve_directly(x, taps)
    points = 1 << (2 * (seqlen + filter_len - 1) - 1).bit_length()
    spectrum = np.fft.fft(x, points) * np.fft.fft(taps, points)
    return np.ascontiguousarray(np.fft.ifft(spectrum).real[..., : seqlen + filter_len - 1])


def _convolve_directly(x: Array, taps: Array) -> Array:
    batch, channels, seqlen = x.shape
    filter_len = taps.shape[-1]
    y = np.zeros((batch, channels, seqlen + filter_len - 1))
    for t in range(min(seqlen, filter_len)):
        if seqlen < filter_len:
            y[..., t : t + filter_len] += x[..., t : t + 1] * taps
        else:
            y[..., t : t + seqlen] += x * taps[:, t : t + 1]
    return y


def _cut(full: Array, mode: str, seqlen: int, filter_len: int, size: int) -> Array:
    """Return the outputs of ``mode`` out of the linear convolution; ``size`` is that of a circular one."""
    first, last = 0, seqlen
    if mode == "full":
        last = full.shape[-1]
    elif mode == "same":
        first = (filter_len - 1) // 2
    elif mode == "circular":
        full = _wrap(full, size)
    elif mode != "causal":
        raise ValueError(f"no such mode: {mode!r}")
    y: Array = np.ascontiguousarray(full[..., first : first + last])
    return y


def _wrap(full: Array, size: int) -> Array:
    """Add up all outputs whose indices are equal modulo ``size``."""
    wrapped = np.zeros((*full.shape[:-1], size))
    for start in range(0, full.shape[-1], size):
        piece = full[..., start : start + size]
        wrapped[..., : piece.shape[-1]] += piece
    return wrapped
