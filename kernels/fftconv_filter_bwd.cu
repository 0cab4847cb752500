// The transpose of fftconv_filter: adds up what the blocks of fftconv_bwd summed of a channel, transforms it back, and
// takes from each lag of the ring the gradient of the taps that lie there. The value at lag 0 is the gradient of skip.
#include "block_fft.cuh"
#include "io.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// The gradient of tap `index`, from the values at all positions of the ring of `size` reals.
FFTCONV_DEVICE float tap_gradient(const Lags& lags, const float* s_ring, int index, int size) {
  if (lags.period > 0) index %= lags.period;
  const int lag = index - lags.shift, back = lags.negative_shift - index;
  float v = 0.f;
  if (lag >= 0 && lag < lags.positive) v = s_ring[lag];
  if (back > 0 && back <= lags.negative) v -= s_ring[size - back];
  return v;
}

template <class Config>
FFTCONV_DEVICE void differentiate_filter(const FilterBwdParams& p, complex_t* s_base) {
  using Layout = typename Config::Layout;
  using filter_t = typename Config::filter_t;
  using First = Pass<Layout, 0>;
  constexpr int kRowQuads = Layout::kPoints / 2;
  const int thread = threadIdx.x % Layout::kThreads, row = threadIdx.x / Layout::kThreads;
  complex_t* s_row = s_base + row * Layout::kRowSlots;
  const long long own_channel = static_cast<long long>(blockIdx.x) * Config::kRows + row;
  const bool is_active = own_channel < p.channels;
  const long long channel = is_active ? own_channel : p.channels - 1;

  const long long slot = channel / p.group_channels * p.group_chunks;
  const float4* g_sum = p.sums + (slot * p.group_channels + channel % p.group_channels) * kRowQuads + thread;
  complex_t x[Layout::kEpt];
  static_for<Layout::kEpt>([&](auto slot) { x[slot.value] = {0.f, 0.f}; });
#pragma unroll 1
  for (int i = 0; i < p.group_chunks; i++) {
    static_for<Layout::kEpt / 2>([&](auto index) {
      const float4 v = __ldg(g_sum + index.value * Layout::kThreads);
      complex_t &a = x[2 * index.value], &b = x[2 * index.value + 1];
      a = {a.re + v.x, a.im + v.y};
      b = {b.re + v.z, b.im + v.w};
    });
    g_sum += static_cast<long long>(p.group_channels) * kRowQuads;
  }
  BlockFft<Layout, 1>::template inverse<false>(x, s_row, thread, p.twiddles);

  // All 2M real values of the ring, in natural order.
  float* s_ring = reinterpret_cast<float*>(s_row);
  sync_threads<Layout::kThreads>();  // all have read the last exchange
  const int base = First::base(thread);
  static_for<Layout::kEpt>([&](auto slot) {
    const int position = base + First::offset(slot.value);
    s_ring[position] = x[slot.value].re;
    s_ring[position + Layout::kPoints] = x[slot.value].im;
  });
  sync_threads<Layout::kThreads>();
  if (!is_active) return;
  if (p.d_skip != nullptr && thread == 0) store_as(p.skip_type, p.d_skip, channel, s_ring[0]);
  if (p.dk == nullptr) return;
  filter_t* g_dk = static_cast<filter_t*>(p.dk) + channel * p.filter_len;
  for (int index = thread; index < p.filter_len; index += Layout::kThreads) {
    g_dk[index] = Storage<filter_t>::narrow(tap_gradient(p.lags, s_ring, index, 2 * Layout::kPoints));
  }
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::BlockLayout<FFTCONV_ROOTS, true, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using filter_t = FFTCONV_FILTER_T;
  static constexpr int kRows = FFTCONV_ROWS;
  static constexpr int kThreads = kRows * Layout::kThreads;
  static constexpr int kSharedBytes = kRows * Layout::kRowSlots * static_cast<int>(sizeof(fftconv::complex_t));
};
static_assert(Config::kSharedBytes == FFTCONV_SHARED_BYTES,
              "blocks.py and fftconv_filter_bwd.cu disagree on shared memory");
static_assert(sizeof(fftconv::FilterBwdParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_filter_bwd(const __grid_constant__ fftconv::FilterBwdParams p) {
  fftconv::differentiate_filter<Config>(p, reinterpret_cast<fftconv::complex_t*>(s_dynamic));
}
