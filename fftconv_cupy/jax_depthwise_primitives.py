"""Short depthwise convolutions and their gradients as primitives of JAX: see `jax_primitives`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from fftconv_cupy import arrays, execute, jax_depthwise_numpy
from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseProblem, DepthwiseWanted
from fftconv_cupy.jax_primitives import (
    buffer_view,
    call_kernels,
    cuda_devices,
    make_primitive,
    mapped_size,
    register,
    with_axis,
    without_unused,
)

_forward_p = make_primitive("depthwise_conv1d")
_backward_p = make_primitive("depthwise_conv1d_vjp")

_FORWARD = ("x", "weight", "bias", "seq_idx", "initial_state")
_BACKWARD = ("dy", "d_final_state", *_FORWARD)
_TAPS = ("weight", "bias")

_Named = dict[str, Any]  # operands, or the axes along which they are mapped, by name; None for what is left out


def convolve(problem: DepthwiseProblem, *inputs: Any) -> tuple[Any, ...]:
    """Return the results; the arguments are those of `jax_depthwise_numpy.convolve`."""
    return tuple(_forward_p.bind(*_present(inputs), problem=problem))


def gradients(problem: DepthwiseProblem, wanted: DepthwiseWanted, *inputs: Any) -> DepthwiseGradients:
    """Return the gradients that are wanted; the arguments are those of `jax_depthwise_numpy.gradients`."""
    return _in_places(wanted, _backward_p.bind(*_present(inputs), problem=problem, wanted=wanted))


def _present(inputs: Iterable[Any]) -> list[Any]:
    return [x for x in inputs if x is not None]


def _in_places(wanted: DepthwiseWanted, found: Iterable[Any]) -> DepthwiseGradients:
    """Return what was `found`, each in the place of its argument."""
    rest = iter(found)
    return DepthwiseGradients(*(next(rest) if is_wanted else None for is_wanted in wanted))


def _named(names: tuple[str, ...], problem: DepthwiseProblem, operands: Iterable[Any]) -> _Named:
    left_out = {
        "bias": problem.bias_dtype is None,
        "seq_idx": not problem.has_seq_idx,
        "initial_state": not problem.has_initial_state,
        "d_final_state": not problem.has_final_state,
    }
    given = iter(operands)
    return {name: None if left_out.get(name) else next(given) for name in names}


def _forward_shapes(problem: DepthwiseProblem) -> list[tuple[int, ...]]:
    batch, channels, points = problem.batch, problem.channels, problem.out_len
    y = (batch, channels, points) if problem.layout == "BHL" else (batch, points, channels)
    return [y, (batch, channels, problem.width - 1)] if problem.has_final_state else [y]


def _forward_types(x: Any, *_: Any, problem: DepthwiseProblem) -> list[Any]:
    return [x.update(shape=shape, weak_type=False) for shape in _forward_shapes(problem)]


def _backward_types(*operands: Any, problem: DepthwiseProblem, wanted: DepthwiseWanted) -> list[Any]:
    named = _named(_BACKWARD, problem, operands)
    return [named[name].update(weak_type=False) for name, is_wanted in wanted._asdict().items() if is_wanted]


def _forward_numpy(*operands: Any, problem: DepthwiseProblem) -> list[Any]:
    return list(jax_depthwise_numpy.convolve(problem, **_named(_FORWARD, problem, operands)))


def _backward_numpy(*operands: Any, problem: DepthwiseProblem, wanted: DepthwiseWanted) -> list[Any]:
    return _present(jax_depthwise_numpy.gradients(problem, wanted, **_named(_BACKWARD, problem, operands)))


def _forward_cuda(*operands: Any, problem: DepthwiseProblem) -> list[Any]:
    if not _has_kernels(problem):
        return _forward_numpy(*operands, problem=problem)
    results = [jax.ShapeDtypeStruct(shape, operands[0].dtype) for shape in _forward_shapes(problem)]
    workspace_bytes = _load_kernels(problem, None)
    return call_kernels(functools.partial(_run_forward, problem), results, workspace_bytes, operands)


def _backward_cuda(*operands: Any, problem: DepthwiseProblem, wanted: DepthwiseWanted) -> list[Any]:
    if not _has_kernels(problem):
        return _backward_numpy(*operands, problem=problem, wanted=wanted)
    named = _named(_BACKWARD, problem, operands)
    like = [named[name] for name, is_wanted in wanted._asdict().items() if is_wanted]
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like]
    run = functools.partial(_run_backward, problem, wanted)
    return call_kernels(run, results, _load_kernels(problem, wanted), operands)


def _has_kernels(problem: DepthwiseProblem) -> bool:
    """Return whether there is something for the kernels to do, in a dtype that they know."""
    dtypes = (problem.dtype, problem.weight_dtype, problem.bias_dtype)
    return problem.batch > 0 and "float64" not in dtypes


def _load_kernels(problem: DepthwiseProblem, wanted: DepthwiseWanted | None) -> int:
    """Compile and load the kernels for every GPU of JAX; return the bytes of workspace that a call takes at most.

    Args:
        problem: the problem.
        wanted: the gradients to compute; None for the convolution.
    """
    launch = execute.gpu_launcher().depthwise
    workspace_bytes = 0
    for device in cuda_devices():
        with arrays.use_device(device):
            launch.check(problem, device)
            workspace_bytes = max(workspace_bytes, launch.load(problem, wanted, device))
    return workspace_bytes


def _run_forward(problem: DepthwiseProblem, context: Any, results: Any, *operands: Any) -> None:
    """Launch the kernels on XLA's stream."""
    y, *rest = (buffer_view(buffer) for buffer in results)
    final_state = rest[0] if problem.has_final_state else None
    views = _views(_named(_FORWARD, problem, operands))
    execute.gpu_launcher().depthwise.run(problem, *views, y, final_state, context.stream)


