// The transpose of fftconv_long: gradients of rows that outgrow a block, whatever B and H in one launch. With
// x = in_gate * u, z = conv(x, k) + skip * x and dz = out_gate * dy, and X, DZ, K their spectra,
//
//   z  = inverse(X K)           d_out_gate = dy * z
//   dx = inverse(DZ conj(K))    du = in_gate * dx, d_in_gate = u * dx
//   sum over the rows of a channel of DZ conj(X) / M, transformed back: the gradients of k and skip.
//
// Nothing is kept from the forward call. A row takes the three phases of fftconv_long, with two sequences of points.
// Rows of a channel add to its sums in a fixed order, one of a few *chains* each; the sums then take the last two
// phases of a row, and one more in which each tap finds the lags it has in the ring.
#include "item_points.cuh"
#include "long_params.cuh"
#include "spectrum.cuh"
#include "taps.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

constexpr int kBwdPhases = 4;
enum Sequence { kX, kDz, kSequences };

// Config: the layouts, io_t and the flags.
template <class Config>
struct LongBwdTraits : Config {
  using Layout = typename Config::Tile;  // of what is loaded and stored
  using Tile = typename Config::Tile;
  using Row = typename Config::Row;
  using TileFft = BlockFft<Tile, 1>;
  using RowFft = BlockFft<Row, 0>;
  static constexpr int kThreads = Row::kThreads, kEpt = Row::kEpt, kLog2Rows = Tile::kLog2Rows;
  static constexpr int kRowQuads = Row::kPoints / 2;
  static constexpr int kQuads = Tile::kTotal / 2;
  static constexpr int kSharedBytes =
      Row::kRowSlots * static_cast<int>(sizeof(complex_t)) + BlockMemory::kNumberBytes + BlockMemory::kLargestBytes;
  static constexpr bool kNeedsX = Config::kHasOutGradient || Config::kHasSum;
  static constexpr bool kNeedsDz = Config::kHasInGradient || Config::kHasSum;
  static constexpr int kFirst = kNeedsX ? kX : kDz, kEnd = kNeedsDz ? kSequences : kDz;

  static_assert(Tile::kPoints == Row::kPoints && Tile::kEpt == Row::kEpt, "a tile has the points of a row");
};

template <class Traits>
struct BwdWork : Work<Traits::kLog2Rows, kBwdPhases> {
  using Work<Traits::kLog2Rows, kBwdPhases>::Work;

  // Those of one of a row's sequences; of a filter where its spectrum will be, of sums where they are.
  FFTCONV_DEVICE ItemPoints<Traits> points(const LongBwdParams& p, int sequence) const {
    constexpr long long kBytes = Traits::Tile::kTotal * (Traits::kIsHalf ? sizeof(unsigned) : sizeof(complex_t));
    constexpr int kOfRow = Traits::kEnd - Traits::kFirst;
    if (this->item.is_filter) return {spectrum(p), nullptr, false, this->task.part};
    if (this->item.is_sum) return {sums(p, 0), nullptr, false, this->task.part};
    const int index = this->row.slot * kOfRow + sequence - Traits::kFirst;
    return {static_cast<char*>(p.points) + index * kBytes, p.scales + index * ItemPoints<Traits>::kScales,
            Traits::kIsHalf, this->task.part};
  }
  // The quads of this thread of X, put aside while DZ is transformed: in its own place, or that of the block.
  FFTCONV_DEVICE float4* stash(const LongBwdParams& p) const {
    if constexpr (Traits::kIsHalf) {
      return p.stash + static_cast<long long>(blockIdx.x) * Traits::kRowQuads + threadIdx.x;
    } else {
      return static_cast<float4*>(points(p, kX).g_points) + quad();
    }
  }
  FFTCONV_DEVICE float4* spectrum(const LongBwdParams& p) const {
    return p.spectrum + static_cast<long long>(this->filter.slot) * Traits::kQuads;
  }
  FFTCONV_DEVICE float4* sums(const LongBwdParams& p, int chain) const {
    return p.sums + (static_cast<long long>(this->sum.slot) * this->schedule.chains + chain) * Traits::kQuads;
  }
  // Where the quads of this thread lie in its row of a spectrum or sum.
  FFTCONV_DEVICE int quad() const { return this->task.part * Traits::kRowQuads + threadIdx.x; }
};

