// y = out_gate * (conv(in_gate * u, k) + skip * in_gate * u): one transform of M complex points a row, or a pair of
// rows.
//
// A block holds one row or several; every input byte is read once and every output byte written once. The filter comes
// as its spectrum, made by fftconv_filter with the same layout. Rows of a channel are neighbours in the grid, so that
// blocks share its spectrum through L2.
#include "block_fft.cuh"
#include "io.cuh"
#include "ptx.cuh"
#include "row_io.cuh"
#include "spectrum.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// Config: Layout, io_t, kQuarters, kRows and the flags; this adds what follows from them. Shared memory is, in this
// order, an exchange buffer a row, the prefetched row or rows of u, the norms of paired rows by warp, and the
// prefetch's barrier.
template <class Config>
struct FwdTraits : Config {
  using Layout = typename Config::Layout;
  using io_t = typename Config::io_t;
  using Fft = BlockFft<Layout, Config::kQuarters>;
  static constexpr int kThreads = Config::kRows * Layout::kThreads;
  static constexpr bool kIsPaired = Config::kQuarters == 0;  // the cyclic ring takes two rows as one complex sequence

  static constexpr int kPrefetchOffset = Config::kRows * Layout::kRowSlots * static_cast<int>(sizeof(complex_t));
  static constexpr int kRowBytes = Layout::kPoints * static_cast<int>(sizeof(io_t));
  static constexpr int kNormOffset = kPrefetchOffset + (Config::kHasPrefetch ? (kIsPaired ? 2 : 1) * kRowBytes : 0);
  static constexpr int kBarrierOffset =
      kNormOffset + (kIsPaired && Layout::kThreads > 32 ? Layout::kThreads / 32 * 8 : 0);
  static constexpr int kSharedBytes = kBarrierOffset + (Config::kHasPrefetch ? 16 : 0);

  static_assert(!kIsPaired || Config::kIsComplex, "paired rows are the two parts of a complex sequence");
  static_assert(!Config::kHasPrefetch || (Config::kRows == 1 && Layout::kThreads > 32 && !Config::kHasTail),
                "only whole rows are prefetched, one job a block, whose first exchange is a barrier of the block");
  static_assert(!Config::kHasPrefetch || kIsPaired || !Config::kIsComplex, "a whole linear row has no imaginary part");
  static_assert(!Config::kHasPrefetch || Layout::kRoots == 1, "a row is split when all threads are done with another");
  static_assert(Layout::kThreads <= 32 || Config::kRows == 1 || !kIsPaired,
                "rows that share a block barrier must agree on every branch");
};

// Forward, times the filter's spectrum, inverse: the circular or negacyclic convolution of the sequence held in x.
template <class Traits, class Hook>
FFTCONV_DEVICE void convolve(const FwdParams& p, complex_t* x, complex_t* s_row, int channel, int thread,
                             Hook after_exchange) {
  Traits::Fft::template forward<!Traits::kIsComplex>(x, s_row, thread, p.twiddles, [&] {
    wait_for_previous_kernel();  // the filter's
    after_exchange();
  });
  multiply_spectrum<Traits, false, true>(p, x, p.spectrum, channel, thread);
  Traits::Fft::template inverse<!Traits::kIsComplex>(x, s_row, thread, p.twiddles);
}

// Whether a row of this squared norm can share a transform: scales and squares stay clear of overflow and underflow.
FFTCONV_DEVICE bool can_share(float norm2) {
  constexpr float kLargest = 1.2676506e30f;  // 2^100
  return norm2 == 0.f || (norm2 > 1.f / kLargest && norm2 < kLargest);
}

// The power of two nearest to 1 / sqrt(norm2), and its inverse; a row of zeros stays one whatever it is paired with.
FFTCONV_DEVICE float2 balancing_scale(float norm2) {
  if (norm2 == 0.f) return make_float2(1.f, 0.f);
  const int exponent = static_cast<int>(__float_as_uint(norm2) >> 23) - 127;
  const int half = (exponent + 1) >> 1;
  return make_float2(__uint_as_float((127 - half) << 23), __uint_as_float((127 + half) << 23));
}

