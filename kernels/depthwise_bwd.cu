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
  static_for<kSums>([&](auto j) {
    const float v = sum_over_warp<Config>(sums[j.value], lanes);
    if ((lane & 31) == 0) s_sums[(threadIdx.x / min(lanes, 32)) * kSums + j.value] = v;
  });
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
  const int in_vectors = p.in_len / kCount, dy_vectors = p.dy_len / kCount;
  float taps[kTaps], sums[kTaps + 1] = {};
  load_taps<kTaps>(taps, p, channel);
  const float bias = load_bias(p, channel);
  const int last = min((chunk + 1) * p.chunk_items, p.batch * p.time_tiles);
  for (int item = chunk * p.chunk_items; item < last; item++) {
    const int batch = item / p.time_tiles, tile = item - batch * p.time_tiles;
    const int vector = ((tile << p.log2_lanes) + lane) * Config::kRepeat, point = vector * kCount;
    Window<io_t, kCount, (Config::kHasSilu ? kDzBegin : 0) - kPad,
           (Config::kHasSilu ? kDzEnd : kPoints) - kPad + kTaps - 1>
        x;
    Window<io_t, kCount, kDzBegin, kDzEnd> dy;
    if constexpr (Config::kHasSilu || Config::kHasSums) {
      x.load(depthwise_row<io_t>(p.x, p.x_strides, batch, channel), vector, in_vectors);
    }
    dy.load(depthwise_row<io_t>(p.dy, p.dy_strides, batch, channel), vector, dy_vectors);
    if constexpr (Config::kHasSilu || Config::kHasSums) x.widen();
    dy.widen();
    float dz[kDzEnd - kDzBegin];
    static_for<kDzEnd - kDzBegin>([&](auto i) {
      constexpr int t = i.value + kDzBegin;
      dz[i.value] = dy.at(t);
      if constexpr (Config::kHasSilu) {
        float z = bias;
        static_for<kTaps>([&](auto j) { z = fmaf(taps[j.value], x.at(t + j.value - kPad), z); });
        // Outputs that are not there have no z, which might not be finite.
        const bool is_there = static_cast<unsigned>(point + t) < static_cast<unsigned>(p.dy_len);
        dz[i.value] *= silu_slope(is_there ? z : 0.f);
      }
    });
    if constexpr (Config::kHasInput) {
      float dx[kPoints];
      static_for<kPoints>([&](auto i) {
        dx[i.value] = 0.f;
        static_for<kTaps>(
            [&](auto j) { dx[i.value] = fmaf(taps[j.value], dz[i.value - j.value + kPad - kDzBegin], dx[i.value]); });
      });
      io_t* g_dx = depthwise_row<io_t>(p.out, p.out_strides, batch, channel);
      static_for<Config::kRepeat>([&](auto i) {
        if (vector + i.value < in_vectors && own_channel < p.channels) {
          Vector<io_t, kCount>::narrow(dx + i.value * kCount)
              .store(g_dx + static_cast<long long>(vector + i.value) * kCount);
        }
      });
    }
    if constexpr (Config::kHasSums) {
      static_for<Config::kRepeat>([&](auto i) {
        constexpr int kFirst = i.value * kCount;
        if (vector + i.value >= dy_vectors) return;
        static_for<kCount>([&](auto k) {
          constexpr int t = kFirst + k.value;
          static_for<kTaps>(
              [&](auto j) { sums[j.value] = fmaf(dz[t - kDzBegin], x.at(t + j.value - kPad), sums[j.value]); });
          sums[kTaps] += dz[t - kDzBegin];
        });
      });
    }
  }
  if constexpr (Config::kHasSums) leave_sums_in_time<Config>(p, sums, chunk, own_channel);
}

