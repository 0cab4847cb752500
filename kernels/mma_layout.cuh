// How a block transforms rows on tensor cores: where points lie in shared memory, and constants in the table.
//
// A row of M = kRadix * 256 points x[n], n = 256 n0 + 16 n1 + n2, is transformed over n0, n1 and n2 in turn; with j =
// j0 + kRadix (j1 + 16 j2) the result is the polynomial x at e((j + phi) / M), e(x) = exp(2 pi i x), phi = 1/4 (see
// dft.cuh): the sum of
//   e(n0 (j0 + phi) / kRadix)                                the first pass, a matrix by n0 and j0,
//   * e(n1 (j0 + phi) / (16 kRadix)) e(n1 j1 / 16)           a twiddle, and a transform of 16 points,
//   * e(n2 (j0 + phi + kRadix j1) / M) e(n2 j2 / 16)         another one, and another.
// The inverse takes the same steps back with conjugate factors.
//
// Rows lie in *slabs* of kLines lines of 256 points: line = n0, or j0 once transformed. Rows shorter than 16 lines
// share a slab, and the first pass's matrix is then one of blocks on the diagonal. A *strip* of a slab is 8 kTiles
// columns of all its lines: a warp reads it, does the first pass and the last one on it, and writes it. Between these
// the lines are 16 x 16 matrices [n1][n2], each of one warp.
#pragma once
#include "types.cuh"

namespace fftconv {

template <int kLog2Points_, int kSlabs_, int kTiles_>
struct MmaLayout {
  static constexpr int kLog2Points = kLog2Points_, kPoints = 1 << kLog2Points;
  static constexpr int kSlabs = kSlabs_;  // of a block
  static constexpr int kTiles = kTiles_;  // neighbouring points that a thread reads; one of each goes to a product
  static constexpr int kRadix = kPoints / 256;
  static constexpr int kLines = kRadix < 16 ? 16 : kRadix, kGroups = kLines / 16;
  static constexpr int kSlabRows = kLines / kRadix, kRows = kSlabs * kSlabRows;
  static constexpr int kStrips = 32 / kTiles, kWarps = kSlabs * kStrips, kThreads = 32 * kWarps;
  static constexpr int kPlaneBytes = kLines * 512, kSlabBytes = 2 * kPlaneBytes;  // real parts, then imaginary ones

  // The inverse of the first twiddle is part of the last pass's matrices, one for each n1: that is more exact than to
  // multiply by it in halves. For many lines these would be large.
  static constexpr bool kHasColumnMatrices = kGroups == 1;

  // Offsets into the table, in words of 16 bytes.
  static constexpr int kFactorWords = 2;           // of the eight factors that a thread has of a line
  static constexpr int kMiddle = 0;                // [4][lane]: matrices of the transforms of 16 points
  static constexpr int kFirst = kMiddle + 4 * 32;  // [group of j0][group of n0][cosine, sine][lane]
  // [group of n0][group of j0], or [n1]; of each [cosine, sine][lane]
  static constexpr int kLast = kFirst + 2 * kGroups * kGroups * 32;
  static constexpr int kLastWords = 2 * (kHasColumnMatrices ? 16 : kGroups * kGroups) * 32;
  static constexpr int kStripTwiddles = kLast + kLastWords;                      // [strip][group of j0][lane], float32
  static constexpr int kLineTwiddles = kStripTwiddles + kStrips * kGroups * 32;  // [j0][n1 / 2]
  static constexpr int kForwardFactors = kLineTwiddles + kRadix * 8;             // [j0][kFactorWords][lane]
  static constexpr int kInverseFactors = kForwardFactors + kRadix * kFactorWords * 32;
  static constexpr int kSpectrumWords = kRadix * kFactorWords * 32;  // of a channel: [j0][kFactorWords][lane]

  // Even n1 and n2 come before odd ones: halves of a transform of 16 points lie together.
  FFTCONV_DEVICE static int label(int n) { return n / 2 + n % 2 * 8; }

  // Byte in a plane of the 16 bytes of a line that hold n1 (by label) and the n2 of a parity. The chunks of a line are
  // permuted so that reads and writes of lines, and of columns, are free of bank conflicts.
  FFTCONV_DEVICE static int chunk(int line, int label, int parity) {
    const int index = (2 * label + parity) ^ (label >> 2 & 1) ^ (label >> 3 << 2) ^ (line & 7);
    return line * 512 + index * 16;
  }
  // From the chunks of a strip's first n1 to those of another one: a constant to combine by exclusive or.
  FFTCONV_DEVICE static constexpr int column_step(int column) { return 16 * (column / 2 * 2 ^ column % 2 * 20); }
  // The n1 of the neighbouring points that a thread has of a strip, in the first pass.
  FFTCONV_DEVICE static int column_n1(int strip, int t) { return (4 * strip + t) * kTiles / 8; }

  static_assert(kTiles == 4 || kTiles == 8, "a thread reads 8 or 16 bytes at a time");
  static_assert(kLines % kWarps == 0, "lines are dealt out evenly");
};

}  // namespace fftconv
