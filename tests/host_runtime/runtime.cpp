// Runs a kernel on the CPU: one fiber per CUDA thread, one block (or cluster of blocks) after another. A thread runs
// until it blocks; which one runs next is the chosen order. One shared object of its own, which every kernel's shared
// object is linked with.
#include "runtime.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_host.h"
#include "fiber_switch.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace host {

Runtime rt;

namespace {
constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 64 << 10;  // a guard is a multiple of every page size
constexpr unsigned kIdleRounds = 1000;
char* stacks;
void* scheduler_stack;
const FftconvHostKernel* kernel;
const void* params;
pthread_t launching;
sigjmp_buf fault_exit;
bool in_fiber;
}  // namespace

uint32_t next_random() {  // xorshift64*
  uint64_t& x = rt.random_state;
  x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
  return (uint32_t)((x * 0x2545F4914F6CDD1Dull) >> 32);
}

const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

bool in_stacks(uintptr_t a) { return a - (uintptr_t)stacks < (kStackBytes + kGuardBytes) * kMaxThreads; }

const char* describe_address(const void* address) {
  static char text[64];
  const char* a = (const char*)address;
  if (a >= rt.dynamic && a < rt.dynamic + kernel->dynamic_shared_bytes)
    snprintf(text, sizeof(text), "dynamic shared memory + %zu", (size_t)(a - rt.dynamic));
  else if (a >= rt.shared && a < rt.shared + rt.shared_size)
    snprintf(text, sizeof(text), "static shared memory");
  else
    snprintf(text, sizeof(text), "global address %p", address);
  return text;
}

void back_to_scheduler() {
  in_fiber = false;
  fftconv_host_switch(&rt.thread[rt.current].stack_pointer, scheduler_stack);
}

void fail(Failure kind, const char* format, ...) {
  if (rt.failure == kNone) {
    rt.failure = kind;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(rt.message, rt.message_size, format, arguments);
    va_end(arguments);
    char* end = rt.message + (n < 0 ? 0 : n);
    size_t room = n < 0 || (size_t)n >= rt.message_size ? 0 : rt.message_size - n;
    if (rt.last_barrier.file)
      snprintf(end, room, " [block (%u, %u, %u), after the barrier at %s:%d]", blockIdx.x, blockIdx.y, blockIdx.z,
               base_name(rt.last_barrier.file), rt.last_barrier.line);
    else
      snprintf(end, room, " [block (%u, %u, %u)]", blockIdx.x, blockIdx.y, blockIdx.z);
  }
  if (in_fiber) back_to_scheduler();
}

static void fiber_main() {
  kernel->call(params);
  if (rt.thread[rt.current].has_arrived)
    fail(kMisuse, "thread %u ends between two halves of a cluster's barrier", rt.current);
  rt.thread[rt.current].state = kDone;
  back_to_scheduler();
}

static void start_fiber(unsigned t) {
  // Tops differ by an odd number of cache lines, so that the stacks do not fall on the same cache sets.
  char* top = stacks + (kStackBytes + kGuardBytes) * (t + 1) - 64 - (t % 61) * 1088;
  void** frame = (void**)((uintptr_t)top & ~(uintptr_t)15) - 2 - kSavedWords;
  memset(frame, 0, sizeof(void*) * (kSavedWords + 2));
  frame[kReturnWord] = (void*)&fiber_main;
  rt.thread[t].stack_pointer = frame;
  rt.thread[t].state = kReady;
  rt.thread[t].has_arrived = false;
}

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && !strcmp(base_name(a.file), base_name(b.file));
}

static void release_block_barrier(FftconvHostReduce reduce) {
  const int threads = (int)rt.block_threads;
  Thread* first = rt.thread + rt.rank * rt.block_threads;
  int sum = 0;
  for (int t = 0; t < threads; ++t) sum += first[t].predicate != 0;
  int result = reduce == FFTCONV_HOST_COUNT ? sum : reduce == FFTCONV_HOST_AND ? sum == threads : sum != 0;
  for (int t = 0; t < threads; ++t) {
    first[t].state = kReady;
    first[t].predicate = result;
  }
  rt.last_barrier = rt.block[rt.rank].barrier;
  rt.block[rt.rank].arrived = 0;
  rt.released = kBlock;
  if (rt.race_check) race_syncthreads(rt.rank);
}

extern "C" int fftconv_host_syncthreads(FftconvHostReduce reduce, int predicate, const char* file, int line) {
  Thread& me = rt.thread[rt.current];
  me.site = {file, line};
  me.predicate = predicate;
  me.state = kAtBlockBarrier;
  Block& block = rt.block[rt.rank];
  if (block.arrived++ == 0) block.barrier = me.site;
  if (!same_site(block.barrier, me.site))
    fail(kDivergent, "divergent barrier: thread %u is at %s:%d, others at %s:%d", rt.current, base_name(file), line,
         base_name(block.barrier.file), block.barrier.line);
  if (block.arrived == rt.block_threads) release_block_barrier(reduce);
  back_to_scheduler();
  return me.predicate;
}

