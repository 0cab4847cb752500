"""Faults in the depthwise kernels, as those of ``mutations.py``."""

from __future__ import annotations

from mutations import Mutation


def _fast(*names: str) -> tuple[str, ...]:
    test = "tests/test_depthwise_kernels.py::test_few_taps_of_aligned_rows_take_the_fast_kernels"
    return tuple(f"{test}[{name}]" for name in names)


def _walk(name: str) -> tuple[str, ...]:
    return (f"tests/test_depthwise_kernels.py::test_blocks_that_walk[{name}]",)


def _anywhere(name: str) -> tuple[str, ...]:
    test = "tests/test_depthwise_kernels.py::test_few_taps_of_rows_that_begin_anywhere_take_the_fast_kernels"
    return (f"{test}[{name}]",)


_SEQUENCES = "tests/test_depthwise_kernels.py::test_packed_sequences_take_the_fast_kernels"
_DOZEN = "tests/test_depthwise_kernels.py::test_a_dozen_taps_take_the_fast_kernels"
_LAST = (
    "tests/test_depthwise_kernels.py::test_the_last_point_that_is_not_finite_stays_out_of_gradients_that_do_not_see_it"
)
_RACE = "tests/test_depthwise_kernels.py::test_no_races"
_MANY = "tests/test_depthwise_kernels.py::test_no_races_of_many_taps"
_MATRIX = "tests/test_depthwise_kernels.py::test_many_taps_of_16_bits_take_tensor_cores"
_FINITE = "tests/test_depthwise_kernels.py::test_a_point_that_is_not_finite_stays_with_the_outputs_that_see_it"
_UPDATE = "tests/test_depthwise_kernels.py::test_update"
_TILED = _walk("3x3x4504x18-float32-float32-float32-BHL-causal-silu-none-packed-all-sm_90")
_STATES = _walk("3x2x9000x3-float16-float32-float32-BHL-causal-linear-states-packed-all-sm_90")

