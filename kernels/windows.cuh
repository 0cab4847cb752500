// Overlap-save: a row is cut into windows, each the 2M real points of one packed transform of M complex points.
//
// Point n of a window and point n + M are the real and the imaginary part of point n of the transform: since z^M = i,
// that is the negacyclic ring of 2M reals, and no half of it is padding. A filter wraps terms onto as many points of
// the ring as its taps reach back (at the start) and ahead (at the end); the rest, `step` points from position `lead`
// on, are right, and are what the window *keeps*. Windows are step points apart, so kept points cover the row once, and
// what they read overlaps.
#pragma once
#include "io.cuh"

namespace fftconv {

// Positions low .. high - 1 of a window's ring; none where high <= low.
struct Span {
  int low, high;

  FFTCONV_DEVICE Span operator&(Span other) const { return {max(low, other.low), min(high, other.high)}; }
};

// A window: ring position r is point start + r of its row, which may lie outside of it.
struct Window {
  int start;
  Span kept;

  FFTCONV_DEVICE Window(const Windows& windows, int index)
      : start(index * windows.step - windows.origin - windows.lead), kept{windows.lead, windows.lead + windows.step} {}
  // The positions of points first .. end - 1 of the row.
  FFTCONV_DEVICE Span points(int first, int end) const { return {first - start, end - start}; }
};

// A thread's points of one part of a window: those inside of a span are accessed. Pairs are never cut: spans start and
// end at even positions where neighbours are accessed together. `values` leads to position 0.
template <class Traits, class value_t, Part kPart>
struct SpanRow {
  static constexpr int kFirst = kPart == Part::kReal ? 0 : Traits::Layout::kPoints;
  using S = Storage<typename Traits::io_t>;
  using pair_t = typename S::pair_t;
  value_t* values;
  int first;
  unsigned count;

  FFTCONV_DEVICE SpanRow(value_t* g_window, Span span, int thread) {
    const int position = Pass<typename Traits::Layout, 0>::base(thread) + kFirst;
    values = g_window + position;
    first = position - span.low;
    count = max(span.high - span.low, 0);
  }
  template <class A>
  FFTCONV_DEVICE bool holds(A) const {
    return static_cast<unsigned>(first + A::kOffset) < count;
  }
  template <class A>
  FFTCONV_DEVICE float2 load(A access) const {
    if constexpr (A::kIsPair) {
      const auto* g_pair = reinterpret_cast<const pair_t*>(values + A::kOffset);
      return S::widen2(read_if<Memory::kGlobal>(holds(access), g_pair));
    } else {
      return make_float2(S::widen(read_if<Memory::kGlobal>(holds(access), values + A::kOffset)), 0.f);
    }
  }
  template <class A>
  FFTCONV_DEVICE void store(A access, float2 v) const {
    if (!holds(access)) return;
    if constexpr (A::kIsPair) {
      *reinterpret_cast<pair_t*>(values + A::kOffset) = S::narrow2(v.x, v.y);
    } else {
      values[A::kOffset] = S::narrow(v.x);
    }
  }
};

// What a window reads: an array, times its gate where there is one; both pointers lead to position 0.
template <class Traits>
struct Source {
  using io_t = typename Traits::io_t;
  const io_t *g_value, *g_gate;
  bool is_gated;

  FFTCONV_DEVICE Source(const void* g_array, Strides strides, const void* g_gates, Strides gate_strides, bool has_gate,
                        int batch, int channel, int start)
      : g_value(row_of<io_t>(g_array, strides, batch, channel) + start),
        g_gate(row_of<io_t>(g_gates, gate_strides, batch, channel) + start),
        is_gated(has_gate) {}

  // x = gate * value within the span, zero outside.
  FFTCONV_DEVICE void load(complex_t* x, Span span, int thread) const {
    constexpr int kSize = 2 * Traits::Layout::kPoints;
    if (span.low <= 0 && span.high >= kSize) {
      load_whole<Part::kReal>(x, thread);
      load_whole<Part::kImag>(x, thread);
    } else {
      load_span<Part::kReal>(x, span, thread);
      load_span<Part::kImag>(x, span, thread);
    }
  }
  // x += gate * value within the span: points that lie a period away.
  FFTCONV_DEVICE void add(complex_t* x, Span span, long long shift, int thread) const {
    add_span<Part::kReal>(x, span, shift, thread);
    add_span<Part::kImag>(x, span, shift, thread);
  }

 private:
  struct Whole : Traits {
    static constexpr bool kHasTail = false;
  };

  template <Part kPart>
  FFTCONV_DEVICE void load_whole(complex_t* x, int thread) const {
    constexpr int kFirst = SpanRow<Traits, const io_t, kPart>::kFirst;
    const InputRow<Whole> value(g_value + kFirst, 0, thread);
    if (is_gated) {
      load_gated<Traits, kPart>(x, value, InputRow<Whole>(g_gate + kFirst, 0, thread));
    } else {
      load_part<Traits, kPart>(x, value);
    }
  }
  template <Part kPart>
  FFTCONV_DEVICE void load_span(complex_t* x, Span span, int thread) const {
    const SpanRow<Traits, const io_t, kPart> value(g_value, span, thread);
    if (is_gated) {
      load_gated<Traits, kPart>(x, value, SpanRow<Traits, const io_t, kPart>(g_gate, span, thread));
    } else {
      load_part<Traits, kPart>(x, value);
    }
  }
  template <Part kPart>
  FFTCONV_DEVICE void add_span(complex_t* x, Span span, long long shift, int thread) const {
    const SpanRow<Traits, const io_t, kPart> value(g_value + shift, span, thread), gate(g_gate + shift, span, thread);
    for_each_access<Traits>([&](auto access) {
      float2 v = value.load(access);
      if (is_gated) v = multiply_each(v, gate.load(access));
      const float2 before = access.template take<kPart>(x);
      access.template put<kPart>(x, make_float2(before.x + v.x, before.y + v.y));
    });
  }
};

// Calls body(value, position) for every real value that a thread holds of a window; value is a reference.
template <class Traits, class Body>
FFTCONV_DEVICE void for_each_position(complex_t* x, int thread, Body body) {
  using P = Pass<typename Traits::Layout, 0>;
  const int base = P::base(thread);
  static_for<Traits::Layout::kEpt>([&](auto slot) {
    const int position = base + P::offset(slot.value);
    body(x[slot.value].re, position);
    body(x[slot.value].im, position + Traits::Layout::kPoints);
  });
}

// x += float32 values of points first .. end - 1 of the row, those that the window keeps or, with kIsAll, all of them.
template <class Traits, bool kIsAll = false>
FFTCONV_DEVICE void add_floats(complex_t* x, const float* g_values, int first, int end, const Window& window,
                               int thread) {
  Span span = window.points(first, end);
  if constexpr (!kIsAll) span = span & window.kept;
  for_each_position<Traits>(x, thread, [&](float& value, int position) {
    if (position >= span.low && position < span.high) value += __ldg(g_values + (window.start + position - first));
  });
}

}  // namespace fftconv
