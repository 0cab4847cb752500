"""Derivatives of the operators with states, of any order and in both modes, and their `vmap`: see `torch_derivatives`.

With states ``y`` is linear in ``u`` and the initial state together, in ``in_gate`` where nothing came before, and as
without them in the others; so is the final state in the first two, and it depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import _SingleLevelFunction

from fftconv_cupy import torch_batching
from fftconv_cupy.torch_derivatives import autograd_kernel, differentiable_below, keep, primals_of, sum_of, vmap_rule
from fftconv_cupy.torch_operator import library
from fftconv_cupy.torch_states import ARGUMENTS, forward_op, state_dtype, vjp_op

_COUNT = len(ARGUMENTS)
_U, _K, _STATE = 0, 1, 5
_LINEAR_IN = ((_U, _STATE), (_K, 4), (2,), (3,))  # u and the state; k and skip; in_gate; out_gate
_MOVE_POINTS = ((_U, _STATE), (2,))  # those that the final state depends on

_Tensors = Sequence["torch.Tensor | None"]


class _Convolution(_SingleLevelFunction):  # type: ignore[misc]  # torch is untyped here
    """The node of ``fftconv_states``; its first argument computes what it is the derivative of."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Any], *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        tensors, (*ctx.options, ctx.has_final) = args[:_COUNT], args[_COUNT:]
        u, *others = tensors
        ctx.shape, ctx.dtype = u.shape, u.dtype
        # The gradients of u and of the state do not depend on u, which then need not be kept.
        needs_u = any(ctx.needs_input_grad[2:_COUNT])
        keep(ctx, (u if needs_u else None, *others), tensors)
        results: tuple[torch.Tensor, torch.Tensor] = compute(*args)
        return results

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, d_final: torch.Tensor | None) -> _Tensors:
        found: _Tensors = (None,) * _COUNT
        d_final = d_final if ctx.has_final else None
        known = d_final if dy is None else dy
        if known is not None:
            u, *others = ctx.saved_tensors
            dy = known.new_zeros(ctx.shape, dtype=ctx.dtype) if dy is None else dy
            u = dy if u is None else u  # of the shape, dtype and device of u, and not read
            found = vjp_op(dy, d_final, u, *others, *ctx.options, list(ctx.needs_input_grad[1 : 1 + _COUNT]))
        return (None, *found, *(None,) * (len(ctx.options) + 1))

    @staticmethod
    @differentiable_below
    def jvp(ctx: Any, _: None, *tangents: Any) -> _Tensors:
        tensors = primals_of(ctx)
        outputs, _terms = _derivative(None, None, tensors, tangents, ctx.options, [False] * _COUNT, is_forward=True)
        y, final = outputs
        y = torch.zeros_like(tensors[_U]) if y is None else y  # forward mode wants a tangent for each output
        if final is None or not ctx.has_final:
            length = (final if final is not None else forward_op(*tensors, *ctx.options, True)[1]).shape[-1]
            shape = (*ctx.shape[:-1], length) if ctx.has_final else (0,)
            final = y.new_zeros(shape, dtype=state_dtype(ctx.dtype))
        return y, final


class _Vjp(_SingleLevelFunction):  # type: ignore[misc]
    """The node of ``fftconv_states_vjp``, likewise."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., _Tensors], *args: Any) -> _Tensors:
        tensors, (*ctx.options, ctx.wrt) = args[: 2 + _COUNT], args[2 + _COUNT :]
        keep(ctx, tensors, tensors)
        return compute(*args)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> _Tensors:
        """Differentiate the gradients of ``sum(dy * y) + sum(d_final * final)``, contracted with their cotangents.

        That contraction is the derivative of the sum along the cotangents.
        """
        dy, d_final, *tensors = ctx.saved_tensors
        needs_dy, needs_final, *needs = ctx.needs_input_grad[1 : 3 + _COUNT]
        outputs, terms = _derivative(
            dy, d_final, tensors, cotangents, ctx.options, needs, is_forward=needs_dy or needs_final
        )
        ends = [term if is_needed else None for term, is_needed in zip(outputs, (needs_dy, needs_final), strict=True)]
        return (None, *ends, *terms, *(None,) * (len(ctx.options) + 1))

    @staticmethod
    @differentiable_below
    def jvp(ctx: Any, _: None, *tangents: Any) -> _Tensors:
        dy, d_final, *tensors = primals_of(ctx)
        dy_tangent, final_tangent, *along = tangents[: 2 + _COUNT]
        _outputs, terms = _derivative(dy, d_final, tensors, along, ctx.options, ctx.wrt, is_forward=False)
        if dy_tangent is not None or final_tangent is not None:
            towards = torch.zeros_like(dy) if dy_tangent is None else dy_tangent
            terms = list(map(sum_of, terms, vjp_op(towards, final_tangent, *tensors, *ctx.options, ctx.wrt)))
        # Forward mode wants a tangent for each tensor that the operator returns.
        return tuple(
            torch.zeros_like(tensor) if is_wanted and term is None else term
            for tensor, term, is_wanted in zip(tensors, terms, ctx.wrt, strict=True)
        )


def _derivative(
    dy: torch.Tensor | None,
    d_final: torch.Tensor | None,
    tensors: _Tensors,
    along: _Tensors,
    options: Sequence[Any],
    wrt: Sequence[bool],
    is_forward: bool,
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Return derivatives along tangents of a convolution and of its gradients; None stands for zero.

    Args:
        dy: as for ``fftconv_states_vjp``; None where `wrt` asks for nothing.
        d_final: likewise.
        tensors: the arguments of the convolution.
        along: their tangents; more entries than arguments are left alone.
        options: the operators' options that both have.
        wrt: the gradients that are to be differentiated.
        is_forward: whether the outputs are.

    Returns:
        Those of output and final state, and those of the gradients in the order of `ARGUMENTS`.
    """
    outputs: list[torch.Tensor | None] = [None, None]
    terms: list[torch.Tensor | None] = [None] * _COUNT
    for replaced in _LINEAR_IN:
        if all(along[i] is None for i in replaced):
            continue
        inputs = [along[i] if i in replaced else tensor for i, tensor in enumerate(tensors)]
        for i in (_U, _K):
            if inputs[i] is None:
                inputs[i] = torch.zeros_like(tensors[i])
        moves_points = replaced in _MOVE_POINTS
        if moves_points and _STATE not in replaced:
            inputs[_STATE] = None  # what came before is no product with this gate
        if is_forward:
            y, final = forward_op(*inputs, *options, moves_points)
            outputs = [sum_of(outputs[0], y), sum_of(outputs[1], final if moves_points else None)]
        others = [is_wanted and i not in replaced and tensors[i] is not None for i, is_wanted in enumerate(wrt)]
        others[_STATE] = others[_STATE] and inputs[_STATE] is not None
        if any(others):
            found = vjp_op(dy, d_final if moves_points else None, *inputs, *options, others)
            terms = list(map(sum_of, terms, found))
    return outputs, terms


for _name, _op, _node, _mapped in (
    ("fftconv_states", forward_op, _Convolution, torch_batching.convolve_with_states),
    ("fftconv_states_vjp", vjp_op, _Vjp, torch_batching.gradients_with_states),
):
    library.impl(_name, autograd_kernel(_op, _node), "Autograd", with_keyset=True)
    torch.library.register_vmap(f"fftconv_cupy::{_name}", vmap_rule(_op, _mapped), lib=library)
