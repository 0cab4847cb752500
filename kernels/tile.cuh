// The outer step of transforms that outgrow a block: M = C x R points, in C rows of R.
//
// Column j holds the points c R + j, c = 0 .. C - 1. A root transform of C points on each column splits the ring z^M =
// i into C nodes, the rings z^R = e(phi_s) with phi_s = (1/4 + bitrev(s)) / C, whose points are the rows. Point j of
// row s is then multiplied by e(phi_s j / R): substituting z = e(phi_s / R) w makes every row cyclic, so that one block
// transform with one table of twiddles serves them all.
//
// A block takes a *tile* of kWidth neighbouring columns. Position c kWidth + w of a tile is point c of its column w:
// the column transform is what the first passes of a block transform of the tile's points would do, stopped at nodes of
// kWidth points, so a tile is a layout whose radices multiply to C.
#pragma once
#include "block_fft.cuh"
#include "io.cuh"

namespace fftconv {

template <bool kIsVector, int kLog2Points, int kLog2Ept, int... kLog2Radices>
struct TileLayout : PassLayout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...> {
  using Base = PassLayout<kIsVector, kLog2Points, kLog2Ept, kLog2Radices...>;
  static constexpr int kLog2Rows = Base::log2_nodes(Base::kPasses), kRows = 1 << kLog2Rows;
  static constexpr int kLog2Width = kLog2Points - kLog2Rows, kWidth = 1 << kLog2Width;
  static constexpr int kLog2Total = kLog2Points + kLog2Rows, kTotal = 1 << kLog2Total;  // M; a tile has R points

  // Where a position of the first tile lies among the M points, and in the C rows of R. It is a sum over the bits of
  // the position, so the thread's part and the slot's are placed apart.
  FFTCONV_DEVICE static constexpr int place(int position) {
    return ((position >> kLog2Width) << kLog2Points) + (position & (kWidth - 1));
  }

  static_assert(kLog2Width >= 1, "a tile is two columns wide at least");
};

// A thread's points of a tile in a row that is read; zero where the row has ended. A row is read and written once, so
// its lines are the first to leave L2.
template <class Traits>
struct TileInput {
  using Tile = typename Traits::Layout;
  using io_t = typename Traits::io_t;
  using S = Storage<io_t>;
  const io_t* g_values;
  int remaining;

  // `length` counts the points of the row from `g_row` on.
  FFTCONV_DEVICE TileInput(const io_t* g_row, int length, int first_column, int thread) {
    const int base = Tile::place(Pass<Tile, 0>::base(thread)) + first_column;
    g_values = g_row + base;
    remaining = length - base;
  }
  template <class A>
  FFTCONV_DEVICE float2 load(A) const {
    constexpr int kOffset = Tile::place(A::kOffset);
    const bool is_inside = !Traits::kHasTail || remaining > kOffset;
    if constexpr (A::kIsPair) {
      typename S::pair_t pair{};
      if (is_inside) pair = __ldcs(reinterpret_cast<const typename S::pair_t*>(g_values + kOffset));
      return S::widen2(pair);
    } else {
      io_t value{};
      if (is_inside) value = __ldcs(g_values + kOffset);
      return make_float2(S::widen(value), 0.f);
    }
  }
};

// The same of a row that is written.
template <class Traits>
struct TileOutput {
  using Tile = typename Traits::Layout;
  using io_t = typename Traits::io_t;
  using S = Storage<io_t>;
  io_t* g_values;
  int remaining;

