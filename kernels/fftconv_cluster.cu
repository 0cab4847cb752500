// y = out_gate * (conv(in_gate * u, k) + skip * in_gate * u) for rows that outgrow a block: the blocks of a cluster
// share one, which takes a pass over global memory only. Of a real row each block reads its node (node_io.cuh), of one
// that goes past the half of the ring a slice, of which it sends a part to each (slices.cuh); it writes a slice.
//
// The filter's spectrum is that of fftconv_long, whose rows are cut from the same ring. Clusters take several rows of
// one list, channel by channel, so that they share its spectrum through L2.
#include "cluster.cuh"
#include "node_io.cuh"
#include "row_io.cuh"
#include "slices.cuh"
#include "spectrum.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// Config: the layouts, io_t and the flags.
template <class Config>
struct ClusterTraits : Config {
  using Layout = typename Config::Slice;  // of what is loaded and stored
  using Node = typename Config::Node;
  using RootFft = BlockFft<Layout, 1>;
  using NodeFft = BlockFft<Node, 1>;
  using Exchange = SliceExchange<Layout, Node>;
  static constexpr bool kHasPrefetch = false;
  static constexpr bool kReadsNodes = !Config::kIsComplex;
  static constexpr int kThreads = Node::kThreads / Node::kRanks;     // of a block
  static constexpr int kNodeSlots = Node::kRowSlots / Node::kRanks;  // of its exchange buffer
  static constexpr int kBarrierOffset = kNodeSlots * static_cast<int>(sizeof(complex_t));
  static constexpr int kSharedBytes =
      kBarrierOffset + Exchange::kBarriers * static_cast<int>(sizeof(unsigned long long));
};

// The filter's spectrum lies in rows of points, as fftconv_long has them.
template <class Traits>
struct SpectrumTraits : Traits {
  struct Layout {
    static constexpr int kEpt = Traits::Node::kEpt, kThreads = Traits::kSpectrumThreads;
  };
  FFTCONV_DEVICE static int place(int thread) {
    return thread / Layout::kThreads * (Layout::kEpt / 2 * Layout::kThreads) + thread % Layout::kThreads;
  }
};

// x = the own node of a row, after the first pass.
template <class Traits>
FFTCONV_DEVICE void load_first_pass(const FwdParams& p, const typename Traits::Exchange& exchange, complex_t* x,
                                    int batch, int channel, int thread,
                                    const NodePowers<Traits::Node::kRanks>& powers) {
  if constexpr (!Traits::kReadsNodes) {
    load_row<Traits, Part::kReal>(p, x, batch, channel, 0, thread, nullptr);
    load_row<Traits, Part::kImag>(p, x, batch, channel, Traits::Layout::kPoints, thread, nullptr);
    Traits::RootFft::template forward_root_pass<false>(x);
    exchange.forward(x);
  } else if (has_gate<Traits>(p.has_in_gate)) {
    load_node<Traits, true>(p, x, batch, channel, powers);
  } else {
    load_node<Traits, false>(p, x, batch, channel, powers);
  }
}

template <class Traits>
FFTCONV_DEVICE void convolve_row(const FwdParams& p, const typename Traits::Exchange& exchange, complex_t* s_node,
                                 int batch, int channel, int thread, int turn,
                                 const NodePowers<Traits::Node::kRanks>& powers) {
  using Spectrum = SpectrumTraits<Traits>;
  complex_t x[Traits::Layout::kEpt];
  load_first_pass<Traits>(p, exchange, x, batch, channel, thread, powers);
  Traits::NodeFft::template forward<false>(x, s_node, thread, p.twiddles, [] {});
  multiply_spectrum<Spectrum, false>(p, x, p.spectrum, channel, Spectrum::place(thread));
  Traits::NodeFft::template inverse<false>(x, s_node, thread, p.twiddles, [&] { exchange.make_ready(); });
  exchange.inverse(x, Traits::kReadsNodes ? turn & 1 : 1);
  if constexpr (!Traits::kReadsNodes) exchange.make_ready();
  Traits::RootFft::template inverse_root_pass<Traits::kReadsNodes>(x);
  store_row<Traits, Part::kReal>(p, x, batch, channel, 0, thread);
  if constexpr (Traits::kIsComplex) {
    store_row<Traits, Part::kImag>(p, x, batch, channel, Traits::Layout::kPoints, thread);
  }
}

// A cluster takes p.turns rows, which lie side by side: all blocks of it the same ones.
template <class Traits>
FFTCONV_DEVICE void walk_rows(const FwdParams& p, char* s_base) {
  using Node = typename Traits::Node;
  const int rank = cluster_rank<Node>(), thread = threadIdx.x + rank * Traits::kThreads;
  complex_t* s_node = reinterpret_cast<complex_t*>(s_base) - rank * Traits::kNodeSlots;
  const long long first = static_cast<long long>(blockIdx.x / Node::kRanks) * p.turns;
  int channel = static_cast<int>(first / p.batch);
  int batch = static_cast<int>(first - static_cast<long long>(channel) * p.batch);
  const typename Traits::Exchange exchange(
      s_node, reinterpret_cast<unsigned long long*>(s_base + Traits::kBarrierOffset), thread, rank);
  const NodePowers<Node::kRanks> powers = node_powers<Node::kRanks>(rank);
  sync_cluster();
  if constexpr (!Traits::kReadsNodes) exchange.make_ready();
  for (int turn = 0; turn < p.turns && channel < p.channels; turn++) {
    convolve_row<Traits>(p, exchange, s_node, batch, channel, thread, turn, powers);
    if (++batch == p.batch) {
      batch = 0;
      channel++;
    }
  }
  sync_cluster();  // nothing is sent to a block that is no more
}

}  // namespace fftconv

struct Config {
  using Slice = fftconv::SliceLayout<FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using Node =
      fftconv::ClusterLayout<FFTCONV_CLUSTER_BLOCKS, true, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using io_t = FFTCONV_IO_T;
  static constexpr bool kIsComplex = FFTCONV_IS_COMPLEX, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr int kSpectrumThreads = FFTCONV_SPECTRUM_THREADS;  // threads of fftconv_long that share a row
};
using Traits = fftconv::ClusterTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES,
              "cluster_blocks.py and fftconv_cluster.cu disagree on memory");
static_assert(sizeof(fftconv::FwdParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __cluster_dims__(FFTCONV_CLUSTER_BLOCKS, 1, 1)
    __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
        fftconv_cluster(const __grid_constant__ fftconv::FwdParams p) {
  fftconv::walk_rows<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
