// Sums over the rows of a channel of DZ conj(X), two spectra of which the second lies in the *stash* until the first is
// there. A block takes *chunks* of rows in a fixed order (see ChunkPlan), holds the sum in registers or, where they do
// not suffice, in L2, and leaves it in the slot of the chunk.
#pragma once
#include "params.cuh"
#include "row_fft.cuh"
#include "spectrum.cuh"

namespace fftconv {

// Config: the layouts, io_t, kRows and the flags. Shared memory is an exchange buffer a row, then the stash of the
// block, then the mbarriers of a cluster.
template <class Config>
struct SumTraits : Config {
  using Layout = typename Config::Layout;  // of what is loaded and stored
  using Node = typename Config::Node;
  using Fft = RowFft<Layout, Node>;
  static constexpr int kThreads = Config::kRows * Node::kThreads / Node::kRanks;  // of a block
  static constexpr int kQuads = Node::kEpt / 2;                                   // float4 that hold a thread's points
  static constexpr int kRowSlots = Node::kRowSlots / Node::kRanks;                // of a block's exchange buffer
  static constexpr int kStashOffset = Config::kRows * kRowSlots * static_cast<int>(sizeof(complex_t));
  static constexpr int kBarrierOffset =
      kStashOffset + (Config::kHasSum ? Config::kStashQuads * kThreads * static_cast<int>(sizeof(float4)) : 0);
  static constexpr int kSharedBytes = kBarrierOffset + Fft::kBarriers * static_cast<int>(sizeof(unsigned long long));

  static_assert(Config::kStashQuads <= kQuads, "the stash holds the points of a row");
  static_assert(Config::kIsSumInRegisters || (Config::kRows == 1 && Node::kRanks == 1),
                "a sum in L2 is that of a block's only row");
};

// Which row, and what this thread has of the block's memory.
template <class Traits>
struct Row {
  int job, channel, thread;
  int next_job;     // of a kernel with prefetch: that follows in the chunk, or itself where it is the last
  bool is_active;   // has a row of its own; otherwise it repeats another one's for the barriers and stores nothing
  float4* s_stash;  // [kStashQuads][threads a block]
  float4* g_stash;  // [kQuads - kStashQuads][threads a block]
  float4* g_sum;    // [kQuads][threads a row]

  FFTCONV_DEVICE void write_stash(const complex_t* x) const {
    constexpr float kScale = 1.f / Traits::Layout::kPoints;  // here, so that the products stay in range
    static_for<Traits::kQuads>([&](auto i) {
      const complex_t a = x[2 * i.value], b = x[2 * i.value + 1];
      quad<i.value>() = make_float4(a.re * kScale, a.im * kScale, b.re * kScale, b.im * kScale);
    });
  }
  // sum += x conj(stash)
  FFTCONV_DEVICE void add_products(const complex_t* x, complex_t* sum) const {
    static_for<Traits::kQuads>([&](auto i) {
      const float4 v = quad<i.value>();
      add_conj(sum[2 * i.value], x[2 * i.value], {v.x, v.y});
      add_conj(sum[2 * i.value + 1], x[2 * i.value + 1], {v.z, v.w});
    });
  }
  // The same with the sum in global memory; `is_first`: there is none yet.
  FFTCONV_DEVICE void add_products_in_memory(const complex_t* x, bool is_first) const {
    static_for<Traits::kQuads>([&](auto i) {
      float4& g_quad = g_sum[i.value * Traits::kThreads];
      const float4 v = quad<i.value>(), before = is_first ? make_float4(0.f, 0.f, 0.f, 0.f) : g_quad;
      complex_t a = {before.x, before.y}, b = {before.z, before.w};
      add_conj(a, x[2 * i.value], {v.x, v.y});
      add_conj(b, x[2 * i.value + 1], {v.z, v.w});
      g_quad = make_float4(a.re, a.im, b.re, b.im);
    });
  }

