// The spectrum of a filter as tensor cores take it: each channel scaled by a power of two to magnitudes below 1.
#pragma once
#include "mma_layout.cuh"
#include "spectrum.cuh"

namespace fftconv {

constexpr int kNotFinite = 1 << 20;   // exponent of a spectrum that holds infinities or NaNs, stored as zeros
constexpr int kZeroExponent = -4096;  // of a spectrum of zeros

// value * 2^exponent, for exponents from -252 to 252; what lies beyond is taken for these.
FFTCONV_DEVICE float times_power(float value, int exponent) {
  exponent = min(max(exponent, -252), 252);
  const int half = exponent >> 1;
  return value * __uint_as_float((127 + half) << 23) * __uint_as_float((127 + exponent - half) << 23);
}

// The exponent e of the least power of two 2^e above a magnitude, given as the bits of a float32.
FFTCONV_DEVICE int exponent_above(unsigned bits) {
  if (bits >= 0x7f800000u) return kNotFinite;
  return bits == 0 ? kZeroExponent : max(static_cast<int>(bits >> 23), 1) - 126;
}

// A channel's spectrum with its skip term: `scale` times the stored one, plus `added`; 2^exponent times that is true.
struct ChannelScale {
  int exponent;
  float scale, added;
};

// Behind the spectrum of a channel lies a word with its exponent.
template <class Traits, class Params>
FFTCONV_DEVICE ChannelScale channel_scale(const Params& p, int channel) {
  const uint4* g_words = reinterpret_cast<const uint4*>(p.spectrum) + channel * p.spectrum_stride;
  ChannelScale result = {static_cast<int>(__ldg(g_words + Traits::Layout::kSpectrumWords).x), 1.f, 0.f};
  if constexpr (Traits::kExtras == Extras::kAny) {
    const float skip = spectrum_skip<Traits>(p, channel);
    const int own = result.exponent, other = exponent_above(__float_as_uint(skip) & 0x7fffffffu);
    result.exponent = max(own, other);
    if (result.exponent == kNotFinite) return {kNotFinite, 0.f, 0.f};
    result.scale = times_power(1.f, own - result.exponent);
    result.added = times_power(skip, -result.exponent);
  }
  return result;
}

}  // namespace fftconv
