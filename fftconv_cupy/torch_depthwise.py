"""Short depthwise convolutions as torch operators, and the module that takes FlashDepthWiseConv1d's place."""

from __future__ import annotations

from typing import Any

import torch

from fftconv_cupy import torch_depthwise_derivatives  # noqa: F401 - registers them
from fftconv_cupy.depthwise_problem import MAX_WIDTH, check_activation, check_layout, check_padding
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.problem import check_int
from fftconv_cupy.torch_depthwise_operator import forward_op, padding_name, update_op


def depthwise_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    padding: str | int = "causal",
    activation: str | None = None,
    layout: str = "BHL",
    seq_idx: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    return_final_state: bool = False,
) -> Any:
    """Correlate each channel of `x` with its few taps, as `fftconv_cupy.depthwise_conv1d` does.

    Differentiable in every tensor but `seq_idx`: once or more, backward and forward, of what needs a gradient and
    nothing else. `fftconv_cupy.depthwise_conv1d` comes here by itself with tensors that require grad; under
    `torch.compile` call this one. Memory comes from torch's allocator, on its current stream.

    Under autocast `x` and the state are cast to its dtype, while `weight` and `bias` keep theirs, and their gradients
    are summed in float32.

    Args:
        x: (B, D, L), or (B, L, D) where `layout` is "BLH", on the CPU or a CUDA GPU.
        weight: (D, K), of any dtype whatever that of `x`.
        bias: (D,), likewise.
        padding: as for `fftconv_cupy.depthwise_conv1d`, as are all that follow.
        activation: None or "silu".
        layout: "BHL" or "BLH".
        seq_idx: (B, L) int32.
        initial_state: (B, D, K - 1), of the dtype of `x`.
        return_final_state: return the last K - 1 points as well.

    Returns:
        The output; with `return_final_state` a pair of it and the final state.

    Raises:
        InvalidTypeError, InvalidArgumentError, MissingDependencyError, UnsupportedDeviceError, CompileError: as for
            `fftconv_cupy.depthwise_conv1d`.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
        >>> depthwise_conv1d(torch.ones(1, 1, 4), weight).sum().backward()
        >>> weight.grad
        tensor([[2., 3., 4.]])
    """
    _check_tensors(x=x, weight=weight)
    _check_tensors(bias=bias, seq_idx=seq_idx, initial_state=initial_state)
    padding = int(padding) if isinstance(padding, torch.SymInt) else check_padding(padding)
    if not isinstance(return_final_state, bool):
        got = f"{return_final_state!r} of type {type(return_final_state).__name__}"
        do = "Pass one of these."
        raise InvalidTypeError(message("return_final_state", got=got, allowed="True or False", do=do))
    options = (padding_name(padding), check_activation(activation), check_layout(layout), return_final_state)
    y, final_state = forward_op(x, weight, bias, seq_idx, initial_state, *options)
    return (y, final_state) if return_final_state else y


