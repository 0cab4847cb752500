// Which point of a row a thread holds, pass by pass, and where points and twiddles lie in memory.
//
// A row of M points is transformed in a few passes of register DFTs. Before pass p the row is split into nodes of
// radix * stride points; a thread holds `kEpt` points in `kColumns` columns of `kRadix` points, `stride` apart. Between
// passes the points go through shared memory at their natural position. A thread writes back only to positions that it
// read itself, so an exchange takes one barrier.
#pragma once
#include "types.cuh"

namespace fftconv {

// kIsVector: neighbouring points of a row in global memory can be accessed together. The radices of these passes may
// multiply to less than the points: the nodes that are left are then not transformed (see tile.cuh).
template <bool kIsVector_, int kLog2Points_, int kLog2Ept_, int... kLog2Radices>
struct PassLayout {
  static constexpr bool kIsVector = kIsVector_;
  static constexpr int kLog2Points = kLog2Points_, kPoints = 1 << kLog2Points;
  static constexpr int kLog2Ept = kLog2Ept_, kEpt = 1 << kLog2Ept;  // complex points a thread
  static constexpr int kThreads = kPoints / kEpt;                   // threads a row
  static constexpr int kPasses = sizeof...(kLog2Radices);
  static constexpr int kRanks = 1, kFirst = 0;  // blocks that share a row, and the first of their passes: ClusterLayout
  static constexpr int kRoots = 1;              // nodes of the first pass: RootsLayout
  static constexpr bool kIsFirstAdjacent = kIsVector;  // see Pass::kIsAdjacent

  FFTCONV_DEVICE static constexpr int log2_radix(int pass) {
    const int radices[] = {kLog2Radices...};
    return radices[pass];
  }
  FFTCONV_DEVICE static constexpr int log2_nodes(int pass) {
    int sum = 0;
    for (int i = 0; i < pass; i++) sum += log2_radix(i);
    return sum;
  }

  // Two complex (16 bytes) of padding after each kEpt points keep 16-byte accesses free of bank conflicts. A position
  // is the sum of a thread's part and a constant with disjoint bits, so padding them apart gives the same address.
  static constexpr int kRowSlots = kPoints + 2 * (kPoints / kEpt);  // complex slots of shared memory a row
  FFTCONV_DEVICE static constexpr int pad(int point) { return point + 2 * (point >> kLog2Ept); }

