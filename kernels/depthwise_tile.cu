// Short depthwise convolution by way of shared memory: any number of taps, any padding, length and alignment, sequence
// indices, states. Beside outputs it makes dz = dy * slope(z) and, with the taps reversed, the gradient of x.
//
// A block loads a tile of points and taps - 1 more. A thread computes 16 outputs in a row of one channel: it slides
// over the taps with 32 points in registers, so 16 taps take 8 reads of 16 bytes and 256 multiply-adds. The outputs go
// back through shared memory, so that neighbours of unit stride are written together.
#include "depthwise_tile.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

enum class Epilogue { kNone, kSilu, kSlope };

// 16 or fewer taps of a thread's 16 outputs, of which low and high hold the points: sums[i] += tap[j] * point[i + j].
template <class Config, bool kIsWhole>
FFTCONV_DEVICE void add_taps(float* sums, const float* low, const float* high, const float* s_taps, int taps,
                             const int* low_ids, const int* high_ids, const int* own_ids) {
  static_for<kRun / 4>([&](auto quad) {
    constexpr int kFirst = 4 * quad.value;
    float tap[4];
    read_run<4>(tap, s_taps + kFirst);
    static_for<4>([&](auto k) {
      constexpr int j = kFirst + k.value;
      if (!kIsWhole && j >= taps) return;  // not a tap of zero: the point there might not be finite
      static_for<kRun>([&](auto i) {
        constexpr int at = i.value + j;
        const float x = at < kRun ? low[at % kRun] : high[at % kRun];
        if constexpr (Config::kHasSeqIdx) {
          const int id = at < kRun ? low_ids[at % kRun] : high_ids[at % kRun];
          if (id == own_ids[i.value]) sums[i.value] = fmaf(tap[k.value], x, sums[i.value]);
        } else {
          sums[i.value] = fmaf(tap[k.value], x, sums[i.value]);
        }
      });
    });
  });
}

template <class Config>
FFTCONV_DEVICE void correlate(float* sums, const DepthwiseParams& p, const float* s_row, const float* s_taps,
                              const int* s_ids) {
  float x[2][kRun];
  int ids[2][kRun], own_ids[kRun];
  read_run<kRun>(x[0], s_row);
  if constexpr (Config::kHasSeqIdx) {
    const int run = threadIdx.x % Config::kRuns * kRun;
    read_run<kRun>(ids[0], s_ids + gapped(run));
    static_for<kRun>([&](auto i) { own_ids[i.value] = s_ids[gapped(run + i.value + p.pad)]; });
  }
  const auto step = [&](int tap, int low, int high) {
    const int next = gapped(tap + kRun);
    read_run<kRun>(x[high], s_row + next);
    if constexpr (Config::kHasSeqIdx) {
      read_run<kRun>(ids[high], s_ids + gapped(threadIdx.x % Config::kRuns * kRun) + next);
    }
    if (tap + kRun <= p.width) {
      add_taps<Config, true>(sums, x[low], x[high], s_taps + tap, kRun, ids[low], ids[high], own_ids);
    } else {
      add_taps<Config, false>(sums, x[low], x[high], s_taps + tap, p.width - tap, ids[low], ids[high], own_ids);
    }
  };
#pragma unroll 1
  for (int tap = 0; tap < p.width; tap += 2 * kRun) {
    step(tap, 0, 1);
    if (tap + kRun < p.width) step(tap + kRun, 1, 0);
  }
}

// What becomes of an output of the correlation; `dy` is the gradient there.
template <class Config>
FFTCONV_DEVICE float finish(float v, float dy) {
  if constexpr (Config::kEpilogue == Epilogue::kSilu) return silu(v);
  if constexpr (Config::kEpilogue == Epilogue::kSlope) return dy * silu_slope(v);
  return v;
}

// Where a tile of outputs goes.
template <class Config>
struct TileTarget {
  using out_t = typename Config::out_t;
  using dy_t = typename Config::dy_t;
  using U = Unit<Config::kAxis, Config::kChannels, Config::kVector, Config::kPoints>;
  const DepthwiseParams& p;
  const float* s_tile;
  const int* s_ids;
  int batch, channel, start;

