// The transpose of fftconv_windows, but for the gradient of the output gate, which is a forward call with dy in the
// gate's place. A window keeps inputs: with x = in_gate * u on the kept points and zero elsewhere, and dz = out_gate *
// dy on all points that the taps reach from there,
//
//   dx = inverse(DZ conj(K))    du = in_gate * dx, d_in_gate = u * dx on the kept points
//   sum over the windows of a channel of DZ conj(X) / M, which fftconv_filter_bwd turns into the gradients of k and
//   skip.
//
// So every pair of an input and an output counts once, and no window adds to what another one wrote.
#include "block_fft.cuh"
#include "spectrum.cuh"
#include "sums.cuh"
#include "windows.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

template <class Traits>
FFTCONV_DEVICE Source<Traits> input_of(const WindowsBwdParams& p, const Window& window, int batch, int channel) {
  return {p.u,   p.u_strides, p.in_gate,   p.in_gate_strides, has_gate<Traits>(p.has_in_gate),
          batch, channel,     window.start};
}

template <class Traits>
FFTCONV_DEVICE void load_input(const WindowsBwdParams& p, complex_t* x, const Window& window, int batch, int channel,
                               int thread) {
  input_of<Traits>(p, window, batch, channel).load(x, window.kept & window.points(0, p.in_len), thread);
  if (Traits::kExtras != Extras::kAny || p.state == nullptr || window.start + window.kept.low >= 0) return;
  const float* g_state = row_of<float>(p.state, p.state_strides, batch, channel);
  add_floats<Traits>(x, g_state, -p.state_len, 0, window, thread);
}

template <class Traits>
FFTCONV_DEVICE void load_output_gradient(const WindowsBwdParams& p, complex_t* x, const Window& window, int batch,
                                         int channel, int thread) {
  const Source<Traits> dy(p.dy, p.dy_strides, p.out_gate, p.out_gate_strides, has_gate<Traits>(p.has_out_gate), batch,
                          channel, window.start);
  const Span row = window.points(0, p.out_len);
  dy.load(x, row, thread);
  const int period = p.windows.period;
  if (Traits::kExtras != Extras::kAny || period == 0 || window.start + 2 * Traits::Layout::kPoints <= period) return;
  dy.add(x, {row.low + period, row.high + period}, -period, thread);
}

// From dx to du = in_gate * dx and d_in_gate = u * dx, as far as they are wanted.
template <class Traits, Part kPart>
FFTCONV_DEVICE void store_in_gradients(const WindowsBwdParams& p, complex_t* x, const Window& window, int batch,
                                       int channel, int thread) {
  using io_t = typename Traits::io_t;
  const Span span = window.kept & window.points(0, p.in_len);
  const Source<Traits> in = input_of<Traits>(p, window, batch, channel);
  if (p.d_in_gate != nullptr) {
    io_t* g_d_gate = row_of<io_t>(p.d_in_gate, p.d_in_gate_strides, batch, channel) + window.start;
    store_gated<Traits, kPart>(x, SpanRow<Traits, io_t, kPart>(g_d_gate, span, thread),
                               SpanRow<Traits, const io_t, kPart>(in.g_value + p.zero, span, thread));
  }
  if (p.du == nullptr) return;
  io_t* g_du = row_of<io_t>(p.du, p.du_strides, batch, channel) + window.start;
  const SpanRow<Traits, io_t, kPart> du(g_du, span, thread);
  if (in.is_gated) {
    store_gated<Traits, kPart>(x, du, SpanRow<Traits, const io_t, kPart>(in.g_gate + p.zero, span, thread));
  } else {
    store_part<Traits, kPart>(x, du);
  }
}

// The gradients of the state: that of the final one comes in, that of the initial one goes out.
template <class Traits>
FFTCONV_DEVICE void pass_state(const WindowsBwdParams& p, complex_t* x, const Window& window, int batch, int channel,
                               int thread) {
  if (p.d_final != nullptr) {
    const float* g_final = row_of<float>(p.d_final, p.d_final_strides, batch, channel);
    add_floats<Traits>(x, g_final, p.in_len - p.state_len, p.in_len, window, thread);
  }
  if (p.d_state == nullptr) return;
  float* g_state = row_of<float>(p.d_state, p.d_state_strides, batch, channel);
  const Span span = window.kept & window.points(-p.state_len, 0);
  for_each_position<Traits>(x, thread, [&](float value, int position) {
    if (position >= span.low && position < span.high) g_state[window.start + position + p.state_len] = value;
  });
}

FFTCONV_DEVICE int jobs_of(const WindowsBwdParams& p) { return p.batch * p.windows.count; }

// One window; `add` takes its DZ once X is in the stash.
template <class Traits, class Add>
FFTCONV_DEVICE void differentiate(const WindowsBwdParams& p, const Row<Traits>& row, typename Traits::Fft& fft,
                                  Add add) {
  constexpr int kThreads = Traits::Layout::kThreads;
  const int batch = row.job / p.windows.count;
  const Window window(p.windows, row.job - batch * p.windows.count);
  complex_t x[Traits::Layout::kEpt];
  if constexpr (Traits::kHasSum) {
    load_input<Traits>(p, x, window, batch, row.channel, row.thread);
    fft.template forward<false>(x, p.twiddles);
    row.write_stash(x);
    sync_threads<kThreads>();  // all have read the last exchange of X
  }
  load_output_gradient<Traits>(p, x, window, batch, row.channel, row.thread);
  fft.template forward<false>(x, p.twiddles + p.zero);
  if constexpr (Traits::kHasSum) add(x);
  if constexpr (Traits::kHasInGradient) {
    multiply_spectrum<Traits, true>(p, x, p.spectrum + p.zero, row.channel, row.thread);
    fft.template inverse<false>(x, p.twiddles + p.zero);
    if (!row.is_active) return;
    if constexpr (Traits::kExtras == Extras::kAny) pass_state<Traits>(p, x, window, batch, row.channel, row.thread);
    store_in_gradients<Traits, Part::kReal>(p, x, window, batch, row.channel, row.thread);
    store_in_gradients<Traits, Part::kImag>(p, x, window, batch, row.channel, row.thread);
  } else {
    sync_threads<kThreads>();
  }
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::Layout<FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using Node = Layout;
  using io_t = FFTCONV_IO_T;
  static constexpr int kRows = FFTCONV_ROWS, kSpectrumThreads = Layout::kThreads;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr bool kHasInGradient = FFTCONV_HAS_IN_GRADIENT;  // du, d_in_gate or d_state
  static constexpr bool kHasSum = FFTCONV_HAS_SUM;                 // dk or d_skip
  static constexpr bool kIsSumInRegisters = FFTCONV_IS_SUM_IN_REGISTERS;
  static constexpr int kStashQuads = FFTCONV_STASH_QUADS;  // float4 a thread in shared memory
  static constexpr bool kHasPrefetch = false;
};
using Traits = fftconv::SumTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "blocks.py and fftconv_windows_bwd.cu disagree on memory");
static_assert(sizeof(fftconv::WindowsBwdParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_windows_bwd(const __grid_constant__ fftconv::WindowsBwdParams p) {
  fftconv::walk_chunks<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
