// What the kernels on tensor cores have in common: which strip a warp has, the first pass, and the scale of each row.
#pragma once
#include "mma_fft.cuh"
#include "mma_io.cuh"
#include "mma_spectrum.cuh"

namespace fftconv {

// Where a row of a block lies. Rows without a job of their own repeat another one's, and store nothing.
struct BlockRow {
  int batch, channel;
  bool is_active;
};

// Rows are told by their slab and their place in it. Shared memory is the slabs, and the largest magnitude of each
// strip of each row.
template <class Traits>
struct StripWarp {
  using Layout = typename Traits::Layout;
  using Fft = MmaFft<Layout>;
  static constexpr int kLargestOffset = Layout::kSlabs * Layout::kSlabBytes;
  static constexpr int kSharedBytes = kLargestOffset + Layout::kRows * Layout::kStrips * 4;

  char* s_base;
  unsigned* s_largest;  // bits of the largest magnitude, [row][strip]
  const uint4* g_table;
  int lane, warp, slab, strip;

  FFTCONV_DEVICE StripWarp(char* s_memory, const void* table) : s_base(s_memory) {
    s_largest = reinterpret_cast<unsigned*>(s_memory + kLargestOffset);
    g_table = static_cast<const uint4*>(table);
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    slab = warp / Layout::kStrips;
    strip = warp % Layout::kStrips;
  }

  FFTCONV_DEVICE char* slab_at(int slab) const { return s_base + slab * Layout::kSlabBytes; }

  // The scale of a row, once all warps have put down theirs.
  FFTCONV_DEVICE RowScale<Layout> scale_of(int slab, int row) const {
    const unsigned* s_row = s_largest + (slab * Layout::kSlabRows + row) * Layout::kStrips;
    RowScale<Layout> scale = {0};
#pragma unroll
    for (int i = 0; i < Layout::kStrips; i++) scale.largest = max(scale.largest, s_row[i]);
    return scale;
  }
  // What turns results into those of the row: the scales taken back, of which `exponent` is the channel's.
  FFTCONV_DEVICE float result_factor(int slab, int row, int exponent) const {
    const RowScale<Layout> scale = scale_of(slab, row);
    if (!scale.is_finite() || exponent == kNotFinite) return __uint_as_float(0x7fffffffu);
    return times_power(Traits::kGain, exponent - scale.exponent());
  }

  // The first pass of the warp's strip; at(row) tells where a row of its slab lies.
  template <class At>
  FFTCONV_DEVICE void transform(const StripArrays& arrays, At at) const {
    const int t = lane % 4;
    StripInput<Traits> input;
    input.load(arrays, strip, lane, at);
    put_largest(input);
    __syncthreads();
    unsigned b[Layout::kGroups][Layout::kTiles][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float factor[2];
      unsigned kept = 0;  // bits of a word of two lines, but those of rows that are not finite
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int slot = 2 * half + i;
        const RowScale<Layout> scale = scale_of(slab, Layout::kSlabRows == 1 ? 0 : input.row_of_slot(slot, t));
        factor[i] = scale.factor();
        if (scale.is_finite()) kept |= i == 0 ? 0xffffu : 0xffff0000u;
      }
#pragma unroll
      for (int group = 0; group < Layout::kGroups; group++) {
#pragma unroll
        for (int word = 0; word < Layout::kTiles / 2; word++) {
          const float2 upper = input.values(group, 2 * half, word), lower = input.values(group, 2 * half + 1, word);
          b[group][2 * word][half] = pack_halves(upper.x * factor[0], lower.x * factor[1]) & kept;
          b[group][2 * word + 1][half] = pack_halves(upper.y * factor[0], lower.y * factor[1]) & kept;
        }
      }
    }
    Fft::forward_strip(b, slab_at(slab), strip, lane, g_table);
  }

  // The filter's spectrum of a line, with the skip term.
  template <class Params>
  FFTCONV_DEVICE void load_spectrum(const Params& p, Factors& spectrum, int channel, int line) const {
    const uint4* g_spectrum = reinterpret_cast<const uint4*>(p.spectrum) + channel * p.spectrum_stride;
    spectrum.load(g_spectrum + line % Layout::kRadix * Layout::kFactorWords * 32, lane);
    if constexpr (Traits::kExtras == Extras::kAny) {
      const ChannelScale scale = channel_scale<Traits>(p, channel);
      spectrum.adjust(scale.scale, scale.added);
    }
  }

 private:
  // Puts down the largest magnitudes that this warp has seen of its slab's rows.
  FFTCONV_DEVICE void put_largest(const StripInput<Traits>& input) const {
    const int t = lane % 4;
    unsigned bits[4];
#pragma unroll
    for (int slot = 0; slot < 4; slot++) bits[slot] = input.largest(slot);
    if constexpr (Layout::kRadix >= 2) {  // neighbouring lines are of the same row
      bits[0] = max(bits[0], bits[1]);
      bits[2] = max(bits[2], bits[3]);
    }
    if constexpr (Layout::kRadix >= 16) bits[0] = max(bits[0], bits[2]);
    constexpr int kStep = Layout::kRadix >= 16 ? 4 : Layout::kRadix >= 2 ? 2 : 1;
#pragma unroll
    for (int slot = 0; slot < 4; slot += kStep) {
#pragma unroll
      for (int distance = Layout::kRadix >= 4 ? 1 : 4; distance < 32; distance *= 2) {
        if (Layout::kRadix == 4 && distance == 2) continue;  // lanes of two rows
        bits[slot] = max(bits[slot], __shfl_xor_sync(0xffffffffu, bits[slot], distance));
      }
      const int row = Layout::kSlabRows == 1 ? 0 : StripInput<Traits>::row_of_slot(slot, t);
      constexpr int kLanes = Layout::kRadix >= 8 ? 4 : Layout::kRadix == 4 ? 2 : 1;  // of the first four, to a row
      if (lane < 4 && lane % kLanes == 0)
        s_largest[(slab * Layout::kSlabRows + row) * Layout::kStrips + strip] = bits[slot];
    }
  }
};

}  // namespace fftconv
