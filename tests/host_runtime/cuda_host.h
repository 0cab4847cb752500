// CUDA's device language in plain C++, for running the kernels' own sources on the CPU. Included before the kernel
// source; the functions declared here are defined in runtime.cpp, race.cpp and mbarrier.cpp.
//
// What is modelled: threads of a 1-D block as fibers, shared memory, barriers, warp exchanges, mbarriers with bulk
// copies, clusters of blocks along x. What is not: bank conflicts, occupancy, register limits, memory ordering between
// blocks, timing.
#pragma once
#define FFTCONV_HOST 1
#define __CUDA_RUNTIME_API_H__  // vector_functions.h asks for the whole runtime API and uses nothing of it

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "crt/host_defines.h"
#include "vector_types.h"
// clang-format keeps this order: the functions need the types.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "vector_functions.h"

#pragma GCC visibility push(default)  // of the runtime's own shared object

// Set by the scheduler before every switch to a fiber; never cached across a barrier, which is an opaque call.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define FFTCONV_HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define FFTCONV_HOST_FULL_MASK 0xffffffffu

extern "C" {
enum FftconvHostReduce { FFTCONV_HOST_NONE, FFTCONV_HOST_OR, FFTCONV_HOST_AND, FFTCONV_HOST_COUNT };
int fftconv_host_syncthreads(FftconvHostReduce reduce, int predicate, const char* file, int line);

// Warp exchange: every lane of `mask` gives `value` and `source` lane; each gets the value of its source.
enum FftconvHostWarp { FFTCONV_HOST_SYNC, FFTCONV_HOST_SHUFFLE, FFTCONV_HOST_BALLOT };
uint64_t fftconv_host_warp(FftconvHostWarp kind, unsigned mask, uint64_t value, int source, const char* file, int line);

// ---- For the host twins of PTX wrappers (kernels/ptx.cuh under FFTCONV_HOST) ----
// Gives the other threads a turn. A hand-written spin loop must call it; spinning for ever is reported as stuck.
void fftconv_host_yield();
// An mbarrier is 64 bits of shared memory; `bar` is its ordinary address. Using one before a barrier orders its init
// before the use is a race. A phase completes when all `count` arrivals came and the expected bytes equal the copied
// bytes.
void fftconv_host_mbarrier_init(unsigned long long* bar, unsigned count);
void fftconv_host_mbarrier_arrive(unsigned long long* bar);
void fftconv_host_mbarrier_arrive_expect_tx(unsigned long long* bar, unsigned bytes);
// cp.async.bulk global -> shared: dst, src and bytes must be multiples of 16. Done at once in ascending order, as late
// as possible (when a thread first polls the barrier) in descending order, either way in random order. Its writes are
// ordered before nothing but waits on `bar` that succeeded (not even __syncthreads), and before what those waits are
// ordered before. A phase with copies that no thread waits for before the block ends is an error.
void fftconv_host_bulk_copy(void* dst, const void* src, unsigned bytes, unsigned long long* bar);
// True when the phase of that parity has completed; when it has not, other threads get a turn before it returns false.
bool fftconv_host_mbarrier_try_wait_parity(unsigned long long* bar, unsigned parity);
void fftconv_host_mbarrier_wait_parity(unsigned long long* bar, unsigned parity);
// Adds to a number that blocks share, and returns what it was; no race with others that do so, or that read it.
unsigned fftconv_host_atomic_add(unsigned* address, unsigned value);
// The barrier of all threads of a cluster, in its two halves.
void fftconv_host_cluster_arrive();
void fftconv_host_cluster_wait();
// st.async: writes to where `target` of the own shared memory lies in that of the block of `rank`, and counts the bytes
// at the mbarrier that lies there as `bar` does here; as for a bulk copy, early or late.
void fftconv_host_store_async(void* target, unsigned long long* bar, int rank, const void* value, unsigned bytes);
// Arrives at the mbarrier that lies in the block of `rank` as `bar` does here.
void fftconv_host_mbarrier_arrive_peer(unsigned long long* bar, int rank);
// A prefetch, of an address that must be one of an array. They are counted, and the last ones are kept.
enum { FFTCONV_HOST_PREFETCHES = 1 << 14 };
extern const void* fftconv_host_prefetched[FFTCONV_HOST_PREFETCHES];
extern unsigned fftconv_host_prefetch_count;
void fftconv_host_prefetch(const void* address);
// Stops the launch with an error.
void fftconv_host_trap(const char* what);

// ---- Between harness.py, a kernel's shared object and the runtime ----
struct FftconvHostKernel {
  void (*call)(const void* params);
  size_t params_bytes;
  void* dynamic_shared;
  size_t dynamic_shared_bytes;
  unsigned cluster_blocks;
};
struct FftconvHostLaunch {
  unsigned grid[3], threads, smem_bytes;
  int order, race_check;
  uint64_t seed;
  const void* params;
  size_t params_bytes;
  char message[1024];
};
// Returns a host::Failure (runtime.h) and, unless that is 0, a message. One launch at a time in a process: the caller
// holds a lock.
int fftconv_host_launch(const FftconvHostKernel* kernel, FftconvHostLaunch* launch);
}
#pragma GCC visibility pop

