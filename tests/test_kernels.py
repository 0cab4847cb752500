"""The kernels' own sources on the host runtime, through the API, against float64: every size row, dtype and mode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from host_runtime.harness import ORDERS
from kernel_cases import KINDS, LAYOUTS, TESTED_ARCHS, Kernel, axes_of, case_on, cases_by_kernel, kernels, planned
from kernel_runs import check, run

from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import make_inputs
from fftconv_cupy.blocks import BLOCK_CONFIGS, EXTRAS, can_prefetch
from fftconv_cupy.problem import DTYPES, MODES

KERNELS = list(kernels())
SEVERAL_ROWS = [points for points, config in BLOCK_CONFIGS.items() if config.rows > 1]


def pick(**wanted: object) -> list[Kernel]:
    """Return the kernels of the table with these fields."""
    return [kernel for kernel in KERNELS if all(getattr(kernel, name) == value for name, value in wanted.items())]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_kernel(kernel: Kernel) -> None:
    for kernel_case in cases_by_kernel()[kernel]:
        made = check(kernel_case)
        assert made.forward == kernel.spec, f"{kernel_case.label}: another kernel than meant"


def missing_pairs(rows: list[dict[str, object]], names: tuple[str, ...]) -> set[tuple[tuple[str, object], ...]]:
    """Return the pairs of values that occur, but not together."""
    missing = set()
    for pair in itertools.combinations(names, 2):
        met = {tuple((name, row[name]) for name in pair) for row in rows}
        missing |= set(itertools.product(*map(set, zip(*met, strict=True)))) - met
    return missing


def test_the_table_holds_every_size_dtype_and_kind_and_every_pair_of_flags() -> None:
    assert {(k.points, k.dtype, k.kind) for k in KERNELS} == set(itertools.product(BLOCK_CONFIGS, DTYPES, KINDS))
    assert {k.extras for k in KERNELS} == set(EXTRAS)
    assert {k.access for k in KERNELS} == {"whole", "tail", "scalar", "prefetch"}
    names = ("points", "dtype", "kind", "extras", "access")
    impossible = {(("points", points), ("access", "prefetch")) for points in BLOCK_CONFIGS if points < 4096}
    # Rows of 2M points leave no room for a filter.
    impossible |= {(("kind", "complex"), ("access", access)) for access in ("whole", "prefetch")}
    assert missing_pairs([{name: getattr(kernel, name) for name in names} for kernel in KERNELS], names) == impossible


def test_every_kernel_that_prefetches_is_in_the_table() -> None:
    for (points, config), dtype, is_paired in itertools.product(BLOCK_CONFIGS.items(), DTYPES, (False, True)):
        found = pick(points=points, dtype=dtype, kind="paired" if is_paired else "real", access="prefetch")
        assert len(found) == can_prefetch(config, ARCHS["sm_90"], dtype, is_paired=is_paired)


def test_the_cases_hold_every_pair_of_values() -> None:
    cases = [(kernel, kernel_case) for kernel, found in cases_by_kernel().items() for kernel_case in found]
    rows = [axes_of(*pair) for pair in cases]
    for dtype in ("dtype", "filter_dtype"):
        assert {(row["points"], row[dtype], row["mode"]) for row in rows} == set(
            itertools.product(BLOCK_CONFIGS, DTYPES, MODES)
        )
    names = ("points", "dtype", "mode", "filter_dtype", "gates", "skip", "filter", "layout", "scaled", "split")
    # A skip of u's own dtype is counted as that.
    assert missing_pairs(rows, names) == {(("dtype", "float32"), ("skip", "float32"))}
    assert {row["layout"] for row in rows} == set(LAYOUTS)
    assert {row["arch"] for row in rows} == set(TESTED_ARCHS)
    # All variants of the filter's kernel: size x dtype x (ring, general).
    assert len({planned(kernel_case).filter for _, kernel_case in cases}) == 12 * len(BLOCK_CONFIGS)
    assert len(cases) > 900


def race_kernels() -> Iterator[Kernel]:
    """Yield a kernel of pairs for each size row, which has every kind of barrier, and a few of the others."""
    for row, points in enumerate(BLOCK_CONFIGS):
        dtypes = DTYPES[row % 3 :] + DTYPES[: row % 3]
        prefetching = [dtype for dtype in dtypes if pick(points=points, dtype=dtype, kind="paired", access="prefetch")]
        access = "prefetch" if prefetching else ("scalar", "whole", "tail")[row % 3]
        yield Kernel(points, (*prefetching, *dtypes)[0], "paired", "none", access)
    yield Kernel(4096, "bfloat16", "real", "none", "prefetch")
    yield Kernel(16384, "float32", "real", "none", "prefetch")
    yield Kernel(256, "float16", "real", "none", "tail")
    yield Kernel(1024, "bfloat16", "complex", "any", "tail")


@pytest.mark.parametrize("kernel", list(race_kernels()), ids=str)
def test_no_races(kernel: Kernel) -> None:
    # More rows than a block has in neither a multiple of its slots in B nor in H.
    batch, channels = (19, 3) if kernel.points in SEVERAL_ROWS else (9, 2)  # with prefetch several turns a block
    filter_len = kernel.points // 2 + 1
    if kernel.kind == "paired" and kernel.points in SEVERAL_ROWS[::2]:
        filter_len += kernel.points  # folded
    kernel_case = case_on(kernel, batch, channels, filter_len=filter_len)
    assert check(kernel_case, race_check=True).forward == kernel.spec
    # What a pair can meet: a row of zeros, one whose squares underflow, one that must be split from its partner.
    inputs = make_inputs(kernel_case.case)
    inputs.u[0] = 0
    inputs.u[3] *= 2.0**-80
    inputs.u[-1, 1, 5] = np.nan
    for order in ORDERS if kernel.kind == "paired" else ():
        run(kernel_case, inputs, order=order, race_check=True)


@pytest.mark.parametrize("kind", ["real", "paired"])
@pytest.mark.parametrize("points", SEVERAL_ROWS)
def test_rows_and_slots(points: int, kind: str) -> None:
    kernel = pick(points=points, kind=kind)[0]
    for batch, channels in itertools.product((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33), (1, 2, 3, 5, 8, 17)):
        kernel_case = case_on(kernel, batch, channels)
        assert check(kernel_case, orders=("random",)).forward == kernel.spec


@pytest.mark.parametrize("kernel", pick(access="prefetch"), ids=str)
def test_prefetching_blocks_take_several_rows(kernel: Kernel) -> None:
    """On the two multiprocessors of the GPU that is played, with rows of one and of several channels in a block."""
    turns = set()
    for batch, channels in ((1, 2), (3, 1), (3, 5), (9, 2), (17, 3), (33, 1)):
        made = check(case_on(kernel, batch, channels), orders=("ascending",))
        turns.add(made.turns[0])
    assert len(turns) > 1


@pytest.mark.parametrize("mode", MODES)
def test_tiny(mode: str) -> None:
    lengths = (1, 2, 3, 4, 7, 16, 31)
    shapes = [(*shape, None) for shape in itertools.product(lengths, lengths)]
    if mode == "circular":
        shapes += [(seqlen, 500, None) for seqlen in lengths]  # many periods
        shapes += [(5, 9, 8), (64, 3, 64), (65, 1, 128), (127, 300, 128), (128, 77, 128)]
    for seqlen, filter_len, fft_size in shapes:
        cases = [
            (kernel, case_on(kernel, 5, 3, mode=mode, seqlen=seqlen, filter_len=filter_len, fft_size=fft_size))
            for kernel in pick(points=128)
        ]
        served = [kernel_case for kernel, kernel_case in cases if planned(kernel_case).forward == kernel.spec]
        assert served
        for kernel_case in served:
            check(kernel_case)
