"""Rows of 3 * 2^k points: which have them, and the kernels' own sources on the host runtime, against float64."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_cases import KernelCase
from kernel_runs import check
from vjp_kernel_cases import VjpCase
from vjp_kernel_cases import check as check_gradients

from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case
from fftconv_cupy.blocks import BLOCK_CONFIGS
from fftconv_cupy.plan import block_config, make_plan
from fftconv_cupy.problem import make_problem
from fftconv_cupy.tables import twiddle_table
from fftconv_cupy.triple_blocks import TRIPLE_CONFIGS, fitting_triples

SIZES = list(TRIPLE_CONFIGS)
GATES = {"in_gate": True, "out_gate": True}


def points_of(mode: str, seqlen: int, filter_len: int, arch: str = "sm_90", **options: Any) -> int:
    """Return the points of the transform of a problem."""
    problem = make_problem(mode, batch=2, channels=2, seqlen=seqlen, filter_len=filter_len, **options)
    return block_config(problem, ARCHS[arch])[1].points


@pytest.mark.parametrize("points", SIZES)
def test_rows_have_three_quarters_of_a_power_of_two_where_these_are_enough(points: int) -> None:
    power = points // 3 * 4
    assert power in BLOCK_CONFIGS
    assert points_of("causal", points, points) == points
    assert points_of("causal", points + 1, points + 1) == power
    assert points_of("causal", power // 2 + 1, power // 2 + 1) == points
    assert points_of("causal", power // 2, power // 2) == power // 2
    assert points_of("full", points, points + 1) == points
    assert points_of("circular", points - 1, 7) == points
    assert points_of("circular", points - 1, 7, fft_size=power) == power  # pairs
    assert points_of("causal", points, points, fft_size=4 * power) == points  # which changes nothing


@pytest.mark.parametrize("arch", ARCHS)
def test_only_gpus_that_have_the_power_of_two_have_them(arch: str) -> None:
    limits = ARCHS[arch]
    for config in fitting_triples(limits):
        assert config.exchange_bytes <= limits.block_shared_bytes
        assert config.threads % 32 == 0
        assert config.roots << sum(config.log2_radices) == config.points
        assert config.threads * config.min_blocks <= 2048


def test_a_plan_tells_the_fft_size_and_why() -> None:
    points = SIZES[-1]
    problem = make_problem("causal", batch=2, channels=3, seqlen=points - 100, filter_len=points)
    text = str(make_plan(problem, ARCHS["sm_90"]))
    assert f"FFT size        {2 * points} real points" in text
    assert f"{points} complex points = 3 x " in text
    assert f"{2 * points - 200} real points or more will do: {2 * points} = 3 x 2^" in text
    assert f"take less time than {points // 3 * 8}" in text


@pytest.mark.parametrize("points", SIZES)
def test_twiddles_start_with_those_of_the_three_roots(points: int) -> None:
    config = TRIPLE_CONFIGS[points]
    table = twiddle_table(config, is_paired=False).astype(np.float64)
    np.testing.assert_allclose(np.hypot(table[::2], table[1::2]), 1, atol=1e-7)
    nodes = [3 << sum(config.log2_radices[:i]) for i in range(len(config.log2_radices))]
    sizes = [3 * count << log2 for count, log2 in zip(nodes, config.log2_radices, strict=True)]
    assert table.size == sum(sizes)  # of floats: three float4 a node for each four of the radix
    first = table[: 4 * 3].reshape(3, 2, 2)[:, 0]  # of each root the twiddle of level 1
    angles = np.pi * (1 / 12 + np.arange(3) / 3)
    np.testing.assert_allclose(first, np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-7)


@pytest.mark.parametrize("points", SIZES)
def test_rows(points: int) -> None:
    dtype = ("float16", "bfloat16")[SIZES.index(points) % 2]
    case = Case("causal", dtype, points - 2, points, 5, 2, **GATES)
    for changes in ({}, {"prepared": True, "layout": "batch-strided"}):
        made = check(KernelCase(replace(case, **changes), "sm_90"), orders=("random", "descending"), race_check=True)
        assert made.config.points == points


@pytest.mark.parametrize(
    ("mode", "more", "taps", "skip"),
    [("full", 2, -3, "float32"), ("same", -1, -1, None), ("circular", -2, 5, None), ("causal", 0, 9, None)],
    ids=["points from M on", "odd length", "wrapped taps", "whole"],
)
def test_rows_of_other_kinds(mode: str, more: int, taps: int, skip: str | None) -> None:
    points = 1536
    case = Case(mode, "float32", points + more, points + taps, 3, 2, skip_dtype=skip)
    assert check(KernelCase(case, "sm_80"), orders=("random",), race_check=True).config.points == points


@pytest.mark.parametrize(("points", "wrt"), [(1536, None), (1536, ("u", "k"))])
def test_gradients(points: int, wrt: tuple[str, ...] | None) -> None:
    """Of everything; and of what takes a transform that follows a transform, not an inverse one."""
    case = Case("causal", "float32", points - 2, points // 2 + 1, 5, 2, **GATES, skip_dtype="float32")
    made = check_gradients(VjpCase(case, wrt), orders=("random",), race_check=True)
    assert made.config.points == points


def test_rows_and_slots_of_a_block() -> None:
    points = next(points for points, config in TRIPLE_CONFIGS.items() if config.rows > 1)
    for batch, channels in itertools.product((1, 2, 3, 5), (1, 2, 5)):
        case = Case("causal", "float16", points - 2, points // 2 + 9, batch, channels, **GATES)
        assert check(KernelCase(case, "sm_90"), orders=("random",)).config.points == points
