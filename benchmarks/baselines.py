"""Other ways to convolve, and ours, as calls to time: each says for which problems it is one and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import fftconv_cupy
from fftconv_cupy.benchmarks.cells import Cell
from fftconv_cupy.benchmarks.data import Data
from fftconv_cupy.problem import Gradients

OURS = "fftconv_cupy"
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
    """

    name: str
    framework: str | None
    suits: Callable[[Cell], bool]
    prepare: Callable[[Cell, Data], Call]


def _prepare_ours(cell: Cell, data: Data) -> Call:
    mode, u, k, in_gate, out_gate = cell.mode, *data.arrays
    if cell.is_backward:
        dy, fftconv_vjp = data.dy, fftconv_cupy.fftconv_vjp
        return lambda: fftconv_vjp(dy, u, k, mode=mode, in_gate=in_gate, out_gate=out_gate)
    if cell.filter == "prepared":
        k = fftconv_cupy.prepare_filter(k, seqlen=cell.seqlen, mode=mode)
    fftconv = fftconv_cupy.fftconv
    return lambda: fftconv(u, k, mode=mode, in_gate=in_gate, out_gate=out_gate)


def _prepare_torch_rfft(cell: Cell, data: Data) -> Call:
    """What a careful user of torch writes: real transforms in float32, one rounding at the end."""
    import torch

    size, outputs = cell.problem.fft_size, cell.problem.out_len

    def convolve(u: Any, k: Any, in_gate: Any = None, out_gate: Any = None) -> Any:
        x = u.float() if in_gate is None else u.float() * in_gate
        y = torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(k, n=size), n=size)[..., :outputs]
        return (y if out_gate is None else y * out_gate).to(u.dtype)

    return _call_of_torch(convolve, cell, data)


def _prepare_cupyx_rfft(cell: Cell, data: Data) -> Call:
    import cupyx.scipy.fft as fft

    u, k, in_gate, out_gate = data.arrays
    size, outputs = cell.problem.fft_size, cell.problem.out_len

    def call() -> Any:
        x = u.astype("float32") if in_gate is None else u.astype("float32") * in_gate.astype("float32")
        y = fft.irfft(fft.rfft(x, size) * fft.rfft(k, size), size)[..., :outputs]
        return (y if out_gate is None else y * out_gate.astype("float32")).astype(u.dtype)

    return call


def _prepare_flash(cell: Cell, data: Data) -> Call:
    from flashfftconv import FlashFFTConv

    conv = FlashFFTConv(cell.problem.fft_size, dtype=data.u.dtype).to(data.u.device)
    return _call_of_torch(conv, cell, data)


def _prepare_subquadratic(cell: Cell, data: Data) -> Call:
    from subquadratic_ops_torch.fft_causal_conv1d import fft_causal_conv1d

    def convolve(u: Any, weight: Any, in_gate: Any = None, out_gate: Any = None) -> Any:
        y = fft_causal_conv1d(u if in_gate is None else u * in_gate, weight)
        return y if out_gate is None else y * out_gate

    return _call_of_torch(convolve, cell, replace(data, k=data.k.to(data.u.dtype)))


def _call_of_torch(convolve: Convolution, cell: Cell, data: Data) -> Call:
    """Return the call to time of a convolution in torch; of gradients all that follows a forward pass made here."""
    import torch

    arrays = [array for array in data.arrays if array is not None]
    if cell.is_backward:
        leaves = [array.detach().requires_grad_() for array in arrays]
        y = convolve(*leaves)
        return lambda: Gradients(*torch.autograd.grad(y, leaves, data.dy, retain_graph=True))

    def call() -> Any:
        with torch.no_grad():
            return convolve(*arrays)

    return call


def _is_table_cell(cell: Cell) -> bool:
    """Whether others are timed on a cell: each call of theirs transforms its filter, so only beside our raw filter.

    Of the suites "speed" and "backward" compare, and only in float16, as the published tables do; cells by options
    always do.
    """
    if cell.filter != "raw" or cell.mode not in ("causal", "circular"):
        return False
    return cell.suite == "custom" or (cell.suite in ("speed", "backward") and cell.dtype == "float16")


def _suits_flash(cell: Cell) -> bool:
    size = cell.problem.fft_size
    whole = size >= 256 and size & (size - 1) == 0 and cell.seqlen in (size, size // 2)
    return _is_table_cell(cell) and whole and cell.dtype != "float32"


IMPLEMENTATIONS = (
    Implementation(OURS, None, lambda cell: True, _prepare_ours),
    Implementation("torch.fft rfft", "torch", _is_table_cell, _prepare_torch_rfft),
    Implementation(
        "cupyx rfft",
        "cupy",
        lambda cell: _is_table_cell(cell) and not cell.is_backward,
        _prepare_cupyx_rfft,
    ),
    Implementation("FlashFFTConv", "torch", _suits_flash, _prepare_flash),
    Implementation(
        "subquadratic-ops",
        "torch",
        lambda cell: _is_table_cell(cell) and cell.mode == "causal",
        _prepare_subquadratic,
    ),
)
