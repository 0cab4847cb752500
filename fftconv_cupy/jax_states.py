"""Rows that come in parts inside JAX's transformations: the `custom_vjp` of calls of `fftconv` with states."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fftconv_cupy import jax_primitives, jax_states_numpy, jax_states_primitives
from fftconv_cupy.jax_inputs import as_rows, equally_varying
from fftconv_cupy.problem import Problem, StateGradients


@functools.partial(jax.jit, static_argnums=(0, 1))
def convolve(problem: Problem, has_final: bool, *inputs: Any) -> tuple[Any, ...]:
    """Return the output and, where it is asked for, the final state.

    Args:
        problem: the problem.
        has_final: the final state is asked for.
        *inputs: u, k, in_gate, out_gate, skip and the initial state, which may be None as the gates and skip may.
    """
    results = _convolve(problem, has_final, *as_rows(problem, inputs))
    return tuple(x.reshape(*inputs[0].shape[:-1], x.shape[-1]) for x in results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(problem: Problem, has_final: bool, *inputs: Any) -> tuple[Any, ...]:
    u, _, in_gate, *_, state = inputs
    if state is None:
        y = jax_primitives.convolve(problem, *inputs[:-1])
    else:
        y = jax_states_primitives.convolve(problem, *inputs)
    return (y, jax_states_numpy.final_state(problem, u, in_gate, state)) if has_final else (y,)


def _convolve_fwd(problem: Problem, has_final: bool, *inputs: Any) -> tuple[Any, Any]:
    return _convolve(problem, has_final, *inputs), inputs


def _convolve_bwd(
    problem: Problem, has_final: bool, inputs: tuple[Any, ...], cotangents: tuple[Any, ...]
) -> tuple[Any, ...]:
    # All of them, as for calls without states: what is not used is left out of a program before it is lowered.
    wanted = StateGradients(*(x is not None for x in inputs))
    dy, d_final = cotangents if has_final else (*cotangents, None)
    *others, state = inputs
    if state is None:  # the kernels have the gradient of a final state of rows that go on from one
        problem = dataclasses.replace(problem, initial_state=True)
        state = jnp.zeros((*dy.shape[:-1], problem.filter_len - 1), d_final.dtype)
        dy, d_final, *others, state = equally_varying(dy, d_final, *others, state)
    return tuple(_gradients(problem, wanted, dy, d_final, *others, state))


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(problem: Problem, wanted: StateGradients, *inputs: Any) -> StateGradients:
    """Return the gradients; `inputs` are dy, d_final and those of `convolve`."""
    return jax_states_primitives.gradients(problem, wanted, *inputs)


def _gradients_fwd(problem: Problem, wanted: StateGradients, *inputs: Any) -> tuple[StateGradients, tuple[Any, ...]]:
    return _gradients(problem, wanted, *inputs), inputs


def _gradients_bwd(
    problem: Problem, wanted: StateGradients, inputs: tuple[Any, ...], cotangents: StateGradients
) -> tuple[Any, ...]:
    _, transpose = jax.vjp(functools.partial(jax_states_numpy.gradients, problem, wanted), *inputs)
    result: tuple[Any, ...] = transpose(cotangents)
    return result


_gradients.defvjp(_gradients_fwd, _gradients_bwd)
