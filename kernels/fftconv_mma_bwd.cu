// The transpose of fftconv_mma_fwd: the gradients of fftconv_bwd, of 16-bit arrays, on tensor cores. With x = in_gate *
// u, z = conv(x, k) + skip * x and dz = out_gate * dy,
//
//   z  = inverse(X K)           d_out_gate = dy * z
//   dx = inverse(DZ conj(K))    du = in_gate * dx, d_in_gate = u * dx
//   sum over the rows of a channel of DZ conj(X) / M, in float32.
//
// x and dz are the two *sides* of a row. Both go through the passes of mma_fft.cuh at the same time, each in a slab of
// its own, so a warp has the spectra of both of a line at once: their product goes into the sum, which lies in
// registers, and each line goes back where a gradient needs it. Where one side alone is wanted, all slabs are of that.
// Blocks take chunks of rows as sums.cuh has them, and leave sums in the order that fftconv_filter_bwd reads.
#include "mma_strip.cuh"
#include "ptx.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

enum class Side { kX, kDz };

// Config: Layout, io_t and the flags. Shared memory is that of the convolution.
template <class Config>
struct MmaBwdTraits : Config {
  using Layout = typename Config::Layout;
  static constexpr bool kNeedsX = Config::kHasOutGradient || Config::kHasSum;
  static constexpr bool kNeedsDz = Config::kHasInGradient || Config::kHasSum;
  static constexpr int kSides = kNeedsX + kNeedsDz;
  static constexpr int kRows = Layout::kRows / kSides;  // of a block, all of one channel
  static constexpr int kSharedBytes = StripWarp<MmaBwdTraits>::kSharedBytes;
  static constexpr int kWarpLines = Layout::kLines / Layout::kWarps;
  static constexpr int kWarpNodes = Layout::kRadix / Layout::kWarps;  // lines of a row are its nodes
  static constexpr int kColumns = 16 / Layout::kWarps;                // n1 of a warp in the last pass

  FFTCONV_DEVICE static constexpr Side side_of(int slab) {
    return kSides == 1 ? (kNeedsX ? Side::kX : Side::kDz) : slab == 0 ? Side::kX : Side::kDz;
  }
  FFTCONV_DEVICE static constexpr bool is_inverted(int slab) {
    return side_of(slab) == Side::kX ? Config::kHasOutGradient : Config::kHasInGradient;
  }
  // Those slabs that go back: where one does not, it is the first or the last of two.
  static constexpr int kInverted = is_inverted(0) + is_inverted(1);
  static constexpr int kFirstInverted = is_inverted(0) ? 0 : 1;

  static_assert(Layout::kSlabs == 2, "a slab for each side");
  static_assert(Layout::kRadix % Layout::kWarps == 0, "a warp has the same nodes of all rows");
  static_assert(16 % Layout::kWarps == 0, "columns are dealt out evenly");
};

// The sum of a warp's nodes: eight points of each a thread, as MmaFft::Spectrum has them.
template <class Traits>
struct NodeSums {
  using Layout = typename Traits::Layout;
  using Spectrum = typename MmaFft<Layout>::Spectrum;
  struct Points {
    float2 re, im;
  };
  Points points[Traits::kWarpNodes][2][2];

