// The transforms of a row by those who share it: one block, or the blocks of a cluster, each of which has a slice of
// the row's points and a node of its spectrum (see slices.cuh).
#pragma once
#include "block_fft.cuh"
#include "node_io.cuh"
#include "slices.cuh"

namespace fftconv {

// Of one block, which has the whole row. Slice is the layout of what it loads and stores, Node that of its transform.
template <class Slice, class Node, bool kIsShared = (Node::kRanks > 1)>
struct RowFft {
  using Fft = BlockFft<Node, 1>;
  static constexpr int kBarriers = 0;
  complex_t* s_exchange;
  int thread;

  FFTCONV_DEVICE RowFft(complex_t* s_row, unsigned long long*, int thread_of_row)
      : s_exchange(s_row), thread(thread_of_row) {}

  // Before the points for forward() are loaded, when the block's threads have done with the exchanges before.
  FFTCONV_DEVICE void make_ready() {
    if constexpr (Node::kRoots > 1) __syncthreads();
  }
  // kIsReal: points have no imaginary parts, or those are not wanted.
  template <bool kIsReal>
  FFTCONV_DEVICE void forward(complex_t* x, const float4* g_twiddles) {
    Fft::template forward<kIsReal>(x, s_exchange, thread, g_twiddles, [] {});
  }
  template <bool kIsReal>
  FFTCONV_DEVICE void inverse(complex_t* x, const float4* g_twiddles) {
    Fft::template inverse<kIsReal>(x, s_exchange, thread, g_twiddles);
  }
};

// Of a block of a cluster.
template <class Slice, class Node>
struct RowFft<Slice, Node, true> {
  using RootFft = BlockFft<Slice, 1>;
  using Fft = BlockFft<Node, 1>;
  using Exchange = SliceExchange<Slice, Node>;
  static constexpr int kBarriers = Exchange::kBarriers;
  Exchange exchange;
  NodePowers<Node::kRanks> powers;
  complex_t* s_exchange;  // where that of rank 0 would begin
  int thread;             // of the cluster

  // All blocks of the cluster must have come here before any goes on.
  FFTCONV_DEVICE RowFft(complex_t* s_block, unsigned long long* s_barriers, int thread_of_block)
      : exchange(s_block - cluster_rank<Node>() * (Node::kRowSlots / Node::kRanks), s_barriers,
                 thread_of_block + cluster_rank<Node>() * (Node::kThreads / Node::kRanks), cluster_rank<Node>()),
        powers(node_powers<Node::kRanks>(cluster_rank<Node>())),
        s_exchange(s_block - cluster_rank<Node>() * (Node::kRowSlots / Node::kRanks)),
        thread(thread_of_block + cluster_rank<Node>() * (Node::kThreads / Node::kRanks)) {}

  // Before the points for forward() are loaded, when all threads of the block have read the exchanges before.
  FFTCONV_DEVICE void make_ready() { exchange.make_ready(); }
  template <bool kIsReal>
  FFTCONV_DEVICE void forward(complex_t* x, const float4* g_twiddles) {
    RootFft::template forward_root_pass<kIsReal>(x);
    exchange.forward(x);
    forward_node(x, g_twiddles);
  }
  // From the own node, as load_node reads it.
  FFTCONV_DEVICE void forward_node(complex_t* x, const float4* g_twiddles) {
    Fft::template forward<false>(x, s_exchange, thread, g_twiddles, [] {});
  }
  template <bool kIsReal>
  FFTCONV_DEVICE void inverse(complex_t* x, const float4* g_twiddles) {
    Fft::template inverse<false>(x, s_exchange, thread, g_twiddles, [&] { exchange.make_ready(); });
    exchange.inverse(x);
    RootFft::template inverse_root_pass<kIsReal>(x);
  }
};

}  // namespace fftconv
