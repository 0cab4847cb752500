// The rows of a convolution's arrays, as one part of a transform.
#pragma once
#include "io.cuh"

namespace fftconv {

// One part of the transform, from and to row (batch, channel), from point `first` of the row on. A prefetched row of u
// is read from its copy `s_u`.
template <class Traits, Part kPart>
FFTCONV_DEVICE void load_row(const FwdParams& p, complex_t* x, int batch, int channel, int first, int thread,
                             const typename Traits::io_t* s_u) {
  using io_t = typename Traits::io_t;
  constexpr Memory kMemory = Traits::kHasPrefetch ? Memory::kShared : Memory::kGlobal;
  const int length = p.in_len - first;
  const InputRow<Traits, kMemory> u(Traits::kHasPrefetch ? s_u : row_of<io_t>(p.u, p.u_strides, batch, channel) + first,
                                    length, thread);
  if (has_gate<Traits>(p.has_in_gate)) {
    const io_t* g_gate = row_of<io_t>(p.in_gate, p.in_gate_strides, batch, channel) + first;
    load_gated<Traits, kPart>(x, u, InputRow<Traits>(g_gate, length, thread));
  } else {
    load_part<Traits, kPart>(x, u);
  }
}
template <class Traits, Part kPart>
FFTCONV_DEVICE void store_row(const FwdParams& p, complex_t* x, int batch, int channel, int first, int thread) {
  using io_t = typename Traits::io_t;
  const int length = p.out_len - first;
  const OutputRow<Traits> y(row_of<io_t>(p.y, p.y_strides, batch, channel) + first, length, thread);
  if (has_gate<Traits>(p.has_out_gate)) {
    const io_t* g_gate = row_of<io_t>(p.out_gate, p.out_gate_strides, batch, channel) + first;
    store_gated<Traits, kPart>(x, y, InputRow<Traits>(g_gate, length, thread));
  } else {
    store_part<Traits, kPart>(x, y);
  }
}

}  // namespace fftconv
