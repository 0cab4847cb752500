// Gradients of the taps and the bias of a short depthwise convolution, of any number of taps and all that
// depthwise_tile takes: d_weight[j] = sum of dz[t] * x[t + j - pad], d_bias = sum of dz.
//
// A block walks over a chunk of tiles with those of x and dz in shared memory. A thread takes 8 taps and a slice of the
// points of one channel: it slides over the points with 16 of x in registers, so 8 points take 4 reads of 16 bytes and
// 64 multiply-adds. At the end the slices are added up in their order; depthwise_reduce adds up the chunks.
// gridDim.y: blocks of taps.
#include "depthwise_tile.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

constexpr int kStep = 8;  // taps of a thread, and points at a time

struct TapSums {
  float taps[kStep], bias;
};

// Eight points of dz: sums[j] += dz[i] * x[i + j]. Unless kIsWhole only the first `count` are there.
template <bool kHasSeqIdx, bool kIsWhole>
FFTCONV_DEVICE void add_products(TapSums& sums, const float* low, const float* high, const float* dz, int count,
                                 const int* low_ids, const int* high_ids, const int* dz_ids) {
  static_for<kStep>([&](auto i) {
    constexpr int kFirst = i.value;
    if (!kIsWhole && i.value >= count) return;  // not a dz of zero: x there might not be finite
    if (kHasSeqIdx && dz_ids[i.value] < 0) return;
    static_for<kStep>([&](auto j) {
      constexpr int at = kFirst + j.value;
      const float x = at < kStep ? low[at % kStep] : high[at % kStep];
      if constexpr (kHasSeqIdx) {
        if ((at < kStep ? low_ids[at % kStep] : high_ids[at % kStep]) != dz_ids[i.value]) return;
      }
      sums.taps[j.value] = fmaf(dz[i.value], x, sums.taps[j.value]);
    });
    sums.bias += dz[i.value];
  });
}

// Where a block's arrays lie in shared memory, and which part of them is a thread's.
template <class Config>
struct TapsBlock {
  float *s_x, *s_dz;        // [kChannels][kPitch], [kChannels][kDzPitch]
  int *s_x_ids, *s_dz_ids;  // [kPitch], [kDzPitch]
  int group, slice, own;    // of taps, of points; channel of the tile

  FFTCONV_DEVICE explicit TapsBlock(float* s_base)
      : s_x(s_base),
        s_dz(s_x + Config::kChannels * Config::kPitch),
        s_x_ids(reinterpret_cast<int*>(s_dz + Config::kChannels * Config::kDzPitch)),
        s_dz_ids(s_x_ids + Config::kPitch),
        group(threadIdx.x % Config::kGroups),
        slice(threadIdx.x / Config::kGroups % Config::kSlices),
        own(threadIdx.x / (Config::kGroups * Config::kSlices)) {}

  // `count`: points of the tile for which there is a dz.
  FFTCONV_DEVICE void add_tile(TapSums& sums, int count) const {
    float x[2][kStep], dz[kStep];
    int ids[2][kStep], dz_ids[kStep];
    const int first = slice * Config::kSlicePoints;
    const auto read_x = [&](int half, int point) {
      read_run<kStep>(x[half], s_x + own * Config::kPitch + gapped(point + group * kStep));
      if constexpr (Config::kHasSeqIdx) read_run<kStep>(ids[half], s_x_ids + gapped(point + group * kStep));
    };
    const auto step = [&](int low, int high, int point) {
      read_x(high, point + kStep);
      read_run<kStep>(dz, s_dz + own * Config::kDzPitch + gapped(point));
      if constexpr (Config::kHasSeqIdx) read_run<kStep>(dz_ids, s_dz_ids + gapped(point));
      if (point + kStep <= count) {
        add_products<Config::kHasSeqIdx, true>(sums, x[low], x[high], dz, kStep, ids[low], ids[high], dz_ids);
      } else {
        add_products<Config::kHasSeqIdx, false>(sums, x[low], x[high], dz, count - point, ids[low], ids[high], dz_ids);
      }
    };
    read_x(0, first);
#pragma unroll 1
    for (int point = first; point < first + Config::kSlicePoints; point += 2 * kStep) {
      step(0, 1, point);
      if (Config::kSlicePoints > kStep) step(1, 0, point + kStep);
    }
  }

