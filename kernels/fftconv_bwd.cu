// The transpose of fftconv_fwd: from the gradient of y to those of u, of both gates and, summed over rows, of the
// filter's spectrum. With x = in_gate * u, z = conv(x, k) + skip * x and dz = out_gate * dy, a row takes up to four
// transforms of M complex points, X and DZ forward, and
//
//   z  = inverse(X K)           d_out_gate = dy * z
//   dx = inverse(DZ conj(K))    du = in_gate * dx, d_in_gate = u * dx
//   sum over the rows of a channel of DZ conj(X) / M, which fftconv_filter_bwd turns into the gradients of k and skip.
//
// Nothing is kept from the forward call: X is transformed again, and lies in the *stash*, in shared memory and beyond
// that in L2, until DZ is there. The sum is held in registers or, where they do not suffice, in L2. Blocks are
// persistent and take chunks of rows in a fixed order, so every sum is the same from run to run, and at any time all
// blocks work on a few channels, whose spectra stay in L2.
#include "block_fft.cuh"
#include "io.cuh"
#include "spectrum.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// Config: Layout, io_t, kRows and the flags. Shared memory is an exchange buffer a row, then the stash of the block.
template <class Config>
struct BwdTraits : Config {
  using Layout = typename Config::Layout;
  using Fft = BlockFft<Layout, 1>;
  static constexpr int kThreads = Config::kRows * Layout::kThreads;
  static constexpr int kQuads = Layout::kEpt / 2;  // float4 that hold a thread's points
  static constexpr int kStashOffset = Config::kRows * Layout::kRowSlots * static_cast<int>(sizeof(complex_t));
  static constexpr int kSharedBytes =
      kStashOffset + (Config::kHasSum ? Config::kStashQuads * kThreads * static_cast<int>(sizeof(float4)) : 0);
  static constexpr bool kNeedsX = Config::kHasOutGradient || Config::kHasSum;
  static constexpr bool kNeedsDz = Config::kHasInGradient || Config::kHasSum;

  static_assert(Config::kStashQuads <= kQuads, "the stash holds the points of a row");
  static_assert(Config::kIsSumInRegisters || Config::kRows == 1, "a sum in L2 is that of a block's only row");
};

// Which row, and what this thread has of the block's memory.
template <class Traits>
struct Row {
  int batch, channel, thread;
  bool is_active;  // has a row of its own; otherwise it repeats another one's for the barriers and stores nothing
  complex_t* s_exchange;
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
      float4& g_quad = g_sum[i.value * Traits::Layout::kThreads];
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

// The points of two arrays that a thread multiplies: u and its gate, or dy and its gate.
template <class Traits>
struct Product {
  InputRow<Traits> value, gate;

