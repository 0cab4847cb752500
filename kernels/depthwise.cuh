// What the kernels of short depthwise convolutions share: vectors, taps of any dtype, the activation.
#pragma once
#include "depthwise_params.cuh"
#include "types.cuh"

namespace fftconv {

enum class Axis { kTime, kChannel };  // the one of unit stride: BHL, BLH

FFTCONV_DEVICE float load_tap(const DepthwiseParams& p, int channel, int tap) {
  const int index = p.is_reversed ? p.width - 1 - tap : tap;
  return load_as(p.weight_type, p.weight, channel * p.weight_stride + index * p.tap_stride);
}

// All taps of a channel, taps[j * kStride] the one of x[t + j - pad].
template <class weight_t, int kTaps, int kStride>
FFTCONV_DEVICE void load_taps_as(float* taps, const DepthwiseParams& p, int channel) {
  const weight_t* g_tap = static_cast<const weight_t*>(p.weight) + channel * p.weight_stride;
  if (p.is_reversed) g_tap += (kTaps - 1) * p.tap_stride;
  const long long step = p.is_reversed ? -p.tap_stride : p.tap_stride;
  static_for<kTaps>([&](auto j) { taps[j.value * kStride] = Storage<weight_t>::widen(g_tap[j.value * step]); });
}
template <int kTaps, int kStride = 1>
FFTCONV_DEVICE void load_taps(float* taps, const DepthwiseParams& p, int channel) {
  if (p.weight_type == kFloat32) return load_taps_as<float, kTaps, kStride>(taps, p, channel);
  if (p.weight_type == kFloat16) return load_taps_as<__half, kTaps, kStride>(taps, p, channel);
  load_taps_as<__nv_bfloat16, kTaps, kStride>(taps, p, channel);
}

FFTCONV_DEVICE float load_bias(const DepthwiseParams& p, int channel) {
  return p.bias == nullptr ? 0.f : load_as(p.bias_type, p.bias, channel * p.bias_stride);
}

// Taps and bias of kThreads x kCount channels that lie side by side, or fewer, in shared memory: [kTaps + 1][kPitch],
// the last row that of the bias. A block loads them together, since a channel's taps lie far from the next one's for
// threads that take kCount channels each.
template <int kThreads, int kTaps, int kCount>
struct BlockTaps {
  static constexpr int kPitch = kThreads * kCount + 4;  // taps of a channel, which are loaded together, in other banks
  float* s_values;

  // Channels from `channel` on, `count` of them.
  FFTCONV_DEVICE void load(const DepthwiseParams& p, int channel, int count) const {
    if (p.weight_type == kFloat32) {
      load_as_type<float>(p, channel, count);
    } else if (p.weight_type == kFloat16) {
      load_as_type<__half>(p, channel, count);
    } else {
      load_as_type<__nv_bfloat16>(p, channel, count);
    }
    static_for<kCount>([&](auto i) {
      const int own = threadIdx.x + i.value * kThreads;
      if (own < count) s_values[kTaps * kPitch + own] = load_bias(p, channel + own);
    });
  }
  // Those of the kCount channels from `own` on.
  FFTCONV_DEVICE void read(float (&taps)[kTaps][kCount], float (&bias)[kCount], int own) const {
    static_for<kTaps>([&](auto j) {
      static_for<kCount>([&](auto c) { taps[j.value][c.value] = s_values[j.value * kPitch + own + c.value]; });
    });
    static_for<kCount>([&](auto c) { bias[c.value] = s_values[kTaps * kPitch + own + c.value]; });
  }

 private:
  template <class weight_t>
  FFTCONV_DEVICE void load_as_type(const DepthwiseParams& p, int channel, int count) const {
    const weight_t* g_taps = static_cast<const weight_t*>(p.weight) + channel * p.weight_stride;
    constexpr int kBatch = 8;  // taps that a thread waits for together
#pragma unroll 1
    for (int first = threadIdx.x; first < count * kTaps; first += kBatch * kThreads) {
      weight_t values[kBatch];
      static_for<kBatch>([&](auto i) {
        const int index = first + i.value * kThreads, own = index / kTaps, tap = index % kTaps;
        if (own < count) {
          values[i.value] = g_taps[own * p.weight_stride + (p.is_reversed ? kTaps - 1 - tap : tap) * p.tap_stride];
        }
      });
      static_for<kBatch>([&](auto i) {
        const int index = first + i.value * kThreads, own = index / kTaps, tap = index % kTaps;
        if (own < count) s_values[tap * kPitch + own] = Storage<weight_t>::widen(values[i.value]);
      });
    }
  }
};

FFTCONV_DEVICE float sigmoid(float z) { return __fdividef(1.f, 1.f + __expf(-z)); }

// z * sigmoid(z) and its derivative.
FFTCONV_DEVICE float silu(float z) { return z * sigmoid(z); }
FFTCONV_DEVICE float silu_slope(float z) {
  const float s = sigmoid(z);
  return s * fmaf(z, 1.f - s, 1.f);
}

template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

FFTCONV_DEVICE bool is_inside(int point, int length) {
  return static_cast<unsigned>(point) < static_cast<unsigned>(length);
}

// kCount neighbouring values, which are accessed together.
template <class io_t, int kCount_>
struct Vector {
  using S = Storage<io_t>;
  static constexpr int kCount = kCount_;
  using word_t = typename WordOf<kCount* static_cast<int>(sizeof(io_t))>::type;
  word_t word;

