// The only inline PTX: bulk copies from global to shared memory that complete on an mbarrier (sm_90 and later).
// The host runtime of the tests (FFTCONV_HOST) supplies the same four operations in C++.
#pragma once
#include "types.cuh"

namespace fftconv {

#ifndef FFTCONV_HOST

FFTCONV_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

FFTCONV_DEVICE void mbarrier_init(unsigned long long* s_barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(s_barrier)) : "memory");
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

#else

inline void mbarrier_init(unsigned long long* s_barrier) { fftconv_host_mbarrier_init(s_barrier, 1); }
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
