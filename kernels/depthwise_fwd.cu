// Short depthwise convolution of few taps, at the speed of memory: x is read once, y written once, 16 bytes a thread
// along the axis of unit stride (fewer where taps and points of more channels do not fit in registers, or rows of
// channels begin at fewer).
//
// BHL: a thread takes kRepeat vectors of a row, and reads the points around each out of L1; its taps are constants of
// the loops, so is the shift between input and output vectors, unless rows begin anywhere (kIsShifted): vectors are
// then those of the output. BLH: a thread takes kVector channels, and walks down in time with the last points in
// registers; the next kRows rows are on their way while it computes.
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
  const int first = ((tile * Config::kRepeat << p.log2_lanes) + lane) * kCount;
  float taps[kTaps];
  load_taps<kTaps>(taps, p, channel);
  const float bias = load_bias(p, channel);
  for (int batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
    const io_t* g_x = depthwise_row<io_t>(p.x, p.x_strides, batch, channel);
    io_t* g_y = depthwise_row<io_t>(p.out, p.out_strides, batch, channel);
    int begin = Config::kIsShifted ? first - misalignment<kCount>(g_y) : first;
    do {
      constexpr int kEnd = kCount - kPad + kTaps - 1;
      Window<io_t, kCount, -kPad, kEnd, Config::kIsShifted> x[Config::kRepeat];
      SequenceWindow<Config::kHasSeqIdx, -kPad, kEnd, Config::kIsShifted> sequences[Config::kRepeat];
      static_for<Config::kRepeat>([&](auto i) {
        const int point = begin + (i.value * kCount << p.log2_lanes);
        x[i.value].load(g_x, point, p.in_len);
        sequences[i.value].load(p, batch, point);
      });
      static_for<Config::kRepeat>([&](auto i) {
        x[i.value].widen();
        sequences[i.value].widen();
        float y[kCount];
        static_for<kCount>([&](auto t) {
          float sum = bias;
          static_for<kTaps>([&](auto j) {
            const int at = t.value + j.value - kPad;
            if (sequences[i.value].is_one(t.value, at)) sum = fmaf(taps[j.value], x[i.value].at(at), sum);
          });
          y[t.value] = sequences[i.value].is_padding(t.value) ? 0.f : activate<Config>(sum);
        });
        const int point = begin + (i.value * kCount << p.log2_lanes);
        store_vector<Config::kIsShifted>(Vector<io_t, kCount>::narrow(y), g_y, point, p.out_end);
      });
      // The few points by which vectors begin before the row are left for the first thread.
      begin += (Config::kRepeat * kCount << p.log2_lanes) * p.tiles;
    } while (Config::kIsShifted && begin < p.out_end);
  }
}

// A thread on its way down in time over the rows of kVector channels. Row r of those that it reads lies at r % kSlots,
// if need be after those before it were moved; with kIsRing none is, and the loop has no conditions but at the ends.
template <class Config>
struct ForwardWalk {
  using io_t = typename Config::io_t;
  using V = Vector<io_t, Config::kVector>;
  static constexpr int kCount = Config::kVector, kTaps = Config::kTaps, kRows = Config::kRepeat, kHalo = kTaps - 1;
  static constexpr int kSlots = Config::kIsRing ? kRows : kHalo + kRows;
  static_assert(kSlots >= kTaps, "all that an output sees has a place");
  float taps[kTaps][kCount], bias[kCount];
  float x[kSlots][kCount];
  V before[kHalo > 0 ? kHalo : 1], next[kRows];
  RowReader<io_t, kCount> rows;
  int ids[kSlots];  // sequence indices of these rows
  Vector<int, 1> before_ids[kHalo > 0 ? kHalo : 1], next_ids[kRows];
  RowReader<int, 1> id_rows;
  io_t* g_y;

  // Asks for the first rows, of `count` in all, from row `start` of the array on.
  FFTCONV_DEVICE void load_first(const DepthwiseParams& p, int batch, int channel, int start, int count) {
    rows = read_rows<io_t, kCount>(p.x, p.x_strides, batch, channel, start, p.in_len, count);
    static_for<kHalo>([&](auto i) { before[i.value] = rows.next(); });
    static_for<kRows>([&](auto i) { next[i.value] = rows.next(); });
    if constexpr (Config::kHasSeqIdx) {
      id_rows = {p.seq_idx + batch * p.seq_stride + start, 1, start, p.in_len, count};
      static_for<kHalo>([&](auto i) { before_ids[i.value] = id_rows.next(); });
      static_for<kRows>([&](auto i) { next_ids[i.value] = id_rows.next(); });
    }
  }

