// The transform of one row by a group of threads: passes in registers, exchanges through shared memory.
// Forward: natural order in, ring order out. Inverse: ring order in, natural out. The spectrum is never reordered.
#pragma once
#include "dft.cuh"
#include "layout.cuh"
#include "roots.cuh"

namespace fftconv {

template <int kThreads>
FFTCONV_DEVICE void sync_threads() {
  if constexpr (kThreads <= 32) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

struct NoHook {
  FFTCONV_DEVICE void operator()() const {}
};

template <class Layout, int kQuarters>
struct BlockFft {
  template <int kPass>
  using PassOf = Pass<Layout, kPass>;
  using Last = PassOf<Layout::kPasses - 1>;
  static constexpr bool kFirstHasTable = Layout::kFirst > 0 || Layout::kRoots > 1;  // of twiddles
  static_assert(Layout::kRoots == 1 || kQuarters == 1, "rows are split in the negacyclic ring");

  // x (kEpt) <-> s_row (kRowSlots), at the positions of a pass
  template <int kPass>
  FFTCONV_DEVICE static void store_shared(complex_t* s_row, int thread, const complex_t* x) {
    using P = PassOf<kPass>;
    complex_t* s_base = s_row + Layout::pad(P::base(thread));
    static_for<P::kAccesses>([&](auto access) {
      constexpr int slot = P::slot(access.value, 0), offset = Layout::pad(P::offset(slot));
      if constexpr (P::kWidth == 2) {
        constexpr int next = P::slot(access.value, 1);
        *reinterpret_cast<float4*>(s_base + offset) = make_float4(x[slot].re, x[slot].im, x[next].re, x[next].im);
      } else {
        *reinterpret_cast<float2*>(s_base + offset) = make_float2(x[slot].re, x[slot].im);
      }
    });
  }
  template <int kPass>
  FFTCONV_DEVICE static void load_shared(const complex_t* s_row, int thread, complex_t* x) {
    using P = PassOf<kPass>;
    const complex_t* s_base = s_row + Layout::pad(P::base(thread));
    static_for<P::kAccesses>([&](auto access) {
      constexpr int slot = P::slot(access.value, 0), offset = Layout::pad(P::offset(slot));
      if constexpr (P::kWidth == 2) {
        constexpr int next = P::slot(access.value, 1);
        const float4 v = *reinterpret_cast<const float4*>(s_base + offset);
        x[slot] = {v.x, v.y};
        x[next] = {v.z, v.w};
      } else {
        const float2 v = *reinterpret_cast<const float2*>(s_base + offset);
        x[slot] = {v.x, v.y};
      }
    });
  }

  // The first of these passes.
  template <bool kIsReal>
  FFTCONV_DEVICE static void forward_root_pass(complex_t* x) {
    using P = PassOf<0>;
    static_for<P::kColumns>(
        [&](auto column) { forward_root<P::kLog2Radix, kQuarters, kIsReal>(x + column.value * P::kRadix); });
  }

  // `after_exchange` runs once, when every thread of the block has read its part of the input.
  template <bool kIsReal, class Hook>
  FFTCONV_DEVICE static void forward(complex_t* x, complex_t* s_row, int thread, const float4* g_twiddle,
                                     Hook after_exchange) {
    if constexpr (Layout::kRoots > 1) RootNodes<Layout>(s_row, thread).template split<kIsReal>(x);
    if constexpr (kFirstHasTable) {
      forward_pass<Layout::kFirst>(x, thread, g_twiddle + Layout::forward_table(Layout::kFirst));
    } else {
      forward_root_pass<kIsReal>(x);
    }
    static_for<Layout::kPasses - 1 - Layout::kFirst>([&](auto index) {
      constexpr int pass = index.value + 1 + Layout::kFirst;
      store_shared<pass - 1>(s_row, thread, x);
      sync_threads<PassOf<pass - 1>::kNodeThreads>();
      if constexpr (pass == Layout::kFirst + 1) after_exchange();
      load_shared<pass>(s_row, thread, x);
      forward_pass<pass>(x, thread, g_twiddle + Layout::forward_table(pass));
    });
  }

  // kIsReal: only real parts are wanted. Where blocks share a row, this ends at the nodes of the first pass.
  // `after_exchange` runs once, when the thread has read what it will of s_row.
  template <bool kIsReal, class Hook = NoHook>
  FFTCONV_DEVICE static void inverse(complex_t* x, complex_t* s_row, int thread, const float4* g_twiddle,
                                     Hook after_exchange = {}) {
    static_for<Layout::kPasses - 1 - Layout::kFirst>([&](auto index) {
      constexpr int pass = Layout::kPasses - 1 - index.value;
      inverse_pass<pass>(x, thread, g_twiddle + Layout::inverse_table(pass));
      store_shared<pass>(s_row, thread, x);
      sync_threads<PassOf<pass - 1>::kNodeThreads>();
      load_shared<pass - 1>(s_row, thread, x);
      if constexpr (pass == Layout::kFirst + 1) after_exchange();
    });
    if constexpr (kFirstHasTable) {
      inverse_pass<Layout::kFirst>(x, thread, g_twiddle + Layout::inverse_table(Layout::kFirst));
    } else {
      inverse_root_pass<kIsReal>(x);
    }
    if constexpr (Layout::kRoots > 1) RootNodes<Layout>(s_row, thread).template join<kIsReal>(x);
  }

  // The last of these passes.
  template <bool kIsReal>
  FFTCONV_DEVICE static void inverse_root_pass(complex_t* x) {
    using P = PassOf<0>;
    static_for<P::kColumns>([&](auto column) { inverse_dft<P::kLog2Radix>(x + column.value * P::kRadix); });
    if constexpr (kQuarters != 0) {
      static_for<Layout::kEpt>([&](auto slot) {
        constexpr int angle = (slot.value % P::kRadix * kQuarters * (kTurn / 4)) >> P::kLog2Radix;
        complex_t& v = x[slot.value];
        if constexpr (angle != 0 && kIsReal) v.re = fmaf(v.re, Root<angle>::re, v.im * Root<angle>::im);
        if constexpr (angle != 0 && !kIsReal) v = multiply_conj(v, {Root<angle>::re, Root<angle>::im});
      });
    }
  }

 private:
  template <int kPass>
  FFTCONV_DEVICE static void forward_pass(complex_t* x, int thread, const float4* g_table) {
    using P = PassOf<kPass>;
    complex_t twiddle[P::kRadix / 2];
    static_for<P::kColumns>([&](auto index) {
      constexpr int column = index.value;
      if constexpr (P::kIsLast || column == 0) {  // before the last pass all columns of a thread share a node
        const float4* g_node = g_table + P::table_index(thread, column);
        static_for<P::kRadix / 4>([&](auto i) {
          const float4 v = __ldg(g_node + i.value * P::kNodes);
          twiddle[2 * i.value] = {v.x, v.y};
          twiddle[2 * i.value + 1] = {v.z, v.w};
        });
      }
      forward_node<P::kLog2Radix>(x + column * P::kRadix, twiddle);
    });
  }

  template <int kPass>
  FFTCONV_DEVICE static void inverse_pass(complex_t* x, int thread, const float4* g_table) {
    using P = PassOf<kPass>;
    static_for<P::kColumns>([&](auto column) {
      complex_t* r_column = x + column.value * P::kRadix;
      inverse_dft<P::kLog2Radix>(r_column);
      const float4* g_node = g_table + P::table_index(thread, column.value);
      static_for<P::kRadix / 2>([&](auto i) {
        const float4 v = __ldg(g_node + i.value * P::kNodes);
        if constexpr (i.value > 0) r_column[2 * i.value] = multiply_conj(r_column[2 * i.value], {v.x, v.y});
        r_column[2 * i.value + 1] = multiply_conj(r_column[2 * i.value + 1], {v.z, v.w});
      });
    });
  }
};

}  // namespace fftconv
