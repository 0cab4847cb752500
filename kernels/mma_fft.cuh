// The passes of a transform on tensor cores: those of a strip, and those of a line there and back. See mma_layout.cuh.
#pragma once
#include "mma.cuh"
#include "mma_layout.cuh"

namespace fftconv {

FFTCONV_DEVICE unsigned pack_halves(float a, float b) { return bits_of(__floats2half2_rn(a, b)); }

// What is between two products of matrices: values of two neighbouring columns, in halves.
struct HalfArithmetic {
  using pair_t = __half2;
  FFTCONV_DEVICE static pair_t both(unsigned word) { return halves_of(word); }
  FFTCONV_DEVICE static unsigned pack(pair_t v) { return bits_of(v); }
  FFTCONV_DEVICE static pair_t add(pair_t a, pair_t b) { return __hadd2(a, b); }
  FFTCONV_DEVICE static pair_t subtract(pair_t a, pair_t b) { return __hsub2(a, b); }
  // a * b + c * d, or a * b - c * d
  FFTCONV_DEVICE static pair_t sum_of_products(pair_t a, pair_t b, pair_t c, pair_t d) {
    return fused_multiply_add(a, b, __hmul2(c, d));
  }
  FFTCONV_DEVICE static pair_t difference_of_products(pair_t a, pair_t b, pair_t c, pair_t d) {
    return fused_multiply_add(a, b, __hneg2(__hmul2(c, d)));
  }
  FFTCONV_DEVICE static void product(pair_t& upper, pair_t& lower, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    unsigned d[2];
    set_product(d, a, b0, b1);
    upper = halves_of(d[0]);
    lower = halves_of(d[1]);
  }
};

// That of the first pass, whose inputs are exact but for one rounding.
struct FloatArithmetic {
  using pair_t = float2;
  FFTCONV_DEVICE static pair_t both(unsigned word) { return make_float2(__uint_as_float(word), __uint_as_float(word)); }
  FFTCONV_DEVICE static unsigned pack(pair_t v) { return pack_halves(v.x, v.y); }
  FFTCONV_DEVICE static pair_t sum_of_products(pair_t a, pair_t b, pair_t c, pair_t d) {
    return make_float2(fmaf(a.x, b.x, c.x * d.x), fmaf(a.y, b.y, c.y * d.y));
  }
  FFTCONV_DEVICE static pair_t difference_of_products(pair_t a, pair_t b, pair_t c, pair_t d) {
    return make_float2(fmaf(a.x, b.x, -c.x * d.x), fmaf(a.y, b.y, -c.y * d.y));
  }
};

// Two neighbouring complex columns.
template <class Arithmetic>
struct ComplexPair {
  typename Arithmetic::pair_t re, im;

  FFTCONV_DEVICE void multiply(const ComplexPair& factor) {
    const auto real = Arithmetic::difference_of_products(re, factor.re, im, factor.im);
    im = Arithmetic::sum_of_products(re, factor.im, im, factor.re);
    re = real;
  }
  FFTCONV_DEVICE void multiply_conj(const ComplexPair& factor) {
    const auto real = Arithmetic::sum_of_products(re, factor.re, im, factor.im);
    im = Arithmetic::difference_of_products(im, factor.re, re, factor.im);
    re = real;
  }
  FFTCONV_DEVICE void multiply_matrix(const unsigned (&matrix)[4], const ComplexPair& column) {
    Arithmetic::product(im, re, matrix, Arithmetic::pack(column.im), Arithmetic::pack(column.re));
  }
};
template <class Arithmetic>
FFTCONV_DEVICE ComplexPair<Arithmetic> operator+(const ComplexPair<Arithmetic>& a, const ComplexPair<Arithmetic>& b) {
  return {Arithmetic::add(a.re, b.re), Arithmetic::add(a.im, b.im)};
}
template <class Arithmetic>
FFTCONV_DEVICE ComplexPair<Arithmetic> operator-(const ComplexPair<Arithmetic>& a, const ComplexPair<Arithmetic>& b) {
  return {Arithmetic::subtract(a.re, b.re), Arithmetic::subtract(a.im, b.im)};
}

// The eight factors that a thread has of a line, in four pairs.
struct Factors {
  ComplexPair<HalfArithmetic> pair[4];