// Of a step at time t = start of the tile + pad - (taps - 1) + row: the x and dy that come in, and where dx goes out,
// taps - 1 rows before x.
template <class Config>
FFTCONV_DEVICE void backward_in_channels(const DepthwiseParams& p) {
  using io_t = typename Config::io_t;
  using V = Vector<io_t, Config::kVector>;
  constexpr int kCount = Config::kVector, kTaps = Config::kTaps, kRows = Config::kRepeat, kHalo = kTaps - 1;
  const int lane = threadIdx.x & ((1 << p.log2_lanes) - 1), slot = threadIdx.x >> p.log2_lanes;
  const unsigned group = blockIdx.x / p.tiles, tile = blockIdx.x - group * p.tiles;
  const int channel = ((tile << p.log2_lanes) + lane) * kCount;
  const int chunk = group * (Config::kThreads >> p.log2_lanes) + slot;
  if (channel >= p.channels || chunk >= p.chunks) return;
  float taps[kTaps][kCount], bias[kCount], sums[kTaps + 1][kCount] = {};
  static_for<kCount>([&](auto c) {
    load_taps<kTaps, kCount>(taps[0] + c.value, p, channel + c.value);
    bias[c.value] = load_bias(p, channel + c.value);
  });
  const int last = min((chunk + 1) * p.chunk_items, p.batch * p.time_tiles);
  for (int item = chunk * p.chunk_items; item < last; item++) {
    const int batch = item / p.time_tiles, first = (item - batch * p.time_tiles) * p.tile_len;
    const int dy_start = first + p.pad - kHalo;
    const io_t* g_x = depthwise_row<io_t>(p.x, p.x_strides, batch, channel) + first * p.x_strides.time;
    const io_t* g_dy = depthwise_row<io_t>(p.dy, p.dy_strides, batch, channel) + dy_start * p.dy_strides.time;
    io_t* g_dx = depthwise_row<io_t>(p.out, p.out_strides, batch, channel) + (first - kHalo) * p.out_strides.time;
    const auto is_inside = [](int time, int length) {
      return static_cast<unsigned>(time) < static_cast<unsigned>(length);
    };
    const auto load_x = [&](int row) {
      return V::load_if(is_inside(first + row, p.in_len), g_x + row * p.x_strides.time);
    };
    const auto load_dy = [&](int row) {
      return V::load_if(is_inside(dy_start + row, p.dy_len), g_dy + row * p.dy_strides.time);
    };
    float x[kHalo + kRows][kCount], dz[kHalo + kRows][kCount] = {};
    static_for<kHalo>([&](auto i) { load_x(i.value - kHalo).widen(x[i.value]); });
    V next_x[kRows], next_dy[kRows];
    static_for<kRows>([&](auto i) {
      next_x[i.value] = load_x(i.value);
      next_dy[i.value] = load_dy(i.value);
    });
    const int rows = p.tile_len + kHalo;
#pragma unroll 1
    for (int row = 0; row < rows; row += kRows) {
      static_for<kRows>([&](auto i) {
        next_x[i.value].widen(x[kHalo + i.value]);
        next_dy[i.value].widen(dz[kHalo + i.value]);
      });
      if (row + kRows < rows) {
        static_for<kRows>([&](auto i) {
          next_x[i.value] = load_x(row + kRows + i.value);
          next_dy[i.value] = load_dy(row + kRows + i.value);
        });
      }
      static_for<kRows>([&](auto i) {
        const int t = dy_start + row + i.value;
        if constexpr (Config::kHasSilu) {
          static_for<kCount>([&](auto c) {
            float z = bias[c.value];
            static_for<kTaps>([&](auto j) { z = fmaf(taps[j.value][c.value], x[i.value + j.value][c.value], z); });
            // An output that is not there has no z, which might not be finite.
            dz[kHalo + i.value][c.value] *= silu_slope(is_inside(t, p.dy_len) ? z : 0.f);
          });
        }
        if constexpr (Config::kHasSums) {
          if (t >= first && t < min(first + p.tile_len, p.dy_len)) {
            static_for<kCount>([&](auto c) {
              const float own = dz[kHalo + i.value][c.value];
              static_for<kTaps>([&](auto j) {
                sums[j.value][c.value] = fmaf(own, x[i.value + j.value][c.value], sums[j.value][c.value]);
              });
              sums[kTaps][c.value] += own;
            });
          }
        }
        if constexpr (Config::kHasInput) {
          const int s = first + row + i.value - kHalo;
          if (s >= first && s < min(first + p.tile_len, p.in_len)) {
            float dx[kCount] = {};
            static_for<kCount>([&](auto c) {
              static_for<kTaps>([&](auto j) {
                dx[c.value] = fmaf(taps[j.value][c.value], dz[kHalo + i.value - j.value][c.value], dx[c.value]);
              });
            });
            V::narrow(dx).store(g_dx + (row + i.value) * p.out_strides.time);
          }
        }
      });
      static_for<kHalo>([&](auto i) {
        static_for<kCount>([&](auto c) {
          x[i.value][c.value] = x[i.value + kRows][c.value];
          dz[i.value][c.value] = dz[i.value + kRows][c.value];
        });
      });
    }
  }
  if constexpr (Config::kHasSums) {
    static_for<kTaps + 1>([&](auto j) {
      float* g_sums = p.sums + (static_cast<long long>(chunk) * (kTaps + 1) + j.value) * p.channels + channel;
      static_for<kCount>([&](auto c) { g_sums[c.value] = sums[j.value][c.value]; });
    });
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
