// Small kernels with and without planted faults, by which the host runtime is tested itself. Blocks of 64 threads.
struct Params {
  const float* in;
  float* out;
  int which;
};

enum Case {
  kReverse,
  kReverseNoBarrier,
  kRotateTwice,
  kRotateNoBarrier,
  kEarlyExit,
  kDivergentBarrier,
  kBarrierAgainstWarp,
  kWarpReverse,
  kWarpReverseNoSync,
  kWarpReverseShuffleOnly,
  kWarpSyncAcrossWarps,
  kHalfWarps,
  kHalfWarpsCrossed,
  kShuffles,
  kAbsentLane,
  kOwnBitMissing,
  kBlockSum,
  kBlockSumNoBarrier,
  kBlockVotes,
  kWarpVotes,
  kConversions,
  kNeighbourHalves,
  kPoisoned,
  kCopy,
  kCopyOneWaits,
  kCopyNoWait,
  kCopySomeWait,
  kCopyTooEarly,
  kCopyMisaligned,
  kNoInit,
  kInitNoBarrier,
  kNeverArrives,
  kSpin,
  kSpinForEver,
  kBlocksCollide,
  kPastSharedEnd,
  kPastArrayEnd,
  kMisaligned
};

extern __shared__ float4 s_dynamic[];

// s[t] = v; returns s[other] after a barrier, or without one.
__device__ float exchange(float* s, int thread, int other, float v, bool has_barrier) {
  s[thread] = v;
  if (has_barrier) __syncthreads();
  return s[other];
}

// Twice through the same memory: without the second barrier a fast thread overwrites what a slow one has yet to read.
__device__ float rotate_twice(float* s, int t, float v, bool has_barrier) {
  v = exchange(s, t, (t + 1) % 64, v, true);
  if (has_barrier) __syncthreads();
  return exchange(s, t, (t + 1) % 64, v, true);
}

__device__ float warp_reverse(float* s, int t, float v, Case which) {
  s[t] = v;
  if (which == kWarpReverse || which == kWarpSyncAcrossWarps) __syncwarp();
  if (which == kWarpReverseShuffleOnly) v = __shfl_xor_sync(0xffffffffu, v, 1);
  return s[which == kWarpSyncAcrossWarps ? 63 - t : t ^ 31];
}

__device__ float half_warps(float* s, int t, float v, bool is_crossed) {
  s[t] = v;
  __syncwarp(t % 32 < 16 ? 0xffffu : 0xffff0000u);
  return s[is_crossed ? t ^ 31 : t ^ 15];
}

