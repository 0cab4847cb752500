"""`fftconv` as a torch operator, with gradients, and the module that takes FlashFFTConv's place; depthwise ones too.

It works under autograd of any order, `torch.compile`, `torch.func`, autocast, activation checkpointing and CUDA graphs.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from fftconv_cupy import torch_states, torch_states_derivatives  # noqa: F401 - the latter registers them
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.problem import check_int, check_intermediate, check_mode, check_precision
from fftconv_cupy.torch_depthwise import (
    FlashDepthWiseConv1d,
    FlashDepthwiseConv1d,
    depthwise_conv1d,
    depthwise_conv1d_update,
)
from fftconv_cupy.torch_derivatives import convolve
from fftconv_cupy.torch_eager import is_plain
from fftconv_cupy.torch_operator import ARGUMENTS, carrier_of, forward_op, layout_of

__all__ = [
    "FlashDepthWiseConv1d",
    "FlashDepthwiseConv1d",
    "FlashFFTConv",
    "depthwise_conv1d",
    "depthwise_conv1d_update",
    "fftconv",
]

# FlashFFTConv keeps its transforms' constants in buffers, and so in its state dicts; nothing is learnt in them.
_CONSTANTS = ("f_", "twiddle_factors_", "twid")


def fftconv(
    u: torch.Tensor,
    k: torch.Tensor | FilterSpectrum,
    *,
    mode: str = "causal",
    fft_size: int | None = None,
    in_gate: torch.Tensor | None = None,
    out_gate: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
    precision: str | None = None,
    intermediate: str | None = None,
    initial_state: torch.Tensor | None = None,
    return_final_state: bool = False,
) -> Any:
    """Convolve the rows of `u` with the filter `k`: ``out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))``.

    As `fftconv_cupy.fftconv`, and differentiable in every tensor: once or more, backward and forward, of what needs a
    gradient and nothing else. `fftconv_cupy.fftconv` comes here by itself with tensors that require grad; under
    `torch.compile` call this one. Memory comes from torch's allocator, on its current stream.

    Under autocast `u` and the gates are cast to its dtype, while `k` and a float32 `skip` keep theirs: filters are best
    left in float32, and their gradients are summed in it. For activation checkpointing or a second derivative nothing
    special is to be done.

    Args:
        u: (B, H, L), (H, L) or (L,), on the CPU or a CUDA GPU, with any strides.
        k: (H, K), or (K,) for all channels, of any dtype whatever that of `u`; or the result of
            `fftconv_cupy.prepare_filter`, which gets no gradient. To compile a call on a GPU, prepare it from a tensor.
        mode: "causal", "full", "same" or "circular".
        fft_size: as for `fftconv_cupy.fftconv`.
        in_gate: shape and dtype of `u`.
        out_gate: shape of the output, dtype of `u`.
        skip: (H,), float32 or of the dtype of `u`.
        precision: as for `fftconv_cupy.fftconv`.
        intermediate: as for `fftconv_cupy.fftconv`.
        initial_state: (B, H, K - 1) float32 (float64 where `u` is), with as many axes as `u`: what came before the
            rows, as for `fftconv_cupy.fftconv`. Only in mode "causal".
        return_final_state: also return the state after the rows.

    Returns:
        The output, a new contiguous tensor of the dtype of `u`, with its shape, or L + K - 1 points in mode "full".
        With `return_final_state`, a pair of it and the final state.

    Raises:
        InvalidTypeError, InvalidArgumentError, UnsupportedProblemError, MissingDependencyError,
        UnsupportedDeviceError, CompileError: as for `fftconv_cupy.fftconv`.

    Example:
        >>> import torch
        >>> k = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        >>> fftconv(torch.ones(1, 4), k).sum().backward()
        >>> k.grad
        tensor([4., 3., 2.])
    """
    prepared = k if isinstance(k, FilterSpectrum) else None
    tensors = (u, k if prepared is None else carrier_of(prepared), in_gate, out_gate, skip)
    options = (mode, fft_size, precision, intermediate)
    has_states = initial_state is not None or return_final_state
    if not has_states and is_plain(*tensors):
        known = convolve((*tensors, *options), prepared)
        if known is not None:
            return known
    layout = None if prepared is None else layout_of(prepared)
    if has_states:
        return _with_states((*tensors, initial_state), (*options, layout), bool(return_final_state))
    y: torch.Tensor = forward_op(*_operands(ARGUMENTS, tensors, (*options, layout)))
    return y


def _with_states(tensors: tuple[Any, ...], options: tuple[Any, ...], return_final_state: bool) -> Any:
    """Return the output of a call with states, and with it the final one where it is wanted."""
    y, final_state = torch_states.forward_op(*_operands(torch_states.ARGUMENTS, tensors, options), return_final_state)
    return (y, final_state) if return_final_state else y


def _operands(names: tuple[str, ...], tensors: tuple[Any, ...], options: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of an operator for those of a call, or refuse what no operator takes."""
    mode, fft_size, precision, intermediate, layout = options
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, torch.Tensor) and (tensor is not None or name in ("u", "k")):
            _refuse_object(name, tensor, "a torch tensor" + (", or a prepared filter" if name == "k" else ""))
    if not isinstance(mode, str):
        check_mode(mode)
    if not (fft_size is None or isinstance(fft_size, (int, torch.SymInt))):
        fft_size = check_int(fft_size, "fft_size", minimum=2)
    return (*tensors, mode, fft_size, check_precision(precision), check_intermediate(intermediate), layout)


