"""What the torch tests share: random arguments, and the convolution out of torch's own operations, in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

NAMES = ("u", "k", "in_gate", "out_gate", "skip")


def arguments(
    mode: str = "causal",
    *,
    shape: tuple[int, ...] = (2, 3, 9),
    taps: int = 5,
    shared: bool = False,
    dtype: Any = torch.float64,
    filter_dtype: Any = None,
    device: str = "cpu",
    requires_grad: bool = True,
) -> dict[str, Any]:
    """Return every tensor of a call, random and contiguous."""
    torch.manual_seed(0)
    channels = shape[-2] if len(shape) > 1 else 1
    outputs = (*shape[:-1], shape[-1] + (taps - 1 if mode == "full" else 0))
    k_shape = (taps,) if shared or len(shape) == 1 else (channels, taps)
    shapes = (shape, k_shape, shape, outputs, (channels,))
    exact = dtype if dtype is torch.float64 else torch.float32
    dtypes = (dtype, filter_dtype or exact, dtype, dtype, exact)
    return {
        name: torch.randn(size, device=device).to(kind).requires_grad_(requires_grad)
        for name, size, kind in zip(NAMES, shapes, dtypes, strict=True)
    }


def reference(
    u: Any,
    k: Any,
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: Any = None,
    out_gate: Any = None,
    skip: Any = None,
) -> Any:
    """Return the convolution in float64; torch differentiates it by its own rules."""
    x = u.double() if in_gate is None else u.double() * in_gate.double()
    points, taps = u.shape[-1], k.shape[-1]
    count = points + taps - 1
    y = torch.fft.irfft(torch.fft.rfft(x, 2 * count) * torch.fft.rfft(k.double(), 2 * count), 2 * count)[..., :count]
    if mode == "circular":
        period = fft_size or points
        padded = torch.nn.functional.pad(y, (0, -count % period))
        y = padded.unflatten(-1, (-1, period)).sum(-2)
    if mode != "full":
        first = (taps - 1) // 2 if mode == "same" else 0
        y = y[..., first : first + points]
    if skip is not None:
        kept = skip.double().unsqueeze(-1) * x if u.ndim > 1 else skip.double() * x
        y = y + torch.nn.functional.pad(kept, (0, y.shape[-1] - points))
    return y if out_gate is None else y * out_gate.double()


def error(result: Any, exact: Any) -> float:
    """Return the relative error in the L2 norm."""
    result, exact = result.detach().double(), exact.detach().double()
    return float((result - exact).norm() / exact.norm())


def detached(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the same values as new leaves in float64."""
    return {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
