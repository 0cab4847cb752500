// Race check. The kernel is compiled with -fsanitize=thread, but linked with the callbacks below in place of libtsan:
// every load and store reports here. Two accesses to the same two bytes, one of them a write, by two threads, are a
// race unless ordered:
//  - a __syncthreads of the block lies between them,
//  - or a chain of __syncwarp, of mbarrier arrivals and waits and of those at a cluster's barrier does (vector clocks).
// Shuffles and votes order nothing, as in CUDA. Bulk copies count as a thread of their own, which only waits order.
// Other blocks than those of a cluster are never ordered, so a write shared by two is a race. Threads' own stacks are
// left out. Writes of single bytes that are neighbours look like a race, and memcpy of memory that threads share may go
// unseen (g++ does not instrument it).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_host.h"
#include "runtime.h"

namespace host {
namespace {

// In this file the "block" of an access is the cluster, whose threads are numbered through.

// An access: block serial (21 bits), thread (11 bits; kMaxThreads + b is the copies of mbarrier b), time (32 bits). 0:
// none.
typedef uint64_t Access;
constexpr unsigned access_thread(Access a) { return (unsigned)(a >> 32) & 2047u; }
constexpr uint32_t access_time(Access a) { return (uint32_t)a; }

// Of each two bytes: the last write, and two reads since then that are not ordered among themselves.
struct Cell {
  Access write, reads[2];
};
constexpr size_t kPageBytes = 4096, kPageCells = kPageBytes / 2;

// Times grow through the launch. A thread's time moves on at each of its releases; clock[t][s] is the last time of s
// that t has seen.
constexpr unsigned kClocks = kMaxThreads + kMaxBarriers;
uint32_t now, seen_by_all[kMaxClusterBlocks], thread_time[kMaxThreads];
uint32_t (*clock_of)[kClocks];  // [kMaxThreads]
uint32_t arrived[kMaxBarriers][kClocks], completed[kMaxBarriers][kClocks];
uint32_t copies_seen_by_all[kMaxClusterBlocks][kMaxBarriers];
uint32_t cluster_arrived[kClocks], cluster_completed[kClocks];
bool barriers_used;  // in this block
uint64_t block_serial;

Cell* shared_cells;  // [blocks of a cluster][shared_size / 2]
Cell* cells_of_block(unsigned rank) { return shared_cells + rank * (rt.shared_size / 2); }
unsigned block_of(unsigned thread) { return thread / rt.block_threads; }

// Shadow of global memory: pages found by open addressing.
struct Page {
  uintptr_t number;
  Cell* cells;
};
Page* pages;
size_t page_slots, page_count;
Page last_page;

void join(uint32_t* to, const uint32_t* from, unsigned begin, unsigned end) {
  for (unsigned i = begin; i < end; ++i) to[i] = from[i] > to[i] ? from[i] : to[i];
}

void join_all(uint32_t* to, const uint32_t* from) {
  join(to, from, 0, rt.threads);
  join(to, from, kMaxThreads, kClocks);
}

// What the running thread has done and seen comes before what any thread does that joins `clock`.
void release_clock(uint32_t* clock) {
  const unsigned me = rt.current, first = rt.rank * rt.block_threads;
  clock_of[me][me] = thread_time[me];
  join_all(clock, clock_of[me]);
  if (rt.blocks > 1) {  // else those who join it have seen that too
    for (unsigned t = first; t < first + rt.block_threads; ++t)
      if (clock[t] < seen_by_all[rt.rank]) clock[t] = seen_by_all[rt.rank];
    join(clock + kMaxThreads, copies_seen_by_all[rt.rank], 0, kMaxBarriers);
  }
  thread_time[me] = ++now;
}

Page* page_slot(uintptr_t number) {
  size_t i = (number * 0x9E3779B97F4A7C15ull >> 20) & (page_slots - 1);
  while (pages[i].cells && pages[i].number != number) i = (i + 1) & (page_slots - 1);
  return &pages[i];
}

void grow_pages() {
  Page* old = pages;
  size_t old_slots = page_slots;
  page_slots = old_slots ? old_slots * 2 : 1024;
  pages = (Page*)calloc(page_slots, sizeof(Page));
  for (size_t i = 0; i < old_slots; ++i)
    if (old[i].cells) *page_slot(old[i].number) = old[i];
  free(old);
}

Cell* global_cells(uintptr_t address) {
  uintptr_t number = address / kPageBytes;
  if (last_page.number != number || !last_page.cells) {
    if (page_count * 2 >= page_slots) grow_pages();
    Page* slot = page_slot(number);
    if (!slot->cells) {
      *slot = {number, (Cell*)calloc(kPageCells, sizeof(Cell))};
      ++page_count;
    }
    last_page = *slot;
  }
  return last_page.cells + address % kPageBytes / 2;
}

bool same_block(Access a) { return a >> 43 == block_serial; }

bool ordered(Access a, unsigned me, bool is_shared) {
  unsigned thread = access_thread(a);
  if (!same_block(a)) return is_shared || !a;
  if (thread == me) return true;
  if (thread < kMaxThreads && block_of(thread) == block_of(me) && access_time(a) <= seen_by_all[block_of(me)])
    return true;
  if (thread >= kMaxThreads && access_time(a) <= copies_seen_by_all[block_of(me)][thread - kMaxThreads]) return true;
  return me < kMaxThreads && access_time(a) <= clock_of[me][thread];
}

void report(Access before, bool before_writes, unsigned me, bool writes, const void* address, size_t size) {
  char who[2][48];
  const unsigned threads[2] = {me, access_thread(before)};
  for (int i = 0; i < 2; ++i) {
    if (threads[i] < kMaxThreads)
      snprintf(who[i], sizeof(who[i]), "thread %u", threads[i]);
    else
      snprintf(who[i], sizeof(who[i]), "a bulk copy (mbarrier %u)", threads[i] - kMaxThreads);
  }
  fail(kRace, "race: %s %s %zu bytes of %s, which %s%s has %s, with nothing that orders them", who[0],
       writes ? "writes" : "reads", size, describe_address(address), who[1],
       same_block(before) ? "" : " of another block", before_writes ? "written" : "read");
}

void add_reader(Cell& cell, Access access, unsigned me, bool is_shared) {
  // A read ordered before this one may go: whatever is ordered after this one is ordered after it.
  for (Access& read : cell.reads)
    if (!read || (same_block(read) && ordered(read, me, is_shared)) || (is_shared && !same_block(read))) {
      read = access;
      return;
    }
  // Three unordered readers: keep two, of different warps or blocks where there are any.
  if (same_block(cell.reads[0]) == same_block(cell.reads[1])
      && access_thread(cell.reads[0]) / 32 == access_thread(cell.reads[1]) / 32)
    cell.reads[1] = access;
}

// `rank`: of the block whose shared memory it may be.
void access_as(unsigned me, uint32_t time, const void* address, size_t size, bool writes, unsigned rank) {
  uintptr_t first = (uintptr_t)address & ~(uintptr_t)1, end = (uintptr_t)address + size;
  bool is_shared = (uintptr_t)address - (uintptr_t)rt.shared < rt.shared_size;
  const Access access = block_serial << 43 | (uint64_t)me << 32 | time;
  for (uintptr_t a = first; a < end; a += 2) {
    Cell& cell = is_shared ? cells_of_block(rank)[(a - (uintptr_t)rt.shared) / 2] : *global_cells(a);
    if (!writes && (cell.reads[0] == access || cell.reads[1] == access)) continue;
    if (cell.write != access && !ordered(cell.write, me, is_shared))
      return report(cell.write, true, me, writes, address, size);
    if (!writes) {
      add_reader(cell, access, me, is_shared);
      continue;
    }
    for (Access read : cell.reads)
      if (!ordered(read, me, is_shared)) return report(read, false, me, true, address, size);
    cell = {access, {0, 0}};
  }
}

}  // namespace

void race_launch() {
  if (!clock_of) clock_of = (uint32_t (*)[kClocks])malloc(sizeof(uint32_t[kMaxThreads][kClocks]));
  memset(clock_of, 0, sizeof(uint32_t[kMaxThreads][kClocks]));
  memset(arrived, 0, sizeof(arrived));
  memset(completed, 0, sizeof(completed));
  memset(cluster_arrived, 0, sizeof(cluster_arrived));
  memset(cluster_completed, 0, sizeof(cluster_completed));
  shared_cells = (Cell*)calloc(rt.blocks * (rt.shared_size / 2) + 1, sizeof(Cell));
  now = 0, block_serial = 0;
}

void race_release() {
  for (size_t i = 0; i < page_slots; ++i) free(pages[i].cells);
  free(pages);
  free(shared_cells);
  pages = nullptr, page_slots = page_count = 0, last_page = {0, nullptr}, shared_cells = nullptr;
}

void race_block() {
  if (++block_serial >> 21) fail(kMisuse, "the race check takes up to 2 million blocks a launch");
  barriers_used = false;
  memset(copies_seen_by_all, 0, sizeof(copies_seen_by_all));
  for (unsigned rank = 0; rank < rt.blocks; ++rank) race_syncthreads(rank);
}

void race_syncthreads(unsigned rank) {
  seen_by_all[rank] = now++;
  const unsigned first = rank * rt.block_threads, end = first + rt.block_threads;
  for (unsigned t = first; t < end; ++t) thread_time[t] = now;
  if (rt.blocks > 1) {  // what one thread has seen of other blocks, all have
    uint32_t seen[kMaxThreads] = {};
    for (unsigned t = first; t < end; ++t) join(seen, clock_of[t], 0, rt.threads);
    for (unsigned t = first; t < end; ++t) join(clock_of[t], seen, 0, rt.threads);
  }
  if (!barriers_used) return;
  for (unsigned t = first; t < end; ++t) join(copies_seen_by_all[rank], clock_of[t] + kMaxThreads, 0, kMaxBarriers);
}

void race_syncwarp(unsigned first, unsigned mask) {
  unsigned end = first + 32 < rt.threads ? first + 32 : rt.threads;
  uint32_t both[kClocks];
  memset(both, 0, sizeof(both));
  for (unsigned t = first; t < end; ++t) {
    if (!(mask >> (t - first) & 1)) continue;
    clock_of[t][t] = thread_time[t];
    if (barriers_used)
      join_all(both, clock_of[t]);
    else
      join(both, clock_of[t], first, end);
  }
  ++now;
  for (unsigned t = first; t < end; ++t) {
    if (!(mask >> (t - first) & 1)) continue;
    if (barriers_used)
      join_all(clock_of[t], both);
    else
      join(clock_of[t], both, first, end);
    thread_time[t] = now;
  }
}

void race_access(const void* address, size_t size, bool writes) {
  if (!shared_cells) return;  // what leads to a launch
  if (!in_stacks((uintptr_t)address)) access_as(rt.current, thread_time[rt.current], address, size, writes, rt.rank);
}

void race_cluster_arrive() { release_clock(cluster_arrived); }

void race_cluster_complete() { memcpy(cluster_completed, cluster_arrived, sizeof(cluster_completed)); }

void race_cluster_wait() { join_all(clock_of[rt.current], cluster_completed); }

void race_async_write(const void* address, size_t size, unsigned barrier, unsigned rank) {
  // The copy is issued after what its thread has seen, and like it must not meet accesses of others that are not
  // ordered.
  barriers_used = true;
  unsigned me = rt.current;
  access_as(me, thread_time[me], address, size, true, rank);
  const Access access = block_serial << 43 | (uint64_t)(kMaxThreads + barrier) << 32 | ++now;
  for (size_t i = 0; i < size; i += 2)
    cells_of_block(rank)[((uintptr_t)address + i - (uintptr_t)rt.shared) / 2] = {access, {0, 0}};
}

void race_arrive(unsigned barrier) {
  barriers_used = true;
  release_clock(arrived[barrier]);
}

// Whoever waits for an asynchronous write of this thread comes after what the thread did before.
void race_release_to(unsigned barrier) { release_clock(arrived[barrier]); }

void race_complete(unsigned barrier) {
  memcpy(completed[barrier], arrived[barrier], sizeof(completed[barrier]));
  completed[barrier][kMaxThreads + barrier] = now;
}

void race_acquire(unsigned barrier) { join_all(clock_of[rt.current], completed[barrier]); }

}  // namespace host

