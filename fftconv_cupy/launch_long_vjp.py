"""Runs the plans of gradients of rows that outgrow a block. `launch_vjp` is its counterpart for those that do not."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from fftconv_cupy import arrays, launch_long
from fftconv_cupy.archs import arch_limits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.compile import LoadedKernel, load_kernel, precompile
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import describe, device_table, row_strides
from fftconv_cupy.launch_long import STORAGE_TYPES, clear_counters, schedule_params, taps_of, tile_twiddles
from fftconv_cupy.long_params import LongBwdParams
from fftconv_cupy.long_vjp_plan import LongVjpPlan, make_long_vjp_plan
from fftconv_cupy.problem import ITEM_BYTES, Gradients, Problem, Wanted


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernel loaded on a device, and the addresses of its tables."""

    plan: LongVjpPlan
    kernel: LoadedKernel
    row_twiddles: int
    tile_twiddles: int


_Key = tuple[Problem, Wanted, int, bool, bool]
_launchers: dict[_Key, _Launcher] = {}
_lock = threading.Lock()
_REMEMBERED = 4096  # configurations; beyond, the look-up starts anew


def check_vjp(problem: Problem, wanted: Wanted, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Args:
        problem: the convolution, which does not fit a block.
        wanted: which gradients; all take the same transforms.
        device: ordinal of the device.

    Raises:
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        UnsupportedProblemError: see `plan.check_sizes`.
        MissingDependencyError: NVRTC is not installed.
    """
    launch_long.check(problem, device)


def run_vjp(
    problem: Problem,
    wanted: Wanted,
    dy: ArrayView,
    u: ArrayView,
    filt: ArrayView | FilterSpectrum,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    grads: Gradients,
    stream: int,
    workspace: ArrayView | None = None,
) -> None:
    """Compute the wanted gradients on the GPU of `u`, asynchronously on `stream`.

    Args:
        problem: the convolution, with ``batch >= 1``.
        wanted: which gradients.
        dy: gradient of the output, of its shape.
        u: the input, (B, H, L) | (H, L) | (L,).
        filt: the filter, (H, K) | (K,), or its spectrum.
        in_gate: of the input's shape, or None.
        out_gate: of the output's shape, or None.
        skip: (H,), or None.
        grads: views of the arrays to fill, contiguous, of the shapes and dtypes of their arguments; None for the rest.
        stream: handle of a stream of that GPU.
        workspace: as many bytes as the plan says, or more; None allocates it.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    item = ITEM_BYTES[problem.dtype]
    bits = problem.seqlen | problem.out_len
    pointers: list[int] = []
    strides: list[int] = []
    # A gate that is absent has an address that can be read.
    for array in (u, in_gate or u, out_gate or dy, dy, grads.u, grads.in_gate, grads.out_gate):
        if array is None:
            pointers.append(0)
            strides += (0, 0)
        else:
            batch_stride, channel_stride = row_strides(array)
            pointers.append(array.ptr)
            strides += (batch_stride, channel_stride)
            bits |= array.ptr // item | batch_stride | channel_stride
    launcher = _launcher_of((problem, wanted, u.device, bits & 1 == 0, isinstance(filt, FilterSpectrum)))
    made = launcher.plan
    if workspace is None:
        _, workspace = arrays.empty(u, (made.workspace_bytes // 4,), "float32", stream)
    parts, memory = made.workspace, workspace.ptr
    skip_is_float = skip is None or skip.dtype == "float32"
    params = LongBwdParams(
        *pointers,
        0 if skip is None else skip.ptr,
        0 if grads.k is None else grads.k.ptr,
        0 if grads.skip is None else grads.skip.ptr,
        launcher.row_twiddles,
        launcher.tile_twiddles,
        memory + parts.points,
        memory + parts.scales,
        memory + parts.stash,
        filt.ptr if isinstance(filt, FilterSpectrum) else memory + parts.spectrum,
        memory + parts.sums,
        memory + parts.total,
        memory + parts.counters,
        type(LongBwdParams().strides)(*strides),
        taps_of(problem, filt, made.lags),
        schedule_params(made.schedule),
        problem.seqlen,
        problem.out_len,
        problem.in_gate,
        problem.out_gate,
        skip_is_float,
        STORAGE_TYPES["float32" if skip_is_float else problem.dtype],
        1.0 / made.config.points,
    )
    clear_counters(memory + parts.counters, parts.nbytes - parts.counters, stream)
    launcher.kernel.launch((made.blocks, 1, 1), made.config.threads, params, stream)


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, what gradients need for arrays of any alignment.

    Args:
        problem: the convolution, which does not fit a block, on none of `archs`.
        wanted: which gradients.
        archs: architectures to compile for into the cache on disk; None means for the current device, and load there.

    Returns:
        A line for each kernel.
    """
    lines = []
    for is_vector, is_prepared in itertools.product((True, False), (False,) if wanted.k else (False, True)):
        if archs is None:
            made = _launcher_of((problem, wanted, arrays.current_device(), is_vector, is_prepared)).plan
            lines.append(describe(made.kernel, made.limits))
        for arch in archs or ():
            limits = arch_limits(arch)
            made = make_long_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared)
            precompile(made.kernel, arch)
            lines.append(describe(made.kernel, made.limits))
    return list(dict.fromkeys(lines))


def _launcher_of(key: _Key) -> _Launcher:
    """Return the plan of a configuration and its kernel: looked up, or made and loaded."""
    launcher = _launchers.get(key)
    if launcher is not None:
        return launcher
    problem, wanted, device, is_vector, is_prepared = key
    made = make_long_vjp_plan(problem, wanted, device_limits(device), is_vector=is_vector, is_prepared=is_prepared)
    launcher = _Launcher(
        plan=made,
        kernel=load_kernel(made.kernel, made.limits.arch, made.config.shared_bytes, device),
        row_twiddles=device_table(made.config.row, True, device),
        tile_twiddles=tile_twiddles(made.config.tile_log2_radices, device),
    )
    with _lock:
        if len(_launchers) >= _REMEMBERED:
            _launchers.clear()
        return _launchers.setdefault(key, launcher)