__device__ float block_sum(int t, float v, bool has_barrier) {
  __shared__ float s_sums[2];
  for (int lane = 16; lane > 0; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
  if (t % 32 == 0) s_sums[t / 32] = v;
  if (has_barrier) __syncthreads();
  return t == 0 ? s_sums[0] + s_sums[1] : 0.f;
}

__device__ float block_votes(int t) {
  const int any = __syncthreads_or(t == 40), none = __syncthreads_or(0), all = __syncthreads_and(t < 64);
  return any * 1000 + none * 500 + all * 100 + __syncthreads_count(t % 3 == 0);
}

__device__ float warp_votes(int t) {
  const int any = __any_sync(0xffffffffu, t == 40), all = __all_sync(0xffffffffu, t < 32);
  return any * 1000 + all * 100 + __popc(__ballot_sync(0xffffffffu, t % 4 == 0));
}

__device__ float shuffles(int t, float v) {
  const float up = __shfl_up_sync(0xffffffffu, v, 3), down = __shfl_down_sync(0xffffffffu, v, 5, 16);
  return up + 100.f * down + 10000.f * __shfl_sync(0xffffffffu, v, 2, 8);
}

// The bits of the four conversions of one float.
__device__ void convert(const float* in, float* out, int t) {
  const __half h = __float2half_rn(in[t]);
  const __nv_bfloat16 b = __float2bfloat16_rn(in[t]);
  const float2 both = __half22float2(__floats2half2_rn(in[t], -in[t]));
  out[4 * t] = __half2float(h);
  out[4 * t + 1] = __bfloat162float(b);
  out[4 * t + 2] = both.x;
  out[4 * t + 3] = both.y;
}

// Two rows in turn through one buffer, the second copied while the first is worked on.
__device__ float copied_rows(const float* in, int t, Case which) {
  float* s_row = reinterpret_cast<float*>(s_dynamic);
  unsigned long long* s_barrier = reinterpret_cast<unsigned long long*>(s_row + 64);
  const auto fetch = [&](const float* row) {
    if (t != 0) return;
    fftconv_host_mbarrier_arrive_expect_tx(s_barrier, 256);
    fftconv_host_bulk_copy(s_row, row, 256, s_barrier);
  };
  if (t == 0 && which != kNoInit) fftconv_host_mbarrier_init(s_barrier, 1);
  if (which != kInitNoBarrier) __syncthreads();
  if (which == kCopyMisaligned) in += 1;
  if (which != kNeverArrives) fetch(in);
  float sum = 0.f;
  for (int row = 0; row < 2; row++) {
    const bool waits = which == kCopyOneWaits || which == kCopySomeWait ? t == 0 : which != kCopyNoWait;
    if (waits) fftconv_host_mbarrier_wait_parity(s_barrier, row & 1);
    if (which == kCopyOneWaits || which == kCopyNoWait || which == kCopyTooEarly) __syncthreads();
    sum = 2.f * sum + s_row[63 - t];
    if (which != kCopyTooEarly) __syncthreads();
    if (row == 0) fetch(in + 64);
  }
  return sum;
}

__device__ float spin(float* s, int t, bool is_released) {
  volatile int* s_flag = reinterpret_cast<volatile int*>(s);
  if (t == 0) *s_flag = 0;
  __syncthreads();
  if (t == 63 && is_released) *s_flag = 1;
  while (t == 0 && *s_flag == 0) fftconv_host_yield();
  return 1.f;
}

__device__ float barrier_fault(int t, float v, Case which) {
  if (which == kEarlyExit && t == 5) return v;
  if (which == kBarrierAgainstWarp && t == 31) __syncwarp(0x80000001u);
  if (which == kDivergentBarrier && t < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  return v;
}

__device__ float run(const Params& p, int t, float v) {
  float* s = reinterpret_cast<float*>(s_dynamic);
  const Case which = static_cast<Case>(p.which);
  switch (which) {
    case kReverse:
    case kReverseNoBarrier:
      return exchange(s, t, 63 - t, v, which == kReverse);
    case kRotateTwice:
    case kRotateNoBarrier:
      return rotate_twice(s, t, v, which == kRotateTwice);
    case kWarpReverse:
    case kWarpReverseNoSync:
    case kWarpReverseShuffleOnly:
    case kWarpSyncAcrossWarps:
      return warp_reverse(s, t, v, which);
    case kHalfWarps:
    case kHalfWarpsCrossed:
      return half_warps(s, t, v, which == kHalfWarpsCrossed);
    case kShuffles:
      return shuffles(t, v);
    case kAbsentLane:
      return t % 32 < 16 ? __shfl_sync(0xffffu, v, 20) : 0.f;
    case kOwnBitMissing:
      return __shfl_sync(0xffffu, v, 0);
    case kBlockSum:
    case kBlockSumNoBarrier:
      return block_sum(t, v, which == kBlockSum);
    case kBlockVotes:
      return block_votes(t);
    case kWarpVotes:
      return warp_votes(t);
    case kNeighbourHalves:
      reinterpret_cast<__half*>(s)[t] = __float2half_rn(v);
      return __half2float(reinterpret_cast<__half*>(s)[t]);
    case kPoisoned:
      return s[t];
    case kSpin:
    case kSpinForEver:
      return spin(s, t, which == kSpin);
    case kPastSharedEnd:
      s[1024 + t] = v;
      return v;
    case kPastArrayEnd:
      return p.in[1024 + t];
    case kMisaligned:
      return reinterpret_cast<const float2*>(p.in + 1)[t].x;
    case kEarlyExit:
    case kDivergentBarrier:
    case kBarrierAgainstWarp:
      return barrier_fault(t, v, which);
    default:
      return copied_rows(p.in, t, which);
  }
}

extern "C" __global__ void __launch_bounds__(64) selftest(const __grid_constant__ Params p) {
  const int t = threadIdx.x, element = blockIdx.x * 64 + t;
  if (p.which == kConversions) {
    convert(p.in, p.out, element);
  } else {
    p.out[p.which == kBlocksCollide ? t : element] = p.which == kBlocksCollide ? 1.f : run(p, t, p.in[element]);
  }
}