// Sums of term(re) and term(im) over the points of a row, the same in all its threads.
template <class Traits, class Term>
FFTCONV_DEVICE float2 row_sums(const complex_t* x, float2* s_sums, int thread, Term term) {
  constexpr int kRowThreads = Traits::Layout::kThreads, kLanes = kRowThreads < 32 ? kRowThreads : 32;
  float2 sum = make_float2(0.f, 0.f);
  static_for<Traits::Layout::kEpt>(
      [&](auto slot) { sum = make_float2(term(x[slot.value].re, sum.x), term(x[slot.value].im, sum.y)); });
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) {
    sum.x += __shfl_xor_sync(0xffffffffu, sum.x, lane);
    sum.y += __shfl_xor_sync(0xffffffffu, sum.y, lane);
  }
  if constexpr (kRowThreads > 32) {
    if (thread % 32 == 0) s_sums[thread / 32] = sum;
    __syncthreads();
    sum = make_float2(0.f, 0.f);
#pragma unroll
    for (int warp = 0; warp < kRowThreads / 32; warp++) {
      sum.x += s_sums[warp].x;
      sum.y += s_sums[warp].y;
    }
  }
  return sum;
}

// Whether the condition holds for any thread that must take the same branch: the warp's rows, or the block's only one.
template <class Traits>
FFTCONV_DEVICE bool any_row(bool condition) {
  return Traits::Layout::kThreads <= 32 ? __any_sync(0xffffffffu, condition) : condition;
}

// Squared norms of the two parts, zero only for rows of zeros (the padding of a batch, say): squares underflow long
// before values do, so that magnitudes decide.
template <class Traits>
FFTCONV_DEVICE float2 squared_norms(const complex_t* x, float2* s_sums, int thread) {
  constexpr float kTiny = 1e-38f;
  float2 norm = row_sums<Traits>(x, s_sums, thread, [](float v, float sum) { return fmaf(v, v, sum); });
  if (any_row<Traits>(norm.x == 0.f || norm.y == 0.f)) {
    if constexpr (Traits::Layout::kThreads > 32) __syncthreads();  // all have read the first sums
    const float2 size = row_sums<Traits>(x, s_sums, thread, [](float v, float sum) { return fabsf(v) + sum; });
    if (norm.x == 0.f && size.x > 0.f) norm.x = kTiny;  // which cannot share
    if (norm.y == 0.f && size.y > 0.f) norm.y = kTiny;
  }
  return norm;
}

// Rows 2 pair and 2 pair + 1 as real and imaginary part. The filter is real, so the rows stay apart up to rounding;
// each is scaled to norm 1 so that neither drowns the other. Where a norm is not finite or out of range the rows of the
// pair (and of all pairs of the warp, whose threads must branch together) are convolved one by one.
template <class Traits, class Hook>
FFTCONV_DEVICE void convolve_pair(const FwdParams& p, complex_t* s_row, float2* s_norms,
                                  const typename Traits::io_t* s_u, int pair, int channel, int thread, bool is_active,
                                  Hook after_last_load) {
  const int first = 2 * pair;
  const bool has_second = first + 1 < p.batch;
  const int second = has_second ? first + 1 : first;  // a row that can be read, see has_gate
  bool is_split = false;
  for (int part = 0; part < 2; part++) {
    complex_t x[Traits::Layout::kEpt];
    const bool is_second = is_split && part == 1 && has_second, is_pair = has_second && !is_split;
    const int batch = is_second ? second : first, start = is_split ? p.zero : 0;
    load_row<Traits, Part::kReal>(p, x, batch, channel, start, thread, s_u + (is_second ? Traits::Layout::kPoints : 0));
    if (is_pair) {
      load_row<Traits, Part::kImag>(p, x, second, channel, start, thread, s_u + Traits::Layout::kPoints);
    } else {
      static_for<Traits::Layout::kEpt>([&](auto slot) { x[slot.value].im = 0.f; });
    }
    float2 real_scale = make_float2(1.f, 1.f), imag_scale = real_scale;
    if (!is_split) {
      const float2 norm = squared_norms<Traits>(x, s_norms, thread);
      is_split = any_row<Traits>(is_pair && !(can_share(norm.x) && can_share(norm.y)));
      if (is_split) {
        part = -1;
        continue;
      }
      if (is_pair) {
        real_scale = balancing_scale(norm.x);
        imag_scale = balancing_scale(norm.y);
      }
    }
    static_for<Traits::Layout::kEpt>(
        [&](auto slot) { x[slot.value] = {x[slot.value].re * real_scale.x, x[slot.value].im * imag_scale.x}; });
    convolve<Traits>(p, x, s_row, channel, thread, [&] {
      if (!is_split || part == 1) after_last_load();
    });
    static_for<Traits::Layout::kEpt>(
        [&](auto slot) { x[slot.value] = {x[slot.value].re * real_scale.y, x[slot.value].im * imag_scale.y}; });
    if (is_active && (part == 0 || has_second)) store_row<Traits, Part::kReal>(p, x, batch, channel, start, thread);
    if (is_active && is_pair) store_row<Traits, Part::kImag>(p, x, second, channel, start, thread);
    if (!is_split) break;
  }
}

