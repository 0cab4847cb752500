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

// x += power * the segment; of the first, whose power is 1, x is set.
template <bool kIsFirst>
FFTCONV_DEVICE void add_segment(complex_t& x, float v, complex_t power) {
  x = kIsFirst ? complex_t{v, 0.f} : complex_t{fmaf(v, power.re, x.re), fmaf(v, power.im, x.im)};
}

template <class Traits, bool kIsGated>
FFTCONV_DEVICE void load_node(const FwdParams& p, complex_t* x, int batch, int channel,
                              const NodePowers<Traits::Node::kRanks>& powers) {
  using T = NodeTraits<Traits>;
  using io_t = typename Traits::io_t;
  constexpr int kRanks = Traits::Node::kRanks, kSegmentPoints = Traits::Layout::kPoints / kRanks;
  static_for<kRanks>([&](auto segment) {
    constexpr int first = segment.value * kSegmentPoints;
    const auto row = [&](const void* g_array, Strides strides) {
      return InputRow<T>(row_of<io_t>(g_array, strides, batch, channel) + first, p.in_len - first, threadIdx.x);
    };
    const auto u = row(p.u, p.u_strides), gate = row(p.in_gate, p.in_gate_strides);
    const complex_t power = powers.of[segment.value];
    for_each_access<T>([&](auto access) {
      using A = decltype(access);
      float2 v = u.load(access);
      if constexpr (kIsGated) v = multiply_each(v, gate.load(access));
      add_segment<first == 0>(x[A::kSlot], v.x, power);
      if constexpr (A::kIsPair) add_segment<first == 0>(x[A::kNext], v.y, power);
    });
  });
}

}  // namespace fftconv
