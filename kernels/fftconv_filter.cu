// The spectrum of each channel's filter, in ring order, as fftconv_fwd reads it: float4 [kEpt / 2][threads a row], with
// 1 / M folded in. It comes out of the same passes as the rows' transforms, so its order needs no permutation.
#include "block_fft.cuh"
#include "io.cuh"
#include "ptx.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// The sum of the taps at index, index + period, ...; in float64, for a filter of many periods folds to a long sum. Not
// inlined at each of a thread's positions: only filters longer than the period are folded.
template <class filter_t>
__device__ __noinline__ float folded_tap(const filter_t* g_filter, long long index, int period, int filter_len) {
  double sum = 0;
#pragma unroll 1
  for (; index < filter_len; index += period) sum += Storage<filter_t>::widen(g_filter[index]);
  return static_cast<float>(sum);
}

// The tap at ring position `position` of `size` real ones.
template <class Config>
FFTCONV_DEVICE float tap_at(const FilterParams& p, const typename Config::filter_t* g_filter, int position, int size) {
  using S = Storage<typename Config::filter_t>;
  if constexpr (!Config::kIsGeneral) {
    return position < p.lags.positive ? S::widen(__ldg(g_filter + position)) : 0.f;
  } else {
    const bool is_negative = position >= size - p.lags.negative;
    if (position >= p.lags.positive && !is_negative) return 0.f;
    const int index = is_negative ? position - size + p.lags.negative_shift : position + p.lags.shift;
    float tap = 0.f;
    if (p.lags.period > 0) {
      tap = folded_tap(g_filter, index, p.lags.period, p.filter_len);
    } else if (index < p.filter_len) {
      tap = S::widen(__ldg(g_filter + index));
    }
    return is_negative ? -tap : tap;
  }
}

template <class Config>
FFTCONV_DEVICE void transform_filter(const FilterParams& p, complex_t* s_base) {
  using Layout = typename Config::Layout;
  using filter_t = typename Config::filter_t;
  using First = Pass<Layout, 0>;
  start_dependent_kernel();
  const int thread = threadIdx.x % Layout::kThreads, row = threadIdx.x / Layout::kThreads;
  complex_t* s_row = s_base + row * Layout::kRowSlots;
  const long long own_channel = static_cast<long long>(blockIdx.x) * Config::kRows + row;
  const bool is_active = own_channel < p.channels;
  const long long channel = is_active ? own_channel : p.channels - 1;
  const filter_t* g_filter = static_cast<const filter_t*>(p.filter) + channel * p.filter_stride;

  // Negacyclic: 2M reals, point n + M as the imaginary part of point n. Cyclic: M reals.
  complex_t x[Layout::kEpt];
  const int base = First::base(thread);
  constexpr int kSize = Config::kQuarters == 0 ? Layout::kPoints : 2 * Layout::kPoints;
  static_for<Layout::kEpt>([&](auto slot) {
    const int position = base + First::offset(slot.value);
    x[slot.value].re = tap_at<Config>(p, g_filter, position, kSize);
    x[slot.value].im = 0.f;
    if constexpr (Config::kIsComplex) x[slot.value].im = tap_at<Config>(p, g_filter, position + Layout::kPoints, kSize);
  });
  BlockFft<Layout, Config::kQuarters>::template forward<!Config::kIsComplex>(x, s_row, thread, p.twiddles, [] {});
  if (!is_active) return;
  float4* g_spectrum = p.spectrum + channel * (Layout::kPoints / 2) + thread;
  static_for<Layout::kEpt / 2>([&](auto i) {
    const complex_t a = x[2 * i.value], b = x[2 * i.value + 1];
    g_spectrum[i.value * Layout::kThreads] =
        make_float4(a.re * p.scale, a.im * p.scale, b.re * p.scale, b.im * p.scale);
  });
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::BlockLayout<FFTCONV_ROOTS, true, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using filter_t = FFTCONV_FILTER_T;
  static constexpr int kQuarters = FFTCONV_QUARTERS, kRows = FFTCONV_ROWS;
  static constexpr bool kIsGeneral = FFTCONV_IS_GENERAL;            // not just taps 0 .. M - 1 at their own positions
  static constexpr bool kIsComplex = kIsGeneral && kQuarters != 0;  // taps may lie at ring positions from M on
  static constexpr int kThreads = kRows * Layout::kThreads;
  static constexpr int kSharedBytes = kRows * Layout::kRowSlots * static_cast<int>(sizeof(fftconv::complex_t));
};
static_assert(Config::kSharedBytes == FFTCONV_SHARED_BYTES, "plan.py and fftconv_filter.cu disagree on shared memory");
static_assert(sizeof(fftconv::FilterParams) == FFTCONV_PARAMS_BYTES, "launch.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_filter(const __grid_constant__ fftconv::FilterParams p) {
  fftconv::transform_filter<Config>(p, reinterpret_cast<fftconv::complex_t*>(s_dynamic));
}
