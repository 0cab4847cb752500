// A few steps of decoding with a short depthwise convolution, causal: the outputs of `steps` new points after those in
// the state, which takes them up in place. The state of a row holds its last points, oldest first; or, where
// cache_seqlens is given, it is a ring in which the next point goes to cache_seqlens[b] modulo its length.
// A thread takes a channel of a row. A row whose index into the states is negative is padding: its outputs are zero and
// no state changes. One past the last state has no outputs: they are NaN.
#include "depthwise.cuh"

namespace fftconv {

template <class io_t>
struct UpdateRow {
  using S = Storage<io_t>;
  const DepthwiseUpdateParams& p;
  const io_t* g_x;
  io_t* g_state;
  int next;  // where in the state the next point goes; its length where the state is no ring

  FFTCONV_DEVICE io_t& state(int index) const { return g_state[index * p.state_strides.time]; }

  // Where the point at `time` of the new ones, or before them, lies.
  FFTCONV_DEVICE const io_t* place(int time) const {
    const int at = next + time;
    const io_t* g_old = g_state + (at < 0 ? at + p.state_len : at) * p.state_strides.time;
    return time >= 0 ? g_x + time * p.x_strides.time : g_old;
  }

  FFTCONV_DEVICE void take_up() const {
    if (p.state_len == 0) return;  // of a single tap
    if (p.cache_seqlens != nullptr) {
      int at = next;
      for (int i = 0; i < p.steps; i++) {
        state(at) = g_x[i * p.x_strides.time];
        at = at + 1 == p.state_len ? 0 : at + 1;
      }
      return;
    }
    for (int i = 0; i < p.state_len; i++) {
      const int from = i + p.steps;
      state(i) = from < p.state_len ? state(from) : g_x[(from - p.state_len) * p.x_strides.time];
    }
  }
};

template <class io_t>
FFTCONV_DEVICE void update(const DepthwiseUpdateParams& p, int batch, int channel) {
  using S = Storage<io_t>;
  io_t* g_out = depthwise_row<io_t>(p.out, p.out_strides, batch, channel);
  const int index = p.indices == nullptr ? batch : p.indices[batch * p.index_stride];
  if (index < 0 || index >= p.states) {
    const io_t v = S::narrow(index < 0 ? 0.f : __int_as_float(0x7fffffff));
    for (int i = 0; i < p.steps; i++) g_out[i * p.out_strides.time] = v;
    return;
  }
  int next = p.state_len;
  if (p.cache_seqlens != nullptr && next > 0) {
    next = p.cache_seqlens[batch * p.cache_stride] % p.state_len;
    if (next < 0) next += p.state_len;
  }
  const UpdateRow<io_t> row = {p, depthwise_row<io_t>(p.x, p.x_strides, batch, channel),
                               depthwise_row<io_t>(p.state, p.state_strides, index, channel), next};
  const float bias = p.bias == nullptr ? 0.f : load_as(p.bias_type, p.bias, channel * p.bias_stride);
  for (int i = 0; i < p.steps; i++) {
    float sum = bias;
#pragma unroll 4
    for (int j = 0; j < p.width; j++) {
      const float x = S::widen(*row.place(i + j - (p.width - 1)));
      sum = fmaf(load_as(p.weight_type, p.weight, channel * p.weight_stride + j * p.tap_stride), x, sum);
    }
    g_out[i * p.out_strides.time] = S::narrow(p.has_silu ? silu(sum) : sum);
  }
  row.take_up();
}

}  // namespace fftconv

static_assert(sizeof(fftconv::DepthwiseUpdateParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(FFTCONV_THREADS, 4)
    depthwise_update(const __grid_constant__ fftconv::DepthwiseUpdateParams p) {
  const int channel = blockIdx.x * FFTCONV_THREADS + threadIdx.x;
  if (channel >= p.channels) return;
  for (int batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
    fftconv::update<FFTCONV_IO_T>(p, batch, channel);
  }
}
