// y = out_gate * (conv(in_gate * u, k) + skip * in_gate * u) for rows that outgrow a block: transforms of M = C x R
// complex points by tiles of columns and rows of points (tile.cuh), whatever B and H in one launch (pipeline.cuh).
//
// A row takes three phases: its columns, its rows of points times the filter's spectrum, its columns back. What lies
// between them stays in L2; inputs are read and outputs written once. A filter takes the first two, in the place where
// its spectrum then is.
#include "item_points.cuh"
#include "long_params.cuh"
#include "spectrum.cuh"
#include "taps.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// Config: the layouts, io_t and the flags.
template <class Config>
struct LongTraits : Config {
  using Layout = typename Config::Tile;  // of what is loaded and stored
  using Tile = typename Config::Tile;
  using Row = typename Config::Row;
  using TileFft = BlockFft<Tile, 1>;
  using RowFft = BlockFft<Row, 0>;
  static constexpr int kThreads = Row::kThreads, kEpt = Row::kEpt, kLog2Rows = Tile::kLog2Rows;
  static constexpr int kRowQuads = Row::kPoints / 2;
  static constexpr int kSharedBytes =
      Row::kRowSlots * static_cast<int>(sizeof(complex_t)) + BlockMemory::kNumberBytes + BlockMemory::kLargestBytes;

  static_assert(Tile::kPoints == Row::kPoints && Tile::kEpt == Row::kEpt, "a tile has the points of a row");
};

template <class Traits>
struct LongWork : Work<Traits::kLog2Rows, 3> {
  using Work<Traits::kLog2Rows, 3>::Work;

  FFTCONV_DEVICE float4* spectrum(const LongParams& p) const {
    return p.spectrum + static_cast<long long>(this->filter.slot) * (Traits::Tile::kTotal / 2);
  }
  // Those of a filter lie where its spectrum will be.
  FFTCONV_DEVICE ItemPoints<Traits> points(const LongParams& p) const {
    constexpr long long kBytes = Traits::Tile::kTotal * (Traits::kIsHalf ? sizeof(unsigned) : sizeof(complex_t));
    if (this->item.is_filter) return {spectrum(p), nullptr, false, this->task.part};
    return {static_cast<char*>(p.points) + this->row.slot * kBytes,
            p.scales + this->row.slot * ItemPoints<Traits>::kScales, Traits::kIsHalf, this->task.part};
  }
};

template <class Traits, Part kPart>
FFTCONV_DEVICE void load_input(const LongParams& p, complex_t* x, const Item& item, int first_column) {
  using io_t = typename Traits::io_t;
  constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Tile::kTotal;
  const int length = p.in_len - kFirst, thread = threadIdx.x;
  const auto input = [&](const void* g_array, Strides strides) {
    return TileInput<Traits>(row_of<io_t>(g_array, strides, item.batch, item.channel) + kFirst, length, first_column,
                             thread);
  };
  const auto u = input(p.u, p.u_strides);
  if (has_gate<Traits>(p.has_in_gate)) {
    load_gated<Traits, kPart>(x, u, input(p.in_gate, p.in_gate_strides));
  } else {
    load_part<Traits, kPart>(x, u);
  }
}

template <class Traits, Part kPart>
FFTCONV_DEVICE void store_output(const LongParams& p, complex_t* x, const Item& item, int first_column) {
  using io_t = typename Traits::io_t;
  constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Tile::kTotal;
  const int length = p.out_len - kFirst, thread = threadIdx.x;
  const TileOutput<Traits> y(row_of<io_t>(p.y, p.y_strides, item.batch, item.channel) + kFirst, length, first_column,
                             thread);
  if (has_gate<Traits>(p.has_out_gate)) {
    const io_t* g_gate = row_of<io_t>(p.out_gate, p.out_gate_strides, item.batch, item.channel) + kFirst;
    store_gated<Traits, kPart>(x, y, TileInput<Traits>(g_gate, length, first_column, thread));
  } else {
    store_part<Traits, kPart>(x, y);
  }
}