  FFTCONV_DEVICE void clear() {
    static_for<Traits::kWarpNodes>([&](auto node) {
#pragma unroll
      for (int i = 0; i < 4; i++) points[node.value][i / 2][i % 2] = {make_float2(0.f, 0.f), make_float2(0.f, 0.f)};
    });
  }
  // += factor * dz conj(x)
  FFTCONV_DEVICE void add(int node, const Spectrum& dz, const Spectrum& x, float factor) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      Points& sum = points[node][i / 2][i % 2];
      const auto &d = dz[i / 2][i % 2], &v = x[i / 2][i % 2];
      float2 re = __half22float2(d.re), im = __half22float2(d.im);
      re = make_float2(re.x * factor, re.y * factor);
      im = make_float2(im.x * factor, im.y * factor);
      const float2 x_re = __half22float2(v.re), x_im = __half22float2(v.im);
      sum.re.x = fmaf(re.x, x_re.x, fmaf(im.x, x_im.x, sum.re.x));
      sum.re.y = fmaf(re.y, x_re.y, fmaf(im.y, x_im.y, sum.re.y));
      sum.im.x = fmaf(im.x, x_re.x, fmaf(-re.x, x_im.x, sum.im.x));
      sum.im.y = fmaf(im.y, x_re.y, fmaf(-re.y, x_im.y, sum.im.y));
    }
  }
  // In ring order a point is at the position of its index's bits reversed: so neighbours in j2's upper half are those
  // of a float4, and lanes of one t write eight of these in a row.
  FFTCONV_DEVICE void write(float4* g_sum, int warp, int lane) const {
    constexpr int kLog2Ept = Traits::kLog2Ept;
    const int g = lane / 4, t = lane % 4;
    static_for<Traits::kWarpNodes>([&](auto node) {
      const int j0 = warp + node.value * Layout::kWarps;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Points &a = points[node.value][h][0], &b = points[node.value][h][1];
#pragma unroll
        for (int next = 0; next < 2; next++) {
          const int j = j0 + Layout::kRadix * (g + 8 * h + 16 * (2 * t + next));
          const int position = __brev(j) >> (32 - Layout::kLog2Points);
          const int slot = position & ((1 << kLog2Ept) - 1), thread = position >> kLog2Ept;
          g_sum[slot / 2 * (Layout::kPoints >> kLog2Ept) + thread] =
              next == 0 ? make_float4(a.re.x, a.im.x, b.re.x, b.im.x) : make_float4(a.re.y, a.im.y, b.re.y, b.im.y);
        }
      }
    });
  }
};

template <class Traits>
struct MmaBwdBlock : StripWarp<Traits> {
  using Base = StripWarp<Traits>;
  using Layout = typename Traits::Layout;
  using io_t = typename Traits::io_t;
  using Fft = MmaFft<Layout>;
  using Spectrum = typename Fft::Spectrum;

  const BwdParams& p;
  int channel, step;

  FFTCONV_DEVICE MmaBwdBlock(const BwdParams& params, char* s_memory)
      : Base(s_memory, params.twiddles), p(params), channel(0), step(0) {}

  FFTCONV_DEVICE BlockRow row_at(int slab, int row) const { return row_at(slab, row, step); }
  FFTCONV_DEVICE BlockRow row_at(int slab, int row, int step) const {
    const int batch = step * Traits::kRows + row + (Traits::kSides == 1 ? slab * Layout::kSlabRows : 0);
    return {min(batch, p.batch - 1), channel, batch < p.batch};
  }

  // What the warp's slab is read from.
  FFTCONV_DEVICE StripArrays input() const {
    const bool is_x = Traits::kSides == 1 ? Traits::kNeedsX : this->slab == 0;
    return {is_x ? p.u : p.dy,
            is_x ? p.u_strides : p.dy_strides,
            is_x ? p.in_gate : p.out_gate,
            is_x ? p.in_gate_strides : p.out_gate_strides,
            is_x ? p.in_len : p.out_len,
            has_gate<Traits>(is_x ? p.has_in_gate : p.has_out_gate)};
  }
  FFTCONV_DEVICE void transform_strip() const {
    const int slab = this->slab;
    this->transform(input(), [&](int row) { return row_at(slab, row); });
  }

