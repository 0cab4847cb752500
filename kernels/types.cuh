// Small vocabulary shared by every kernel: compile-time loops, the complex type, conversion of storage types.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define FFTCONV_DEVICE __device__ __forceinline__

namespace fftconv {

template <int kValue>
struct Int {
  static constexpr int value = kValue;
  FFTCONV_DEVICE constexpr operator int() const { return kValue; }
};

template <int kBegin, int kEnd, class Body>
FFTCONV_DEVICE void static_range(Body&& body) {
  constexpr int kLength = kEnd - kBegin;
  if constexpr (kLength > 8) {  // halves keep the template depth logarithmic, eights the number of instances small
    static_range<kBegin, kBegin + (kLength + 8) / 16 * 8>(body);
    static_range<kBegin + (kLength + 8) / 16 * 8, kEnd>(body);
  } else {
    if constexpr (kLength > 0) body(Int<kBegin>{});
    if constexpr (kLength > 1) body(Int<kBegin + 1>{});
    if constexpr (kLength > 2) body(Int<kBegin + 2>{});
    if constexpr (kLength > 3) body(Int<kBegin + 3>{});
    if constexpr (kLength > 4) body(Int<kBegin + 4>{});
    if constexpr (kLength > 5) body(Int<kBegin + 5>{});
    if constexpr (kLength > 6) body(Int<kBegin + 6>{});
    if constexpr (kLength > 7) body(Int<kBegin + 7>{});
  }
}

// Calls body(Int<0>{}) ... body(Int<kCount - 1>{}): the index is a constant, so register arrays stay in registers.
template <int kCount, class Body>
FFTCONV_DEVICE void static_for(Body&& body) {
  static_range<0, kCount>(body);
}

struct complex_t {
  float re, im;
};

// a * b
FFTCONV_DEVICE complex_t multiply(complex_t a, complex_t b) {
  return {fmaf(a.re, b.re, -a.im * b.im), fmaf(a.re, b.im, a.im * b.re)};
}

// a * conj(b)
FFTCONV_DEVICE complex_t multiply_conj(complex_t a, complex_t b) {
  return {fmaf(a.re, b.re, a.im * b.im), fmaf(a.im, b.re, -a.re * b.im)};
}

// Storage type <-> float32, one value or two neighbours. All arithmetic is float32; only loads and stores convert.
template <class io_t>
struct Storage;

template <>
struct Storage<float> {
  using pair_t = float2;
  FFTCONV_DEVICE static float widen(float v) { return v; }
  FFTCONV_DEVICE static float2 widen2(float2 v) { return v; }
  FFTCONV_DEVICE static float narrow(float v) { return v; }
  FFTCONV_DEVICE static float2 narrow2(float a, float b) { return make_float2(a, b); }
};

template <>
struct Storage<__half> {
  using pair_t = __half2;
  FFTCONV_DEVICE static float widen(__half v) { return __half2float(v); }
  FFTCONV_DEVICE static float2 widen2(__half2 v) { return __half22float2(v); }
  FFTCONV_DEVICE static __half narrow(float v) { return __float2half_rn(v); }
  FFTCONV_DEVICE static __half2 narrow2(float a, float b) { return __floats2half2_rn(a, b); }
};

template <>
struct Storage<__nv_bfloat16> {
  using pair_t = __nv_bfloat162;
  FFTCONV_DEVICE static float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
  FFTCONV_DEVICE static float2 widen2(__nv_bfloat162 v) { return __bfloat1622float2(v); }
  FFTCONV_DEVICE static __nv_bfloat16 narrow(float v) { return __float2bfloat16_rn(v); }
  FFTCONV_DEVICE static __nv_bfloat162 narrow2(float a, float b) { return __floats2bfloat162_rn(a, b); }
};

enum StorageType { kFloat16, kBfloat16, kFloat32 };  // in the order of blocks.py's CUDA_TYPES

// Values of arrays whose storage type is told when the kernel runs. Plain loads: one through the read-only path may be
// moved out of the condition that it stands under, and those of two types be joined there, where there may be no array.
FFTCONV_DEVICE float load_as(int type, const void* g_array, long long index) {
  if (type == kFloat32) return static_cast<const float*>(g_array)[index];
  if (type == kFloat16) return Storage<__half>::widen(static_cast<const __half*>(g_array)[index]);
  return Storage<__nv_bfloat16>::widen(static_cast<const __nv_bfloat16*>(g_array)[index]);
}

FFTCONV_DEVICE void store_as(int type, void* g_array, long long index, float v) {
  if (type == kFloat32) static_cast<float*>(g_array)[index] = v;
  if (type == kFloat16) static_cast<__half*>(g_array)[index] = Storage<__half>::narrow(v);
  if (type == kBfloat16) static_cast<__nv_bfloat16*>(g_array)[index] = Storage<__nv_bfloat16>::narrow(v);
}

}  // namespace fftconv