  FFTCONV_DEVICE bool is_padding(int point) const { return Config::kHasSeqIdx && s_ids[gapped(point + p.pad)] < 0; }

  // One output, at the edge of an array, of the state, or where the gradient of the final state is added.
  FFTCONV_DEVICE void store_one(int own, int point) const {
    const int all = channel + own, time = start + point;
    if (all >= p.channels || !is_inside(point, Config::kPoints) || time < p.out_begin || time >= p.out_end) return;
    float v = 0.f;
    if (!is_padding(point)) {
      float dy = 0.f;
      if constexpr (Config::kEpilogue == Epilogue::kSlope) dy = value_at<dy_t>(p.dy, p.dy_strides, all, time);
      v = finish<Config>(s_tile[own * Config::kPitch + gapped(point)], dy);
    }
    const int last = time - p.in_len + p.width - 1;  // of the last points: of a causal convolution, as many as outputs
    if (p.d_final != nullptr && last >= 0) v += value_at<dy_t>(p.d_final, p.d_final_strides, all, last);
    if (time >= 0) {
      depthwise_row<out_t>(p.out, p.out_strides, batch, all)[time * p.out_strides.time] = Storage<out_t>::narrow(v);
    } else {
      depthwise_row<out_t>(p.d_state, p.d_state_strides, batch, all)[(time + p.width - 1) * p.d_state_strides.time] =
          Storage<out_t>::narrow(v);
    }
  }

  // Neighbours that are all there.
  FFTCONV_DEVICE void store_vector(const U& unit) const {
    const int all = channel + unit.channel, time = start + unit.point;
    float values[Config::kVector], dy[Config::kVector] = {};
    if constexpr (Config::kEpilogue == Epilogue::kSlope) {
      using V = Vector<dy_t, Config::kVector>;
      const dy_t* g_dy = depthwise_row<dy_t>(p.dy, p.dy_strides, batch, all) + time * p.dy_strides.time;
      const bool is_aligned = !U::kIsTime || misalignment<Config::kVector>(g_dy) == 0;  // as the output is
      (is_aligned ? V::load_if(true, g_dy) : V::load_inside(g_dy, 0, Config::kVector)).widen(dy);
    }
    unit.template for_each<Config::kPitch>(
        [&](auto k, int place) { values[k.value] = finish<Config>(s_tile[place], dy[k.value]); });
    if constexpr (Config::kHasSeqIdx) {
      static_for<Config::kVector>([&](auto k) {
        if (is_padding(unit.point_of(k.value))) values[k.value] = 0.f;
      });
    }
    out_t* g_out = depthwise_row<out_t>(p.out, p.out_strides, batch, all) + time * p.out_strides.time;
    Vector<out_t, Config::kVector>::narrow(values).store(g_out);
  }

  FFTCONV_DEVICE void store() const {
    // The last points, where there is a gradient to add, are taken one by one.
    const int end = p.d_final == nullptr ? p.out_end : min(p.out_end, p.in_len - p.width + 1);
    const out_t* g_tile = depthwise_row<out_t>(p.out, p.out_strides, batch, channel) + start * p.out_strides.time;
#pragma unroll 2
    for (int index = threadIdx.x; index < U::kCount; index += Config::kThreads) {
      const U unit(index, g_tile, p.out_strides);
      if (unit.is_inside(start, p.channels - channel, end)) {
        store_vector(unit);
        continue;
      }
#pragma unroll 1
      for (int k = 0; k < Config::kVector; k++) store_one(unit.channel_of(k), unit.point_of(k));
    }
  }

 private:
  template <class io_t>
  FFTCONV_DEVICE float value_at(const void* g_array, const DepthwiseStrides& strides, int all, int time) const {
    return Storage<io_t>::widen(depthwise_row<io_t>(g_array, strides, batch, all)[time * strides.time]);
  }
};

