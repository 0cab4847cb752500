// y = out_gate * (conv(in_gate * u, k) + skip * in_gate * u) of 16-bit arrays on tensor cores (sm_80 and later): one
// transform of M complex points a row, see mma_layout.cuh.
//
// As in fftconv_fwd, every input byte is read once and every output byte written once. Between products of matrices
// points are halves, so each row is scaled by a power of two from its own largest magnitude, and each filter's
// spectrum, made by fftconv_mma_filter, from its own.
#include "mma_fft.cuh"
#include "mma_io.cuh"
#include "mma_spectrum.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// Config: Layout, io_t and the flags. Shared memory is the slabs, and the largest magnitude of each strip of each row.
template <class Config>
struct MmaTraits : Config {
  using Layout = typename Config::Layout;
  static constexpr int kLargestOffset = Layout::kSlabs * Layout::kSlabBytes;
  static constexpr int kSharedBytes = kLargestOffset + Layout::kRows * Layout::kStrips * 4;
};

// Where a row of a block lies. Rows without a job of their own repeat another one's, and store nothing.
struct BlockRow {
  int batch, channel;
  bool is_active;
};

template <class Traits>
struct MmaBlock {
  using Layout = typename Traits::Layout;
  using io_t = typename Traits::io_t;
  using Fft = MmaFft<Layout>;
  static constexpr int kColumns = Layout::kTiles / 2;  // n1 of a strip

  const FwdParams& p;
  char* s_base;
  unsigned* s_largest;  // [row][strip]
  int first_channel;
  const uint4* g_table;
  int lane, warp, slab, strip;

  FFTCONV_DEVICE MmaBlock(const FwdParams& params, char* s_memory, int channel) : p(params), s_base(s_memory) {
    s_largest = reinterpret_cast<unsigned*>(s_memory + Traits::kLargestOffset);
    first_channel = channel;
    g_table = reinterpret_cast<const uint4*>(params.twiddles);
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    slab = warp / Layout::kStrips;
    strip = warp % Layout::kStrips;
  }

  FFTCONV_DEVICE BlockRow row_at(int row) const {
    const int batch = (blockIdx.x << p.log2_batch_slots) + (row & ((1 << p.log2_batch_slots) - 1));
    const int channel = first_channel + (row >> p.log2_batch_slots);
    return {min(batch, p.batch - 1), min(channel, p.channels - 1), batch < p.batch && channel < p.channels};
  }
  FFTCONV_DEVICE BlockRow row_of_slab(int row) const { return row_at(slab * Layout::kSlabRows + row); }

  // Puts down the largest magnitudes that this warp has seen of its slab's rows.
  FFTCONV_DEVICE void put_largest(const StripInput<Traits>& input) const {
    const int t = lane % 4;
    unsigned bits[4];
#pragma unroll
    for (int slot = 0; slot < 4; slot++) bits[slot] = input.largest(slot);
    if constexpr (Layout::kRadix >= 2) {  // neighbouring lines are of the same row
      bits[0] = max(bits[0], bits[1]);
      bits[2] = max(bits[2], bits[3]);
    }
    if constexpr (Layout::kRadix >= 16) bits[0] = max(bits[0], bits[2]);
    constexpr int kStep = Layout::kRadix >= 16 ? 4 : Layout::kRadix >= 2 ? 2 : 1;
#pragma unroll
    for (int slot = 0; slot < 4; slot += kStep) {
#pragma unroll
      for (int distance = Layout::kRadix >= 4 ? 1 : 4; distance < 32; distance *= 2) {
        if (Layout::kRadix == 4 && distance == 2) continue;  // lanes of two rows
        bits[slot] = max(bits[slot], __shfl_xor_sync(0xffffffffu, bits[slot], distance));
      }
      const int row = Layout::kSlabRows == 1 ? 0 : StripInput<Traits>::row_of_slot(slot, t);
      constexpr int kLanes = Layout::kRadix >= 8 ? 4 : Layout::kRadix == 4 ? 2 : 1;  // of the first four, to a row
      if (lane < 4 && lane % kLanes == 0)
        s_largest[(slab * Layout::kSlabRows + row) * Layout::kStrips + strip] = bits[slot];
    }
  }
  // The scale of a row of the slab, once all warps have put down theirs.
  FFTCONV_DEVICE RowScale<Layout> scale_of(int row) const {
    const unsigned* s_row = s_largest + (slab * Layout::kSlabRows + row) * Layout::kStrips;
    RowScale<Layout> scale = {0};
#pragma unroll
    for (int i = 0; i < Layout::kStrips; i++) scale.largest = max(scale.largest, s_row[i]);
    return scale;
  }

