// y = out_gate * (conv(in_gate * u, k) + skip * in_gate * u) for filters far shorter than the rows, by overlap-save:
// one packed transform of M complex points a window (windows.cuh), so one pass over memory however long the rows are.
//
// A block's rows are windows of one channel. Windows of a batch row are neighbours in the grid, and batch rows of a
// channel, so that what windows read twice and the channel's spectrum come from L2.
#include "block_fft.cuh"
#include "ptx.cuh"
#include "spectrum.cuh"
#include "windows.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

template <class Traits>
FFTCONV_DEVICE void load_input(const WindowsParams& p, complex_t* x, const Window& window, int batch, int channel,
                               int thread) {
  constexpr bool kIsAny = Traits::kExtras == Extras::kAny;
  const Source<Traits> u(p.u, p.u_strides, p.in_gate, p.in_gate_strides, has_gate<Traits>(p.has_in_gate), batch,
                         channel, window.start);
  const Span row = window.points(0, p.in_len);
  u.load(x, row, thread);
  if (!kIsAny || window.start >= 0) return;
  const int period = p.windows.period;
  if (period > 0) u.add(x, Span{row.low - period, row.high - period} & window.points(-period, 0), period, thread);
  if (p.state != nullptr) {
    const float* g_state = row_of<float>(p.state, p.state_strides, batch, channel);
    add_floats<Traits, true>(x, g_state, -p.state_len, 0, window, thread);
  }
}

template <class Traits, Part kPart>
FFTCONV_DEVICE void store_output(const WindowsParams& p, complex_t* x, const Window& window, int batch, int channel,
                                 int thread) {
  using io_t = typename Traits::io_t;
  const Span span = window.kept & window.points(0, p.out_len);
  io_t* g_y = row_of<io_t>(p.y, p.y_strides, batch, channel) + window.start;
  const SpanRow<Traits, io_t, kPart> y(g_y, span, thread);
  if (has_gate<Traits>(p.has_out_gate)) {
    const io_t* g_gate = row_of<io_t>(p.out_gate, p.out_gate_strides, batch, channel) + window.start;
    store_gated<Traits, kPart>(x, y, SpanRow<Traits, const io_t, kPart>(g_gate, span, thread));
  } else {
    store_part<Traits, kPart>(x, y);
  }
}

template <class Traits>
FFTCONV_DEVICE void convolve_window(const WindowsParams& p, complex_t* s_row, int job, int channel, int thread,
                                    bool is_active) {
  const int batch = job / p.windows.count;
  const Window window(p.windows, job - batch * p.windows.count);
  complex_t x[Traits::Layout::kEpt];
  load_input<Traits>(p, x, window, batch, channel, thread);
  Traits::Fft::template forward<false>(x, s_row, thread, p.twiddles, [&] { wait_for_previous_kernel(); });
  multiply_spectrum<Traits, false, true>(p, x, p.spectrum, channel, thread);
  Traits::Fft::template inverse<false>(x, s_row, thread, p.twiddles);
  if (!is_active) return;
  store_output<Traits, Part::kReal>(p, x, window, batch, channel, thread);
  store_output<Traits, Part::kImag>(p, x, window, batch, channel, thread);
}

// Grid x walks the windows of a channel's batch rows, y and z the channels. A row of the block without a window of its
// own repeats another one's, for it takes part in barriers, and stores nothing.
template <class Traits>
FFTCONV_DEVICE void convolve_block(const WindowsParams& p, complex_t* s_base) {
  using Layout = typename Traits::Layout;
  const int thread = threadIdx.x % Layout::kThreads, row = threadIdx.x / Layout::kThreads;
  const long long channel = blockIdx.y + static_cast<long long>(blockIdx.z) * gridDim.y;
  if (channel >= p.channels) return;
  const int job = blockIdx.x * Traits::kRows + row, jobs = p.batch * p.windows.count;
  convolve_window<Traits>(p, s_base + row * Layout::kRowSlots, min(job, jobs - 1), static_cast<int>(channel), thread,
                          job < jobs);
}

}  // namespace fftconv

struct Traits {
  using Layout = fftconv::Layout<FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using Fft = fftconv::BlockFft<Layout, 1>;
  using io_t = FFTCONV_IO_T;
  static constexpr int kRows = FFTCONV_ROWS, kThreads = kRows * Layout::kThreads;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr int kSharedBytes = kRows * Layout::kRowSlots * static_cast<int>(sizeof(fftconv::complex_t));
};
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "blocks.py and fftconv_windows.cu disagree on memory");
static_assert(sizeof(fftconv::WindowsParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_windows(const __grid_constant__ fftconv::WindowsParams p) {
  fftconv::convolve_block<Traits>(p, reinterpret_cast<fftconv::complex_t*>(s_dynamic));
}
