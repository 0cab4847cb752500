// Load and store policies: storage types, lengths, gates and alignment are met here and nowhere else.
//
// A transform takes two real sequences, its real and imaginary *parts*. Linear convolutions load point n of the row
// into the real part and point n + M into the imaginary part (absent where the row is not longer than M); paired
// circular ones load two batch rows.
#pragma once
#include "layout.cuh"
#include "params.cuh"

namespace fftconv {

enum class Part { kReal, kImag };

template <Part kPart>
FFTCONV_DEVICE float& part_of(complex_t& v) {
  if constexpr (kPart == Part::kReal) {
    return v.re;
  } else {
    return v.im;
  }
}

// Where a row of inputs lies. Global rows are never written while a kernel runs, so they are read through the read-only
// path: the compiler may then move the loads before earlier stores of outputs.
enum class Memory { kGlobal, kShared };

// The value at `pointer`, or zero bits. What is done with the value is left outside the condition, so that a thread's
// loads are issued together.
template <Memory kMemory, class value_t>
FFTCONV_DEVICE value_t read_if(bool condition, const value_t* pointer) {
  value_t value{};
  if (condition) {
    if constexpr (kMemory == Memory::kGlobal) {
      value = __ldg(pointer);
    } else {
      value = *pointer;
    }
  }
  return value;
}

// One point, or two neighbours, of a row; zero where the row has ended.
// Neighbours are accessed together only where rows start at an even address and have an even length
// (Layout::kIsVector). Traits::kHasTail: the row may be shorter than the transform.
template <class Traits, Memory kMemory>
struct RowAccess {
  using io_t = typename Traits::io_t;
  using S = Storage<io_t>;

  FFTCONV_DEVICE static float load(const io_t* row, int remaining) {
    return S::widen(read_if<kMemory>(!Traits::kHasTail || remaining > 0, row));
  }
  FFTCONV_DEVICE static float2 load2(const io_t* row, int remaining) {
    using pair_t = typename S::pair_t;
    return S::widen2(read_if<kMemory>(!Traits::kHasTail || remaining > 0, reinterpret_cast<const pair_t*>(row)));
  }
  FFTCONV_DEVICE static void store(io_t* g_row, int remaining, float v) {
    if (!Traits::kHasTail || remaining > 0) *g_row = S::narrow(v);
  }
  FFTCONV_DEVICE static void store2(io_t* g_row, int remaining, float a, float b) {
    if (!Traits::kHasTail || remaining > 0) *reinterpret_cast<typename S::pair_t*>(g_row) = S::narrow2(a, b);
  }
};

// Calls access(Int<first slot>, Int<second slot>, Int<offset>) for each pair of neighbouring points that a thread
// holds, or access(Int<slot>, Int<slot>, Int<offset>) for each point where the layout has no neighbours; `offset`
// counts from the thread's base in the row.
template <class Traits, class Access>
FFTCONV_DEVICE void for_each_access(Access access) {
  using P = Pass<typename Traits::Layout, 0>;
  static_for<P::kAccesses>([&](auto index) {
    constexpr int slot = P::slot(index.value, 0), next = P::slot(index.value, P::kWidth - 1);
    access(Int<slot>{}, Int<next>{}, Int<P::offset(slot)>{});
  });
}

// x.part = u over the thread's points; `length` counts the points of the row from `u` on.
template <class Traits, Part kPart, Memory kMemory>
FFTCONV_DEVICE void load_part(complex_t* x, const typename Traits::io_t* u, int length, int thread) {
  using Access = RowAccess<Traits, kMemory>;
  const int base = Pass<typename Traits::Layout, 0>::base(thread);
  u += base;
  length -= base;
  for_each_access<Traits>([&](auto slot, auto next, auto offset) {
    if constexpr (slot.value != next.value) {
      const float2 v = Access::load2(u + offset.value, length - offset.value);
      part_of<kPart>(x[slot.value]) = v.x;
      part_of<kPart>(x[next.value]) = v.y;
    } else {
      part_of<kPart>(x[slot.value]) = Access::load(u + offset.value, length - offset.value);
    }
  });
}

// x.part = gate * u.
template <class Traits, Part kPart, Memory kMemory>
FFTCONV_DEVICE void load_gated(complex_t* x, const typename Traits::io_t* u, const typename Traits::io_t* g_gate,
                               int length, int thread) {
  using Access = RowAccess<Traits, kMemory>;
  using GateAccess = RowAccess<Traits, Memory::kGlobal>;
  const int base = Pass<typename Traits::Layout, 0>::base(thread);
  u += base;
  g_gate += base;
  length -= base;
  for_each_access<Traits>([&](auto slot, auto next, auto offset) {
    if constexpr (slot.value != next.value) {
      const float2 v = Access::load2(u + offset.value, length - offset.value);
      const float2 gate = GateAccess::load2(g_gate + offset.value, length - offset.value);
      part_of<kPart>(x[slot.value]) = v.x * gate.x;
      part_of<kPart>(x[next.value]) = v.y * gate.y;
    } else {
      part_of<kPart>(x[slot.value]) = Access::load(u + offset.value, length - offset.value)
                                      * GateAccess::load(g_gate + offset.value, length - offset.value);
    }
  });
}

// y = x.part over the thread's points.
template <class Traits, Part kPart>
FFTCONV_DEVICE void store_part(complex_t* x, typename Traits::io_t* g_y, int length, int thread) {
  using Access = RowAccess<Traits, Memory::kGlobal>;
  const int base = Pass<typename Traits::Layout, 0>::base(thread);
  g_y += base;
  length -= base;
  for_each_access<Traits>([&](auto slot, auto next, auto offset) {
    const float first = part_of<kPart>(x[slot.value]), second = part_of<kPart>(x[next.value]);
    if constexpr (slot.value != next.value) {
      Access::store2(g_y + offset.value, length - offset.value, first, second);
    } else {
      Access::store(g_y + offset.value, length - offset.value, first);
    }
  });
}

// y = gate * x.part.
template <class Traits, Part kPart>
FFTCONV_DEVICE void store_gated(complex_t* x, typename Traits::io_t* g_y, const typename Traits::io_t* g_gate,
                                int length, int thread) {
  using Access = RowAccess<Traits, Memory::kGlobal>;
  const int base = Pass<typename Traits::Layout, 0>::base(thread);
  g_y += base;
  g_gate += base;
  length -= base;
  for_each_access<Traits>([&](auto slot, auto next, auto offset) {
    const float first = part_of<kPart>(x[slot.value]), second = part_of<kPart>(x[next.value]);
    if constexpr (slot.value != next.value) {
      const float2 gate = Access::load2(g_gate + offset.value, length - offset.value);
      Access::store2(g_y + offset.value, length - offset.value, gate.x * first, gate.y * second);
    } else {
      Access::store(g_y + offset.value, length - offset.value,
                    Access::load(g_gate + offset.value, length - offset.value) * first);
    }
  });
}

}  // namespace fftconv
