"""Runs plans: kernel arguments, twiddle tables, workspace, launches. The only module that launches a kernel.

What does not depend on the arrays' addresses is looked up once a configuration and kept, so a warm call is a dictionary
look-up, an argument structure of its own (callers may be concurrent) and a launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fftconv_cupy import arrays
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import BlockConfig
from fftconv_cupy.compile import LoadedKernel, load_kernel
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.mma_plan import MmaPlan
from fftconv_cupy.params import FilterParams, FwdParams, Lags, Slot
from fftconv_cupy.plan import FilterLags, Plan, block_config, make_plan
from fftconv_cupy.problem import ITEM_BYTES, Problem
from fftconv_cupy.remembered import Made
from fftconv_cupy.tables import twiddle_table
from fftconv_cupy.vjp_plan import VjpPlan
from fftconv_cupy.window_plan import WindowPlan


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernels loaded on a device."""

    plan: Plan
    forward: LoadedKernel
    filter: LoadedKernel | None
    twiddles: int
    grid: tuple[int, int, int]
    threads: int
    can_start_early: bool


@dataclass(slots=True)
class Rows:
    """What calls have in common whose arrays have the same shapes, strides and dtypes.

    Attributes:
        strides: batch and channel stride of u, in_gate, out_gate and y, in elements; an input gate that is absent has
            those of u, whose values are read in its place, an output gate that is absent has 0.
        bits: all strides and lengths in bytes, or'ed.
        skip_is_float: the skip is float32, not of the dtype of u.
        known: the launcher and its steps, by the lowest bits of the addresses and whether the filter is prepared.
    """

    strides: tuple[int, ...]
    bits: int
    skip_is_float: bool
    known: dict[tuple[int, bool], tuple[_Launcher, tuple[_Step, ...]]] = field(default_factory=dict)


