// The last width - 1 points of each row, those of the state before it included where the row is shorter: the state that
// the next part of the sequence begins with. A thread copies one point.
#include "depthwise.cuh"

namespace fftconv {

template <class io_t>
FFTCONV_DEVICE void copy_point(const DepthwiseStateParams& p, int batch, int channel, int index) {
  const int time = p.in_len - (p.width - 1) + index;
  io_t v = Storage<io_t>::narrow(0.f);
  if (time >= 0) {
    v = depthwise_row<io_t>(p.x, p.x_strides, batch, channel)[time * p.x_strides.time];
  } else if (p.state != nullptr) {
    v = depthwise_row<io_t>(p.state, p.state_strides, batch, channel)[(time + p.width - 1) * p.state_strides.time];
  }
  depthwise_row<io_t>(p.final_state, p.final_strides, batch, channel)[index * p.final_strides.time] = v;
}

}  // namespace fftconv

static_assert(sizeof(fftconv::DepthwiseStateParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(FFTCONV_THREADS)
    depthwise_state(const __grid_constant__ fftconv::DepthwiseStateParams p) {
  const int points = p.width - 1;
  const long long thread = static_cast<long long>(blockIdx.x) * FFTCONV_THREADS + threadIdx.x;
  const long long channel = thread / points;
  if (channel >= p.channels) return;
  const int index = static_cast<int>(thread - channel * points);
  for (int batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
    fftconv::copy_point<FFTCONV_IO_T>(p, batch, static_cast<int>(channel), index);
  }
}
