"""Python's time of warm calls, without a GPU: all of a call but the driver and the frameworks' pools of GPU memory.

    python tests/host_overhead.py [calls]

Arrays say that they lie on a GPU, which is played, and kernels that they were launched. The times are the fast end of
so many calls, to be compared on one machine only; on a GPU `fftconv bench --suite overhead` takes the whole time.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
import pytest
import torch
from host_runtime.cupy_host import host_backed_gpu

import fftconv_cupy.torch
from fftconv_cupy import driver, fftconv, fftconv_vjp, launch, launchers, prepare_filter
from fftconv_cupy.compile import LoadedKernel

SHAPE, TAPS = (1, 16, 1024), (16, 1024)
_MEMORY = np.zeros(1 << 22, np.uint8)


@contextmanager
def idle_gpu() -> Iterator[list[int]]:
    """Play a GPU on which every launch is done at once; yield a list of how many there were."""
    launched = [0]

    def start(*_: Any) -> int:
        launched[0] += 1
        return 0

    def load(spec: object, arch: str, smem_bytes: int, device: int) -> LoadedKernel:
        return LoadedKernel(fake, SimpleNamespace(ptr=1), 1, smem_bytes)

    fake = SimpleNamespace(ctxGetCurrent=lambda: 1, ctxSetCurrent=None, launchKernel=start, CUDADriverError=None)
    early = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *(ctypes.c_void_p,) * 3)(start)
    memory = cupy.cuda.memory.UnownedMemory(-(-_MEMORY.ctypes.data // 512) * 512, 1 << 21, _MEMORY, 0)
    with pytest.MonkeyPatch.context() as patch, host_backed_gpu("sm_90"):
        for module in (launch, launchers):
            patch.setattr(module, "load_kernel", load)
        patch.setattr(driver, "_launch_kernel_ex", lambda: early)
        cupy.cuda.set_allocator(lambda size: cupy.cuda.MemoryPointer(memory, 0))
        guards = torch._C._dynamo.guards
        patch.setattr(guards, "_empty_strided_cuda", guards._empty_strided_cpu, raising=False)
        patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
        patch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
        for name, value in (("is_cuda", True), ("is_cpu", False), ("get_device", lambda tensor: 0)):
            patch.setattr(torch.Tensor, name, value)
        yield launched


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is timed; to be used on an idle GPU."""
    rows, taps = cupy.ndarray(SHAPE, np.float16), cupy.ndarray(TAPS, np.float32)
    prepared = prepare_filter(taps, seqlen=SHAPE[-1])
    yield "CuPy, prepared filter", lambda: fftconv(rows, prepared)
    yield "CuPy, taps", lambda: fftconv(rows, taps)
    yield "CuPy, gradients", lambda: fftconv_vjp(rows, rows, taps)
    u, k = torch.zeros(SHAPE, dtype=torch.float16), torch.zeros(TAPS)
    spectrum = prepare_filter(k, seqlen=SHAPE[-1])
    yield "torch, prepared filter", lambda: fftconv(u, spectrum)
    yield "torch, taps", lambda: fftconv(u, k)
    operator = fftconv_cupy.torch.fftconv
    yield "torch's operator, prepared filter", lambda: operator(u, spectrum)
    yield "torch's operator, taps", lambda: operator(u, k)
    leaves = (u.clone().requires_grad_(), k.clone().requires_grad_())
    yield "torch's operator, prepared filter, with grad", lambda: operator(leaves[0], spectrum)
    yield "torch's operator, taps, with grad", lambda: operator(*leaves)
    yield "torch's operator, taps, and backward", lambda: torch.autograd.grad(operator(*leaves), leaves, u)


def microseconds(call: Callable[[], Any], count: int) -> float:
    """Return the time of a call, which one in twenty calls undercuts: other processes make the median unsteady."""
    call()
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started)
    return sorted(times)[count // 20] / 1e3


def main(count: int = 4000) -> None:
    """Print the times, with the launches of a call."""
    with idle_gpu() as launched:
        for name, call in calls():
            call()
            launched[0] = 0
            call()
            launches = launched[0]
            print(f"{name:46} {launches} launch(es)  {microseconds(call, count):7.2f} us")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
