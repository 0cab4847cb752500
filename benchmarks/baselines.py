"""Other ways to convolve, and ours, as calls to time: each says for which problems it is one and what it needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import fftconv_cupy
from fftconv_cupy.benchmarks.cells import Cell, Timed
from fftconv_cupy.benchmarks.data import Data
from fftconv_cupy.problem import Gradients

OURS = "fftconv_cupy"
MOST_DIRECT_TAPS = 256  # of a filter that is short enough to be summed directly

Call = Callable[[], Any]
Convolution = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Implementation:
    """A way to convolve.

    Attributes:
        name: as in the records.
        framework: whose arrays it takes; None for those that the cell names.
        suits: whether it computes a cell.
        prepare: returns the call to time, which returns the output or the gradients; raises ImportError where a package
            is missing.
        kind: of the cells that it is for.
    """

    name: str
    framework: str | None
    suits: Callable[[Any], bool]
    prepare: Callable[[Any, Any], Call]
    kind: type[Timed] = Cell

    def takes(self, cell: Timed) -> bool:
        """Return whether it computes a cell, of whatever kind."""
        return isinstance(cell, self.kind) and self.suits(cell)


def _prepare_ours(cell: Cell, data: Data) -> Call:
    mode, precision, u, k, in_gate, out_gate = cell.mode, cell.precision, *data.arrays
    if cell.is_backward:
        dy, fftconv_vjp = data.dy, fftconv_cupy.fftconv_vjp
        return lambda: fftconv_vjp(dy, u, k, mode=mode, in_gate=in_gate, out_gate=out_gate, precision=precision)
    if cell.filter == "prepared":
        k = fftconv_cupy.prepare_filter(k, seqlen=cell.seqlen, mode=mode, precision=precision)
    fftconv = fftconv_cupy.fftconv
    return lambda: fftconv(u, k, mode=mode, in_gate=in_gate, out_gate=out_gate, precision=precision)


def _prepare_torch_rfft(cell: Cell, data: Data) -> Call:
    """What a careful user of torch writes: real transforms in float32, one rounding at the end."""
    import torch

    size, outputs = cell.problem.fft_size, _outputs_of(cell)

    def convolve(u: Any, k: Any, in_gate: Any = None, out_gate: Any = None) -> Any:
        x = u.float() if in_gate is None else u.float() * in_gate
        y = torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(k, n=size), n=size)[..., outputs]
        return (y if out_gate is None else y * out_gate).to(u.dtype)

    return call_of_torch(convolve, data)


def _prepare_torch_fft(cell: Cell, data: Data) -> Call:
    """What FlashFFTConv's own tests compare with: complex transforms in float32."""
    import torch

    size, outputs = cell.problem.fft_size, _outputs_of(cell)

    def convolve(u: Any, k: Any, in_gate: Any = None, out_gate: Any = None) -> Any:
        x = u.float() if in_gate is None else u.float() * in_gate
        y = torch.fft.ifft(torch.fft.fft(x, n=size) * torch.fft.fft(k, n=size)).real[..., outputs]
        return (y if out_gate is None else y * out_gate).to(u.dtype)

    return call_of_torch(convolve, data)


def _prepare_torch_direct(cell: Cell, data: Data) -> Call:
    import torch

    taps, channels = cell.filter_len, cell.channels
    first = _outputs_of(cell).start

    def convolve(u: Any, k: Any, in_gate: Any = None, out_gate: Any = None) -> Any:
        x = torch.nn.functional.pad(u if in_gate is None else u * in_gate, (taps - 1 - first, first))
        y = torch.nn.functional.conv1d(x, k.flip(1)[:, None], groups=channels)
        return y if out_gate is None else y * out_gate

    return call_of_torch(convolve, replace(data, k=data.k.to(data.u.dtype)))


def _prepare_cupyx_rfft(cell: Cell, data: Data) -> Call:
    import cupyx.scipy.fft as fft

    u, k, in_gate, out_gate = data.arrays
    size, outputs = cell.problem.fft_size, _outputs_of(cell)

    def call() -> Any:
        x = u.astype("float32") if in_gate is None else u.astype("float32") * in_gate.astype("float32")
        y = fft.irfft(fft.rfft(x, size) * fft.rfft(k, size), size)[..., outputs]
        return (y if out_gate is None else y * out_gate.astype("float32")).astype(u.dtype)

    return call


