"""The operators of depthwise convolutions, ``fftconv_cupy::depthwise_conv1d`` and its kin: what they compute.

All compute by the functions of these names of the package, on every device. Autocast is registered here too;
derivatives and `vmap` are in `torch_depthwise_derivatives`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from fftconv_cupy.depthwise import depthwise_conv1d, depthwise_conv1d_update, depthwise_conv1d_vjp
from fftconv_cupy.depthwise_problem import DepthwiseGradients
from fftconv_cupy.torch_operator import library

ARGUMENTS = DepthwiseGradients._fields
"""The tensors that have gradients; among them `seq_idx` comes before the last one in the operators' order."""

_TENSORS = "Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, Tensor? initial_state"
_OPTIONS = "str padding, str? activation, str layout"
_UPDATE = "Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, Tensor? cache_seqlens, Tensor? conv_state_indices"

library.define(f"depthwise_conv1d({_TENSORS}, {_OPTIONS}, bool return_final_state) -> (Tensor, Tensor)")
library.define(
    f"depthwise_conv1d_vjp(Tensor dy, Tensor? d_final_state, {_TENSORS}, {_OPTIONS}, bool[] wrt)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(f"depthwise_conv1d_update({_UPDATE}, str? activation) -> Tensor")
forward_op = torch.ops.fftconv_cupy.depthwise_conv1d.default
vjp_op = torch.ops.fftconv_cupy.depthwise_conv1d_vjp.default
update_op = torch.ops.fftconv_cupy.depthwise_conv1d_update.default


def padding_name(padding: str | int) -> str:
    """Return a padding as the operators take it: by its name, or as the digits of its number."""
    return padding if isinstance(padding, str) else str(padding)


def _padding_of(name: str) -> str | int:
    return int(name) if name.isdecimal() else name


def _compute(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    padding: str,
    activation: str | None,
    layout: str,
    return_final_state: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output, and the final state or, where it is not asked for, a tensor without elements."""
    y = depthwise_conv1d(
        x,
        weight,
        bias,
        padding=_padding_of(padding),
        activation=activation,
        layout=layout,
        seq_idx=seq_idx,
        initial_state=initial_state,
        return_final_state=return_final_state,
    )
    return y if return_final_state else (y, x.new_empty(0))


def _compute_vjp(
    dy: torch.Tensor,
    d_final_state: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    padding: str,
    activation: str | None,
    layout: str,
    wrt: Sequence[bool],
) -> DepthwiseGradients:
    return depthwise_conv1d_vjp(
        dy,
        x,
        weight,
        bias,
        padding=_padding_of(padding),
        activation=activation,
        layout=layout,
        seq_idx=seq_idx,
        initial_state=initial_state,
        d_final_state=d_final_state,
        wrt=[name for name, is_wanted in zip(ARGUMENTS, wrt, strict=True) if is_wanted],
    )


def _compute_update(
    x: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    conv_state_indices: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    y: torch.Tensor = depthwise_conv1d_update(
        x,
        state,
        weight,
        bias,
        activation=activation,
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )
    return y


def _fake(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors of the results' shapes; the rules about the arguments are looked at when they are computed."""
    *_, padding, _, layout, return_final_state = rest
    axis, width = 2 if layout == "BHL" else 1, weight.shape[-1]
    shape = list(x.shape)
    if padding.isdecimal():
        shape[axis] = shape[axis] + 2 * int(padding) - width + 1
    state_shape = (shape[0], shape[3 - axis], width - 1) if return_final_state else (0,)
    return x.new_empty(shape), x.new_empty(state_shape)


def _fake_vjp(
    dy: torch.Tensor, d_final_state: torch.Tensor | None, x: Any, weight: Any, bias: Any, seq_idx: Any, *rest: Any
) -> DepthwiseGradients:
    initial_state, *_, wrt = rest
    tensors = (x, weight, bias, initial_state)
    return DepthwiseGradients(
        *(t.new_empty(t.shape) if is_wanted else None for t, is_wanted in zip(tensors, wrt, strict=True))
    )


def _fake_update(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    """Return a tensor as autocast wants it; float64 is left as it is, as everywhere in torch."""
    is_cast = tensor is not None and tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.to(dtype) if is_cast else tensor


def _autocast_forward(key: torch.DispatchKey, device: str, x: Any, weight: Any, bias: Any, *rest: Any) -> Any:
    """Cast what is as long as the input, and the state with it; taps and bias are read in their own precision."""
    seq_idx, initial_state, *options = rest
    dtype = torch.get_autocast_dtype(device)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        return forward_op(_cast(x, dtype), weight, bias, seq_idx, _cast(initial_state, dtype), *options)


def _autocast_update(key: torch.DispatchKey, device: str, x: Any, state: Any, *rest: Any) -> Any:
    """Cast the new points to the dtype of the state, which is written in place."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        return update_op(_cast(x, state.dtype), state, *rest)


for _operator, _kernel, _kernel_fake in (
    ("depthwise_conv1d", _compute, _fake),
    ("depthwise_conv1d_vjp", _compute_vjp, _fake_vjp),
    ("depthwise_conv1d_update", _compute_update, _fake_update),
):
    library.impl(_operator, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fftconv_cupy::{_operator}", _kernel_fake, lib=library)
for _name, _device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
    _key = getattr(torch._C.DispatchKey, _name)
    library.impl("depthwise_conv1d", functools.partial(_autocast_forward, _key, _device), _name)
    library.impl("depthwise_conv1d_update", functools.partial(_autocast_update, _key, _device), _name)
