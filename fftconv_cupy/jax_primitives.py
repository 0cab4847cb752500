"""The convolution and its gradients as primitives of JAX: their types, what each platform runs, and `vmap`.

For CUDA a primitive is lowered to a callback that launches our kernels on XLA's own stream and buffers: nothing passes
through the host. For other platforms, and for float64, it is lowered to jax.numpy (`jax_numpy`). A primitive is lowered
for the platform that a program will run on, and only then: so kernels are compiled where they will be used, and a
problem that no GPU can hold still runs on the CPU of a machine with one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.buffer_callback import buffer_callback
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir, partial_eval, xla

from fftconv_cupy import arrays, execute, jax_numpy
from fftconv_cupy.arrays import ArrayView, contiguous_strides
from fftconv_cupy.errors import UnsupportedDeviceError, message
from fftconv_cupy.problem import Gradients, Problem, StateGradients, Wanted


def make_primitive(name: str) -> Any:
    """Return a primitive with several results, which runs eagerly as a program of its own."""
    made = Primitive(name)
    made.multiple_results = True
    made.def_impl(functools.partial(xla.apply_primitive, made))
    return made


_forward_p = make_primitive("fftconv")
_backward_p = make_primitive("fftconv_vjp")


def convolve(problem: Problem, *inputs: Any) -> Any:
    """Return the convolution; the arguments are those of `jax_numpy.convolve`."""
    return _forward_p.bind(*present(*inputs), problem=problem)[0]


def gradients(problem: Problem, wanted: Wanted, *inputs: Any) -> Gradients:
    """Return the gradients that are wanted; the arguments are those of `jax_numpy.gradients`."""
    found = _backward_p.bind(*present(*inputs), problem=problem, wanted=wanted)
    return _wanted(wanted, found)


def present(*inputs: Any) -> list[Any]:
    """Return the inputs that are given."""
    return [x for x in inputs if x is not None]


def named_operands(problem: Problem, operands: Iterable[Any]) -> list[Any]:
    """Return u, k, in_gate, out_gate and skip (or buffers or mapped axes of them), None for those left out."""
    given = iter(operands)
    flags = (True, True, problem.in_gate, problem.out_gate, problem.skip)
    return [next(given) if is_given else None for is_given in flags]


def _wanted(wanted: Wanted, found: Iterable[Any]) -> Gradients:
    """Return what was `found`, each in the place of its argument."""
    rest = iter(found)
    return Gradients(*(next(rest) if is_wanted else None for is_wanted in wanted))


def _forward_types(u: Any, *_: Any, problem: Problem) -> list[Any]:
    return [u.update(shape=(*u.shape[:-1], problem.out_len), weak_type=False)]


def _backward_types(_: Any, *operands: Any, problem: Problem, wanted: Wanted) -> list[Any]:
    named = zip(named_operands(problem, operands), wanted, strict=True)
    return [operand.update(weak_type=False) for operand, is_wanted in named if is_wanted]


def _forward_numpy(*operands: Any, problem: Problem) -> list[Any]:
    return [jax_numpy.convolve(problem, *named_operands(problem, operands))]


def _backward_numpy(dy: Any, *operands: Any, problem: Problem, wanted: Wanted) -> list[Any]:
    return present(*jax_numpy.gradients(problem, wanted, dy, *named_operands(problem, operands)))


def _forward_cuda(*operands: Any, problem: Problem) -> list[Any]:
    if not has_kernels(problem):
        return _forward_numpy(*operands, problem=problem)
    y = jax.ShapeDtypeStruct((*operands[0].shape[:-1], problem.out_len), operands[0].dtype)
    return call_kernels(functools.partial(_run_forward, problem), [y], load_kernels(problem, None), operands)


def _backward_cuda(*operands: Any, problem: Problem, wanted: Wanted) -> list[Any]:
    if not has_kernels(problem):
        return _backward_numpy(*operands, problem=problem, wanted=wanted)
    named = zip(named_operands(problem, operands[1:]), wanted, strict=True)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x, is_wanted in named if is_wanted]
    run = functools.partial(_run_backward, problem, wanted)
    return call_kernels(run, results, load_kernels(problem, wanted), operands)


def has_kernels(problem: Problem) -> bool:
    """Return whether there is something for the kernels to do, in a dtype that they know."""
    return problem.batch > 0 and "float64" not in (problem.dtype, problem.filter_dtype)


def load_kernels(problem: Problem, wanted: Wanted | None) -> int:
    """Compile and load the kernels for every GPU of JAX; return the bytes of workspace that a call takes at most.

    Args:
        problem: the problem.
        wanted: the gradients to compute; None for the convolution.
    """
    launch = execute.gpu_launcher()
    workspace_bytes = 0
    for device in cuda_devices():
        with arrays.use_device(device):
            if wanted is None:
                launch.check(problem, device)
                launch.warm(problem)
            else:
                launch.check_vjp(problem, wanted, device)
                launch.warm_vjp(problem, wanted)
        workspace_bytes = max(workspace_bytes, launch.workspace_bytes(problem, device, wanted))
    return workspace_bytes


def cuda_devices() -> list[int]:
    """Return the CUDA ordinals of the GPUs that JAX may run a program on."""
    try:
        return [gpu.local_hardware_id for gpu in jax.local_devices(backend="cuda")]
    except RuntimeError as error:
        raise UnsupportedDeviceError(
            message(
                "lowering for CUDA",
                got=f"a JAX without a GPU ({str(error).splitlines()[0]})",
                allowed="a process that sees the GPU, whose kernels are loaded as the program is lowered",
                do="Lower it there, or for the CPU.",
            )
        ) from error


def call_kernels(run: Callable[..., None], results: list[Any], workspace_bytes: int, operands: Any) -> list[Any]:
    """Stage a call of `run`; its workspace is one more result, since nothing may be allocated as it runs."""
    workspace = jax.ShapeDtypeStruct((-(-workspace_bytes // 4),), jnp.float32)
    # XLA may run `run` while it records a command buffer, and replay what it launched ever after.
    call = buffer_callback(run, [*results, workspace], command_buffer_compatible=True)
    return list(call(*operands)[:-1])


def _run_forward(problem: Problem, context: Any, results: Any, *operands: Any) -> None:
    """Launch the kernels on XLA's stream."""
    y, workspace = (buffer_view(buffer) for buffer in results)
    views = (None if x is None else buffer_view(x) for x in named_operands(problem, operands))
    execute.gpu_launcher().run(problem, *views, y, context.stream, workspace=workspace)


