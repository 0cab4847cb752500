"""Hands calls with tensors that torch differentiates to its operator: read here, they would lose their gradient."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from fftconv_cupy.errors import InvalidArgumentError, message


def is_differentiated(array: Any) -> bool:
    """Return whether torch follows what is done with `array`.

    That is a tensor that requires grad in grad mode, has a tangent in forward mode, or is wrapped by `torch.func`.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return False
    if (array.requires_grad and torch.is_grad_enabled()) or torch._C._functorch.is_functorch_wrapped_tensor(array):
        return True
    forward_ad = torch.autograd.forward_ad
    is_forward = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
    return is_forward and forward_ad.unpack_dual(array).tangent is not None


def by_operator(*arrays: Any, out: Any, stream: Any, **options: Any) -> Any:
    """Call `fftconv_cupy.torch.fftconv`.

    Args:
        *arrays: u and k.
        out: must be None.
        stream: must be None.
        **options: the other arguments.

    Raises:
        InvalidArgumentError: `out` or `stream` is given, which torch's operators do not take.
    """
    for name, value, do in (
        ("out", out, "Leave out away and use the returned tensor"),
        ("stream", stream, "Call it in a block of torch.cuda.stream"),
    ):
        if value is not None:
            raise InvalidArgumentError(
                message(
                    name,
                    got=f"{name} with a tensor that torch differentiates",
                    allowed="None there",
                    do=f"{do}, or call it under torch.no_grad().",
                )
            )
    # The one import of a higher layer, by name: the operator calls fftconv in its turn.
    return importlib.import_module("fftconv_cupy.torch").fftconv(*arrays, **options)
