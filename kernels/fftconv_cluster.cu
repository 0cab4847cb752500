// y = out_gate * (conv(in_gate * u, k) + skip * in_gate * u) for rows that outgrow a block: the blocks of a cluster
// share one, which takes a pass over global memory only. Of a real row each block reads its node (node_io.cuh), of one
// that goes past the half of the ring a slice, of which it sends a part to each (slices.cuh); it writes a slice.
//
// The filter's spectrum is that of fftconv_long, whose rows are cut from the same ring. Clusters take several rows of
// one list, channel by channel, so that they share its spectrum through L2.
#include "row_fft.cuh"
#include "row_io.cuh"
#include "spectrum.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// Config: the layouts, io_t and the flags.
template <class Config>
struct ClusterTraits : Config {
  using Layout = typename Config::Layout;  // of what is loaded and stored
  using Node = typename Config::Node;
  using Fft = RowFft<Layout, Node>;
  static constexpr bool kHasPrefetch = false;
  static constexpr bool kReadsNodes = !Config::kIsComplex, kLoopsOverSegments = false;
  static constexpr int kThreads = Node::kThreads / Node::kRanks;     // of a block
  static constexpr int kNodeSlots = Node::kRowSlots / Node::kRanks;  // of its exchange buffer
  static constexpr int kBarrierOffset = kNodeSlots * static_cast<int>(sizeof(complex_t));
  static constexpr int kSharedBytes = kBarrierOffset + Fft::kBarriers * static_cast<int>(sizeof(unsigned long long));
};

// x = the spectrum of a row.
template <class Traits>
FFTCONV_DEVICE void transform_row(const FwdParams& p, typename Traits::Fft& fft, complex_t* x, int batch, int channel) {
  using io_t = typename Traits::io_t;
  if constexpr (!Traits::kReadsNodes) {
    fft.make_ready();
    load_row<Traits, Part::kReal>(p, x, batch, channel, 0, fft.thread, nullptr);
    load_row<Traits, Part::kImag>(p, x, batch, channel, Traits::Layout::kPoints, fft.thread, nullptr);
    fft.template forward<false>(x, p.twiddles);
  } else {
    const io_t* g_u = row_of<io_t>(p.u, p.u_strides, batch, channel);
    const io_t* g_gate = row_of<io_t>(p.in_gate, p.in_gate_strides, batch, channel);
    load_node<Traits>(x, fft.powers, g_u, g_gate, p.in_len, has_gate<Traits>(p.has_in_gate));
    fft.forward_node(x, p.twiddles);
  }
}

template <class Traits>
FFTCONV_DEVICE void convolve_row(const FwdParams& p, typename Traits::Fft& fft, int batch, int channel) {
  using Spectrum = SpectrumTraits<Traits>;
  complex_t x[Traits::Layout::kEpt];
  transform_row<Traits>(p, fft, x, batch, channel);
  multiply_spectrum<Spectrum, false>(p, x, p.spectrum, channel, Spectrum::place(fft.thread));
  fft.template inverse<Traits::kReadsNodes>(x, p.twiddles);
  store_row<Traits, Part::kReal>(p, x, batch, channel, 0, fft.thread);
  if constexpr (Traits::kIsComplex) {
    store_row<Traits, Part::kImag>(p, x, batch, channel, Traits::Layout::kPoints, fft.thread);
  }
}

// A cluster takes p.turns rows, which lie side by side: all blocks of it the same ones.
template <class Traits>
FFTCONV_DEVICE void walk_rows(const FwdParams& p, char* s_base) {
  using Node = typename Traits::Node;
  const long long first = static_cast<long long>(blockIdx.x / Node::kRanks) * p.turns;
  int channel = static_cast<int>(first / p.batch);
  int batch = static_cast<int>(first - static_cast<long long>(channel) * p.batch);
  typename Traits::Fft fft(reinterpret_cast<complex_t*>(s_base),
                           reinterpret_cast<unsigned long long*>(s_base + Traits::kBarrierOffset), threadIdx.x);
  sync_cluster();
  for (int turn = 0; turn < p.turns && channel < p.channels; turn++) {
    convolve_row<Traits>(p, fft, batch, channel);
    if (++batch == p.batch) {
      batch = 0;
      channel++;
    }
  }
}

}  // namespace fftconv

struct Config {
  using Layouts = fftconv::RowLayouts<FFTCONV_CLUSTER_BLOCKS, 1, FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS,
                                      FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using Layout = Layouts::Slice;
  using Node = Layouts::Node;
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
