// Shared memory of the blocks that run side by side, those of a cluster (or one by itself), and what the threads of a
// cluster do to one another. Shared memory has one place, where the code expects it: the block that runs is there,
// those of the others lie in copies.
#include <link.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_host.h"
#include "runtime.h"

namespace host {
namespace {

char* copies;  // [blocks][shared_size]
size_t dynamic_bytes;
unsigned arrivals, barrier_phase;  // at the cluster's barrier
uint3 first_block;

// All of a kernel's shared memory is its shared object's TLS segment.
int find_in(dl_phdr_info* info, size_t, void* address) {
  bool is_kernel = false;
  size_t size = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    is_kernel |= header.p_type == PT_LOAD && (uintptr_t)address - (info->dlpi_addr + header.p_vaddr) < header.p_memsz;
    if (header.p_type == PT_TLS) size = header.p_memsz;
  }
  if (!is_kernel) return 0;
  rt.shared = (char*)info->dlpi_tls_data;
  rt.shared_size = size;
  return 1;
}

char* copy_of(unsigned rank) { return copies + rank * rt.shared_size; }

void check_red_zone() {
  const char* p = rt.dynamic + rt.smem_bytes;
  const size_t size = dynamic_bytes - rt.smem_bytes;
  if (*p == (char)0xff && !memcmp(p, p + 1, size - 1)) return;  // all of it is as poisoned
  while (*p == (char)0xff) ++p;
  fail(kFault, "write past the %u bytes of dynamic shared memory, at offset %zu", rt.smem_bytes,
       (size_t)(p - rt.dynamic));
}

bool has_exited(unsigned rank) {
  for (unsigned t = 0; t < rt.block_threads; ++t)
    if (rt.thread[rank * rt.block_threads + t].state != kDone) return false;
  return true;
}

}  // namespace

void find_shared_memory(const FftconvHostKernel* kernel) {
  rt.dynamic = (char*)kernel->dynamic_shared, dynamic_bytes = kernel->dynamic_shared_bytes;
  dl_iterate_phdr(find_in, (void*)kernel->call);
}

void cluster_begin() {
  arrivals = 0, first_block = blockIdx, rt.rank = 0;
  memset(rt.shared, 0xff, rt.shared_size);  // NaN as half, bfloat16 and float
  for (Block& block : rt.block) block = Block{};
  if (rt.blocks == 1) return;
  copies = (char*)realloc(copies, rt.blocks * rt.shared_size);
  memset(copies, 0xff, rt.blocks * rt.shared_size);
}

void cluster_end() {
  for (unsigned rank = 0; rank < rt.blocks && !rt.failure; ++rank) {
    switch_to_block(rank);
    check_red_zone();
  }
}

void switch_to_block(unsigned rank) {
  rt.block[rank].has_started = true;
  if (rank == rt.rank) return;
  memcpy(copy_of(rt.rank), rt.shared, rt.shared_size);
  memcpy(rt.shared, copy_of(rank), rt.shared_size);
  rt.rank = rank;
  blockIdx.x = first_block.x + rank;
}

char* place_of(void* address, unsigned rank) {
  return rank == rt.rank ? (char*)address : copy_of(rank) + ((char*)address - rt.shared);
}

void check_peer(const char* does, const void* target, unsigned bytes, int rank) {
  if ((size_t)((char*)target - rt.shared) + bytes > rt.shared_size || rank < 0 || (unsigned)rank >= rt.blocks)
    fail(kMisuse, "thread %u %s %s of rank %d of %u", rt.current, does, describe_address(target), rank, rt.blocks);
  if ((uintptr_t)target % bytes)
    fail(kFault, "thread %u: misaligned access to %s", rt.current, describe_address(target));
  if (!rt.block[rank].has_started || has_exited(rank))
    fail(kMisuse, "thread %u %s the shared memory of rank %d, which %s", rt.current, does, rank,
         rt.block[rank].has_started ? "has exited" : "has not started");
}

}  // namespace host

using namespace host;

extern "C" void fftconv_host_cluster_arrive() {
  Thread& me = rt.thread[rt.current];
  if (me.has_arrived) fail(kMisuse, "thread %u arrives twice at the cluster's barrier", rt.current);
  me.has_arrived = true;
  me.cluster_phase = barrier_phase;
  if (rt.race_check) race_cluster_arrive();
  if (++arrivals < rt.threads) return;
  arrivals = 0;
  ++barrier_phase;
  if (rt.race_check) race_cluster_complete();
  for (unsigned t = 0; t < rt.threads; ++t)
    if (rt.thread[t].state == kAtCluster) rt.thread[t].state = kReady;
  rt.progress = true;
}

extern "C" void fftconv_host_cluster_wait() {
  Thread& me = rt.thread[rt.current];
  if (!me.has_arrived) fail(kMisuse, "thread %u waits at the cluster's barrier without having arrived", rt.current);
  if (me.cluster_phase == barrier_phase) {
    me.state = kAtCluster;
    back_to_scheduler();
  }
  me.has_arrived = false;
  if (rt.race_check) race_cluster_wait();
}
