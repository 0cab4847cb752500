"""Runs the plans of gradients of rows that outgrow a block. `launch_vjp` is its counterpart for those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fftconv_cupy import launch_long
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import device_table, lags_of
from fftconv_cupy.launch_long import STORAGE_TYPES, clear_counters, schedule_params, taps_of, tile_twiddles
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.long_params import LongBwdParams, Taps
from fftconv_cupy.long_vjp_plan import LongVjpPlan, make_long_vjp_plan, make_sums_plan
from fftconv_cupy.problem import Gradients, Problem, Wanted
from fftconv_cupy.vjp_calls import VjpKey, VjpRows, arrays_of_rows, begin, keys_of


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernel loaded on a device, and the addresses of its tables."""

    plan: LongVjpPlan
    kernel: LoadedKernel
    row_twiddles: int
    tile_twiddles: int


_Rows = VjpRows[_Launcher, Any]


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
    rows: _Rows | None = None,
) -> _Rows:
    """Compute the wanted gradients of rows that do not fit a block; see `launch_vjp.run_vjp` for arguments and result.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    given = arrays_of_rows(dy, u, in_gate, out_gate, grads)
    call = begin(_launchers, _strides_of, problem, wanted, given, filt, skip, grads, stream, workspace, rows)
    launcher, memory = call.launcher, call.workspace
    made, skip_is_float = launcher.plan, call.rows.skip_is_float
    parts = made.workspace
    params = LongBwdParams(
        *call.pointers,
        call.skip,
        call.dk,
        call.d_skip,
        launcher.row_twiddles,
        launcher.tile_twiddles,
        memory + parts.points,
        memory + parts.scales,
        memory + parts.stash,
        call.spectrum,
        memory + parts.sums,
        memory + parts.total,
        memory + parts.counters,
        call.steps,
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
    return call.rows


def _strides_of(_: _Launcher, rows: _Rows) -> Any:
    """Return the strides of rows as the kernel takes them."""
    return type(LongBwdParams().strides)(*rows.strides)


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
    keys = [key for is_prepared in prepared for key in keys_of(problem, wanted, is_prepared=is_prepared)]
    return _launchers.warm(keys, archs)


def _plan(key: VjpKey, limits: ArchLimits) -> LongVjpPlan:
    return make_long_vjp_plan(key.problem, key.wanted, limits, is_vector=key.is_vector, is_prepared=key.is_prepared)


def _load(made: LongVjpPlan, kernels: Kernels, device: int) -> _Launcher:
    row_twiddles = device_table(made.config.row, True, device)
    return _Launcher(made, kernels[made.kernel], row_twiddles, tile_twiddles(made.config.tile_log2_radices, device))


_launchers = Launchers(_plan, _load)


def _plan_sums(key: tuple[Problem, Wanted, int], limits: ArchLimits) -> LongVjpPlan:
    problem, wanted, chains = key
    return make_sums_plan(problem, wanted, limits, chains=chains)


_sums_back = Launchers(_plan_sums, _load)
