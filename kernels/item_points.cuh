// The M points of an item between two phases, as tiles of columns or rows of points (tile.cuh, points.cuh).
#pragma once
#include "points.cuh"
#include "tile.cuh"

namespace fftconv {

// Traits: the layouts, and kIsHalf: rows have float16 points. Filters and sums have float32 ones all the same.
template <class Traits>
struct ItemPoints {
  using Tile = typename Traits::Tile;
  using TilePass = Pass<Tile, Tile::kPasses - 1>;
  using RowPass = Pass<typename Traits::Row, 0>;
  static constexpr int kScales = 2 * Tile::kRows;  // of a row's points

  void* g_points;
  float* g_scales;  // what undoes the scale of each tile after the first phase, and of each row after the second
  bool is_half;
  int part;  // of the task

  FFTCONV_DEVICE complex_t* points() const { return static_cast<complex_t*>(g_points); }

  // x -> the columns of a tile, with the numbers of the block's warps in s_largest
  FFTCONV_DEVICE void store_tile(const complex_t* x, float* s_largest) const {
    const int base = tile_base<TilePass>();
    if (!Traits::kIsHalf || !is_half) {
      store_points<TilePass>(x, points() + base, PlaceInTile{});
      return;
    }
    const float2 scale = half_scale<Traits::kThreads, Traits::kEpt>(x, s_largest);
    store_half_points<TilePass>(x, half_points() + base, PlaceInTile{}, scale.x);
    if (threadIdx.x == 0) __stcg(g_scales + part, scale.y);
  }
  FFTCONV_DEVICE void load_tile(complex_t* x) const {
    const int base = tile_base<TilePass>();
    if (!Traits::kIsHalf || !is_half) {
      load_points<TilePass>(x, points() + base, PlaceInTile{});
    } else {
      load_half_points<TilePass>(x, half_points() + base, PlaceInTile{},
                                 g_scales + Tile::kRows + OfWidth{}(TilePass::base(threadIdx.x)), OfWidth{});
    }
  }
  // The same, at the places that the columns have before the first pass.
  FFTCONV_DEVICE void store_columns(const complex_t* x) const {
    store_points<Pass<Tile, 0>>(x, points() + tile_base<Pass<Tile, 0>>(), PlaceInTile{});
  }
  FFTCONV_DEVICE void load_row(complex_t* x) const {
    const int base = row_base();
    if (!Traits::kIsHalf || !is_half) {
      load_points<RowPass>(x, points() + base, PlaceInRow{});
    } else {
      load_half_points<RowPass>(x, half_points() + base, PlaceInRow{}, g_scales + OfWidth{}(RowPass::base(threadIdx.x)),
                                OfWidth{});
    }
  }
  FFTCONV_DEVICE void store_row(const complex_t* x, float* s_largest) const {
    const int base = row_base();
    if (!Traits::kIsHalf || !is_half) {
      store_points<RowPass>(x, points() + base, PlaceInRow{});
      return;
    }
    const float2 scale = half_scale<Traits::kThreads, Traits::kEpt>(x, s_largest);
    store_half_points<RowPass>(x, half_points() + base, PlaceInRow{}, scale.x);
    if (threadIdx.x == 0) __stcg(g_scales + Tile::kRows + part, scale.y);
  }

 private:
  struct PlaceInTile {
    FFTCONV_DEVICE constexpr int operator()(int position) const { return Tile::place(position); }
  };
  struct PlaceInRow {
    FFTCONV_DEVICE constexpr int operator()(int position) const { return position; }
  };
  // Of positions in a tile the row, of positions in a row the tile.
  struct OfWidth {
    FFTCONV_DEVICE constexpr int operator()(int position) const { return position >> Tile::kLog2Width; }
  };

  FFTCONV_DEVICE unsigned* half_points() const { return static_cast<unsigned*>(g_points); }
  template <class P>
  FFTCONV_DEVICE int tile_base() const {
    return Tile::place(P::base(threadIdx.x)) + part * Tile::kWidth;
  }
  FFTCONV_DEVICE int row_base() const { return part * Tile::kPoints + RowPass::base(threadIdx.x); }
};

// A block's shared memory.
struct BlockMemory {
  complex_t* s_exchange;
  unsigned* s_numbers;  // of tasks
  float* s_largest;     // value of each warp

  template <class Row>
  FFTCONV_DEVICE static BlockMemory at(char* s_base, Row) {
    char* s_rest = s_base + Row::kRowSlots * sizeof(complex_t);
    return {reinterpret_cast<complex_t*>(s_base), reinterpret_cast<unsigned*>(s_rest),
            reinterpret_cast<float*>(s_rest + kNumberBytes)};
  }
  static constexpr int kNumberBytes = 16, kLargestBytes = 128;
};

}  // namespace fftconv
