// Products of 16 x 16 by 16 x 8 matrices of halves, or of bfloat16, on tensor cores, and the 8 x 8 matrices in shared
// memory that feed them (sm_80 and later). The host runtime of the tests has each of them in C++.
//
// A warp holds a matrix in fragments; with g = lane / 4 and t = lane % 4 a word, two halves, of a thread is
//   left factor (16 x 16):  a[0] row g, columns 2t and 2t + 1; a[1] row g + 8; a[2], a[3] the same 8 columns on;
//   right factor (16 x 8):  b[0] rows 2t and 2t + 1, column g; b[1] 8 rows on;
//   product (16 x 8):       row g, columns 2t and 2t + 1; then row g + 8.
#pragma once
#include "types.cuh"

namespace fftconv {

FFTCONV_DEVICE unsigned bits_of(__half2 v) { return *reinterpret_cast<const unsigned*>(&v); }
FFTCONV_DEVICE __half2 halves_of(unsigned bits) { return *reinterpret_cast<const __half2*>(&bits); }

#ifndef FFTCONV_HOST

// d += a * b, in float32.
FFTCONV_DEVICE void add_product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of matrices of bfloat16.
FFTCONV_DEVICE void add_product_bfloat16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = a * b, rounded to halves once.
FFTCONV_DEVICE void set_product(unsigned (&d)[2], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %8};"
      : "=r"(d[0]), "=r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

// Four 8 x 8 matrices of halves, each transposed: x[i] is rows 2t and 2t + 1 of column g. Lane 8 i + r gives the
// address of row r of matrix i, 16 bytes.
FFTCONV_DEVICE void load_transposed(unsigned (&x)[4], const char* s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(s_row)))
               : "memory");
}

// The same, not transposed: x[i] is columns 2t and 2t + 1 of row g.
FFTCONV_DEVICE void load_matrices(unsigned (&x)[4], const char* s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(s_row)))
               : "memory");
}

// Four 8 x 8 matrices, not transposed: x[i] is columns 2t and 2t + 1 of row g. Lanes give addresses as above.
FFTCONV_DEVICE void store_matrices(char* s_row, const unsigned (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(s_row))),
               "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
#else
  const unsigned row = static_cast<unsigned>(__cvta_generic_to_shared(s_row));
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const unsigned address = __shfl_sync(0xffffffffu, row, 8 * i + lane / 4) + 4 * (lane % 4);
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(x[i]) : "memory");
  }
#endif
}

FFTCONV_DEVICE __half2 fused_multiply_add(__half2 a, __half2 b, __half2 c) { return __hfma2(a, b, c); }

// The larger of each two halves of a word, as unsigned numbers.
FFTCONV_DEVICE unsigned larger_halves(unsigned a, unsigned b) { return __vmaxu2(a, b); }

#else

struct HostFragments {
  float a[4][2], b[2][2];
};

inline float host_half(unsigned word, int index) {
  const unsigned short bits = word >> (16 * index);
  return __half2float(*reinterpret_cast<const __half*>(&bits));
}

inline float host_bfloat16(unsigned word, int index) {
  const unsigned short bits = word >> (16 * index);
  return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(&bits));
}

// Each lane reads the fragments of those that hold its rows and columns, from their stacks. It finds them in a table on
// the stack of the first lane: to meet is what takes time, so lanes meet three times, not once for each fragment.
template <class Value>
void host_add_product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Value value) {
  HostFragments own;
  for (int half = 0; half < 2; half++) {
    for (int i = 0; i < 4; i++) own.a[i][half] = value(a[i], half);
    own.b[0][half] = value(b0, half);
    own.b[1][half] = value(b1, half);
  }
  const HostFragments* table[32];
  const HostFragments** lanes = __shfl_sync(0xffffffffu, &table[0], 0);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  lanes[lane] = &own;
  __syncwarp();
  for (int i = 0; i < 4; i++) {
    double sum = d[i];
    for (int k = 0; k < 16; k++) {
      const int half = k / 8, source = k % 8 / 2;
      sum += static_cast<double>(lanes[4 * g + source]->a[i / 2 + 2 * half][k % 2])
             * lanes[4 * (2 * t + i % 2) + source]->b[half][k % 2];
    }
    d[i] = static_cast<float>(sum);
  }
  __syncwarp();
}

inline void add_product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  host_add_product(d, a, b0, b1, host_half);
}
inline void add_product_bfloat16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  host_add_product(d, a, b0, b1, host_bfloat16);
}

inline void set_product(unsigned (&d)[2], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  float sums[4] = {};
  add_product(sums, a, b0, b1);
  for (int i = 0; i < 2; i++) d[i] = bits_of(__floats2half2_rn(sums[2 * i], sums[2 * i + 1]));
}

inline void load_transposed(unsigned (&x)[4], const char* s_row) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) {
    const char* s_first = __shfl_sync(0xffffffffu, s_row, 8 * i + 2 * t);
    const char* s_second = __shfl_sync(0xffffffffu, s_row, 8 * i + 2 * t + 1);
    const unsigned low = reinterpret_cast<const unsigned short*>(s_first)[g];
    x[i] = low | static_cast<unsigned>(reinterpret_cast<const unsigned short*>(s_second)[g]) << 16;
  }
}

inline void load_matrices(unsigned (&x)[4], const char* s_row) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) x[i] = reinterpret_cast<const unsigned*>(__shfl_sync(0xffffffffu, s_row, 8 * i + g))[t];
}

inline void store_matrices(char* s_row, const unsigned (&x)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) reinterpret_cast<unsigned*>(__shfl_sync(0xffffffffu, s_row, 8 * i + g))[t] = x[i];
}

inline __half2 fused_multiply_add(__half2 a, __half2 b, __half2 c) {
  const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
  return __floats2half2_rn(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
}

inline unsigned larger_halves(unsigned a, unsigned b) {
  const unsigned low = (a & 0xffffu) > (b & 0xffffu) ? a & 0xffffu : b & 0xffffu;
  return low | ((a >> 16) > (b >> 16) ? a >> 16 : b >> 16) << 16;
}

#endif

}  // namespace fftconv