template <class Traits>
FFTCONV_DEVICE TileInput<Traits> input_of(const Item& item, const void* g_array, Strides strides, int length, int first,
                                          int first_column) {
  using io_t = typename Traits::io_t;
  return {row_of<io_t>(g_array, strides, item.batch, item.channel) + first, length - first, first_column,
          static_cast<int>(threadIdx.x)};
}

template <class Traits>
FFTCONV_DEVICE TileOutput<Traits> output_of(const Item& item, void* g_array, Strides strides, int length, int first,
                                            int first_column) {
  using io_t = typename Traits::io_t;
  return {row_of<io_t>(g_array, strides, item.batch, item.channel) + first, length - first, first_column,
          static_cast<int>(threadIdx.x)};
}

// One part of x = in_gate * u, or of dz = out_gate * dy.
template <class Traits, Part kPart>
FFTCONV_DEVICE void load_sequence(const LongBwdParams& p, complex_t* x, const Item& item, int sequence,
                                  int first_column) {
  constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Tile::kTotal;
  const bool is_x = sequence == kX;
  const int length = is_x ? p.in_len : p.out_len;
  if (kPart == Part::kImag && length <= kFirst) {
    static_for<Traits::kEpt>([&](auto slot) { x[slot.value].im = 0.f; });
    return;
  }
  const auto values =
      input_of<Traits>(item, is_x ? p.u : p.dy, is_x ? p.u_strides : p.dy_strides, length, kFirst, first_column);
  if (has_gate<Traits>(is_x ? p.has_in_gate : p.has_out_gate)) {
    load_gated<Traits, kPart>(
        x, values,
        input_of<Traits>(item, is_x ? p.in_gate : p.out_gate, is_x ? p.in_gate_strides : p.out_gate_strides, length,
                         kFirst, first_column));
  } else {
    load_part<Traits, kPart>(x, values);
  }
}

// The columns of a tile, of a row's sequences or a filter.
template <class Traits>
FFTCONV_DEVICE void transform_columns(const LongBwdParams& p, const BlockMemory& memory, const BwdWork<Traits>& work) {
  using Tile = typename Traits::Tile;
  const int first_column = work.task.part * Tile::kWidth;
  const int end = work.item.is_filter ? Traits::kFirst + 1 : Traits::kEnd;
#pragma unroll 1
  for (int sequence = Traits::kFirst; sequence < end; sequence++) {
    complex_t x[Traits::kEpt];
    if (work.item.is_filter) {
      load_taps<Traits>(p.taps, x, work.item.channel, first_column, threadIdx.x);
    } else {
      load_sequence<Traits, Part::kReal>(p, x, work.item, sequence, first_column);
      if constexpr (Traits::kIsComplex) load_sequence<Traits, Part::kImag>(p, x, work.item, sequence, first_column);
    }
    if (sequence > Traits::kFirst) __syncthreads();  // all have read the last exchange
    Traits::TileFft::template forward<!Traits::kIsComplex>(x, memory.s_exchange, threadIdx.x, p.tile_twiddles, [] {});
    turn_columns<Tile, false>(x, first_column, threadIdx.x);
    work.points(p, sequence).store_tile(x, memory.s_largest);
  }
}

// x <-> the quads of a row of a spectrum or sum, from those of the thread on.
template <class Traits>
FFTCONV_DEVICE void store_quads(const complex_t* x, float4* g_quads, float scale) {
  static_for<Traits::kEpt / 2>([&](auto i) {
    const complex_t a = x[2 * i.value], b = x[2 * i.value + 1];
    __stcg(g_quads + i.value * Traits::kThreads, make_float4(a.re * scale, a.im * scale, b.re * scale, b.im * scale));
  });
}

FFTCONV_DEVICE void add_conj(float& re, float& im, complex_t a, complex_t b) {
  re = fmaf(a.re, b.re, fmaf(a.im, b.im, re));
  im = fmaf(a.im, b.re, fmaf(-a.re, b.im, im));
}

