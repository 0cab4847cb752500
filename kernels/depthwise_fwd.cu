// Short depthwise convolution of few taps, at the speed of memory: x is read once, y written once, 16 bytes a thread
// along the axis of unit stride (8 or 4 where taps and points of more channels do not fit in registers).
//
// BHL: a thread takes kRepeat vectors of a row, and reads the points around each out of L1; its taps are constants of
// the loops, so is the shift between input and output vectors. BLH: a thread takes kVector channels, and walks down in
// time with the last points in registers; the next kRows rows are on their way while it computes.
// Blocks: gridDim.x = tiles x groups of what lies beside, gridDim.y walks the batch.
#include "depthwise.cuh"

extern __shared__ float s_taps[];  // of BlockTaps

namespace fftconv {

template <class Config>
FFTCONV_DEVICE float activate(float z) {
  return Config::kHasSilu ? silu(z) : z;
}

template <class Config>
FFTCONV_DEVICE void forward_in_time(const DepthwiseParams& p) {
  using io_t = typename Config::io_t;
  constexpr int kCount = Config::kVector, kTaps = Config::kTaps, kPad = Config::kPad;
  const int lane = threadIdx.x & ((1 << p.log2_lanes) - 1), slot = threadIdx.x >> p.log2_lanes;
  const unsigned group = blockIdx.x / p.tiles, tile = blockIdx.x - group * p.tiles;
  const int channel = group * (Config::kThreads >> p.log2_lanes) + slot;
  if (channel >= p.channels) return;
  const int first = (tile * Config::kRepeat << p.log2_lanes) + lane;
  const int in_vectors = p.in_len / kCount, out_vectors = p.out_end / kCount;
  float taps[kTaps];
  load_taps<kTaps>(taps, p, channel);
  const float bias = load_bias(p, channel);
  for (int batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
    const io_t* g_x = depthwise_row<io_t>(p.x, p.x_strides, batch, channel);
    io_t* g_y = depthwise_row<io_t>(p.out, p.out_strides, batch, channel);
    Window<io_t, kCount, -kPad, kCount - kPad + kTaps - 1> x[Config::kRepeat];
    static_for<Config::kRepeat>([&](auto i) { x[i.value].load(g_x, first + (i.value << p.log2_lanes), in_vectors); });
    static_for<Config::kRepeat>([&](auto i) {
      x[i.value].widen();
      float y[kCount];
      static_for<kCount>([&](auto t) {
        float sum = bias;
        static_for<kTaps>([&](auto j) { sum = fmaf(taps[j.value], x[i.value].at(t.value + j.value - kPad), sum); });
        y[t.value] = activate<Config>(sum);
      });
      const int vector = first + (i.value << p.log2_lanes);
      if (vector < out_vectors) {
        Vector<io_t, kCount>::narrow(y).store(g_y + static_cast<long long>(vector) * kCount);
      }
    });
  }
}

template <class Config>
FFTCONV_DEVICE void forward_in_channels(const DepthwiseParams& p) {
  using io_t = typename Config::io_t;
  using V = Vector<io_t, Config::kVector>;
  constexpr int kCount = Config::kVector, kTaps = Config::kTaps, kRows = Config::kRepeat, kHalo = kTaps - 1;
  const int lane = threadIdx.x & ((1 << p.log2_lanes) - 1), slot = threadIdx.x >> p.log2_lanes;
  const unsigned group = blockIdx.x / p.tiles, tile = blockIdx.x - group * p.tiles;
  const int block_channel = (tile << p.log2_lanes) * kCount, channel = block_channel + lane * kCount;
  const int first = (group * (Config::kThreads >> p.log2_lanes) + slot) * p.tile_len, start = first - p.pad;
  // Threads with nothing to do meet the others at the barrier.
  const int end = channel < p.channels ? min(p.tile_len, p.out_end - first) : 0, in_end = end > 0 ? end + kHalo : 0;
  V before[kHalo > 0 ? kHalo : 1], next[kRows];
  const auto load_first = [&](int batch) {
    auto rows = read_rows<io_t, kCount>(p.x, p.x_strides, batch, channel, start, p.in_len, in_end);
    static_for<kHalo>([&](auto i) { before[i.value] = rows.next(); });
    static_for<kRows>([&](auto i) { next[i.value] = rows.next(); });
    return rows;
  };
  auto rows = load_first(blockIdx.y);  // on their way while the taps are
  float taps[kTaps][kCount], bias[kCount];
  const BlockTaps<Config::kThreads, kTaps, kCount> block_taps = {s_taps};
  block_taps.load(p, block_channel, min(kCount << p.log2_lanes, p.channels - block_channel));
  __syncthreads();
  block_taps.read(taps, bias, lane * kCount);
  for (int batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
    if (batch != blockIdx.y) rows = load_first(batch);
    io_t* g_y = depthwise_row<io_t>(p.out, p.out_strides, batch, channel) + first * p.out_strides.time;
    float x[kHalo + kRows][kCount];
    static_for<kHalo>([&](auto i) { before[i.value].widen(x[i.value]); });
#pragma unroll 1
    for (int row = 0; row < end; row += kRows) {
      static_for<kRows>([&](auto i) {
        next[i.value].widen(x[kHalo + i.value]);
        next[i.value] = rows.next();
        float y[kCount];
        static_for<kCount>([&](auto c) {
          float sum = bias[c.value];
          static_for<kTaps>([&](auto j) { sum = fmaf(taps[j.value][c.value], x[i.value + j.value][c.value], sum); });
          y[c.value] = activate<Config>(sum);
        });
        if (row + i.value < end) V::narrow(y).store(g_y);
        g_y += p.out_strides.time;
      });
      static_for<kHalo>(
          [&](auto i) { static_for<kCount>([&](auto c) { x[i.value][c.value] = x[i.value + kRows][c.value]; }); });
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
  static constexpr bool kHasSilu = FFTCONV_HAS_SILU;
};
static_assert(sizeof(fftconv::DepthwiseParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads, FFTCONV_MIN_BLOCKS)
    depthwise_fwd(const __grid_constant__ fftconv::DepthwiseParams p) {
  if constexpr (Config::kAxis == fftconv::Axis::kTime) {
    fftconv::forward_in_time<Config>(p);
  } else {
    fftconv::forward_in_channels<Config>(p);
  }
}