extern "C" void fftconv_host_yield() {
  rt.thread[rt.current].only_polled = true;
  back_to_scheduler();
}

extern "C" unsigned fftconv_host_atomic_add(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}

extern "C" void fftconv_host_trap(const char* what) { fail(kMisuse, "thread %u: %s", rt.current, what); }

// No thread can run: says why.
static void diagnose() {
  int by_state[kDone + 1] = {-1, -1, -1, -1, -1};
  for (unsigned t = 0; t < rt.threads; ++t) by_state[rt.thread[t].state] = (int)t;
  const int done = by_state[kDone], block = by_state[kAtBlockBarrier], warp = by_state[kAtWarp];
  const int spinning = by_state[kReady], cluster = by_state[kAtCluster];
  const Site site = block >= 0 ? rt.thread[block].site : warp >= 0 ? rt.thread[warp].site : Site{nullptr, 0};
  if (spinning >= 0)
    fail(kStuck, "stuck: thread %d waits for ever (an mbarrier phase that never completes, or a spin loop)", spinning);
  else if (block >= 0 && warp >= 0)
    fail(kDivergent,
         "divergent barrier: thread %d waits in __syncthreads at %s:%d, thread %d in a warp function at %s:%d (mask "
         "0x%08x)",
         block, base_name(site.file), site.line, warp, base_name(rt.thread[warp].site.file), rt.thread[warp].site.line,
         rt.thread[warp].mask);
  else if (cluster >= 0 && done >= 0)
    fail(kExited, "thread %d exited before the cluster's barrier, where thread %d waits", done, cluster);
  else if (cluster >= 0)
    fail(kDivergent, "divergent barrier: thread %d waits at the cluster's barrier, thread %d elsewhere", cluster,
         block >= 0 ? block : warp);
  else if (done >= 0)
    fail(kExited, "thread %d exited before the %s at %s:%d, where thread %d waits", done,
         block >= 0 ? "__syncthreads" : "warp function", base_name(site.file), site.line, block >= 0 ? block : warp);
  else
    fail(kStuck, "stuck: threads wait at different barriers, thread %d at %s:%d", block >= 0 ? block : warp,
         base_name(site.file), site.line);
}

static void put_in_order(unsigned* order, unsigned count) {
  for (unsigned i = 0; i < count; ++i) order[i] = rt.order == kDescending ? count - 1 - i : i;
  if (rt.order != kRandom) return;
  for (unsigned i = count - 1; i > 0; --i) {
    unsigned j = next_random() % (i + 1), swap = order[i];
    order[i] = order[j], order[j] = swap;
  }
}

// Runs the threads of a warp that can run; returns whether one did more than poll.
static bool run_warp(unsigned first) {
  unsigned order[32], lanes = rt.threads - first < 32 ? rt.threads - first : 32;
  rt.progress = false;
  put_in_order(order, lanes);
  for (unsigned i = 0; i < lanes; ++i) {
    Thread& thread = rt.thread[first + order[i]];
    if (thread.state != kReady) continue;
    rt.current = first + order[i];
    threadIdx.x = rt.current % rt.block_threads;
    switch_to_block(rt.current / rt.block_threads);
    thread.only_polled = false;
    rt.released = kNobody;
    in_fiber = true;
    fftconv_host_switch(&scheduler_stack, thread.stack_pointer);
    rt.progress |= !thread.only_polled;
    if (rt.failure || rt.released == kBlock) break;
    if (rt.released == kLanes && rt.order != kRandom) i = -1u;  // start again at the first lane that can run
  }
  return rt.progress;
}

// Always runs the first thread of the order that can run: threads that nothing orders are seen as far apart as can be,
// in one order in front and in the other behind. In random order a warp may be left at any of its barriers.
static void run_threads() {
  const unsigned warps = (rt.threads + 31) / 32;
  unsigned order[kMaxThreads / 32], idle_rounds = 0;
  for (;;) {
    bool progress = false;
    rt.released = kNobody;
    put_in_order(order, warps);
    for (unsigned i = 0; i < warps && rt.released != kBlock; ++i)
      while (run_warp(order[i] * 32)) {
        progress = true;
        if (rt.failure || rt.released == kBlock || (rt.order == kRandom && next_random() % 2)) break;
      }
    if (rt.failure) return;
    unsigned ready = 0, done = 0;
    for (unsigned t = 0; t < rt.threads; ++t)
      ready += rt.thread[t].state == kReady, done += rt.thread[t].state == kDone;
    if (done == rt.threads) return;
    idle_rounds = progress ? 0 : idle_rounds + 1;
    if (!ready || idle_rounds > kIdleRounds) return diagnose();
  }
}

