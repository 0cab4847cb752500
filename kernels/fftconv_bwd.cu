// The transpose of fftconv_fwd: from the gradient of y to those of u, of both gates and, summed over rows, of the
// filter's spectrum. With x = in_gate * u, z = conv(x, k) + skip * x and dz = out_gate * dy, a row takes up to four
// transforms of M complex points, X and DZ forward, and
//
//   z  = inverse(X K)           d_out_gate = dy * z
//   dx = inverse(DZ conj(K))    du = in_gate * dx, d_in_gate = u * dx
//   sum over the rows of a channel of DZ conj(X) / M, which fftconv_filter_bwd turns into the gradients of k and skip.
//
// Nothing is kept from the forward call: X is transformed again, and lies in the *stash*, in shared memory and beyond
// that in L2, until DZ is there. The sum is held in registers or, where they do not suffice, in L2, or a cluster of
// blocks shares the row (row_fft.cuh): of a real one each reads its node of X and, where z was not needed, of DZ.
// Blocks are persistent, or clusters take a chunk each; the rows of a chunk come in a fixed order, so every sum is the
// same from run to run, and at any time all blocks work on a few channels, whose spectra stay in L2. Where it pays, a
// row is brought into L2 a transform ahead of its loads.
#include "sums.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

template <class Config>
struct BwdTraits : SumTraits<Config> {
  static constexpr bool kNeedsX = Config::kHasOutGradient || Config::kHasSum;
  static constexpr bool kNeedsDz = Config::kHasInGradient || Config::kHasSum;
  static constexpr bool kReadsNodes = Config::Node::kRanks > 1 && !Config::kIsComplex;
  // Four transforms, or gates that may be there or not, fill the cache for instructions, 128 KB, without it.
  static constexpr bool kLoopsOverSegments =
      Config::Node::kRanks > 2 && (Config::kHasOutGradient || Config::kExtras == Extras::kAny);

  static_assert(Config::Node::kRanks == 1 || Config::kRows == 1, "a cluster has one row at a time");
  static_assert(!Config::kHasPrefetch || (Config::kHasSum && !Config::kIsComplex),
                "a row that is brought into L2 ahead is that of a sum, and no longer than the transform");
};

// Two rows that are multiplied: of u and its gate, or of dy and its gate.
template <class Traits>
struct Product {
  using io_t = typename Traits::io_t;
  const io_t *g_value, *g_gate;
  int length, thread;
  bool has_gate;

  // What the thread has of them, from point `first` on.
  FFTCONV_DEVICE InputRow<Traits> value(int first) const { return {g_value + first, length - first, thread}; }
  FFTCONV_DEVICE InputRow<Traits> gate(int first) const { return {g_gate + first, length - first, thread}; }

  // x.part = gate * value
  template <Part kPart>
  FFTCONV_DEVICE void load(complex_t* x) const {
    constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Layout::kPoints;
    if (has_gate) {
      load_gated<Traits, kPart>(x, value(kFirst), gate(kFirst));
    } else {
      load_part<Traits, kPart>(x, value(kFirst));
    }
  }
};

