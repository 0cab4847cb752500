// The split of a row of 3 * 2^k points into three nodes, and its inverse. With h = 2^k, z^3h - e(phi) is the product of
// z^h - w_r for the three roots w_r = e((phi + r) / 3), and a polynomial of segments x_0 + x_1 z^h + x_2 z^2h is x_0 +
// w_r x_1 + w_r^2 x_2 modulo one. Thread i of group r holds segment r before, at the places that it has in node r, and
// that node after: so it exchanges points with threads i of the other groups only.
#pragma once
#include "dft.cuh"
#include "layout.cuh"

namespace fftconv {

// w_root^segment where phi is a quarter turn: a multiple of a twelfth of a turn.
template <int kRoot, int kSegment>
struct RootPower {
  static constexpr int kTwelfths = (1 + 4 * kRoot) * kSegment % 12;
  FFTCONV_DEVICE static constexpr double cos_twelfths(int count) {
    constexpr double cosines[] = {1, 0.86602540378443864676, 0.5, 0};
    count = (count % 12 + 12) % 12;
    if (count > 6) return cos_twelfths(12 - count);
    return count > 3 ? -cosines[6 - count] : cosines[count];
  }
  static constexpr float re = static_cast<float>(cos_twelfths(kTwelfths));
  static constexpr float im = static_cast<float>(cos_twelfths(kTwelfths - 3));
};

// Of a thread of group r, whose siblings are in groups r + 1 and r + 2 modulo 3.
template <class Layout>
struct RootNodes {
  static constexpr int kRoots = 3;
  using P = Pass<Layout, 0>;
  static constexpr int kUnit = 2 * P::kWidth;          // floats that are accessed together
  static constexpr int kUnits = Layout::kEpt / kUnit;  // accesses to a float a point
  static_assert(Layout::kRoots == kRoots, "a row is split into three");

  complex_t* s_places;  // of the thread in the first pass, which it alone reads before and after
  int root;

  FFTCONV_DEVICE RootNodes(complex_t* s_row, int thread)
      : s_places(s_row + Layout::pad(P::base(thread))), root(thread / P::kNodeThreads) {}

  // From segments to nodes. All threads must have read what there was in s_row.
  template <bool kIsReal>
  FFTCONV_DEVICE void split(complex_t* x) const {
    constexpr int kFloats = kIsReal ? 1 : 2;
    write<kFloats * kUnits, 0>([&](auto i) { return float_of<kFloats>(x, i); });
    __syncthreads();
    const complex_t own = power(0, 0);
    static_for<Layout::kEpt>([&](auto slot) {
      complex_t& v = x[slot.value];
      v = kIsReal ? complex_t{v.re * own.re, v.re * own.im} : multiply(v, own);
    });
    static_range<1, kRoots>([&](auto distance) {
      const complex_t factor = power(0, distance.value);
      read<kFloats * kUnits, 0>(distance.value, [&](auto i, float v) { add<kFloats>(x, i, v, factor); });
    });
    __syncthreads();  // all have read before the first pass writes
  }

  // From nodes to segments, three times as large; kIsReal: only real parts are wanted, and each thread forms its
  // siblings' shares of them.
  template <bool kIsReal>
  FFTCONV_DEVICE void join(complex_t* x) const {
    const complex_t own = conjugate(power(0, 0));
    if constexpr (kIsReal) {
      static_range<1, kRoots>([&](auto distance) {
        const complex_t factor = power(0, distance.value);
        write<kUnits, (distance.value - 1) * kUnits>(
            [&](auto i) { return fmaf(x[i.value].re, factor.re, x[i.value].im * factor.im); });
      });
      static_for<Layout::kEpt>([&](auto slot) { x[slot.value].re = multiply(x[slot.value], own).re; });
      __syncthreads();
      static_range<1, kRoots>([&](auto distance) {
        read<kUnits, (kRoots - 1 - distance.value) * kUnits>(distance.value,
                                                             [&](auto i, float v) { x[i.value].re += v; });
      });
    } else {
      write<2 * kUnits, 0>([&](auto i) { return float_of<2>(x, i); });
      static_for<Layout::kEpt>([&](auto slot) { x[slot.value] = multiply(x[slot.value], own); });
      __syncthreads();
      static_range<1, kRoots>([&](auto distance) {
        const complex_t factor = conjugate(power(distance.value, 0));
        read<2 * kUnits, 0>(distance.value, [&](auto i, float v) { add<2>(x, i, v, factor); });
      });
    }
  }

