// As selftest.cu, for the blocks of a cluster: two of 64 threads each.
struct Params {
  const float* in;
  float* out;
  int which;
};

enum Case {
  kExchange,
  kExchangeTwice,
  kThroughGlobal,
  kApart,
  kNoBarrier,
  kNoStart,
  kNoInit,
  kOneBuffer,
  kOneBufferWhenReady,
  kReadEarly,
  kThroughGlobalNoBarrier,
  kPeerExits,
  kEarlyExit,
  kNoArrival,
  kTwoArrivals,
  kNoWait,
  kNobodyWaits,
  kAbsentRank,
  kDivergent
};

extern __shared__ float4 s_dynamic[];

__device__ void meet() {
  fftconv_host_cluster_arrive();
  fftconv_host_cluster_wait();
}

// s_target[t] of the other block = v, counted by its barrier.
__device__ void send(float* s_target, unsigned long long* s_barrier, int t, int peer, float v) {
  if (t == 0) fftconv_host_mbarrier_arrive_expect_tx(s_barrier, 64 * sizeof(float));
  fftconv_host_store_async(s_target + t, s_barrier, peer, &v, sizeof(v));
}

// What the same thread of the other block has; the second time, what that has received the first time; and so on.
__device__ float exchange(float* s, int t, int peer, float v, Case which) {
  unsigned long long* s_barriers = reinterpret_cast<unsigned long long*>(s + 128);
  if (t == 0 && which != kNoInit) {
    fftconv_host_mbarrier_init(s_barriers, 1);
    fftconv_host_mbarrier_init(s_barriers + 1, 1);
    fftconv_host_mbarrier_init(s_barriers + 2, 64);
  }
  if (which != kNoStart) meet();
  const bool is_one_buffer = which == kOneBuffer || which == kOneBufferWhenReady;
  for (int turn = 0; turn < (which == kExchange ? 1 : 4); turn++) {
    const int buffer = is_one_buffer ? 0 : turn & 1, parity = is_one_buffer ? turn & 1 : turn >> 1;
    float* s_buffer = s + 64 * buffer;
    send(s_buffer, s_barriers + buffer, t, peer, v);
    const float early = which == kReadEarly ? s_buffer[t] : 0.f;
    if (which == kNobodyWaits) return v;
    if (which == kNoBarrier) {
      meet();
    } else {
      fftconv_host_mbarrier_wait_parity(s_barriers + buffer, parity);
    }
    v = early + s_buffer[t];
    if (which == kOneBufferWhenReady) {
      fftconv_host_mbarrier_arrive_peer(s_barriers + 2, peer);
      fftconv_host_mbarrier_wait_parity(s_barriers + 2, parity);
    }
  }
  if (which == kOneBufferWhenReady) meet();
  return v;
}

// What another thread of the other block has written to global memory, and to this block's shared memory.
__device__ float through_global(const Params& p, float* s, int t, int element, float v, Case which) {
  p.out[element] = v;
  s[t] = v;
  if (which == kThroughGlobal) meet();
  const float other = p.out[element ^ 64 ^ 1];
  meet();
  return other + s[t ^ 1];
}

__device__ float run(const Params& p, int t, int rank, int element, float v) {
  float* s = reinterpret_cast<float*>(s_dynamic);
  const Case which = static_cast<Case>(p.which);
  switch (which) {
    case kThroughGlobal:
    case kThroughGlobalNoBarrier:
      return through_global(p, s, t, element, v, which);
    case kApart:
      s[t] = v;
      __syncthreads();
      return s[63 - t];
    case kPeerExits:
      meet();
      if (rank == 1) return v;
      for (int i = 0; i < 100; i++) fftconv_host_yield();
      send(s, reinterpret_cast<unsigned long long*>(s + 128), t, 1, v);
      return v;
    case kEarlyExit:
      if (rank == 1 && t == 5) return v;
      meet();
      return v;
    case kNoArrival:
      fftconv_host_cluster_wait();
      return v;
    case kTwoArrivals:
      fftconv_host_cluster_arrive();
      fftconv_host_cluster_arrive();
      return v;
    case kNoWait:
      fftconv_host_cluster_arrive();
      return v;
    case kAbsentRank:
      fftconv_host_store_async(s + t, reinterpret_cast<unsigned long long*>(s + 128), 2, &v, sizeof(v));
      return v;
    case kDivergent:
      if (rank == 1 && t == 0) {
        __syncthreads();
      } else {
        meet();
      }
      return v;
    default:
      return exchange(s, t, rank ^ 1, v, which);
  }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(64)
    cluster_selftest(const __grid_constant__ Params p) {
  const int t = threadIdx.x, rank = blockIdx.x % 2, element = blockIdx.x * 64 + t;
  const float v = run(p, t, rank, element, p.in[element]);
  if (p.which == kThroughGlobal || p.which == kThroughGlobalNoBarrier) fftconv_host_cluster_arrive();
  if (p.which == kThroughGlobal || p.which == kThroughGlobalNoBarrier) fftconv_host_cluster_wait();
  p.out[element] = v;
}
