"""Faults in the kernels of gradients, as those of ``mutations.py``."""

from __future__ import annotations

from mutations import Mutation

VJP_MUTATIONS = (
    Mutation(
        "gradient: conjugate",
        "kernels/fftconv_bwd.cu",
        "multiply_spectrum<Spectrum, true>",
        "multiply_spectrum<Spectrum, false>",
        ("tests/test_vjp_kernels.py::test_gradients[256-float16]",),
    ),
    Mutation(
        "gradient: barrier between transforms",
        "kernels/fftconv_bwd.cu",
        "    sync_threads<Traits::Node::kThreads>();  // all have read the last exchange of X",
        "    ",
        ("tests/test_vjp_kernels.py::test_no_races_without_the_rest[u-k]",),
    ),
    Mutation(
        "gradient: output gate",
        "kernels/fftconv_bwd.cu",
        "multiply_each(dy, gate.load(access))",
        "dy",
        ("tests/test_vjp_kernels.py::test_gradients[256-float16]",),
    ),
    Mutation(
        "gradient: input gate",
        "kernels/fftconv_bwd.cu",
        "store_gated<Traits, kPart>(x, du, in.gate(kFirst).again(p.zero));",
        "store_part<Traits, kPart>(x, du);",
        ("tests/test_vjp_kernels.py::test_gradients[256-float16]",),
    ),
    Mutation(
        "gradient: prefetched row",
        "kernels/fftconv_bwd.cu",
        "prefetch_row<Traits>(row, row.next_job, p.u,",
        "prefetch_row<Traits>(row, row.job, p.u,",
        ("tests/test_vjp_prefetch.py::test_rows_are_brought_into_l2[4096-float16-2]",),
    ),
    Mutation(
        "gradient: end of a prefetched row",
        "kernels/fftconv_bwd.cu",
        "    if (point < end) prefetch_to_l2",
        "    prefetch_to_l2",
        ("tests/test_vjp_prefetch.py::test_rows_are_brought_into_l2[4096-float32-3001]",),
    ),
    Mutation(
        "gradient: row that follows in a chunk",
        "kernels/sums.cuh",
        "own.next_job = step + 1 < end ?",
        "own.next_job = true ?",
        ("tests/test_vjp_prefetch.py::test_rows_are_brought_into_l2[4096-float16-2]",),
    ),
    Mutation(
        "gradient: rows without a job",
        "kernels/sums.cuh",
        "if (own.is_active) own.add_products(x, sum);",
        "own.add_products(x, sum);",
        ("tests/test_vjp_kernels.py::test_rows_and_slots[256]",),
    ),
    Mutation(
        "gradient: sum of a new chunk",
        "kernels/sums.cuh",
        "own.add_products_in_memory(x, step == first);",
        "own.add_products_in_memory(x, false);",
        ("tests/test_vjp_kernels.py::test_many_chunks_of_a_channel_are_added_up_by_a_kernel[own]",),
    ),
    Mutation(
        "gradient: sum of the last chunk",
        "kernels/sums.cuh",
        "[&](auto slot) { sum[slot.value] = {0.f, 0.f}; });",
        "[&](auto slot) { if (chunk < gridDim.x) sum[slot.value] = {0.f, 0.f}; });",
        ("tests/test_vjp_kernels.py::test_blocks_take_several_chunks_of_several_steps",),
    ),
    Mutation(
        "gradient: batch slots",
        "kernels/sums.cuh",
        "for (int i = 0; i < batch_slots; i++)",
        "for (int i = 1; i < batch_slots; i++)",
        ("tests/test_vjp_kernels.py::test_rows_and_slots[256]",),
    ),
    Mutation(
        "gradient: scale of a sum",
        "kernels/sums.cuh",
        "constexpr float kScale = 1.f / Traits::Layout::kPoints;",
        "constexpr float kScale = 1.f;",
        ("tests/test_vjp_kernels.py::test_rows_and_slots[256]",),
    ),
    Mutation(
        "gradient: chunks of a channel",
        "kernels/fftconv_filter_bwd.cu",
        "g_sum += static_cast<long long>(p.group_channels) * kRowQuads;",
        "",
        ("tests/test_vjp_kernels.py::test_blocks_take_several_chunks_of_several_steps",),
    ),
    Mutation(
        "gradient: negative lags",
        "kernels/fftconv_filter_bwd.cu",
        "v -= s_ring[size - back];",
        "v += s_ring[size - back];",
        (
            "tests/test_vjp_kernels.py::test_gradients[2048-float16]",
            "tests/test_vjp_kernels.py::test_gradients[512-float32]",
        ),
    ),
    Mutation(
        "gradient: filter wrap",
        "kernels/fftconv_filter_bwd.cu",
        "if (lags.period > 0) index %= lags.period;",
        "",
        ("tests/test_vjp_kernels.py::test_gradients[512-float32]",),
    ),
    Mutation(
        "gradient: sum over lanes",
        "kernels/fftconv_reduce.cu",
        "for (int i = 1; i < kReduceLanes; i++)",
        "for (int i = 2; i < kReduceLanes; i++)",
        ("tests/test_vjp_kernels.py::test_many_chunks_of_a_channel_are_added_up_by_a_kernel[own]",),
    ),
    Mutation(
        "gradient: sum over channel groups",
        "kernels/fftconv_reduce.cu",
        "if (p.is_added) total",
        "if (false) total",
        ("tests/test_vjp_kernels.py::test_groups_of_channels[shared]",),
    ),
    Mutation(
        "gradient: skip of a channel group",
        "fftconv_cupy/launch_vjp.py",
        "d_skip = call.d_skip and call.d_skip + step.skip",
        "d_skip = call.d_skip",
        ("tests/test_vjp_kernels.py::test_groups_of_channels[own]",),
    ),
)