 private:
  FFTCONV_DEVICE static complex_t conjugate(complex_t v) { return {v.re, -v.im}; }

  // The power of the root `of_root` after the own one that belongs to the segment `of_segment` after the own one.
  FFTCONV_DEVICE complex_t power(int of_root, int of_segment) const {
    complex_t found = {0.f, 0.f};
    static_for<kRoots * kRoots>([&](auto index) {
      constexpr int r = index.value / kRoots, s = index.value % kRoots;
      if ((root + of_root) % kRoots == r && (root + of_segment) % kRoots == s) {
        found = {RootPower<r, s>::re, RootPower<r, s>::im};
      }
    });
    return found;
  }

  template <int kFloats, class Index>
  FFTCONV_DEVICE static float float_of(const complex_t* x, Index) {
    const complex_t v = x[Index::value / kFloats];
    return Index::value % kFloats == 0 ? v.re : v.im;
  }
  // x += factor times the same float of a sibling
  template <int kFloats, class Index>
  FFTCONV_DEVICE static void add(complex_t* x, Index, float v, complex_t factor) {
    complex_t& sum = x[Index::value / kFloats];
    if constexpr (Index::value % kFloats == 0) {
      sum = {fmaf(v, factor.re, sum.re), fmaf(v, factor.im, sum.im)};
    } else {
      sum = {fmaf(-v, factor.im, sum.re), fmaf(v, factor.re, sum.im)};
    }
  }

  FFTCONV_DEVICE static constexpr int place(int access) { return Layout::pad(P::offset(P::slot(access, 0))); }

  // kCount accesses from kFirst on: to the own places, and to those of the sibling so many groups further.
  template <int kCount, int kFirst, class Value>
  FFTCONV_DEVICE void write(Value value) const {
    static_for<kCount>([&](auto access) {
      complex_t* s_place = s_places + place(kFirst + access.value);
      constexpr int first = access.value * kUnit;
      if constexpr (kUnit == 4) {
        *reinterpret_cast<float4*>(s_place) =
            make_float4(value(Int<first>{}), value(Int<first + 1>{}), value(Int<first + 2>{}), value(Int<first + 3>{}));
      } else {
        *reinterpret_cast<float2*>(s_place) = make_float2(value(Int<first>{}), value(Int<first + 1>{}));
      }
    });
  }
  template <int kCount, int kFirst, class Use>
  FFTCONV_DEVICE void read(int distance, Use use) const {
    const int sibling = root + distance < kRoots ? distance : distance - kRoots;
    const complex_t* s_siblings = s_places + sibling * (Layout::kRowSlots / kRoots);
    static_for<kCount>([&](auto access) {
      const complex_t* s_place = s_siblings + place(kFirst + access.value);
      constexpr int first = access.value * kUnit;
      if constexpr (kUnit == 4) {
        const float4 v = *reinterpret_cast<const float4*>(s_place);
        use(Int<first>{}, v.x);
        use(Int<first + 1>{}, v.y);
        use(Int<first + 2>{}, v.z);
        use(Int<first + 3>{}, v.w);
      } else {
        const float2 v = *reinterpret_cast<const float2*>(s_place);
        use(Int<first>{}, v.x);
        use(Int<first + 1>{}, v.y);
      }
    });
  }
};

}  // namespace fftconv
