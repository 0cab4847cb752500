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
  int turns, block_step, turn_channels, turn_jobs;  // of blocks with prefetch, see walk_jobs
  int has_in_gate, has_out_gate;  // their addresses are those of other arrays where they are not there
  int skip_is_float;
  float skip_scale;  // 1 / M
  int zero;  // 0, which the compiler does not know: what is read from there on is read again, not kept or spilled
};

// How a row is cut into windows, see windows.cuh: window w keeps points w * step - origin .. + step - 1 of the row.
struct Windows {
  int count;  // of a row
  int step, lead, origin;
  int period;  // of circular rows: points outside of 0 .. period - 1 are those a period away; 0: there are none
};

struct WindowsParams {
  const void* u;         // (B, H, in_len)
  const void* in_gate;   // (B, H, in_len)
  const void* out_gate;  // (B, H, out_len)
  void* y;               // (B, H, out_len)
  const float* state;    // (B, H, state_len), or null
  const float4* spectrum;
  const float4* twiddles;
  const void* skip;
  Strides u_strides, in_gate_strides, out_gate_strides, y_strides, state_strides;
  long long spectrum_stride;
  int batch, channels, in_len, out_len, state_len;
  Windows windows;
  int has_in_gate, has_out_gate;
  int skip_is_float;
  float skip_scale;
};

// How the rows of a backward call are dealt out to blocks. A *step* fills the batch slots of a block once, on the
// channels of a channel group; a *chunk* is a number of steps of one group. Chunks are numbered group by group, and
// what a block sums in a chunk lies in the slot of its number: those of a group lie side by side.
struct ChunkPlan {
  int group_steps;   // of a channel group
  int chunk_steps;   // of a chunk; the last one of a group may have fewer
  int group_chunks;  // of a channel group
};

struct BwdParams {
  const void* u;         // (B, H, in_len)
  const void* in_gate;   // (B, H, in_len)
  const void* out_gate;  // (B, H, out_len)
  const void* dy;        // (B, H, out_len)
  void* du;              // (B, H, in_len), or null
  void* d_in_gate;       // (B, H, in_len), or null
  void* d_out_gate;      // (B, H, out_len)
  const float4* spectrum;
  const float4* twiddles;
  const void* skip;
  float4* sums;   // [chunks][channels a group][kEpt / 2][threads a row]
  float4* stash;  // [blocks][what does not fit in shared memory][threads a block]
  Strides u_strides, in_gate_strides, out_gate_strides, dy_strides, du_strides, d_in_gate_strides, d_out_gate_strides;
  long long spectrum_stride;
  long long chunk_count;
  ChunkPlan chunks;
  int batch, channels, in_len, out_len;
  int log2_batch_slots;
  int has_in_gate, has_out_gate;
  int skip_is_float;
  float skip_scale;
  int zero;  // 0, which the compiler does not know: what is read at + zero is read again, and not kept (or spilled)
};

struct StateParams {
  const void* u;         // (B, H, in_len)
  const void* in_gate;   // (B, H, in_len), or null
  const float* initial;  // (B, H, state_len), or null
  float* final;          // (B, H, state_len), contiguous
  Strides u_strides, in_gate_strides, initial_strides;
  int batch, channels, in_len, state_len;
};

struct WindowsBwdParams {
  const void* u;         // (B, H, in_len)
  const void* in_gate;   // (B, H, in_len)
  const void* out_gate;  // (B, H, out_len)
  const void* dy;        // (B, H, out_len)
  void* du;              // (B, H, in_len), or null
  void* d_in_gate;       // (B, H, in_len), or null
  const float* state;    // (B, H, state_len), or null, as are the gradients of this and of the final one
  const float* d_final;
  float* d_state;
  const float4* spectrum;
  const float4* twiddles;
  const void* skip;
  float4* sums;  // as of BwdParams, with windows in the place of rows
  float4* stash;
  Strides u_strides, in_gate_strides, out_gate_strides, dy_strides, du_strides, d_in_gate_strides;
  Strides state_strides, d_final_strides, d_state_strides;
  long long spectrum_stride;
  long long chunk_count;
  ChunkPlan chunks;
  int batch, channels, in_len, out_len, state_len;
  Windows windows;
  int log2_batch_slots;
  int has_in_gate, has_out_gate;
  int skip_is_float;
  float skip_scale;
  int zero;  // as of BwdParams
};

// Where the taps of a filter lie in the ring. The tap at lag d is filter[d + shift], for d < 0 filter[d +
// negative_shift], zero past the end; with period > 0 the sum of the taps a period apart from there on. Lags 0 ..
// positive - 1 and -1 .. -negative are kept; a negative lag -d lies at ring position size - d, negated.
struct Lags {
  int shift, negative_shift, period, positive, negative;
};

struct FilterParams {
  const void* filter;  // (H, K)
  float4* spectrum;
  const float4* twiddles;
  long long filter_stride;  // elements a channel
  int channels, filter_len;
  Lags lags;
  float scale;  // 1 / M
};

struct FilterBwdParams {
  const float4* sums;  // [channel groups][group_chunks][group_channels][kEpt / 2][threads a row]
  void* dk;            // (H, K), contiguous, or null
  void* d_skip;        // (H,), or null
  const float4* twiddles;
  int group_chunks, group_channels;
  int channels, filter_len;
  int skip_type;  // of d_skip: see StorageType
  Lags lags;
};

// out[channel] = the sum of its slots.
struct ReduceParams {
  const float4* sums;  // [channel groups][group_chunks][group_channels][quads]
  float4* out;         // [channels][quads]
  int group_chunks, group_channels;
  int channels, quads;
  int is_added;  // to what `out` holds
};

}  // namespace fftconv
