// Transforms of 2, 4, 8, 16 or 32 points in registers, in ring form.
//
// The complex M-point transform evaluates a polynomial of C[z] / (z^M - e(phi)), e(x) = exp(2 pi i x), at the M roots
// of z^M = e(phi): phi = 1/4 gives the negacyclic ring of 2M reals (z^M = i), phi = 0 the cyclic one. Factoring z^2h -
// t^2 = (z^h - t)(z^h + t) splits a *node* of phase phi into two of phases phi/2 and phi/2 + 1/2 by the butterfly (a,
// b) -> (a + t b, a - t b) with t = e(phi/2). So sub-node s of level i (s counts in natural order, i from 1) has t =
// e((phi + bitrev(s)) / 2^i), and an odd s has i times the t of its even neighbour.
#pragma once
#include "types.cuh"

namespace fftconv {

constexpr double kPi = 3.14159265358979323846264338327950288;
constexpr int kTurn = 512;  // compile-time angles are counted in 1/512 turn

FFTCONV_DEVICE constexpr double taylor_cos(double x) {
  double term = 1, sum = 1;
  for (int k = 1; k < 16; k++) {
    term *= -x * x / ((2 * k - 1) * (2 * k));
    sum += term;
  }
  return sum;
}

FFTCONV_DEVICE constexpr int reduce_angle(int angle) { return (angle % kTurn + kTurn) % kTurn; }

// cos(2 pi angle / 512), exact at multiples of a quarter turn, from the series on [0, pi/2).
FFTCONV_DEVICE constexpr double cos_turn(int angle) {
  angle = reduce_angle(angle);
  if (angle >= kTurn / 2) return -cos_turn(angle - kTurn / 2);
  if (angle == kTurn / 4) return 0;
  if (angle > kTurn / 4) return -cos_turn(kTurn / 2 - angle);
  return taylor_cos(2 * kPi * angle / kTurn);
}

template <int kAngle>
struct Root {  // e(kAngle / 512)
  static constexpr float re = static_cast<float>(cos_turn(kAngle));
  static constexpr float im = static_cast<float>(cos_turn(kAngle - kTurn / 4));
};

FFTCONV_DEVICE constexpr int bit_reverse(int value, int bits) {
  int reversed = 0;
  for (int i = 0; i < bits; i++) reversed |= ((value >> i) & 1) << (bits - 1 - i);
  return reversed;
}

// (a, b) -> (a + t b, a - t b) in 6 FMA: the difference is 2a - (a + t b).
FFTCONV_DEVICE void butterfly(complex_t& a, complex_t& b, complex_t t) {
  const complex_t sum = {fmaf(-t.im, b.im, fmaf(t.re, b.re, a.re)), fmaf(t.im, b.re, fmaf(t.re, b.im, a.im))};
  b = {fmaf(2.f, a.re, -sum.re), fmaf(2.f, a.im, -sum.im)};
  a = sum;
}

// The same with i t in place of t, at no extra cost.
FFTCONV_DEVICE void butterfly_quarter(complex_t& a, complex_t& b, complex_t t) { butterfly(a, b, {-t.im, t.re}); }

// The same with t = e(kAngle / 512): multiples of a quarter turn need no multiplication.
template <int kAngle>
FFTCONV_DEVICE void butterfly_const(complex_t& a, complex_t& b) {
  constexpr int angle = reduce_angle(kAngle);
  if constexpr (angle % (kTurn / 4) == 0) {
    complex_t t_b = b;
    if constexpr (angle == kTurn / 4) t_b = {-b.im, b.re};
    if constexpr (angle == kTurn / 2) t_b = {-b.re, -b.im};
    if constexpr (angle == 3 * kTurn / 4) t_b = {b.im, -b.re};
    b = {a.re - t_b.re, a.im - t_b.im};
    a = {a.re + t_b.re, a.im + t_b.im};
  } else {
    butterfly(a, b, {Root<angle>::re, Root<angle>::im});
  }
}

// The root node's pass: natural order in, bit-reversed out. Its phase, kQuarters / 4 turn, is known at compile time.
// kIsReal: imaginary parts are absent on entry, so that the first level takes 3 operations a butterfly.
template <int kLog2Radix, int kQuarters, bool kIsReal>
FFTCONV_DEVICE void forward_root(complex_t* x) {
  constexpr int kRadix = 1 << kLog2Radix;
  static_for<kLog2Radix>([&](auto index) {
    constexpr int level = index.value + 1, half = kRadix >> level;
    static_for<(1 << (level - 1))>([&](auto node_index) {
      constexpr int node = node_index.value;
      constexpr int angle = ((kQuarters * kTurn / 4 + kTurn * bit_reverse(node, level - 1)) >> level);
      static_for<half>([&](auto column) {
        constexpr int a = node * 2 * half + column.value, b = a + half;
        if constexpr (kIsReal && level == 1) {
          const float re = x[a].re, other = x[b].re;
          x[a] = {fmaf(Root<angle>::re, other, re), Root<angle>::im * other};
          x[b] = {fmaf(-Root<angle>::re, other, re), -x[a].im};
        } else {
          butterfly_const<angle>(x[a], x[b]);
        }
      });
    });
  });
}

// Any other node's pass, with the twiddles of its even sub-nodes: level 1, level 2, two of level 3, four of level 4,
// ...
template <int kLog2Radix>
FFTCONV_DEVICE void forward_node(complex_t* x, const complex_t* twiddle) {
  constexpr int kRadix = 1 << kLog2Radix;
  static_for<kLog2Radix>([&](auto index) {
    constexpr int level = index.value + 1, half = kRadix >> level, offset = level == 1 ? 0 : 1 << (level - 2);
    static_for<(1 << (level - 1))>([&](auto node_index) {
      constexpr int node = node_index.value;
      static_for<half>([&](auto column) {
        constexpr int a = node * 2 * half + column.value, b = a + half;
        if constexpr (node & 1) {
          butterfly_quarter(x[a], x[b], twiddle[offset + node / 2]);
        } else {
          butterfly(x[a], x[b], twiddle[offset + node / 2]);
        }
      });
    });
  });
}

// Unscaled inverse DFT, bit-reversed in, natural out. The caller multiplies x[m] by conj(e(m phi / R)) for a node of
// phase phi.
template <int kLog2Radix>
FFTCONV_DEVICE void inverse_dft(complex_t* x) {
  constexpr int kRadix = 1 << kLog2Radix;
  static_for<kLog2Radix>([&](auto index) {
    constexpr int level = index.value + 1, half = 1 << index.value;
    static_for<(kRadix >> level)>([&](auto node_index) {
      constexpr int node = node_index.value;
      static_for<half>([&](auto column) {
        constexpr int a = node * 2 * half + column.value, b = a + half;
        butterfly_const<-(column.value * (kTurn >> level))>(x[a], x[b]);
      });
    });
  });
}

}  // namespace fftconv
