"""What the kernels can do, under one name, whichever way a problem is computed.

`launch` transforms rows that fit a block, `launch_mma` such rows on tensor cores, `launch_cluster` those that fit a
cluster of blocks, `launch_long` longer ones and `launch_windows` windows of them; twins ``_vjp`` make gradients;
`depthwise` is for short depthwise convolutions. Imported when the first array on a GPU comes, for it needs CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from fftconv_cupy import (
    arrays,
    launch,
    launch_cluster,
    launch_cluster_vjp,
    launch_long,
    launch_long_vjp,
    launch_mma,
    launch_vjp,
    launch_windows,
    launch_windows_vjp,
)
from fftconv_cupy import launch_depthwise as depthwise
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.cluster_plan import cluster_config, make_cluster_plan
from fftconv_cupy.cluster_vjp_plan import gradient_cluster, make_cluster_vjp_plan
from fftconv_cupy.devices import device_limits
from fftconv_cupy.launch_windows import run_state, warm_state
from fftconv_cupy.long_plan import make_long_plan
from fftconv_cupy.long_vjp_plan import make_long_vjp_plan
from fftconv_cupy.mma_plan import make_mma_plan, precision_of
from fftconv_cupy.mma_vjp_plan import make_row_vjp_plan
from fftconv_cupy.plan import block_config, fits_block, make_plan
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.window_plan import checked_cut, cut_of, make_window_plan
from fftconv_cupy.window_vjp_plan import make_window_vjp_plan

__all__ = [
    "check",
    "check_vjp",
    "depthwise",
    "device_limits",
    "prepare",
    "run",
    "run_state",
    "run_vjp",
    "runner",
    "transform_of",
    "vjp_runner",
    "warm",
    "warm_state",
    "warm_vjp",
    "workspace_bytes",
]


def runner(problem: Problem, device: int) -> Callable[..., launch.Rows]:
    """Return the `run` of the module that computes a problem on a device."""
    run: Callable[..., launch.Rows] = _module(problem, device_limits(device)).run
    return run


def run(problem: Problem, u: ArrayView, *arguments: Any, **options: Any) -> launch.Rows:
    """Compute a problem; see `launch.run`."""
    return runner(problem, u.device)(problem, u, *arguments, **options)


def check(problem: Problem, device: int) -> None:
    """Raise what a call on this device would raise; see `launch.check`."""
    _module(problem, device_limits(device)).check(problem, device)


def prepare(problem: Problem, k: ArrayView, stream: int) -> tuple[Any, ArrayView]:
    """Compute the spectrum of a filter; see `launch.prepare`."""
    prepared: tuple[Any, ArrayView] = _module(problem, device_limits(k.device)).prepare(problem, k, stream)
    return prepared


def warm(problem: Problem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what a problem may need; see `launch.warm`."""
    if archs is None:
        lines: list[str] = _module(problem, device_limits(arrays.current_device())).warm(problem)
        return lines
    return [line for arch in archs for line in _module(problem, arch_limits(arch)).warm(problem, [arch])]


def check_vjp(problem: Problem, wanted: Wanted, device: int) -> None:
    """Raise what a call for gradients on this device would raise; see `launch_vjp.check_vjp`."""
    _vjp_module(problem, device_limits(device)).check_vjp(problem, wanted, device)


def vjp_runner(problem: Problem, device: int) -> Callable[..., Any]:
    """Return the `run_vjp` of the module that computes gradients of a problem on a device."""
    run: Callable[..., Any] = _vjp_module(problem, device_limits(device)).run_vjp
    return run


def run_vjp(problem: Problem, wanted: Wanted, dy: ArrayView, u: ArrayView, *arguments: Any, **options: Any) -> None:
    """Compute gradients; see `launch_vjp.run_vjp`."""
    vjp_runner(problem, u.device)(problem, wanted, dy, u, *arguments, **options)


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile what gradients may need; see `launch_vjp.warm_vjp`."""
    if archs is None:
        module = _vjp_module(problem, device_limits(arrays.current_device()))
        lines: list[str] = module.warm_vjp(problem, wanted)
        return lines
    modules = [(arch, _vjp_module(problem, arch_limits(arch))) for arch in archs]
    return [line for arch, module in modules for line in module.warm_vjp(problem, wanted, [arch])]


def transform_of(problem: Problem, device: int) -> tuple[str, int]:
    """Return the strategy of a problem on a device, and the complex points that its filter's transform has."""
    limits = device_limits(device)
    module = _module(problem, limits)
    if module is launch_windows:
        return "stateful" if problem.initial_state else "windows", checked_cut(problem, limits).config.points
    if module in (launch_cluster, launch_long):  # one spectrum serves both
        return "long", make_long_plan(problem, limits).config.points
    if module is launch_mma:
        made = make_mma_plan(problem, limits)
        return made.precision, made.tensor.points
    strategy, config = block_config(problem, limits)
    return strategy, config.points


def workspace_bytes(problem: Problem, device: int, wanted: Wanted | None = None) -> int:
    """Return the bytes of workspace of a call with a raw filter, whatever the alignment of its arrays.

    Args:
        problem: the convolution.
        device: ordinal of the device.
        wanted: which gradients; None means the output.
    """
    limits = device_limits(device)
    if wanted is not None:
        module = _vjp_module(problem, limits)
        if module is launch_windows_vjp:
            # The gradient of an initial state may be wanted too, which is none of those in `wanted`.
            plans = (make_window_vjp_plan(problem, wanted, limits, wants_state=one) for one in _with_state(problem))
            return max(made.workspace_bytes for made in plans)
        if module is launch_cluster_vjp:
            return make_cluster_vjp_plan(problem, wanted, limits).workspace_bytes
        if module is launch_long_vjp:
            return make_long_vjp_plan(problem, wanted, limits).workspace_bytes
        return make_row_vjp_plan(problem, wanted, limits).workspace_bytes
    module = _module(problem, limits)
    if module is launch_windows:
        return make_window_plan(problem, limits).workspace_bytes
    if module is launch_cluster:
        return make_cluster_plan(problem, limits).workspace_bytes
    if module is launch_long:
        return make_long_plan(problem, limits).workspace_bytes
    if module is launch_mma:
        return make_mma_plan(problem, limits).workspace_bytes
    return make_plan(problem, limits).workspace_bytes


def _with_state(problem: Problem) -> tuple[bool, ...]:
    """Return whether the gradient of an initial state may be wanted: no, or no and yes."""
    return (False, True) if problem.initial_state else (False,)


def _module(problem: Problem, limits: ArchLimits) -> ModuleType:
    """Return the module that computes a problem."""
    is_cut = problem.initial_state or cut_of(problem, limits) is not None
    if is_cut:
        return launch_windows
    if precision_of(problem, limits) != "highest":
        return launch_mma
    if fits_block(problem, limits):
        return launch
    return launch_long if cluster_config(problem, limits) is None else launch_cluster


def _vjp_module(problem: Problem, limits: ArchLimits) -> ModuleType:
    """Return the module that computes gradients of a problem."""
    is_cut = problem.initial_state or cut_of(problem, limits) is not None
    if is_cut:
        return launch_windows_vjp
    if fits_block(problem, limits, can_pair=False):
        return launch_vjp
    return launch_long_vjp if gradient_cluster(problem, limits) is None else launch_cluster_vjp