 private:
  template <int kIndex>
  FFTCONV_DEVICE float4& quad() const {
    if constexpr (kIndex < Traits::kStashQuads) {
      return s_stash[kIndex * Traits::kThreads];
    } else {
      return g_stash[(kIndex - Traits::kStashQuads) * Traits::kThreads];
    }
  }
  FFTCONV_DEVICE static void add_conj(complex_t& sum, complex_t a, complex_t b) {
    sum.re = fmaf(a.re, b.re, fmaf(a.im, b.im, sum.re));
    sum.im = fmaf(a.im, b.re, fmaf(-a.re, b.im, sum.im));
  }
};

// Adds up what the batch slots of a block hold of its channels, and writes it to the chunk's slot.
template <class Traits, class Params>
FFTCONV_DEVICE void flush_sum(const Params& p, char* s_base, const complex_t* sum, int row, int thread,
                              long long slot) {
  using Node = typename Traits::Node;
  constexpr int kRowQuads = Node::kPoints / 2, kPitch = Node::kRowSlots / 2;  // float4 of a row; of its buffer
  const int batch_slots = 1 << p.log2_batch_slots, channels = Traits::kRows >> p.log2_batch_slots;
  float4* g_sum = p.sums + slot * channels * kRowQuads;
  const int place = SpectrumTraits<Traits>::place(thread);
  const auto write = [&](float4* quads) {
    static_for<Traits::kQuads>([&](auto i) {
      const complex_t a = sum[2 * i.value], b = sum[2 * i.value + 1];
      quads[i.value * Traits::kSpectrumThreads + place] = make_float4(a.re, a.im, b.re, b.im);
    });
  };
  if constexpr (Traits::kRows == 1) {
    write(g_sum);
    return;
  }
  float4* s_quads = reinterpret_cast<float4*>(s_base);
  __syncthreads();  // all have read the last exchange
  write(s_quads + row * kPitch);
  __syncthreads();
  for (int index = threadIdx.x; index < channels * kRowQuads; index += Traits::kThreads) {
    const float4* s_first = s_quads + (index / kRowQuads << p.log2_batch_slots) * kPitch + index % kRowQuads;
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int i = 0; i < batch_slots; i++) {
      const float4 v = s_first[i * kPitch];
      total = make_float4(total.x + v.x, total.y + v.y, total.z + v.z, total.w + v.w);
    }
    g_sum[index] = total;
  }
  __syncthreads();
}

// Takes a block's chunks in turn, job by job: the rows of a channel, or windows of them. The kernel says how many there
// are, jobs_of(p), and what is done with one, differentiate(p, row, fft, add), which calls add(x) with its DZ once its
// X is in the stash.
template <class Traits, class Params>
FFTCONV_DEVICE void walk_chunks(const Params& p, char* s_base) {
  using Node = typename Traits::Node;
  const int row = threadIdx.x / Node::kThreads, batch_slots = 1 << p.log2_batch_slots;
  typename Traits::Fft fft(reinterpret_cast<complex_t*>(s_base) + row * Traits::kRowSlots,
                           reinterpret_cast<unsigned long long*>(s_base + Traits::kBarrierOffset),
                           threadIdx.x % Node::kThreads);
  Row<Traits> own;
  own.thread = fft.thread;
  own.s_stash = reinterpret_cast<float4*>(s_base + Traits::kStashOffset) + threadIdx.x;
  own.g_stash = p.stash + static_cast<long long>(blockIdx.x) * (Traits::kQuads - Traits::kStashQuads) * Traits::kThreads
                + threadIdx.x;

  complex_t sum[Traits::kIsSumInRegisters ? Node::kEpt : 1];
  if constexpr (Node::kRanks > 1) sync_cluster();  // the mbarriers of all blocks are there
  for (long long chunk = blockIdx.x / Node::kRanks; chunk < p.chunk_count; chunk += gridDim.x / Node::kRanks) {
    const long long group = chunk / p.chunks.group_chunks;
    const long long channel = group * (Traits::kRows >> p.log2_batch_slots) + (row >> p.log2_batch_slots);
    const bool has_channel = channel < p.channels;
    own.channel = has_channel ? static_cast<int>(channel) : p.channels - 1;
    if constexpr (Traits::kIsSumInRegisters) static_for<Node::kEpt>([&](auto slot) { sum[slot.value] = {0.f, 0.f}; });
    own.g_sum = p.sums + chunk * (Node::kPoints / 2) + own.thread;
    const int first = static_cast<int>(chunk % p.chunks.group_chunks) * p.chunks.chunk_steps;
    const int end = min(first + p.chunks.chunk_steps, p.chunks.group_steps);
    for (int step = first; step < end; step++) {
      const int job = step * batch_slots + (row & (batch_slots - 1));
      own.is_active = has_channel && job < jobs_of(p);
      own.job = job < jobs_of(p) ? job : jobs_of(p) - 1;
      if constexpr (Traits::kHasPrefetch) {
        own.next_job = step + 1 < end ? min(job + batch_slots, jobs_of(p) - 1) : own.job;
      }
      differentiate(p, own, fft, [&](const complex_t* x) {
        if constexpr (!Traits::kIsSumInRegisters) {
          own.add_products_in_memory(x, step == first);
        } else {
          if (own.is_active) own.add_products(x, sum);
        }
      });
    }
    if constexpr (Traits::kHasSum && Traits::kIsSumInRegisters) {
      flush_sum<Traits>(p, s_base, sum, row, own.thread, chunk);
    }
  }
}

}  // namespace fftconv
