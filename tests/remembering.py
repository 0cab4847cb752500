"""A library that has not been used yet, for tests of other GPUs and of what calls leave behind."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from fftconv_cupy.remembered import Remembered


@contextlib.contextmanager
def nothing_remembered() -> Iterator[None]:
    """Within this context the library has forgotten its calls, plans, kernels and tables; after it, those of inside."""
    modules = [module for name, module in sys.modules.items() if name.startswith("fftconv_cupy.")]
    kept = [(one, dict(one)) for module in modules for one in vars(module).values() if isinstance(one, Remembered)]
    for one, _ in kept:
        one.clear()
    try:
        yield
    finally:
        for one, content in kept:
            one.clear()
            one.update(content)