  FFTCONV_DEVICE void load(const uint4* g_words, int lane) {
    const uint4 re = __ldg(g_words + lane), im = __ldg(g_words + 32 + lane);
    pair[0] = {halves_of(re.x), halves_of(im.x)};
    pair[1] = {halves_of(re.y), halves_of(im.y)};
    pair[2] = {halves_of(re.z), halves_of(im.z)};
    pair[3] = {halves_of(re.w), halves_of(im.w)};
  }
  // Each factor scaled, and a real number added.
  FFTCONV_DEVICE void adjust(float scale, float added) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 re = __half22float2(pair[i].re), im = __half22float2(pair[i].im);
      pair[i].re = __floats2half2_rn(fmaf(re.x, scale, added), fmaf(re.y, scale, added));
      pair[i].im = __floats2half2_rn(im.x * scale, im.y * scale);
    }
  }
};

// Two complex numbers, each the factor of two neighbouring columns.
template <class Arithmetic>
struct Twiddles {
  ComplexPair<Arithmetic> factor[2];

  FFTCONV_DEVICE void load(const uint4* g_word) {
    const uint4 v = __ldg(g_word);
    factor[0] = {Arithmetic::both(v.x), Arithmetic::both(v.y)};
    factor[1] = {Arithmetic::both(v.z), Arithmetic::both(v.w)};
  }
};

FFTCONV_DEVICE void load_fragment(unsigned (&a)[4], const uint4* g_word) {
  const uint4 v = __ldg(g_word);
  a[0] = v.x;
  a[1] = v.y;
  a[2] = v.z;
  a[3] = v.w;
}

// What a line is multiplied by on its way.
template <class Layout>
struct LineFactors {
  Factors forward, spectrum, inverse;
  Twiddles<HalfArithmetic> twiddle;

  // All but the spectrum.
  FFTCONV_DEVICE void load(const uint4* g_table, int node, int lane) {
    forward.load(g_table + Layout::kForwardFactors + node * Layout::kFactorWords * 32, lane);
    inverse.load(g_table + Layout::kInverseFactors + node * Layout::kFactorWords * 32, lane);
    if constexpr (!Layout::kHasColumnMatrices) twiddle.load(g_table + Layout::kLineTwiddles + node * 8 + lane / 4);
  }
};

template <class Layout>
struct MmaFft {
  using Arithmetic = HalfArithmetic;
  using Float = FloatArithmetic;
  using Pair = ComplexPair<Arithmetic>;

