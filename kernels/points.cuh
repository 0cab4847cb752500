// What lies between the phases, in L2: never read through L1, since other blocks write it meanwhile. In float32, or in
// float16 by a scale: a power of two for each tile or row that is stored, from the largest value in it.
#pragma once
#include "layout.cuh"

namespace fftconv {

// x <-> the points at place(offset in the pass P) from `g_points` on. A place is a sum over the bits of the offset.
template <class P, class Place>
FFTCONV_DEVICE void load_points(complex_t* x, const complex_t* g_points, Place place) {
  static_for<P::kAccesses>([&](auto access) {
    constexpr int slot = P::slot(access.value, 0), next = P::slot(access.value, P::kWidth - 1);
    const complex_t* g_point = g_points + place(P::offset(slot));
    if constexpr (P::kWidth == 2) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(g_point));
      x[slot] = {v.x, v.y};
      x[next] = {v.z, v.w};
    } else {
      const float2 v = __ldcg(reinterpret_cast<const float2*>(g_point));
      x[slot] = {v.x, v.y};
    }
  });
}
template <class P, class Place>
FFTCONV_DEVICE void store_points(const complex_t* x, complex_t* g_points, Place place) {
  static_for<P::kAccesses>([&](auto access) {
    constexpr int slot = P::slot(access.value, 0), next = P::slot(access.value, P::kWidth - 1);
    complex_t* g_point = g_points + place(P::offset(slot));
    if constexpr (P::kWidth == 2) {
      __stcg(reinterpret_cast<float4*>(g_point), make_float4(x[slot].re, x[slot].im, x[next].re, x[next].im));
    } else {
      __stcg(reinterpret_cast<float2*>(g_point), make_float2(x[slot].re, x[slot].im));
    }
  });
}

FFTCONV_DEVICE unsigned pack_half(complex_t v, float scale) {
  const __half2 pair = __floats2half2_rn(v.re * scale, v.im * scale);
  return *reinterpret_cast<const unsigned*>(&pair);
}
FFTCONV_DEVICE complex_t unpack_half(unsigned bits, float scale) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&bits));
  return {pair.x * scale, pair.y * scale};
}

// The same in float16. g_scales[which(offset)] undoes the scale of the tile or row that a point comes from.
template <class P, class Place, class Which>
FFTCONV_DEVICE void load_half_points(complex_t* x, const unsigned* g_points, Place place, const float* g_scales,
                                     Which which) {
  static_for<P::kAccesses>([&](auto access) {
    constexpr int slot = P::slot(access.value, 0), next = P::slot(access.value, P::kWidth - 1);
    const unsigned* g_point = g_points + place(P::offset(slot));
    const float scale = __ldcg(g_scales + which(P::offset(slot)));
    if constexpr (P::kWidth == 2) {
      const uint2 v = __ldcg(reinterpret_cast<const uint2*>(g_point));
      x[slot] = unpack_half(v.x, scale);
      x[next] = unpack_half(v.y, scale);
    } else {
      x[slot] = unpack_half(__ldcg(g_point), scale);
    }
  });
}
template <class P, class Place>
FFTCONV_DEVICE void store_half_points(const complex_t* x, unsigned* g_points, Place place, float scale) {
  static_for<P::kAccesses>([&](auto access) {
    constexpr int slot = P::slot(access.value, 0), next = P::slot(access.value, P::kWidth - 1);
    unsigned* g_point = g_points + place(P::offset(slot));
    if constexpr (P::kWidth == 2) {
      __stcg(reinterpret_cast<uint2*>(g_point), make_uint2(pack_half(x[slot], scale), pack_half(x[next], scale)));
    } else {
      __stcg(g_point, pack_half(x[slot], scale));
    }
  });
}

// The power of two by which the largest value of a block comes to lie between 2^14 and 2^15, and its inverse; NaNs are
// passed over. s_largest: a float a warp, which no thread may be reading any more.
template <int kThreads, int kEpt>
FFTCONV_DEVICE float2 half_scale(const complex_t* x, float* s_largest) {
  float largest = 0.f;
  static_for<kEpt>(
      [&](auto slot) { largest = fmaxf(largest, fmaxf(fabsf(x[slot.value].re), fabsf(x[slot.value].im))); });
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  if constexpr (kThreads > 32) {
    if (threadIdx.x % 32 == 0) s_largest[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; warp++) largest = fmaxf(largest, s_largest[warp]);
  }
  // Exponents with their bias of 127, clamped so that the inverse is no denormal number.
  const int exponent = min(127 + 14 + 127 - static_cast<int>(__float_as_uint(largest) >> 23), 253);
  return make_float2(__uint_as_float(exponent << 23), __uint_as_float((254 - exponent) << 23));
}

}  // namespace fftconv
