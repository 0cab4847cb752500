// mbarriers and bulk copies of the host runtime. The state is kept beside the shared memory; the 64-bit word in it only
// holds the number.
#include "cuda_host.h"
#include "runtime.h"

namespace host {
namespace {

struct Copy {
  void* destination;   // in the shared memory of the barrier's block
  const void* source;  // or null: `value`
  unsigned bytes;
  char value[16];
};
constexpr unsigned kMaxCopies = 16;  // outstanding on one mbarrier

struct Barrier {
  unsigned long long* word;
  unsigned rank;             // of its block
  unsigned count, arrivals;  // arrivals still missing in this phase
  int64_t bytes;             // expected less copied in this phase
  uint32_t phase;            // phases completed
  uint32_t must_wait;        // some thread must have seen this many phases: copies arrived in them
  uint32_t waited;           // phases that some thread has seen complete
  Copy copies[kMaxCopies];
  unsigned copy_count;
};
Barrier barriers[kMaxBarriers];
unsigned barrier_count;

void complete_if_done(unsigned i) {
  Barrier& b = barriers[i];
  if (b.arrivals || b.bytes || b.copy_count) return;
  ++b.phase;
  b.arrivals = b.count;
  rt.progress = true;
  if (rt.race_check) race_complete(i);
}

void do_copies(unsigned i) {
  Barrier& b = barriers[i];
  if (!b.copy_count) return;
  for (unsigned c = 0; c < b.copy_count; ++c) {
    const Copy& copy = b.copies[c];
    memcpy(place_of(copy.destination, b.rank), copy.source ? copy.source : copy.value, copy.bytes);
    b.bytes -= copy.bytes;
  }
  b.copy_count = 0;
  rt.progress = true;
  complete_if_done(i);
}

unsigned find(unsigned long long* word, const char* what, unsigned rank = rt.rank) {
  if (rt.race_check && rank == rt.rank) race_access(word, sizeof(*word), false);
  for (unsigned i = 0; i < barrier_count; ++i)
    if (barriers[i].word == word && barriers[i].rank == rank) return i;
  fail(kMisuse, "thread %u: %s on an mbarrier that was not initialised, at %s", rt.current, what,
       describe_address(word));
  return 0;
}

void add_copy(unsigned i, const Copy& copy) {
  Barrier& b = barriers[i];
  if (b.copy_count == kMaxCopies) do_copies(i);
  b.copies[b.copy_count++] = copy;
  b.must_wait = b.phase + 1;
  if (rt.order == kAscending || (rt.order == kRandom && next_random() % 2)) do_copies(i);
}

void arrive(unsigned i) {
  Barrier& b = barriers[i];
  if (!b.arrivals)
    fail(kMisuse, "thread %u: one arrival too many at the mbarrier at %s", rt.current, describe_address(b.word));
  --b.arrivals;
  if (rt.race_check) race_arrive(i);
  complete_if_done(i);
}

}  // namespace

void mbarrier_block_begin() { barrier_count = 0; }

void mbarrier_block_end() {
  for (unsigned i = 0; i < barrier_count; ++i)
    if (barriers[i].copy_count || barriers[i].waited < barriers[i].must_wait)
      return fail(kMisuse, "the block ended with a bulk copy on the mbarrier at %s that no thread waited for",
                  describe_address(barriers[i].word));
}

}  // namespace host

using namespace host;

extern "C" void fftconv_host_mbarrier_init(unsigned long long* bar, unsigned count) {
  if ((uintptr_t)bar % 8 || (char*)bar < rt.shared || (char*)(bar + 1) > rt.shared + rt.shared_size || !count)
    fail(kMisuse, "mbarrier init at %s: needs 8 aligned bytes of shared memory and a count", describe_address(bar));
  if (rt.race_check) race_access(bar, sizeof(*bar), true);
  for (unsigned i = 0; i < barrier_count; ++i)
    if (barriers[i].word == bar && barriers[i].rank == rt.rank)
      fail(kMisuse, "the mbarrier at %s is initialised twice", describe_address(bar));
  if (barrier_count == kMaxBarriers) fail(kMisuse, "more than %u mbarriers", kMaxBarriers);
  Barrier& b = barriers[barrier_count];
  b = Barrier{};
  b.word = bar, b.rank = rt.rank, b.count = b.arrivals = count;
  *bar = barrier_count++;
}

extern "C" void fftconv_host_mbarrier_arrive(unsigned long long* bar) { arrive(find(bar, "arrive")); }

extern "C" void fftconv_host_mbarrier_arrive_peer(unsigned long long* bar, int rank) {
  check_peer("arrives at", bar, sizeof(*bar), rank);
  arrive(find(bar, "arrive", rank));
}

extern "C" void fftconv_host_mbarrier_arrive_expect_tx(unsigned long long* bar, unsigned bytes) {
  unsigned i = find(bar, "arrive.expect_tx");
  barriers[i].bytes += bytes;
  arrive(i);
}

extern "C" void fftconv_host_bulk_copy(void* dst, const void* src, unsigned bytes, unsigned long long* bar) {
  unsigned i = find(bar, "bulk copy");
  if (((uintptr_t)dst | (uintptr_t)src | bytes) % 16)
    fail(kMisuse, "bulk copy of %u bytes from %p to %s: not all multiples of 16", bytes, src, describe_address(dst));
  if ((char*)dst < rt.shared || (char*)dst + bytes > rt.shared + rt.shared_size)
    fail(kMisuse, "bulk copy to %s: not shared memory", describe_address(dst));
  if (rt.race_check) race_async_write(dst, bytes, i, rt.rank);
  add_copy(i, {dst, src, bytes});
}

extern "C" void fftconv_host_store_async(void* target, unsigned long long* bar, int rank, const void* value,
                                         unsigned bytes) {
  check_peer("writes to", target, bytes, rank);
  unsigned i = find(bar, "st.async", rank);
  Copy copy = {target, nullptr, bytes};
  memcpy(copy.value, value, bytes);
  if (rt.race_check) {
    race_async_write(target, bytes, i, rank);
    race_release_to(i);
  }
  add_copy(i, copy);
}

extern "C" bool fftconv_host_mbarrier_try_wait_parity(unsigned long long* bar, unsigned parity) {
  unsigned i = find(bar, "wait");
  Barrier& b = barriers[i];
  // The barrier's current phase has parity phase % 2; the other parity names the phase before it, which has completed.
  if ((b.phase & 1) == (parity & 1)) {
    do_copies(i);
    if ((b.phase & 1) == (parity & 1)) {
      fftconv_host_yield();
      return false;
    }
  }
  if (b.phase > b.waited) b.waited = b.phase;
  if (rt.race_check) race_acquire(i);
  return true;
}

extern "C" void fftconv_host_mbarrier_wait_parity(unsigned long long* bar, unsigned parity) {
  while (!fftconv_host_mbarrier_try_wait_parity(bar, parity)) {
  }
}
