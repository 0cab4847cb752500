"""`depthwise_conv1d` inside JAX's transformations, on a GPU with our kernels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fftconv_cupy import jax_depthwise_numpy, jax_depthwise_primitives
from fftconv_cupy.depthwise_checks import Options, resolve
from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseProblem, DepthwiseWanted
from fftconv_cupy.jax_inputs import abstract_view, equally_varying


def depthwise_conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    padding: str | int = "causal",
    activation: str | None = None,
    layout: str = "BHL",
    seq_idx: Any = None,
    initial_state: Any = None,
    return_final_state: bool = False,
) -> Any:
    """Correlate each channel of `x` with its few taps, as `fftconv_cupy.depthwise_conv1d` does, inside JAX.

    It works eagerly and under `jit`, `grad`, `vmap`, `checkpoint`, `scan` and `shard_map`, and has reverse-mode
    derivatives of any order, as `fftconv_cupy.jax.fftconv` has, and on each platform by the same ways.

    `vmap` folds the mapped axis into the batch where neither `weight` nor `bias` is mapped. Else, and for gradients to
    them, it folds it into the channels, or makes the calls one by one where `seq_idx` is mapped too.

    Args:
        x: (B, D, L), or (B, L, D) where `layout` is "BLH", a JAX array of float16, bfloat16 or float32, or float64.
        weight: (D, K), of any of these dtypes.
        bias: (D,), likewise.
        padding: as for `fftconv_cupy.depthwise_conv1d`, as are all that follow.
        activation: None or "silu".
        layout: "BHL" or "BLH".
        seq_idx: (B, L) int32.
        initial_state: (B, D, K - 1), of the dtype of `x`.
        return_final_state: return the last K - 1 points as well.

    Returns:
        The output; with `return_final_state` a pair of it and the final state.

    Raises:
        InvalidTypeError: an argument is not a JAX array, or has a dtype that is not allowed; an option of a wrong type.
        InvalidArgumentError: a shape or an option that does not go with the rest.
        MissingDependencyError, UnsupportedDeviceError, CompileError: as for `fftconv_cupy.depthwise_conv1d`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.grad(lambda weight: depthwise_conv1d(jnp.ones((1, 1, 4)), weight).sum())(jnp.ones((1, 3)))
        Array([[2., 3., 4.]], dtype=float32)
    """
    given = {"x": x, "weight": weight, "bias": bias, "seq_idx": seq_idx, "initial_state": initial_state}
    views = {
        name: abstract_view(array, name, is_index=name == "seq_idx")
        for name, array in given.items()
        if array is not None or name in ("x", "weight")
    }
    call = resolve(views, Options(padding, activation, layout, return_final_state))
    problem = call.problem
    # A problem of one tap has no states.
    state = initial_state if problem.has_initial_state else None
    y, *states = _depthwise(problem, x, weight, bias, seq_idx, state)
    if not return_final_state:
        return y
    return y, states[0] if states else jnp.zeros(call.state_shape, x.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _depthwise(problem: DepthwiseProblem, *inputs: Any) -> Any:
    return _convolve(problem, *equally_varying(*inputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(problem: DepthwiseProblem, *inputs: Any) -> tuple[Any, ...]:
    """Return the results; `inputs` are x, weight, bias, seq_idx and initial_state."""
    return jax_depthwise_primitives.convolve(problem, *inputs)


def _convolve_fwd(problem: DepthwiseProblem, *inputs: Any) -> tuple[Any, Any]:
    return _convolve(problem, *inputs), inputs


def _convolve_bwd(problem: DepthwiseProblem, inputs: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
    # All of them, as for `fftconv`: what is not used is left out of a program before it is lowered.
    x, weight, bias, _, state = inputs
    wanted = DepthwiseWanted(*(argument is not None for argument in (x, weight, bias, state)))
    dy, d_final_state = cotangents if problem.has_final_state else (*cotangents, None)
    *found, d_state = _gradients(problem, wanted, dy, d_final_state, *inputs)
    return (*found, None, d_state)


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(problem: DepthwiseProblem, wanted: DepthwiseWanted, *inputs: Any) -> DepthwiseGradients:
    """Return the gradients; `inputs` are dy, d_final_state and those of `_convolve`."""
    return jax_depthwise_primitives.gradients(problem, wanted, *inputs)


def _gradients_fwd(problem: DepthwiseProblem, wanted: DepthwiseWanted, *inputs: Any) -> tuple[Any, Any]:
    return _gradients(problem, wanted, *inputs), inputs


def _gradients_bwd(
    problem: DepthwiseProblem, wanted: DepthwiseWanted, inputs: tuple[Any, ...], cotangents: DepthwiseGradients
) -> tuple[Any, ...]:
    dy, d_final_state, x, weight, bias, seq_idx, state = inputs

    def compute(dy: Any, d_final_state: Any, x: Any, weight: Any, bias: Any, state: Any) -> DepthwiseGradients:
        return jax_depthwise_numpy.gradients(problem, wanted, dy, d_final_state, x, weight, bias, seq_idx, state)

    _, transpose = jax.vjp(compute, dy, d_final_state, x, weight, bias, state)
    *found, d_state = transpose(cotangents)
    return (*found, None, d_state)


_gradients.defvjp(_gradients_fwd, _gradients_bwd)
