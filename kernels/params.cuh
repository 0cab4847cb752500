// Kernel arguments. launch.py holds the same structures as ctypes; the entry's static_assert compares their sizes.
#pragma once

namespace fftconv {

struct Strides {  // in elements
  long long batch, channel;
};

struct FwdParams {
  const void* u;           // (B, H, in_len)
  const void* in_gate;     // (B, H, in_len)
  const void* out_gate;    // (B, H, out_len)
  void* y;                 // (B, H, out_len)
  const float4* spectrum;  // per channel [kEpt / 2][threads a row], 1 / M folded in
  const float4* twiddles;
  const void* skip;  // (H,), float32 or the storage type
  Strides u_strides, in_gate_strides, out_gate_strides, y_strides;
  long long spectrum_stride;  // float4 a channel, 0 where the filter is shared
  int batch, channels, in_len, out_len;
  int log2_batch_slots;  // a block's rows are 2^log2_batch_slots batch slots x the remaining number of channels
  int iterations;        // batch slots are filled this many times
  int skip_is_float;
  float skip_scale;  // 1 / M
};

struct FilterParams {
  const void* filter;  // (H, K)
  float4* spectrum;
  const float4* twiddles;
  long long filter_stride;  // elements a channel
  int channels, filter_len;
  // The tap at lag d is filter[d + shift], for d < 0 filter[d + negative_shift], zero past the end; with period > 0 the
  // sum of the taps a period apart from there on. Lags 0 .. positive_lags - 1 and -1 .. -negative_lags are kept; a
  // negative lag -d lies at ring position size - d, negated.
  int shift, negative_shift, period, positive_lags, negative_lags;
  float scale;  // 1 / M
};

}  // namespace fftconv
