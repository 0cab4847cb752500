// What runtime.cpp (fibers and barriers), race.cpp (race check) and mbarrier.cpp share. Not seen by the kernels.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace host {

constexpr unsigned kMaxThreads = 1024;

// The numbers are those of harness.py.
enum Failure { kNone, kRace, kDivergent, kExited, kStuck, kFault, kMisuse };
enum Order { kAscending, kDescending, kRandom };
enum Released { kNobody, kLanes, kBlock };
enum State : uint8_t { kReady, kAtBlockBarrier, kAtWarp, kDone };

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
};

struct Runtime {
  unsigned threads, smem_bytes;
  unsigned current;  // thread that runs
  unsigned arrived;  // at the block barrier
  Site barrier;      // where they arrived
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
void race_syncthreads();
void race_syncwarp(unsigned first_thread, unsigned mask);
void race_access(const void* address, size_t size, bool is_write);
void race_async_write(const void* address, size_t size, unsigned barrier);
void race_arrive(unsigned barrier);
void race_complete(unsigned barrier);
void race_acquire(unsigned barrier);
constexpr unsigned kMaxBarriers = 64;

// mbarrier.cpp
void mbarrier_block_begin();
void mbarrier_block_end();

}  // namespace host
