"""What JAX's arrays are before a program runs: shapes and dtypes for the checks, and the mesh axes they vary along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fftconv_cupy.arrays import ArrayView, contiguous_strides
from fftconv_cupy.errors import InvalidTypeError, message
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.problem import Problem, StateGradients
from fftconv_cupy.readers import ALLOWED_DTYPES, NUMPY_DTYPES


def abstract_view(array: Any, name: str, *, is_index: bool = False) -> ArrayView:
    """Return what the checks look at: shape and dtype, as of an array on the CPU, which allows every dtype.

    Args:
        array: the array, or a tracer.
        name: of the argument, for messages.
        is_index: it is to be of int32.
    """
    if not isinstance(array, jax.Array):
        got, do = f"an object of type {type(array).__name__}", f"Pass jax.numpy.asarray({name})."
        if isinstance(array, FilterSpectrum):
            got, do = repr(array), "Pass its taps; XLA keeps what it can compute ahead."
        raise InvalidTypeError(message(name, got=got, allowed="a JAX array", do=do))
    dtype = str(array.dtype)
    if dtype not in (("int32",) if is_index else NUMPY_DTYPES):
        do = f"Convert {name} to {'int32' if is_index else 'a real floating-point dtype of these'}."
        allowed = "int32" if is_index else ALLOWED_DTYPES
        raise InvalidTypeError(message(f"{name}.dtype", got=dtype, allowed=allowed, do=do))
    return ArrayView(0, array.shape, contiguous_strides(array.shape), dtype, -1, "jax", None)


def as_rows(problem: Problem, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return the arrays of a call as (B, H, points) but for `k` and `skip`, all of them `equally_varying`.

    Args:
        problem: the problem.
        inputs: the arguments of the convolution in the order of `StateGradients`, the last of which may be missing;
            None where one is left out.
    """
    rows = (problem.batch, problem.channels)
    return equally_varying(
        *(
            x if x is None or name in ("k", "skip") else x.reshape(*rows, x.shape[-1])
            for name, x in zip(StateGradients._fields, inputs, strict=False)
        )
    )


def equally_varying(*inputs: Any) -> tuple[Any, ...]:
    """Mark inputs inside a `shard_map` as varying along every mesh axis that one of them varies along.

    The transpose of the mark sums over the devices: the gradient of a filter that all of them hold is whole.
    """
    axes = [frozenset() if x is None else _varying_axes(x) for x in inputs]
    union = frozenset[Any]().union(*axes)
    return tuple(x if x is None else _mark_varying(x, tuple(union - own)) for x, own in zip(inputs, axes, strict=True))


def _varying_axes(x: Any) -> frozenset[Any]:
    kind = jax.typeof(x)
    # Up to JAX 0.9 the axes are an attribute of the type itself.
    axes: frozenset[Any] = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying
    return axes


def _mark_varying(x: Any, axes: tuple[Any, ...]) -> Any:
    if not axes:
        return x
    return jax.lax.pcast(x, axes, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(x, axes)
