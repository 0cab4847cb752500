// Adds up the partial sums of depthwise_bwd or depthwise_taps over the chunks, in a fixed order, and rounds them once
// to the dtypes of weight and bias. Threads of a block take neighbouring channels of one tap, and share out the chunks.
#include "depthwise.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

constexpr int kReduceColumns = 32, kReduceLanes = FFTCONV_THREADS / kReduceColumns;

FFTCONV_DEVICE void reduce(const DepthwiseReduceParams& p, float* s_totals) {
  const int column = threadIdx.x % kReduceColumns, lane = threadIdx.x / kReduceColumns;
  const long long channel = static_cast<long long>(blockIdx.x) * kReduceColumns + column;
  const int tap = blockIdx.y;  // that past the last one is the bias
  float total = 0.f;
  if (channel < p.channels) {
    const float* g_sums = p.sums + static_cast<long long>(tap) * p.channels + channel;
    const long long pitch = static_cast<long long>(p.width + 1) * p.channels;
#pragma unroll 4
    for (int i = lane; i < p.chunks; i += kReduceLanes) total += __ldg(g_sums + i * pitch);
  }
  s_totals[threadIdx.x] = total;
  __syncthreads();
  if (lane > 0 || channel >= p.channels) return;
  for (int i = 1; i < kReduceLanes; i++) total += s_totals[threadIdx.x + i * kReduceColumns];
  if (tap == p.width) {
    if (p.d_bias != nullptr) store_as(p.bias_type, p.d_bias, channel, total);
  } else if (p.d_weight != nullptr) {
    store_as(p.weight_type, p.d_weight, channel * p.width + tap, total);
  }
}

}  // namespace fftconv

static_assert(sizeof(fftconv::DepthwiseReduceParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(FFTCONV_THREADS)
    depthwise_reduce(const __grid_constant__ fftconv::DepthwiseReduceParams p) {
  fftconv::reduce(p, reinterpret_cast<float*>(s_dynamic));
}
