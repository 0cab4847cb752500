"""Faults that a test of the kernels must find, as data; ``mutate.py`` plants them."""

from __future__ import annotations

from dataclasses import dataclass

# Each has at least one fault.
CLASSES = (
    "forward twiddle",
    "inverse twiddle",
    "spectrum order",
    "padding",
    "barrier",
    "tail predicate",
    "pairing",
    "gate",
    "skip",
    "packed half",
    "channel stride",
    "filter wrap",
    "gradient",
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault.

    Attributes:
        name: its class, and more after a colon where a class has several.
        file: path from the repository's root.
        old: text that occurs in the file exactly once.
        new: what is put in its place.
        tests: ids of the tests to run.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str:
        """Return the text of the file with the fault.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {text.count(self.old)} times in {self.file}, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def _kernel(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_kernels.py::test_kernel[{name}]" for name in names)


def _race(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_kernels.py::test_no_races[{name}]" for name in names)


def _rows(test: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_kernel_rows.py::test_{test}[{name}]" for name in names)


KERNEL_MUTATIONS = (
    Mutation(
        "forward twiddle",
        "kernels/block_fft.cuh",
        "twiddle[2 * i.value + 1] = {v.z, v.w};",
        "twiddle[2 * i.value + 1] = {v.z, -v.w};",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "forward twiddle: of the odd sub-nodes",
        "kernels/dft.cuh",
        "{ butterfly(a, b, {-t.im, t.re}); }",
        "{ butterfly(a, b, {t.im, -t.re}); }",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "forward twiddle: table of a larger node",
        "fftconv_cupy/tables.py",
        "_bit_reverse(np.array(2 * even), level - 1)",
        "_bit_reverse(np.array(2 * even), level)",
        _kernel("M2048-float16-real-gates-tail"),
    ),
    Mutation(
        "inverse twiddle",
        "kernels/block_fft.cuh",
        "r_column[2 * i.value + 1] = multiply_conj(r_column[2 * i.value + 1], {v.z, v.w});",
        "r_column[2 * i.value + 1] = multiply(r_column[2 * i.value + 1], {v.z, v.w});",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "inverse twiddle: of the root",
        "kernels/block_fft.cuh",
        "v.re = fmaf(v.re, Root<angle>::re, v.im * Root<angle>::im);",
        "v.re = fmaf(v.re, Root<angle>::re, -v.im * Root<angle>::im);",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "spectrum order",
        "kernels/fftconv_filter.cu",
        "const complex_t a = x[2 * i.value], b = x[2 * i.value + 1];",
        "const complex_t b = x[2 * i.value], a = x[2 * i.value + 1];",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "padding",
        "kernels/block_fft.cuh",
        "const complex_t* s_base = s_row + Layout::pad(P::base(thread));",
        "const complex_t* s_base = s_row + P::base(thread);",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "padding: of 8 bytes, which misaligns accesses of 16",
        "kernels/layout.cuh",
        "return point + 2 * (point >> kLog2Ept);",
        "return point + (point >> kLog2Ept);",
        _race("M256-float16-real-none-tail"),
    ),
    Mutation(
        "barrier: none in the forward exchange",
        "kernels/block_fft.cuh",
        "sync_threads<PassOf<pass - 1>::kNodeThreads>();\n"
        "      if constexpr (pass == Layout::kFirst + 1) after_exchange();",
        "if constexpr (pass == Layout::kFirst + 1) after_exchange();",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "barrier: of a warp where two share a node",
        "kernels/block_fft.cuh",
        "if constexpr (kThreads <= 32) {",
        "if constexpr (kThreads <= 64) {",
        _race("M2048-bfloat16-paired-none-whole"),
    ),
    Mutation(
        "barrier: none between the norms of the warps",
        "kernels/fftconv_fwd.cu",
        "s_sums[thread / 32] = sum;\n    __syncthreads();",
        "s_sums[thread / 32] = sum;",
        _kernel("M2048-float16-paired-none-tail"),
    ),
    Mutation(
        "barrier: none before the norms' buffer is used again",
        "kernels/fftconv_fwd.cu",
        "if constexpr (Traits::Layout::kThreads > 32) __syncthreads();",
        "",
        _race("M2048-bfloat16-paired-none-whole"),
    ),
    Mutation(
        "tail predicate: of loads",
        "kernels/io.cuh",
        "const bool is_inside = !Traits::kHasTail || remaining > A::kOffset;",
        "const bool is_inside = !Traits::kHasTail || remaining >= A::kOffset;",
        _kernel("M128-bfloat16-real-gates-scalar"),
    ),
    Mutation(
        "tail predicate: of stores",
        "kernels/io.cuh",
        "if (Traits::kHasTail && remaining <= A::kOffset) return;",
        "if (Traits::kHasTail && remaining < A::kOffset) return;",
        _kernel("M128-bfloat16-real-gates-scalar"),
    ),
    Mutation(
        "pairing",
        "kernels/fftconv_fwd.cu",
        "const bool has_second = first + 1 < p.batch;",
        "const bool has_second = first + 1 <= p.batch;",
        _kernel("M128-float16-paired-any-whole"),
    ),
    Mutation(
        "pairing: balance",
        "kernels/fftconv_fwd.cu",
        "const int half = (exponent + 1) >> 1;",
        "const int half = 0;",
        _rows("rows_of_other_scales", "M1024-float16-paired-any-whole", "M2048-float32-paired-any-scalar"),
    ),
    Mutation(
        "pairing: scale of the second row",
        "kernels/fftconv_fwd.cu",
        "imag_scale = balancing_scale(norm.y);",
        "imag_scale = balancing_scale(norm.x);",
        _rows("rows_of_other_scales", "M1024-float16-paired-any-whole", "M2048-float32-paired-any-scalar"),
    ),
    Mutation(
        "pairing: no split of what is not finite",
        "kernels/fftconv_fwd.cu",
        "(norm2 > 1.f / kLargest && norm2 < kLargest)",
        "!(norm2 < 1.f / kLargest)",
        _rows("a_value_that_is_not_finite_stays_in_its_row", "M256-float16-paired-none-tail"),
    ),
    Mutation(
        "pairing: no split of what is out of range",
        "kernels/fftconv_fwd.cu",
        "norm.y = kTiny;",
        "norm.y = 0.f;",
        _rows("rows_of_other_scales", "M2048-float32-paired-any-scalar"),
    ),
    Mutation(
        "pairing: rows of zeros are not kept so",
        "kernels/fftconv_fwd.cu",
        "if (norm2 == 0.f) return make_float2(1.f, 0.f);",
        "if (norm2 == 0.f) return make_float2(1.f, 1.f);",
        _rows("rows_of_zeros", "M2048-float32-paired-any-scalar"),
    ),
    Mutation(
        "pairing: split of a warp in part",
        "kernels/fftconv_fwd.cu",
        "? __any_sync(0xffffffffu, condition) : condition;",
        "? condition : condition;",
        _rows("a_value_that_is_not_finite_stays_in_its_row", "M256-float16-paired-none-tail"),
    ),
    Mutation(
        "gate: of the input",
        "kernels/io.cuh",
        "access.template put<kPart>(x, multiply_each(u.load(access), gate.load(access)));",
        "access.template put<kPart>(x, multiply_each(u.load(access), u.load(access)));",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "gate: of the output",
        "kernels/io.cuh",
        "y.store(access, multiply_each(gate.load(access), access.template take<kPart>(x)));",
        "y.store(access, access.template take<kPart>(x));",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "skip",
        "kernels/spectrum.cuh",
        "second = {v.z + skip, v.w};",
        "second = {v.z, v.w};",
        _kernel("M256-bfloat16-real-any-whole"),
    ),
    Mutation(
        "skip: offset of a channel group",
        "fftconv_cupy/launch.py",
        "first * (4 if rows.skip_is_float else item)",
        "first * 4",
        _rows("many_channels", "M256-bfloat16-real-any-whole-groups"),
    ),
    Mutation(
        "packed half: of a long row",
        "kernels/fftconv_fwd.cu",
        "load_row<Traits, Part::kImag>(p, x, batch, channel, kPoints, thread, s_u);",
        "load_row<Traits, Part::kImag>(p, x, batch, channel, kPoints + 1, thread, s_u);",
        _kernel("M128-bfloat16-complex-any-scalar"),
    ),
    Mutation(
        "packed half: of a long filter",
        "kernels/fftconv_filter.cu",
        "x[slot.value].im = tap_at<Config>(p, g_filter, position + Layout::kPoints, kSize);",
        "x[slot.value].im = tap_at<Config>(p, g_filter, position + Layout::kPoints - 1, kSize);",
        _kernel("M128-bfloat16-complex-any-scalar"),
    ),
    Mutation(
        "packed half: of two neighbouring outputs",
        "kernels/types.cuh",
        "return __floats2half2_rn(a, b);",
        "return __floats2half2_rn(b, a);",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "channel stride: in the kernel",
        "kernels/io.cuh",
        "static_cast<const io_t*>(g_array) + batch * strides.batch + channel * strides.channel;",
        "static_cast<const io_t*>(g_array) + batch * strides.batch + channel * strides.batch;",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "channel stride: of a channel group",
        "fftconv_cupy/launch.py",
        "(first * stride * item for stride in rows.strides[1::2])",
        "(first * problem.seqlen * item for stride in rows.strides[1::2])",
        _rows("many_channels", "M256-bfloat16-real-any-whole-groups"),
    ),
    Mutation(
        "channel stride: of the filter",
        "fftconv_cupy/launch.py",
        "first * ITEM_BYTES[problem.filter_dtype]",
        "first * ITEM_BYTES[problem.dtype]",
        _rows("many_channels", "M256-bfloat16-real-any-whole-groups"),
    ),
    Mutation(
        "filter wrap",
        "kernels/fftconv_filter.cu",
        "return is_negative ? -tap : tap;",
        "return tap;",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "filter wrap: folding",
        "kernels/fftconv_filter.cu",
        "index < filter_len; index += period)",
        "index < filter_len - period; index += period)",
        _kernel("M128-float16-paired-any-whole"),
    ),
    Mutation(
        "filter wrap: shift of mode same",
        "fftconv_cupy/plan.py",
        "shift = (filter_len - 1) // 2",
        "shift = filter_len // 2",
        _kernel("M256-float16-real-gates-tail"),
    ),
    Mutation(
        "prefetch: parity",
        "kernels/fftconv_fwd.cu",
        "mbarrier_wait(memory.s_barrier, turn % 2);",
        "mbarrier_wait(memory.s_barrier, turn > 0);",
        ("tests/test_kernels.py::test_prefetching_blocks_take_several_rows[M4096-bfloat16-real-none-prefetch]",),
    ),
    Mutation(
        "prefetch: bytes",
        "kernels/fftconv_fwd.cu",
        "mbarrier_expect(memory.s_barrier, rows * Traits::kRowBytes);",
        "mbarrier_expect(memory.s_barrier, Traits::kRowBytes);",
        _kernel("M8192-bfloat16-paired-none-prefetch"),
    ),
    Mutation(
        "prefetch: before the rows are read",
        "kernels/block_fft.cuh",
        "sync_threads<PassOf<pass - 1>::kNodeThreads>();\n"
        "      if constexpr (pass == Layout::kFirst + 1) after_exchange();",
        "if constexpr (pass == Layout::kFirst + 1) after_exchange();\n"
        "      sync_threads<PassOf<pass - 1>::kNodeThreads>();",
        _race("M4096-bfloat16-real-none-prefetch"),
    ),
    Mutation(
        "prefetch: of rows that are not aligned",
        "fftconv_cupy/launch.py",
        "bits & (2 * item - 1) == 0, bits == 0, is_prepared)",
        "bits & (2 * item - 1) == 0, bits & 3 == 0, is_prepared)",
        ("tests/test_kernel_rows.py::test_calls_that_differ_only_in_how_arrays_lie",),
    ),
    Mutation(
        "slots: rows without a job of their own",
        "kernels/fftconv_fwd.cu",
        "min(job, jobs - 1), min(channel",
        "job, min(channel",
        ("tests/test_kernels.py::test_rows_and_slots[128-real]",),
    ),
    Mutation(
        "slots: activity",
        "kernels/fftconv_fwd.cu",
        "job < jobs && channel < p.channels, [] {});",
        "channel < p.channels, [] {});",
        _race("M256-float16-real-none-tail"),
    ),
    Mutation(
        "slots: channels past the last",
        "kernels/fftconv_fwd.cu",
        "min(channel, p.channels - 1), thread,",
        "channel, thread,",
        ("tests/test_kernels.py::test_rows_and_slots[128-real]",),
    ),
    Mutation(
        "grid: third dimension",
        "kernels/fftconv_fwd.cu",
        "static_cast<long long>(blockIdx.z) * gridDim.y;",
        "static_cast<long long>(blockIdx.z);",
        _rows("many_channels", "M256-bfloat16-real-any-whole-grid"),
    ),
    Mutation(
        "shared filter",
        "fftconv_cupy/launch.py",
        "0 if problem.shared_filter else made.config.points // 2,",
        "made.config.points // 2,",
        _rows("many_channels", "M256-bfloat16-real-any-whole-groups"),
    ),
    Mutation(
        "prefetch: the next channel",
        "kernels/fftconv_fwd.cu",
        "      next -= jobs;\n",
        "      next = 0;\n",
        ("tests/test_kernels.py::test_prefetching_blocks_take_several_rows[M16384-float16-real-gates-prefetch]",),
    ),
)