template <class Config>
FFTCONV_DEVICE void convolve_tile(const DepthwiseParams& p, float* s_base) {
  using in_t = typename Config::in_t;
  float* s_tile = s_base;                                       // [kChannels][kPitch]
  float* s_taps = s_tile + Config::kChannels * Config::kPitch;  // [kChannels][kTaps + 4]
  int* s_ids = reinterpret_cast<int*>(s_taps + Config::kChannels * (Config::kTaps + 4));
  const unsigned group = blockIdx.x / p.tiles, tile = blockIdx.x - group * p.tiles;
  const bool is_time = Config::kAxis == Axis::kTime;
  const int channel = (is_time ? group : tile) * Config::kChannels;
  const int start = floor_divide(p.out_begin, kRun) * kRun + static_cast<int>(is_time ? tile : group) * Config::kPoints;
  for (int i = threadIdx.x; i < Config::kChannels * Config::kTaps; i += Config::kThreads) {
    const int own = i / Config::kTaps, tap = i % Config::kTaps;
    const bool is_there = channel + own < p.channels && tap < p.width;
    s_taps[own * (Config::kTaps + 4) + tap] = is_there ? load_tap(p, channel + own, tap) : 0.f;
  }
  const int own = threadIdx.x / Config::kRuns, run = threadIdx.x % Config::kRuns * kRun;
  const float bias = channel + own < p.channels ? load_bias(p, channel + own) : 0.f;
  for (int batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
    TileSource<in_t> source(p.x, p.x_strides, batch, channel, p.channels, p.in_len);
    if (p.state != nullptr) {
      source.g_state = depthwise_row<in_t>(p.state, p.state_strides, batch, channel);
      source.state_strides = p.state_strides;
      source.state_len = p.width - 1;
    }
    load_tile<Config::kAxis, Config::kChannels, Config::kVector, Config::kSpan, Config::kPitch, Config::kThreads>(
        s_tile, source, start - p.pad);
    if constexpr (Config::kHasSeqIdx) load_ids<Config::kSpan, Config::kThreads>(s_ids, p, batch, start - p.pad);
    __syncthreads();
    float sums[kRun];
    static_for<kRun>([&](auto i) { sums[i.value] = bias; });
    float* s_row = s_tile + own * Config::kPitch + gapped(run);
    correlate<Config>(sums, p, s_row, s_taps + own * (Config::kTaps + 4), s_ids);
    __syncthreads();
    static_for<kRun / 4>([&](auto i) {
      constexpr int k = 4 * i.value;
      reinterpret_cast<float4*>(s_row)[i.value] = make_float4(sums[k], sums[k + 1], sums[k + 2], sums[k + 3]);
    });
    __syncthreads();
    TileTarget<Config>{p, s_tile, s_ids, batch, channel, start}.store();
    __syncthreads();
  }
}

}  // namespace fftconv

struct Config {
  using in_t = FFTCONV_IN_T;
  using dy_t = FFTCONV_DY_T;
  using out_t = FFTCONV_OUT_T;
  static constexpr fftconv::Axis kAxis = static_cast<fftconv::Axis>(FFTCONV_AXIS);
  static constexpr fftconv::Epilogue kEpilogue = static_cast<fftconv::Epilogue>(FFTCONV_EPILOGUE);
  static constexpr bool kHasSeqIdx = FFTCONV_HAS_SEQ_IDX;
  static constexpr int kTaps = FFTCONV_TAPS;      // width, rounded up to a multiple of 16
  static constexpr int kVector = FFTCONV_VECTOR;  // elements of unit stride, accessed together
  static constexpr int kChannels = FFTCONV_CHANNELS, kPoints = FFTCONV_POINTS;  // of a tile
  static constexpr int kRuns = kPoints / fftconv::kRun;                         // of a channel
  static constexpr int kThreads = kChannels * kRuns;
  static constexpr int kSpan = kPoints + kTaps, kPitch = fftconv::gapped(kSpan);
  static constexpr int kSharedBytes = 4 * (kChannels * (kPitch + kTaps + 4) + (kHasSeqIdx ? kPitch : 0));
};
static_assert(Config::kSharedBytes == FFTCONV_SHARED_BYTES, "depthwise_plan.py and depthwise_tile.cu disagree");
static_assert(sizeof(fftconv::DepthwiseParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads, FFTCONV_MIN_BLOCKS)
    depthwise_tile(const __grid_constant__ fftconv::DepthwiseParams p) {
  fftconv::convolve_tile<Config>(p, reinterpret_cast<float*>(s_dynamic));
}
