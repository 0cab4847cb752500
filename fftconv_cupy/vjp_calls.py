"""What every call for gradients begins with: where its arrays lie, what is launched for them, and its workspace.

What depends on shapes, strides and alignment alone is found out once, and kept with the signature of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from fftconv_cupy import arrays
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import row_strides
from fftconv_cupy.launchers import Launchers
from fftconv_cupy.problem import ITEM_BYTES, Gradients, Problem, Wanted

Launcher = TypeVar("Launcher")
Steps = TypeVar("Steps")


class VjpKey(NamedTuple):
    """What a plan of gradients depends on but the GPU.

    Attributes:
        problem: the convolution.
        wanted: which gradients.
        is_vector: rows start at even elements and have even lengths.
        is_wide: rows start at multiples of eight elements and have such lengths.
        is_prepared: the filter's spectrum comes with the call.
        wants_state: the gradient of an initial state is wanted too.
    """

    problem: Problem
    wanted: Wanted
    is_vector: bool
    is_wide: bool
    is_prepared: bool
    wants_state: bool = False


def keys_of(problem: Problem, wanted: Wanted, *, is_prepared: bool = False, wants_state: bool = False) -> list[VjpKey]:
    """Return the keys of gradients for each alignment that arrays may have."""
    alignments = ((True, True), (True, False), (False, False))
    return [VjpKey(problem, wanted, *alignment, is_prepared, wants_state) for alignment in alignments]


@dataclass(slots=True)
class VjpRows(Generic[Launcher, Steps]):
    """What calls have in common whose arrays have the same shapes, strides and dtypes.

    Attributes:
        strides: batch and channel stride of each array as the kernels take them, in elements; 0 of one that is absent.
        bits: all strides and lengths of rows in bytes, or'ed.
        skip_is_float: the skip is float32, not of the dtype of u.
        known: the launcher and its steps, by the lowest bits of the addresses.
    """

    strides: tuple[int, ...]
    bits: int
    skip_is_float: bool
    known: dict[int, tuple[Launcher, Steps]] = field(default_factory=dict)


@dataclass(slots=True)
class VjpCall(Generic[Launcher, Steps]):
    """One call: what it launches, and its addresses, 0 for what is absent.

    Attributes:
        launcher: a plan with its kernels loaded.
        steps: what is launched, but for the addresses.
        rows: what it has in common with others.
        pointers: of the arrays of rows, then of states, as the kernels take them.
        spectrum: of the filter, or where it is to be made.
        skip: of the call.
        dk: of the gradient of the filter.
        d_skip: of that of skip.
        workspace: of the call.
        stream: its handle.
        held: the workspace itself, which must not go back to its pool before all is launched.
    """

    launcher: Launcher
    steps: Steps
    rows: VjpRows[Launcher, Steps]
    pointers: list[int]
    spectrum: int
    skip: int
    dk: int
    d_skip: int
    workspace: int
    stream: int
    held: ArrayView | None


def arrays_of_rows(
    dy: ArrayView, u: ArrayView, in_gate: ArrayView | None, out_gate: ArrayView | None, grads: Gradients
) -> tuple[ArrayView | None, ...]:
    """Return the arrays of rows in the order of the kernels; for an absent gate one that can be read."""
    return u, in_gate or u, out_gate or dy, dy, grads.u, grads.in_gate, grads.out_gate


def begin(
    launchers: Launchers[VjpKey, Any],
    steps_of: Callable[[Any, VjpRows[Any, Any]], Any],
    problem: Problem,
    wanted: Wanted,
    given: Sequence[ArrayView | None],
    filt: ArrayView | FilterSpectrum,
    skip: ArrayView | None,
    grads: Gradients,
    stream: int,
    workspace: ArrayView | None,
    rows: VjpRows[Any, Any] | None,
    states: Sequence[ArrayView | None] = (),
) -> VjpCall[Any, Any]:
    """Return a call for gradients that is ready to be launched.

    Args:
        launchers: of the module that computes them.
        steps_of: what is launched by a launcher for such rows.
        problem: the convolution, with ``batch >= 1``.
        wanted: which gradients.
        given: the arrays of rows in the order of the kernels, `u` first; None for those that are absent.
        filt: the filter, or its spectrum.
        skip: the skip, or None.
        grads: views of the arrays to fill.
        stream: handle of a stream of the GPU of `u`.
        workspace: as many bytes as the plan says, or more; None allocates it.
        rows: those of a call of the same signature; None finds them out.
        states: the initial state, the gradient of the final one and that of the initial one, or nothing.

    Raises:
        UnsupportedProblemError, CompileError, MissingDependencyError: see `launch_vjp.run_vjp`.
    """
    rows = rows or _rows_of(problem, given, skip, states)
    pointers = [0 if array is None else array.ptr for array in given]
    bits = rows.bits
    for pointer in pointers:
        bits |= pointer
    item = ITEM_BYTES[problem.dtype]
    bits &= 8 * item - 1
    known = rows.known.get(bits)
    u: ArrayView = given[0]  # type: ignore[assignment]  # which no call lacks
    is_prepared = isinstance(filt, FilterSpectrum)
    if known is None:
        wants_state = len(states) > 0 and states[-1] is not None
        key = VjpKey(problem, wanted, bits & (2 * item - 1) == 0, bits == 0, is_prepared, wants_state)
        launcher = launchers[u.device, key]
        known = rows.known[bits] = launcher, steps_of(launcher, rows)
    launcher, steps = known
    if states:
        pointers += [0 if state is None else state.ptr for state in states]
    made = launcher.plan
    if workspace is None and made.workspace_bytes:
        _, workspace = arrays.empty(u, (made.workspace_bytes // 4,), "float32", stream)
    memory = 0 if workspace is None else workspace.ptr
    return VjpCall(
        launcher,
        steps,
        rows,
        pointers,
        filt.ptr if is_prepared else memory + made.workspace.spectrum,
        0 if skip is None else skip.ptr,
        0 if grads.k is None else grads.k.ptr,
        0 if grads.skip is None else grads.skip.ptr,
        memory,
        stream,
        workspace,
    )


def _rows_of(
    problem: Problem, given: Sequence[ArrayView | None], skip: ArrayView | None, states: Sequence[ArrayView | None]
) -> VjpRows[Any, Any]:
    pairs = [(0, 0) if array is None else row_strides(array) for array in given]
    bits = problem.seqlen | problem.out_len
    for batch_stride, channel_stride in pairs:
        bits |= batch_stride | channel_stride
    pairs += [(0, 0) if state is None else row_strides(state) for state in states]
    skip_is_float = skip is None or skip.dtype == "float32"
    return VjpRows(tuple(stride for pair in pairs for stride in pair), bits * ITEM_BYTES[problem.dtype], skip_is_float)
