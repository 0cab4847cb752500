// The first pass of a row that C blocks of a cluster share, each with one of its C nodes (see layout.cuh). Forward, a
// block reads a slice of the pass's columns from global memory, C segments of the row, and makes the points that these
// columns have in all nodes; inverse, it makes the outputs of its slice. In between, the blocks exchange what they have
// of one another's nodes: complex points, of which each goes to another block at most once.
//
// A slice is what the threads of a block would take of the first pass, and the second one has radix 16 and neighbouring
// columns in a thread too. Then thread t of a block exchanges points with the threads t of the others only, two at a
// time: access k C + r of rank s in the first pass is access k C + s of rank r in the second.
#pragma once
#include "block_fft.cuh"
#include "ptx.cuh"

namespace fftconv {

// A kernel's cluster size is that of its Layout, along x.
template <class Layout>
FFTCONV_DEVICE int cluster_rank() {
  return Layout::kRanks > 1 ? static_cast<int>(blockIdx.x % Layout::kRanks) : 0;
}

// Of a block: Slice is a SliceLayout, Node the ClusterLayout of the same passes. Points are received in the exchange
// buffer of the block's node, at the places that their thread has in the second pass: nobody else uses these between
// the passes before and after. The warps of a number exchange by themselves. Two mbarriers of each tell when all has
// been received, and when all ranks are ready to receive. Their parity is that of the exchanges before.
template <class Slice, class Node>
struct SliceExchange {
  using First = Pass<Slice, 0>;
  using Second = Pass<Node, 1>;
  static constexpr int kRanks = Node::kRanks, kAccesses = First::kAccesses;
  static constexpr int kPitch = Node::pad(Second::offset(Second::slot(1, 0))) / 2;  // float4 from access to access
  static constexpr int kWarps = Node::kThreads / kRanks / 32;
  static constexpr int kWarpBytes = 32 * (kAccesses - kAccesses / kRanks) * static_cast<int>(sizeof(float4));
  static constexpr int kBarriers = 2 * kWarps;

  static_assert(Node::kFirst == 1 && First::kWidth == 2 && Second::kWidth == 2, "points are exchanged two at a time");
  static_assert(Second::kRadix == kAccesses && kAccesses % kRanks == 0, "of the second pass a thread has two columns");
  static_assert(Node::kThreads / kRanks % 32 == 0, "warps exchange by themselves");

  float4* s_places;  // of this thread
  unsigned long long *s_received, *s_ready;
  int rank, lane, parity;

  // Before the first exchange; all blocks of the cluster must have come here before any goes on.
  FFTCONV_DEVICE SliceExchange(complex_t* s_node, unsigned long long* s_barriers, int thread, int own_rank)
      : s_places(reinterpret_cast<float4*>(s_node + Node::pad(Second::base(thread)))),
        s_received(s_barriers + threadIdx.x / 32),
        s_ready(s_received + kWarps),
        rank(own_rank),
        lane(threadIdx.x % 32),
        parity(0) {
    if (lane == 0) {
      mbarrier_init(s_received);
      mbarrier_init(s_ready, kRanks);
    }
  }

  // This warp has read all that it will of its places: once before each exchange.
  FFTCONV_DEVICE void make_ready() const {
    __syncwarp();
    if (lane < kRanks) mbarrier_arrive(s_ready, lane);
  }
  // x, the points of a thread of one pass, becomes those of the other.
  FFTCONV_DEVICE void forward(complex_t* x) { exchange<First, Second>(x); }
  FFTCONV_DEVICE void inverse(complex_t* x) { exchange<Second, First>(x); }

 private:
  template <class From, class To>
  FFTCONV_DEVICE void exchange(complex_t* x) {
    if (lane == 0) mbarrier_expect(s_received, kWarpBytes);
    mbarrier_wait(s_ready, parity);
    float4* s_from_here = s_places + rank * kPitch;
    static_for<kAccesses>([&](auto access) {
      constexpr int peer = access.value % kRanks;
      const complex_t a = x[From::slot(access.value, 0)], b = x[From::slot(access.value, 1)];
      const float4 v = make_float4(a.re, a.im, b.re, b.im);
      store_async(s_from_here + (access.value - peer) * kPitch, s_received, peer, v, peer == rank);
    });
    mbarrier_wait(s_received, parity);
    parity ^= 1;
    static_for<kAccesses>([&](auto access) {
      const float4 v = s_places[access.value * kPitch];
      x[To::slot(access.value, 0)] = {v.x, v.y};
      x[To::slot(access.value, 1)] = {v.z, v.w};
    });
  }
};

}  // namespace fftconv
