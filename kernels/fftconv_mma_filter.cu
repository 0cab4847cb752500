// A filter's spectrum from the order and precision in which fftconv_filter leaves it to those that fftconv_mma_fwd
// reads: [j0][words][lane] of each channel, scaled by a power of two to magnitudes below 1, and a word with its
// exponent.
#include "mma_fft.cuh"
#include "mma_spectrum.cuh"

namespace fftconv {

// Kernel arguments; launch_mma.py holds the same structure as ctypes.
struct MmaFilterParams {
  const float4* spectrum;  // of fftconv_filter
  uint4* out;
};

template <class Config>
struct FilterConverter {
  using Layout = typename Config::Layout;
  static constexpr int kThreads = Config::kThreads, kPoints = Layout::kPoints;

  const complex_t* g_spectrum;  // of the channel

  // X[j]: in ring order it is at the position of j's bits reversed, in the slot of the thread that holds that one.
  FFTCONV_DEVICE complex_t at(int j) const {
    const int position = __brev(j) >> (32 - Layout::kLog2Points);
    const int thread = position >> Config::kLog2Ept, slot = position & ((1 << Config::kLog2Ept) - 1);
    return g_spectrum[2 * ((slot / 2) * (kPoints >> Config::kLog2Ept) + thread) + slot % 2];
  }

  // Bits of the channel's largest magnitude of a real or an imaginary part, in all threads.
  FFTCONV_DEVICE unsigned largest(unsigned* s_largest) const {
    unsigned bits = 0;
    for (int i = threadIdx.x; i < kPoints; i += kThreads) {
      const complex_t v = g_spectrum[i];
      bits = max(bits, max(__float_as_uint(v.re) & 0x7fffffffu, __float_as_uint(v.im) & 0x7fffffffu));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, distance));
    }
    if (threadIdx.x % 32 == 0) s_largest[threadIdx.x / 32] = bits;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kThreads / 32; i++) bits = max(bits, s_largest[i]);
    return bits;
  }

  // The factors of a lane in pairs of neighbouring columns j2, as MmaFft::convolve_line takes them.
  FFTCONV_DEVICE void write(uint4* g_out, int exponent) const {
    const bool is_finite = exponent != kNotFinite;
    for (int index = threadIdx.x; index < Layout::kRadix * 32; index += kThreads) {
      const int lane = index % 32, j0 = index / 32, g = lane / 4, t = lane % 4;
      uint4* g_words = g_out + j0 * Layout::kFactorWords * 32 + lane;
      float2 re[4], im[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int j1 = g + i % 2 * 8, j2 = 2 * t + i / 2 * 8, j = j0 + Layout::kRadix * (j1 + 16 * j2);
        const complex_t a = at(j), b = at(j + 16 * Layout::kRadix);
        re[i] = scaled(a.re, b.re, is_finite, exponent);
        im[i] = scaled(a.im, b.im, is_finite, exponent);
      }
      g_words[0] = packed(re);
      g_words[32] = packed(im);
    }
    if (threadIdx.x == 0) g_out[Layout::kSpectrumWords] = make_uint4(static_cast<unsigned>(exponent), 0, 0, 0);
  }

 private:
  FFTCONV_DEVICE static float2 scaled(float a, float b, bool is_finite, int exponent) {
    if (!is_finite) return make_float2(0.f, 0.f);
    return make_float2(times_power(a, -exponent), times_power(b, -exponent));
  }
  FFTCONV_DEVICE static uint4 packed(const float2 (&v)[4]) {
    return make_uint4(pack_halves(v[0].x, v[0].y), pack_halves(v[1].x, v[1].y), pack_halves(v[2].x, v[2].y),
                      pack_halves(v[3].x, v[3].y));
  }
};

template <class Config>
FFTCONV_DEVICE void convert_filter(const MmaFilterParams& p) {
  __shared__ unsigned s_largest[Config::kThreads / 32];
  using Layout = typename Config::Layout;
  const long long channel = blockIdx.x;
  const FilterConverter<Config> converter = {reinterpret_cast<const complex_t*>(p.spectrum)
                                             + channel * Layout::kPoints};
  const int exponent = exponent_above(converter.largest(s_largest));
  converter.write(p.out + channel * (Layout::kSpectrumWords + 1), exponent);
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::MmaLayout<FFTCONV_LOG2_POINTS, 1, 8>;
  static constexpr int kLog2Ept = FFTCONV_LOG2_EPT, kThreads = FFTCONV_THREADS;
};
static_assert(sizeof(fftconv::MmaFilterParams) == FFTCONV_PARAMS_BYTES,
              "launch_mma.py and fftconv_mma_filter.cu disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    fftconv_mma_filter(const __grid_constant__ fftconv::MmaFilterParams p) {
  fftconv::convert_filter<Config>(p);
}
