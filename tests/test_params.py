"""Arguments packed at once are those that the structures' constructors make."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from fftconv_cupy import mma_params, params
from fftconv_cupy.params import packer

STRUCTURES = [
    kind
    for module in (params, mma_params)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure)
]


def filled(kind: Any, numbers: Iterator[int]) -> Any:
    """Return a value of a field's type, each of its numbers another."""
    if issubclass(kind, ctypes.Structure):
        return kind(*(filled(field, numbers) for _, field in kind._fields_))
    if issubclass(kind, ctypes.Array):
        return tuple(filled(kind._type_, numbers) for _ in range(kind._length_))
    return next(numbers)


@pytest.mark.parametrize("kind", STRUCTURES, ids=lambda kind: kind.__name__)
def test_packed_at_once(kind: Any) -> None:
    made = filled(kind, itertools.count(1))
    fields = packer(kind)
    packed = kind()
    fields.pack_into(packed, 0, *range(1, 1 + len(fields.unpack(bytes(fields.size)))))
    assert bytes(packed) == bytes(made)