  // kRows outputs from `row` on, of which those before `end` are stored. kIsInside: all of them, and the next rows are
  // all there.
  template <bool kIsInside>
  FFTCONV_DEVICE void step(const DepthwiseParams& p, int row, int end) {
    static_for<kRows>([&](auto i) {
      next[i.value].widen(x[(i.value + kHalo) % kSlots]);
      next[i.value] = rows.template next<kIsInside>();
      constexpr int kLast = (i.value + kHalo) % kSlots;  // the output's own: the convolution is causal
      if constexpr (Config::kHasSeqIdx) {
        ids[kLast] = next_ids[i.value].word;
        next_ids[i.value] = id_rows.template next<kIsInside>();
      }
      float y[kCount];
      static_for<kCount>([&](auto c) {
        float sum = bias[c.value];
        static_for<kTaps>([&](auto j) {
          const int at = (i.value + j.value) % kSlots;
          const bool is_seen = !Config::kHasSeqIdx || ids[at] == ids[kLast];
          if (is_seen) sum = fmaf(taps[j.value][c.value], x[at][c.value], sum);
        });
        y[c.value] = Config::kHasSeqIdx && ids[kLast] < 0 ? 0.f : activate<Config>(sum);
      });
      if (kIsInside || row + i.value < end) V::narrow(y).store(g_y);
      g_y += p.out_strides.time;
    });
    if constexpr (!Config::kIsRing) {
      static_for<kHalo>([&](auto i) {
        static_for<kCount>([&](auto c) { x[i.value][c.value] = x[i.value + kRows][c.value]; });
        if constexpr (Config::kHasSeqIdx) ids[i.value] = ids[i.value + kRows];
      });
    }
  }

  // `end` outputs from `g_first` on.
  FFTCONV_DEVICE void run(const DepthwiseParams& p, io_t* g_first, int end, int last_inside) {
    g_y = g_first;
    static_for<kHalo>([&](auto i) {
      before[i.value].widen(x[i.value]);
      if constexpr (Config::kHasSeqIdx) ids[i.value] = before_ids[i.value].word;
    });
#pragma unroll 1
    for (int row = 0; row < end; row += kRows) {
      if (Config::kIsRing && row <= last_inside) {
        step<true>(p, row, end);
      } else {
        step<false>(p, row, end);
      }
    }
  }
};

template <class Config>
FFTCONV_DEVICE void forward_in_channels(const DepthwiseParams& p) {
  using io_t = typename Config::io_t;
  using Walk = ForwardWalk<Config>;
  constexpr int kCount = Config::kVector, kHalo = Walk::kHalo;
  const int lane = threadIdx.x & ((1 << p.log2_lanes) - 1), slot = threadIdx.x >> p.log2_lanes;
  const unsigned group = blockIdx.x / p.tiles, tile = blockIdx.x - group * p.tiles;
  const int block_channel = (tile << p.log2_lanes) * kCount, channel = block_channel + lane * kCount;
  const int first = (group * (Config::kThreads >> p.log2_lanes) + slot) * p.tile_len, start = first - p.pad;
  // Threads with nothing to do meet the others at the barrier.
  const int end = channel < p.channels ? min(p.tile_len, p.out_end - first) : 0, in_end = end > 0 ? end + kHalo : 0;
  const int last_inside = min(end, p.in_len - start - kHalo) - 2 * Walk::kRows;
  Walk walk;
  walk.load_first(p, blockIdx.y, channel, start, in_end);  // on their way while the taps are
  const BlockTaps<Config::kThreads, Config::kTaps, kCount> block_taps = {s_taps};
  block_taps.load(p, block_channel, min(kCount << p.log2_lanes, p.channels - block_channel));
  __syncthreads();
  block_taps.read(walk.taps, walk.bias, lane * kCount);
  for (int batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
    if (batch != blockIdx.y) walk.load_first(p, batch, channel, start, in_end);
    io_t* g_y = depthwise_row<io_t>(p.out, p.out_strides, batch, channel) + first * p.out_strides.time;
    walk.run(p, g_y, end, last_inside);
  }
}

}  // namespace fftconv

struct Config {
  using io_t = FFTCONV_IO_T;
  static constexpr fftconv::Axis kAxis = static_cast<fftconv::Axis>(FFTCONV_AXIS);
  static constexpr int kTaps = FFTCONV_TAPS, kPad = FFTCONV_PAD;  // kPad only where neighbours lie along time
  static constexpr int kVector = FFTCONV_VECTOR;                  // elements of unit stride that a thread takes
  static constexpr int kRepeat = FFTCONV_REPEAT;                  // of these at a time
  static constexpr bool kIsRing = FFTCONV_IS_RING;                // see ForwardWalk
  static constexpr int kThreads = FFTCONV_THREADS;
  static constexpr bool kIsShifted = FFTCONV_IS_SHIFTED;  // rows begin at no multiple of a vector
  static constexpr bool kHasSilu = FFTCONV_HAS_SILU;
  static constexpr bool kHasSeqIdx = FFTCONV_HAS_SEQ_IDX;
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
