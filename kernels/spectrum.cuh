// What is done between a forward and an inverse transform: the row's spectrum times that of the filter.
#pragma once
#include "io.cuh"

namespace fftconv {

// The skip term of a channel as a constant to add to its filter's spectrum: it is one more tap, at lag 0.
template <class Traits, class Params>
FFTCONV_DEVICE float spectrum_skip(const Params& p, int channel) {
  using io_t = typename Traits::io_t;
  if (Traits::kExtras != Extras::kAny || p.skip == nullptr) return 0.f;
  return p.skip_scale
         * (p.skip_is_float ? static_cast<const float*>(p.skip)[channel]
                            : Storage<io_t>::widen(static_cast<const io_t*>(p.skip)[channel]));
}

// How spectra lie, and what is summed of them: in rows of points, by the threads that share one in the transform of the
// filter. A block or cluster that shares more points has several of these rows.
template <class Traits>
struct SpectrumTraits : Traits {
  struct Layout {
    static constexpr int kEpt = Traits::Node::kEpt, kThreads = Traits::kSpectrumThreads;
  };
  // Of the first quad of a thread; the others are kThreads apart.
  FFTCONV_DEVICE static int place(int thread) {
    if constexpr (Traits::Node::kThreads <= Layout::kThreads) {
      return thread;
    } else {
      return thread / Layout::kThreads * (Layout::kEpt / 2 * Layout::kThreads) + thread % Layout::kThreads;
    }
  }
};

// x times the spectrum of the channel's filter (`g_spectrum` is that of channel 0), or times its conjugate, which is
// that of the filter reversed in time. kIsEarly: the kernel may have started before the spectrum was written.
template <class Traits, bool kIsConjugate, bool kIsEarly = false, class Params>
FFTCONV_DEVICE void multiply_spectrum(const Params& p, complex_t* x, const float4* g_spectrum, int channel,
                                      int thread) {
  using Layout = typename Traits::Layout;
  const float skip = spectrum_skip<Traits>(p, channel);
  g_spectrum += channel * p.spectrum_stride + thread;
  static_for<Layout::kEpt / 2>([&](auto i) {
    const float4* g_value = g_spectrum + i.value * Layout::kThreads;
    float4 v;
    if constexpr (kIsEarly) {
      v = *g_value;
    } else {
      v = __ldg(g_value);
    }
    const complex_t first = {v.x + skip, v.y}, second = {v.z + skip, v.w};
    if constexpr (kIsConjugate) {
      x[2 * i.value] = multiply_conj(x[2 * i.value], first);
      x[2 * i.value + 1] = multiply_conj(x[2 * i.value + 1], second);
    } else {
      x[2 * i.value] = multiply(x[2 * i.value], first);
      x[2 * i.value + 1] = multiply(x[2 * i.value + 1], second);
    }
  });
}

}  // namespace fftconv
