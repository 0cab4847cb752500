// Arguments of the kernels for long rows. long_params.py holds the same structures as ctypes.
#pragma once
#include "params.cuh"
#include "pipeline.cuh"

namespace fftconv {

// The taps, and where they lie in the ring.
struct Taps {
  const void* filter;  // (H, K)
  long long stride;    // elements a channel
  int length;          // K
  int type;            // see StorageType
  Lags lags;
};

struct LongParams {
  const void* u;         // (B, H, in_len)
  const void* in_gate;   // (B, H, in_len)
  const void* out_gate;  // (B, H, out_len)
  void* y;               // (B, H, out_len)
  const void* skip;      // (H,), float32 or the storage type
  const float4 *row_twiddles, *tile_twiddles;
  void* points;        // [slots][M]: what lies between the phases, complex float32 or float16
  float* scales;       // [slots][2][C], of float16
  float4* spectrum;    // [filter_slots][rows][kEpt / 2][threads]; of all channels where it comes with the call
  unsigned* counters;  // zero
  Strides u_strides, in_gate_strides, out_gate_strides, y_strides;
  Taps taps;
  Schedule schedule;
  int in_len, out_len;
  int has_in_gate, has_out_gate;
  int skip_is_float;
  float skip_scale;  // 1 / M
};

struct LongBwdParams {
  const void* u;         // (B, H, in_len)
  const void* in_gate;   // (B, H, in_len)
  const void* out_gate;  // (B, H, out_len)
  const void* dy;        // (B, H, out_len)
  void* du;              // (B, H, in_len), or null
  void* d_in_gate;       // (B, H, in_len), or null
  void* d_out_gate;      // (B, H, out_len)
  const void* skip;
  void* dk;      // (H, K), contiguous, or null
  void* d_skip;  // (H,), or null
  const float4 *row_twiddles, *tile_twiddles;
  void* points;      // [slots][one or two][M]
  float* scales;     // [slots][one or two][2][C]
  float4* stash;     // [blocks][R / 2], of float16
  float4* spectrum;  // as forward
  float4* sums;      // [sum_slots][chains][M / 2]
  float4* total;     // [M / 2], where one filter serves several channels
  unsigned* counters;
  Strides u_strides, in_gate_strides, out_gate_strides, dy_strides, du_strides, d_in_gate_strides, d_out_gate_strides;
  Taps taps;
  Schedule schedule;
  int in_len, out_len;
  int has_in_gate, has_out_gate;
  int skip_is_float, skip_type;  // of d_skip: see StorageType
  float skip_scale;              // 1 / M
};

}  // namespace fftconv
