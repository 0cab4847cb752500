// Warp barriers, shuffles and votes. Lanes of one mask meet; masks of one warp may be disjoint and meet apart.
#include "cuda_host.h"
#include "runtime.h"

namespace host {

// The last lane of a mask to arrive does the exchange for all.
static void release_warp(unsigned first, unsigned mask, int kind) {
  uint64_t value[32];
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && first + lane < rt.threads) value[lane] = rt.thread[first + lane].value;
  uint64_t ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && first + lane < rt.threads && value[lane]) ballot |= 1ull << lane;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1) || first + lane >= rt.threads) continue;
    Thread& thread = rt.thread[first + lane];
    unsigned source = (unsigned)thread.source;
    if (kind == FFTCONV_HOST_SHUFFLE && (source > 31 || !(mask >> source & 1) || first + source >= rt.threads))
      fail(kMisuse, "shuffle at %s:%d: thread %u reads lane %d, which takes no part (mask 0x%08x)",
           base_name(thread.site.file), thread.site.line, first + lane, thread.source, mask);
    thread.value = kind == FFTCONV_HOST_BALLOT ? ballot : kind == FFTCONV_HOST_SHUFFLE ? value[source] : 0;
    thread.state = kReady;
  }
  rt.released = kLanes;
  // Only __syncwarp orders memory; CUDA promises nothing of the kind for shuffles and votes.
  if (rt.race_check && kind == FFTCONV_HOST_SYNC) race_syncwarp(first, mask);
}

extern "C" uint64_t fftconv_host_warp(FftconvHostWarp kind, unsigned mask, uint64_t value, int source, const char* file,
                                      int line) {
  unsigned first = rt.current & ~31u, lane = rt.current & 31u;
  Thread& me = rt.thread[rt.current];
  if (!(mask >> lane & 1))
    fail(kMisuse, "thread %u calls a warp function at %s:%d without its own bit in mask 0x%08x", rt.current,
         base_name(file), line, mask);
  me.site = {file, line};
  me.warp_kind = kind, me.mask = mask, me.value = value, me.source = source;
  me.state = kAtWarp;
  bool complete = true;
  for (unsigned other = 0; other < 32 && first + other < rt.threads; ++other) {
    if (!(mask >> other & 1)) continue;
    const Thread& thread = rt.thread[first + other];
    if (thread.state == kAtWarp && thread.mask == mask
        && (thread.warp_kind != kind || !same_site(thread.site, me.site)))
      fail(kDivergent, "divergent warp function: thread %u is at %s:%d, thread %u at %s:%d", rt.current,
           base_name(file), line, first + other, base_name(thread.site.file), thread.site.line);
    complete &= thread.state == kAtWarp && thread.mask == mask;
  }
  if (complete) release_warp(first, mask, kind);
  back_to_scheduler();
  return me.value;
}

}  // namespace host
