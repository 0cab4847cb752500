"""The convolution and its gradients in jax.numpy: what `fftconv_cupy.jax` computes where it has no kernels.

XLA has no half-precision transform, so arithmetic is float32, and float64 where an array is. Rows are never combined in
a transform, so a non-finite value stays in its row.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fftconv_cupy.numpy_backend import transform_points
from fftconv_cupy.problem import Gradients, Problem, Wanted


def convolve(problem: Problem, u: Any, k: Any, in_gate: Any, out_gate: Any, skip: Any) -> Any:
    """Return ``out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))`` in the dtype of u.

    Args:
        problem: lengths, mode and FFT size.
        u: (B, H, L).
        k: (H, K), or (K,) for all channels.
        in_gate: (B, H, L) or None.
        out_gate: (B, H, outputs) or None.
        skip: (H,) or None.
    """
    dtype = dtype_of(problem)
    y = _ungated(problem, product(u, in_gate, dtype), _filter_spectrum(problem, k), skip)
    return product(y, out_gate, dtype).astype(u.dtype)


def gradients(
    problem: Problem, wanted: Wanted, dy: Any, u: Any, k: Any, in_gate: Any, out_gate: Any, skip: Any
) -> Gradients:
    """Return the gradients of ``sum(dy * convolve(...))``, each of the shape and dtype of its argument.

    Args:
        problem: lengths, mode and FFT size.
        wanted: the gradients to compute; the others are None.
        dy: (B, H, outputs).
        u: as for `convolve`, like the arguments that follow.
        k: the filter.
        in_gate: may be None.
        out_gate: may be None.
        skip: may be None.
    """
    dtype, points, seqlen = dtype_of(problem), transform_points(problem), problem.seqlen
    x, dz = product(u, in_gate, dtype), product(dy, out_gate, dtype)
    du = dk = d_in_gate = d_out_gate = d_skip = None
    h = _filter_spectrum(problem, k) if wanted.u or wanted.in_gate or wanted.out_gate else None
    first = _first_output(problem)
    # Where the outputs lie among the points of the transform, whose other points have no gradient.
    padded = jnp.pad(dz, ((0, 0), (0, 0), (first, points - first - problem.out_len)))
    dz_spectrum = jnp.fft.rfft(padded) if wanted.u or wanted.in_gate or wanted.k else None
    if wanted.u or wanted.in_gate:
        dx = jnp.fft.irfft(dz_spectrum * jnp.conj(h), points)[..., :seqlen]
        if skip is not None:
            dx += skip[:, None].astype(dtype) * dz[..., :seqlen]
        du = product(dx, in_gate, dtype).astype(u.dtype) if wanted.u else None
        d_in_gate = (dx * u.astype(dtype)).astype(in_gate.dtype) if wanted.in_gate else None
    if wanted.k:
        summed = jnp.sum(dz_spectrum * jnp.conj(jnp.fft.rfft(x, points)), axis=(0, 1) if problem.shared_filter else 0)
        places = _places(problem, points)
        # A tap that has no place reaches no output.
        dk = jnp.fft.irfft(summed, points).at[..., places].get(mode="fill", fill_value=0).astype(k.dtype)
    if wanted.out_gate:
        d_out_gate = (_ungated(problem, x, h, skip) * dy.astype(dtype)).astype(out_gate.dtype)
    if wanted.skip:
        d_skip = jnp.sum(dz[..., :seqlen] * x, axis=(0, 2)).astype(skip.dtype)
    return Gradients(du, dk, d_in_gate, d_out_gate, d_skip)


def dtype_of(problem: Problem) -> Any:
    """Return the dtype of the arithmetic."""
    return jnp.float64 if "float64" in (problem.dtype, problem.filter_dtype) else jnp.float32


def product(x: Any, gate: Any, dtype: Any) -> Any:
    """Return `x`, times the gate where there is one, in `dtype`."""
    return x.astype(dtype) if gate is None else x.astype(dtype) * gate.astype(dtype)


def _ungated(problem: Problem, x: Any, h: Any, skip: Any) -> Any:
    """Return ``conv(x, k) + skip * x`` for the spectrum `h` of k."""
    points, first = transform_points(problem), _first_output(problem)
    y = jnp.fft.irfft(jnp.fft.rfft(x, points) * h, points)[..., first : first + problem.out_len]
    return y if skip is None else y.at[..., : problem.seqlen].add(skip[:, None].astype(x.dtype) * x)


def _first_output(problem: Problem) -> int:
    """Return the index of the first output of the mode among those of a transform."""
    return (problem.filter_len - 1) // 2 if problem.mode == "same" else 0


def _filter_spectrum(problem: Problem, k: Any) -> Any:
    """Return the spectrum of the taps, each in its place; those of equal places add up."""
    points = transform_points(problem)
    taps = k.astype(dtype_of(problem))
    if problem.mode != "circular" and problem.taps <= points:
        return jnp.fft.rfft(taps[..., : problem.taps], points)  # every tap is in its place already
    placed = jnp.zeros((*k.shape[:-1], points), taps.dtype)
    return jnp.fft.rfft(placed.at[..., _places(problem, points)].add(taps, mode="drop"))


def _places(problem: Problem, points: int) -> Any:
    """Return the index of each tap's lag in a transform of `points` points; `points` for taps that reach no output."""
    taps = jnp.arange(problem.filter_len)
    if problem.mode != "circular":
        return jnp.where(taps < problem.taps, taps % points, points)
    period, seqlen = problem.fft_size, problem.seqlen
    lags = taps % period
    if points == period:
        return lags
    # Rows are short against the period: lags 0 .. L-1 reach forward, N-L+1 .. N-1 backward.
    return jnp.where(lags < seqlen, lags, jnp.where(lags > period - seqlen, lags - period + points, points))
