// y = out_gate * (conv(in_gate * u, k) + skip * in_gate * u) of 16-bit arrays on tensor cores (sm_80 and later): one
// transform of M complex points a row, see mma_layout.cuh.
//
// As in fftconv_fwd, every input byte is read once and every output byte written once. Between products of matrices
// points are halves, so each row is scaled by a power of two from its own largest magnitude, and each filter's
// spectrum, made by fftconv_mma_filter, from its own.
#include "mma_strip.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

// Config: Layout, io_t and the flags.
template <class Config>
struct MmaTraits : Config {
  using Layout = typename Config::Layout;
  static constexpr int kSharedBytes = StripWarp<MmaTraits>::kSharedBytes;
};

template <class Traits>
struct MmaBlock : StripWarp<Traits> {
  using Base = StripWarp<Traits>;
  using Layout = typename Traits::Layout;
  using io_t = typename Traits::io_t;
  using Fft = MmaFft<Layout>;
  using Base::g_table, Base::lane, Base::warp, Base::slab, Base::strip;
  static constexpr int kColumns = Layout::kTiles / 2;  // n1 of a strip

  const FwdParams& p;
  int first_channel;

  FFTCONV_DEVICE MmaBlock(const FwdParams& params, char* s_memory, int channel)
      : Base(s_memory, params.twiddles), p(params), first_channel(channel) {}

  FFTCONV_DEVICE BlockRow row_at(int row) const {
    const int batch = (blockIdx.x << p.log2_batch_slots) + (row & ((1 << p.log2_batch_slots) - 1));
    const int channel = first_channel + (row >> p.log2_batch_slots);
    return {min(batch, p.batch - 1), min(channel, p.channels - 1), batch < p.batch && channel < p.channels};
  }
  FFTCONV_DEVICE BlockRow row_of_slab(int row) const { return row_at(slab * Layout::kSlabRows + row); }

  FFTCONV_DEVICE void transform_strip() const {
    const StripArrays input = {
        p.u, p.u_strides, p.in_gate, p.in_gate_strides, p.in_len, has_gate<Traits>(p.has_in_gate)};
    this->transform(input, [&](int row) { return row_of_slab(row); });
  }

  FFTCONV_DEVICE int channel_of(int slab, int line) const {
    return row_at(slab * Layout::kSlabRows + line / Layout::kRadix).channel;
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
        this->load_spectrum(p, factors.spectrum, channel_of(i, line), line);
        typename Fft::Spectrum w;
        Fft::forward_line(w, this->slab_at(i), offset, matrix, factors);
        Fft::template multiply_line<false>(w, factors.spectrum);
        Fft::inverse_line(w, this->slab_at(i), offset, matrix, factors);
      }
      line += Layout::kWarps;
      if (line >= Layout::kLines) break;
      factors.load(g_table, line % Layout::kRadix, lane);
    }
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
      factor[lower] = this->result_factor(slab, row, channel_scale<Traits>(p, where.channel).exponent);
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
    const char* s_slab = this->slab_at(slab);
    const int offset = Fft::column_offset(strip * kColumns, lane);
    __syncthreads();
#pragma unroll
    for (int column = 0; column < kColumns; column++) {
      const char* const s_columns[1] = {s_slab + (offset ^ Layout::column_step(column))};
      Fft::template inverse_column<1>(
          s_columns, strip * kColumns + column, lane, g_table, [&](auto, int group, int lower, float4 v) {
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
