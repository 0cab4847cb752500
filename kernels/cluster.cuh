// The first pass of a row that the two blocks of a cluster share, each with one of the two nodes that radix 2 makes:
// z^M - i = (z^h - t)(z^h + t), h = M / 2, t = e(1/8). Forward, a block forms its node from both halves of the row,
// which it reads itself. Inverse, point p of the row is Re(x0 + x1) and point p + h is Re(conj(t) (x0 - x1)), of the
// two nodes' x[p]: rank 0 keeps the lower half, rank 1 the upper one, and each sends the other one float a point.
#pragma once
#include "dft.cuh"
#include "io.cuh"
#include "ptx.cuh"

namespace fftconv {

// A kernel's cluster size is that of its Layout, along x.
template <class Layout>
FFTCONV_DEVICE int cluster_rank() {
  return Layout::kRanks > 1 ? static_cast<int>(blockIdx.x % Layout::kRanks) : 0;
}

using ClusterRoot = Root<kTurn / 8>;

// The points of an access of a rank's node, from those at the same place of both halves of the row.
template <class A>
FFTCONV_DEVICE void put_node(A, complex_t* x, int rank, float2 low, float2 high) {
  const float re = rank == 0 ? ClusterRoot::re : -ClusterRoot::re;
  const float im = rank == 0 ? ClusterRoot::im : -ClusterRoot::im;
  x[A::kSlot] = {fmaf(re, high.x, low.x), im * high.x};
  if constexpr (A::kIsPair) x[A::kNext] = {fmaf(re, high.y, low.y), im * high.y};
}

// From the nodes to the real parts of a rank's own half of the row. `s_peer` [kEpt / 4][kThreads], at this thread's
// place, is written by the other block, which counts at `s_barrier`. Nobody waits until it has been read: the next time
// takes another buffer, and when that has been filled, this one has been read.
template <class Layout, int kThreads>
FFTCONV_DEVICE void combine_nodes(complex_t* x, float4* s_peer, unsigned long long* s_barrier, int parity, int rank) {
  if (threadIdx.x == 0) mbarrier_expect(s_barrier, Layout::kEpt * kThreads * static_cast<int>(sizeof(float)));
  const auto part = [](complex_t v, float re, float im) { return fmaf(v.re, re, v.im * im); };
  const float sent_re = rank == 0 ? ClusterRoot::re : 1.f, sent_im = rank == 0 ? ClusterRoot::im : 0.f;
  const float kept_re = rank == 0 ? 1.f : -ClusterRoot::re, kept_im = rank == 0 ? 0.f : -ClusterRoot::im;
  const auto send = [&](int slot) { return part(x[slot], sent_re, sent_im); };
  static_for<Layout::kEpt / 4>([&](auto i) {
    constexpr int slot = 4 * i.value;
    const float4 sent = make_float4(send(slot), send(slot + 1), send(slot + 2), send(slot + 3));
    store_async(s_peer + i.value * kThreads, s_barrier, rank ^ 1, sent);
  });
  static_for<Layout::kEpt>([&](auto slot) { x[slot.value].re = part(x[slot.value], kept_re, kept_im); });
  mbarrier_wait(s_barrier, parity);
  static_for<Layout::kEpt / 4>([&](auto i) {
    const float4 received = s_peer[i.value * kThreads];
    complex_t* points = x + 4 * i.value;
    points[0].re += received.x;
    points[1].re += received.y;
    points[2].re += received.z;
    points[3].re += received.w;
  });
}

}  // namespace fftconv