  // Adds up the slices and leaves the sums of the block's channels.
  FFTCONV_DEVICE void leave(const DepthwiseParams& p, const TapSums& sums, int chunk, int channel,
                            int first_tap) const {
    constexpr int kTaps = Config::kGroups * kStep, kRows = Config::kChannels * (kTaps + 1);
    float* s_own = s_x + slice * kRows + own * (kTaps + 1);  // [slices][kChannels][kTaps + 1]
    static_for<kStep>([&](auto j) { s_own[group * kStep + j.value] = sums.taps[j.value]; });
    if (group == 0) s_own[kTaps] = sums.bias;
    __syncthreads();
    for (int row = threadIdx.x; row < kRows; row += Config::kThreads) {
      const int target = channel + row / (kTaps + 1), index = row % (kTaps + 1);
      const int tap = index < kTaps ? first_tap + index : p.width;
      if (target >= p.channels || (index < kTaps ? tap >= p.width : first_tap > 0)) continue;
      float total = 0.f;
      for (int i = 0; i < Config::kSlices; i++) total += s_x[i * kRows + row];
      p.sums[(static_cast<long long>(chunk) * (p.width + 1) + tap) * p.channels + target] = total;
    }
  }
};

template <class Config>
FFTCONV_DEVICE void differentiate_taps(const DepthwiseParams& p, float* s_base) {
  using in_t = typename Config::in_t;
  const TapsBlock<Config> block(s_base);
  const unsigned group = blockIdx.x / p.chunks;
  const int chunk = blockIdx.x - group * p.chunks, channel = group * Config::kChannels;
  const int first_tap = blockIdx.y * Config::kGroups * kStep;
  TapSums sums = {};
  const int last = min((chunk + 1) * p.chunk_items, p.batch * p.time_tiles);
  for (int item = chunk * p.chunk_items; item < last; item++) {
    const int batch = item / p.time_tiles, start = (item - batch * p.time_tiles) * Config::kPoints;
    TileSource<in_t> x(p.x, p.x_strides, batch, channel, p.channels, p.in_len);
    if (p.state != nullptr) {
      x.g_state = depthwise_row<in_t>(p.state, p.state_strides, batch, channel);
      x.state_strides = p.state_strides;
      x.state_len = p.width - 1;
    }
    const TileSource<typename Config::dy_t> dz(p.dy, p.dy_strides, batch, channel, p.channels, p.dy_len);
    const int x_start = start + first_tap - p.pad;
    load_tile<Config::kAxis, Config::kChannels, Config::kVector, Config::kSpan, Config::kPitch, Config::kThreads>(
        block.s_x, x, x_start);
    load_tile<Config::kAxis, Config::kChannels, Config::kVector, Config::kPoints, Config::kDzPitch, Config::kThreads>(
        block.s_dz, dz, start);
    if constexpr (Config::kHasSeqIdx) {
      load_ids<Config::kSpan, Config::kThreads>(block.s_x_ids, p, batch, x_start);
      load_ids<Config::kPoints, Config::kThreads>(block.s_dz_ids, p, batch, start);
    }
    __syncthreads();
    block.add_tile(sums, p.dy_len - start);
    __syncthreads();
  }
  block.leave(p, sums, chunk, channel, first_tap);
}

}  // namespace fftconv

struct Config {
  using in_t = FFTCONV_IN_T;
  using dy_t = FFTCONV_DY_T;
  static constexpr fftconv::Axis kAxis = static_cast<fftconv::Axis>(FFTCONV_AXIS);
  static constexpr bool kHasSeqIdx = FFTCONV_HAS_SEQ_IDX;
  static constexpr int kGroups = FFTCONV_GROUPS;  // of 8 taps, in a block
  static constexpr int kVector = FFTCONV_VECTOR;  // elements of unit stride, accessed together
  static constexpr int kChannels = FFTCONV_CHANNELS, kPoints = FFTCONV_POINTS;  // of a tile
  static constexpr int kThreads = FFTCONV_THREADS;
  static constexpr int kSlices = kThreads / (kGroups * kChannels), kSlicePoints = kPoints / kSlices;
  static constexpr int kSpan = kPoints + (kGroups + 1) / 2 * 16;
  static constexpr int kPitch = fftconv::gapped(kSpan), kDzPitch = fftconv::gapped(kPoints);
  static constexpr int kRows = kChannels * (kPitch + kDzPitch);
  static constexpr int kSharedBytes = 4 * (kRows + (kHasSeqIdx ? kPitch + kDzPitch : 0));
  static_assert(kSlicePoints % fftconv::kStep == 0, "a slice is a number of steps");
  static_assert(kSlicePoints == fftconv::kStep || kSlicePoints % (2 * fftconv::kStep) == 0, "steps go in pairs");
  static_assert(kThreads * (fftconv::kStep + 1) <= kRows, "the sums of all threads fit in place of the tiles");
};
static_assert(Config::kSharedBytes == FFTCONV_SHARED_BYTES, "depthwise_plan.py and depthwise_taps.cu disagree");
static_assert(sizeof(fftconv::DepthwiseParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads, FFTCONV_MIN_BLOCKS)
    depthwise_taps(const __grid_constant__ fftconv::DepthwiseParams p) {
  fftconv::differentiate_taps<Config>(p, reinterpret_cast<float*>(s_dynamic));
}
