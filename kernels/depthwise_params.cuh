// Arguments of the kernels of short depthwise convolutions, the same structure for most of them.
// depthwise_params.py holds the same structures as ctypes; the entry's static_assert compares their sizes.
#pragma once

namespace fftconv {

struct DepthwiseStrides {  // in elements; that of channels (BLH) or of time (BHL) is 1 where an array is accessed in
  long long batch, channel, time;  // vectors
};

// out[t] = bias + sum of weight[j] * x[t + j - pad], and what its gradients take. Addresses that a kernel does not use,
// or that are not there, are null.
struct DepthwiseParams {
  const void* x;        // (B, D, in_len)
  const void* dy;       // (B, D, out_len): gradient of the output, before or after the activation
  void* out;            // (B, D, out_end), or the gradient of x
  const void* weight;   // (D, width)
  const void* bias;     // (D,)
  const int* seq_idx;   // (B, in_len)
  const void* state;    // (B, D, width - 1): x before its first point, oldest first
  const void* d_final;  // (B, D, width - 1): gradient of the last points of x, added to that of x
  void* d_state;        // (B, D, width - 1): gradient of `state`
  float* sums;          // [chunks][width + 1][D]: partial sums of the gradients of weight, and last of bias
  DepthwiseStrides x_strides, dy_strides, out_strides, state_strides, d_final_strides, d_state_strides;
  long long weight_stride, tap_stride, bias_stride, seq_stride;
  int batch, channels;
  int weight_type, bias_type;  // see StorageType
  int in_len;
  int out_begin, out_end;  // outputs from out_begin on; those before 0 go to d_state
  int width, pad;
  int is_reversed;          // the taps are read from the last one on
  int dy_len;               // points of dy, or of dz
  int tiles;                // blocks along the axis on which neighbouring blocks lie side by side
  int tile_len;             // points in time that a thread walks down at a time
  int log2_lanes;           // threads side by side on the axis of unit stride
  int time_tiles;           // tiles of a row
  int chunks, chunk_items;  // an item is a tile of a batch row; a chunk of them leaves one sum
};

// The sum over chunks, rounded to the dtypes of weight and bias.
struct DepthwiseReduceParams {
  const float* sums;  // [chunks][width + 1][D]
  void* d_weight;     // (D, width), contiguous, or null
  void* d_bias;       // (D,), or null
  int chunks, channels, width;
  int weight_type, bias_type;
};

// One or a few steps of decoding; the state is changed in place.
struct DepthwiseUpdateParams {
  const void* x;             // (B, D, steps)
  void* out;                 // (B, D, steps)
  void* state;               // (N, D, state_len)
  const void* weight;        // (D, width)
  const void* bias;          // (D,), or null
  const int* cache_seqlens;  // (B,): the state is a ring, and the next point lies there; or null: oldest first
  const int* indices;        // (B,): rows of the state, or null: row b
  DepthwiseStrides x_strides, out_strides, state_strides;
  long long weight_stride, tap_stride, bias_stride, cache_stride, index_stride;
  int batch, channels, steps, state_len, states, width;
  int weight_type, bias_type, has_silu;
};

// final[i] = the point at in_len - (width - 1) + i of x, or of the state before it.
struct DepthwiseStateParams {
  const void* x;
  const void* state;  // or null
  void* final_state;
  DepthwiseStrides x_strides, state_strides, final_strides;
  int batch, channels, in_len, width;
};

}  // namespace fftconv
