// Load and store policies of rows that are transformed on tensor cores: neighbouring points by the word, gates, and the
// power of two by which each row is scaled so that halves hold it.
#pragma once
#include "io.cuh"
#include "mma_layout.cuh"

namespace fftconv {

// Points `index`, ... of a row, two a word; zero where the row has ended, `length` points from g_row on.
template <class Traits, int kWords>
FFTCONV_DEVICE void read_words(unsigned (&words)[kWords], const typename Traits::io_t* g_row, int index, int length) {
  if constexpr (Traits::kIsWide) {
    const bool is_inside = !Traits::kHasTail || index < length;
    if constexpr (kWords == 4) {
      const uint4 v = read_if<Memory::kGlobal>(is_inside, reinterpret_cast<const uint4*>(g_row + index));
      words[0] = v.x;
      words[1] = v.y;
      words[2] = v.z;
      words[3] = v.w;
    } else {
      const uint2 v = read_if<Memory::kGlobal>(is_inside, reinterpret_cast<const uint2*>(g_row + index));
      words[0] = v.x;
      words[1] = v.y;
    }
  } else {
    const unsigned short* g_bits = reinterpret_cast<const unsigned short*>(g_row);
#pragma unroll
    for (int i = 0; i < kWords; i++) {
      const unsigned first = read_if<Memory::kGlobal>(index + 2 * i < length, g_bits + index + 2 * i);
      const unsigned second = read_if<Memory::kGlobal>(index + 2 * i + 1 < length, g_bits + index + 2 * i + 1);
      words[i] = first | second << 16;
    }
  }
}

// Writes points index .. index + 3 of a row, as far as it goes.
template <class Traits>
FFTCONV_DEVICE void write_points(typename Traits::io_t* g_row, int index, int length, float4 v) {
  using S = Storage<typename Traits::io_t>;
  using pair_t = typename S::pair_t;
  if constexpr (Traits::kIsWide) {
    if (Traits::kHasTail && index >= length) return;
    alignas(8) const pair_t pairs[2] = {S::narrow2(v.x, v.y), S::narrow2(v.z, v.w)};
    *reinterpret_cast<uint2*>(g_row + index) = *reinterpret_cast<const uint2*>(pairs);
  } else {
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (index + i < length) g_row[index + i] = S::narrow(values[i]);
    }
  }
}

// The two points of a word.
template <class io_t>
FFTCONV_DEVICE float2 points_of(unsigned word) {
  using pair_t = typename Storage<io_t>::pair_t;
  return Storage<io_t>::widen2(*reinterpret_cast<const pair_t*>(&word));
}
template <class io_t>
FFTCONV_DEVICE unsigned word_of_ones() {
  const auto pair = Storage<io_t>::narrow2(1.f, 1.f);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// The arrays that rows are read from, and the points of a row.
struct StripArrays {
  const void* values;
  Strides value_strides;
  const void* gate;
  Strides gate_strides;
  int length;
  bool has_gate;
};

// What a thread reads of a strip: of each 16 lines those of `line_of`, kTiles neighbouring points of each.
template <class Traits>
struct StripInput {
  using Layout = typename Traits::Layout;
  using io_t = typename Traits::io_t;
  static constexpr int kWords = Layout::kTiles / 2;
  static constexpr bool kMayHaveGate = Traits::kExtras != Extras::kNone;

  unsigned words[Layout::kGroups][4][kWords];
  unsigned gate[Layout::kGroups][4][kMayHaveGate ? kWords : 1];

  FFTCONV_DEVICE static constexpr int line_of(int slot) { return slot / 2 * 8 + slot % 2; }  // + 2t
  // The row of the slab that a slot's line belongs to; lines from 16 on only exist where it is the only one.
  FFTCONV_DEVICE static int row_of_slot(int slot, int t) { return (line_of(slot) + 2 * t) / Layout::kRadix; }

  // at(row) gives batch and channel of a row of the slab.
  template <class At>
  FFTCONV_DEVICE void load(const StripArrays& arrays, int strip, int lane, At at) {
    const int g = lane / 4, t = lane % 4, column = (8 * strip + g) * Layout::kTiles;
#pragma unroll
    for (int slot = 0; slot < 4; slot++) {
      const auto where = at(Layout::kSlabRows == 1 ? 0 : row_of_slot(slot, t));
      // The thread's part of an address, and a constant where all lines are of one row.
      const int base = 256 * (Layout::kSlabRows == 1 ? 2 * t : (line_of(slot) + 2 * t) % Layout::kRadix) + column;
      const int length = arrays.length - base;
      const io_t* g_row = row_of<io_t>(arrays.values, arrays.value_strides, where.batch, where.channel) + base;
      const io_t* g_gate = row_of<io_t>(arrays.gate, arrays.gate_strides, where.batch, where.channel) + base;
#pragma unroll
      for (int group = 0; group < Layout::kGroups; group++) {
        const int offset = Layout::kSlabRows == 1 ? 256 * (16 * group + line_of(slot)) : 0;
        read_words<Traits>(words[group][slot], g_row, offset, length);
        if constexpr (kMayHaveGate) {
          if (arrays.has_gate) {
            read_words<Traits>(gate[group][slot], g_gate, offset, length);
          } else {
#pragma unroll
            for (int i = 0; i < kWords; i++) gate[group][slot][i] = word_of_ones<io_t>();
          }
        }
      }
    }
  }

  FFTCONV_DEVICE float2 values(int group, int slot, int word) const {
    const float2 v = points_of<io_t>(words[group][slot][word]);
    if constexpr (kMayHaveGate) return multiply_each(v, points_of<io_t>(gate[group][slot][word]));
    return v;
  }

  // The largest magnitude of a slot's points, as the bits of a float32: those of NaNs are largest.
  FFTCONV_DEVICE unsigned largest(int slot) const {
    unsigned bits = 0;
    if constexpr (kMayHaveGate) {
#pragma unroll
      for (int group = 0; group < Layout::kGroups; group++) {
#pragma unroll
        for (int i = 0; i < kWords; i++) {
          const float2 v = values(group, slot, i);
          bits = max(bits, max(__float_as_uint(v.x) & 0x7fffffffu, __float_as_uint(v.y) & 0x7fffffffu));
        }
      }
    } else {
#pragma unroll
      for (int group = 0; group < Layout::kGroups; group++) {
#pragma unroll
        for (int i = 0; i < kWords; i++) bits = larger_halves(bits, words[group][slot][i] & 0x7fff7fffu);
      }
      const float2 v = points_of<io_t>(bits);
      bits = max(__float_as_uint(v.x), __float_as_uint(v.y));
    }
    return bits;
  }
};

// How a row is scaled, told by its largest magnitude: to at most kLargest, a power of two that neither the transform
// nor a spectrum of magnitude 2 makes overflow halves. Rows that are not finite are transformed as zeros, since lines
// of several rows meet in a product, and come out as NaNs.
template <class Layout>
struct RowScale {
  static constexpr int kLog2Largest = 10;
  unsigned largest;  // bits of a float32

  FFTCONV_DEVICE bool is_finite() const { return largest < 0x7f800000u; }
  // The exponent of the power of two; the first pass adds up kRadix lines.
  FFTCONV_DEVICE int exponent() const {
    constexpr int kTarget = 126 + kLog2Largest - (Layout::kLog2Points - 8);
    return min(max(kTarget - static_cast<int>(largest >> 23), -126), 127);
  }
  FFTCONV_DEVICE float factor() const { return __uint_as_float((127 + exponent()) << 23); }
};

}  // namespace fftconv