// The sum of a chain += DZ conj(X) / M.
template <class Traits>
FFTCONV_DEVICE void add_products(const LongBwdParams& p, const complex_t* x, const BwdWork<Traits>& work) {
  const int batch = work.item.batch, chains = work.schedule.chains;
  float4* g_sum = work.sums(p, batch % chains) + work.quad();
  const float4* g_x = work.stash(p);
  const bool is_first = batch < chains;
  static_for<Traits::kEpt / 2>([&](auto i) {
    constexpr int kOffset = i.value * Traits::kThreads;
    const float4 v = __ldcg(g_x + kOffset);
    float4 sum = is_first ? make_float4(0.f, 0.f, 0.f, 0.f) : __ldcg(g_sum + kOffset);
    add_conj(sum.x, sum.y, x[2 * i.value], {v.x * p.skip_scale, v.y * p.skip_scale});
    add_conj(sum.z, sum.w, x[2 * i.value + 1], {v.z * p.skip_scale, v.w * p.skip_scale});
    __stcg(g_sum + kOffset, sum);
  });
}

// x = the sum of all chains.
template <class Traits>
FFTCONV_DEVICE void load_sums(const LongBwdParams& p, complex_t* x, const BwdWork<Traits>& work) {
  static_for<Traits::kEpt>([&](auto slot) { x[slot.value] = {0.f, 0.f}; });
#pragma unroll 1
  for (int chain = 0; chain < work.schedule.chains; chain++) {
    const float4* g_sum = work.sums(p, chain) + work.quad();
    static_for<Traits::kEpt / 2>([&](auto i) {
      const float4 v = __ldcg(g_sum + i.value * Traits::kThreads);
      complex_t &a = x[2 * i.value], &b = x[2 * i.value + 1];
      a = {a.re + v.x, a.im + v.y};
      b = {b.re + v.z, b.im + v.w};
    });
  }
}

// x times the spectrum of the filter, or times its conjugate.
template <class Traits>
FFTCONV_DEVICE void multiply_filter(const LongBwdParams& p, complex_t* x, const BwdWork<Traits>& work, bool is_conj) {
  const float4* g_spectrum = work.spectrum(p) + work.quad();
  const float skip = spectrum_skip<Traits>(p, work.item.channel), sign = is_conj ? -1.f : 1.f;
  static_for<Traits::kEpt / 2>([&](auto i) {
    const float4 v = __ldcg(g_spectrum + i.value * Traits::kThreads);
    x[2 * i.value] = multiply(x[2 * i.value], {v.x + skip, v.y * sign});
    x[2 * i.value + 1] = multiply(x[2 * i.value + 1], {v.z + skip, v.w * sign});
  });
}

// From a row of points to what takes its place: of a filter its spectrum, which ends it here (false).
template <class Traits>
FFTCONV_DEVICE bool transform_points(const LongBwdParams& p, complex_t* x, const BlockMemory& memory,
                                     const BwdWork<Traits>& work) {
  constexpr bool kBoth = Traits::kNeedsX && Traits::kNeedsDz;
  const int end = work.item.is_filter ? Traits::kFirst + 1 : Traits::kEnd;
#pragma unroll 1
  for (int sequence = Traits::kFirst; sequence < end; sequence++) {
    work.points(p, sequence).load_row(x);
    if (sequence > Traits::kFirst) __syncthreads();  // all have read the last exchange
    Traits::RowFft::template forward<false>(x, memory.s_exchange, threadIdx.x, p.row_twiddles, [] {});
    if (work.item.is_filter) {
      store_quads<Traits>(x, work.spectrum(p) + work.quad(), p.skip_scale);
    } else if (kBoth && sequence == kX) {
      store_quads<Traits>(x, work.stash(p), 1.f);
    }
  }
  if (work.item.is_filter) return false;
  if constexpr (Traits::kHasSum) add_products<Traits>(p, x, work);
  return true;
}