  // Zeros where the condition does not hold. A plain load, for the reason that load_as tells.
  FFTCONV_DEVICE static Vector load_if(bool condition, const io_t* g_values) {
    Vector v{};
    if (condition) v.word = *reinterpret_cast<const word_t*>(g_values);
    return v;
  }
  FFTCONV_DEVICE void store(io_t* g_values) const { *reinterpret_cast<word_t*>(g_values) = word; }

  // The same of the points of a row from `first` on, one by one, without those that lie outside of it.
  FFTCONV_DEVICE static Vector load_inside(const io_t* g_row, int first, int length) {
    Vector v{};
    auto* values = reinterpret_cast<io_t*>(&v.word);
    static_for<kCount>([&](auto k) {
      if (is_inside(first + k.value, length)) values[k.value] = g_row[first + k.value];
    });
    return v;
  }
  FFTCONV_DEVICE void store_inside(io_t* g_row, int first, int length) const {
    const auto* values = reinterpret_cast<const io_t*>(&word);
    static_for<kCount>([&](auto k) {
      if (is_inside(first + k.value, length)) g_row[first + k.value] = values[k.value];
    });
  }

  FFTCONV_DEVICE void widen(float* values) const {
    if constexpr (kCount == 1) {
      values[0] = S::widen(reinterpret_cast<const io_t&>(word));
    } else {
      const auto* pairs = reinterpret_cast<const typename S::pair_t*>(&word);
      static_for<kCount / 2>([&](auto i) {
        const float2 pair = S::widen2(pairs[i.value]);
        values[2 * i.value] = pair.x;
        values[2 * i.value + 1] = pair.y;
      });
    }
  }
  FFTCONV_DEVICE static Vector narrow(const float* values) {
    Vector v;
    if constexpr (kCount == 1) {
      reinterpret_cast<io_t&>(v.word) = S::narrow(values[0]);
    } else {
      auto* pairs = reinterpret_cast<typename S::pair_t*>(&v.word);
      static_for<kCount / 2>(
          [&](auto i) { pairs[i.value] = S::narrow2(values[2 * i.value], values[2 * i.value + 1]); });
    }
    return v;
  }
};

// The row of an array at (batch, channel), at time 0.
template <class io_t>
FFTCONV_DEVICE io_t* depthwise_row(void* g_array, const DepthwiseStrides& strides, int batch, int channel) {
  return static_cast<io_t*>(g_array) + batch * strides.batch + channel * strides.channel;
}
template <class io_t>
FFTCONV_DEVICE const io_t* depthwise_row(const void* g_array, const DepthwiseStrides& strides, int batch, int channel) {
  return static_cast<const io_t*>(g_array) + batch * strides.batch + channel * strides.channel;
}

// Walks down in time over the rows of an array whose channels lie side by side.
template <class io_t, int kCount>
struct RowReader {
  const io_t* g_next;
  long long stride;
  int time, length;  // of the next row; of the array
  int rest;          // rows that are read, at most

