"""Faults in the kernel of gradients on tensor cores, as those of ``mutations.py``."""

from __future__ import annotations

from mutations import Mutation

_KERNEL = "kernels/fftconv_mma_bwd.cu"


def _test(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_mma_vjp_kernels.py::test_{name}" for name in names)


MMA_MUTATIONS = (
    Mutation(
        "gradient: conjugate on tensor cores",
        _KERNEL,
        "multiply_line<Traits::side_of(i.value) == Side::kDz>",
        "multiply_line<false>",
        _test("rows_that_fill_a_transform[2048]"),
    ),
    Mutation(
        "gradient: conjugate of the sum on tensor cores",
        _KERNEL,
        "sum.im.x = fmaf(im.x, x_re.x, fmaf(-re.x, x_im.x, sum.im.x));",
        "sum.im.x = fmaf(im.x, x_re.x, fmaf(re.x, x_im.x, sum.im.x));",
        _test("rows_that_fill_a_transform[2048]"),
    ),
    Mutation(
        "gradient: order of the sum on tensor cores",
        _KERNEL,
        "const int j0 = warp + node.value * Layout::kWarps;",
        "const int j0 = warp * Traits::kWarpNodes + node.value;",
        _test("rows_that_fill_a_transform[4096]"),
    ),
    Mutation(
        "gradient: row of a line on tensor cores",
        _KERNEL,
        "constexpr int kRow = index.value / Traits::kWarpNodes;",
        "constexpr int kRow = 0;",
        _test("rows_and_filters_of_any_magnitude[rows-1e6-apart]"),
    ),
    Mutation(
        "gradient: rows without a job on tensor cores",
        _KERNEL,
        "    if (!row_at(0, row).is_active) return 0.f;\n",
        "",
        _test("rows_that_fill_a_transform[2048]"),
    ),
    Mutation(
        "gradient: values that are not finite on tensor cores",
        _KERNEL,
        "    if (!x.is_finite() || !dz.is_finite()) return __uint_as_float(0x7fffffffu);\n",
        "",
        _test("a_value_that_is_not_finite_stays_in_its_row_and_channel[2048]"),
    ),
    Mutation(
        "gradient: scales of the next step on tensor cores",
        _KERNEL,
        "        __syncthreads();  // all have read the scales\n",
        "",
        _test("what_is_asked_for_alone[k]"),
    ),
    Mutation(
        "gradient: rows of one side on tensor cores",
        _KERNEL,
        "(Traits::kSides == 1 ? slab * Layout::kSlabRows : 0)",
        "0",
        _test("what_is_asked_for_alone[u]"),
    ),
    Mutation(
        "gradient: prefetched row on tensor cores",
        _KERNEL,
        "row_at(this->slab, index / kRowLines, step + 1);",
        "row_at(this->slab, index / kRowLines);",
        ("tests/test_vjp_prefetch.py::test_the_rows_of_the_next_step_are_brought_into_l2_on_tensor_cores[2048-2048]",),
    ),
    Mutation(
        "gradient: converted spectrum on tensor cores",
        "fftconv_cupy/launch_vjp.py",
        "made.converted_offset + own,",
        "own,",
        _test("rows_that_fill_a_transform[2048]"),
    ),
)
