// All gradients of a short depthwise convolution of few taps in one pass at the speed of memory: x and dy are read
// once, dx is written once. With z the output before the activation, dz = dy * slope(z), dx is the correlation of dz
// with the taps reversed, d_weight[j] = sum of dz[t] * x[t + j - pad], d_bias = sum of dz; z is computed again.
//
// Which points a thread takes is that of depthwise_fwd. It walks over a chunk of tiles of its channels, with the sums
// for weight and bias in registers, and leaves them at the end: depthwise_reduce adds up those of the chunks.
#include "depthwise.cuh"

extern __shared__ float s_sums[];  // [warps][width + 1]

namespace fftconv {

// The sum over `lanes` threads side by side, a power of two, in the first of them; the order is fixed.
template <class Config>
FFTCONV_DEVICE float sum_over_warp(float v, int lanes) {
  for (int delta = min(lanes, 32) / 2; delta > 0; delta /= 2) v += __shfl_down_sync(0xffffffffu, v, delta);
  return v;
}

template <class Config>
FFTCONV_DEVICE void leave_sums_in_time(const DepthwiseParams& p, const float* sums, int chunk, int channel) {
  constexpr int kSums = Config::kTaps + 1;
  const int lanes = 1 << p.log2_lanes, lane = threadIdx.x & (lanes - 1);
#pragma unroll
  for (int j = 0; j < kSums; j++) {
    const float v = sum_over_warp<Config>(sums[j], lanes);
    if ((lane & 31) == 0) s_sums[(threadIdx.x / min(lanes, 32)) * kSums + j] = v;
  }
  __syncthreads();
  const int warps = max(lanes / 32, 1);
  // Threads of the row take its sums in turn.
  for (int j = lane; j < kSums && channel < p.channels; j += lanes) {
    const float* s_row = s_sums + (threadIdx.x / lanes) * warps * kSums + j;
    float v = 0.f;
    for (int warp = 0; warp < warps; warp++) v += s_row[warp * kSums];
    p.sums[(static_cast<long long>(chunk) * kSums + j) * p.channels + channel] = v;
  }
}

template <class Config>
FFTCONV_DEVICE void backward_in_time(const DepthwiseParams& p) {
  using io_t = typename Config::io_t;
  constexpr int kCount = Config::kVector, kTaps = Config::kTaps, kPad = Config::kPad;
  constexpr int kPoints = kCount * Config::kRepeat;  // of a thread
  // Outputs whose dz is needed: for dx, and for the sums those at the thread's own points.
  constexpr int kDzBegin = Config::kHasInput ? (kPad - kTaps + 1) : 0;
  constexpr int kDzEnd = Config::kHasInput ? kPoints + kPad : kPoints;
  const int lane = threadIdx.x & ((1 << p.log2_lanes) - 1), slot = threadIdx.x >> p.log2_lanes;
  const unsigned group = blockIdx.x / p.chunks;
  const int chunk = blockIdx.x - group * p.chunks;
  const int own_channel = group * (Config::kThreads >> p.log2_lanes) + slot;
  const int channel = min(own_channel, p.channels - 1);  // all threads meet at the barrier
  float taps[kTaps], sums[kTaps + 1] = {};
  load_taps<kTaps>(taps, p, channel);
  const float bias = load_bias(p, channel);
  const int last = min((chunk + 1) * p.chunk_items, p.batch * p.time_tiles);
  for (int item = chunk * p.chunk_items; item < last; item++) {
    const int batch = item / p.time_tiles, tile = item - batch * p.time_tiles;
    io_t* g_dx = Config::kHasInput ? depthwise_row<io_t>(p.out, p.out_strides, batch, channel) : nullptr;
    const io_t* g_dy = depthwise_row<io_t>(p.dy, p.dy_strides, batch, channel);
    int point = ((tile << p.log2_lanes) + lane) * kPoints;
    if constexpr (Config::kIsShifted) point -= misalignment<kCount>(Config::kHasInput ? g_dx : g_dy);
    Window<io_t, kCount, (Config::kHasSilu ? kDzBegin : 0) - kPad,
           (Config::kHasSilu ? kDzEnd : kPoints) - kPad + kTaps - 1, Config::kIsShifted>
        x;
    Window<io_t, kCount, kDzBegin, kDzEnd, Config::kIsShifted> dy;
    if constexpr (Config::kHasSilu || Config::kHasSums) {
      x.load(depthwise_row<io_t>(p.x, p.x_strides, batch, channel), point, p.in_len);
    }
    dy.load(g_dy, point, p.dy_len);
    SequenceWindow<Config::kHasSeqIdx, -kPad, kDzEnd, Config::kIsShifted> sequences;  // of causal convolutions
    sequences.load(p, batch, point);
    if constexpr (Config::kHasSilu || Config::kHasSums) x.widen();
    dy.widen();
    sequences.widen();
    float dz[kDzEnd - kDzBegin];
#pragma unroll
    for (int i = 0; i < kDzEnd - kDzBegin; i++) {
      const int t = i + kDzBegin;
      dz[i] = dy.at(t);
      if constexpr (Config::kHasSilu) {
        float z = bias;
#pragma unroll
        for (int j = 0; j < kTaps; j++) {
          const int at = t + j - kPad;
          if (sequences.is_one(t, at)) z = fmaf(taps[j], x.at(at), z);
        }
        // Outputs that are not there have no z, which might not be finite.
        dz[i] *= silu_slope(is_inside(point + t, p.dy_len) ? z : 0.f);
      }
      if (sequences.is_padding(t)) dz[i] = 0.f;
    }
    if constexpr (Config::kHasInput) {
      float dx[kPoints];
#pragma unroll
      for (int i = 0; i < kPoints; i++) {
        dx[i] = 0.f;
#pragma unroll
        for (int j = 0; j < kTaps; j++) {
          const int at = i - j + kPad;
          if (sequences.is_one(i, at)) dx[i] = fmaf(taps[j], dz[at - kDzBegin], dx[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < Config::kRepeat; i++) {
        const int at = i * kCount;
        if (own_channel < p.channels) {
          store_vector<Config::kIsShifted>(Vector<io_t, kCount>::narrow(dx + at), g_dx, point + at, p.in_len);
        }
      }
    }
    if constexpr (Config::kHasSums) {
#pragma unroll
      for (int i = 0; i < Config::kRepeat; i++) {
        const int begin = i * kCount;
        if (point + begin >= p.dy_len) continue;
#pragma unroll
        for (int k = 0; k < kCount; k++) {
          const int t = begin + k;
          if (Config::kIsShifted && !is_inside(point + t, p.dy_len)) continue;
          if (sequences.is_padding(t)) continue;
#pragma unroll
          for (int j = 0; j < kTaps; j++) {
            const int at = t + j - kPad;
            if (sequences.is_one(t, at)) sums[j] = fmaf(dz[t - kDzBegin], x.at(at), sums[j]);
          }
          sums[kTaps] += dz[t - kDzBegin];
        }
      }
    }
  }
  if constexpr (Config::kHasSums) leave_sums_in_time<Config>(p, sums, chunk, own_channel);
}

// A thread on its way down in time over a tile of kVector channels. It takes up row r of x at time first + r and of dy
// at time dy_start + r together, and leaves dx of time first + r - kHalo, which then has all that it sees. Rows lie in
// rings of kRows: of dy, and soon of dz, at r % kRows, of x kHalo further.
template <class Config>
struct BackwardWalk {
  using io_t = typename Config::io_t;
  using V = Vector<io_t, Config::kVector>;
  static constexpr int kCount = Config::kVector, kTaps = Config::kTaps, kRows = Config::kRepeat, kHalo = kTaps - 1;
  static_assert(kRows >= kTaps, "the rings hold all that an output sees");
  float taps[kTaps][kCount], bias[kCount], sums[kTaps + 1][kCount] = {};
  float x[kRows][kCount], dz[kRows][kCount] = {};
  V next_x[kRows], next_dy[kRows];
  RowReader<io_t, kCount> x_rows, dy_rows;
  int ids[kRows];  // sequence indices of the rows of x; with them the convolution is causal, and dz goes along with x
  Vector<int, 1> next_ids[kRows];
  RowReader<int, 1> id_rows;
  io_t* g_dx;  // of the next row
  int first, dy_start;
  int dz_end, dx_end;  // past the rows of the tile's own dz and dx

  // Tile `first` of a batch row; returns up to which row all that a step meets is there.
  FFTCONV_DEVICE int begin(const DepthwiseParams& p, int batch, int channel) {
    dy_start = first + p.pad - kHalo;
    dz_end = min(first + p.tile_len, p.dy_len) - dy_start;
    dx_end = min(first + p.tile_len, p.in_len) - first + kHalo;
    const int count = p.tile_len + kHalo;
    x_rows = read_rows<io_t, kCount>(p.x, p.x_strides, batch, channel, first - kHalo, p.in_len, count + kHalo);
    dy_rows = read_rows<io_t, kCount>(p.dy, p.dy_strides, batch, channel, dy_start, p.dy_len, count);
    g_dx = depthwise_row<io_t>(p.out, p.out_strides, batch, channel) + (first - kHalo) * p.out_strides.time;
#pragma unroll
    for (int i = 0; i < kHalo; i++) x_rows.next().widen(x[i]);
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      next_x[i] = x_rows.next();
      next_dy[i] = dy_rows.next();
    }
    if constexpr (Config::kHasSeqIdx) {
      id_rows = {p.seq_idx + batch * p.seq_stride + first - kHalo, 1, first - kHalo, p.in_len, count + kHalo};
#pragma unroll
      for (int i = 0; i < kHalo; i++) ids[i] = id_rows.next().word;
#pragma unroll
      for (int i = 0; i < kRows; i++) next_ids[i] = id_rows.next();
    }
    return min(min(count, dz_end + kRows), min(p.in_len - first, p.dy_len - dy_start)) - 2 * kRows;
  }

  // Rows row .. row + kRows - 1. kIsInside: their dz and dx are all the tile's own, and the next rows are all there.
  template <bool kIsInside>
  FFTCONV_DEVICE void step(const DepthwiseParams& p, int row) {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const int r = row + i;
      next_x[i].widen(x[(i + kHalo) % kRows]);
      next_dy[i].widen(dz[i]);
      next_x[i] = x_rows.template next<kIsInside>();
      next_dy[i] = dy_rows.template next<kIsInside>();
      if constexpr (Config::kHasSeqIdx) {
        ids[(i + kHalo) % kRows] = next_ids[i].word;
        next_ids[i] = id_rows.template next<kIsInside>();
      }
      if constexpr (Config::kHasSilu) {
        // An output that is not there has no z, which might not be finite.
        apply_slope(i, kIsInside || is_inside(dy_start + r, p.dy_len));
      }
      const bool is_padding = Config::kHasSeqIdx && ids[(i + kHalo) % kRows] < 0;
      if (is_padding) {
#pragma unroll
        for (int c = 0; c < kCount; c++) dz[i][c] = 0.f;
      }
      if constexpr (Config::kHasSums) {
        if (!is_padding && (kIsInside || (dy_start + r >= first && r < dz_end))) add_products(i);
      }
      if constexpr (Config::kHasInput) {
        if (kIsInside || (r >= kHalo && r < dx_end)) store_input(i);
        g_dx += p.out_strides.time;
      }
    }
  }

  FFTCONV_DEVICE void run(const DepthwiseParams& p, int last_inside) {
#pragma unroll 1
    for (int row = 0; row < p.tile_len + kHalo; row += kRows) {
      if (row >= kHalo && row <= last_inside) {
        step<true>(p, row);
      } else {
        step<false>(p, row);
      }
    }
  }

 private:
  // Whether rows of x, in their places, belong to one sequence.
  FFTCONV_DEVICE bool is_one(int a, int b) const { return !Config::kHasSeqIdx || ids[a % kRows] == ids[b % kRows]; }

  // `row`: its place in the ring of dy, which is known when the kernel is compiled.
  FFTCONV_DEVICE void apply_slope(int row, bool is_there) {
#pragma unroll
    for (int c = 0; c < kCount; c++) {
      float z = bias[c];
#pragma unroll
      for (int j = 0; j < kTaps; j++) {
        const int at = row + j;
        if (is_one(row + kHalo, at)) z = fmaf(taps[j][c], x[at % kRows][c], z);
      }
      dz[row][c] *= silu_slope(is_there ? z : 0.f);
    }
  }
  FFTCONV_DEVICE void add_products(int row) {
#pragma unroll
    for (int c = 0; c < kCount; c++) {
      const float own = dz[row][c];
#pragma unroll
      for (int j = 0; j < kTaps; j++) {
        const int at = row + j;
        float& sum = sums[j][c];
        if (is_one(row + kHalo, at)) sum = fmaf(own, x[at % kRows][c], sum);
      }
      sums[kTaps][c] += own;
    }
  }
  FFTCONV_DEVICE void store_input(int row) {
    float dx[kCount] = {};
#pragma unroll
    for (int c = 0; c < kCount; c++) {
#pragma unroll
      for (int j = 0; j < kTaps; j++) {
        const int at = row - j + kRows;
        if (is_one(row, at + kHalo)) dx[c] = fmaf(taps[j][c], dz[at % kRows][c], dx[c]);
      }
    }
    V::narrow(dx).store(g_dx);
  }
};

template <class Config>
FFTCONV_DEVICE void backward_in_channels(const DepthwiseParams& p) {
  using Walk = BackwardWalk<Config>;
  constexpr int kCount = Config::kVector, kTaps = Config::kTaps;
  const int lane = threadIdx.x & ((1 << p.log2_lanes) - 1), slot = threadIdx.x >> p.log2_lanes;
  const unsigned group = blockIdx.x / p.tiles, tile = blockIdx.x - group * p.tiles;
  const int channel = ((tile << p.log2_lanes) + lane) * kCount;
  const int chunk = group * (Config::kThreads >> p.log2_lanes) + slot;
  if (channel >= p.channels || chunk >= p.chunks) return;
  Walk walk;
#pragma unroll
  for (int c = 0; c < kCount; c++) {
    load_taps<kTaps, kCount>(walk.taps[0] + c, p, channel + c);
    walk.bias[c] = load_bias(p, channel + c);
  }
  const int last = min((chunk + 1) * p.chunk_items, p.batch * p.time_tiles);
  for (int item = chunk * p.chunk_items; item < last; item++) {
    const int batch = item / p.time_tiles;
    walk.first = (item - batch * p.time_tiles) * p.tile_len;
    walk.run(p, walk.begin(p, batch, channel));
  }
  if constexpr (Config::kHasSums) {
#pragma unroll
    for (int j = 0; j < kTaps + 1; j++) {
      float* g_sums = p.sums + (static_cast<long long>(chunk) * (kTaps + 1) + j) * p.channels + channel;
#pragma unroll
      for (int c = 0; c < kCount; c++) g_sums[c] = walk.sums[j][c];
    }
  }
}

}  // namespace fftconv

struct Config {
  using io_t = FFTCONV_IO_T;
  static constexpr fftconv::Axis kAxis = static_cast<fftconv::Axis>(FFTCONV_AXIS);
  static constexpr int kTaps = FFTCONV_TAPS, kPad = FFTCONV_PAD;  // kPad only where neighbours lie along time
  static constexpr int kVector = FFTCONV_VECTOR;                  // elements of unit stride that a thread takes
  static constexpr int kRepeat = FFTCONV_REPEAT;                  // of these at a time
  static constexpr int kThreads = FFTCONV_THREADS;
  static constexpr bool kIsShifted = FFTCONV_IS_SHIFTED;  // rows begin at no multiple of a vector
  static constexpr bool kHasSilu = FFTCONV_HAS_SILU;
  static constexpr bool kHasSeqIdx = FFTCONV_HAS_SEQ_IDX;
  static constexpr bool kHasInput = FFTCONV_HAS_INPUT;  // the gradient of x is wanted
  static constexpr bool kHasSums = FFTCONV_HAS_SUMS;    // those of weight or bias
};
static_assert(sizeof(fftconv::DepthwiseParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads, FFTCONV_MIN_BLOCKS)
    depthwise_bwd(const __grid_constant__ fftconv::DepthwiseParams p) {
  if constexpr (Config::kAxis == fftconv::Axis::kTime) {
    fftconv::backward_in_time<Config>(p);
  } else {
    fftconv::backward_in_channels<Config>(p);
  }
}