  // The first pass. b[group][tile] is the right factor of 16 lines of the points tile, tile + kTiles, ... of a strip.
  FFTCONV_DEVICE static void forward_strip(const unsigned (&b)[Layout::kGroups][Layout::kTiles][2], char* s_slab,
                                           int strip, int lane, const uint4* g_table) {
    constexpr int kTiles = Layout::kTiles, kWords = kTiles / 2;
    const int g = lane / 4, t = lane % 4;
    const int label = Layout::label(Layout::column_n1(strip, t)), inside = kTiles == 4 ? t % 2 * 8 : 0;
#pragma unroll 1
    for (int group = 0; group < Layout::kGroups; group++) {
      unsigned cosine[Layout::kGroups][4], sine[Layout::kGroups][4];
#pragma unroll
      for (int from = 0; from < Layout::kGroups; from++) {
        const uint4* g_matrix = g_table + Layout::kFirst + (group * Layout::kGroups + from) * 64 + lane;
        load_fragment(cosine[from], g_matrix);
        load_fragment(sine[from], g_matrix + 32);
      }
      Twiddles<Float> twiddle;
      twiddle.load(g_table + Layout::kStripTwiddles + (strip * Layout::kGroups + group) * 32 + lane);
#pragma unroll
      for (int parity = 0; parity < 2; parity++) {
        unsigned re[2][kWords], im[2][kWords];  // of lines g and g + 8
#pragma unroll
        for (int two = 0; two < kTiles / 4; two++) {
          float real[2][4], imag[2][4];
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int tile = 4 * two + 2 * i + parity;
#pragma unroll
            for (int v = 0; v < 4; v++) real[i][v] = imag[i][v] = 0.f;
#pragma unroll
            for (int from = 0; from < Layout::kGroups; from++) {
              add_product(real[i], cosine[from], b[from][tile][0], b[from][tile][1]);
              add_product(imag[i], sine[from], b[from][tile][0], b[from][tile][1]);
            }
          }
#pragma unroll
          for (int v = 0; v < 4; v++) {
            ComplexPair<Float> pair = {make_float2(real[0][v], real[1][v]), make_float2(imag[0][v], imag[1][v])};
            pair.multiply(twiddle.factor[v / 2]);
            re[v / 2][two + kTiles / 4 * (v % 2)] = Float::pack(pair.re);
            im[v / 2][two + kTiles / 4 * (v % 2)] = Float::pack(pair.im);
          }
        }
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
          char* s_chunk = s_slab + Layout::chunk(16 * group + 8 * lower + g, label, parity) + inside;
          write_words(s_chunk, re[lower]);
          write_words(s_chunk + Layout::kPlaneBytes, im[lower]);
        }
      }
    }
  }

  // A lane's address of four matrices of a line, those of even n2: imaginary and real parts of even n1, then of odd n1.
  // The order is that of the words of right factors, which must be neighbours in the registers.
  FFTCONV_DEVICE static int line_offset(int line, int lane) {
    return Layout::chunk(line, lane % 8 + lane / 16 * 8, 0) + (lane / 8 % 2 == 0 ? Layout::kPlaneBytes : 0);
  }

  // A line's spectrum: [j1 half][j2 half], rows j1 % 8 = g, columns j2 % 8 = 2t and 2t + 1. Of pairs in other arrays
  // [c] is by the parity of the index that is transformed next, or [h] by the upper half of the one that was last.
  using Spectrum = Pair[2][2];

  // The other passes of a line there, at `offset` in the slab (see line_offset).
  FFTCONV_DEVICE static void forward_line(Spectrum& w, const char* s_slab, int offset, const unsigned (&matrix)[4][4],
                                          const LineFactors<Layout>& factors) {
    Pair z[2][2];  // [j1 half][n2 parity]: row j1 % 8 = g, columns n2 / 2 = 2t and 2t + 1
#pragma unroll
    for (int c = 0; c < 2; c++) {
      unsigned words[4];  // imaginary and real parts of even n1, then of odd n1
      load_transposed(words, s_slab + (offset ^ (16 * c)));
      Pair even, odd;
      Arithmetic::product(even.im, even.re, matrix[0], words[0], words[1]);
      Arithmetic::product(odd.im, odd.re, matrix[1], words[2], words[3]);
      z[0][c] = even + odd;
      z[1][c] = even - odd;
#pragma unroll
      for (int h = 0; h < 2; h++) z[h][c].multiply(factors.forward.pair[2 * c + h]);
    }
    Pair sum[2][2];  // [n2 parity][j1 half]
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const unsigned a[4] = {Arithmetic::pack(z[0][c].re), Arithmetic::pack(z[1][c].re), Arithmetic::pack(z[0][c].im),
                             Arithmetic::pack(z[1][c].im)};
      Arithmetic::product(sum[c][0].re, sum[c][1].re, a, matrix[c][0], matrix[c][1]);
      Arithmetic::product(sum[c][0].im, sum[c][1].im, a, matrix[c][2], matrix[c][3]);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      w[h][0] = sum[0][h] + sum[1][h];
      w[h][1] = sum[0][h] - sum[1][h];
    }
  }

  // w times the filter's spectrum, or its conjugate.
  template <bool kIsConjugate>
  FFTCONV_DEVICE static void multiply_line(Spectrum& w, const Factors& spectrum) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if constexpr (kIsConjugate) {
          w[h][i].multiply_conj(spectrum.pair[2 * i + h]);
        } else {
          w[h][i].multiply(spectrum.pair[2 * i + h]);
        }
      }
    }
  }

  // The same passes back, to where the line came from.
  FFTCONV_DEVICE static void inverse_line(const Spectrum& w, char* s_slab, int offset, const unsigned (&matrix)[4][4],
                                          const LineFactors<Layout>& factors) {
    Pair v[2][2];  // [n2 parity][j1 half]: row n2 / 2 = g, columns j1 % 8 = 2t and 2t + 1
#pragma unroll
    for (int h = 0; h < 2; h++) {
      v[0][h].multiply_matrix(matrix[2], w[h][0] + w[h][1]);
      v[1][h].multiply_matrix(matrix[3], w[h][0] - w[h][1]);
#pragma unroll
      for (int c = 0; c < 2; c++) v[c][h].multiply_conj(factors.inverse.pair[2 * h + c]);
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
      Pair x[2];  // [n1 parity]: row n1 / 2 = g, columns n2 / 2 = 2t and 2t + 1
      x[0].multiply_matrix(matrix[2], v[c][0] + v[c][1]);
      x[1].multiply_matrix(matrix[3], v[c][0] - v[c][1]);
      unsigned words[4];  // imaginary and real parts of even n1, then of odd n1
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if constexpr (!Layout::kHasColumnMatrices) x[i].multiply_conj(factors.twiddle.factor[i]);
        words[2 * i] = Arithmetic::pack(x[i].im);
        words[2 * i + 1] = Arithmetic::pack(x[i].re);
      }
      store_matrices(s_slab + (offset ^ (16 * c)), words);
    }
  }

  // A lane's address of the matrices of an n1: of j0, then of n2 by parity.
  FFTCONV_DEVICE static int column_offset(int n1, int lane) {
    return Layout::chunk(lane % 16, Layout::label(n1), lane / 16);
  }

  // The last pass, for one n1 of kSlabs slabs, whose matrices are at s_columns: body(slab, group, lower, values) gets
  // the four points n2 = 4t .. 4t + 3 of line 16 group + 8 lower + g of a slab. kUnrolled: groups whose code is laid
  // out.
  template <int kUnrolled, int kSlabs, class Body>
  FFTCONV_DEVICE static void inverse_column(const char* const (&s_columns)[kSlabs], int n1, int lane,
                                            const uint4* g_table, Body body) {
    unsigned re[kSlabs][Layout::kGroups][4], im[kSlabs][Layout::kGroups][4];
#pragma unroll
    for (int slab = 0; slab < kSlabs; slab++) {
#pragma unroll
      for (int from = 0; from < Layout::kGroups; from++) {
        load_transposed(re[slab][from], s_columns[slab] + from * 16 * 512);
        load_transposed(im[slab][from], s_columns[slab] + from * 16 * 512 + Layout::kPlaneBytes);
      }
    }
#pragma unroll kUnrolled
    for (int group = 0; group < Layout::kGroups; group++) {
      float sum[kSlabs][2][4];  // [n2 parity]
#pragma unroll
      for (int slab = 0; slab < kSlabs; slab++) {
#pragma unroll
        for (int v = 0; v < 4; v++) sum[slab][0][v] = sum[slab][1][v] = 0.f;
      }
#pragma unroll
      for (int from = 0; from < Layout::kGroups; from++) {
        unsigned cosine[4], sine[4];
        const int index = Layout::kHasColumnMatrices ? n1 : group * Layout::kGroups + from;
        const uint4* g_matrix = g_table + Layout::kLast + index * 64 + lane;
        load_fragment(cosine, g_matrix);
        load_fragment(sine, g_matrix + 32);
#pragma unroll
        for (int slab = 0; slab < kSlabs; slab++) {
#pragma unroll
          for (int c = 0; c < 2; c++) {
            add_product(sum[slab][c], cosine, re[slab][from][2 * c], re[slab][from][2 * c + 1]);
            add_product(sum[slab][c], sine, im[slab][from][2 * c], im[slab][from][2 * c + 1]);
          }
        }
      }
      static_for<kSlabs>([&](auto slab) {
        const auto& v = sum[slab.value];
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
          body(slab, group, lower,
               make_float4(v[0][2 * lower], v[1][2 * lower], v[0][2 * lower + 1], v[1][2 * lower + 1]));
        }
      });
    }
  }

 private:
  FFTCONV_DEVICE static void write_words(char* s_target, const unsigned (&words)[4]) {
    *reinterpret_cast<uint4*>(s_target) = make_uint4(words[0], words[1], words[2], words[3]);
  }
  FFTCONV_DEVICE static void write_words(char* s_target, const unsigned (&words)[2]) {
    *reinterpret_cast<uint2*>(s_target) = make_uint2(words[0], words[1]);
  }
};

}  // namespace fftconv