def _run_backward(
    problem: DepthwiseProblem, wanted: DepthwiseWanted, context: Any, results: Any, *operands: Any
) -> None:
    """Launch the kernels of the gradients on XLA's stream."""
    *found, workspace = (buffer_view(buffer) for buffer in results)
    dy, d_final_state, *views = _views(_named(_BACKWARD, problem, operands))
    launch = execute.gpu_launcher().depthwise
    grads = _in_places(wanted, found)
    launch.run_vjp(problem, wanted, dy, *views, d_final_state, grads, context.stream, workspace=workspace)


def _views(named: _Named) -> list[Any]:
    return [None if x is None else buffer_view(x) for x in named.values()]


def _batch_forward(operands: Any, axes: Any, *, problem: DepthwiseProblem) -> tuple[list[Any], list[int]]:
    mapped = _Mapped(_FORWARD, problem, operands, axes)
    names = ("y", "final_state")[: 1 + problem.has_final_state]
    results = mapped.called(convolve, names, in_batch=not mapped.differs(*_TAPS))
    return results, [0] * len(results)


def _batch_backward(
    operands: Any, axes: Any, *, problem: DepthwiseProblem, wanted: DepthwiseWanted
) -> tuple[list[Any], list[int]]:
    """Compute gradients of rows as a larger batch where the taps are not mapped, and the rest by channels.

    Two calls then: what is not used of them is left out later, and mostly that is one of the two.
    """
    mapped = _Mapped(_BACKWARD, problem, operands, axes)
    rows = DepthwiseWanted()
    if not mapped.differs(*_TAPS):
        rows = wanted._replace(weight=False, bias=False)
    sums = DepthwiseWanted(*(one and not other for one, other in zip(wanted, rows, strict=True)))
    found: _Named = {}
    for some, in_batch in ((rows, True), (sums, False)):
        if any(some):
            names = [name for name, is_wanted in some._asdict().items() if is_wanted]

            def compute(folded: DepthwiseProblem, *inputs: Any, some: DepthwiseWanted = some) -> list[Any]:
                return _present(gradients(folded, some, *inputs))

            found |= zip(names, mapped.called(compute, names, in_batch=in_batch), strict=True)
    results = [found[name] for name, is_wanted in wanted._asdict().items() if is_wanted]
    return results, [0] * len(results)


class _Mapped:
    """The operands of one mapped call."""

    def __init__(self, names: tuple[str, ...], problem: DepthwiseProblem, operands: Any, axes: Any) -> None:
        self._problem = problem
        self._size = mapped_size(operands, axes)
        self._given = _named(names, problem, operands)
        self._axes = _named(names, problem, axes)

    def differs(self, *names: str) -> bool:
        """Return whether any of these has the mapped axis."""
        return any(self._axes[name] is not None for name in names)

    def called(self, call: Callable[..., Any], names: Iterable[str], *, in_batch: bool) -> list[Any]:
        """Return results of these names, with the mapped axis in front.

        Args:
            call: computes them for a problem and its inputs.
            names: the results that it returns.
            in_batch: the mapped axis may become part of the batch; else it becomes part of the channels, or where the
                sequence indices differ along it, the calls are made one by one.
        """
        size, problem = self._size, self._problem
        if in_batch:
            folded = dataclasses.replace(problem, batch=size * problem.batch)
            results = call(folded, *map(self._in_batch, self._given))
            return [x.reshape(size, problem.batch, *x.shape[1:]) for x in results]
        if self._axes["seq_idx"] is not None:
            fronts = [None if x is None else self._at(name, 0) for name, x in self._given.items()]
            items = [call(problem, *(None if x is None else x[i] for x in fronts)) for i in range(size)]
            return [jnp.stack(column) for column in zip(*items, strict=True)]
        folded = dataclasses.replace(problem, channels=size * problem.channels)
        results = call(folded, *map(self._in_channels, self._given))
        return [self._from_channels(name, x) for name, x in zip(names, results, strict=True)]

    def _at(self, name: str, position: int) -> Any:
        return with_axis(self._given[name], self._axes[name], self._size, position)

    def _in_batch(self, name: str) -> Any:
        if self._given[name] is None or name in _TAPS:
            return self._given[name]
        x = self._at(name, 0)
        return x.reshape(-1, *x.shape[2:])

    def _channel_axis(self, name: str) -> int:
        if name in _TAPS:
            return 0
        return 2 if self._problem.layout == "BLH" and name in ("x", "dy", "y") else 1

    def _in_channels(self, name: str) -> Any:
        if self._given[name] is None or name == "seq_idx":
            return self._given[name]
        axis = self._channel_axis(name)
        x = self._at(name, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def _from_channels(self, name: str, x: Any) -> Any:
        axis = self._channel_axis(name)
        apart = x.reshape(*x.shape[:axis], self._size, self._problem.channels, *x.shape[axis + 1 :])
        return jnp.moveaxis(apart, axis, 0)


register(_forward_p, _forward_types, _forward_numpy, _forward_cuda, _batch_forward)
register(_backward_p, _backward_types, _backward_numpy, _backward_cuda, _batch_backward)
partial_eval.dce_rules[_backward_p] = without_unused