#define ACCESS_CALLBACKS(bytes)                                                                 \
  extern "C" void __tsan_read##bytes(void* p) { host::race_access(p, bytes, false); }           \
  extern "C" void __tsan_write##bytes(void* p) { host::race_access(p, bytes, true); }           \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { host::race_access(p, bytes, false); } \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { host::race_access(p, bytes, true); } \
  extern "C" void __tsan_volatile_read##bytes(void* p) { host::race_access(p, bytes, false); }  \
  extern "C" void __tsan_volatile_write##bytes(void* p) { host::race_access(p, bytes, true); }
ACCESS_CALLBACKS(1)
ACCESS_CALLBACKS(2)
ACCESS_CALLBACKS(4)
ACCESS_CALLBACKS(8)
ACCESS_CALLBACKS(16)

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_read_range(void* p, size_t size) { host::race_access(p, size, false); }
extern "C" void __tsan_write_range(void* p, size_t size) { host::race_access(p, size, true); }
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t size) {
  host::race_access(from, size, false);
  host::race_access(to, size, true);
  return memcpy(to, from, size);
}
extern "C" void* __tsan_memset(void* to, int value, size_t size) {
  host::race_access(to, size, true);
  return memset(to, value, size);
}

// -fsanitize=alignment, likewise without its library: a misaligned vector access is a fault on a GPU.
struct TypeMismatch {
  const char* file;
  uint32_t line, column;
  const char* type;  // two 16-bit numbers, then the name
  unsigned char log_alignment, access;
};
extern "C" void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* where, void* address) {
  host::fail(host::kFault, "thread %u: misaligned access to %s as %s at %s:%u", host::rt.current,
             host::describe_address(address), where->type + 4, host::base_name(where->file), where->line);
}
