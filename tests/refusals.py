"""What the tests of wrong calls share: nothing may be computed, and the message says what was got and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from frameworks import allocated, cupy_on_host

from fftconv_cupy import execute, numpy_backend


class NoLauncher:
    """Stands for `gpu`; nothing may be asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"launch.{name} was used")


def forbid_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "_launch", NoLauncher())

    def compute(*_: Any) -> None:
        raise AssertionError("the backend was called")

    monkeypatch.setattr(numpy_backend, "convolve", compute)
    monkeypatch.setattr(numpy_backend, "vjp", compute)


def check_names(bad_calls: Sequence[Any], least: int) -> None:
    names = [bad.name for bad in bad_calls]
    assert len(names) >= least
    assert len(set(names)) == len(names)


def check_refused(bad: Any) -> None:
    with cupy_on_host() if bad.framework == "cupy" or "cupy" in bad.name else allocated("numpy"):
        parts = bad.message()
    assert parts is not None
    assert parts["what"].startswith(bad.what)
    assert bad.got in parts["got"]
    assert bad.do in parts["do"]
    assert parts["allowed"]
