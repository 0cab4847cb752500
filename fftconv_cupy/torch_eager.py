"""Which calls may leave out torch's dispatcher: eager ones that nothing but autograd looks at.

The dispatcher comes back into Python for each kind of kernel, autograd's and the one that computes, and that takes
longer than all else in a small call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})
_C = torch._C


def is_plain(*tensors: Any) -> bool:
    """Return whether these are plain tensors, or None, and nothing would see an operator that takes them.

    What would: a compilation, `torch.func`, forward mode, a mode of torch's (fake tensors, counters), a trace, a
    profiler. Autocast is left to the caller.
    """
    return _PLAIN_TYPES.issuperset(map(type, tensors)) and not torch.compiler.is_compiling() and not _is_seen()


def _is_seen() -> bool:
    return (
        _C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _C._len_torch_dispatch_stack() > 0
        or _C._len_torch_function_stack() > 0
        or _C._get_tracing_state() is not None
        or _C._autograd._profiler_enabled()
    )
