"""Which calls may leave out torch's dispatcher: eager ones that nothing but autograd looks at.

The dispatcher comes back into Python for each kind of kernel, autograd's and the one that computes, and that takes
longer than all else in a small call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})
# Looked up once: the names take as long as the answers.
_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch._C.is_grad_enabled
_interpreter = torch._C._functorch.peek_interpreter_stack
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_trace, _has_profiler = torch._C._get_tracing_state, torch._C._autograd._profiler_enabled


def is_plain(*tensors: Any) -> bool:
    """Return whether these are plain tensors, or None, and nothing would see an operator that takes them.

    What would: a compilation, `torch.func`, forward mode, a mode of torch's (fake tensors, counters), a trace, a
    profiler. Autocast is left to the caller.
    """
    for tensor in tensors:  # a third faster than a set of their types
        if type(tensor) not in _PLAIN_TYPES:
            return False
    return not _is_compiling() and not _is_seen()


def needs_grad(*tensors: Any) -> bool:
    """Return whether grad mode is on and one of these tensors, or None, requires grad."""
    if not _is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110  # any() takes longer, and torch's own question to its dispatcher too
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def _is_seen() -> bool:
    return (
        _interpreter() is not None
        or forward_ad._current_level >= 0
        or _dispatch_modes() > 0
        or _function_modes() > 0
        or _trace() is not None
        or _has_profiler()
    )
