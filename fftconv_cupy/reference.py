"""Float64 reference of `fftconv` and its gradients: short, slow, and sharing no code with the backends that it judges.

The linear convolution is computed first, by direct summation or by complex transforms of twice the length needed, and
every mode is then cut or folded out of it, as the modes are defined. The gradients go back the same way: every output's
gradient is put to the points of the linear convolution that it was made of, and correlated with filter and input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.problem import Gradients

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


def fftconv_vjp_reference(
    dy: NDArray[np.generic],
    u: NDArray[np.generic],
    k: NDArray[np.generic],
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: NDArray[np.generic] | None = None,
    out_gate: NDArray[np.generic] | None = None,
    skip: NDArray[np.generic] | None = None,
) -> Gradients:
    """Return the gradients of ``sum(dy * fftconv_reference(u, k, ...))`` in float64, None for what was not given.

    Args:
        dy: (B, H, outputs), any real dtype.
        u: (B, H, L), as are all that follow as for `fftconv_reference`.
        k: (H, K), or (K,) for all channels.
        mode: "causal", "full", "same" or "circular".
        fft_size: size N of the circular convolution, default L.
        in_gate: (B, H, L).
        out_gate: (B, H, outputs).
        skip: (H,).
    """
    signal, gradient = u.astype(np.float64), dy.astype(np.float64)
    x = signal if in_gate is None else signal * in_gate.astype(np.float64)
    g = gradient if out_gate is None else gradient * out_gate.astype(np.float64)
    (batch, channels, seqlen), filter_len = x.shape, k.shape[-1]
    taps = np.broadcast_to(np.atleast_2d(k.astype(np.float64)), (channels, filter_len))
    full = _spread(g, mode, seqlen, filter_len, seqlen if fft_size is None else fft_size)
    # dx[s] = sum_j full[s + j] k[j], a convolution with the reversed taps; dk[j] = sum_s full[s + j] x[s] likewise.
    dx = convolve(full, taps[:, ::-1])[..., filter_len - 1 : filter_len - 1 + seqlen]
    rows = batch * channels
    lags = convolve(full.reshape(1, rows, full.shape[-1]), x.reshape(rows, seqlen)[:, ::-1])
    dk = lags[0, :, seqlen - 1 : seqlen - 1 + filter_len].reshape(batch, channels, filter_len).sum(axis=0)
    if skip is not None:
        dx = dx + skip.astype(np.float64)[:, None] * g[..., :seqlen]
    before_out_gate = fftconv_reference(u, k, mode=mode, fft_size=fft_size, in_gate=in_gate, skip=skip)
    return Gradients(
        u=dx if in_gate is None else dx * in_gate.astype(np.float64),
        k=dk if k.ndim == 2 else dk.sum(axis=0),
        in_gate=None if in_gate is None else dx * signal,
        out_gate=None if out_gate is None else gradient * before_out_gate,
        skip=None if skip is None else (g[..., :seqlen] * x).sum(axis=(0, 2)),
    )


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


def _spread(g: Array, mode: str, seqlen: int, filter_len: int, size: int) -> Array:
    """Return the gradient of the linear convolution from that of what `_cut` took out of it: its transpose."""
    full = np.zeros((*g.shape[:-1], seqlen + filter_len - 1))
    if mode == "circular":
        for start in range(0, full.shape[-1], size):
            piece = full[..., start : start + seqlen]
            piece[...] = g[..., : piece.shape[-1]]
    elif mode in ("causal", "full", "same"):
        first = (filter_len - 1) // 2 if mode == "same" else 0
        full[..., first : first + g.shape[-1]] = g
    else:
        raise ValueError(f"no such mode: {mode!r}")
    return full