static void run_blocks() {
  cluster_begin();
  rt.last_barrier = {nullptr, 0};
  for (unsigned t = 0; t < rt.threads; ++t) start_fiber(t);
  if (rt.race_check) race_block();
  mbarrier_block_begin();
  run_threads();
  if (!rt.failure) mbarrier_block_end();
  if (!rt.failure) cluster_end();
}

static void make_stacks() {
  if (stacks) return;
  size_t each = kStackBytes + kGuardBytes;
  void* memory =
      mmap(nullptr, each * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return fail(kMisuse, "no memory for the fibers' stacks");
  stacks = (char*)memory;
  for (unsigned t = 0; t < kMaxThreads; ++t) mprotect(stacks + each * t, kGuardBytes, PROT_NONE);
}

static void on_fault(int signal, siginfo_t* info, void*) {
  if (!pthread_equal(pthread_self(), launching)) {  // not ours: die of it
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
    return;
  }
  in_fiber = false;  // already on the signal stack: leave by the jump below
  uintptr_t address = (uintptr_t)info->si_addr;
  if (signal == SIGILL || signal == SIGTRAP)
    fail(kFault, "thread %u trapped (signal %d)", rt.current, signal);
  else if (in_stacks(address))
    fail(kFault, "thread %u overflowed its fiber's stack of %zu KiB", rt.current, kStackBytes >> 10);
  else if (!address)
    fail(kFault, "thread %u: access to a null pointer, or a misaligned one", rt.current);
  else
    fail(kFault, "thread %u: invalid access to global address %p", rt.current, info->si_addr);
  siglongjmp(fault_exit, 1);
}

static void run_grid() {
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; x += rt.blocks) {
        blockIdx.x = x, blockIdx.y = y, blockIdx.z = z;
        run_blocks();
        if (rt.failure) return;
      }
}

static void run_guarded() {
  static char signal_stack[64 << 10];
  const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
  struct sigaction action = {}, before[4];
  stack_t alternate = {}, stack_before;
  alternate.ss_sp = signal_stack, alternate.ss_size = sizeof(signal_stack);
  sigaltstack(&alternate, &stack_before);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &action, &before[i]);
  if (!sigsetjmp(fault_exit, 1)) run_grid();
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace host

const void* fftconv_host_prefetched[FFTCONV_HOST_PREFETCHES];
unsigned fftconv_host_prefetch_count;

extern "C" void fftconv_host_prefetch(const void* address) {
  (void)*static_cast<const volatile char*>(address);
  fftconv_host_prefetched[fftconv_host_prefetch_count++ % FFTCONV_HOST_PREFETCHES] = address;
}

extern "C" int fftconv_host_launch(const FftconvHostKernel* launched, FftconvHostLaunch* launch) {
  using namespace host;
  rt.failure = kNone, rt.message = launch->message, rt.message_size = sizeof(launch->message);
  rt.block_threads = launch->threads, rt.blocks = launched->cluster_blocks, rt.smem_bytes = launch->smem_bytes;
  rt.threads = rt.block_threads * rt.blocks;
  rt.order = (Order)launch->order, rt.race_check = launch->race_check;
  rt.random_state = launch->seed * 0x9E3779B97F4A7C15ull + 0x1234567ull;
  rt.last_barrier = {nullptr, 0};
  gridDim = dim3(launch->grid[0], launch->grid[1], launch->grid[2]), blockDim = dim3(launch->threads);
  threadIdx = uint3{0, 0, 0}, blockIdx = uint3{0, 0, 0};
  kernel = launched, params = launch->params, launching = pthread_self();
  find_shared_memory(kernel);
  if (launch->params_bytes != kernel->params_bytes)
    fail(kMisuse, "the parameter struct has %zu bytes, the kernel's has %zu", launch->params_bytes,
         kernel->params_bytes);
  if (!rt.threads || rt.block_threads > kMaxThreads || rt.smem_bytes > FFTCONV_HOST_SHARED_BYTES)
    fail(kMisuse, "a block of %u threads and %u bytes of shared memory is beyond CUDA's limits", rt.block_threads,
         rt.smem_bytes);
  if (rt.blocks > 1 && (rt.blocks > kMaxClusterBlocks || rt.threads > kMaxThreads || rt.block_threads % 32))
    fail(kMisuse, "%u blocks of %u threads are more of a cluster than is modelled", rt.blocks, rt.block_threads);
  if (gridDim.x % rt.blocks)
    fail(kMisuse, "a grid of %u blocks does not consist of clusters of %u", gridDim.x, rt.blocks);
  if (!rt.failure) make_stacks();
  if (!rt.failure && rt.race_check) race_launch();
  if (!rt.failure) run_guarded();
  if (rt.race_check) race_release();
  return rt.failure;
}