DEPTHWISE_MUTATIONS = (
    Mutation(
        "depthwise: vectors around a thread's own",
        "kernels/depthwise.cuh",
        "return values[point - kFirst];",
        "return values[point - kFirst - 1];",
        _fast("4-BHL-same"),
    ),
    Mutation(
        "depthwise: past the row",
        "kernels/depthwise.cuh",
        "V::load_if(kIsShifted || is_inside(begin + kAt, length), g_first + kAt);",
        "V::load_if(kIsShifted || begin + kAt >= 0, g_first + kAt);",
        _fast("4-BHL-same"),
    ),
    Mutation(
        "depthwise: before the row",
        "kernels/depthwise.cuh",
        "(begin >= 0 && begin + kVectors * kCount <= length)",
        "begin + kVectors * kCount <= length",
        _anywhere("2x5x137x4-float16-float32-float32-BHL-same-linear-none-odd-all-sm_90"),
    ),
    Mutation(
        "depthwise: points left for the first thread",
        "kernels/depthwise_fwd.cu",
        "while (Config::kIsShifted && begin < p.out_end);",
        "while (false);",
        _anywhere("2x3x1024x4-float16-float32-float32-BHL-same-linear-none-odd-all-sm_90"),
    ),
    Mutation(
        "depthwise: sequences in time",
        "kernels/depthwise.cuh",
        "__float_as_int(ids.at(a)) == __float_as_int(ids.at(b));",
        "true;",
        (f"{_SEQUENCES}[BHL-packed]",),
    ),
    Mutation(
        "depthwise: sequences of channels side by side",
        "kernels/depthwise_fwd.cu",
        "ids[at] == ids[kLast];",
        "ids[at] == ids[i.value];",
        (f"{_SEQUENCES}[BLH-packed]",),
    ),
    Mutation(
        "depthwise: sequences of gradients",
        "kernels/depthwise_bwd.cu",
        "if (is_one(row, at + kHalo))",
        "if (is_one(row, at))",
        (f"{_SEQUENCES}[BLH-packed]",),
    ),
    Mutation(
        "depthwise: outputs of no sequence",
        "kernels/depthwise_bwd.cu",
        "if (sequences.is_padding(t)) dz[i] = 0.f;",
        "",
        (f"{_SEQUENCES}[BHL-packed]",),
    ),
    Mutation(
        "depthwise: half a word of a shift",
        "kernels/depthwise.cuh",
        "(bytes & 2) * 8",
        "0",
        _anywhere("2x5x137x4-float16-float32-float32-BHL-same-linear-none-odd-all-sm_90"),
    ),
    Mutation(
        "depthwise: words of a shift",
        "kernels/depthwise.cuh",
        "bytes & 8 ? words[i.value + 2]",
        "bytes & 8 ? words[i.value + 1]",
        _anywhere("2x5x137x4-float16-float32-float32-BHL-same-linear-none-packed-all-sm_90"),
    ),
    Mutation(
        "depthwise: vectors past a row's end",
        "kernels/depthwise.cuh",
        "point >= 0 && point + kCount <= length && misalignment",
        "point >= 0 && point < length && misalignment",
        _anywhere("2x5x137x4-float16-float32-float32-BHL-same-linear-none-packed-all-sm_90"),
    ),
    Mutation(
        "depthwise: sums of points that are not there",
        "kernels/depthwise_bwd.cu",
        "if (Config::kIsShifted && !is_inside(point + t, p.dy_len)) continue;",
        "",
        (f"{_LAST}[BHL-4-odd]",),
    ),
    Mutation(
        "depthwise: rows without conditions",
        "kernels/depthwise_fwd.cu",
        "min(end, p.in_len - start - kHalo) - 2 * Walk::kRows;",
        "end;",
        (f"{_DOZEN}[9-BLH-bfloat16-packed]",),
    ),
    Mutation(
        "depthwise: rows of gradients without conditions",
        "kernels/depthwise_bwd.cu",
        "if (row >= kHalo && row <= last_inside) {",
        "if (row <= last_inside) {",
        _walk("5x24x331x4-float16-float32-float32-BLH-causal-silu-none-packed-all-sm_90"),
    ),
    Mutation(
        "depthwise: rows of a tile that begin anywhere",
        "kernels/depthwise_tile.cuh",
        "misalignment<kVector>(g_tile + channel * strides.channel)",
        "misalignment<kVector>(g_tile)",
        (f"{_MANY}[BHL]",),
    ),
    Mutation(
        "depthwise: reversed taps",
        "kernels/depthwise.cuh",
        "if (p.is_reversed) g_tap += (kTaps - 1) * p.tap_stride;",
        "if (p.is_reversed) g_tap += kTaps * p.tap_stride;",
        ("tests/test_depthwise_kernels.py::test_only_the_gradient_of_x_of_a_linear_convolution_is_a_convolution",),
    ),
    Mutation(
        "depthwise: slope of the activation",
        "kernels/depthwise.cuh",
        "return s * fmaf(z, 1.f - s, 1.f);",
        "return s * fmaf(z, s, 1.f);",
        _fast("3-BLH-same"),
    ),
    Mutation(
        "depthwise: points that go on in registers",
        "kernels/depthwise_fwd.cu",
        "x[i.value][c.value] = x[i.value + kRows][c.value];",
        "x[i.value][c.value] = x[i.value + kRows - 1][c.value];",
        _fast("4-BLH-causal"),
    ),
    Mutation(
        "depthwise: padding in time",
        "kernels/depthwise_fwd.cu",
        "start = first - p.pad;",
        "start = first - kHalo;",
        _fast("4-BLH-same"),
    ),
    Mutation(
        "depthwise: points that a tile sums",
        "kernels/depthwise_bwd.cu",
        "(dy_start + r >= first && r < dz_end)",
        "is_inside(dy_start + r, p.dy_len)",
        _walk("5x24x331x4-float16-float32-float32-BLH-causal-silu-none-packed-all-sm_90"),
    ),
    Mutation(
        "depthwise: sums of a row's warps",
        "kernels/depthwise_bwd.cu",
        "for (int warp = 0; warp < warps; warp++)",
        "for (int warp = 0; warp < 1; warp++)",
        _walk("5x5x2104x4-float16-float32-float32-BHL-causal-silu-none-packed-all-sm_90"),
    ),
    Mutation(
        "depthwise: barrier before the sums",
        "kernels/depthwise_bwd.cu",
        "  __syncthreads();\n  const int warps",
        "  const int warps",
        (f"{_RACE}[BHL-none]",),
    ),
    Mutation(
        "depthwise: gap in a tile",
        "kernels/depthwise_tile.cuh",
        "(k.value < cut ? 0 : 4)",
        "0",
        _TILED,
    ),
    Mutation(
        "depthwise: sequence indices",
        "kernels/depthwise_tile.cu",
        "s_ids[gapped(run + i.value + p.pad)];",
        "s_ids[gapped(run + i.value)];",
        (f"{_RACE}[BHL-seq_idx]",),
    ),
    Mutation(
        "depthwise: padding between sequences",
        "kernels/depthwise_taps.cu",
        "if (kHasSeqIdx && dz_ids[i.value] < 0) return;",
        "",
        _walk("3x40x300x9-float16-float32-float32-BLH-causal-linear-seq_idx-packed-all-sm_90"),
    ),
    Mutation(
        "depthwise: barrier before a tile is overwritten",
        "kernels/depthwise_tile.cu",
        "s_ids);\n    __syncthreads();\n",
        "s_ids);\n",
        (f"{_MANY}[BHL]",),
    ),
    Mutation(
        "depthwise: last taps",
        "kernels/depthwise_tile.cu",
        "if (!kIsWhole && j >= taps) return;",
        "",
        (
            "tests/test_depthwise_kernels.py::"
            "test_a_point_that_is_not_finite_stays_with_the_outputs_that_see_it[nan-BHL-20-float32]",
        ),
    ),
    Mutation(
        "depthwise: points that an output on tensor cores does not see",
        "kernels/depthwise_mma.cu",
        "if (__any_sync(0xffffffffu, difference != 0.f))",
        "if (__any_sync(0xffffffffu, difference > 0.f))",
        (f"{_FINITE}[nan-BHL-20-float16]",),
    ),
    Mutation(
        "depthwise: rest of a tap in 16 bits",
        "kernels/depthwise_mma.cu",
        "rest -= S::widen(value);",
        "rest = 0.f;",
        (f"{_MATRIX}[17-same-BHL]",),
    ),
    Mutation(
        "depthwise: barrier before chunks are overwritten",
        "kernels/depthwise_mma.cu",
        "      row.convolve(taps, batch, start);\n    }\n    __syncthreads();",
        "      row.convolve(taps, batch, start);\n    }",
        ("tests/test_depthwise_kernels.py::test_no_races_on_tensor_cores[BHL]",),
    ),
    Mutation(
        "depthwise: shift of the taps",
        "kernels/depthwise_mma.cu",
        "chunks * kChunkPoints - pad)",
        "0)",
        (f"{_MATRIX}[64-causal-BLH]",),
    ),
    Mutation(
        "depthwise: state before the row",
        "kernels/depthwise_tile.cuh",
        "(time + state_len) * state_strides.time",
        "(time + state_len - 1) * state_strides.time",
        _STATES,
    ),
    Mutation(
        "depthwise: gradient of the final state",
        "kernels/depthwise_tile.cu",
        "min(p.out_end, p.in_len - p.width + 1);",
        "p.out_end;",
        _STATES,
    ),
    Mutation(
        "depthwise: blocks of taps",
        "kernels/depthwise_taps.cu",
        "const int x_start = start + first_tap - p.pad;",
        "const int x_start = start - p.pad;",
        (f"{_MANY}[BLH]",),
    ),
    Mutation(
        "depthwise: slices of the sums",
        "kernels/depthwise_taps.cu",
        "for (int i = 0; i < Config::kSlices; i++) total",
        "for (int i = 1; i < Config::kSlices; i++) total",
        _TILED,
    ),
    Mutation(
        "depthwise: chunks of the sums",
        "kernels/depthwise_reduce.cu",
        "for (int i = 1; i < kReduceLanes; i++)",
        "for (int i = 2; i < kReduceLanes; i++)",
        _TILED,
    ),
    Mutation(
        "depthwise: where a ring goes on",
        "kernels/depthwise_update.cu",
        "at + 1 == p.state_len ? 0 : at + 1;",
        "at + 1;",
        (f"{_UPDATE}[3-4-3-True-True]",),
    ),
    Mutation(
        "depthwise: row of the state",
        "kernels/depthwise_update.cu",
        "if (index < 0 || index >= p.states) {",
        "if (index >= p.states) {",
        (f"{_UPDATE}[3-4-3-True-True]",),
    ),
    Mutation(
        "depthwise: final state of a short row",
        "kernels/depthwise_state.cu",
        "(time + p.width - 1) * p.state_strides.time",
        "(time + p.width - 2) * p.state_strides.time",
        _walk("4x130x1x4-float16-float32-float32-BHL-causal-linear-states-packed-all-sm_90"),
    ),
)
