"""The benchmark's own two kernels: random numbers and reading a buffer, for which CuPy would need cuRAND or CUB."""

from __future__ import annotations

from functools import cache
from typing import Any

from fftconv_cupy.dependencies import import_cupy

SOURCE = r"""
// Bits of v in the storage type of `bytes` and `is_bfloat`, to nearest even.
__device__ void store(void* out, long long i, float v, int bytes, int is_bfloat) {
  if (bytes == 4) {
    static_cast<float*>(out)[i] = v;
    return;
  }
  unsigned short bits;
  if (is_bfloat) {
    unsigned int u = __float_as_uint(v);
    bits = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  } else {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  }
  static_cast<unsigned short*>(out)[i] = bits;
}

// Normal random numbers times scale: SplitMix64 of the index, then Box and Muller.
extern "C" __global__ void fill_normal(void* out, long long n, float scale, int bytes, int is_bfloat,
                                       unsigned long long seed) {
  const long long step = 2ll * gridDim.x * blockDim.x;
  for (long long i = 2 * (blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x); i < n; i += step) {
    unsigned long long z = seed + (i / 2 + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    const float radius = scale * sqrtf(-2.f * logf((static_cast<unsigned int>(z >> 32) + 0.5f) * 0x1p-32f));
    float sine, cosine;
    sincospif(static_cast<unsigned int>(z) * 0x1p-31f, &sine, &cosine);
    store(out, i, radius * cosine, bytes, is_bfloat);
    if (i + 1 < n) store(out, i + 1, radius * sine, bytes, is_bfloat);
  }
}

extern "C" __global__ void read_all(const float4* data, long long n, float* sink) {
  float sum = 0.f;
  for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<long long>(gridDim.x) * blockDim.x) {
    const float4 v = data[i];
    sum += v.x + v.y + v.z + v.w;
  }
  if (sum == 1.2345f) *sink = sum;  // never: the buffer holds zeros, but the compiler does not know
}
"""
_THREADS = 256


def fill_normal(array: Any, *, seed: int, scale: float = 1.0) -> None:
    """Fill a packed CuPy array of float16, bfloat16 or float32 with normal random numbers of deviation ``scale``."""
    cupy = import_cupy()
    is_bfloat = str(array.dtype) == "bfloat16"
    blocks = min(65535, -(-array.size // (2 * _THREADS)))
    arguments = (
        cupy.uint64(array.data.ptr),
        cupy.int64(array.size),
        cupy.float32(scale),
        cupy.int32(array.itemsize),
        cupy.int32(is_bfloat),
        cupy.uint64(seed),
    )
    _function("fill_normal")((blocks,), (_THREADS,), arguments)


def read_all(array: Any, sink: Any) -> None:
    """Read a packed float32 array, of a multiple of four elements."""
    _launch_read(array.size // 4)(array, sink)


@cache
def _launch_read(quads: int) -> Any:
    """Return the launch of `read_all` with what does not change: it is between every two timed calls."""
    cupy = import_cupy()
    function, count, blocks = (
        _function("read_all"),
        cupy.int64(quads),
        (cupy.cuda.Device().attributes["MultiProcessorCount"] * 8,),
    )
    return lambda array, sink: function(blocks, (_THREADS,), (array, count, sink))


@cache
def _function(name: str) -> Any:
    return import_cupy().RawModule(code=SOURCE, options=("-std=c++17",)).get_function(name)