class FlashFFTConv(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The circular convolution of `seqlen` points of each row, padded with zeros to `seqlen`.

    A row of L = seqlen / 2 points and as many taps give the causal convolution; a filter of `seqlen` taps, of which the
    second half are those of negative lags, gives the bidirectional one.

    Takes the place of ``flashfftconv.FlashFFTConv``: change the import. It has no parameters and no buffers; a state
    dict that FlashFFTConv has saved loads, its constants left aside. Any `seqlen`, L <= `seqlen`, number of channels,
    strides and floating-point dtype will do, the filter may be of any floating-point dtype, eval mode is as good as
    training, and gates may be given one without the other.

    Args:
        seqlen: N, points of the circular convolution.
        dtype: kept as an attribute; the output has the dtype of the input, whichever that is.
        use_32_butterfly: of no effect.
        precision: as for `fftconv_cupy.fftconv`.
        intermediate: as for `fftconv_cupy.fftconv`.

    Raises:
        InvalidTypeError: `seqlen` is not an int, `dtype` no dtype, or `precision` or `intermediate` no string.
        InvalidArgumentError: `seqlen` is less than 1, or `precision` or `intermediate` is not known.
    """

    def __init__(
        self,
        seqlen: int,
        dtype: torch.dtype = torch.float16,
        use_32_butterfly: bool = True,
        *,
        precision: str | None = None,
        intermediate: str | None = None,
    ) -> None:
        super().__init__()
        self.seqlen = check_int(seqlen, "seqlen", minimum=1)
        if not isinstance(dtype, torch.dtype):
            got = f"{dtype!r} of type {type(dtype).__name__}"
            raise InvalidTypeError(
                message("dtype", got=got, allowed="a torch.dtype", do="Pass one such as torch.bfloat16.")
            )
        self.dtype = dtype
        self.use_32_butterfly = use_32_butterfly
        self.precision = check_precision(precision)
        self.intermediate = check_intermediate(intermediate)

    def forward(
        self,
        u: torch.Tensor,
        k: torch.Tensor,
        in_gate: torch.Tensor | None = None,
        out_gate: torch.Tensor | None = None,
        *,
        pregate: torch.Tensor | None = None,
        postgate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ``out_gate * conv(in_gate * u, k)``.

        Args:
            u: (B, H, L), (H, L) or (L,) with L <= `seqlen`.
            k: (H, K), or (K,) for all channels, with K <= `seqlen`.
            in_gate: shape and dtype of `u`.
            out_gate: likewise.
            pregate: another name of `in_gate`.
            postgate: another name of `out_gate`.

        Raises:
            InvalidArgumentError: a row or a filter is longer than `seqlen`, or a gate is given under both its names.
            InvalidTypeError, and others: as for `fftconv_cupy.torch.fftconv`.
        """
        options: dict[str, Any] = {
            "in_gate": _either("in_gate", in_gate, "pregate", pregate),
            "out_gate": _either("out_gate", out_gate, "postgate", postgate),
            "precision": self.precision,
            "intermediate": self.intermediate,
        }
        for name, tensor in (("u", u), ("k", k)):
            if not isinstance(tensor, torch.Tensor):
                _refuse_object(name, tensor, "a torch tensor")
        if not (u.ndim and k.ndim):
            return fftconv(u, k, **options)  # says what is wrong
        points, taps, size = u.shape[-1], k.shape[-1], self.seqlen
        for name, length in (("u", points), ("k", taps)):
            if length > size:
                _refuse_length(name, length, size)
        if points + taps - 1 <= size:  # nothing wraps: a linear transform does, and is cheaper
            return fftconv(u, k, **options)
        if points == size:
            return fftconv(u, k, mode="circular", **options)
        if size & (size - 1) == 0:
            return fftconv(u, k, mode="circular", fft_size=size, **options)
        return fftconv(u, _lags(k, points, size), mode="same", **options)

    def extra_repr(self) -> str:
        """Return what the module was made with."""
        asked = {"precision": self.precision, "intermediate": self.intermediate}
        rest = "".join(f", {name}={value!r}" for name, value in asked.items() if value is not None)
        return f"{self.seqlen}, dtype={self.dtype}{rest}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = {key: value for key, value in state_dict.items() if not key.removeprefix(prefix).startswith(_CONSTANTS)}
        super()._load_from_state_dict(own, prefix, *args)


def _lags(k: torch.Tensor, points: int, size: int) -> torch.Tensor:
    """Return the taps of the lags 1 - L .. L - 1 between points of a row, in this order; lag d has tap d modulo N."""
    taps = k.shape[-1]
    behind = torch.nn.functional.pad(k[..., size - points + 1 :], (0, size - taps))
    ahead = torch.nn.functional.pad(k[..., :points], (0, max(0, points - taps)))
    return torch.cat((behind, ahead), dim=-1)


def _either(name: str, gate: torch.Tensor | None, other_name: str, other: torch.Tensor | None) -> torch.Tensor | None:
    if gate is not None and other is not None:
        raise InvalidArgumentError(
            message(
                name,
                got=f"{name} and {other_name}",
                allowed=f"one of them: {other_name} is another name of {name}",
                do=f"Leave {other_name} out.",
            )
        )
    return other if gate is None else gate


def _refuse_length(name: str, length: int, size: int) -> NoReturn:
    raise InvalidArgumentError(
        message(
            f"{name}.shape",
            got=f"{length} points along the last axis",
            allowed=f"at most seqlen = {size}",
            do=f"Cut {name}, or make the module for {length} points or more.",
        )
    )


def _refuse_object(name: str, got: object, allowed: str) -> NoReturn:
    raise InvalidTypeError(
        message(
            name,
            got=f"an object of type {type(got).__module__}.{type(got).__qualname__}",
            allowed=allowed,
            do="Pass tensors; fftconv_cupy.fftconv takes the arrays of other frameworks, and prepared filters.",
        )
    )