  FFTCONV_DEVICE void transform_strip() const {
    const int t = lane % 4;
    StripInput<Traits> input;
    input.load(p, strip, lane, [&](int row) { return row_of_slab(row); });
    put_largest(input);
    __syncthreads();
    unsigned b[Layout::kGroups][Layout::kTiles][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float factor[2];
      unsigned kept = 0;  // bits of a word of two lines, but those of rows that are not finite
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int slot = 2 * half + i;
        const RowScale<Layout> scale = scale_of(Layout::kSlabRows == 1 ? 0 : input.row_of_slot(slot, t));
        factor[i] = scale.factor();
        if (scale.is_finite()) kept |= i == 0 ? 0xffffu : 0xffff0000u;
      }
#pragma unroll
      for (int group = 0; group < Layout::kGroups; group++) {
#pragma unroll
        for (int word = 0; word < Layout::kTiles / 2; word++) {
          const float2 upper = input.values(group, 2 * half, word), lower = input.values(group, 2 * half + 1, word);
          b[group][2 * word][half] = pack_halves(upper.x * factor[0], lower.x * factor[1]) & kept;
          b[group][2 * word + 1][half] = pack_halves(upper.y * factor[0], lower.y * factor[1]) & kept;
        }
      }
    }
    Fft::forward_strip(b, s_base + slab * Layout::kSlabBytes, strip, lane, g_table);
  }

  FFTCONV_DEVICE int channel_of(int slab, int line) const {
    return row_at(slab * Layout::kSlabRows + line / Layout::kRadix).channel;
  }
  FFTCONV_DEVICE void load_spectrum(Factors& spectrum, int channel, int line) const {
    const uint4* g_spectrum = reinterpret_cast<const uint4*>(p.spectrum) + channel * p.spectrum_stride;
    spectrum.load(g_spectrum + line % Layout::kRadix * Layout::kFactorWords * 32, lane);
    if constexpr (Traits::kExtras == Extras::kAny) {
      const ChannelScale scale = channel_scale<Traits>(p, channel);
      spectrum.adjust(scale.scale, scale.added);
    }
  }

  // Waits for the strips of all warps, once what does not depend on them has been asked for.
  FFTCONV_DEVICE void convolve_lines() const {
    unsigned matrix[4][4];
    LineFactors<Layout> factors;
    int line = warp;
    factors.load(g_table, line % Layout::kRadix, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) load_fragment(matrix[i], g_table + Layout::kMiddle + i * 32 + lane);
    __syncthreads();
#pragma unroll 1
    while (true) {
      const int offset = Fft::line_offset(line, lane);
#pragma unroll
      for (int i = 0; i < Layout::kSlabs; i++) {
        load_spectrum(factors.spectrum, channel_of(i, line), line);
        Fft::convolve_line(s_base + i * Layout::kSlabBytes, offset, matrix, factors);
      }
      line += Layout::kWarps;
      if (line >= Layout::kLines) break;
      factors.load(g_table, line % Layout::kRadix, lane);
    }
  }

  // What turns results into those of a row of the slab: the scales taken back.
  FFTCONV_DEVICE float result_factor(int row, int channel) const {
    const RowScale<Layout> scale = scale_of(row);
    const int exponent = channel_scale<Traits>(p, channel).exponent;
    if (!scale.is_finite() || exponent == kNotFinite) return __uint_as_float(0x7fffffffu);
    return times_power(Traits::kGain, exponent - scale.exponent());
  }

  // Waits for the lines of all warps, once it has asked for the gate, where a thread has few points of it.
  FFTCONV_DEVICE void store_strip() const {
    constexpr bool kIsEarly = Traits::kExtras == Extras::kGates && Layout::kGroups == 1;
    // Of lines g and g + 8: whether they are stored, the row's factor, and the row from the thread's first point on.
    bool is_active[2];
    float factor[2];
    int length[2];
    io_t* g_y[2];
    const io_t* g_gate[2];
    unsigned early[kColumns][2][2];
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
      const int line = 8 * lower + lane / 4, row = Layout::kSlabRows == 1 ? 0 : line / Layout::kRadix;
      const BlockRow where = row_of_slab(row);
      is_active[lower] = where.is_active;
      factor[lower] = result_factor(row, where.channel);
      const int first =
          256 * (Layout::kSlabRows == 1 ? line : line % Layout::kRadix) + 16 * kColumns * strip + 4 * (lane % 4);
      length[lower] = p.out_len - first;
      g_y[lower] = row_of<io_t>(p.y, p.y_strides, where.batch, where.channel) + first;
      g_gate[lower] = row_of<io_t>(p.out_gate, p.out_gate_strides, where.batch, where.channel) + first;
#pragma unroll
      for (int column = 0; column < kColumns; column++) {
        if (kIsEarly) read_words<Traits>(early[column][lower], g_gate[lower], 16 * column, length[lower]);
      }
    }
    const char* s_slab = s_base + slab * Layout::kSlabBytes;
    const int offset = Fft::column_offset(strip, lane);
    __syncthreads();