def _run_backward(problem: Problem, wanted: Wanted, context: Any, results: Any, dy: Any, *operands: Any) -> None:
    """Launch the kernels of the gradients on XLA's stream."""
    *found, workspace = (buffer_view(buffer) for buffer in results)
    grads = _wanted(wanted, found)
    views = (None if x is None else buffer_view(x) for x in named_operands(problem, operands))
    launch = execute.gpu_launcher()
    launch.run_vjp(problem, wanted, buffer_view(dy), *views, grads, context.stream, workspace=workspace)


def buffer_view(buffer: Any) -> ArrayView:
    """Return the view of a buffer of XLA's, which is contiguous and lives until the program is done."""
    shape = tuple(buffer.shape)
    _, device = buffer.__dlpack_device__()
    ptr, _ = buffer.__cuda_array_interface__["data"]
    return ArrayView(ptr, shape, contiguous_strides(shape), str(buffer.dtype), device, "jax", buffer)


def _batch_forward(operands: Any, axes: Any, *, problem: Problem) -> tuple[list[Any], list[int]]:
    size, named, named_axes = (
        mapped_size(operands, axes),
        named_operands(problem, operands),
        named_operands(problem, axes),
    )
    if only_rows(named_axes):
        y = convolve(*into_batch(problem, size, named, named_axes))
        return [y.reshape(size, problem.batch, *y.shape[1:])], [0]
    y = convolve(*into_channels(problem, size, named, named_axes))
    return [y.reshape(problem.batch, size, problem.channels, y.shape[-1])], [1]


def _batch_backward(operands: Any, axes: Any, *, problem: Problem, wanted: Wanted) -> tuple[list[Any], list[int]]:
    """Compute gradients of rows as a larger batch where k and skip are not mapped, and the rest by channels.

    Two calls then: what is not used of them is left out later, and mostly that is one of the two.
    """
    size = mapped_size(operands, axes)
    (dy, *others), (dy_axis, *other_axes) = operands, axes
    named, named_axes = named_operands(problem, others), named_operands(problem, other_axes)
    rows = Wanted()
    if only_rows(named_axes):
        rows = wanted._replace(k=False, skip=False)
    sums = Wanted(*(one and not other for one, other in zip(wanted, rows, strict=True)))
    found: dict[str, tuple[Any, int]] = {}
    if any(rows):
        folded, *inputs = into_batch(problem, size, named, named_axes)
        grads = gradients(folded, rows, rows_into_batch(dy, dy_axis, size), *inputs)
        for name, x in grads._asdict().items():
            if x is not None:
                found[name] = (x.reshape(size, problem.batch, *x.shape[1:]), 0)
    if any(sums):
        # Each element of the mapped axis has gradients of its own to k and skip, so it gets channels of its own.
        folded, *inputs = into_channels(problem, size, named, named_axes)
        grads = gradients(folded, sums, rows_into_channels(dy, dy_axis, size), *inputs)
        found |= out_of_channels(problem, size, named, grads)
    results = [found[name] for name, is_wanted in wanted._asdict().items() if is_wanted]
    return [x for x, _ in results], [axis for _, axis in results]


