"""A kernel of a few lines, in the form of the real ones, for tests of compiling, caching and loading."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from fftconv_cupy.source import KernelSpec

ENTRY = "fftconv_scratch"
ARCH = "sm_90"

_HEADER = """\
// Run-time parameters and a device function.
#pragma once
#include <cuda_fp16.h>

struct Params {
  float* out;
  float value;
  int count;
};

template <class F>
__device__ void each(int count, F&& body) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) body(i);
}
"""
_KERNEL = """\
// out[i] = FFTCONV_FACTOR * value, through shared memory.
#include "scratch.cuh"

extern __shared__ float s_value[];

extern "C" __global__ void __launch_bounds__(256) fftconv_scratch(const __grid_constant__ Params p) {
  s_value[threadIdx.x] = p.value;
  __syncthreads();
  each(p.count, [&](int i) { p.out[i] = FFTCONV_FACTOR * s_value[threadIdx.x]; });
}
"""


class Params(ctypes.Structure):
    """The struct of scratch.cuh."""

    _fields_ = (("out", ctypes.c_void_p), ("value", ctypes.c_float), ("count", ctypes.c_int))


def scratch_spec(factor: int = 3, fft_size: int = 64) -> KernelSpec:
    return KernelSpec(ENTRY, fft_size, (("FFTCONV_FACTOR", f"{factor}.f"),))


def write_scratch_kernel(folder: Path) -> Path:
    """Write the sources into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scratch.cuh").write_text(_HEADER, encoding="utf-8")
    (folder / f"{ENTRY}.cu").write_text(_KERNEL, encoding="utf-8")
    return folder


def start_python(code: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a fresh interpreter that runs ``code``; ``env`` is added to the environment."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run ``code`` in a fresh interpreter and return what it prints; it must succeed."""
    with start_python(code, *arguments, env=env) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.strip()