// The columns of a tile, of a row or a filter.
template <class Traits>
FFTCONV_DEVICE void transform_columns(const LongParams& p, const BlockMemory& memory, const LongWork<Traits>& work) {
  using Tile = typename Traits::Tile;
  const int first_column = work.task.part * Tile::kWidth;
  complex_t x[Traits::kEpt];
  if (work.item.is_filter) {
    load_taps<Traits>(p.taps, x, work.item.channel, first_column, threadIdx.x);
  } else {
    load_input<Traits, Part::kReal>(p, x, work.item, first_column);
    if constexpr (Traits::kIsComplex) {  // which may be for the taps only
      if (p.in_len > Tile::kTotal) {
        load_input<Traits, Part::kImag>(p, x, work.item, first_column);
      } else {
        static_for<Traits::kEpt>([&](auto slot) { x[slot.value].im = 0.f; });
      }
    }
  }
  Traits::TileFft::template forward<!Traits::kIsComplex>(x, memory.s_exchange, threadIdx.x, p.tile_twiddles, [] {});
  turn_columns<Tile, false>(x, first_column, threadIdx.x);
  work.points(p).store_tile(x, memory.s_largest);
}

template <class Traits>
FFTCONV_DEVICE void transform_columns_back(const LongParams& p, const BlockMemory& memory,
                                           const LongWork<Traits>& work) {
  using Tile = typename Traits::Tile;
  const int first_column = work.task.part * Tile::kWidth;
  complex_t x[Traits::kEpt];
  work.points(p).load_tile(x);
  turn_columns<Tile, true>(x, first_column, threadIdx.x);
  Traits::TileFft::template inverse<!Traits::kIsComplex>(x, memory.s_exchange, threadIdx.x, p.tile_twiddles);
  store_output<Traits, Part::kReal>(p, x, work.item, first_column);
  if constexpr (Traits::kIsComplex) {
    if (p.out_len > Tile::kTotal) store_output<Traits, Part::kImag>(p, x, work.item, first_column);
  }
}

// A row of points: of a filter its spectrum, else times that and back.
template <class Traits>
FFTCONV_DEVICE void convolve_row(const LongParams& p, const BlockMemory& memory, const LongWork<Traits>& work) {
  float4* g_spectrum = work.spectrum(p) + work.task.part * Traits::kRowQuads + threadIdx.x;
  complex_t x[Traits::kEpt];
  work.points(p).load_row(x);
  Traits::RowFft::template forward<false>(x, memory.s_exchange, threadIdx.x, p.row_twiddles, [] {});
  if (work.item.is_filter) {
    static_for<Traits::kEpt / 2>([&](auto i) {
      const complex_t a = x[2 * i.value], b = x[2 * i.value + 1];
      __stcg(g_spectrum + i.value * Traits::kThreads,
             make_float4(a.re * p.skip_scale, a.im * p.skip_scale, b.re * p.skip_scale, b.im * p.skip_scale));
    });
    return;
  }
  const float skip = spectrum_skip<Traits>(p, work.item.channel);
  static_for<Traits::kEpt / 2>([&](auto i) {
    const float4 v = __ldcg(g_spectrum + i.value * Traits::kThreads);
    x[2 * i.value] = multiply(x[2 * i.value], {v.x + skip, v.y});
    x[2 * i.value + 1] = multiply(x[2 * i.value + 1], {v.z + skip, v.w});
  });
  Traits::RowFft::template inverse<false>(x, memory.s_exchange, threadIdx.x, p.row_twiddles);
  work.points(p).store_row(x, memory.s_largest);
}

template <class Traits>
FFTCONV_DEVICE void convolve(const LongParams& p, char* s_base) {
  const BlockMemory memory = BlockMemory::at(s_base, typename Traits::Row{});
  take_tasks<LongWork<Traits>>(p.schedule, p.counters, memory.s_numbers, [&](const LongWork<Traits>& work) {
    if (work.task.phase == kColumns) {
      transform_columns<Traits>(p, memory, work);
    } else if (work.task.phase == kRows) {
      convolve_row<Traits>(p, memory, work);
    } else {
      transform_columns_back<Traits>(p, memory, work);
    }
  });
}

}  // namespace fftconv

struct Config {
  using Row = fftconv::Layout<true, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_LOG2_RADICES>;
  using Tile = fftconv::TileLayout<FFTCONV_IS_VECTOR, FFTCONV_LOG2_POINTS, FFTCONV_LOG2_EPT, FFTCONV_TILE_LOG2_RADICES>;
  using io_t = FFTCONV_IO_T;
  static constexpr bool kIsComplex = FFTCONV_IS_COMPLEX, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr bool kIsHalf = FFTCONV_HAS_HALF_POINTS;  // what lies between the phases
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
};
using Traits = fftconv::LongTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "long_blocks.py and fftconv_long.cu disagree on memory");
static_assert(sizeof(fftconv::LongParams) == FFTCONV_PARAMS_BYTES, "long_params.py and long_params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_long(const __grid_constant__ fftconv::LongParams p) {
  fftconv::convolve<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