def out_of_channels(
    problem: Problem, size: int, named: list[Any], grads: Gradients | StateGradients
) -> dict[str, tuple[Any, int]]:
    """Return gradients of `into_channels` with the mapped axis by itself again, and where it is."""
    found = {}
    for name, x in grads._asdict().items():
        if x is None:
            continue
        is_rows = name not in ("k", "skip")
        shape = (problem.batch, size, problem.channels) if is_rows else (size, problem.channels)
        x = x.reshape(*shape, *x.shape[len(shape) - 1 :])
        if name == "k" and problem.shared_filter:
            x = x.sum(axis=1).astype(named[1].dtype)
        found[name] = (x, int(is_rows))
    return found


def mapped_size(operands: Any, axes: Any) -> int:
    """Return the length of the mapped axis."""
    return next(int(x.shape[axis]) for x, axis in zip(operands, axes, strict=True) if axis is not None)


def only_rows(named_axes: list[int | None]) -> bool:
    """Return whether neither k nor skip is mapped."""
    _, k_axis, _, _, skip_axis = named_axes
    return k_axis is None and skip_axis is None


def into_batch(problem: Problem, size: int, named: list[Any], axes: list[int | None]) -> tuple[Any, ...]:
    """Return the problem and its inputs with the mapped axis as a part of the batch."""
    u, k, in_gate, out_gate, skip = named
    folded = dataclasses.replace(problem, batch=size * problem.batch)
    u, in_gate, out_gate = (rows_into_batch(x, axes[i], size) for i, x in ((0, u), (2, in_gate), (3, out_gate)))
    return folded, u, k, in_gate, out_gate, skip


def into_channels(problem: Problem, size: int, named: list[Any], axes: list[int | None]) -> tuple[Any, ...]:
    """Return the problem and its inputs with the mapped axis as a part of the channels.

    A filter for all channels becomes one for each, in float32 or better: its gradient is to be rounded after the sum.
    """
    u, k, in_gate, out_gate, skip = named
    u, in_gate, out_gate = (rows_into_channels(x, axes[i], size) for i, x in ((0, u), (2, in_gate), (3, out_gate)))
    filters = with_axis(k, axes[1], size, 0)
    if problem.shared_filter:
        wide = jnp.promote_types(k.dtype, jnp.float32)
        filters = jnp.broadcast_to(filters[:, None], (size, problem.channels, problem.filter_len)).astype(wide)
    if skip is not None:
        skip = with_axis(skip, axes[4], size, 0).reshape(size * problem.channels)
    folded = dataclasses.replace(
        problem, channels=size * problem.channels, shared_filter=False, filter_dtype=str(filters.dtype)
    )
    return folded, u, filters.reshape(folded.channels, problem.filter_len), in_gate, out_gate, skip


def rows_into_batch(x: Any, axis: int | None, size: int) -> Any:
    """Return rows, which may be None, with their mapped axis as a part of the batch."""
    if x is None:
        return None
    batch, channels, points = _unmapped_shape(x, axis)
    return with_axis(x, axis, size, 0).reshape(size * batch, channels, points)


def rows_into_channels(x: Any, axis: int | None, size: int) -> Any:
    """Return rows, which may be None, with their mapped axis as a part of the channels."""
    if x is None:
        return None
    batch, channels, points = _unmapped_shape(x, axis)
    return with_axis(x, axis, size, 1).reshape(batch, size * channels, points)


def _unmapped_shape(x: Any, axis: int | None) -> tuple[int, ...]:
    return tuple(length for i, length in enumerate(x.shape) if i != axis)


def with_axis(x: Any, axis: int | None, size: int, position: int) -> Any:
    """Return `x` with its mapped axis at `position`, repeated along it where it has none."""
    if axis is not None:
        return jnp.moveaxis(x, axis, position)
    return jnp.broadcast_to(jnp.expand_dims(x, position), (*x.shape[:position], size, *x.shape[position:]))


def without_unused(used: list[bool], equation: Any) -> tuple[list[bool], Any]:
    """Leave gradients that nothing uses out of an equation of a backward primitive."""
    if not any(used):
        return [False] * len(equation.invars), None
    flags, wanted = iter(used), equation.params["wanted"]
    wanted = type(wanted)(*(is_wanted and next(flags) for is_wanted in wanted))
    kept = [variable for variable, is_used in zip(equation.outvars, used, strict=True) if is_used]
    params = {**equation.params, "wanted": wanted}
    return [True] * len(equation.invars), equation.replace(outvars=kept, params=params)


def register(
    primitive: Any,
    result_types: Callable[..., Any],
    on_numpy: Callable[..., Any],
    on_cuda: Callable[..., Any],
    batch: Callable[..., Any],
) -> None:
    """Tell a primitive the types of its results, what each platform runs, and how it is mapped."""
    primitive.def_abstract_eval(result_types)
    mlir.register_lowering(primitive, mlir.lower_fun(on_numpy, multiple_results=True))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cuda, multiple_results=True), platform="cuda")
    batching.primitive_batchers[primitive] = batch


register(_forward_p, _forward_types, _forward_numpy, _forward_cuda, _batch_forward)
register(_backward_p, _backward_types, _backward_numpy, _backward_cuda, _batch_backward)
partial_eval.dce_rules[_backward_p] = without_unused
