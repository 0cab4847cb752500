// Load and store policies: storage types, lengths, gates and alignment are met here and nowhere else.
//
// A transform takes two real sequences, its real and imaginary *parts*. Linear convolutions load point n of the row
// into the real part and point n + M into the imaginary part (absent where the row is not longer than M); paired
// circular ones load two batch rows.
#pragma once
#include "layout.cuh"
#include "params.cuh"

namespace fftconv {

// What a call may have beside u and k: nothing; both gates; or any of the gates and the skip term, looked at when the
// kernel runs (each the same for all threads). The first two are kernels of their own because they are timed most: what
// is certain to be there, or not, leaves the compiler free to load early.
enum class Extras { kNone, kGates, kAny };

enum class Part { kReal, kImag };

template <Part kPart>
FFTCONV_DEVICE float& part_of(complex_t& v) {
  if constexpr (kPart == Part::kReal) {
    return v.re;
  } else {
    return v.im;
  }
}

// The row of an array at (batch, channel).
template <class io_t>
FFTCONV_DEVICE io_t* row_of(void* g_array, Strides strides, int batch, int channel) {
  return static_cast<io_t*>(g_array) + batch * strides.batch + channel * strides.channel;
}
template <class io_t>
FFTCONV_DEVICE const io_t* row_of(const void* g_array, Strides strides, int batch, int channel) {
  return static_cast<const io_t*>(g_array) + batch * strides.batch + channel * strides.channel;
}

// Where a row of inputs lies. Global rows are never written while a kernel runs, so they are read through the read-only
// path: the compiler may then move the loads before earlier stores of outputs.
enum class Memory { kGlobal, kShared };

template <class value_t, int kBytes = sizeof(value_t)>
struct Bits {
  using type = value_t;
};
template <class value_t>
struct Bits<value_t, 4> {
  using type = unsigned;
};

// The value at `pointer`, or zero bits. What is done with the value is left outside the condition, so that a thread's
// loads are issued together; so is taking it for more than its bits: of a pair of halves the compiler would join each
// with its zero, one by one, and wait for every load to do so.
template <Memory kMemory, class value_t>
FFTCONV_DEVICE value_t read_if(bool condition, const value_t* pointer) {
  using bits_t = typename Bits<value_t>::type;
  bits_t bits{};
  if (condition) {
    const auto* bits_there = reinterpret_cast<const bits_t*>(pointer);
    if constexpr (kMemory == Memory::kGlobal) {
      bits = __ldg(bits_there);
    } else {
      bits = *bits_there;
    }
  }
  value_t value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// What a thread reads or writes at a time: the points of two slots, which are neighbours in the row, or the point of
// one.
template <int kSlot_, int kNext_, int kOffset_>
struct Access {
  static constexpr int kSlot = kSlot_, kNext = kNext_;
  static constexpr int kOffset = kOffset_;  // in the row, from the thread's base
  static constexpr bool kIsPair = kSlot != kNext;

  template <Part kPart>
  FFTCONV_DEVICE static void put(complex_t* x, float2 v) {
    part_of<kPart>(x[kSlot]) = v.x;
    if constexpr (kIsPair) part_of<kPart>(x[kNext]) = v.y;
  }
  template <Part kPart>
  FFTCONV_DEVICE static float2 take(complex_t* x) {
    return make_float2(part_of<kPart>(x[kSlot]), part_of<kPart>(x[kNext]));
  }
};

// Calls body(Access) for all that a thread holds.
template <class Traits, class Body>
FFTCONV_DEVICE void for_each_access(Body body) {
  using Layout = typename Traits::Layout;
  using P = FirstPass<Layout>;
  static_for<P::kAccesses>([&](auto index) {
    constexpr int slot = P::slot(index.value, 0), next = P::slot(index.value, P::kWidth - 1);
    if constexpr (Layout::kIsVector || slot == next) {
      body(Access<slot, next, P::offset(slot)>{});
    } else {
      body(Access<slot, slot, P::offset(slot)>{});
      body(Access<next, next, P::offset(next)>{});
    }
  });
}

FFTCONV_DEVICE float2 multiply_each(float2 a, float2 b) { return make_float2(a.x * b.x, a.y * b.y); }

// A thread's points of a row that is read; zero where the row has ended. Of a pair the second value is the neighbour's.
// Neighbours are accessed together only where rows start at an even address and have an even length
// (Layout::kIsVector). Traits::kHasTail: the row may be shorter than the transform.
template <class Traits, Memory kMemory = Memory::kGlobal>
struct InputRow {
  using io_t = typename Traits::io_t;
  using S = Storage<io_t>;
  const io_t* values;
  int remaining;

  // `length` counts the points of the row from `row` on.
  FFTCONV_DEVICE InputRow(const io_t* row, int length, int thread) {
    const int base = FirstPass<typename Traits::Layout>::base(thread);
    values = row + base;
    remaining = length - base;
  }
  // The row to read again. `zero` is 0, which the compiler does not know: otherwise it would keep, and spill, what it
  // has read once.
  FFTCONV_DEVICE InputRow again(int zero) const {
    InputRow row = *this;
    row.values += zero;
    return row;
  }
  template <class A>
  FFTCONV_DEVICE float2 load(A) const {
    const bool is_inside = !Traits::kHasTail || remaining > A::kOffset;
    if constexpr (A::kIsPair) {
      using pair_t = typename S::pair_t;
      return S::widen2(read_if<kMemory>(is_inside, reinterpret_cast<const pair_t*>(values + A::kOffset)));
    } else {
      return make_float2(S::widen(read_if<kMemory>(is_inside, values + A::kOffset)), 0.f);
    }
  }
};

// The same of a row that is written.
template <class Traits>
struct OutputRow {
  using io_t = typename Traits::io_t;
  using S = Storage<io_t>;
  io_t* g_values;
  int remaining;

  FFTCONV_DEVICE OutputRow(io_t* g_row, int length, int thread) {
    const int base = FirstPass<typename Traits::Layout>::base(thread);
    g_values = g_row + base;
    remaining = length - base;
  }
  template <class A>
  FFTCONV_DEVICE void store(A, float2 v) const {
    if (Traits::kHasTail && remaining <= A::kOffset) return;
    if constexpr (A::kIsPair) {
      *reinterpret_cast<typename S::pair_t*>(g_values + A::kOffset) = S::narrow2(v.x, v.y);
    } else {
      g_values[A::kOffset] = S::narrow(v.x);
    }
  }
};

// Whether a gate is there: certain, or told when the kernel runs. Where it is not, its address is that of something
// else that can be read: the compiler may move reads out of the condition, since they have no effect.
template <class Traits>
FFTCONV_DEVICE bool has_gate(int flag) {
  return Traits::kExtras == Extras::kGates || (Traits::kExtras == Extras::kAny && flag != 0);
}

// x.part = u.
template <class Traits, Part kPart, class Row>
FFTCONV_DEVICE void load_part(complex_t* x, const Row& u) {
  for_each_access<Traits>([&](auto access) { access.template put<kPart>(x, u.load(access)); });
}

// x.part = gate * u.
template <class Traits, Part kPart, class Row, class Gate>
FFTCONV_DEVICE void load_gated(complex_t* x, const Row& u, const Gate& gate) {
  for_each_access<Traits>(
      [&](auto access) { access.template put<kPart>(x, multiply_each(u.load(access), gate.load(access))); });
}

// y = x.part.
template <class Traits, Part kPart, class Row>
FFTCONV_DEVICE void store_part(complex_t* x, const Row& y) {
  for_each_access<Traits>([&](auto access) { y.store(access, access.template take<kPart>(x)); });
}

// y = gate * x.part.
template <class Traits, Part kPart, class Row, class Gate>
FFTCONV_DEVICE void store_gated(complex_t* x, const Row& y, const Gate& gate) {
  for_each_access<Traits>(
      [&](auto access) { y.store(access, multiply_each(gate.load(access), access.template take<kPart>(x))); });
}

}  // namespace fftconv
