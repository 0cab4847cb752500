"""Runs the plans of transforms on tensor cores. `launch` is its counterpart for those in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from fftconv_cupy import arrays
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import Rows, device_table, launch_filter, rows_of
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.mma_blocks import CONVERT_THREADS, MmaConfig
from fftconv_cupy.mma_params import MmaFilterParams
from fftconv_cupy.mma_plan import MmaPlan, make_mma_plan
from fftconv_cupy.mma_tables import mma_table
from fftconv_cupy.params import FwdParams, Slot
from fftconv_cupy.plan import check_sizes
from fftconv_cupy.problem import ITEM_BYTES, Problem
from fftconv_cupy.remembered import Made
from fftconv_cupy.vjp_plan import VjpPlan


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernels loaded on a device."""

    plan: MmaPlan
    forward: LoadedKernel
    filter: LoadedKernel | None
    convert: LoadedKernel | None
    table: int
    twiddles: int

    def make_spectrum(self, k: ArrayView, scratch: int, spectrum: int, first: int, channels: int, stream: int) -> None:
        """Launch the filter's transform for some channels: through `scratch`, in float32, to `spectrum`."""
        # Only plans of prepared filters lack these kernels.
        filt, convert = cast("tuple[LoadedKernel, LoadedKernel]", (self.filter, self.convert))
        launch_filter(filt, self.plan, k, self.twiddles, scratch, first, channels, stream)
        launch_convert(convert, self.plan, scratch, spectrum, channels, stream)


_arguments = Slot(FwdParams)


def check(problem: Problem, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Args:
        problem: the problem, which runs in a precision below "highest".
        device: ordinal of the device.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        MissingDependencyError: NVRTC is not installed.
    """
    check_sizes(problem)
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
    """Compute a problem that runs in a precision below "highest"; arguments and result are those of `launch.run`.

    Raises:
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    rows = rows or rows_of(problem, u, in_gate, out_gate, skip, out)
    gates = (0 if in_gate is None else in_gate.ptr, 0 if out_gate is None else out_gate.ptr)
    pointers = (u.ptr, *gates, out.ptr)
    is_wide = (rows.bits | u.ptr | gates[0] | gates[1] | out.ptr) & 15 == 0
    launcher = _launchers[u.device, (problem, is_wide, isinstance(filt, FilterSpectrum))]
    skip_ptr = 0 if skip is None else skip.ptr
    if isinstance(filt, FilterSpectrum):
        _launch_forward(launcher, pointers, filt.ptr, skip_ptr, rows, 0, problem.channels, stream)
        return rows
    if workspace is None:
        _, workspace = arrays.empty(u, (launcher.plan.workspace_bytes // 4,), "float32", stream)
    made, group = launcher.plan, launcher.plan.channel_group
    spectrum = workspace.ptr + (1 if problem.shared_filter else group) * made.config.points * COMPLEX_BYTES
    for first in range(0, problem.channels, group):
        channels = min(group, problem.channels - first)
        if first == 0 or not problem.shared_filter:
            launcher.make_spectrum(filt, workspace.ptr, spectrum, first, channels, stream)
        _launch_forward(launcher, pointers, spectrum, skip_ptr, rows, first, channels, stream)
    return rows


def prepare(problem: Problem, k: ArrayView, stream: int) -> tuple[Any, ArrayView]:
    """Compute the spectrum of a filter on its GPU, asynchronously on `stream`; return the array and its view.

    Args:
        problem: the problem that the spectrum is for; its batch and which of the 16-bit dtypes do not matter.
        k: the filter, (H, K) | (K,).
        stream: handle of a stream of that GPU.

    Raises:
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    launcher = _launchers[k.device, (problem, True, False)]
    rows = 1 if problem.shared_filter else problem.channels
    scratch, scratch_view = arrays.empty(k, (rows * launcher.plan.config.points * 2,), "float32", stream)
    data, view = arrays.empty(k, (rows * launcher.plan.tensor.spectrum_bytes // 4,), "float32", stream)
    launcher.make_spectrum(k, scratch_view.ptr, view.ptr, 0, problem.channels, stream)
    del scratch  # goes back to the pool of its stream
    return data, view


def warm(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what a problem that runs in a precision below "highest" may need; see `launch.warm`."""
    return _launchers.warm([(problem, is_wide, False) for is_wide in (True, False)], archs)


def _plan(key: tuple[Problem, bool, bool], limits: ArchLimits) -> MmaPlan:
    problem, is_wide, is_prepared = key
    return make_mma_plan(problem, limits, is_wide=is_wide, is_prepared=is_prepared)


def _load(made: MmaPlan, kernels: Kernels, device: int) -> _Launcher:
    return _Launcher(
        plan=made,
        forward=kernels[made.forward],
        filter=kernels.get(made.filter),
        convert=kernels.get(made.convert),
        table=mma_device_table(made.tensor, device),
        twiddles=device_table(made.config, False, device),
    )


def launch_convert(
    kernel: LoadedKernel, made: MmaPlan | VjpPlan, source: int, spectrum: int, channels: int, stream: int
) -> None:
    """Launch what brings the spectra of `channels` channels, or a shared one, from `source` into the form of rows."""
    rows = 1 if made.problem.shared_filter else channels
    kernel.launch((rows, 1, 1), CONVERT_THREADS, MmaFilterParams(source, spectrum), stream)


def mma_device_table(config: MmaConfig, device: int) -> int:
    """Return the address of a table of constants on a device; it is made once and kept for the life of the process."""
    return int(_tables[config, device].data.ptr)


def _table(key: tuple[MmaConfig, int]) -> Any:
    config, device = key
    return arrays.upload(mma_table(config), device)


_launchers = Launchers(_plan, _load)
_tables = Made(_table, limit=None)  # of constants


def _launch_forward(
    launcher: _Launcher,
    pointers: Sequence[int],
    spectrum: int,
    skip: int,
    rows: Rows,
    first: int,
    channels: int,
    stream: int,
) -> None:
    """Launch the fused kernel on `channels` channels from `first` on, whose spectra lie at `spectrum`."""
    made, arguments = launcher.plan, _arguments
    problem = made.problem
    item = ITEM_BYTES[problem.dtype]
    u, in_gate, out_gate, y = (
        pointer and pointer + first * stride * item
        for pointer, stride in zip(pointers, rows.strides[1::2], strict=True)
    )
    arguments.fill(
        # A gate that is absent has an address that can be read.
        *(u, in_gate or u, out_gate or launcher.table, y),
        *(spectrum, launcher.table),
        skip and skip + first * (4 if rows.skip_is_float else item),
        *rows.strides,
        0 if problem.shared_filter else made.tensor.spectrum_words,
        *(problem.batch, channels, problem.seqlen, problem.out_len, made.log2_batch_slots),
        *(1, 1, 0, 1),
        *(int(problem.in_gate), int(problem.out_gate), int(rows.skip_is_float)),
        1.0 / made.tensor.points,
        0,
    )
    launcher.forward.launch(made.grid, made.tensor.threads, arguments.params, stream, arguments.address)