def depthwise_conv1d_update(
    x: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take one or a few steps of a causal convolution, in place on its state, also under `torch.compile`.

    As `fftconv_cupy.depthwise_conv1d_update`. It has no gradient: under grad mode tensors that require it are refused.
    Under autocast `x` is cast to the dtype of `state`.

    Args:
        x: (B, D) or (B, D, S).
        state: (B, D, W), written in place.
        weight: (D, K).
        bias: (D,) or None.
        activation: None or "silu".
        cache_seqlens: (B,) int32.
        conv_state_indices: (B,) int32.

    Returns:
        The outputs, a new contiguous tensor of the shape and dtype of `x`.

    Raises:
        InvalidTypeError, InvalidArgumentError, MissingDependencyError, UnsupportedDeviceError, CompileError: as for
            `fftconv_cupy.depthwise_conv1d_update`.
    """
    _check_tensors(x=x, state=state, weight=weight)
    _check_tensors(bias=bias, cache_seqlens=cache_seqlens, conv_state_indices=conv_state_indices)
    activation = check_activation(activation)
    y: torch.Tensor = update_op(x, state, weight, bias, cache_seqlens, conv_state_indices, activation)
    return y


class FlashDepthWiseConv1d(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A depthwise convolution with parameters: ``torch.nn.Conv1d(channels, channels, kernel_size, groups=channels)``.

    Takes the place of ``flashfftconv.FlashDepthWiseConv1d``: change the import. Any width up to 128, even ones too, any
    number of channels and points, any strides; `input`, weights and bias may differ in dtype. Its parameters are
    `weights`, (D, K), and `bias`; a state dict that has them, or those of a `torch.nn.Conv1d` by their names and
    shapes, loads. Gradients of bfloat16, and those of any padding, are right, and autocast casts the input alone.

    Args:
        channels: D.
        kernel_size: K.
        padding: points of zeros on both sides, for L + 2 p - K + 1 outputs; or "same", or "causal", for L outputs.
        weights: (D, 1, K), as of `torch.nn.Conv1d`, or (D, K); copied.
        bias: (D,), copied; or None for none.
        is_bhl: the input is (B, D, L); else (B, L, D).
        device: of the parameters; None leaves them where `weights` and `bias` are.
        dtype: of the parameters; None leaves theirs.

    Raises:
        InvalidTypeError: a number that is no int, weights or bias that are no tensors, a `dtype` that is none.
        InvalidArgumentError: a number out of range, or weights or bias of another shape.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        padding: int | str,
        weights: torch.Tensor,
        bias: torch.Tensor | None,
        is_bhl: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d = check_int(channels, "channels", minimum=1)
        self.k = check_int(kernel_size, "kernel_size", minimum=1)
        if self.k > MAX_WIDTH:
            do = "Use FlashFFTConv for longer filters."
            raise InvalidArgumentError(message("kernel_size", got=self.k, allowed=f"from 1 to {MAX_WIDTH}", do=do))
        self.padding = check_padding(padding)
        self.is_bhl = bool(is_bhl)
        _check_tensors(weights=weights)
        if not isinstance(bias, torch.Tensor) and bias is not None:
            _check_tensors(bias=bias)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            got = f"{dtype!r} of type {type(dtype).__name__}"
            raise InvalidTypeError(
                message("dtype", got=got, allowed="a torch.dtype", do="Pass one such as torch.bfloat16.")
            )
        taps = _as_taps(weights, self.d, self.k)
        if taps is None or (bias is not None and bias.shape != (self.d,)):
            name, given = ("weights", weights) if taps is None else ("bias", bias)
            shape = f"({self.d}, 1, {self.k}) or ({self.d}, {self.k})" if taps is None else f"({self.d},)"
            got, do = f"{tuple(torch.Tensor.size(given))}", f"Pass {name} of that shape."
            raise InvalidArgumentError(message(f"{name}.shape", got=got, allowed=shape, do=do))
        self.weights = _parameter(taps, device, dtype)
        self.bias = None if bias is None else _parameter(bias, device, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of `input`, (B, D, L) or (B, L, D), in its dtype.

        Raises:
            InvalidTypeError, InvalidArgumentError, and others: as for `fftconv_cupy.torch.depthwise_conv1d`.
        """
        layout = "BHL" if self.is_bhl else "BLH"
        y: torch.Tensor = depthwise_conv1d(input, self.weights, self.bias, padding=self.padding, layout=layout)
        return y

    def extra_repr(self) -> str:
        """Return what the module was made with."""
        bias = "" if self.bias is not None else ", bias=None"
        return f"{self.d}, {self.k}, padding={self.padding!r}, is_bhl={self.is_bhl}{bias}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = dict(state_dict)
        if f"{prefix}weights" not in own and f"{prefix}weight" in own:
            own[f"{prefix}weights"] = own.pop(f"{prefix}weight")
        saved = own.get(f"{prefix}weights")
        if isinstance(saved, torch.Tensor):
            taps = _as_taps(saved, self.d, self.k)
            if taps is None and saved.shape == (self.k, self.d):  # as FlashFFTConv keeps them for (B, L, D)
                taps = saved.T
            own[f"{prefix}weights"] = saved if taps is None else taps
        super()._load_from_state_dict(own, prefix, *args)


FlashDepthwiseConv1d = FlashDepthWiseConv1d
"""The name that FlashFFTConv's README has."""


def _as_taps(weights: torch.Tensor, channels: int, width: int) -> torch.Tensor | None:
    """Return weights as (D, K), or None where they have neither of the shapes."""
    if weights.shape == (channels, 1, width):
        return weights.squeeze(1)
    return weights if weights.shape == (channels, width) else None


def _parameter(tensor: torch.Tensor, device: Any, dtype: torch.dtype | None) -> torch.nn.Parameter:
    copy = tensor.detach().to(device=device, dtype=dtype, copy=True)
    return torch.nn.Parameter(copy.contiguous())


def _check_tensors(**tensors: object) -> None:
    for name, tensor in tensors.items():
        is_optional = name not in ("x", "weight", "weights", "state")
        if not isinstance(tensor, torch.Tensor) and not (tensor is None and is_optional):
            raise InvalidTypeError(
                message(
                    name,
                    got=f"an object of type {type(tensor).__module__}.{type(tensor).__qualname__}",
                    allowed="a torch tensor",
                    do="Pass tensors; the functions of fftconv_cupy take the arrays of other frameworks.",
                )
            )
