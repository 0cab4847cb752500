// The taps of a filter by their place in the ring, for kernels whose filters have a storage type of their own that is
// told when they run.
#pragma once
#include "long_params.cuh"
#include "tile.cuh"

namespace fftconv {

// The sum of the taps at index, index + period, ...; in float64, for a filter of many periods folds to a long sum.
__device__ __noinline__ float folded_sum(int type, const void* g_array, long long first, long long end, int period) {
  double sum = 0;
#pragma unroll 1
  for (; first < end; first += period) sum += load_as(type, g_array, first);
  return static_cast<float>(sum);
}

// What lies at ring position `position` of `size` real ones.
FFTCONV_DEVICE float tap_of(const Taps& taps, long long row, int position, int size) {
  const Lags& lags = taps.lags;
  const bool is_negative = position >= size - lags.negative;
  if (position >= lags.positive && !is_negative) return 0.f;
  const int index = is_negative ? position - size + lags.negative_shift : position + lags.shift;
  if (index >= taps.length) return 0.f;
  const float tap = lags.period > 0 ? folded_sum(taps.type, taps.filter, row + index, row + taps.length, lags.period)
                                    : load_as(taps.type, taps.filter, row + index);
  return is_negative ? -tap : tap;
}

// x = the taps of a tile.
template <class Traits>
FFTCONV_DEVICE void load_taps(const Taps& taps, complex_t* x, int channel, int first_column, int thread) {
  using Tile = typename Traits::Layout;
  using P = Pass<Tile, 0>;
  const long long row = channel * taps.stride;
  const int base = Tile::place(P::base(thread)) + first_column;
  static_for<Tile::kEpt>([&](auto slot) {
    const int position = base + Tile::place(P::offset(slot.value));
    x[slot.value].re = tap_of(taps, row, position, 2 * Tile::kTotal);
    x[slot.value].im = 0.f;
    if constexpr (Traits::kIsComplex) x[slot.value].im = tap_of(taps, row, position + Tile::kTotal, 2 * Tile::kTotal);
  });
}

}  // namespace fftconv
