"""Runs the plans of transforms on tensor cores. `launch` is its counterpart for those in float32."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fftconv_cupy import arrays
from fftconv_cupy.archs import arch_limits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import COMPLEX_BYTES
from fftconv_cupy.compile import LoadedKernel, load_kernel, precompile
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import Rows, describe, device_table, launch_filter, rows_of
from fftconv_cupy.mma_blocks import CONVERT_THREADS, MmaConfig
from fftconv_cupy.mma_params import MmaFilterParams
from fftconv_cupy.mma_plan import MmaPlan, make_mma_plan
from fftconv_cupy.mma_tables import mma_table
from fftconv_cupy.params import FwdParams, Slot, packer
from fftconv_cupy.plan import check_sizes
from fftconv_cupy.problem import ITEM_BYTES, Problem


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernels loaded on a device."""

    plan: MmaPlan
    forward: LoadedKernel
    filter: LoadedKernel
    convert: LoadedKernel
    table: int
    twiddles: int

    def make_spectrum(self, k: ArrayView, scratch: int, spectrum: int, first: int, channels: int, stream: int) -> None:
        """Launch the filter's transform for some channels: through `scratch`, in float32, to `spectrum`."""
        rows = 1 if self.plan.problem.shared_filter else channels
        launch_filter(self.filter, self.plan, k, self.twiddles, scratch, first, channels, stream)
        self.convert.launch((rows, 1, 1), CONVERT_THREADS, MmaFilterParams(scratch, spectrum), stream)


_Key = tuple[Problem, int, bool, bool]
_arguments = Slot(FwdParams)
_pack = packer(FwdParams).pack_into
_launchers: dict[_Key, _Launcher] = {}
_tables: dict[tuple[MmaConfig, int], Any] = {}
_lock = threading.Lock()
_REMEMBERED = 4096  # configurations; beyond, the look-up starts anew


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
    """Compute a validated problem on the GPU of `u`, asynchronously on `stream`, into `out`.

    Args:
        problem: the problem, which runs in a precision below "highest", with ``batch >= 1``.
        u: the input, (B, H, L) | (H, L) | (L,).
        filt: the filter, (H, K) | (K,), or its spectrum of this precision.
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
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    rows = rows or rows_of(problem, u, in_gate, out_gate, skip, out)
    gates = (0 if in_gate is None else in_gate.ptr, 0 if out_gate is None else out_gate.ptr)
    pointers = (u.ptr, *gates, out.ptr)
    is_wide = (rows.bits | u.ptr | gates[0] | gates[1] | out.ptr) & 15 == 0
    launcher = _launcher((problem, u.device, is_wide, isinstance(filt, FilterSpectrum)))
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
    launcher = _launcher((problem, k.device, True, False))
    rows = 1 if problem.shared_filter else problem.channels
    scratch, scratch_view = arrays.empty(k, (rows * launcher.plan.config.points * 2,), "float32", stream)
    data, view = arrays.empty(k, (rows * launcher.plan.tensor.spectrum_bytes // 4,), "float32", stream)
    launcher.make_spectrum(k, scratch_view.ptr, view.ptr, 0, problem.channels, stream)
    del scratch  # goes back to the pool of its stream
    return data, view


def warm(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, every kernel that arrays of any alignment may need.

    Args:
        problem: the problem, which runs in a precision below "highest".
        archs: architectures to compile for into the cache on disk; None means for the current device, and load there.

    Returns:
        A line for each kernel: architecture, FFT size, entry and template flags.
    """
    lines = []
    if archs is None:
        device = arrays.current_device()
        for is_wide in (True, False):
            made = _launcher((problem, device, is_wide, False)).plan
            lines += [describe(spec, made.limits) for spec in (made.forward, made.filter, made.convert)]
    for arch in archs or ():
        limits = arch_limits(arch)
        for is_wide in (True, False):
            made = make_mma_plan(problem, limits, is_wide=is_wide)
            for spec in (made.forward, made.filter, made.convert):
                precompile(spec, arch)
                lines.append(describe(spec, limits))
    return list(dict.fromkeys(lines))


def _launcher(key: _Key) -> _Launcher:
    """Plan and load (or look up) the kernels of a configuration."""
    known = _launchers.get(key)
    if known is not None:
        return known
    problem, device, is_wide, is_prepared = key
    limits = device_limits(device)
    made = make_mma_plan(problem, limits, is_wide=is_wide, is_prepared=is_prepared)
    with ThreadPoolExecutor(3) as pool:  # a first use compiles the kernels side by side
        loads = [
            pool.submit(load_kernel, spec, limits.arch, shared_bytes, device)
            for spec, shared_bytes in (
                (made.forward, made.tensor.shared_bytes),
                (made.filter, made.config.exchange_bytes),
                (made.convert, 0),
            )
        ]
    forward, filt, convert = (load.result() for load in loads)
    table = _device_table(made.tensor, device)
    twiddles = device_table(made.config, False, device)
    launcher = _Launcher(made, forward, filt, convert, table, twiddles)
    with _lock:
        if len(_launchers) >= _REMEMBERED:
            _launchers.clear()
        return _launchers.setdefault(key, launcher)


def _device_table(config: MmaConfig, device: int) -> int:
    """Return the address of a table of constants on a device; it is made once and kept for the life of the process."""
    key = (config, device)
    with _lock:
        if key not in _tables:
            _tables[key] = arrays.upload(mma_table(config), device)
        return int(_tables[key].data.ptr)


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
    _pack(
        arguments.params,
        0,
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