  // Has the inputs of the next step brought into L2: of a slab's threads one half those of one array, and the other
  // half the gate's.
  FFTCONV_DEVICE void prefetch_next() const {
    constexpr int kLine = kLineBytes / static_cast<int>(sizeof(io_t)), kRowLines = Layout::kPoints / kLine;
    static_assert(2 * Layout::kSlabRows * kRowLines == 32 * Layout::kStrips, "a line for each thread");
    const int thread = 32 * this->strip + this->lane, index = thread % (Layout::kSlabRows * kRowLines);
    const bool is_gate = thread != index;
    const StripArrays arrays = input();
    const int point = index % kRowLines * kLine;
    if (point >= arrays.length || (is_gate && !arrays.has_gate)) return;
    const BlockRow where = row_at(this->slab, index / kRowLines, step + 1);
    prefetch_to_l2(row_of<io_t>(is_gate ? arrays.gate : arrays.values,
                                is_gate ? arrays.gate_strides : arrays.value_strides, where.batch, where.channel)
                   + point);
  }

  // What the product of both sides of a row is multiplied by: the scales taken back.
  FFTCONV_DEVICE float product_factor(int row) const {
    if (!row_at(0, row).is_active) return 0.f;
    const RowScale<Layout> x = this->scale_of(0, row), dz = this->scale_of(1, row);
    if (!x.is_finite() || !dz.is_finite()) return __uint_as_float(0x7fffffffu);
    return times_power(Traits::kGain / Layout::kPoints, -(x.exponent() + dz.exponent()));
  }

  // Waits for the strips of all warps, once what does not depend on them has been asked for.
  FFTCONV_DEVICE void transform_lines(NodeSums<Traits>& sums) const {
    const int lane = this->lane, warp = this->warp;
    const uint4* g_table = this->g_table;
    unsigned matrix[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) load_fragment(matrix[i], g_table + Layout::kMiddle + i * 32 + lane);
    LineFactors<Layout> factors;
    factors.load(g_table, warp, lane);
    __syncthreads();
    float product[Layout::kSlabRows];
    if constexpr (Traits::kHasSum) {
#pragma unroll
      for (int row = 0; row < Layout::kSlabRows; row++) product[row] = product_factor(row);
    }
    static_for<Traits::kWarpLines>([&](auto index) {
      const int line = warp + index.value * Layout::kWarps, offset = Fft::line_offset(line, lane);
      if constexpr (index.value > 0) factors.load(g_table, line % Layout::kRadix, lane);
      if constexpr (Traits::kInverted > 0) this->load_spectrum(p, factors.spectrum, channel, line);
      Spectrum w[2];
#pragma unroll
      for (int i = 0; i < 2; i++) Fft::forward_line(w[i], this->slab_at(i), offset, matrix, factors);
      if constexpr (Traits::kHasSum) {
        constexpr int kRow = index.value / Traits::kWarpNodes;
        sums.add(index.value % Traits::kWarpNodes, w[1], w[0], product[kRow]);
      }
      static_for<2>([&](auto i) {
        if constexpr (Traits::is_inverted(i.value)) {
          Fft::template multiply_line<Traits::side_of(i.value) == Side::kDz>(w[i.value], factors.spectrum);
          Fft::inverse_line(w[i.value], this->slab_at(i.value), offset, matrix, factors);
        }
      });
    });
  }

