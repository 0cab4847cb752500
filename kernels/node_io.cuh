// Reads one of the nodes of the first pass of a row, of which each block of a cluster has one (see slices.cuh), without
// an exchange: node r of a real row is the row modulo z^(M/C) - t with t = e((1/4 + bitrev(r)) / C), the sum of its C
// segments times the powers of t. Each block reads all of the row: from global memory it comes once, from L2 C times.
#pragma once
#include "dft.cuh"
#include "io.cuh"

namespace fftconv {

FFTCONV_DEVICE constexpr int log2_of(int value) { return value == 1 ? 0 : 1 + log2_of(value / 2); }

template <int kRanks>
struct NodePowers {
  complex_t of[kRanks];  // t^c

  FFTCONV_DEVICE complex_t at(int c) const {
    complex_t power = of[0];
    static_for<kRanks>([&](auto index) {
      if (c == index.value) power = of[index.value];
    });
    return power;
  }
};

template <int kRanks>
FFTCONV_DEVICE NodePowers<kRanks> node_powers(int own_rank) {
  NodePowers<kRanks> powers;
  static_for<kRanks>([&](auto rank) {
    constexpr int turns = kTurn / 4 + kTurn * bit_reverse(rank.value, log2_of(kRanks));
    if (own_rank == rank.value) {
      static_for<kRanks>([&](auto segment) {
        constexpr int angle = reduce_angle(turns * segment.value / kRanks);
        powers.of[segment.value] = {Root<angle>::re, Root<angle>::im};
      });
    }
  });
  return powers;
}

// The accesses of a thread to a segment of the row are those to a node.
template <class Traits>
struct NodeTraits : Traits {
  struct Layout : Traits::Node {
    static constexpr bool kIsVector = Traits::Layout::kIsVector;
  };
};

FFTCONV_DEVICE void add_multiple(complex_t& x, float v, complex_t power) {
  x = {fmaf(v, power.re, x.re), fmaf(v, power.im, x.im)};
}

// Of a row of `length` points, and of its gate. Traits::kLoopsOverSegments: one after the other, so that the kernel's
// instructions fit in their cache; else the loads of all segments are under way at once.
template <class Traits, bool kIsGated>
FFTCONV_DEVICE void load_node(complex_t* x, const NodePowers<Traits::Node::kRanks>& powers,
                              const typename Traits::io_t* g_row, const typename Traits::io_t* g_gate, int length) {
  using T = NodeTraits<Traits>;
  constexpr int kRanks = Traits::Node::kRanks, kSegmentPoints = Traits::Layout::kPoints / kRanks;
  static_for<Traits::Layout::kEpt>([&](auto slot) { x[slot.value] = {0.f, 0.f}; });
#pragma unroll(Traits::kLoopsOverSegments ? 1 : kRanks)
  for (int segment = 0; segment < kRanks; segment++) {
    const int first = segment * kSegmentPoints, thread = threadIdx.x;
    const InputRow<T> row(g_row + first, length - first, thread), gate(g_gate + first, length - first, thread);
    const complex_t power = powers.at(segment);
    for_each_access<T>([&](auto access) {
      using A = decltype(access);
      float2 v = row.load(access);
      if constexpr (kIsGated) v = multiply_each(v, gate.load(access));
      add_multiple(x[A::kSlot], v.x, power);
      if constexpr (A::kIsPair) add_multiple(x[A::kNext], v.y, power);
    });
  }
}
template <class Traits>
FFTCONV_DEVICE void load_node(complex_t* x, const NodePowers<Traits::Node::kRanks>& powers,
                              const typename Traits::io_t* g_row, const typename Traits::io_t* g_gate, int length,
                              bool is_gated) {
  if (is_gated) {
    load_node<Traits, true>(x, powers, g_row, g_gate, length);
  } else {
    load_node<Traits, false>(x, powers, g_row, g_gate, length);
  }
}

}  // namespace fftconv