def _prepare_jax_rfft(cell: Cell, data: Data) -> Call:
    """The careful user's way, compiled by XLA.

    JAX has streams of its own, so its call waits for the GPU before and after: its time includes the dispatch.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others need memory too
    import jax
    import jax.numpy as jnp

    size, outputs = cell.problem.fft_size, _outputs_of(cell)

    def convolve(u: Any, k: Any, in_gate: Any = None, out_gate: Any = None) -> Any:
        x = u.astype(jnp.float32) if in_gate is None else u.astype(jnp.float32) * in_gate
        y = jnp.fft.irfft(jnp.fft.rfft(x, size) * jnp.fft.rfft(k, size), size)[..., outputs]
        return (y if out_gate is None else y * out_gate).astype(u.dtype)

    arrays = [array for array in data.arrays if array is not None]
    if cell.is_backward:
        _, pull = jax.vjp(convolve, *arrays)
        pulled = jax.jit(lambda pull, dy: pull(dy))
        return lambda: Gradients(*jax.block_until_ready(pulled(pull, data.synchronized().dy)))
    compiled = jax.jit(convolve)

    def call() -> Any:
        data.synchronized()
        return jax.block_until_ready(compiled(*arrays))

    return call


def _prepare_flash(cell: Cell, data: Data) -> Call:
    from flashfftconv import FlashFFTConv

    conv = FlashFFTConv(cell.problem.fft_size, dtype=data.u.dtype).to(data.u.device)
    return call_of_torch(conv, data)


def _prepare_subquadratic(cell: Cell, data: Data) -> Call:
    from subquadratic_ops_torch.fft_causal_conv1d import fft_causal_conv1d

    def convolve(u: Any, weight: Any, in_gate: Any = None, out_gate: Any = None) -> Any:
        y = fft_causal_conv1d(u if in_gate is None else u * in_gate, weight)
        return y if out_gate is None else y * out_gate

    return call_of_torch(convolve, replace(data, k=data.k.to(data.u.dtype)))


def call_of_torch(convolve: Convolution, data: Data, gradients: Callable[..., Any] = Gradients) -> Call:
    """Return the call to time of a convolution in torch, or of its gradients all that follows a forward pass made here.

    Args:
        convolve: called with the arrays that there are.
        data: of torch; with a gradient of the output where gradients are timed.
        gradients: what they are returned as, called with one for each array.
    """
    import torch

    arrays = [array for array in data.arrays if array is not None]
    if data.dy is not None:
        leaves = [array.detach().requires_grad_() for array in arrays]
        y = convolve(*leaves)
        return lambda: gradients(*torch.autograd.grad(y, leaves, data.dy, retain_graph=True))

    def call() -> Any:
        with torch.no_grad():
            return convolve(*arrays)

    return call


def _outputs_of(cell: Cell) -> slice:
    """Return which points of the whole convolution are the outputs."""
    first = (cell.filter_len - 1) // 2 if cell.mode == "same" else 0
    return slice(first, first + cell.problem.out_len)


def _is_table_cell(cell: Cell) -> bool:
    """Whether others are timed on a cell: each call of theirs transforms its filter, so only beside our raw filter.

    Of the suites of the targets "speed" and "backward" compare, and only in float16, as the published tables do.
    """
    if cell.filter != "raw":
        return False
    return cell.suite in ("custom", "conv", "models") or (
        cell.suite in ("speed", "backward") and cell.dtype == "float16"
    )


def _suits_direct(cell: Cell) -> bool:
    return _is_table_cell(cell) and cell.mode in ("causal", "same") and cell.filter_len <= MOST_DIRECT_TAPS


def _suits_flash(cell: Cell) -> bool:
    size = cell.problem.fft_size
    whole = 256 <= size <= 1 << 22 and size & (size - 1) == 0 and cell.seqlen in (size, size // 2)
    is_known = cell.mode in ("causal", "circular") and cell.dtype != "float32"
    return _is_table_cell(cell) and whole and is_known


def _suits_subquadratic(cell: Cell) -> bool:
    return _is_table_cell(cell) and cell.mode == "causal" and cell.filter_len == cell.seqlen


CONVOLUTIONS = (
    Implementation(OURS, None, lambda cell: True, _prepare_ours),
    Implementation("torch.fft rfft", "torch", _is_table_cell, _prepare_torch_rfft),
    Implementation("torch.fft fft", "torch", _is_table_cell, _prepare_torch_fft),
    Implementation("torch conv1d", "torch", _suits_direct, _prepare_torch_direct),
    Implementation(
        "cupyx rfft",
        "cupy",
        lambda cell: _is_table_cell(cell) and not cell.is_backward,
        _prepare_cupyx_rfft,
    ),
    Implementation("FlashFFTConv", "torch", _suits_flash, _prepare_flash),
    Implementation("subquadratic-ops", "torch", _suits_subquadratic, _prepare_subquadratic),
    # The last: what its allocator has taken once it does not give back.
    Implementation("JAX rfft", "jax", _is_table_cell, _prepare_jax_rfft),
)