// A row of points: of a row its products with the filter and back, of sums back only.
template <class Traits>
FFTCONV_DEVICE void transform_rows(const LongBwdParams& p, const BlockMemory& memory, const BwdWork<Traits>& work) {
  complex_t x[Traits::kEpt];
  if (Traits::kHasSum && work.item.is_sum) {
    load_sums<Traits>(p, x, work);
  } else if (!transform_points<Traits>(p, x, memory, work)) {
    return;
  }
  // DZ is at hand, X was put aside.
  constexpr int kFirst = Traits::kHasOutGradient ? kX : kDz, kLast = Traits::kHasInGradient ? kDz : kX;
  const int last = work.item.is_sum ? kDz : kLast, first = work.item.is_sum ? kDz : kFirst;
#pragma unroll 1
  for (int sequence = last; sequence >= first; sequence--) {
    if (!work.item.is_sum) {
      if (Traits::kNeedsDz && sequence == kX) {
        const float4* g_x = work.stash(p);
        static_for<Traits::kEpt / 2>([&](auto i) {
          const float4 v = __ldcg(g_x + i.value * Traits::kThreads);
          x[2 * i.value] = {v.x, v.y};
          x[2 * i.value + 1] = {v.z, v.w};
        });
      }
      multiply_filter<Traits>(p, x, work, sequence == kDz);
    }
    if (sequence < last) __syncthreads();  // all have read the last exchange
    Traits::RowFft::template inverse<false>(x, memory.s_exchange, threadIdx.x, p.row_twiddles);
    work.points(p, sequence).store_row(x, memory.s_largest);
  }
}

// From dx to du = in_gate * dx and d_in_gate = u * dx, or from z to d_out_gate = dy * z, as far as they are wanted.
template <class Traits, Part kPart>
FFTCONV_DEVICE void store_gradients(const LongBwdParams& p, complex_t* x, const Item& item, int sequence,
                                    int first_column) {
  constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Tile::kTotal;
  const int length = sequence == kX ? p.out_len : p.in_len;
  if (kPart == Part::kImag && length <= kFirst) return;
  const auto input = [&](const void* g_array, Strides strides) {
    return input_of<Traits>(item, g_array, strides, length, kFirst, first_column);
  };
  const auto output = [&](void* g_array, Strides strides) {
    return output_of<Traits>(item, g_array, strides, length, kFirst, first_column);
  };
  if (sequence == kX) {
    store_gated<Traits, kPart>(x, output(p.d_out_gate, p.d_out_gate_strides), input(p.dy, p.dy_strides));
    return;
  }
  if (p.d_in_gate != nullptr) {
    store_gated<Traits, kPart>(x, output(p.d_in_gate, p.d_in_gate_strides), input(p.u, p.u_strides));
  }
  if (p.du == nullptr) return;
  if (has_gate<Traits>(p.has_in_gate)) {
    store_gated<Traits, kPart>(x, output(p.du, p.du_strides), input(p.in_gate, p.in_gate_strides));
  } else {
    store_part<Traits, kPart>(x, output(p.du, p.du_strides));
  }
}

// The columns of a tile back: to gradients of rows, or of sums to all lags of the ring, in their natural order.
template <class Traits>
FFTCONV_DEVICE void transform_columns_back(const LongBwdParams& p, const BlockMemory& memory,
                                           const BwdWork<Traits>& work) {
  using Tile = typename Traits::Tile;
  const int first_column = work.task.part * Tile::kWidth;
  constexpr int kFirst = Traits::kHasOutGradient ? kX : kDz, kLast = Traits::kHasInGradient ? kDz : kX;
  const int last = work.item.is_sum ? kDz : kLast, first = work.item.is_sum ? kDz : kFirst;
#pragma unroll 1
  for (int sequence = last; sequence >= first; sequence--) {
    complex_t x[Traits::kEpt];
    work.points(p, sequence).load_tile(x);
    turn_columns<Tile, true>(x, first_column, threadIdx.x);
    if (sequence < last) __syncthreads();  // all have read the last exchange
    Traits::TileFft::template inverse<!Traits::kIsComplex>(x, memory.s_exchange, threadIdx.x, p.tile_twiddles);
    if (work.item.is_sum) {
      work.points(p, sequence).store_columns(x);
    } else {
      store_gradients<Traits, Part::kReal>(p, x, work.item, sequence, first_column);
      if constexpr (Traits::kIsComplex) store_gradients<Traits, Part::kImag>(p, x, work.item, sequence, first_column);
    }
  }
}

// What the sums hold at a lag; of all channels where they share a filter and this is the last.
template <class Traits>
FFTCONV_DEVICE float at_lag(const complex_t* g_ring, const complex_t* g_total, int lag) {
  constexpr int kPoints = Traits::Tile::kTotal;
  const int position = 2 * (lag & (kPoints - 1)) + (lag >= kPoints);
  const float v = __ldcg(reinterpret_cast<const float*>(g_ring) + position);
  return g_total == nullptr ? v : v + __ldcg(reinterpret_cast<const float*>(g_total) + position);
}

