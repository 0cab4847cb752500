"""Derivatives of the two operators, of any order and in both modes, and their `vmap`.

``y`` is linear in ``u``, in each gate, and in ``k`` and ``skip`` taken together. So every derivative is a sum of
convolutions, or of their gradients, in which one of these is replaced by a tangent.

`torch.library.register_autograd` does not serve: what it makes refuses `torch.func` and has no forward mode. As torch's
own operators do, the kernels here add one node at the level of differentiation that calls them, and leave the levels
below to the dispatcher.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from fftconv_cupy import torch_batching
from fftconv_cupy.errors import InvalidTypeError
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.torch_eager import is_plain, needs_grad
from fftconv_cupy.torch_operator import (
    ARGUMENTS,
    autocast,
    compute,
    compute_vjp,
    forward_op,
    layout_of,
    library,
    vjp_op,
)

_LINEAR_IN = ((0,), (1, 4), (2,), (3,))  # u; k and skip; in_gate; out_gate
_K = 1
_COUNT = len(ARGUMENTS)

_Tensors = Sequence["torch.Tensor | None"]


def differentiable_below(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let the levels below differentiate what a node computes.

    torch runs a node without grad mode and forward mode, and under `torch.func` a level below would take from that that
    nothing is asked of it.
    """

    @functools.wraps(call)
    def wrapped(*args: Any) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is None:
            return call(*args)
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return call(*args)

    return wrapped


class _Convolution(_SingleLevelFunction):  # type: ignore[misc]  # torch is untyped here
    """The node of ``fftconv``; its first argument computes what it is the derivative of."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        (u, *others), ctx.options = args[:_COUNT], args[_COUNT:]
        ctx.seqlen = u.shape[-1]
        # The gradient of u alone does not depend on u, which then need not be kept: the filter is often frozen.
        needs_u = any(ctx.needs_input_grad[2 : 1 + _COUNT])
        keep(ctx, (u if needs_u else None, *others), args[:_COUNT])
        return compute(*args)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None) -> _Tensors:
        wrt = list(ctx.needs_input_grad[1 : 1 + _COUNT])
        gradients: _Tensors = (None,) * _COUNT
        if dy is not None:
            u, *others = ctx.saved_tensors
            if u is None:
                # Once here rather than twice below, where both would be copied for their last axis.
                dy = dy if dy.stride(-1) == 1 else dy.contiguous()
                u = dy[..., : ctx.seqlen]  # of the shape, dtype and device of u, and not read
            gradients = _gradients(dy, u, *others, *ctx.options, wrt)
        return (None, *gradients, *(None,) * len(ctx.options))

    @staticmethod
    @differentiable_below
    def jvp(ctx: Any, _: None, *tangents: Any) -> torch.Tensor | None:
        wrt = [False] * _COUNT
        return _derivative(None, primals_of(ctx), tangents, ctx.options, wrt, is_forward=True)[0]


class _Vjp(_SingleLevelFunction):  # type: ignore[misc]
    """The node of ``fftconv_vjp``, likewise."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., _Tensors], *args: Any) -> _Tensors:
        tensors, (*ctx.options, ctx.wrt) = args[: 1 + _COUNT], args[1 + _COUNT :]
        keep(ctx, tensors, tensors)
        return compute(*args)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> _Tensors:
        """Differentiate the gradients of ``sum(dy * y)``, contracted with their cotangents.

        That contraction is the derivative of the sum along the cotangents.
        """
        dy, *tensors = ctx.saved_tensors
        needs_dy, *needs = ctx.needs_input_grad[1 : 2 + _COUNT]
        terms = _derivative(dy, tensors, cotangents, ctx.options, needs, is_forward=needs_dy)
        return (None, *terms, *(None,) * (len(ctx.options) + 1))

    @staticmethod
    @differentiable_below
    def jvp(ctx: Any, _: None, dy_tangent: torch.Tensor | None, *tangents: Any) -> _Tensors:
        dy, *tensors = primals_of(ctx)
        _first, *terms = _derivative(dy, tensors, tangents, ctx.options, ctx.wrt, is_forward=False)
        if dy_tangent is not None:
            terms = list(map(sum_of, terms, vjp_op(dy_tangent, *tensors, *ctx.options, ctx.wrt)))
        return tuple(terms)


