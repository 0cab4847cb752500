"""The operators ``fftconv_cupy::fftconv_states`` and ``fftconv_cupy::fftconv_states_vjp``: rows that come in parts.

They are those of `torch_operator` with the states of `fftconv`: what came before a row, and what a row leaves to the
next. Derivatives and `vmap` are in `torch_states_derivatives`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from fftconv_cupy.api import fftconv
from fftconv_cupy.gradients import fftconv_vjp
from fftconv_cupy.problem import StateGradients
from fftconv_cupy.torch_operator import OPTIONS, TENSORS, autocast, filter_len_of, library, named, names_of

ARGUMENTS = StateGradients._fields
"""The tensors of the convolution, in the operators' order."""

library.define(
    f"fftconv_states({TENSORS}, Tensor? initial_state, {OPTIONS}, bool return_final_state) -> (Tensor, Tensor)"
)
library.define(
    f"fftconv_states_vjp(Tensor dy, Tensor? d_final_state, {TENSORS}, Tensor? initial_state, {OPTIONS}, bool[] wrt)"
    f" -> ({', '.join(['Tensor'] * len(ARGUMENTS))})"
)
forward_op = torch.ops.fftconv_cupy.fftconv_states.default
vjp_op = torch.ops.fftconv_cupy.fftconv_states_vjp.default


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the states of rows of `dtype`."""
    return dtype if dtype is torch.float64 else torch.float32


def _compute(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output, and the final state or, where it is not asked for, a tensor without elements."""
    u, *_, return_final_state = args
    result = fftconv(**named(ARGUMENTS, args[:-1]), return_final_state=return_final_state)
    return result if return_final_state else (result, u.new_empty(0, dtype=state_dtype(u.dtype)))


def _compute_vjp(dy: torch.Tensor, d_final_state: torch.Tensor | None, *args: Any) -> StateGradients:
    *others, wrt = args
    found = fftconv_vjp(
        dy, **named(ARGUMENTS, others), d_final_state=d_final_state, wrt=names_of(ARGUMENTS, tuple(wrt))
    )
    return StateGradients(*found)  # a call without an initial state has no gradient of it


def _fake(u: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors of the results' shapes; the rules about the arguments are looked at when they are computed."""
    *_, layout, return_final_state = rest
    shape = (*u.shape[:-1], filter_len_of(k, layout) - 1) if return_final_state else (0,)
    return u.new_empty(u.shape), u.new_empty(shape, dtype=state_dtype(u.dtype))


def _fake_vjp(dy: torch.Tensor, d_final_state: torch.Tensor | None, *rest: Any) -> StateGradients:
    tensors, wrt = rest[: len(ARGUMENTS)], rest[-1]
    return StateGradients(
        *(t.new_empty(t.shape) if is_wanted else None for t, is_wanted in zip(tensors, wrt, strict=True))
    )


def _autocast_kernel(key: torch.DispatchKey, device: str, *args: Any) -> Any:
    """Cast what the operator without states casts; states are float32 whatever the dtype of the rows."""
    tensors, rest = args[: len(ARGUMENTS) - 1], args[len(ARGUMENTS) - 1 :]
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        return forward_op(*autocast(*tensors, dtype=torch.get_autocast_dtype(device)), *rest)


for _name, _kernel, _kernel_fake in (
    ("fftconv_states", _compute, _fake),
    ("fftconv_states_vjp", _compute_vjp, _fake_vjp),
):
    library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fftconv_cupy::{_name}", _kernel_fake, lib=library)
for _name, _device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
    _key = getattr(torch._C.DispatchKey, _name)
    library.impl("fftconv_states", functools.partial(_autocast_kernel, _key, _device), _name)
