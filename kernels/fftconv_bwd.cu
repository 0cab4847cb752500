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
// blocks work on a few channels, whose spectra stay in L2. Where it pays, a row is brought into L2 a transform ahead of
// its loads.
#include "block_fft.cuh"
#include "io.cuh"
#include "spectrum.cuh"
#include "sums.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

template <class Config>
struct BwdTraits : SumTraits<Config> {
  static constexpr bool kNeedsX = Config::kHasOutGradient || Config::kHasSum;
  static constexpr bool kNeedsDz = Config::kHasInGradient || Config::kHasSum;

  static_assert(Config::Layout::kRanks == 1 || (Config::kRows == 1 && Config::kHasSum && !Config::kIsComplex),
                "blocks share a row where there is a sum to hold, and no imaginary part");
  static_assert(!Config::kHasPrefetch || (Config::kHasSum && !Config::kIsComplex),
                "a row that is brought into L2 ahead is that of a sum, and no longer than the transform");
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
  // The same at an access.
  template <class A>
  FFTCONV_DEVICE float2 load_access(A access, bool has_gate) const {
    const float2 v = value.load(access);
    return has_gate ? multiply_each(v, gate.load(access)) : v;
  }
};

// x = what a row's first pass in a block begins with; `from(first)` is the row's product from point `first` on, and
// `begin` that from 0 on.
template <class Traits, class From>
FFTCONV_DEVICE void load_row(complex_t* x, const Product<Traits>& begin, const From& from, bool has_gate) {
  using Layout = typename Traits::Layout;
  constexpr int kHalf = Layout::kPoints / 2;
  if constexpr (Layout::kRanks > 1) {
    const int rank = cluster_rank<Layout>();
    const Product<Traits> low = from(-rank * kHalf), high = from(kHalf - rank * kHalf);
    const auto load = [&](bool is_gated) {
      for_each_access<Traits>([&](auto access) {
        put_node(access, x, rank, low.load_access(access, is_gated), high.load_access(access, is_gated));
      });
    };
    if (has_gate) {
      load(true);
    } else {
      load(false);
    }
  } else {
    begin.template load<Part::kReal>(x, has_gate);
    if constexpr (Traits::kIsComplex) from(Layout::kPoints).template load<Part::kImag>(x, has_gate);
  }
}

// From a spectrum to a row, of two blocks that share it to the half of each. `kCount`: how often a row needs that, of
// which this is number `kIndex`.
template <class Traits, int kIndex, int kCount>
FFTCONV_DEVICE void invert(complex_t* x, const Row<Traits>& row, const float4* g_twiddles) {
  using Layout = typename Traits::Layout;
  Traits::Fft::template inverse<!Traits::kIsComplex>(x, row.s_exchange, row.thread, g_twiddles);
  if constexpr (Layout::kRanks > 1) {
    const int buffer = kCount == 2 ? kIndex : row.turn & 1, parity = kCount == 2 ? row.turn & 1 : row.turn >> 1 & 1;
    combine_nodes<Layout, Traits::kThreads>(x, row.s_peer + buffer * (Traits::kPeerQuads * Traits::kThreads),
                                            row.s_barriers + buffer, parity, cluster_rank<Layout>());
  }
}

template <class Traits>
FFTCONV_DEVICE InputRow<Traits> input_of(const Row<Traits>& row, const void* g_array, Strides strides, int length,
                                         int first) {
  using io_t = typename Traits::io_t;
  return {row_of<io_t>(g_array, strides, row.job, row.channel) + first, length - first, row.thread};
}

template <class Traits>
FFTCONV_DEVICE OutputRow<Traits> output_of(const Row<Traits>& row, void* g_array, Strides strides, int length,
                                           int first) {
  using io_t = typename Traits::io_t;
  return {row_of<io_t>(g_array, strides, row.job, row.channel) + first, length - first, row.thread};
}

// Has a row of inputs brought into L2 ahead of its loads.
template <class Traits>
FFTCONV_DEVICE void prefetch_row(const Row<Traits>& row, int job, const void* g_array, Strides strides, int length) {
  using Layout = typename Traits::Layout;
  using io_t = typename Traits::io_t;
  constexpr int kLine = kLineBytes / static_cast<int>(sizeof(io_t));
  const io_t* g_row = row_of<io_t>(g_array, strides, job, row.channel);
  const int end = Traits::kHasTail ? length : Layout::kPoints;
  static_for<(Layout::kPoints / kLine + Layout::kThreads - 1) / Layout::kThreads>([&](auto i) {
    const int point = (i.value * Layout::kThreads + row.thread) * kLine;
    if (point < end) prefetch_to_l2(g_row + point);
  });
}

