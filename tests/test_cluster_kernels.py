"""The kernel of rows that the blocks of a cluster share, on the host runtime, through the API, against float64."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from cluster_cases import ClusterCase, check, cluster_gpu, run
from host_runtime.cupy_host import to_cupy, to_numpy
from vjp_kernel_cases import make_dy

from fftconv_cupy import fftconv_vjp, numeric, prepare_filter
from fftconv_cupy.benchmarks.problems import Case, gradients_of, make_inputs, reference_of
from fftconv_cupy.problem import DTYPES

_POINTS = 8192  # of four blocks of 2048
_GATES = ((False, False, False), (True, True, False), (True, False, True), (False, True, False), (False, False, True))
# Rows and filters of a transform of so many points, by mode: the edges of it.
_LENGTHS = {
    "causal": ((8192, 8192), (8191, 20000), (8190, 4099), (4097, 8193), (10000, 6001)),
    "full": ((8000, 8385), (4098, 8191), (12000, 4384)),
    "same": ((8192, 8192), (9001, 6000), (5000, 9001)),
    "circular": ((8192, 8192), (8189, 8192), (4103, 17)),
}


def _cases() -> Iterator[Case]:
    """Yield a case for each mode and length; the rest is drawn."""
    draw = random.Random("clusters")
    for number, (mode, (seqlen, filter_len)) in enumerate(
        (mode, lengths) for mode, those in _LENGTHS.items() for lengths in those
    ):
        dtype = DTYPES[number % len(DTYPES)]
        in_gate, out_gate, skip = _GATES[number % len(_GATES)]
        batch, channels = draw.choice(((1, 1), (1, 3), (3, 2), (2, 7)))
        yield Case(
            mode,
            dtype,
            seqlen,
            filter_len,
            batch,
            channels,
            filter_dtype=draw.choice(DTYPES),
            in_gate=in_gate,
            out_gate=out_gate,
            skip_dtype=draw.choice(("float32", dtype)) if skip else None,
            shared_filter=draw.random() < 0.3,
            prepared=number % 2 == 1,
            layout=draw.choice(("packed", "transposed", "batch-strided", "odd", "reversed")),
        )


@pytest.mark.parametrize("case", list(_cases()), ids=lambda case: case.label)
def test_outputs(case: Case) -> None:
    made = check(ClusterCase(case), orders=("random",))
    assert made.config.points == _POINTS
    assert made.config.cluster_blocks == 4


@pytest.mark.parametrize(("blocks", "block_points"), [(2, 2048), (8, 2048), (4, 1024), (2, 16384)])
def test_every_order_of_threads_gives_the_same_bits(blocks: int, block_points: int) -> None:
    """Two blocks of 1024 points share a row of the filter's spectrum, one of 16384 has two."""
    points = blocks * block_points
    case = Case("causal", "float32", points - 2, points, 3, 2, in_gate=True, skip_dtype="float32")
    made = check(ClusterCase(case, blocks, block_points))
    assert made.config.cluster_blocks == blocks
    assert made.config.threads == block_points // 32


@pytest.mark.parametrize(("blocks", "block_points"), [(2, 2048), (4, 1024)])
def test_no_races(blocks: int, block_points: int) -> None:
    """With several rows a cluster, whose buffers are used again."""
    case = Case("causal", "float32", 4096, 4096, 3, 2, in_gate=True, out_gate=True)
    made = check(ClusterCase(case, blocks, block_points), orders=("random",), race_check=True)
    assert made.turns == 6


def test_the_last_cluster_has_fewer_rows() -> None:
    case = Case("causal", "float16", 4096, 99, 2, 17)
    made = check(ClusterCase(case, 4, 1024), orders=("descending",))
    assert made.turns * made.grid(17)[0] // made.config.cluster_blocks > 34


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_groups_of_channels(is_shared: bool) -> None:
    case = Case("same", "float16", _POINTS, 9000, 2, 5, skip_dtype="float16", shared_filter=is_shared)
    made = check(ClusterCase(case, spectrum_limit=2 * 8 * _POINTS), orders=("ascending",))
    assert made.channel_group == (5 if is_shared else 2)
    assert made.launches == (2 if is_shared else 6)


def test_a_prepared_filter_serves_gradients_too() -> None:
    case = Case("causal", "float32", _POINTS - 100, _POINTS, 2, 3, in_gate=True, out_gate=True, prepared=True)
    inputs, dy = make_inputs(case), make_dy(case)
    y, made = run(ClusterCase(case), inputs)
    assert numeric.compare(y, reference_of(case, inputs), "float32", fft_size=2 * _POINTS).ok
    with cluster_gpu(ClusterCase(case)):
        filt = prepare_filter(to_cupy(inputs.k), seqlen=case.seqlen)
        assert filt.points == made.config.points
        gates = {"in_gate": to_cupy(inputs.in_gate), "out_gate": to_cupy(inputs.out_gate)}
        grads = fftconv_vjp(to_cupy(dy), to_cupy(inputs.u), filt, **gates)
        expected = gradients_of(case, inputs, dy)
        for name in ("u", "in_gate", "out_gate"):
            grad = to_numpy(getattr(grads, name))
            assert numeric.compare(grad, getattr(expected, name), "float32", fft_size=2 * _POINTS).ok, name


def test_values_that_are_not_finite_stay_in_their_row() -> None:
    case = Case("causal", "float32", _POINTS, _POINTS, 4, 2)
    inputs = make_inputs(case)
    inputs.u[1, 0, 17], inputs.u[2, 1, -1] = np.nan, np.inf
    y, _ = run(ClusterCase(case), inputs)
    clean = np.ones((4, 2), bool)
    clean[1, 0] = clean[2, 1] = False
    assert np.isfinite(y[clean]).all()
    inputs.u[~clean] = 0.0
    assert numeric.compare(y[clean], reference_of(case, inputs)[clean], "float32", fft_size=2 * _POINTS).ok