// x = the spectrum of a product.
template <class Traits>
FFTCONV_DEVICE void transform(complex_t* x, typename Traits::Fft& fft, const Product<Traits>& product,
                              const float4* g_twiddles) {
  if constexpr (Traits::kReadsNodes) {
    load_node<Traits>(x, fft.powers, product.g_value, product.g_gate, product.length, product.has_gate);
    fft.forward_node(x, g_twiddles);
  } else {
    fft.make_ready();
    product.template load<Part::kReal>(x);
    if constexpr (Traits::kIsComplex) product.template load<Part::kImag>(x);
    fft.template forward<!Traits::kIsComplex>(x, g_twiddles);
  }
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
FFTCONV_DEVICE void turn(const BwdParams& p, complex_t* x, const Row<Traits>& row, const Product<Traits>& out) {
  constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Layout::kPoints;
  const auto d_gate = output_of<Traits>(row, p.d_out_gate, p.d_out_gate_strides, p.out_len, kFirst);
  const InputRow<Traits> values = out.value(kFirst), gate = out.gate(kFirst);
  for_each_access<Traits>([&](auto access) {
    const float2 dy = values.load(access);
    if (row.is_active) d_gate.store(access, multiply_each(dy, access.template take<kPart>(x)));
    if constexpr (Traits::kNeedsDz) access.template put<kPart>(x, multiply_each(dy, gate.load(access)));
  });
}

// From dx to du = in_gate * dx and d_in_gate = u * dx, as far as they are wanted.
template <class Traits, Part kPart>
FFTCONV_DEVICE void store_in_gradients(const BwdParams& p, complex_t* x, const Row<Traits>& row,
                                       const Product<Traits>& in) {
  constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Layout::kPoints;
  if (p.d_in_gate != nullptr) {
    const auto d_gate = output_of<Traits>(row, p.d_in_gate, p.d_in_gate_strides, p.in_len, kFirst);
    store_gated<Traits, kPart>(x, d_gate, in.value(kFirst).again(p.zero));
  }
  if (p.du == nullptr) return;
  const auto du = output_of<Traits>(row, p.du, p.du_strides, p.in_len, kFirst);
  if (in.has_gate) {
    store_gated<Traits, kPart>(x, du, in.gate(kFirst).again(p.zero));
  } else {
    store_part<Traits, kPart>(x, du);
  }
}

// One row; `add` takes its DZ once X is in the stash.
template <class Traits, class Add>
FFTCONV_DEVICE void differentiate(const BwdParams& p, const Row<Traits>& row, typename Traits::Fft& fft, Add add) {
  using io_t = typename Traits::io_t;
  using Spectrum = SpectrumTraits<Traits>;
  constexpr bool kIsReal = !Traits::kIsComplex;
  const auto row_at = [&](const void* g_array, Strides strides) {
    return row_of<io_t>(g_array, strides, row.job, row.channel);
  };
  const Product<Traits> in{row_at(p.u, p.u_strides), row_at(p.in_gate, p.in_gate_strides), p.in_len, row.thread,
                           has_gate<Traits>(p.has_in_gate)};
  const Product<Traits> out{row_at(p.dy, p.dy_strides), row_at(p.out_gate, p.out_gate_strides), p.out_len, row.thread,
                            has_gate<Traits>(p.has_out_gate)};
  const int place = Spectrum::place(row.thread);
  complex_t x[Traits::Layout::kEpt];

  if constexpr (Traits::kHasPrefetch) prefetch_outputs<Traits>(p, row);
  if constexpr (Traits::kNeedsX) {
    transform<Traits>(x, fft, in, p.twiddles);
    if constexpr (Traits::kHasSum) row.write_stash(x);
  }
  if constexpr (Traits::kHasOutGradient) {
    multiply_spectrum<Spectrum, false>(p, x, p.spectrum, row.channel, place);
    fft.template inverse<kIsReal>(x, p.twiddles);
    if constexpr (Traits::kNeedsDz) fft.make_ready();
    turn<Traits, Part::kReal>(p, x, row, out);
    if constexpr (!kIsReal) turn<Traits, Part::kImag>(p, x, row, out);
  } else if constexpr (Traits::kNeedsX) {
    sync_threads<Traits::Node::kThreads>();  // all have read the last exchange of X
  }
  if constexpr (Traits::kHasPrefetch) prefetch_next_inputs<Traits>(p, row);
  if constexpr (Traits::kNeedsDz) {
    if constexpr (Traits::kHasOutGradient) {
      fft.template forward<kIsReal>(x, p.twiddles + p.zero);
    } else {
      transform<Traits>(x, fft, out, p.twiddles + p.zero);
    }
    if constexpr (Traits::kHasSum) add(x);
    if constexpr (Traits::kHasInGradient) {
      multiply_spectrum<Spectrum, true>(p, x, p.spectrum + p.zero, row.channel, place);
      fft.template inverse<kIsReal>(x, p.twiddles + p.zero);
      if (!row.is_active) return;
      store_in_gradients<Traits, Part::kReal>(p, x, row, in);
      if constexpr (!kIsReal) store_in_gradients<Traits, Part::kImag>(p, x, row, in);
    } else {
      sync_threads<Traits::Node::kThreads>();
    }
  }
}

FFTCONV_DEVICE int jobs_of(const BwdParams& p) { return p.batch; }

}  // namespace fftconv

struct Config {
  using Layouts = fftconv::RowLayouts<FFTCONV_CLUSTER_BLOCKS, FFTCONV_ROOTS, FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS,
                                      FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using Layout = Layouts::Slice;
  using Node = Layouts::Node;
  using io_t = FFTCONV_IO_T;
  static constexpr int kRows = FFTCONV_ROWS;
  static constexpr int kSpectrumThreads = FFTCONV_SPECTRUM_THREADS;  // of the filter's transform, that share a row
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