// Of the next row of the chunk what X is made of, and of this one what DZ is: in time for their loads, and not so early
// that L2 has let go of them.
template <class Traits>
FFTCONV_DEVICE void prefetch_next_inputs(const BwdParams& p, const Row<Traits>& row) {
  prefetch_row<Traits>(row, row.next_job, p.u, p.u_strides, p.in_len);
  if (has_gate<Traits>(p.has_in_gate)) {
    prefetch_row<Traits>(row, row.next_job, p.in_gate, p.in_gate_strides, p.in_len);
  }
}
template <class Traits>
FFTCONV_DEVICE void prefetch_outputs(const BwdParams& p, const Row<Traits>& row) {
  prefetch_row<Traits>(row, row.job, p.dy, p.dy_strides, p.out_len);
  if (has_gate<Traits>(p.has_out_gate)) prefetch_row<Traits>(row, row.job, p.out_gate, p.out_gate_strides, p.out_len);
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

// The same where two blocks share a row: z is that of the own half, dz that of the own node.
template <class Traits, class From>
FFTCONV_DEVICE void turn_node(const BwdParams& p, complex_t* x, const Row<Traits>& row, const From& from) {
  constexpr int kHalf = Traits::Layout::kPoints / 2;
  const int rank = cluster_rank<typename Traits::Layout>();
  const Product<Traits> low = from(-rank * kHalf), high = from(kHalf - rank * kHalf);
  const auto d_gate = output_of<Traits>(row, p.d_out_gate, p.d_out_gate_strides, p.out_len, 0);
  for_each_access<Traits>([&](auto access) {
    const float2 dy_low = low.value.load(access), dy_high = high.value.load(access);
    d_gate.store(access, multiply_each(rank == 0 ? dy_low : dy_high, access.template take<Part::kReal>(x)));
    put_node(access, x, rank, multiply_each(dy_low, low.gate.load(access)),
             multiply_each(dy_high, high.gate.load(access)));
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
FFTCONV_DEVICE void differentiate(const BwdParams& p, const Row<Traits>& row, Add add) {
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
  constexpr int kInversions = Traits::kHasOutGradient + Traits::kHasInGradient;
  const Product<Traits> in = inputs(0);

  if constexpr (Traits::kHasPrefetch) prefetch_outputs<Traits>(p, row);
  if constexpr (Traits::kNeedsX) {
    load_row<Traits>(x, in, inputs, has_in_gate);
    Fft::template forward<kIsReal>(x, row.s_exchange, row.thread, p.twiddles, [] {});
    if constexpr (Traits::kHasSum) row.write_stash(x);
  }
  const Product<Traits> out = outputs(0);
  if constexpr (Traits::kHasOutGradient) {
    multiply_spectrum<Traits, false>(p, x, p.spectrum, row.channel, row.thread);
    invert<Traits, 0, kInversions>(x, row, p.twiddles);
    if constexpr (Traits::Layout::kRanks > 1) {
      turn_node<Traits>(p, x, row, outputs);
    } else {
      turn<Traits, Part::kReal>(p, x, row, out, 0);
      if constexpr (!kIsReal) turn<Traits, Part::kImag>(p, x, row, outputs(kPoints), kPoints);
    }
  } else {
    if constexpr (Traits::kNeedsX) sync_threads<Traits::Layout::kThreads>();  // all have read the last exchange of X
    load_row<Traits>(x, out, outputs, has_out_gate);
  }
  if constexpr (Traits::kHasPrefetch) prefetch_next_inputs<Traits>(p, row);
  if constexpr (Traits::kNeedsDz) {
    Fft::template forward<kIsReal>(x, row.s_exchange, row.thread, p.twiddles + p.zero, [] {});
    if constexpr (Traits::kHasSum) add(x);
    if constexpr (Traits::kHasInGradient) {
      multiply_spectrum<Traits, true>(p, x, p.spectrum + p.zero, row.channel, row.thread);
      invert<Traits, 1, kInversions>(x, row, p.twiddles + p.zero);
      if (!row.is_active) return;
      store_in_gradients<Traits, Part::kReal>(p, x, row, in, 0);
      if constexpr (!kIsReal) store_in_gradients<Traits, Part::kImag>(p, x, row, inputs(kPoints), kPoints);
    } else {
      sync_threads<Traits::Layout::kThreads>();
    }
  }
}

FFTCONV_DEVICE int jobs_of(const BwdParams& p) { return p.batch; }

}  // namespace fftconv

struct Config {
  using Layout = fftconv::ClusterLayout<FFTCONV_CLUSTER_BLOCKS, FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS,
                                        FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using io_t = FFTCONV_IO_T;
  static constexpr int kRows = FFTCONV_ROWS;
  static constexpr bool kIsComplex = FFTCONV_IS_COMPLEX, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr bool kHasInGradient = FFTCONV_HAS_IN_GRADIENT;    // du or d_in_gate
  static constexpr bool kHasOutGradient = FFTCONV_HAS_OUT_GRADIENT;  // d_out_gate
  static constexpr bool kHasSum = FFTCONV_HAS_SUM;                   // dk or d_skip
  static constexpr bool kIsSumInRegisters = FFTCONV_IS_SUM_IN_REGISTERS;
  static constexpr int kStashQuads = FFTCONV_STASH_QUADS;  // float4 a thread in shared memory
  static constexpr bool kHasPrefetch = FFTCONV_HAS_PREFETCH;
};
using Traits = fftconv::BwdTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "blocks.py and fftconv_bwd.cu disagree on shared memory");
static_assert(sizeof(fftconv::BwdParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

#if FFTCONV_CLUSTER_BLOCKS > 1
#define FFTCONV_CLUSTER __cluster_dims__(FFTCONV_CLUSTER_BLOCKS, 1, 1)
#else
#define FFTCONV_CLUSTER
#endif

extern "C" __global__ void FFTCONV_CLUSTER __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_bwd(const __grid_constant__ fftconv::BwdParams p) {
  fftconv::walk_chunks<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
