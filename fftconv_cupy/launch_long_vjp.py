"""Runs the plans of gradients of rows that outgrow a block. `launch_vjp` is its counterpart for those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fftconv_cupy import arrays, launch_long
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import device_table, lags_of
from fftconv_cupy.launch_long import STORAGE_TYPES, clear_counters, schedule_params, taps_of, tile_twiddles
from fftconv_cupy.launch_vjp import addresses_of
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.long_params import LongBwdParams, Taps
from fftconv_cupy.long_vjp_plan import LongVjpPlan, make_long_vjp_plan, make_sums_plan
from fftconv_cupy.problem import Gradients, Problem, Wanted


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernel loaded on a device, and the addresses of its tables."""

    plan: LongVjpPlan
    kernel: LoadedKernel
    row_twiddles: int
    tile_twiddles: int


def check_vjp(problem: Problem, wanted: Wanted, device: int) -> None:
    """Raise what a call on this device would raise; arguments are those of `launch_vjp.check_vjp`.

    Raises:
        UnsupportedDeviceError, UnsupportedProblemError, MissingDependencyError: see `launch_long.check`.
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
    """Compute the wanted gradients of rows that do not fit a block; arguments are those of `launch_vjp.run_vjp`.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    pointers, strides, bits = addresses_of(problem, dy, u, in_gate, out_gate, grads)
    is_vector = bits & 1 == 0
    launcher = _launchers[u.device, (problem, wanted, is_vector, isinstance(filt, FilterSpectrum))]
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


def launch_sums_back(
    problem: Problem,
    wanted: Wanted,
    chains: int,
    sums: int,
    workspace: int,
    dk: int,
    d_skip: int,
    skip_type: str,
    device: int,
    stream: int,
) -> None:
    """Turn sums into gradients of filters and skips, asynchronously on `stream`, in the place of the sums.

    Args:
        problem: as of `make_sums_plan`, as are the two that follow.
        wanted: which gradients.
        chains: sums of a channel.
        sums: address of them, [channels][chains] spectra.
        workspace: address of as many bytes as the plan says.
        dk: address of the gradients of the filters, or 0.
        d_skip: address of those of the skips, or 0.
        skip_type: their dtype.
        device: ordinal of the GPU.
        stream: handle of a stream of that GPU.
    """
    launcher = _sums_back[device, (problem, wanted, chains)]
    made = launcher.plan
    params = LongBwdParams(
        dk=dk,
        d_skip=d_skip,
        row_twiddles=launcher.row_twiddles,
        tile_twiddles=launcher.tile_twiddles,
        sums=sums,
        counters=workspace,
        taps=Taps(0, 0, problem.filter_len, STORAGE_TYPES[problem.filter_dtype], lags_of(made.lags)),
        schedule=schedule_params(made.schedule),
        skip_type=STORAGE_TYPES[skip_type],
    )
    clear_counters(workspace, made.workspace.nbytes, stream)
    launcher.kernel.launch((made.blocks, 1, 1), made.config.threads, params, stream)


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what gradients of rows that fit a block on none of `archs` need; see `launch_vjp.warm_vjp`."""
    prepared = (False,) if wanted.k else (False, True)
    keys = [(problem, wanted, is_vector, is_prepared) for is_vector in (True, False) for is_prepared in prepared]
    return _launchers.warm(keys, archs)


def _plan(key: tuple[Problem, Wanted, bool, bool], limits: ArchLimits) -> LongVjpPlan:
    problem, wanted, is_vector, is_prepared = key
    return make_long_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared)


def _load(made: LongVjpPlan, kernels: Kernels, device: int) -> _Launcher:
    row_twiddles = device_table(made.config.row, True, device)
    return _Launcher(made, kernels[made.kernel], row_twiddles, tile_twiddles(made.config.tile_log2_radices, device))


_launchers = Launchers(_plan, _load)


def _plan_sums(key: tuple[Problem, Wanted, int], limits: ArchLimits) -> LongVjpPlan:
    problem, wanted, chains = key
    return make_sums_plan(problem, wanted, limits, chains=chains)


_sums_back = Launchers(_plan_sums, _load)
