// Short depthwise convolution of many taps on tensor cores, of 16-bit arrays (sm_80 and later).
//
// Eight neighbouring outputs are a row of a product of matrices. With pad = 8 lead - shift and 0 <= shift < 8,
//   out[8 m + i] = sum over k of x[8 (m - lead) + k] * tap[k - i - shift],
// and row m + 1 of the left factor begins 8 points after row m, in shared memory as in the row of the array: a *chunk*
// of 8 points, 16 bytes, is what a lane addresses. A warp multiplies 16 chunks, 128 outputs, by kSteps x 16 taps at a
// time and adds up in float32. Taps of another type than x come as the sum of two numbers of its type (kIsSplit).
//
// Points that an output does not see meet taps of zero. Where that makes a sum that is no number, because such a point
// is not finite, the warp sums its outputs one by one.
//
// A block takes a few channels and walks over a chunk of tiles of their points. Its outputs of channels that lie side
// by side go back through shared memory, in the place of the points.
#include "depthwise.cuh"
#include "mma.cuh"

extern __shared__ float4 s_dynamic[];

namespace fftconv {

constexpr int kChunkPoints = 8, kChunkBytes = 16, kProductRows = 16;

// How the points before an output lie to the chunks.
struct Lead {
  int chunks, shift;
  FFTCONV_DEVICE explicit Lead(int pad)
      : chunks(-floor_divide(-pad, kChunkPoints)), shift(chunks * kChunkPoints - pad) {}
};

// The points of a tile in shared memory: [kChannels][kPitch] chunks. Where they come from arrays with channels side by
// side, neighbours of which a warp writes together, their chunks change places so that they meet in no bank.
template <class Config>
struct Chunks {
  static constexpr int kLanes = Config::kAxis == Axis::kChannel ? Config::kChannels / kChunkPoints : 1;
  char* s_values;

  FFTCONV_DEVICE char* at(int own, int chunk) const {
    const int swap = kLanes > 1 ? own / kChunkPoints % kLanes * (8 / kLanes) : 0;
    return s_values + (own * Config::kPitch + (chunk ^ swap)) * kChunkBytes;
  }
  // Points 2 pair and 2 pair + 1.
  FFTCONV_DEVICE unsigned& pair(int own, int pair) const {
    return reinterpret_cast<unsigned*>(at(own, pair / 4))[pair % 4];
  }
};

// Calls body(Int<i>, index) for up to kBatch indices of a thread below `count` at a time, then after(...) for the same.
template <int kBatch, int kThreads, class Body, class After>
FFTCONV_DEVICE void in_batches(int count, Body body, After after) {
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += kBatch * kThreads) {
    static_for<kBatch>([&](auto i) { body(i, first + i.value * kThreads); });
    static_for<kBatch>([&](auto i) {
      if (first + i.value * kThreads < count) after(i, first + i.value * kThreads);
    });
  }
}

// Plain loads, for the reason that load_as tells.
template <class io_t>
FFTCONV_DEVICE uint4 load_chunk(bool condition, const io_t* g_values) {
  uint4 v = {};
  if (condition) v = *reinterpret_cast<const uint4*>(g_values);
  return v;
}

// A tile whose arrays have points side by side. Rows that begin anywhere are shifted in registers.
template <class Config>
FFTCONV_DEVICE void load_in_time(const Chunks<Config>& tile, const DepthwiseParams& p, int batch, int channel,
                                 int start) {
  using io_t = typename Config::io_t;
  constexpr int kBatch = Config::kIsShifted ? 4 : 8;
  const io_t* g_x = depthwise_row<io_t>(p.x, p.x_strides, batch, channel);
  Window<io_t, kChunkPoints, 0, kChunkPoints, Config::kIsShifted> chunks[kBatch];
  in_batches<kBatch, Config::kThreads>(
      Config::kChannels * Config::kChunks,
      [&](auto i, int index) {
        const int own = index / Config::kChunks, time = start + index % Config::kChunks * kChunkPoints;
        const bool is_there = own < Config::kChannels && channel + own < p.channels;
        chunks[i.value].load(g_x + own * p.x_strides.channel, time, is_there ? p.in_len : 0);
      },
      [&](auto i, int index) {
        *reinterpret_cast<uint4*>(tile.at(index / Config::kChunks, index % Config::kChunks)) =
            chunks[i.value].take_first().word;
      });
}

