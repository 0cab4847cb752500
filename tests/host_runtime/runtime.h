// What runtime.cpp (fibers and barriers), warp.cpp, cluster.cpp, race.cpp (race check) and mbarrier.cpp share. Not seen
// by the kernels.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct FftconvHostKernel;

namespace host {

constexpr unsigned kMaxThreads = 1024, kMaxClusterBlocks = 8;

// The numbers are those of harness.py.
enum Failure { kNone, kRace, kDivergent, kExited, kStuck, kFault, kMisuse };
enum Order { kAscending, kDescending, kRandom };
enum Released { kNobody, kLanes, kBlock };
enum State : uint8_t { kReady, kAtBlockBarrier, kAtWarp, kAtCluster, kDone };

struct Site {
  const char* file;
  int line;
};

struct Thread {
  void* stack_pointer;
  State state;
  bool only_polled;  // since it was last switched to
  Site site;         // of the barrier it waits at
  int warp_kind;
  unsigned mask;
  int source;  // lane
  uint64_t value;
  int predicate;
  bool has_arrived;        // at the cluster's barrier, and has not waited yet
  unsigned cluster_phase;  // of that barrier, when it arrived
};

// One of the blocks that run side by side: those of a cluster, or one by itself.
struct Block {
  unsigned arrived;  // at its barrier
  Site barrier;      // where they arrived
  bool has_started;
};

struct Runtime {
  unsigned threads, smem_bytes;  // of all blocks that run side by side, whose threads are numbered through; of one
  unsigned block_threads, blocks;
  unsigned current;  // thread that runs
  unsigned rank;     // of its block
  Block block[kMaxClusterBlocks];
  Order order;
  uint64_t random_state;
  Thread thread[kMaxThreads];
  Failure failure;
  char* message;
  size_t message_size;
  Site last_barrier;  // of the block
  char* shared;       // all shared memory: the TLS segment
  size_t shared_size;
  char* dynamic;      // the dynamic part of it
  Released released;  // by the thread that ran last
  bool progress;      // something changed that a polling thread may be waiting for
  bool race_check;
};
extern Runtime rt;

uint32_t next_random();
// Ends the launch with a message. From a fiber it does not return.
void fail(Failure kind, const char* format, ...) __attribute__((format(printf, 2, 3)));
void back_to_scheduler();  // from a fiber; returns when the thread runs again
const char* base_name(const char* path);
bool same_site(const Site& a, const Site& b);
// For a message; valid until the next call.
const char* describe_address(const void* address);
bool in_stacks(uintptr_t address);

// race.cpp. Times are per block; see there.
void race_launch();
void race_release();
void race_block();
void race_syncthreads(unsigned rank);
void race_cluster_arrive();
void race_cluster_complete();
void race_cluster_wait();
void race_syncwarp(unsigned first_thread, unsigned mask);
void race_access(const void* address, size_t size, bool is_write);
void race_async_write(const void* address, size_t size, unsigned barrier, unsigned rank);
void race_release_to(unsigned barrier);
void race_arrive(unsigned barrier);
void race_complete(unsigned barrier);
void race_acquire(unsigned barrier);
constexpr unsigned kMaxBarriers = 256;

// cluster.cpp: shared memory of the blocks, of which that of `rt.rank` is in place
void find_shared_memory(const FftconvHostKernel* kernel);
void cluster_begin();
void cluster_end();
void switch_to_block(unsigned rank);
char* place_of(void* address, unsigned rank);  // of shared memory of a block
void check_peer(const char* does, const void* target, unsigned bytes, int rank);

// mbarrier.cpp
void mbarrier_block_begin();
void mbarrier_block_end();

}  // namespace host
