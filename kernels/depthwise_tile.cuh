// Tiles of a few channels by many points in shared memory, as float32, whatever the axis of unit stride and what lies
// before the first point; where that axis is time, rows may begin anywhere. Points of a channel lie side by side, in
// groups of 16 with a gap, so that neighbouring threads, each with 16 points of its own, read 16 bytes each without
// bank conflicts.
#pragma once
#include "depthwise.cuh"

namespace fftconv {

constexpr int kRun = 16;  // points between gaps

FFTCONV_DEVICE constexpr int gapped(int point) { return point + point / kRun * 4; }

// A channel-by-time array from (batch, first channel) on.
template <class io_t>
struct TileSource {
  const io_t* g_values;
  DepthwiseStrides strides;
  int channels, length;  // that are there
  const io_t* g_state = nullptr;
  DepthwiseStrides state_strides = {};
  int state_len = 0;

  FFTCONV_DEVICE TileSource(const void* g_array, const DepthwiseStrides& own_strides, int batch, int channel,
                            int all_channels, int own_length)
      : g_values(depthwise_row<io_t>(g_array, own_strides, batch, channel)),
        strides(own_strides),
        channels(all_channels - channel),
        length(own_length) {}

  // Plain loads, for the reason that load_as tells.
  FFTCONV_DEVICE float at(int channel, int time) const {
    using S = Storage<io_t>;
    if (channel >= channels || time >= length) return 0.f;
    if (time >= 0) return S::widen(g_values[channel * strides.channel + time * strides.time]);
    if (g_state == nullptr || time + state_len < 0) return 0.f;
    return S::widen(g_state[channel * state_strides.channel + (time + state_len) * state_strides.time]);
  }
};

// kVector neighbours on the axis of unit stride, of a tile of kSpan points.
template <Axis kAxis, int kChannels, int kVector, int kSpan>
struct Unit {
  static constexpr bool kIsTime = kAxis == Axis::kTime;
  static constexpr int kAlong = kIsTime ? kSpan / kVector + 1 : kChannels / kVector;
  static constexpr int kCount = kAlong * (kIsTime ? kChannels : kSpan);
  int channel, point;  // of the first one

  // `g_tile`: the tile's first point, where its array's are accessed together: in time that may be before the tile.
  template <class io_t>
  FFTCONV_DEVICE Unit(int index, const io_t* g_tile, const DepthwiseStrides& strides) {
    const int along = index % kAlong * kVector, across = index / kAlong;
    channel = kIsTime ? across : along;
    point = kIsTime ? along - misalignment<kVector>(g_tile + channel * strides.channel) : across;
  }
  FFTCONV_DEVICE int channel_of(int element) const { return kIsTime ? channel : channel + element; }
  FFTCONV_DEVICE int point_of(int element) const { return kIsTime ? point + element : point; }
  // Whether all of it lies in the tile, and in an array of which the tile begins at time `start`.
  FFTCONV_DEVICE bool is_inside(int start, int channels, int length) const {
    const int first = max(point, point + start), last = point_of(kVector - 1);
    return min(point, point + start) >= 0 && first < length && last < kSpan && start + last < length
           && channel_of(kVector - 1) < channels;
  }
  // Calls body(k, place) for each element with its place in a tile of kPitch a channel.
  template <int kPitch, class Body>
  FFTCONV_DEVICE void for_each(Body body) const {
    const int base = channel * kPitch + gapped(point);
    const int cut = kRun - point % kRun;  // elements before the next gap
    static_for<kVector>(
        [&](auto k) { body(k, kIsTime ? base + k.value + (k.value < cut ? 0 : 4) : base + k.value * kPitch); });
  }
};

// s_tile[channel][gapped(point)] = the source's value at time start + point.
template <Axis kAxis, int kChannels, int kVector, int kSpan, int kPitch, int kThreads, class io_t>
FFTCONV_DEVICE void load_tile(float* s_tile, const TileSource<io_t>& source, int start) {
  using U = Unit<kAxis, kChannels, kVector, kSpan>;
  using V = Vector<io_t, kVector>;
  constexpr int kBatch = 4;  // vectors that a thread waits for together
  const io_t* g_tile = source.g_values + start * source.strides.time;
#pragma unroll 1
  for (int first = threadIdx.x; first < U::kCount; first += kBatch * kThreads) {
    V vectors[kBatch];
    static_for<kBatch>([&](auto i) {
      const U unit(first + i.value * kThreads, g_tile, source.strides);
      const long long offset = unit.channel * source.strides.channel + unit.point * source.strides.time;
      const bool is_inside = unit.is_inside(start, source.channels, source.length);
      vectors[i.value] = V::load_if(is_inside && first + i.value * kThreads < U::kCount, g_tile + offset);
    });
    static_for<kBatch>([&](auto i) {
      if (first + i.value * kThreads >= U::kCount) return;
      const U unit(first + i.value * kThreads, g_tile, source.strides);
      if (unit.is_inside(start, source.channels, source.length)) {
        float values[kVector];
        vectors[i.value].widen(values);
        unit.template for_each<kPitch>([&](auto k, int place) { s_tile[place] = values[k.value]; });
        return;
      }
#pragma unroll 1
      for (int k = 0; k < kVector; k++) {
        const int channel = unit.channel_of(k), point = unit.point_of(k);
        if (point >= 0 && point < kSpan) s_tile[channel * kPitch + gapped(point)] = source.at(channel, start + point);
      }
    });
  }
}

// s_ids[gapped(point)] = the sequence index at time start + point; -1 where it marks padding or there is none.
template <int kSpan, int kThreads>
FFTCONV_DEVICE void load_ids(int* s_ids, const DepthwiseParams& p, int batch, int start) {
  for (int point = threadIdx.x; point < kSpan; point += kThreads) {
    const int time = start + point;
    int id = -1;
    if (time >= 0 && time < p.in_len) id = max(-1, p.seq_idx[batch * p.seq_stride + time]);
    s_ids[gapped(point)] = id;
  }
}

// kCount values from `s_values` on, at multiples of four.
template <int kCount>
FFTCONV_DEVICE void read_run(float* values, const float* s_values) {
  static_for<kCount / 4>([&](auto i) {
    const float4 v = reinterpret_cast<const float4*>(s_values)[i.value];
    values[4 * i.value] = v.x;
    values[4 * i.value + 1] = v.y;
    values[4 * i.value + 2] = v.z;
    values[4 * i.value + 3] = v.w;
  });
}
template <int kCount>
FFTCONV_DEVICE void read_run(int* values, const int* s_values) {
  static_for<kCount / 4>([&](auto i) {
    const int4 v = reinterpret_cast<const int4*>(s_values)[i.value];
    values[4 * i.value] = v.x;
    values[4 * i.value + 1] = v.y;
    values[4 * i.value + 2] = v.z;
    values[4 * i.value + 3] = v.w;
  });
}

}  // namespace fftconv