// Two points of eight channels, as they lie in the array (a row for each point) and in shared memory (a word for each
// channel).
struct PairOfRows {
  uint4 first, second;

  template <class Body>
  FFTCONV_DEVICE void split(Body body) const {
    static_for<4>([&](auto i) {
      const unsigned low = word(first, i.value), high = word(second, i.value);
      body(Int<2 * i.value>{}, (low & 0xffffu) | high << 16);
      body(Int<2 * i.value + 1>{}, low >> 16 | (high & 0xffff0000u));
    });
  }
  // body(Int<channel>) is its word.
  template <class Body>
  FFTCONV_DEVICE void join(Body body) {
    static_for<4>([&](auto i) {
      const unsigned even = body(Int<2 * i.value>{}), odd = body(Int<2 * i.value + 1>{});
      word(first, i.value) = (even & 0xffffu) | odd << 16;
      word(second, i.value) = even >> 16 | (odd & 0xffff0000u);
    });
  }

 private:
  template <class Quad>
  FFTCONV_DEVICE static auto& word(Quad& v, int index) {
    return index == 0 ? v.x : index == 1 ? v.y : index == 2 ? v.z : v.w;
  }
};

// Where the pair of points with some index lies, of a tile whose arrays have channels side by side.
template <class Config>
struct PairPlace {
  int own, pair;  // first of eight channels; of points
  FFTCONV_DEVICE explicit PairPlace(int index)
      : own(index % Chunks<Config>::kLanes * kChunkPoints), pair(index / Chunks<Config>::kLanes) {}
};

template <class Config>
FFTCONV_DEVICE void load_in_channels(const Chunks<Config>& tile, const DepthwiseParams& p, int batch, int channel,
                                     int start) {
  using io_t = typename Config::io_t;
  constexpr int kBatch = 4;
  const io_t* g_x = depthwise_row<io_t>(p.x, p.x_strides, batch, channel);
  PairOfRows rows[kBatch];
  in_batches<kBatch, Config::kThreads>(
      Chunks<Config>::kLanes * Config::kChunks * kChunkPoints / 2,
      [&](auto i, int index) {
        const PairPlace<Config> place(index);
        const int time = start + 2 * place.pair;
        const auto load = [&](int at) {
          const bool is_there = channel + place.own < p.channels && at >= 0 && at < p.in_len;
          return load_chunk(is_there, g_x + place.own + at * p.x_strides.time);
        };
        const bool is_there = place.pair < Config::kChunks * kChunkPoints / 2;
        rows[i.value].first = load(is_there ? time : -1);
        rows[i.value].second = load(is_there ? time + 1 : -1);
      },
      [&](auto i, int index) {
        const PairPlace<Config> place(index);
        rows[i.value].split([&](auto c, unsigned word) { tile.pair(place.own + c.value, place.pair) = word; });
      });
}

// Each thread takes the places of load_in_channels, so that it alone reads what it then overwrites.
template <class Config>
FFTCONV_DEVICE void store_in_channels(const Chunks<Config>& tile, const DepthwiseParams& p, int batch, int channel,
                                      int start) {
  using io_t = typename Config::io_t;
  io_t* g_y = depthwise_row<io_t>(p.out, p.out_strides, batch, channel);
#pragma unroll 2
  for (int index = threadIdx.x; index < Chunks<Config>::kLanes * Config::kPoints / 2; index += Config::kThreads) {
    const PairPlace<Config> place(index);
    const int time = start + 2 * place.pair;
    if (channel + place.own >= p.channels || time >= p.out_end) continue;
    PairOfRows rows;
    rows.join([&](auto c) { return tile.pair(place.own + c.value, place.pair); });
    io_t* g_first = g_y + place.own + time * p.out_strides.time;
    *reinterpret_cast<uint4*>(g_first) = rows.first;
    if (time + 1 < p.out_end) *reinterpret_cast<uint4*>(g_first + p.out_strides.time) = rows.second;
  }
}

