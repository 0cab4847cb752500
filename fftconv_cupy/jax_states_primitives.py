"""Convolutions of rows that go on from a state, and their gradients, as primitives of JAX: see `jax_primitives`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
from jax.interpreters import partial_eval

from fftconv_cupy import execute, jax_states_numpy
from fftconv_cupy.jax_primitives import (
    buffer_view,
    call_kernels,
    has_kernels,
    into_batch,
    into_channels,
    load_kernels,
    make_primitive,
    mapped_size,
    named_operands,
    only_rows,
    out_of_channels,
    present,
    register,
    rows_into_batch,
    rows_into_channels,
    without_unused,
)
from fftconv_cupy.problem import Gradients, Problem, StateGradients, States, Wanted

_forward_p = make_primitive("fftconv_states")
_backward_p = make_primitive("fftconv_states_vjp")


def convolve(problem: Problem, *inputs: Any) -> Any:
    """Return the convolution; the arguments are those of `jax_states_numpy.convolve`."""
    return _forward_p.bind(*present(*inputs), problem=problem)[0]


def gradients(problem: Problem, wanted: StateGradients, *inputs: Any) -> StateGradients:
    """Return the gradients that are wanted; the arguments are those of `jax_states_numpy.gradients`."""
    _, d_final, *_ = inputs
    found = _backward_p.bind(*present(*inputs), problem=problem, wanted=wanted, has_final=d_final is not None)
    return _in_places(wanted, found)


def _in_places(wanted: StateGradients, found: Iterable[Any]) -> StateGradients:
    """Return what was `found`, each in the place of its argument."""
    rest = iter(found)
    return StateGradients(*(next(rest) if is_wanted else None for is_wanted in wanted))


def _split(operands: Any, problem: Problem, has_final: bool) -> tuple[Any, Any, list[Any], Any]:
    """Return dy, d_final, the arguments without states and the initial state (or what stands for them)."""
    dy, *rest = operands
    d_final = rest.pop(0) if has_final else None
    return dy, d_final, named_operands(problem, rest[:-1]), rest[-1]


def _forward_types(u: Any, *_: Any, problem: Problem) -> list[Any]:
    return [u.update(weak_type=False)]


def _backward_types(*operands: Any, problem: Problem, wanted: StateGradients, has_final: bool) -> list[Any]:
    _, _, named, state = _split(operands, problem, has_final)
    return [x.update(weak_type=False) for x, is_wanted in zip((*named, state), wanted, strict=True) if is_wanted]


def _forward_numpy(*operands: Any, problem: Problem) -> list[Any]:
    *others, state = operands
    inputs = (*named_operands(problem, others), state)
    return [jax_states_numpy.convolve(problem, *inputs)]


def _backward_numpy(*operands: Any, problem: Problem, wanted: StateGradients, has_final: bool) -> list[Any]:
    dy, d_final, named, state = _split(operands, problem, has_final)
    return present(*jax_states_numpy.gradients(problem, wanted, dy, d_final, *named, state))


def _forward_cuda(*operands: Any, problem: Problem) -> list[Any]:
    if not has_kernels(problem):
        return _forward_numpy(*operands, problem=problem)
    y = jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)
    return call_kernels(functools.partial(_run_forward, problem), [y], load_kernels(problem, None), operands)


def _backward_cuda(*operands: Any, problem: Problem, wanted: StateGradients, has_final: bool) -> list[Any]:
    if not has_kernels(problem):
        return _backward_numpy(*operands, problem=problem, wanted=wanted, has_final=has_final)
    _, _, named, state = _split(operands, problem, has_final)
    like = [x for x, is_wanted in zip((*named, state), wanted, strict=True) if is_wanted]
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like]
    run = functools.partial(_run_backward, problem, wanted, has_final)
    return call_kernels(run, results, load_kernels(problem, Wanted(*wanted[:-1])), operands)


def _run_forward(problem: Problem, context: Any, results: Any, *operands: Any) -> None:
    """Launch the kernels on XLA's stream."""
    y, workspace = (buffer_view(buffer) for buffer in results)
    *others, state = map(buffer_view, operands)
    named = named_operands(problem, others)
    launch = execute.gpu_launcher()
    launch.run(problem, *named, y, context.stream, workspace=workspace, initial_state=state)


def _run_backward(
    problem: Problem, wanted: StateGradients, has_final: bool, context: Any, results: Any, *operands: Any
) -> None:
    """Launch the kernels of the gradients on XLA's stream."""
    *found, workspace = (buffer_view(buffer) for buffer in results)
    *grads, d_initial = _in_places(wanted, found)
    dy, d_final, named, state = _split(list(map(buffer_view, operands)), problem, has_final)
    known = {"workspace": workspace, "states": States(state, d_final, d_initial)}
    launch = execute.gpu_launcher()
    launch.run_vjp(problem, Wanted(*wanted[:-1]), dy, *named, Gradients(*grads), context.stream, **known)


def _batch_forward(operands: Any, axes: Any, *, problem: Problem) -> tuple[list[Any], list[int]]:
    size, (*others, state), (*other_axes, state_axis) = mapped_size(operands, axes), operands, axes
    named, named_axes = named_operands(problem, others), named_operands(problem, other_axes)
    if only_rows(named_axes):
        y = convolve(*into_batch(problem, size, named, named_axes), rows_into_batch(state, state_axis, size))
        return [y.reshape(size, problem.batch, *y.shape[1:])], [0]
    y = convolve(*into_channels(problem, size, named, named_axes), rows_into_channels(state, state_axis, size))
    return [y.reshape(problem.batch, size, problem.channels, y.shape[-1])], [1]


def _batch_backward(
    operands: Any, axes: Any, *, problem: Problem, wanted: StateGradients, has_final: bool
) -> tuple[list[Any], list[int]]:
    """Compute gradients of rows as a larger batch where k and skip are not mapped, and the rest by channels."""
    size = mapped_size(operands, axes)
    dy, d_final, named, state = _split(operands, problem, has_final)
    dy_axis, final_axis, named_axes, state_axis = _split(axes, problem, has_final)
    ends = ((dy, dy_axis), (d_final, final_axis))
    rows = StateGradients(*(False,) * len(wanted))
    if only_rows(named_axes):
        rows = wanted._replace(k=False, skip=False)
    sums = StateGradients(*(one and not other for one, other in zip(wanted, rows, strict=True)))
    found: dict[str, tuple[Any, int]] = {}
    if any(rows):
        folded, *inputs = into_batch(problem, size, named, named_axes)
        given = (*(rows_into_batch(x, axis, size) for x, axis in ends), *inputs)
        grads = gradients(folded, rows, *given, rows_into_batch(state, state_axis, size))
        for name, x in grads._asdict().items():
            if x is not None:
                found[name] = (x.reshape(size, problem.batch, *x.shape[1:]), 0)
    if any(sums):
        folded, *inputs = into_channels(problem, size, named, named_axes)
        given = (*(rows_into_channels(x, axis, size) for x, axis in ends), *inputs)
        grads = gradients(folded, sums, *given, rows_into_channels(state, state_axis, size))
        found |= out_of_channels(problem, size, named, grads)
    results = [found[name] for name, is_wanted in wanted._asdict().items() if is_wanted]
    return [x for x, _ in results], [axis for _, axis in results]


register(_forward_p, _forward_types, _forward_numpy, _forward_cuda, _batch_forward)
register(_backward_p, _backward_types, _backward_numpy, _backward_cuda, _batch_backward)
partial_eval.dce_rules[_backward_p] = without_unused
