"""What the kernels can do, under one name: `launch` makes outputs, `launch_vjp` gradients.

Imported when the first array on a GPU comes, for it needs CuPy.
"""

from __future__ import annotations

from fftconv_cupy.launch import check, device_limits, prepare, run, warm
from fftconv_cupy.launch_vjp import check_vjp, run_vjp, warm_vjp
from fftconv_cupy.plan import make_plan
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.vjp_plan import make_vjp_plan

__all__ = [
    "check",
    "check_vjp",
    "device_limits",
    "prepare",
    "run",
    "run_vjp",
    "warm",
    "warm_vjp",
    "workspace_bytes",
]


def workspace_bytes(problem: Problem, device: int, wanted: Wanted | None = None) -> int:
    """Return the bytes of workspace of a call with a raw filter, whatever the alignment of its arrays.

    Args:
        problem: the convolution.
        device: ordinal of the device.
        wanted: which gradients; None means the output.
    """
    limits = device_limits(device)
    if wanted is None:
        return make_plan(problem, limits).workspace_bytes
    return make_vjp_plan(problem, wanted, limits).workspace_bytes