// The taps of the block's channels in shared memory. A lane needs neighbours from an even or an odd one on, by its
// column of the right factor, so they lie there twice: [kChannels][kParts][2][2 kWords], entry v of the first copy
// tap[v - 8 - shift], of the second the one after.
template <class Config>
struct Taps {
  using io_t = typename Config::io_t;
  using S = Storage<io_t>;
  static constexpr int kEntries = 2 * Config::kWords;
  io_t* s_values;
  float* s_factors;  // [kChannels]: of the sums

  // By a warp.
  FFTCONV_DEVICE void lay_out(const DepthwiseParams& p, int own, int channel, int shift) const {
    constexpr int kTurns = (kEntries + 31) / 32;
    const int lane = threadIdx.x % 32;
    float taps[kTurns], largest = 0.f;
    static_for<kTurns>([&](auto i) {
      const int tap = lane + 32 * i.value - kChunkPoints - shift;
      taps[i.value] = channel < p.channels && tap >= 0 && tap < p.width ? load_tap(p, channel, tap) : 0.f;
      largest = fmaxf(largest, fabsf(taps[i.value]));
    });
    float scale = 1.f;
    if constexpr (Config::kIsScaled) {
      for (int delta = 16; delta > 0; delta /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, delta));
      // The power of two that brings the largest tap to [2^14, 2^15): what halves hold of it, twice, is exact to 2^-22.
      const int exponent = __float_as_int(largest) >> 23;
      if (exponent < 255) scale = __int_as_float(min(max(127 + 14 + 127 - exponent, 1), 253) << 23);
    }
    if (lane == 0) s_factors[own] = 1.f / scale;
    static_for<kTurns>([&](auto i) {
      const int entry = lane + 32 * i.value;
      if (entry >= kEntries) return;
      float rest = taps[i.value] * scale;
      static_for<Config::kParts>([&](auto part) {
        const io_t value = S::narrow(rest);
        rest -= S::widen(value);
        io_t* s_copies = s_values + (own * Config::kParts + part.value) * 2 * kEntries;
        s_copies[entry] = value;
        if (entry > 0) s_copies[kEntries + entry - 1] = value;
      });
    });
  }

  // The right factors of all steps: word 2 s + half of step s.
  FFTCONV_DEVICE void read(unsigned (&words)[Config::kParts][2 * Config::kSteps], int own) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    static_for<Config::kParts>([&](auto part) {
      const io_t* s_copy = s_values + ((own * Config::kParts + part.value) * 2 + g % 2) * kEntries;
      const unsigned* s_words = reinterpret_cast<const unsigned*>(s_copy) + (kChunkPoints + 2 * t - g) / 2;
      static_for<2 * Config::kSteps>([&](auto h) { words[part.value][h.value] = s_words[4 * h.value]; });
    });
  }
};

// d += a * b.
FFTCONV_DEVICE void add_product_of(__half, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  add_product(d, a, b0, b1);
}
FFTCONV_DEVICE void add_product_of(__nv_bfloat16, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  add_product_bfloat16(d, a, b0, b1);
}

// What a warp needs to compute the outputs of one channel of a tile.
template <class Config>
struct ChannelTile {
  using io_t = typename Config::io_t;
  using S = Storage<io_t>;
  static constexpr int kSpan = kProductRows * Config::kTiles;  // chunks of outputs that a warp takes at a time
  // Words of x that a lane holds for them: word c is points 2t and 2t + 1 of chunk c + g.
  static constexpr int kWords = kSpan - kProductRows / 2 + 2 * Config::kSteps;
  const Chunks<Config>& tile;
  const DepthwiseParams& p;
  int own, channel, shift;  // channel of the tile, and of all
  float factor, bias;

