"""Derivatives of the depthwise operators, of any order and in both modes, and their `vmap`: see `torch_derivatives`.

Before the activation the output z is linear in ``x`` and the state, and in ``weight`` and ``bias``. So each derivative
is a convolution, or gradients of one, without activation, in which some of these are replaced by tangents and dy is
multiplied by a derivative of the activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import _SingleLevelFunction

from fftconv_cupy import torch_depthwise_batching
from fftconv_cupy.torch_depthwise_operator import forward_op, vjp_op
from fftconv_cupy.torch_derivatives import (
    autograd_kernel,
    differentiable_below,
    keep,
    primals_of,
    sum_of,
    vmap_rule,
)
from fftconv_cupy.torch_operator import library

_Tensors = Sequence["torch.Tensor | None"]
_COUNT = 5  # tensors of the convolution


class _Call(NamedTuple):
    """The arguments of a convolution."""

    x: Any
    weight: Any
    bias: Any
    seq_idx: Any
    initial_state: Any
    padding: str
    activation: str | None
    layout: str

    def outputs(self) -> torch.Tensor:
        """Return the outputs before the activation."""
        y: torch.Tensor = forward_op(*self._replace(activation=None), False)[0]
        return y

    def gradients(self, dz: torch.Tensor, wrt: Sequence[bool]) -> _Tensors:
        """Return the gradients of the convolution without its activation; None where they are not wanted."""
        if not any(wrt):
            return (None,) * 4
        found: _Tensors = vjp_op(dz, None, *self._replace(activation=None), list(wrt))
        return found

    def along(self, x: Any, weight: Any, bias: Any, initial_state: Any) -> torch.Tensor | None:
        """Return the derivative of `outputs` along tangents; None stands for zero, in and out."""
        term = None
        if x is not None or initial_state is not None:
            tangent = torch.zeros_like(self.x) if x is None else x
            term = self._replace(x=tangent, bias=None, initial_state=initial_state).outputs()
        if weight is not None or bias is not None:
            taps = torch.zeros_like(self.weight) if weight is None else weight
            term = sum_of(term, self._replace(weight=taps, bias=bias).outputs())
        return term

    def final_state_along(self, x: Any, initial_state: Any) -> torch.Tensor | None:
        """Return the derivative of the final state."""
        if x is None and initial_state is None:
            return None
        rows = torch.zeros_like(self.x) if x is None else x
        rows = rows if self.layout == "BHL" else rows.transpose(1, 2)
        kept = self.weight.shape[-1] - 1
        before = rows.new_zeros(*rows.shape[:2], kept) if initial_state is None else initial_state
        points = torch.cat((before, rows), dim=-1)
        return points[..., points.shape[-1] - kept :]

    def gradients_along(
        self, dy: torch.Tensor, tangents: _Tensors, wrt: Sequence[bool]
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """Return the derivatives of the output, activated, and of the gradients, along tangents of the arguments.

        Args:
            dy: the gradient of the output.
            tangents: of x, weight, bias and initial_state.
            wrt: the gradients that are to be differentiated.
        """
        x, weight, _, state = tangents
        change, terms, dz = self.along(*tangents), [None] * 4, dy
        if self.activation is not None:
            slope, curvature = _silu_derivatives(self.outputs())
            if change is not None:
                terms = list(self.gradients((dy * curvature * change).to(dy.dtype), wrt))
                change = (slope * change).to(dy.dtype)
            dz = (dy * slope).to(dy.dtype)
        if weight is not None:
            wanted = [wrt[0], False, False, wrt[3]]
            terms = list(map(sum_of, terms, self._replace(weight=weight, bias=None).gradients(dz, wanted)))
        if x is not None or state is not None:
            rows = torch.zeros_like(self.x) if x is None else x
            moved = self._replace(x=rows, bias=None, initial_state=state)
            terms = list(map(sum_of, terms, moved.gradients(dz, [False, wrt[1], False, False])))
        return change, terms


def _call_of(tensors: Sequence[Any], options: Sequence[Any]) -> _Call:
    return _Call(*tensors, *options)


def _silu_derivatives(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and second derivative of ``z * sigmoid(z)``, in float32 or better."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    s = z.sigmoid()
    return s * (1 + z * (1 - s)), s * (1 - s) * (2 + z * (1 - 2 * s))


class _Convolution(_SingleLevelFunction):  # type: ignore[misc]  # torch is untyped here
    """The node of ``depthwise_conv1d``; its first argument computes what it is the derivative of."""

    @staticmethod
    def forward(ctx: Any, compute: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, *others = args[:_COUNT]
        *ctx.options, ctx.with_state = args[_COUNT:]
        _, needs_weight, *_ = ctx.needs_input_grad[1:]
        # Without activation the gradient of x does not depend on x, which then need not be kept.
        is_kept = needs_weight or ctx.options[1] is not None
        ctx.x_shape = x.shape
        y: tuple[torch.Tensor, torch.Tensor] = compute(*args)
        ctx.y_shape = y[0].shape
        keep(ctx, (x if is_kept else None, *others), args[:_COUNT])
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, d_final_state: torch.Tensor | None) -> _Tensors:
        needs = ctx.needs_input_grad[1 : 1 + _COUNT]
        found: _Tensors = (None,) * 4
        known = d_final_state if dy is None else dy
        if known is not None:
            x, *others = ctx.saved_tensors
            dy = known.new_zeros(ctx.y_shape) if dy is None else dy
            x = known.new_empty(ctx.x_shape) if x is None else x  # of the shape and dtype of x, and not read
            d_final = d_final_state if ctx.with_state else None
            found = vjp_op(dy, d_final, x, *others, *ctx.options, [*needs[:3], needs[4]])
        *rows, d_state = found
        return (None, *rows, None, d_state, None, None, None, None)

    @staticmethod
    @differentiable_below
    def jvp(ctx: Any, _: None, *tangents: Any) -> _Tensors:
        x, weight, bias, _seq_idx, state = tangents[:_COUNT]
        call = _call_of(primals_of(ctx), ctx.options)
        change = call.along(x, weight, bias, state)
        if change is None:
            change = call.x.new_zeros(ctx.y_shape)
        elif call.activation is not None:
            change = (_silu_derivatives(call.outputs())[0] * change).to(change.dtype)
        if not ctx.with_state:
            return change, change.new_zeros(0)
        final_state = call.final_state_along(x, state)
        if final_state is None:
            batch, channels = change.shape[0], call.weight.shape[0]
            final_state = change.new_zeros(batch, channels, call.weight.shape[1] - 1)
        return change, final_state


class _Vjp(_SingleLevelFunction):  # type: ignore[misc]
    """The node of ``depthwise_conv1d_vjp``, likewise."""

    @staticmethod
    def forward(ctx: Any, compute: Any, *args: Any) -> _Tensors:
        tensors = args[: 2 + _COUNT]
        *ctx.options, ctx.wrt = args[2 + _COUNT :]
        keep(ctx, tensors, tensors)
        found: _Tensors = compute(*args)
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> _Tensors:
        """Differentiate the gradients of ``sum(dy * y)``, contracted with their cotangents.

        That contraction is the derivative of the sum along the cotangents.
        """
        dy, _, *tensors = ctx.saved_tensors
        needs_dy, needs_final, *needs = ctx.needs_input_grad[1 : 3 + _COUNT]
        call = _call_of(tensors, ctx.options)
        change, terms = call.gradients_along(dy, cotangents, [*needs[:3], needs[4]])
        d_final = call.final_state_along(cotangents[0], cotangents[3]) if needs_final else None
        *rows, d_state = terms
        return (None, change if needs_dy else None, d_final, *rows, None, d_state, None, None, None, None)

    @staticmethod
    @differentiable_below
    def jvp(ctx: Any, _: None, *tangents: Any) -> _Tensors:
        dy, _final, *tensors = primals_of(ctx)
        dy_tangent, final_tangent, x, weight, bias, _seq_idx, state = tangents[: 2 + _COUNT]
        call = _call_of(tensors, ctx.options)
        _change, terms = call.gradients_along(dy, (x, weight, bias, state), ctx.wrt)
        if dy_tangent is not None or final_tangent is not None:
            towards = torch.zeros_like(dy) if dy_tangent is None else dy_tangent
            terms = list(map(sum_of, terms, vjp_op(towards, final_tangent, *call, ctx.wrt)))
        arguments = (call.x, call.weight, call.bias, call.initial_state)
        # Forward mode wants a tangent for each tensor that the operator returns.
        return tuple(
            torch.zeros_like(argument) if is_wanted and term is None else term
            for argument, term, is_wanted in zip(arguments, terms, ctx.wrt, strict=True)
        )


for _name, _op, _node, _mapped in (
    ("depthwise_conv1d", forward_op, _Convolution, torch_depthwise_batching.convolve),
    ("depthwise_conv1d_vjp", vjp_op, _Vjp, torch_depthwise_batching.gradients_of),
):
    library.impl(_name, autograd_kernel(_op, _node), "Autograd", with_keyset=True)
    torch.library.register_vmap(f"fftconv_cupy::{_name}", vmap_rule(_op, _mapped), lib=library)