// One row: points from M on, where there are any, are the imaginary part (z^M = i).
template <class Traits, class Hook>
FFTCONV_DEVICE void convolve_row(const FwdParams& p, complex_t* s_row, const typename Traits::io_t* s_u, int batch,
                                 int channel, int thread, bool is_active, Hook after_load) {
  constexpr int kPoints = Traits::Layout::kPoints;
  complex_t x[Traits::Layout::kEpt];
  load_row<Traits, Part::kReal>(p, x, batch, channel, 0, thread, s_u);
  if constexpr (Traits::kIsComplex) load_row<Traits, Part::kImag>(p, x, batch, channel, kPoints, thread, s_u);
  convolve<Traits>(p, x, s_row, channel, thread, after_load);
  if (is_active) {
    store_row<Traits, Part::kReal>(p, x, batch, channel, 0, thread);
    if constexpr (Traits::kIsComplex) store_row<Traits, Part::kImag>(p, x, batch, channel, kPoints, thread);
  }
}

// What the threads of a row share: the block's shared memory.
template <class Traits>
struct BlockMemory {
  complex_t* s_row;
  typename Traits::io_t* s_u;
  float2* s_norms;
  unsigned long long* s_barrier;

  FFTCONV_DEVICE BlockMemory(char* s_base, int row) {
    s_row = reinterpret_cast<complex_t*>(s_base) + row * Traits::Layout::kRowSlots;
    s_u = reinterpret_cast<typename Traits::io_t*>(s_base + Traits::kPrefetchOffset);
    s_norms = reinterpret_cast<float2*>(s_base + Traits::kNormOffset);
    s_barrier = reinterpret_cast<unsigned long long*>(s_base + Traits::kBarrierOffset);
  }
};

// A job of a channel is a row, or a pair of rows.
template <class Traits>
FFTCONV_DEVICE int jobs_of(const FwdParams& p) {
  return Traits::kIsPaired ? p.batch / 2 + p.batch % 2 : p.batch;
}

template <class Traits, class Hook>
FFTCONV_DEVICE void convolve_job(const FwdParams& p, const BlockMemory<Traits>& memory, int job, int channel,
                                 int thread, bool is_active, Hook after_load) {
  if constexpr (Traits::kIsPaired) {
    convolve_pair<Traits>(p, memory.s_row, memory.s_norms, memory.s_u, job, channel, thread, is_active, after_load);
  } else {
    convolve_row<Traits>(p, memory.s_row, memory.s_u, job, channel, thread, is_active, after_load);
  }
}