  // x.part = gate * value
  template <Part kPart>
  FFTCONV_DEVICE void load(complex_t* x, bool has_gate) const {
    if (has_gate) {
      load_gated<Traits, kPart>(x, value, gate);
    } else {
      load_part<Traits, kPart>(x, value);
    }
  }
};

template <class Traits>
FFTCONV_DEVICE InputRow<Traits> input_of(const Row<Traits>& row, const void* g_array, Strides strides, int length,
                                         int first) {
  using io_t = typename Traits::io_t;
  return {row_of<io_t>(g_array, strides, row.batch, row.channel) + first, length - first, row.thread};
}

template <class Traits>
FFTCONV_DEVICE OutputRow<Traits> output_of(const Row<Traits>& row, void* g_array, Strides strides, int length,
                                           int first) {
  using io_t = typename Traits::io_t;
  return {row_of<io_t>(g_array, strides, row.batch, row.channel) + first, length - first, row.thread};
}

// From z to dz = gate * dy, and d_out_gate = dy * z on the way.
template <class Traits, Part kPart>
FFTCONV_DEVICE void turn(const BwdParams& p, complex_t* x, const Row<Traits>& row, const Product<Traits>& out,
                         int first) {
  const auto d_gate = output_of<Traits>(row, p.d_out_gate, p.d_out_gate_strides, p.out_len, first);
  for_each_access<Traits>([&](auto access) {
    const float2 dy = out.value.load(access);
    if (row.is_active) d_gate.store(access, multiply_each(dy, access.template take<kPart>(x)));
    if constexpr (Traits::kNeedsDz) access.template put<kPart>(x, multiply_each(dy, out.gate.load(access)));
  });
}

// From dx to du = in_gate * dx and d_in_gate = u * dx, as far as they are wanted.
template <class Traits, Part kPart>
FFTCONV_DEVICE void store_in_gradients(const BwdParams& p, complex_t* x, const Row<Traits>& row,
                                       const Product<Traits>& in, int first) {
  if (p.d_in_gate != nullptr) {
    const auto d_gate = output_of<Traits>(row, p.d_in_gate, p.d_in_gate_strides, p.in_len, first);
    store_gated<Traits, kPart>(x, d_gate, in.value.again(p.zero));
  }
  if (p.du == nullptr) return;
  const auto du = output_of<Traits>(row, p.du, p.du_strides, p.in_len, first);
  if (has_gate<Traits>(p.has_in_gate)) {
    store_gated<Traits, kPart>(x, du, in.gate.again(p.zero));
  } else {
    store_part<Traits, kPart>(x, du);
  }
}

// One row; `add` takes its DZ once X is in the stash.
template <class Traits, class Add>
FFTCONV_DEVICE void differentiate_row(const BwdParams& p, const Row<Traits>& row, Add add) {
  using Fft = typename Traits::Fft;
  constexpr int kPoints = Traits::Layout::kPoints;
  constexpr bool kIsReal = !Traits::kIsComplex;
  const bool has_in_gate = has_gate<Traits>(p.has_in_gate), has_out_gate = has_gate<Traits>(p.has_out_gate);
  const auto inputs = [&](int first) {
    return Product<Traits>{input_of<Traits>(row, p.u, p.u_strides, p.in_len, first),
                           input_of<Traits>(row, p.in_gate, p.in_gate_strides, p.in_len, first)};
  };
  const auto outputs = [&](int first) {
    return Product<Traits>{input_of<Traits>(row, p.dy, p.dy_strides, p.out_len, first),
                           input_of<Traits>(row, p.out_gate, p.out_gate_strides, p.out_len, first)};
  };
  complex_t x[Traits::Layout::kEpt];
  const Product<Traits> in = inputs(0);

  if constexpr (Traits::kNeedsX) {
    in.template load<Part::kReal>(x, has_in_gate);
    if constexpr (!kIsReal) inputs(kPoints).template load<Part::kImag>(x, has_in_gate);
    Fft::template forward<kIsReal>(x, row.s_exchange, row.thread, p.twiddles, [] {});
    if constexpr (Traits::kHasSum) row.write_stash(x);
  }
  const Product<Traits> out = outputs(0);
  if constexpr (Traits::kHasOutGradient) {
    multiply_spectrum<Traits, false>(p, x, p.spectrum, row.channel, row.thread);
    Fft::template inverse<kIsReal>(x, row.s_exchange, row.thread, p.twiddles);
    turn<Traits, Part::kReal>(p, x, row, out, 0);
    if constexpr (!kIsReal) turn<Traits, Part::kImag>(p, x, row, outputs(kPoints), kPoints);
  } else {
    if constexpr (Traits::kNeedsX) sync_threads<Traits::Layout::kThreads>();  // all have read the last exchange of X
    out.template load<Part::kReal>(x, has_out_gate);
    if constexpr (!kIsReal) outputs(kPoints).template load<Part::kImag>(x, has_out_gate);
  }
  if constexpr (Traits::kNeedsDz) {
    Fft::template forward<kIsReal>(x, row.s_exchange, row.thread, p.twiddles + p.zero, [] {});
    if constexpr (Traits::kHasSum) add(x);
    if constexpr (Traits::kHasInGradient) {
      multiply_spectrum<Traits, true>(p, x, p.spectrum + p.zero, row.channel, row.thread);
      Fft::template inverse<kIsReal>(x, row.s_exchange, row.thread, p.twiddles + p.zero);
      if (!row.is_active) return;
      store_in_gradients<Traits, Part::kReal>(p, x, row, in, 0);
      if constexpr (!kIsReal) store_in_gradients<Traits, Part::kImag>(p, x, row, inputs(kPoints), kPoints);
    } else {
      sync_threads<Traits::Layout::kThreads>();
    }
  }
}

// Adds up what the batch slots of a block hold of its channels, and writes it to the chunk's slot.
template <class Traits>
FFTCONV_DEVICE void flush_sum(const BwdParams& p, char* s_base, const complex_t* sum, int row, int thread,
                              long long slot) {
  using Layout = typename Traits::Layout;
  constexpr int kRowQuads = Layout::kPoints / 2, kPitch = Layout::kRowSlots / 2;  // float4 of a row; of its buffer
  const int batch_slots = 1 << p.log2_batch_slots, channels = Traits::kRows >> p.log2_batch_slots;
  float4* g_sum = p.sums + slot * channels * kRowQuads;
  const auto write = [&](float4* quads) {
    static_for<Traits::kQuads>([&](auto i) {
      const complex_t a = sum[2 * i.value], b = sum[2 * i.value + 1];
      quads[i.value * Layout::kThreads + thread] = make_float4(a.re, a.im, b.re, b.im);
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

template <class Traits>
FFTCONV_DEVICE void backward(const BwdParams& p, char* s_base) {
  using Layout = typename Traits::Layout;
  const int row = threadIdx.x / Layout::kThreads, batch_slots = 1 << p.log2_batch_slots;
  Row<Traits> own;
  own.thread = threadIdx.x % Layout::kThreads;
  own.s_exchange = reinterpret_cast<complex_t*>(s_base) + row * Layout::kRowSlots;
  own.s_stash = reinterpret_cast<float4*>(s_base + Traits::kStashOffset) + threadIdx.x;
  own.g_stash = p.stash + static_cast<long long>(blockIdx.x) * (Traits::kQuads - Traits::kStashQuads) * Traits::kThreads
                + threadIdx.x;

  complex_t sum[Traits::kIsSumInRegisters ? Layout::kEpt : 1];
  const auto clear = [&] {
    if constexpr (Traits::kIsSumInRegisters) static_for<Layout::kEpt>([&](auto slot) { sum[slot.value] = {0.f, 0.f}; });
  };
  clear();
  for (long long chunk = blockIdx.x; chunk < p.chunk_count; chunk += gridDim.x) {
    const long long group = chunk / p.chunks.group_chunks;
    const long long channel = group * (Traits::kRows >> p.log2_batch_slots) + (row >> p.log2_batch_slots);
    const bool has_channel = channel < p.channels;
    own.channel = has_channel ? static_cast<int>(channel) : p.channels - 1;
    own.g_sum = p.sums + chunk * (Layout::kPoints / 2) + own.thread;
    const int first = static_cast<int>(chunk % p.chunks.group_chunks) * p.chunks.chunk_steps;
    const int end = min(first + p.chunks.chunk_steps, p.chunks.group_steps);
    for (int step = first; step < end; step++) {
      const int batch = step * batch_slots + (row & (batch_slots - 1));
      own.is_active = has_channel && batch < p.batch;
      own.batch = batch < p.batch ? batch : p.batch - 1;
      differentiate_row<Traits>(p, own, [&](const complex_t* x) {
        if constexpr (!Traits::kIsSumInRegisters) {
          own.add_products_in_memory(x, step == first);
        } else {
          if (own.is_active) own.add_products(x, sum);
        }
      });
    }
    if constexpr (Traits::kHasSum && Traits::kIsSumInRegisters) {
      flush_sum<Traits>(p, s_base, sum, row, own.thread, chunk);
      clear();
    }
  }
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::Layout<FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using io_t = FFTCONV_IO_T;
  static constexpr int kRows = FFTCONV_ROWS;
  static constexpr bool kIsComplex = FFTCONV_IS_COMPLEX, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr bool kHasInGradient = FFTCONV_HAS_IN_GRADIENT;    // du or d_in_gate
  static constexpr bool kHasOutGradient = FFTCONV_HAS_OUT_GRADIENT;  // d_out_gate
  static constexpr bool kHasSum = FFTCONV_HAS_SUM;                   // dk or d_skip
  static constexpr bool kIsSumInRegisters = FFTCONV_IS_SUM_IN_REGISTERS;
  static constexpr int kStashQuads = FFTCONV_STASH_QUADS;  // float4 a thread in shared memory
};
using Traits = fftconv::BwdTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "blocks.py and fftconv_bwd.cu disagree on shared memory");
static_assert(sizeof(fftconv::BwdParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_bwd(const __grid_constant__ fftconv::BwdParams p) {
  fftconv::backward<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
