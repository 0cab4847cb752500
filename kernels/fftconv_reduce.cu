// Adds up the partial sums of fftconv_bwd where there are many of a channel, or where one filter serves all channels.
// Threads of a block take float4 columns of a row and share out its slots; the order of the sum is fixed.
#include "params.cuh"
#include "types.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

constexpr int kReduceColumns = 32, kReduceLanes = FFTCONV_THREADS / kReduceColumns;

FFTCONV_DEVICE float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

FFTCONV_DEVICE void reduce(const ReduceParams& p) {
  const int column = blockIdx.x * kReduceColumns + threadIdx.x % kReduceColumns, lane = threadIdx.x / kReduceColumns;
  const long long channel = blockIdx.y + static_cast<long long>(blockIdx.z) * gridDim.y;
  if (channel >= p.channels) return;
  const long long slot = channel / p.group_channels * p.group_chunks;
  const long long pitch = static_cast<long long>(p.group_channels) * p.quads;
  float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
  if (column < p.quads) {
    const float4* g_sum = p.sums + slot * pitch + channel % p.group_channels * p.quads + column;
#pragma unroll 4
    for (int i = lane; i < p.group_chunks; i += kReduceLanes) total = add(total, __ldg(g_sum + i * pitch));
  }
  s_dynamic[threadIdx.x] = total;
  __syncthreads();
  if (lane > 0 || column >= p.quads) return;
  float4* g_out = p.out + channel * p.quads + column;
  if (p.is_added) total = add(*g_out, total);
  for (int i = 1; i < kReduceLanes; i++) total = add(total, s_dynamic[threadIdx.x + i * kReduceColumns]);
  *g_out = total;
}

}  // namespace fftconv

static_assert(sizeof(fftconv::ReduceParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(FFTCONV_THREADS)
    fftconv_reduce(const __grid_constant__ fftconv::ReduceParams p) {
  fftconv::reduce(p);
}