inline void __syncthreads(FFTCONV_HOST_SITE) { fftconv_host_syncthreads(FFTCONV_HOST_NONE, 0, file, line); }
inline int __syncthreads_or(int p, FFTCONV_HOST_SITE) {
  return fftconv_host_syncthreads(FFTCONV_HOST_OR, p, file, line);
}
inline int __syncthreads_and(int p, FFTCONV_HOST_SITE) {
  return fftconv_host_syncthreads(FFTCONV_HOST_AND, p, file, line);
}
inline int __syncthreads_count(int p, FFTCONV_HOST_SITE) {
  return fftconv_host_syncthreads(FFTCONV_HOST_COUNT, p, file, line);
}
inline void __syncwarp(unsigned mask = FFTCONV_HOST_FULL_MASK, FFTCONV_HOST_SITE) {
  fftconv_host_warp(FFTCONV_HOST_SYNC, mask, 0, 0, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, FFTCONV_HOST_SITE) {
  return (unsigned)fftconv_host_warp(FFTCONV_HOST_BALLOT, mask, p != 0, 0, file, line);
}
inline int __any_sync(unsigned mask, int p, FFTCONV_HOST_SITE) { return __ballot_sync(mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, int p, FFTCONV_HOST_SITE) { return __ballot_sync(mask, p, file, line) == mask; }

inline int fftconv_host_lane() { return (int)(threadIdx.x % 32); }
template <class T>
T fftconv_host_shuffle(unsigned mask, T value, int source, const char* file, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = fftconv_host_warp(FFTCONV_HOST_SHUFFLE, mask, bits, source, file, line);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
// A source outside the caller's segment of `width` lanes leaves its own value, as in CUDA.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FFTCONV_HOST_SITE) {
  int base = fftconv_host_lane() & ~(width - 1);
  return fftconv_host_shuffle(mask, value, base + (source & (width - 1)), file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FFTCONV_HOST_SITE) {
  int lane = fftconv_host_lane(), source = lane - (int)delta;
  return fftconv_host_shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FFTCONV_HOST_SITE) {
  int lane = fftconv_host_lane(), source = lane + (int)delta;
  return fftconv_host_shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, FFTCONV_HOST_SITE) {
  int lane = fftconv_host_lane(), source = lane ^ lanes;
  return fftconv_host_shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}

template <class To, class From>
inline To fftconv_host_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float x) { return fftconv_host_bits<unsigned>(x); }
inline int __float_as_int(float x) { return fftconv_host_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return fftconv_host_bits<float>(x); }
inline float __int_as_float(int x) { return fftconv_host_bits<float>(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float rsqrtf(float a) { return (float)(1.0 / sqrt((double)a)); }
inline void sincospif(float x, float* s, float* c) {
  double turns = (double)x * 3.14159265358979323846;
  *s = (float)sin(turns), *c = (float)cos(turns);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (bits & 31));
}
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= ((x >> i) & 1u) << (31 - i);
  return r;
}
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned atomicAdd(unsigned* address, unsigned value) { return fftconv_host_atomic_add(address, value); }
inline void __nanosleep(unsigned) { fftconv_host_yield(); }
inline void __trap() { fftconv_host_trap("__trap()"); }

// The end of the generated source: defines the dynamic shared memory, which the kernel declares as `extern __shared__
// type name[]`, and exports the entry. There is room for the largest block's and a red zone behind it.
template <class P>
constexpr size_t fftconv_host_params_bytes(void (*)(P)) {
  return sizeof(P);
}
template <class P>
void fftconv_host_call(void (*kernel)(P), const void* params) {
  kernel(*static_cast<const P*>(params));
}
#define FFTCONV_HOST_SHARED_BYTES 232448
#define FFTCONV_HOST_RED_ZONE 4096
#define FFTCONV_HOST_ENTRY(entry, type, name, cluster_blocks)                                                      \
  alignas(128) thread_local type name[(FFTCONV_HOST_SHARED_BYTES + FFTCONV_HOST_RED_ZONE) / sizeof(type)];         \
  extern "C" __attribute__((visibility("default"))) int fftconv_host_run(FftconvHostLaunch* launch) {              \
    const auto call = [](const void* params) { fftconv_host_call(entry, params); };                                \
    const FftconvHostKernel kernel = {call, fftconv_host_params_bytes(entry), name, sizeof(name), cluster_blocks}; \
    return fftconv_host_launch(&kernel, launch);                                                                   \
  }