  // sums[2 i + j]: of points 2t + j of chunk first + g + 8 i, for each product.
  FFTCONV_DEVICE void multiply(float (&sums)[Config::kTiles][4],
                               const unsigned (&taps)[Config::kParts][2 * Config::kSteps], int first) const {
    const int lane = threadIdx.x % 32, row = first + lane / 8 + lane % 8;
    unsigned x[(kWords + 3) / 4][4];
    static_for<(kWords + 3) / 4>([&](auto i) { load_matrices(x[i.value], tile.at(own, row + 4 * i.value)); });
    float parts[Config::kTiles][Config::kParts][4] = {};
    static_for<Config::kSteps>([&](auto s) {
      constexpr int kWord = 2 * s.value;
      static_for<Config::kTiles>([&](auto i) {
        constexpr int c = kProductRows * i.value + kWord, d = c + kProductRows / 2;
        const unsigned a[4] = {x[c / 4][c % 4], x[d / 4][d % 4], x[(c + 1) / 4][(c + 1) % 4],
                               x[(d + 1) / 4][(d + 1) % 4]};
        static_for<Config::kParts>([&](auto part) {
          add_product_of(io_t{}, parts[i.value][part.value], a, taps[part.value][kWord], taps[part.value][kWord + 1]);
        });
      });
    });
    static_for<Config::kTiles>([&](auto i) {
      static_for<4>([&](auto k) {
        float sum = parts[i.value][0][k.value];
        if constexpr (Config::kIsSplit) sum += parts[i.value][Config::kParts - 1][k.value];
        sums[i.value][k.value] = Config::kIsScaled ? sum * factor : sum;
      });
    });
  }

  // The same of one product, from the points that each output sees and no others.
  FFTCONV_DEVICE void sum_directly(float (&sums)[4], int first) const {
    const int lane = threadIdx.x % 32;
    static_for<4>([&](auto k) {
      const int chunk = first + lane / 4 + k.value / 2 * (kProductRows / 2), begin = 2 * (lane % 4) + k.value % 2;
      float sum = 0.f;
#pragma unroll 1
      for (int tap = 0; tap < p.width; tap++) {
        const int point = begin + tap + shift;
        const io_t* s_chunk = reinterpret_cast<const io_t*>(tile.at(own, chunk + point / kChunkPoints));
        sum = fmaf(load_tap(p, channel, tap), S::widen(s_chunk[point % kChunkPoints]), sum);
      }
      sums[k.value] = sum;
    });
  }

  // Two neighbouring outputs.
  FFTCONV_DEVICE unsigned finish(float a, float b) const {
    a += bias;
    b += bias;
    const auto pair = Config::kHasSilu ? S::narrow2(silu(a), silu(b)) : S::narrow2(a, b);
    return *reinterpret_cast<const unsigned*>(&pair);
  }

  FFTCONV_DEVICE void store(const float (&sums)[4], int first, int batch, int start) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    static_for<2>([&](auto i) {
      const int chunk = first + g + i.value * (kProductRows / 2), time = start + chunk * kChunkPoints + 2 * t;
      const unsigned word = finish(sums[2 * i.value], sums[2 * i.value + 1]);
      if constexpr (Config::kAxis == Axis::kTime) {
        io_t* g_y = depthwise_row<io_t>(p.out, p.out_strides, batch, channel);
        store_vector<Config::kIsShifted>(Vector<io_t, 2>{word}, g_y, time, p.out_end);
      } else {
        reinterpret_cast<unsigned*>(tile.at(own, chunk))[t] = word;
      }
    });
  }

  FFTCONV_DEVICE void convolve(const Taps<Config>& all_taps, int batch, int start) const {
    unsigned taps[Config::kParts][2 * Config::kSteps];
    all_taps.read(taps, own);
    const int chunks = min(Config::kPoints, p.out_end - start + kChunkPoints - 1) / kChunkPoints;
#pragma unroll 1
    for (int first = 0; first < chunks; first += kSpan) {
      float sums[Config::kTiles][4];
      multiply(sums, taps, first);
      static_for<Config::kTiles>([&](auto i) {
        const float (&s)[4] = sums[i.value];
        // Not a number, or infinite.
        const float difference = (s[0] - s[0]) + (s[1] - s[1]) + (s[2] - s[2]) + (s[3] - s[3]);
        if (__any_sync(0xffffffffu, difference != 0.f)) sum_directly(sums[i.value], first + kProductRows * i.value);
      });
      __syncwarp();  // outputs may go where other lanes have read points
      static_for<Config::kTiles>([&](auto i) { store(sums[i.value], first + kProductRows * i.value, batch, start); });
      __syncwarp();
    }
  }
};

