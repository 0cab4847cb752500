// The state after a row: its last K - 1 inputs, gated, in float32; where the row is shorter, after what is left of the
// state before it, or zeros.
#include "io.cuh"

namespace fftconv {

FFTCONV_DEVICE void store_state(const StateParams& p) {
  using io_t = FFTCONV_IO_T;
  using S = Storage<io_t>;
  const long long index = static_cast<long long>(blockIdx.x) * FFTCONV_THREADS + threadIdx.x;
  const long long row = index / p.state_len;
  if (row >= static_cast<long long>(p.batch) * p.channels) return;
  const int batch = static_cast<int>(row / p.channels), channel = static_cast<int>(row % p.channels);
  const int offset = static_cast<int>(index % p.state_len), point = p.in_len - p.state_len + offset;
  float v = 0.f;
  if (point >= 0) {
    v = S::widen(row_of<io_t>(p.u, p.u_strides, batch, channel)[point]);
    if (p.in_gate != nullptr) v *= S::widen(row_of<io_t>(p.in_gate, p.in_gate_strides, batch, channel)[point]);
  } else if (p.initial != nullptr) {
    v = row_of<float>(p.initial, p.initial_strides, batch, channel)[point + p.state_len];
  }
  p.final[index] = v;
}

}  // namespace fftconv

static_assert(sizeof(fftconv::StateParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(FFTCONV_THREADS)
    fftconv_state(const __grid_constant__ fftconv::StateParams p) {
  fftconv::store_state(p);
}