// Blocks without prefetch: grid x walks the jobs, y and z the channels. A block's rows are 2^log2_batch_slots batch
// slots of each of the remaining number of channels; those without a job of their own repeat another one's, for they
// take part in barriers, and store nothing.
template <class Traits>
FFTCONV_DEVICE void convolve_block(const FwdParams& p, char* s_base) {
  const int thread = threadIdx.x % Traits::Layout::kThreads, row = threadIdx.x / Traits::Layout::kThreads;
  const int batch_slots = 1 << p.log2_batch_slots;
  const long long group = blockIdx.y + static_cast<long long>(blockIdx.z) * gridDim.y;
  const long long first_channel = group * (Traits::kRows >> p.log2_batch_slots);
  if (first_channel >= p.channels) return;
  // From here on all numbers fit an int: axes are shorter than 2^30.
  const int channel = static_cast<int>(first_channel) + (row >> p.log2_batch_slots);
  const int job = blockIdx.x * batch_slots + (row & (batch_slots - 1)), jobs = jobs_of<Traits>(p);
  convolve_job<Traits>(p, BlockMemory<Traits>(s_base, row), min(job, jobs - 1), min(channel, p.channels - 1), thread,
                       job < jobs && channel < p.channels, [] {});
}

// Blocks with prefetch take several jobs of one list, channel by channel: the u of the next job is copied to shared
// memory while one is transformed. Block b starts at job b * block_step; a turn steps over
// turn_channels channels and turn_jobs jobs.
template <class Traits>
FFTCONV_DEVICE void walk_jobs(const FwdParams& p, char* s_base) {
  using io_t = typename Traits::io_t;
  const BlockMemory<Traits> memory(s_base, 0);
  const int thread = threadIdx.x, jobs = jobs_of<Traits>(p);

  const auto fetch = [&](int job, int channel) {
    if (thread != 0 || channel >= p.channels) return;
    const int batch = Traits::kIsPaired ? 2 * job : job;
    const int rows = Traits::kIsPaired && batch + 1 < p.batch ? 2 : 1;
    mbarrier_expect(memory.s_barrier, rows * Traits::kRowBytes);
    for (int i = 0; i < rows; i++) {
      const io_t* g_u = row_of<io_t>(p.u, p.u_strides, batch + i, channel);
      bulk_copy(memory.s_u + i * Traits::Layout::kPoints, g_u, Traits::kRowBytes, memory.s_barrier);
    }
  };
  const long long first = static_cast<long long>(blockIdx.x) * p.block_step;
  int channel = static_cast<int>(first / jobs), job = static_cast<int>(first - static_cast<long long>(channel) * jobs);
  if (channel >= p.channels) return;
  if (thread == 0) mbarrier_init(memory.s_barrier);
  __syncthreads();
  fetch(job, channel);
  for (int turn = 0; turn < p.turns && channel < p.channels; turn++) {
    // The step in parts, for a division in the loop would cost much.
    int next = job + p.turn_jobs, next_channel = channel + p.turn_channels;
    if (next >= jobs) {
      next -= jobs;
      next_channel++;
    }
    mbarrier_wait(memory.s_barrier, turn % 2);
    convolve_job<Traits>(p, memory, job, channel, thread, true, [&] {
      if (turn + 1 < p.turns) fetch(next, next_channel);
    });
    job = next;
    channel = next_channel;
  }
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::BlockLayout<FFTCONV_ROOTS, FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT,
                                      FFTCONV_LOG2_RADICES>;
  using io_t = FFTCONV_IO_T;
  static constexpr int kQuarters = FFTCONV_QUARTERS, kRows = FFTCONV_ROWS;
  static constexpr bool kIsComplex = FFTCONV_IS_COMPLEX, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr bool kHasPrefetch = FFTCONV_HAS_PREFETCH;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
};
using Traits = fftconv::FwdTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "plan.py and fftconv_fwd.cu disagree on shared memory");
static_assert(sizeof(fftconv::FwdParams) == FFTCONV_PARAMS_BYTES, "launch.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_fwd(const __grid_constant__ fftconv::FwdParams p) {
  if constexpr (Traits::kHasPrefetch) {
    fftconv::walk_jobs<Traits>(p, reinterpret_cast<char*>(s_dynamic));
  } else {
    fftconv::convolve_block<Traits>(p, reinterpret_cast<char*>(s_dynamic));
  }
}