#pragma unroll
    for (int column = 0; column < kColumns; column++) {
      const char* s_column = s_slab + (offset ^ Layout::column_step(column));
      Fft::inverse_column(s_column, strip * kColumns + column, lane, g_table, [&](int group, int lower, float4 v) {
        if (!is_active[lower]) return;
        const int index = 4096 * group + 16 * column;
        v = make_float4(v.x * factor[lower], v.y * factor[lower], v.z * factor[lower], v.w * factor[lower]);
        if (has_gate<Traits>(p.has_out_gate)) {
          unsigned late[2];
          if (!kIsEarly) read_words<Traits>(late, g_gate[lower], index, length[lower]);
          const unsigned* words = kIsEarly ? early[column][lower] : late;
          const float2 low = points_of<io_t>(words[0]), high = points_of<io_t>(words[1]);
          v = make_float4(v.x * low.x, v.y * low.y, v.z * high.x, v.w * high.y);
        }
        write_points<Traits>(g_y[lower], index, length[lower], v);
      });
    }
  }
};

// Grid x walks the batch, y and z the channels, as in fftconv_fwd.
template <class Traits>
FFTCONV_DEVICE void convolve_block(const FwdParams& p, char* s_base) {
  const long long group = blockIdx.y + static_cast<long long>(blockIdx.z) * gridDim.y;
  const long long first_channel = group * (Traits::Layout::kRows >> p.log2_batch_slots);
  if (first_channel >= p.channels) return;
  const MmaBlock<Traits> block(p, s_base, static_cast<int>(first_channel));
  block.transform_strip();
  block.convolve_lines();
  block.store_strip();
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::MmaLayout<FFTCONV_LOG2_POINTS, FFTCONV_SLABS, FFTCONV_TILES>;
  using io_t = FFTCONV_IO_T;
  static constexpr bool kIsWide = FFTCONV_IS_WIDE, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr float kGain = FFTCONV_GAIN;  // takes back the scales of the matrices
};
using Traits = fftconv::MmaTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "mma_plan.py and fftconv_mma_fwd.cu disagree");
static_assert(sizeof(fftconv::FwdParams) == FFTCONV_PARAMS_BYTES, "launch_mma.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::Layout::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_mma_fwd(const __grid_constant__ fftconv::FwdParams p) {
  fftconv::convolve_block<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