  // The row of the slab that a half of the slab's lines belongs to, or of 16 of them.
  FFTCONV_DEVICE static constexpr int row_of_half(int half) {
    return Layout::kSlabRows == 1 ? 0 : 8 * half / Layout::kRadix;
  }
  // Where the thread's points of the last pass begin in their row, and how far apart those of both halves are.
  FFTCONV_DEVICE int first_point() const {
    const int line = this->lane / 4;
    return 256 * (Layout::kSlabRows == 1 ? line : line % Layout::kRadix) + 16 * Traits::kColumns * this->warp
           + 4 * (this->lane % 4);
  }
  static constexpr int kHalfPoints = Layout::kSlabRows == 1 ? 256 * 8 : 256 * (8 % Layout::kRadix);
  // From there on, the points of an array by the half.
  template <class pointer_t>
  struct Halves {
    pointer_t half[2];
  };
  template <class array_t>
  FFTCONV_DEVICE auto points_of_row(array_t* g_array, Strides strides, int slab) const {
    using pointer_t = decltype(row_of<io_t>(g_array, strides, 0, 0));
    Halves<pointer_t> points;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const BlockRow where = row_at(slab, row_of_half(i));
      points.half[i] = row_of<io_t>(g_array, strides, where.batch, where.channel) + first_point() + i * kHalfPoints;
    }
    return points;
  }
  // From a thread's first point to those of a group and column.
  FFTCONV_DEVICE static constexpr int part_offset(int group, int column) { return 4096 * group + 16 * column; }

  // What the results of a slab are multiplied by.
  struct Partners {
    unsigned words[2][Layout::kGroups][Traits::kColumns][2];  // [half]

    FFTCONV_DEVICE void read(const Halves<const io_t*>& points, int length) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int group = 0; group < Layout::kGroups; group++) {
#pragma unroll
          for (int column = 0; column < Traits::kColumns; column++) {
            read_words<Traits>(words[half][group][column], points.half[half], part_offset(group, column),
                               length - half * kHalfPoints);
          }
        }
      }
    }
    FFTCONV_DEVICE float4 times(float4 v, int half, int group, int column) const {
      const unsigned (&pair)[2] = words[half][group][column];
      const float2 low = points_of<io_t>(pair[0]), high = points_of<io_t>(pair[1]);
      return make_float4(v.x * low.x, v.y * low.y, v.z * high.x, v.w * high.y);
    }
  };

  // Waits for the lines of all warps, once it has asked for what results are multiplied by.
  FFTCONV_DEVICE void store_strip() const {
    const int n1 = this->warp * Traits::kColumns, exponent = channel_scale<Traits>(p, channel).exponent;
    const int in_length = p.in_len - first_point(), out_length = p.out_len - first_point();
    const bool has_in_gate = has_gate<Traits>(p.has_in_gate);
    float factor[2][2];
    Partners values[2], gates[2];           // by the slab: dy, or u and in_gate
    Halves<io_t*> g_values[2], g_gates[2];  // d_out_gate, or du and d_in_gate
    static_for<2>([&](auto slab) {
      constexpr int kSlab = slab.value;
      if constexpr (Traits::is_inverted(kSlab)) {
#pragma unroll
        for (int i = 0; i < 2; i++) factor[kSlab][i] = this->result_factor(kSlab, row_of_half(i), exponent);
        if constexpr (Traits::side_of(kSlab) == Side::kX) {
          values[kSlab].read(points_of_row(p.dy, p.dy_strides, kSlab), out_length);
        } else if constexpr (Traits::kExtras != Extras::kNone) {
          if (p.d_in_gate != nullptr) values[kSlab].read(points_of_row(p.u, p.u_strides, kSlab), in_length);
          if (has_in_gate) gates[kSlab].read(points_of_row(p.in_gate, p.in_gate_strides, kSlab), in_length);
        }
      }
    });
    const int offset = Fft::column_offset(n1, this->lane);
    __syncthreads();
    static_for<2>([&](auto slab) {
      constexpr int kSlab = slab.value;
      if constexpr (Traits::side_of(kSlab) == Side::kX) {
        g_gates[kSlab] = points_of_row(p.d_out_gate, p.d_out_gate_strides, kSlab);
      } else {
        g_values[kSlab] = points_of_row(p.du, p.du_strides, kSlab);
        g_gates[kSlab] = points_of_row(p.d_in_gate, p.d_in_gate_strides, kSlab);
      }
    });
#pragma unroll
    for (int column = 0; column < Traits::kColumns; column++) {
      const char* s_columns[Traits::kInverted];
      static_for<Traits::kInverted>([&](auto i) {
        s_columns[i.value] = this->slab_at(Traits::kFirstInverted + i.value) + (offset ^ Layout::column_step(column));
      });
      const auto store = [&](auto i, int group, int half, float4 v) {
        constexpr int kSlab = Traits::kFirstInverted + i.value;
        if (!row_at(kSlab, row_of_half(half)).is_active) return;
        const int index = part_offset(group, column), passed = half * kHalfPoints;
        const float scale = factor[kSlab][half];
        v = make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale);
        if constexpr (Traits::side_of(kSlab) == Side::kX) {
          write_points<Traits>(g_gates[kSlab].half[half], index, out_length - passed,
                               values[kSlab].times(v, half, group, column));
        } else {
          if (Traits::kExtras != Extras::kNone && p.d_in_gate != nullptr) {
            write_points<Traits>(g_gates[kSlab].half[half], index, in_length - passed,
                                 values[kSlab].times(v, half, group, column));
          }
          if (p.du == nullptr) return;
          if (has_in_gate) v = gates[kSlab].times(v, half, group, column);
          write_points<Traits>(g_values[kSlab].half[half], index, in_length - passed, v);
        }
      };
      Fft::template inverse_column<Layout::kGroups>(s_columns, n1 + column, this->lane, this->g_table, store);
    }
  }
};