def keep(ctx: Any, for_backward: _Tensors, for_forward: _Tensors) -> None:
    """Keep tensors for the derivatives that may be asked for; one that is zero is passed to them as None."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*for_backward)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*for_forward)


def primals_of(ctx: Any) -> list[torch.Tensor | None]:
    """Return the tensors kept for forward mode without their tangents, which are no part of the derivative."""
    return [None if tensor is None else forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors]


def _derivative(
    dy: torch.Tensor | None,
    tensors: _Tensors,
    along: _Tensors,
    options: Sequence[Any],
    wrt: Sequence[bool],
    is_forward: bool,
) -> list[torch.Tensor | None]:
    """Return derivatives along tangents of a convolution and of its gradients; None stands for zero.

    Args:
        dy: as for ``fftconv_vjp``; None where `wrt` asks for nothing.
        tensors: the arguments of the convolution.
        along: their tangents; more entries than arguments are left alone.
        options: mode, fft_size, precision, intermediate and layout.
        wrt: the gradients that are to be differentiated.
        is_forward: whether the output is.

    Returns:
        That of the output, and those of the gradients in the order of `ARGUMENTS`.
    """
    terms: list[torch.Tensor | None] = [None] * (1 + _COUNT)
    for replaced in _LINEAR_IN:
        if all(along[i] is None for i in replaced):
            continue
        inputs = [along[i] if i in replaced else tensor for i, tensor in enumerate(tensors)]
        if inputs[_K] is None:
            inputs[_K] = torch.zeros_like(tensors[_K])
        if is_forward:
            terms[0] = sum_of(terms[0], forward_op(*inputs, *options))
        others = [is_wanted and i not in replaced for i, is_wanted in enumerate(wrt)]
        if any(others):
            terms[1:] = map(sum_of, terms[1:], vjp_op(dy, *inputs, *options, others))
    return terms


def sum_of(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    """Return the sum; None stands for zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _redispatch(op: Any, keyset: Any, *args: Any) -> Any:
    """Call the kernels below those of autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


_below = differentiable_below(_redispatch)


def autograd_kernel(op: Any, node: Any) -> Callable[..., Any]:
    """Return the kernel that puts `node` above the others of `op`, where a derivative may be asked for."""

    def kernel(keyset: Any, *args: Any) -> Any:
        is_followed = torch._C.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if is_followed or forward_ad._current_level >= 0:
            with enable_single_level_autograd_function():
                return node.apply(functools.partial(_below, op, keyset), *args)
        return _redispatch(op, keyset, *args)

    return kernel


def convolve(args: Sequence[Any], prepared: FilterSpectrum | None) -> torch.Tensor | None:
    """Compute the operator ``fftconv`` without the dispatcher, for plain tensors (see `torch_eager`).

    Args:
        args: the operator's arguments but the layout.
        prepared: the prepared filter that the second one stands for, or None.

    Returns:
        The output; None where a tensor has no memory to read, with which the dispatcher may know what to do.
    """
    call: Callable[..., torch.Tensor] = compute
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(kind := args[0].device.type):
        args = autocast(*args, dtype=torch.get_autocast_dtype(kind))
    try:
        if needs_grad(*args[:_COUNT]):
            call = call if prepared is None else functools.partial(call, prepared=prepared)
            y: torch.Tensor = _Convolution.apply(call, *args, None if prepared is None else layout_of(prepared))
            return y
        return call(*args, None, prepared)
    except InvalidTypeError:
        return None


def _gradients(*args: Any) -> _Tensors:
    """Compute the operator ``fftconv_vjp``, without the dispatcher where that will do."""
    if not torch._C.is_grad_enabled() and is_plain(*args[: 1 + _COUNT]):
        try:
            gradients: _Tensors = compute_vjp(*args)
            return gradients
        except InvalidTypeError:  # a tensor has no memory to read: the dispatcher may know what to do
            pass
    gradients = vjp_op(*args)
    return gradients


def vmap_rule(op: Any, mapped: Callable[..., Any]) -> Callable[..., Any]:
    """Return the rule that maps `op` by `mapped`: see `torch_batching`."""
    return lambda info, in_dims, *args: mapped(op, info.batch_size, in_dims, *args)


library.impl("fftconv", autograd_kernel(forward_op, _Convolution), "Autograd", with_keyset=True)
library.impl("fftconv_vjp", autograd_kernel(vjp_op, _Vjp), "Autograd", with_keyset=True)
torch.library.register_vmap("fftconv_cupy::fftconv", vmap_rule(forward_op, torch_batching.convolve), lib=library)
torch.library.register_vmap("fftconv_cupy::fftconv_vjp", vmap_rule(vjp_op, torch_batching.gradients_of), lib=library)