template <class Config>
FFTCONV_DEVICE void convolve_tiles(const DepthwiseParams& p, char* s_base) {
  using io_t = typename Config::io_t;
  const Chunks<Config> tile = {s_base};
  char* s_taps = s_base + Config::kChannels * Config::kPitch * kChunkBytes;
  char* s_factors = s_taps + Config::kChannels * Config::kParts * Config::kWords * 8;
  const Taps<Config> taps = {reinterpret_cast<io_t*>(s_taps), reinterpret_cast<float*>(s_factors)};
  const Lead lead(p.pad);
  const unsigned group = blockIdx.x / p.chunks;
  const int chunk = blockIdx.x - group * p.chunks, channel = group * Config::kChannels, warp = threadIdx.x / 32;
  // A warp lays out the taps of the channels that it computes.
  for (int own = warp; own < Config::kChannels; own += Config::kThreads / 32) {
    taps.lay_out(p, own, channel + own, lead.shift);
  }
  const int last = min((chunk + 1) * p.chunk_items, p.batch * p.time_tiles);
  for (int item = chunk * p.chunk_items; item < last; item++) {
    const int batch = item / p.time_tiles, start = (item - batch * p.time_tiles) * Config::kPoints;
    const int x_start = start - lead.chunks * kChunkPoints;
    if constexpr (Config::kAxis == Axis::kTime) {
      load_in_time(tile, p, batch, channel, x_start);
    } else {
      load_in_channels(tile, p, batch, channel, x_start);
    }
    __syncthreads();
#pragma unroll 1
    for (int own = warp; own < Config::kChannels && channel + own < p.channels; own += Config::kThreads / 32) {
      const float bias = load_bias(p, channel + own);
      const ChannelTile<Config> row = {tile, p, own, channel + own, lead.shift, taps.s_factors[own], bias};
      row.convolve(taps, batch, start);
    }
    __syncthreads();
    if constexpr (Config::kAxis == Axis::kChannel) store_in_channels(tile, p, batch, channel, start);
  }
}

}  // namespace fftconv

struct Config {
  using io_t = FFTCONV_IO_T;
  static constexpr fftconv::Axis kAxis = static_cast<fftconv::Axis>(FFTCONV_AXIS);
  static constexpr int kSteps = FFTCONV_STEPS;  // of 16 taps, among them those of zero around the filter
  static constexpr int kTiles = FFTCONV_TILES;  // products of 128 outputs that a warp takes at a time
  static constexpr bool kIsSplit = FFTCONV_IS_SPLIT;
  static constexpr bool kIsScaled = FFTCONV_IS_SCALED;    // by a power of two for each channel
  static constexpr bool kIsShifted = FFTCONV_IS_SHIFTED;  // rows begin at no multiple of a chunk
  static constexpr bool kHasSilu = FFTCONV_HAS_SILU;
  static constexpr int kChannels = FFTCONV_CHANNELS, kPoints = FFTCONV_POINTS;  // of a tile
  static constexpr int kThreads = FFTCONV_THREADS;
  static constexpr int kChunks = kPoints / fftconv::kChunkPoints + 2 * kSteps;  // of a channel, that outputs see
  static constexpr int kPitch = (kChunks + 1 + 7) / 8 * 8;  // words are read four at a time, up to two chunks on
  static constexpr int kParts = kIsSplit ? 2 : 1, kWords = 8 * kSteps + 8;  // of a copy of the taps
  static constexpr int kSharedBytes =
      kChannels * (kPitch * fftconv::kChunkBytes + kParts * kWords * 8 + static_cast<int>(sizeof(float)));
  static_assert(kPoints % (128 * kTiles) == 0, "a warp takes whole products");
};
static_assert(Config::kSharedBytes == FFTCONV_SHARED_BYTES, "depthwise_kernels.py and depthwise_mma.cu disagree");
static_assert(sizeof(fftconv::DepthwiseParams) == FFTCONV_PARAMS_BYTES, "depthwise_params.py and .cuh disagree");

extern "C" __global__ void __launch_bounds__(Config::kThreads, FFTCONV_MIN_BLOCKS)
    depthwise_mma(const __grid_constant__ fftconv::DepthwiseParams p) {
  fftconv::convolve_tiles<Config>(p, reinterpret_cast<char*>(s_dynamic));
}