// A block's chunks in turn, step by step: see sums.cuh.
template <class Traits>
FFTCONV_DEVICE void walk_chunks(const BwdParams& p, char* s_base) {
  MmaBwdBlock<Traits> block(p, s_base);
  NodeSums<Traits> sums;
  for (long long chunk = blockIdx.x; chunk < p.chunk_count; chunk += gridDim.x) {
    block.channel = static_cast<int>(chunk / p.chunks.group_chunks);
    const int first = static_cast<int>(chunk % p.chunks.group_chunks) * p.chunks.chunk_steps;
    const int end = min(first + p.chunks.chunk_steps, p.chunks.group_steps);
    sums.clear();
    for (block.step = first; block.step < end; block.step++) {
      block.transform_strip();
      if (block.step + 1 < end) block.prefetch_next();
      block.transform_lines(sums);
      if constexpr (Traits::kInverted > 0) {
        block.store_strip();
      } else {
        __syncthreads();  // all have read the scales
      }
    }
    if constexpr (Traits::kHasSum) {
      sums.write(p.sums + chunk * (Traits::Layout::kPoints / 2), block.warp, block.lane);
    }
  }
}

}  // namespace fftconv

struct Config {
  using Layout = fftconv::MmaLayout<FFTCONV_LOG2_POINTS, FFTCONV_SLABS, FFTCONV_TILES>;
  using io_t = FFTCONV_IO_T;
  static constexpr bool kIsWide = FFTCONV_IS_WIDE, kHasTail = FFTCONV_HAS_TAIL;
  static constexpr fftconv::Extras kExtras = static_cast<fftconv::Extras>(FFTCONV_EXTRAS);
  static constexpr bool kHasInGradient = FFTCONV_HAS_IN_GRADIENT;    // du or d_in_gate
  static constexpr bool kHasOutGradient = FFTCONV_HAS_OUT_GRADIENT;  // d_out_gate
  static constexpr bool kHasSum = FFTCONV_HAS_SUM;                   // dk or d_skip
  static constexpr int kLog2Ept = FFTCONV_LOG2_EPT;                  // of fftconv_filter_bwd
  static constexpr float kGain = FFTCONV_GAIN;                       // takes back the scales of the matrices
};
using Traits = fftconv::MmaBwdTraits<Config>;
static_assert(Traits::kSharedBytes == FFTCONV_SHARED_BYTES, "mma_blocks.py and fftconv_mma_bwd.cu disagree");
static_assert(sizeof(fftconv::BwdParams) == FFTCONV_PARAMS_BYTES, "params.py and params.cuh disagree");

extern "C" __global__ void __launch_bounds__(Traits::Layout::kThreads, FFTCONV_MIN_BLOCKS)
    fftconv_mma_bwd(const __grid_constant__ fftconv::BwdParams p) {
  fftconv::walk_chunks<Traits>(p, reinterpret_cast<char*>(s_dynamic));
}