  // kIsInside: it is known that the row is there, and to be read.
  template <bool kIsInside = false>
  FFTCONV_DEVICE Vector<io_t, kCount> next() {
    const auto v = Vector<io_t, kCount>::load_if(kIsInside || (rest > 0 && is_inside(time, length)), g_next);
    g_next += stride;
    time++;
    rest--;
    return v;
  }
};
// From row `time` of the array on, which may lie before its first one.
template <class io_t, int kCount>
FFTCONV_DEVICE RowReader<io_t, kCount> read_rows(const void* g_array, const DepthwiseStrides& strides, int batch,
                                                 int channel, int time, int length, int rows) {
  const io_t* g_row = depthwise_row<io_t>(g_array, strides, batch, channel);
  return {g_row + time * strides.time, strides.time, time, length, rows};
}

FFTCONV_DEVICE constexpr int floor_divide(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Elements by which an address lies past a multiple of kCount of them.
template <int kCount, class io_t>
FFTCONV_DEVICE int misalignment(const io_t* g_values) {
  return static_cast<int>(reinterpret_cast<unsigned long long>(g_values) / sizeof(io_t)) & (kCount - 1);
}

// The points kBegin .. kEnd - 1 of a row, counted from a thread's first one: read as vectors, of which neighbouring
// threads read some too, out of L1. Rows begin at multiples of a vector, and so do threads; or, with kIsShifted,
// neither need: what a vector holds before the first point is then shifted out in registers.
template <class io_t, int kCount, int kBegin, int kEnd, bool kIsShifted>
struct Window {
  using V = Vector<io_t, kCount>;
  static constexpr int kFirst = kIsShifted ? kBegin : floor_divide(kBegin, kCount) * kCount;  // that of values[0]
  static constexpr int kSpan = kEnd - kFirst + (kIsShifted ? kCount - 1 : 0), kVectors = (kSpan + kCount - 1) / kCount;
  V vectors[kVectors];
  float values[kVectors * kCount];
  int shift;

  // `point`: the thread's first one. `length`: of the row.
  FFTCONV_DEVICE void load(const io_t* g_row, int point, int length) {
    shift = kIsShifted ? misalignment<kCount>(g_row + (point + kFirst)) : 0;
    const int begin = point + kFirst - shift;
    const io_t* g_first = g_row + begin;
    if (!kIsShifted || (begin >= 0 && begin + kVectors * kCount <= length)) {
      static_for<kVectors>([&](auto i) {
        constexpr int kAt = i.value * kCount;
        vectors[i.value] = V::load_if(kIsShifted || is_inside(begin + kAt, length), g_first + kAt);
      });
    } else {
      static_for<kVectors>([&](auto i) { vectors[i.value] = V::load_inside(g_row, begin + i.value * kCount, length); });
    }
  }
  // The first vector of points, as they are stored.
  FFTCONV_DEVICE V take_first() {
    if constexpr (kIsShifted) shift_out();
    return vectors[0];
  }
  FFTCONV_DEVICE void widen() {
    if constexpr (kIsShifted) shift_out();
    static_for<kVectors>([&](auto i) { vectors[i.value].widen(values + i.value * kCount); });
  }
  FFTCONV_DEVICE float at(int point) const { return values[point - kFirst]; }

 private:
  // By two words, by one, by half of one.
  FFTCONV_DEVICE void shift_out() {
    constexpr int kWords = sizeof(vectors) / sizeof(unsigned);
    auto* words = reinterpret_cast<unsigned*>(vectors);
    const int bytes = shift * static_cast<int>(sizeof(io_t));
    static_for<kWords - 2>([&](auto i) { words[i.value] = bytes & 8 ? words[i.value + 2] : words[i.value]; });
    static_for<kWords - 1>([&](auto i) { words[i.value] = bytes & 4 ? words[i.value + 1] : words[i.value]; });
    if constexpr (sizeof(io_t) == 2) {
      static_for<kWords - 1>(
          [&](auto i) { words[i.value] = __funnelshift_r(words[i.value], words[i.value + 1], (bytes & 2) * 8); });
    }
  }
};

// The sequence indices of the points kBegin .. kEnd - 1 around a thread's, as bits; all alike where there are none.
template <bool kHasSeqIdx, int kBegin, int kEnd, bool kIsShifted>
struct SequenceWindow {
  Window<float, 4, kBegin, kEnd, kIsShifted> ids;

  FFTCONV_DEVICE void load(const DepthwiseParams& p, int batch, int point) {
    if constexpr (kHasSeqIdx) {
      ids.load(reinterpret_cast<const float*>(p.seq_idx + batch * p.seq_stride), point, p.in_len);
    }
  }
  FFTCONV_DEVICE void widen() {
    if constexpr (kHasSeqIdx) ids.widen();
  }
  FFTCONV_DEVICE bool is_padding(int point) const { return kHasSeqIdx && __float_as_int(ids.at(point)) < 0; }
  FFTCONV_DEVICE bool is_one(int a, int b) const {
    return !kHasSeqIdx || __float_as_int(ids.at(a)) == __float_as_int(ids.at(b));
  }
};

// Stores points of a row from `point` on; where rows may begin anywhere, those that lie outside of it are left out.
template <bool kIsShifted, class io_t, int kCount>
FFTCONV_DEVICE void store_vector(const Vector<io_t, kCount>& v, io_t* g_row, int point, int length) {
  if constexpr (kIsShifted) {
    const bool is_whole = point >= 0 && point + kCount <= length && misalignment<kCount>(g_row + point) == 0;
    is_whole ? v.store(g_row + point) : v.store_inside(g_row, point, length);
  } else if (point < length) {
    v.store(g_row + point);
  }
}

}  // namespace fftconv
