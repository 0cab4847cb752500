"""`vmap` of the operators: the mapped axis becomes part of the batch, or of the channels where filters differ along it.

All functions here take the call that computes, the length of the mapped axis, where each argument has that
axis (None where it has not), and the operator's arguments. They return the results with the mapped axis in front, and
the zeros that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fftconv_cupy.problem import StateGradients
from fftconv_cupy.torch_operator import ARGUMENTS, is_bound
from fftconv_cupy.torch_states import state_dtype

_Dims = Sequence["int | None"]
_Tensors = Sequence["torch.Tensor | None"]
_LAYOUT = 4  # of the options: mode, fft_size, precision, intermediate, layout


def convolve(call: Callable[..., torch.Tensor], size: int, in_dims: _Dims, *args: Any) -> tuple[torch.Tensor, int]:
    """Map the operator ``fftconv``."""
    results = _outputs_of(lambda *inputs: (call(*inputs),), ARGUMENTS, size, in_dims, args)
    return results[0], 0


def convolve_with_states(
    call: Callable[..., _Tensors], size: int, in_dims: _Dims, *args: Any
) -> tuple[tuple[torch.Tensor, ...], _Dims]:
    """Map the operator ``fftconv_states``; a final state that is not asked for has no mapped axis."""
    if args[-1]:
        return _outputs_of(call, StateGradients._fields, size, in_dims, args), (0, 0)
    results = _outputs_of(lambda *inputs: call(*inputs)[:1], StateGradients._fields, size, in_dims, args)
    return (*results, args[0].new_empty(0, dtype=state_dtype(args[0].dtype))), (0, None)


def _outputs_of(
    call: Callable[..., Any], names: Sequence[str], size: int, in_dims: _Dims, args: Sequence[Any]
) -> tuple[torch.Tensor, ...]:
    """Return the mapped results of a call, all of them rows."""
    count = len(names)
    dims, tensors, options = in_dims[:count], args[:count], args[count:]
    layout = options[_LAYOUT]
    mapped = _Mapped(names, size, dims, tensors)
    if not mapped.differs("k", "skip"):
        return tuple(map(mapped.from_batch, call(*mapped.in_batch(), *options)))
    if is_bound(layout):
        items = [call(*item, *options) for item in mapped.items()]
        return tuple(map(torch.stack, zip(*items, strict=True)))
    return tuple(mapped.from_channels("y", result) for result in call(*mapped.in_channels(layout), *options))


def gradients_of(
    call: Callable[..., _Tensors], size: int, in_dims: _Dims, *args: Any
) -> tuple[tuple[torch.Tensor | None, ...], _Dims]:
    """Map the operator ``fftconv_vjp``; a gradient that is not asked for is None, and has no axis."""
    return _gradients_of(call, ("dy",), ARGUMENTS, size, in_dims, args)


def gradients_with_states(
    call: Callable[..., _Tensors], size: int, in_dims: _Dims, *args: Any
) -> tuple[tuple[torch.Tensor | None, ...], _Dims]:
    """Map the operator ``fftconv_states_vjp``, likewise."""
    return _gradients_of(call, ("dy", "d_final_state"), StateGradients._fields, size, in_dims, args)


def _gradients_of(
    call: Callable[..., _Tensors],
    given: Sequence[str],
    names: Sequence[str],
    size: int,
    in_dims: _Dims,
    args: Sequence[Any],
) -> tuple[tuple[torch.Tensor | None, ...], _Dims]:
    """Return the mapped gradients of the arguments `names`; what is `given` are those of the results."""
    count = len(given) + len(names)
    dims, tensors, options = in_dims[:count], args[:count], args[count:]
    layout, wrt = options[_LAYOUT], options[-1]
    mapped = _Mapped((*given, *names), size, dims, tensors)
    sums = any(is_wanted for name, is_wanted in zip(names, wrt, strict=True) if name in ("k", "skip"))
    found: list[torch.Tensor | None]
    if not (mapped.differs("k", "skip") or sums):
        found = [None if g is None else mapped.from_batch(g) for g in call(*mapped.in_batch(), *options)]
    elif is_bound(layout):
        items = [call(*item, *options) for item in mapped.items()]
        found = [None if column[0] is None else torch.stack(column) for column in zip(*items, strict=True)]
    else:
        together = zip(names, call(*mapped.in_channels(layout), *options), strict=True)
        found = [None if g is None else mapped.from_channels(name, g) for name, g in together]
    return tuple(found), tuple(None if g is None else 0 for g in found)


class _Mapped:
    """The tensors of one mapped call.

    Args:
        names: theirs, in the operator's order.
        size: length of the mapped axis.
        dims: where each has it.
        tensors: the tensors, None where one is left out.
    """

    def __init__(self, names: Sequence[str], size: int, dims: _Dims, tensors: Sequence[torch.Tensor | None]) -> None:
        self._names = names
        self._size = size
        self._dims = dict(zip(names, dims, strict=True))
        self._given = dict(zip(names, tensors, strict=True))
        self._front = {name: self._to_front(name) for name in names}
        u: Any = self._front["u"]
        self._axes = u.ndim - 1  # of u in a call that is not mapped
        self._channels = u.shape[-2] if self._axes > 1 else 1

    def differs(self, *names: str) -> bool:
        """Return whether any of these has the mapped axis."""
        return any(self._dims[name] is not None for name in names)

    def items(self) -> list[list[torch.Tensor | None]]:
        """Return the arguments of each of the calls that are mapped."""
        front = self._front.values()
        return [[None if tensor is None else tensor[i] for tensor in front] for i in range(self._size)]

    def in_batch(self) -> list[torch.Tensor | None]:
        """Return the arguments of one call with a batch `size` times as large; filter and skip stay as they are."""
        return [self._given[name] if name in ("k", "skip") else self._rows_in_batch(name) for name in self._names]

    def from_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows that such a call gives with the mapped axis in front."""
        if self._axes == 1:
            return rows.squeeze(1)
        return rows if self._axes == 2 else rows.unflatten(0, (self._size, -1))

    def in_channels(self, layout: str | None) -> list[torch.Tensor | None]:
        """Return the arguments of one call with `size` times the channels, each with a filter of its own."""
        return [self._given[name] if name == "k" and layout else self._in_channels(name) for name in self._names]

    def from_channels(self, name: str, result: torch.Tensor) -> torch.Tensor:
        """Return output or gradient `name` of such a call with the mapped axis in front."""
        if name not in ("k", "skip"):
            if self._axes == 1:
                return result
            return result.unflatten(-2, (self._size, self._channels)).movedim(-3, 0)
        apart = result.unflatten(0, (self._size, self._channels))
        k: Any = self._front["k"]
        return apart.sum(1).to(k.dtype) if name == "k" and k.ndim == 2 else apart

    def _to_front(self, name: str) -> torch.Tensor | None:
        tensor, dim = self._given[name], self._dims[name]
        if tensor is None:
            return None
        return tensor.expand(self._size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    def _rows_in_batch(self, name: str) -> torch.Tensor | None:
        rows = self._front[name]
        if rows is None or self._axes == 2:
            return rows
        return rows.unsqueeze(1) if self._axes == 1 else rows.flatten(0, 1)

    def _in_channels(self, name: str) -> torch.Tensor | None:
        tensor = self._front[name]
        if tensor is None or name == "skip":
            return tensor if tensor is None else tensor.flatten()
        if name == "k":
            if tensor.ndim == 3:
                return tensor.flatten(0, 1)
            # A filter for all channels becomes one for each, in float32 or better: its gradient is rounded when summed.
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            return wide.unsqueeze(1).expand(-1, self._channels, -1).flatten(0, 1)
        return tensor if self._axes == 1 else tensor.movedim(0, -3).flatten(-3, -2)