class FilterStep(NamedTuple):
    """A launch of the filter's transform for a group of channels, but for the addresses of the arrays.

    Attributes:
        kernel: the kernel.
        grid: its blocks.
        threads: of a block.
        twiddles: address of the table.
        first: the channels before the group, in bytes a stride of one.
        constants: the arguments of the kernel that follow the stride, in their order.
    """

    kernel: LoadedKernel
    grid: tuple[int, int, int]
    threads: int
    twiddles: int
    first: int
    constants: tuple[float, ...]

    @classmethod
    def of(
        cls, kernel: LoadedKernel, made: Plan | VjpPlan | WindowPlan | MmaPlan, twiddles: int, first: int, channels: int
    ) -> FilterStep:
        """Return the launch for `channels` channels from `first` on; a shared filter has one row for all."""
        problem, config, lags = made.problem, made.config, made.lags
        rows = 1 if problem.shared_filter else channels
        return cls(
            kernel,
            (-(-rows // config.rows), 1, 1),
            config.threads,
            twiddles,
            0 if problem.shared_filter else first * ITEM_BYTES[problem.filter_dtype],
            (
                *(rows, problem.filter_len),
                *(lags.shift, lags.negative_shift, lags.period, lags.positive, lags.negative),
                1.0 / config.points,
            ),
        )

    def launch(self, k: ArrayView, spectrum: int, stream: int) -> None:
        """Launch it for a filter, (H, K) | (K,), whose spectrum goes to the address `spectrum`."""
        arguments, strides = _filter, k.strides
        stride = strides[0] if len(strides) == 2 else 0
        address = k.ptr + self.first * stride
        arguments.fill(address, spectrum, self.twiddles, stride, *self.constants)
        self.kernel.launch(self.grid, self.threads, arguments.params, stream, arguments.address)


@dataclass(frozen=True, slots=True)
class _Step:
    """A launch of the fused kernel on a group of channels, but for the addresses of the arrays.

    Attributes:
        filter: the launch of the filter's kernel before it, or None.
        offsets: from the addresses of u, in_gate, out_gate, y and skip to the first channel, in bytes.
        constants: the arguments of the kernel that are no addresses, in their order.
    """

    filter: FilterStep | None
    offsets: tuple[int, int, int, int, int]
    constants: tuple[float, ...]


_forward, _filter = Slot(FwdParams), Slot(FilterParams)


def check(problem: Problem, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Args:
        problem: the problem.
        device: ordinal of the device.

    Raises:
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        UnsupportedProblemError: the transform does not fit one block of this GPU.
        MissingDependencyError: NVRTC is not installed.
    """
    block_config(problem, device_limits(device))
    import_nvrtc()


def run(
    problem: Problem,
    u: ArrayView,
    filt: ArrayView | FilterSpectrum,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    out: ArrayView,
    stream: int,
    workspace: ArrayView | None = None,
    rows: Rows | None = None,
) -> Rows:
    """Compute a validated problem on the GPU of `u`, asynchronously on `stream`, into `out`.

    Args:
        problem: the problem, with ``batch >= 1``.
        u: the input, (B, H, L) | (H, L) | (L,).
        filt: the filter, (H, K) | (K,), or its spectrum.
        in_gate: of the input's shape, or None.
        out_gate: of the output's shape, or None.
        skip: (H,), or None.
        out: the output.
        stream: handle of a stream of that GPU.
        workspace: as many bytes as the plan says, or more; None allocates it where it is needed.
        rows: what a call with arrays of these shapes and strides has returned; None finds it out.

    Returns:
        What such calls have in common.

    Raises:
        UnsupportedProblemError: the transform does not fit one block of this GPU.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    rows = rows or rows_of(problem, u, in_gate, out_gate, skip, out)
    u_ptr, y_ptr, skip_ptr = u.ptr, out.ptr, 0 if skip is None else skip.ptr
    in_ptr = u_ptr if in_gate is None else in_gate.ptr
    out_ptr = 0 if out_gate is None else out_gate.ptr
    # The lowest bit set in any address, stride or length is how far all rows are aligned.
    bits = (rows.bits | u_ptr | in_ptr | out_ptr | y_ptr) & 15
    taps = None if isinstance(filt, FilterSpectrum) else filt
    known = rows.known.get((bits, taps is None))
    if known is None:
        known = rows.known[bits, taps is None] = _steps(problem, u.device, bits, taps is None, rows)
    launcher, steps = known
    spectrum = filt.ptr
    if taps is not None:
        if workspace is None:
            _, workspace = arrays.empty(u, (launcher.plan.workspace_bytes // 4,), "float32", stream)
        spectrum = workspace.ptr
    arguments, twiddles = _forward, launcher.twiddles
    out_ptr = out_ptr or twiddles  # an address that can be read, and longer than any row, as that of u for in_gate
    is_early = False
    for step in steps:
        if taps is not None and step.filter is not None:
            step.filter.launch(taps, spectrum, stream)
            is_early = launcher.can_start_early
        u_at, in_at, out_at, y_at, skip_at = step.offsets
        addresses = (u_ptr + u_at, in_ptr + in_at, out_ptr + out_at, y_ptr + y_at, spectrum, twiddles)
        arguments.fill(*addresses, skip_ptr and skip_ptr + skip_at, *step.constants)
        # Started while the filter's kernel runs, it waits for the spectrum itself.
        launcher.forward.launch(launcher.grid, launcher.threads, arguments.params, stream, arguments.address, is_early)
        is_early = False
    return rows


def prepare(problem: Problem, k: ArrayView, stream: int) -> tuple[Any, ArrayView]:
    """Compute the spectrum of a filter on its GPU, asynchronously on `stream`; return the array and its view.

    Args:
        problem: the problem that the spectrum is for; its batch and dtype do not matter.
        k: the filter, (H, K) | (K,).
        stream: handle of a stream of that GPU.

    Raises:
        UnsupportedProblemError: the transform does not fit one block of this GPU.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    limits = device_limits(k.device)
    made = make_plan(problem, limits)
    rows = 1 if problem.shared_filter else problem.channels
    data, view = arrays.empty(k, (rows * made.config.points * 2,), "float32", stream)
    kernel = load_kernel(made.filter, limits.arch, made.config.exchange_bytes, k.device)
    twiddles = device_table(made.config, made.strategy == "paired", k.device)
    launch_filter(kernel, made, k, twiddles, view.ptr, 0, problem.channels, stream)
    return data, view


def warm(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, what arrays of any alignment may need, with a raw filter.

    Args:
        problem: the problem.
        archs: architectures to compile for into the cache on disk; None means for the current device, and load there.

    Returns:
        A line for each kernel, see `launchers.describe`.
    """
    alignments = ((True, True), (True, False), (False, False))
    return _launchers.warm([(problem, *alignment, False) for alignment in alignments], archs)


def rows_of(
    problem: Problem,
    u: ArrayView,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    out: ArrayView,
) -> Rows:
    """Return what calls with arrays of these shapes, strides and dtypes have in common."""
    bits = problem.seqlen | problem.out_len
    strides: list[int] = []
    for array in (u, in_gate or u, out_gate, out):
        pair = (0, 0) if array is None else row_strides(array)
        strides += pair
        bits |= pair[0] | pair[1]
    return Rows(tuple(strides), bits * ITEM_BYTES[problem.dtype], skip is None or skip.dtype == "float32")


def row_strides(array: ArrayView) -> tuple[int, int]:
    """Return batch and channel stride of an array of 1 to 3 axes; that of an axis of one does not matter."""
    shape, strides = array.shape, array.strides
    if len(shape) == 3:
        return strides[0] if shape[0] > 1 else 0, strides[1] if shape[1] > 1 else 0
    if len(shape) == 2:
        return 0, strides[0] if shape[0] > 1 else 0
    return 0, 0


def _plan(key: _Key, limits: ArchLimits) -> Plan:
    problem, is_vector, is_bulk, is_prepared = key
    return make_plan(problem, limits, is_vector=is_vector, is_bulk=is_bulk, is_prepared=is_prepared)


def _load(made: Plan, kernels: Kernels, device: int) -> _Launcher:
    return _Launcher(
        plan=made,
        forward=kernels[made.forward],
        filter=kernels.get(made.filter),
        twiddles=device_table(made.config, made.strategy == "paired", device),
        grid=made.grid,
        threads=made.config.threads,
        can_start_early=made.limits.has_dependent_launch,
    )


_Key = tuple[Problem, bool, bool, bool]
_launchers = Launchers(_plan, _load)


def device_table(config: BlockConfig, is_paired: bool, device: int) -> int:
    """Return the address of a twiddle table on a device; it is made once and kept for the life of the process."""
    return int(_tables[config, is_paired, device].data.ptr)


def _table(key: tuple[BlockConfig, bool, int]) -> Any:
    config, is_paired, device = key
    return arrays.upload(twiddle_table(config, is_paired=is_paired), device)


_tables = Made(_table, limit=None)


def _steps(
    problem: Problem, device: int, bits: int, is_prepared: bool, rows: Rows
) -> tuple[_Launcher, tuple[_Step, ...]]:
    """Return the launcher of calls whose addresses have these lowest bits, and what it launches."""
    item = ITEM_BYTES[problem.dtype]
    launcher = _launchers[device, (problem, bits & (2 * item - 1) == 0, bits == 0, is_prepared)]
    made = launcher.plan
    steps = []
    for first in range(0, problem.channels, made.channel_group):
        channels = min(made.channel_group, problem.channels - first)
        u_at, in_at, out_at, y_at = (first * stride * item for stride in rows.strides[1::2])
        constants = (
            *rows.strides,
            0 if problem.shared_filter else made.config.points // 2,
            *(problem.batch, channels, problem.seqlen, problem.out_len, made.log2_batch_slots),
            *made.turns,
            *(int(problem.in_gate), int(problem.out_gate), int(rows.skip_is_float)),
            1.0 / made.config.points,
            0,
        )
        kernel = launcher.filter if first == 0 or not problem.shared_filter else None
        steps.append(
            _Step(
                None if kernel is None else FilterStep.of(kernel, made, launcher.twiddles, first, channels),
                (u_at, in_at, out_at, y_at, first * (4 if rows.skip_is_float else item)),
                constants,
            )
        )
    return launcher, tuple(steps)


def launch_filter(
    kernel: LoadedKernel,
    made: Plan | VjpPlan | WindowPlan | MmaPlan,
    k: ArrayView,
    twiddles: int,
    spectrum: int,
    first: int,
    channels: int,
    stream: int,
) -> None:
    """Launch the filter's transform for `channels` channels from `first` on: a `FilterStep` that is not kept."""
    FilterStep.of(kernel, made, twiddles, first, channels).launch(k, spectrum, stream)


def lags_of(lags: FilterLags) -> Lags:
    """Return the structure that the kernels take."""
    return Lags(lags.shift, lags.negative_shift, lags.period, lags.positive, lags.negative)
