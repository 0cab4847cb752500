"""Rows that go on from a state in jax.numpy: see `jax_numpy`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fftconv_cupy import jax_numpy
from fftconv_cupy.problem import Problem, StateGradients


def convolve(problem: Problem, u: Any, k: Any, in_gate: Any, out_gate: Any, skip: Any, state: Any) -> Any:
    """Return the outputs, in the dtype of u, of rows that come after the points of `state`.

    Args:
        problem: lengths, mode "causal", FFT size.
        u: (B, H, L).
        k: (H, K), or (K,) for all channels.
        in_gate: (B, H, L) or None.
        out_gate: (B, H, L) or None.
        skip: (H,) or None.
        state: (B, H, K - 1).
    """
    dtype, kept = jax_numpy.dtype_of(problem), problem.filter_len - 1
    x = jax_numpy.product(u, in_gate, dtype)
    points = jnp.concatenate((state.astype(dtype), x), axis=-1)
    longer = dataclasses.replace(
        problem, seqlen=problem.seqlen + kept, in_gate=False, out_gate=False, skip=False, initial_state=False
    )
    y = jax_numpy.convolve(longer, points, k, None, None, None)[..., kept:]
    y = y if skip is None else y + skip[:, None].astype(dtype) * x
    return jax_numpy.product(y, out_gate, dtype).astype(u.dtype)


def final_state(problem: Problem, u: Any, in_gate: Any, state: Any) -> Any:
    """Return the last K - 1 points of `state`, which may be None, and a row: float32, or float64 where u is."""
    dtype, kept = jnp.float64 if problem.dtype == "float64" else jnp.float32, problem.filter_len - 1
    fresh = min(kept, problem.seqlen)
    first = problem.seqlen - fresh
    x = jax_numpy.product(u[..., first:], None if in_gate is None else in_gate[..., first:], dtype)
    before = jnp.zeros((*u.shape[:-1], kept - fresh), dtype) if state is None else state[..., fresh:]
    return jnp.concatenate((before, x), axis=-1)


def gradients(problem: Problem, wanted: StateGradients, dy: Any, d_final: Any, *inputs: Any) -> StateGradients:
    """Return the gradients of ``sum(dy * convolve(...)) + sum(d_final * final_state(...))`` that are wanted.

    Args:
        problem: as for `convolve`.
        wanted: which.
        dy: (B, H, L).
        d_final: (B, H, K - 1) or None.
        *inputs: the arguments of `convolve`.
    """
    names = [name for name, is_wanted in wanted._asdict().items() if is_wanted]
    given = dict(zip(StateGradients._fields, inputs, strict=True))

    def results(changed: dict[str, Any]) -> Any:
        u, k, in_gate, out_gate, skip, state = {**given, **changed}.values()
        y = convolve(problem, u, k, in_gate, out_gate, skip, state)
        return y if d_final is None else (y, final_state(problem, u, in_gate, state))

    _, transpose = jax.vjp(results, {name: given[name] for name in names})
    return StateGradients(**transpose(dy if d_final is None else (dy, d_final))[0])
