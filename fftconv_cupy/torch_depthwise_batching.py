"""`vmap` of the depthwise operators: the mapped axis becomes part of the batch, or of the channels.

Of the batch where the taps are the same along it, and no gradient of them is asked for; of the channels else. Sequence
indices that differ along it leave neither, and the calls are made one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_Dims = Sequence["int | None"]
_FORWARD = ("x", "weight", "bias", "seq_idx", "initial_state")
_VJP = ("dy", "d_final_state", *_FORWARD)
_TAPS = ("weight", "bias")


def convolve(call: Callable[..., Any], size: int, in_dims: _Dims, *args: Any) -> tuple[Any, _Dims]:
    """Map the operator ``depthwise_conv1d``.

    Args:
        call: computes a call that is not mapped.
        size: length of the mapped axis.
        in_dims: where each argument has it; None where it has not.
        *args: the operator's arguments.

    Returns:
        The results with the mapped axis in front, and where they have it.
    """
    *_, layout, return_final_state = args
    options = args[len(_FORWARD) :]
    mapped = _Mapped(_FORWARD, size, in_dims, args, layout)
    names = ("y", "final_state")[: 1 + return_final_state]
    results = mapped.called(call, options, names, in_batch=not mapped.differs(*_TAPS))
    if not return_final_state:
        results.append(args[0].new_empty(0))
    return tuple(results), (0, 0 if return_final_state else None)


def gradients_of(call: Callable[..., Any], size: int, in_dims: _Dims, *args: Any) -> tuple[Any, _Dims]:
    """Map the operator ``depthwise_conv1d_vjp``; a gradient that is not asked for is None, and has no axis."""
    *_, layout, wrt = args
    options = args[len(_VJP) :]
    mapped = _Mapped(_VJP, size, in_dims, args, layout)
    names = ("x", "weight", "bias", "initial_state")
    in_batch = not (mapped.differs(*_TAPS) or wrt[1] or wrt[2])
    results = mapped.called(call, options, names, in_batch=in_batch)
    return tuple(results), tuple(None if result is None else 0 for result in results)


class _Mapped:
    """The tensors of one mapped call."""

    def __init__(self, names: Sequence[str], size: int, in_dims: _Dims, args: Sequence[Any], layout: str) -> None:
        count = len(names)
        self._size = size
        self._dims = dict(zip(names, in_dims[:count], strict=True))
        self._given: dict[str, Any] = dict(zip(names, args[:count], strict=True))
        self._layout = layout
        shape = self._front("x").shape[1:]
        self._batch, self._channels = shape[0], shape[self._channel_axis("x")]

    def differs(self, *names: str) -> bool:
        """Return whether any of these has the mapped axis."""
        return any(self._dims.get(name) is not None for name in names)

    def called(
        self, call: Callable[..., Any], options: Sequence[Any], names: Sequence[str], *, in_batch: bool
    ) -> list[torch.Tensor | None]:
        """Return the results of these names, with the mapped axis in front."""
        if in_batch:
            arguments = [self._in_batch(name) for name in self._given]
            back = self._from_batch
        elif not self.differs("seq_idx"):
            arguments = [self._in_channels(name) for name in self._given]
            back = self._from_channels
        else:
            fronts = [self._front(name) for name in self._given]
            items = [call(*(None if t is None else t[i] for t in fronts), *options) for i in range(self._size)]
            columns = list(zip(*items, strict=True))[: len(names)]
            return [None if column[0] is None else torch.stack(column) for column in columns]
        results = call(*arguments, *options)
        return [None if t is None else back(name, t) for name, t in zip(names, results, strict=False)]

    def _channel_axis(self, name: str) -> int:
        return 2 if self._layout == "BLH" and name in ("x", "dy", "y") else 1

    def _front(self, name: str) -> Any:
        tensor, dim = self._given[name], self._dims[name]
        if tensor is None:
            return None
        return tensor.expand(self._size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    def _in_batch(self, name: str) -> Any:
        front = self._given[name] if name in _TAPS else self._front(name)
        return front if front is None or name in _TAPS else front.flatten(0, 1)

    def _from_batch(self, name: str, result: torch.Tensor) -> torch.Tensor:
        return result.unflatten(0, (self._size, self._batch))

    def _in_channels(self, name: str) -> Any:
        if name == "seq_idx":
            return self._given[name]
        front = self._front(name)
        if front is None or name in _TAPS:
            return front if front is None else front.flatten(0, 1)
        axis = self._channel_axis(name)
        return front.movedim(0, axis).flatten(axis, axis + 1)

    def _from_channels(self, name: str, result: torch.Tensor) -> torch.Tensor:
        axis = 0 if name in _TAPS else self._channel_axis(name)
        return result.unflatten(axis, (self._size, self._channels)).movedim(axis, 0)
