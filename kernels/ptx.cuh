// The only inline PTX. Of sm_90 and later: bulk copies from global to shared memory that complete on an mbarrier, the
// order of two kernels of which the second is launched while the first runs, and what the blocks of a cluster do to one
// another. Of all: prefetches. The host runtime of the tests (FFTCONV_HOST) supplies copies and clusters in C++; its
// kernels run one after the other.
#pragma once
#include "types.cuh"

namespace fftconv {

constexpr int kLineBytes = 128;  // of L2

#ifndef FFTCONV_HOST

FFTCONV_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// `count`: arrivals, announcements among them, by which a phase completes.
FFTCONV_DEVICE void mbarrier_init(unsigned long long* s_barrier, int count = 1) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(s_barrier)), "r"(count) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Announces that `bytes` in all will arrive before the phase completes; one thread does so, before its copies.
FFTCONV_DEVICE void mbarrier_expect(unsigned long long* s_barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(s_barrier)), "r"(bytes)
               : "memory");
}

// Starts a copy. Both addresses and `bytes` are multiples of 16.
FFTCONV_DEVICE void bulk_copy(void* s_target, const void* g_source, int bytes, unsigned long long* s_barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(s_target)),
               "l"(__cvta_generic_to_global(g_source)), "r"(bytes), "r"(shared_address(s_barrier))
               : "memory");
}

// Waits until the phase of the given parity has completed.
FFTCONV_DEVICE void mbarrier_wait(unsigned long long* s_barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT_%=:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra WAIT_%=;\n"
      "}" ::"r"(shared_address(s_barrier)),
      "r"(parity)
      : "memory");
}

// Lets the next kernel of the stream start as soon as all blocks of this one have, where it was launched to do so.
FFTCONV_DEVICE void start_dependent_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until the kernel before has written all its results, where this one was launched to start early. They must not
// be read through the read-only path, whose loads the compiler moves before the wait.
FFTCONV_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// All threads of a cluster meet: what each did before it arrived comes before what any does once it has waited.
FFTCONV_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Arrives at the mbarrier that lies in another block of the cluster as `s_barrier` does here: this warp has read what
// that block may now write over. (At the scope of the cluster it would wait for writes to global memory too.)
FFTCONV_DEVICE void mbarrier_arrive(unsigned long long* s_barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 barrier;\n"
      "mapa.shared::cluster.u32 barrier, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [barrier];\n"
      "}" ::"r"(shared_address(s_barrier)),
      "r"(rank)
      : "memory");
}

// Writes to where `s_target` lies in the shared memory of another block of the cluster, some time before the phase of
// the mbarrier that lies there as `s_barrier` here completes: its bytes count there. (A barrier of the cluster would
// make each thread wait for all that it has written to global memory, and empty L1.)
// To this block itself (`is_own`) it is a plain store, which does not count; without a branch, of which there would be
// one for each value.
FFTCONV_DEVICE void store_async(float4* s_target, unsigned long long* s_barrier, int rank, float4 v, bool is_own) {
  asm volatile(
      "{\n"
      ".reg .b32 target, barrier;\n"
      ".reg .pred own;\n"
      "setp.ne.b32 own, %7, 0;\n"
      "mapa.shared::cluster.u32 target, %0, %2;\n"
      "mapa.shared::cluster.u32 barrier, %1, %2;\n"
      "@own st.shared.v4.f32 [%0], {%3, %4, %5, %6};\n"
      "@!own st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [target], {%3, %4, %5, %6}, [barrier];\n"
      "}" ::"r"(shared_address(s_target)),
      "r"(shared_address(s_barrier)), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(static_cast<int>(is_own))
      : "memory");
}

// Asks for the line of an address to be in L2 soon.
FFTCONV_DEVICE void prefetch_to_l2(const void* g_pointer) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(g_pointer)));
}

#else

inline void prefetch_to_l2(const void* g_pointer) { fftconv_host_prefetch(g_pointer); }
inline void start_dependent_kernel() {}
inline void wait_for_previous_kernel() {}
inline void sync_cluster() {
  fftconv_host_cluster_arrive();
  fftconv_host_cluster_wait();
}
inline void mbarrier_arrive(unsigned long long* s_barrier, int rank) {
  fftconv_host_mbarrier_arrive_peer(s_barrier, rank);
}
inline void store_async(float4* s_target, unsigned long long* s_barrier, int rank, float4 v, bool is_own) {
  if (is_own) {
    *s_target = v;
  } else {
    fftconv_host_store_async(s_target, s_barrier, rank, &v, sizeof(v));
  }
}
inline void mbarrier_init(unsigned long long* s_barrier, int count = 1) {
  fftconv_host_mbarrier_init(s_barrier, count);
}
inline void mbarrier_expect(unsigned long long* s_barrier, int bytes) {
  fftconv_host_mbarrier_arrive_expect_tx(s_barrier, bytes);
}
inline void bulk_copy(void* s_target, const void* g_source, int bytes, unsigned long long* s_barrier) {
  fftconv_host_bulk_copy(s_target, g_source, bytes, s_barrier);
}
inline void mbarrier_wait(unsigned long long* s_barrier, int parity) {
  fftconv_host_mbarrier_wait_parity(s_barrier, parity);
}

#endif

}  // namespace fftconv
