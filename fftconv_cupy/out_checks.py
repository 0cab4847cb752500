"""What an output that the caller gives must be: writeable, of one address an element, apart from the inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import numpy as np

from fftconv_cupy.arrays import byte_span, shares_memory
from fftconv_cupy.errors import InvalidArgumentError, message
from fftconv_cupy.readers import ArrayView


def check_out_memory(spans: Iterable[tuple[str, int, int]], arguments: object, out: ArrayView) -> None:
    """Refuse an `out` that cannot be written, or shares memory with an input: what a signature does not tell.

    Args:
        spans: of the inputs (see `checks.Call`).
        arguments: with the view of each input by its name.
        out: the output.

    Raises:
        InvalidArgumentError: so it is, or it takes too long to tell that no memory is shared.
    """
    if isinstance(out.owner, np.ndarray) and not out.owner.flags.writeable:
        _refuse_out("a read-only array")
    first, past = byte_span(out)
    low, high = out.ptr + first, out.ptr + past
    for name, first, past in spans:
        array = getattr(arguments, name)
        if low < array.ptr + past and array.ptr + first < high and shares_memory(out, array):
            raise InvalidArgumentError(
                message(
                    "out",
                    got=f"memory that overlaps {name}",
                    allowed="an array that shares no memory with an input (nothing is computed in place)",
                    do="Pass another array, or leave out away.",
                )
            )


def check_out_layout(out: ArrayView) -> None:
    """An output is written row by row: unit stride along the rows, and no element at two indices."""
    problem = None
    if out.shape[-1] > 1 and out.strides[-1] != 1:
        problem = f"stride {out.strides[-1]} along the last axis"
    else:
        # Each axis must step over everything that the axes of smaller steps span.
        span = 1
        axes = [(abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True) if size > 1]
        for stride, size in sorted(axes):
            if stride < span:
                problem = f"strides {tuple(out.strides)}, by which two of its elements may share an address"
            span += stride * (size - 1)
    if problem is not None:
        _refuse_out(problem)


def _refuse_out(got: str) -> NoReturn:
    raise InvalidArgumentError(
        message(
            "out",
            got=got,
            allowed="a writeable array with unit stride along the last axis that does not overlap itself",
            do="Pass a contiguous array, such as one made by empty_like.",
        )
    )
