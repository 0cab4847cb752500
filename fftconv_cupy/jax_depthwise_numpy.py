"""Short depthwise convolutions in jax.numpy: what `fftconv_cupy.jax` computes where it has no kernels.

Sums over taps in float32, and float64 where an array is; a non-finite value stays in its row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseProblem, DepthwiseWanted


def convolve(
    problem: DepthwiseProblem, x: Any, weight: Any, bias: Any, seq_idx: Any, initial_state: Any
) -> tuple[Any, ...]:
    """Return the output, and the final state where the problem has one, in the dtype of x.

    Args:
        problem: lengths, layout, activation.
        x: (B, D, L) or (B, L, D), as the layout says.
        weight: (D, K).
        bias: (D,) or None.
        seq_idx: (B, L) or None.
        initial_state: (B, D, K - 1) or None.
    """
    dtypes = (problem.dtype, problem.weight_dtype, problem.bias_dtype)
    dtype = jnp.float64 if "float64" in dtypes else jnp.float32
    rows = x if problem.layout == "BHL" else x.swapaxes(1, 2)
    count, pad = problem.out_len, problem.pad
    before = rows[..., :0] if initial_state is None else initial_state
    points = jnp.concatenate((before, rows), axis=-1)
    left = pad - before.shape[-1]
    right = count + problem.width - 1 - pad - problem.seqlen
    # Wide before the taps: gradients that come back through several of them are rounded once.
    padded = jnp.pad(points.astype(dtype), ((0, 0), (0, 0), (left, right)))
    marks = None if seq_idx is None else jnp.pad(seq_idx, ((0, 0), (pad, 0)), constant_values=-1)[:, None]

    # A loop: where there are many taps, XLA takes a minute for them written out.
    def add_tap(z: Any, tap: Any) -> tuple[Any, None]:
        j, taps = tap
        seen = jax.lax.dynamic_slice_in_dim(padded, j, count, axis=2)
        if marks is not None:
            here, there = marks[..., pad:], jax.lax.dynamic_slice_in_dim(marks, j, count, axis=2)
            seen = jnp.where((there == here) & (here >= 0), seen, 0)
        return z + taps[:, None] * seen, None

    nothing = jnp.zeros_like(padded[..., :count])
    # The derivative computes anew what each tap has seen.
    z, _ = jax.lax.scan(jax.checkpoint(add_tap), nothing, (jnp.arange(problem.width), weight.T.astype(dtype)))
    if bias is not None:
        z += bias[:, None].astype(dtype)
    if marks is not None:
        z = jnp.where(marks[..., pad:] >= 0, z, 0)
    y = (z if problem.activation is None else jax.nn.silu(z)).astype(x.dtype)
    y = y if problem.layout == "BHL" else y.swapaxes(1, 2)
    return (y, padded[..., problem.seqlen :].astype(x.dtype)) if problem.has_final_state else (y,)


def gradients(
    problem: DepthwiseProblem,
    wanted: DepthwiseWanted,
    dy: Any,
    d_final_state: Any,
    x: Any,
    weight: Any,
    bias: Any,
    seq_idx: Any,
    initial_state: Any,
) -> DepthwiseGradients:
    """Return the gradients of ``sum(dy * y) + sum(d_final_state * final_state)``, of shape and dtype of the arguments.

    Args:
        problem: lengths, layout, activation.
        wanted: the gradients to compute; the others are None.
        dy: of the shape of the output.
        d_final_state: (B, D, K - 1); None where the problem has no final state.
        x: as for `convolve`, like the arguments that follow.
        weight: (D, K).
        bias: (D,) or None.
        seq_idx: (B, L) or None.
        initial_state: (B, D, K - 1) or None.
    """
    given: dict[str, Any] = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state}
    some = {name: given[name] for name, is_wanted in wanted._asdict().items() if is_wanted}
    _, transpose = jax.vjp(lambda some: convolve(problem, seq_idx=seq_idx, **{**given, **some}), some)
    (found,) = transpose((dy, d_final_state) if problem.has_final_state else (dy,))
    return DepthwiseGradients(**found)
