"""What the torch tests of depthwise convolutions share: random arguments, the definition in float64, the cases."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fftconv_cupy.torch import depthwise_conv1d  # noqa: E402

NAMES = ("x", "weight", "bias", "initial_state")


def arguments(
    sizes=(2, 3, 9, 4), *, layout="BHL", dtype=torch.float64, taps_dtype=None, state=False, requires_grad=True
):
    """Return the tensors of a call, random, by name."""
    torch.manual_seed(0)
    batch, channels, points, width = sizes
    taps_dtype = taps_dtype or (dtype if dtype is torch.float64 else torch.float32)
    shapes = {
        "x": ((batch, channels, points) if layout == "BHL" else (batch, points, channels), dtype),
        "weight": ((channels, width), taps_dtype),
        "bias": ((channels,), taps_dtype),
        **({"initial_state": ((batch, channels, width - 1), dtype)} if state else {}),
    }
    return {
        name: torch.randn(shape, dtype=torch.float64).to(kind).requires_grad_(requires_grad)
        for name, (shape, kind) in shapes.items()
    }


def reference(
    x,
    weight,
    bias=None,
    *,
    padding="causal",
    activation=None,
    layout="BHL",
    seq_idx=None,
    initial_state=None,
    return_final_state=False,
):
    """The definition out of torch's own operations, in float64; torch differentiates it by its own rules."""
    rows = x.double() if layout == "BHL" else x.double().transpose(1, 2)
    points, width = rows.shape[-1], weight.shape[-1]
    left = {"causal": width - 1, "same": (width - 1) // 2}.get(padding, padding)
    right = {"causal": 0, "same": width - 1 - left}.get(padding, padding)
    padded = torch.nn.functional.pad(rows, (left, right))
    if initial_state is not None:
        padded = torch.cat((initial_state.double(), rows), dim=-1)
    count = padded.shape[-1] - width + 1
    y = torch.zeros(*rows.shape[:2], count, dtype=torch.float64)
    marks = None if seq_idx is None else torch.nn.functional.pad(seq_idx, (left, 0), value=-1)[:, None]
    for j in range(width):
        term = weight.double()[:, j, None] * padded[..., j : j + count]
        if marks is not None:
            term = torch.where((marks[..., j : j + count] == marks[..., left:]) & (marks[..., left:] >= 0), term, 0.0)
        y = y + term
    if bias is not None:
        y = y + bias.double()[:, None]
    if marks is not None:
        y = torch.where(marks[..., left:] >= 0, y, 0.0)
    if activation:
        y = torch.nn.functional.silu(y)
    y = y if layout == "BHL" else y.transpose(1, 2)
    return (y, padded[..., points : points + width - 1]) if return_final_state else y


def detached(tensors):
    return {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}


def as_list(result):
    return list(result) if isinstance(result, tuple) else [result]


CASES = [
    {"padding": padding, "activation": activation, "layout": layout}
    for padding in ("causal", "same", 0, 3)
    for activation in (None, "silu")
    for layout in ("BHL", "BLH")
]
CASES += [
    {"layout": layout, "activation": activation, "with_state": True}
    for layout in ("BHL", "BLH")
    for activation in (None, "silu")
]


def given(case, sizes=(2, 3, 9, 4), **options):
    """Return a function of tensors, the same by the definition, and the tensors."""
    case = dict(case)
    state = case.pop("with_state", False)
    tensors = arguments(sizes, layout=case["layout"], state=state, **options)
    extra = {"return_final_state": True} if state else {}

    def ours(*args):
        return depthwise_conv1d(**dict(zip(tensors, args, strict=True)), **case, **extra)

    def theirs(*args):
        return reference(**dict(zip(tensors, args, strict=True)), **case, **extra)

    return ours, theirs, tensors