// Each part takes its share of the taps, or adds its share of the ring to the total of all channels.
template <class Traits>
FFTCONV_DEVICE void store_taps(const LongBwdParams& p, const BwdWork<Traits>& work) {
  constexpr int kPoints = Traits::Tile::kTotal, kRows = 1 << Traits::kLog2Rows;
  const int part = work.task.part, channel = work.item.channel;
  const complex_t* g_ring = work.points(p, kDz).points();
  if (p.d_skip != nullptr && part == 0 && threadIdx.x == 0) {
    store_as(p.skip_type, p.d_skip, channel, __ldcg(reinterpret_cast<const float*>(g_ring)));
  }
  if (p.dk == nullptr) return;
  const bool is_total = work.schedule.is_shared && channel > 0;
  if (work.schedule.is_shared && channel < work.schedule.channels - 1) {
    const float4* g_quads = reinterpret_cast<const float4*>(g_ring);
    for (int quad = part * Traits::kRowQuads + threadIdx.x; quad < (part + 1) * Traits::kRowQuads;
         quad += Traits::kThreads) {
      float4 v = __ldcg(g_quads + quad);
      if (is_total) {
        const float4 before = __ldcg(p.total + quad);
        v = make_float4(v.x + before.x, v.y + before.y, v.z + before.z, v.w + before.w);
      }
      __stcg(p.total + quad, v);
    }
    return;
  }
  const complex_t* g_total = is_total ? reinterpret_cast<const complex_t*>(p.total) : nullptr;
  const Lags& lags = p.taps.lags;
  const int share = p.taps.length / kRows + 1, end = min((part + 1) * share, p.taps.length);
  const long long row = work.schedule.is_shared ? 0 : static_cast<long long>(channel) * p.taps.length;
  for (int index = part * share + threadIdx.x; index < end; index += Traits::kThreads) {
    const int tap = lags.period > 0 ? index % lags.period : index;
    const int lag = tap - lags.shift, back = lags.negative_shift - tap;
    float v = 0.f;
    if (lag >= 0 && lag < lags.positive) v = at_lag<Traits>(g_ring, g_total, lag);
    if (back > 0 && back <= lags.negative) v -= at_lag<Traits>(g_ring, g_total, 2 * kPoints - back);
    store_as(p.taps.type, p.dk, row + index, v);
  }
}

template <class Traits>
FFTCONV_DEVICE void differentiate(const LongBwdParams& p, char* s_base) {
  const BlockMemory memory = BlockMemory::at(s_base, typename Traits::Row{});
  take_tasks<BwdWork<Traits>>(p.schedule, p.counters, memory.s_numbers, [&](const BwdWork<Traits>& work) {
    if (work.task.phase == kColumns) {
      transform_columns<Traits>(p, memory, work);
    } else if (work.task.phase == kRows) {
      transform_rows<Traits>(p, memory, work);
    } else if (work.task.phase == kBack) {
      transform_columns_back<Traits>(p, memory, work);
    } else {
      store_taps<Traits>(p, work);
    }
  });
}

}  // namespace fftconv

struct Config {
  using Row = fftconv::Layout<true, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using Tile = fftconv::TileLayout<FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_TILE_LOG2_RADICES>;
  using io_t = FFTCONV_IO_T;
  static constexpr bool kIsComplex = FFTCONV_IS_COMPLEX, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr bool kIsHalf = FFTCONV_HAS_HALF_POINTS;  // what lies between the phases of rows
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr bool kHasInGradient = FFTCONV_HAS_IN_GRADIENT;    // du or d_in_gate
  static constexpr bool kHasOutGradient = FFTCONV_HAS_OUT_GRADIENT;  // d_out_gate
  static constexpr bool kHasSum = FFTCONV_HAS_SUM;                   // dk or d_skip
};
using Traits = fftconv::LongBwdTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "long_blocks.py and fftconv_long_bwd.cu disagree");
static_assert(sizeof(fftconv::LongBwdParams) == FFTCONV_PARAMS_BYTES, "long_params.py and long_params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_long_bwd(const __grid_constant__ fftconv::LongBwdParams p) {
  fftconv::differentiate<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