  // Twiddle table (float4 = two twiddles), for each pass from 1 on: forward [radix / 4][nodes], inverse [radix /
  // 2][nodes].
  FFTCONV_DEVICE static constexpr int forward_table(int pass) {
    int offset = 0;
    for (int i = 1; i < pass; i++) offset += 3 << (log2_radix(i) - 2 + log2_nodes(i));
    return offset;
  }
  FFTCONV_DEVICE static constexpr int inverse_table(int pass) {
    return forward_table(pass) + (1 << (log2_radix(pass) - 2 + log2_nodes(pass)));
  }
};

// The passes of a whole transform.
template <bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct Layout : PassLayout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {
  using Base = PassLayout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...>;
  static_assert(Base::kPasses >= 2 && Base::log2_nodes(Base::kPasses) == kLog2Points,
                "the radices must multiply to the points of a row");
};

// The passes of a row of kRoots nodes of 2^kLog2Points points each, into which it is split before the first pass (see
// roots.cuh). A group of threads has a node, numbered as the nodes are. Their first pass too has tables of twiddles.
template <int kRoots_, bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct RootsLayout : Layout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {
  using Base = Layout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...>;
  static constexpr int kRoots = kRoots_;
  static constexpr int kPoints = kRoots * Base::kPoints, kThreads = kRoots * Base::kThreads;
  static constexpr int kRowSlots = kRoots * Base::kRowSlots;

  FFTCONV_DEVICE static constexpr int forward_table(int pass) {
    return pass == 0 ? 0 : kRoots * ((3 << (Base::log2_radix(0) - 2)) + Base::forward_table(pass));
  }
  FFTCONV_DEVICE static constexpr int inverse_table(int pass) {
    return forward_table(pass) + (kRoots << (Base::log2_radix(pass) - 2 + Base::log2_nodes(pass)));
  }
  static_assert(Base::kThreads >= 16 && kThreads > 32, "warps are made of whole nodes or nodes of whole warps");
};

// Of a row that a block transforms as a whole.
template <int kRoots, bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct BlockLayout : RootsLayout<kRoots, kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {};
template <bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct BlockLayout<1, kIsVector, kLog2Points, kLog2Ept, kLog2Radices...>
    : Layout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {};

// The passes of a row that is shared by a cluster of kRanks blocks. The first one makes a node for each and is done on
// the way from and to global memory (see slices.cuh). Its nodes never meet again: the block of rank r is the threads
// r * kThreads / kRanks .. of the other passes, and its exchange buffer that part of a row's.
template <int kRanks_, bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct ClusterLayout : Layout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {
  static constexpr int kRanks = kRanks_, kFirst = 1;
  static_assert(kRanks == 1 << ClusterLayout::log2_radix(0), "each block has a node");
};

// The first pass of such a row where each block does a slice of it. A thread has neighbouring columns always, as in the
// second pass: where they must be accessed point by point, two accesses take the place of one.
template <bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct SliceLayout : Layout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {
  static constexpr bool kIsFirstAdjacent = true;
};

// Of kRanks blocks that share a row, or one that has it all: the layouts of what they load and store, and transform.
template <int kRanks, int kRoots, bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct RowLayouts {
  static_assert(kRoots == 1, "blocks share rows of a power of two of points");
  using Slice = SliceLayout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...>;
  using Node = ClusterLayout<kRanks, true, kLog2Points, kLog2Ept, kLog2Radices...>;
};
template <int kRoots, bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct RowLayouts<1, kRoots, kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {
  using Slice = BlockLayout<kRoots, kIsVector, kLog2Points, kLog2Ept, kLog2Radices...>;
  using Node = Slice;
};

template <class Layout, int kPass>
struct Pass {
  static constexpr int kLog2Radix = Layout::log2_radix(kPass), kRadix = 1 << kLog2Radix;
  static constexpr int kNodes = Layout::kRoots << Layout::log2_nodes(kPass);
  static constexpr int kLog2Stride = Layout::kLog2Points - Layout::log2_nodes(kPass) - kLog2Radix;
  static constexpr int kColumns = Layout::kEpt / kRadix;
  static constexpr bool kIsLast = kLog2Stride == 0;
  static constexpr int kLog2NodeThreads = kIsLast ? 0 : kLog2Stride + kLog2Radix - Layout::kLog2Ept;
  static constexpr int kNodeThreads = 1 << kLog2NodeThreads;
  // Two columns a thread are neighbours where they can be, so that memory is accessed two points at a time. In the
  // first pass of rows that must be accessed point by point they are not: a warp then reads points that lie side by
  // side.
  static constexpr bool kIsAdjacent = !kIsLast && kColumns >= 2 && (kPass > Layout::kFirst || Layout::kIsFirstAdjacent);
  static constexpr int kWidth = kIsAdjacent || kIsLast ? 2 : 1;  // neighbouring points an access
  static constexpr int kAccesses = Layout::kEpt / kWidth;

  // The register slot of point `element` of access `access`: slot = column * kRadix + index in the DFT.
  FFTCONV_DEVICE static constexpr int slot(int access, int element) {
    if (kIsAdjacent) return (access / kRadix * 2 + element) * kRadix + access % kRadix;
    return access * kWidth + element;
  }
  // Position in the row of a slot, relative to the thread's base.
  FFTCONV_DEVICE static constexpr int offset(int slot) {
    const int column = slot / kRadix, point = (slot % kRadix) << kLog2Stride;
    if (kIsLast) return slot;
    if (kIsAdjacent) return point + column / 2 * 2 * kNodeThreads + column % 2;
    return point + column * kNodeThreads;
  }
  FFTCONV_DEVICE static int base(int thread) {
    if constexpr (kIsLast) return thread << Layout::kLog2Ept;
    const int node = thread >> kLog2NodeThreads, lane = thread & (kNodeThreads - 1);
    return (node << (kLog2Stride + kLog2Radix)) + lane * (kIsAdjacent ? 2 : 1);
  }
  // Index into a twiddle table of a column's node; the last pass has its nodes in the order that threads read them.
  FFTCONV_DEVICE static int table_index(int thread, int column) {
    if constexpr (kIsLast) return column * Layout::kThreads + thread;
    return thread >> kLog2NodeThreads;
  }

  static_assert(kColumns >= 1, "a radix may not exceed the points of a thread");
  static_assert(kLog2NodeThreads >= 0, "only the last pass may have nodes smaller than a thread's points");
  static_assert((kPass == 0 && Layout::kRoots == 1) || kLog2Radix >= 2, "twiddle tables hold groups of four");
};

// The pass whose points a thread reads from and writes to global memory.
template <class Layout>
using FirstPass = Pass<Layout, Layout::kFirst>;

}  // namespace fftconv