  FFTCONV_DEVICE TileOutput(io_t* g_row, int length, int first_column, int thread) {
    const int base = Tile::place(Pass<Tile, 0>::base(thread)) + first_column;
    g_values = g_row + base;
    remaining = length - base;
  }
  template <class A>
  FFTCONV_DEVICE void store(A, float2 v) const {
    constexpr int kOffset = Tile::place(A::kOffset);
    if (Traits::kHasTail && remaining <= kOffset) return;
    if constexpr (A::kIsPair) {
      __stcs(reinterpret_cast<typename S::pair_t*>(g_values + kOffset), S::narrow2(v.x, v.y));
    } else {
      __stcs(g_values + kOffset, S::narrow(v.x));
    }
  }
};

// e(angle / 2^kLog2Turn), for angles of up to 24 bits beside their sign.
template <int kLog2Turn>
FFTCONV_DEVICE complex_t root_of_unity(int angle) {
  constexpr float kHalfTurn = 2.f / static_cast<float>(1 << kLog2Turn);
  complex_t root;
  sincospif(static_cast<float>(angle) * kHalfTurn, &root.im, &root.re);
  return root;
}

// e(kNumerator / 2^kLog2Turn), of up to a quarter turn.
template <int kNumerator, int kLog2Turn>
struct ShortRoot {
  static constexpr double kAngle = 2 * kPi * kNumerator / (1 << kLog2Turn);
  static constexpr float re = static_cast<float>(taylor_cos(kAngle));
  static constexpr float im = static_cast<float>(taylor_cos(kPi / 2 - kAngle));
  static_assert(4 * kNumerator <= 1 << kLog2Turn, "the series is for up to a quarter turn");
};

// x[i] *= turn * e(bitrev(i) times the step), by a tree of products: steps[k] is that of bit k of bitrev(i).
template <int kLog2Radix, bool kIsConjugate, int kLevel = 0, int kIndex = 0>
FFTCONV_DEVICE void turn_node(complex_t* x, complex_t turn, const complex_t* steps) {
  if constexpr (kLevel == kLog2Radix) {
    x[kIndex] = kIsConjugate ? multiply_conj(x[kIndex], turn) : multiply(x[kIndex], turn);
  } else {
    turn_node<kLog2Radix, kIsConjugate, kLevel + 1, kIndex>(x, turn, steps);
    turn_node<kLog2Radix, kIsConjugate, kLevel + 1, kIndex | (1 << (kLog2Radix - 1 - kLevel))>(
        x, multiply(turn, steps[kLevel]), steps);
  }
}

// steps[k] = first_steps[k] turned by kDistance of 2^(kLog2Step - k) in a turn.
template <int kDistance, int kLog2Step, int kCount>
FFTCONV_DEVICE void turn_steps(const complex_t* first_steps, complex_t* steps) {
  static_for<kCount>([&](auto k) {
    using Step = ShortRoot<(kDistance << k.value), kLog2Step>;
    steps[k.value] = kDistance == 0 ? first_steps[k.value] : multiply(first_steps[k.value], {Step::re, Step::im});
  });
}

// Multiplies what a thread holds after the last pass of a tile by e(phi_s j / R), or by its conjugate.
template <class Tile, bool kIsConjugate>
FFTCONV_DEVICE void turn_columns(complex_t* x, int first_column, int thread) {
  using P = Pass<Tile, Tile::kPasses - 1>;
  constexpr int kLog2Turn = Tile::kLog2Total + 2, kLog2Nodes = Tile::log2_nodes(Tile::kPasses - 1);
  const int base = P::base(thread);
  // With s = node * radix + i: e(j / M (1/4 + bitrev(node))) e(j / (radix R))^bitrev(i).
  int factor = 1;
  if constexpr (kLog2Nodes > 0) {
    const unsigned node = base >> (Tile::kLog2Width + P::kLog2Radix);
    factor += 4 * static_cast<int>(__brev(node) >> (32 - kLog2Nodes));
  }
  const int first = first_column + (base & (Tile::kWidth - 1));
  constexpr int kLog2Step = Tile::kLog2Points + P::kLog2Radix;
  complex_t first_steps[P::kLog2Radix];
  static_for<P::kLog2Radix>([&](auto k) { first_steps[k.value] = root_of_unity<kLog2Step - k.value>(first); });
  int angle = first * factor;
  if (angle >= 1 << (kLog2Turn - 1)) angle -= 1 << kLog2Turn;
  const complex_t first_turn = root_of_unity<kLog2Turn>(angle);
  // The other columns of the thread are a known distance away.
  static_for<P::kColumns>([&](auto column) {
    constexpr int slot = column.value * P::kRadix, distance = P::offset(slot);
    complex_t turn = first_turn, steps[P::kLog2Radix];
    turn_steps<distance, kLog2Step, P::kLog2Radix>(first_steps, steps);
    if constexpr (distance > 0 && kLog2Nodes == 0) {
      using Turn = ShortRoot<distance, kLog2Turn>;
      turn = multiply(first_turn, {Turn::re, Turn::im});
    } else if constexpr (distance > 0) {
      turn = multiply(first_turn, root_of_unity<kLog2Turn>(distance * factor));
    }
    turn_node<P::kLog2Radix, kIsConjugate>(x + slot, turn, steps);
  });
}

}  // namespace fftconv
