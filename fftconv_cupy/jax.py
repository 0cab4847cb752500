"""`fftconv` inside JAX's transformations: `jit`, `grad`, `vmap` and `shard_map`, on a GPU with our kernels.

One `custom_vjp`, the same on every platform, ties together two primitives (`jax_primitives`): the convolution, and its
gradients.
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from fftconv_cupy import jax_numpy, jax_primitives, jax_states
from fftconv_cupy.checks import Arguments, resolve
from fftconv_cupy.jax_depthwise import depthwise_conv1d
from fftconv_cupy.jax_inputs import abstract_view, as_rows
from fftconv_cupy.problem import Gradients, Problem, Wanted

__all__ = ["depthwise_conv1d", "fftconv"]


def fftconv(
    u: Any,
    k: Any,
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: Any = None,
    out_gate: Any = None,
    skip: Any = None,
    precision: str | None = None,
    intermediate: str | None = None,
    initial_state: Any = None,
    return_final_state: bool = False,
) -> Any:
    """Convolve the rows of `u` with the filter `k`, as `fftconv_cupy.fftconv` does, under any transformation of JAX.

    It works eagerly and under `jit`, `grad`, `value_and_grad`, `vmap`, `checkpoint`, `scan` and `shard_map`, and has
    reverse-mode derivatives of any order: those of first order come from our kernels, which compute only those that
    are asked for, and higher ones from jax.numpy.

    On a CUDA GPU the kernels are compiled and loaded when a program is lowered, for every GPU that JAX sees. They run
    on XLA's stream and in its memory, and may be captured into its command buffers. Elsewhere, and for float64
    everywhere, jax.numpy computes the same in float32, or float64 where an array is.

    `vmap` folds the mapped axis into the batch where neither `k` nor `skip` is mapped. Else, and for gradients to `k`
    or `skip`, it folds it into the channels: each element of the mapped axis then has filters, and gradients, of its
    own. So a batch of rows is cheaper as axis B of `u` than mapped, when the gradient of a common filter is wanted.

    In a program that XLA itself partitions over several GPUs, the arrays are gathered for the kernels; `jax.shard_map`
    over batch or channels keeps them where they are.

    Args:
        u: (B, H, L), (H, L) or (L,), a JAX array of float16, bfloat16 or float32, or float64.
        k: the filter, (H, K), or (K,) for all channels, of any of these dtypes. Not a prepared filter.
        mode: as for `fftconv_cupy.fftconv`.
        fft_size: as there.
        in_gate: shape and dtype of `u`.
        out_gate: shape of the output, dtype of `u`.
        skip: (H,), float32 or of the dtype of `u`; (1,) for u of shape (L,).
        precision: as there; jax.numpy computes the same with any.
        intermediate: likewise.
        initial_state: (B, H, K - 1) float32 (float64 where `u` is), with as many axes as `u`: what came before the
            rows, as for `fftconv_cupy.fftconv`. Only in mode "causal".
        return_final_state: also return the state after the rows.

    Returns:
        The output, of the shape and dtype of `u`, but L + K - 1 points in mode "full". With `return_final_state`, a
        pair of it and the final state.

    Raises:
        InvalidTypeError: an argument is not a JAX array, or has a dtype that is not allowed.
        InvalidArgumentError: a shape, mode or other option that does not go with the rest. Its subclass
            UnsupportedProblemError: the transform does not fit the GPU.
        MissingDependencyError, UnsupportedDeviceError, CompileError: as for `fftconv_cupy.fftconv`.

    Example:
        >>> import jax.numpy as jnp
        >>> jax.grad(lambda k: fftconv(jnp.ones((1, 4)), k).sum())(jnp.ones(3))
        Array([4., 3., 2.], dtype=float32)
    """
    given = {"u": u, "k": k, "in_gate": in_gate, "out_gate": out_gate, "skip": skip, "initial_state": initial_state}
    views = {name: abstract_view(x, name) for name, x in given.items() if x is not None or name in ("u", "k")}
    arguments = Arguments(**views)
    arguments.returns_state = bool(return_final_state)
    problem = resolve(arguments, mode, fft_size, precision, intermediate).problem
    if initial_state is None and not return_final_state:
        return _fftconv(problem, u, k, in_gate, out_gate, skip)
    y, *states = jax_states.convolve(problem, bool(return_final_state), *given.values())
    return (y, *states) if return_final_state else y


@functools.partial(jax.jit, static_argnums=0)
def _fftconv(problem: Problem, *inputs: Any) -> Any:
    """Bring rows to (B, H, points) and convolve."""
    return _convolve(problem, *as_rows(problem, inputs)).reshape(*inputs[0].shape[:-1], problem.out_len)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(problem: Problem, *inputs: Any) -> Any:
    return jax_primitives.convolve(problem, *inputs)


def _convolve_fwd(problem: Problem, *inputs: Any) -> tuple[Any, Any]:
    return _convolve(problem, *inputs), inputs


def _convolve_bwd(problem: Problem, inputs: tuple[Any, ...], dy: Any) -> tuple[Any, ...]:
    # All of them: which inputs are differentiated must not be told by the residuals, for JAX takes their structure from
    # one trace to another. What is not used is left out of a program before it is lowered.
    wanted = Wanted(*(x is not None for x in inputs))
    return tuple(_gradients(problem, wanted, dy, *inputs))


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(problem: Problem, wanted: Wanted, *inputs: Any) -> Gradients:
    """Return the gradients; `inputs` are dy, u, k, in_gate, out_gate and skip."""
    return jax_primitives.gradients(problem, wanted, *inputs)


def _gradients_fwd(problem: Problem, wanted: Wanted, *inputs: Any) -> tuple[Gradients, tuple[Any, ...]]:
    return _gradients(problem, wanted, *inputs), inputs


def _gradients_bwd(problem: Problem, wanted: Wanted, inputs: tuple[Any, ...], cotangents: Gradients) -> tuple[Any, ...]:
    _, transpose = jax.vjp(functools.partial(jax_numpy.gradients, problem, wanted), *inputs)
    result: tuple[Any, ...] = transpose(cotangents)
    return result


_gradients.defvjp(_gradients_fwd, _gradients_bwd)
