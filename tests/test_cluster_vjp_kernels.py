"""Gradients of rows that the blocks of a cluster share, on the host runtime, through the API, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cluster_cases import ClusterCase, check_vjp, run_vjp
from host_runtime.harness import ORDERS
from vjp_kernel_cases import case_of, make_dy

from fftconv_cupy.benchmarks.problems import gradients_of, make_inputs

POINTS = 4096  # of four blocks of 1024
PLAIN = {"in_gate": False, "out_gate": False, "skip_dtype": None}
ANY = {"in_gate": False, "out_gate": True, "skip_dtype": "float32"}
GATES = {"in_gate": True, "out_gate": True, "skip_dtype": None}


def cluster_case(dtype: str = "float32", *, wrt: tuple[str, ...] | None = None, **changes: Any) -> ClusterCase:
    """Return a case of four small blocks, with the arguments of `ClusterCase` and changes of `case_of`."""
    own = {name: changes.pop(name) for name in ClusterCase.__dataclass_fields__ if name in changes}
    points = own.get("blocks", 4) * own.setdefault("block_points", 1024)
    return ClusterCase(case_of(points, dtype, **{"batch": 3, **changes}), wrt=wrt, **own)


@pytest.mark.parametrize(
    "case",
    [
        cluster_case("float16"),
        cluster_case("bfloat16", seqlen=POINTS - 1, layout="odd", filter_len=2 * POINTS, **ANY),
        cluster_case("float16", seqlen=5000, filter_len=3001, mode="same", layout="transposed", **GATES),
        cluster_case("float32", seqlen=POINTS - 2, mode="circular", shared_filter=True, **PLAIN),
    ],
    ids=lambda case: case.label,
)
def test_gradients(case: ClusterCase) -> None:
    made = check_vjp(case)
    assert made.config.cluster_blocks == 4
    assert made.variant.stash_quads == made.config.quads


@pytest.mark.parametrize("wrt", [("u", "k"), ("u", "in_gate", "out_gate")], ids="-".join)
def test_some_of_the_gradients(wrt: tuple[str, ...]) -> None:
    made = check_vjp(cluster_case("float16", wrt=wrt, prepared="k" not in wrt))
    assert made.variant.has_sum == bool({"k", "skip"} & set(wrt))
    assert made.launches == len(made.kernels)


def test_every_order_of_threads_gives_the_same_bits() -> None:
    made = check_vjp(cluster_case("float16", blocks=8, **GATES), orders=ORDERS)
    assert made.config.cluster_blocks == 8


@pytest.mark.parametrize("wrt", [None, ("u", "k")], ids=["all", "u-k"])
def test_no_races(wrt: tuple[str, ...] | None) -> None:
    """Several rows a chunk, so that the places and barriers of the exchange are used again."""
    made = check_vjp(cluster_case("float16", wrt=wrt, seqlen=POINTS if wrt else 5000, filter_len=99), race_check=True)
    assert made.chunks.chunk_steps == 3


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_groups_of_channels(is_shared: bool) -> None:
    limit = (8 if is_shared else 4) * 8 * POINTS
    made = check_vjp(cluster_case("float16", channels=5, shared_filter=is_shared, spectrum_limit=limit))
    assert made.channel_group < 5
    assert made.workspace.nbytes <= limit


def test_many_chunks_of_a_channel_are_added_up_by_a_kernel() -> None:
    made = check_vjp(cluster_case("float16", batch=10, chunk_steps=1))
    assert made.has_reduce
    few = check_vjp(cluster_case("float16", batch=5, chunk_steps=2))
    assert (few.has_reduce, few.chunks.group_chunks) == (False, 3)


def test_values_that_are_not_finite_stay_in_their_row_and_channel() -> None:
    case = cluster_case("float16", batch=2)
    inputs, dy = make_inputs(case.case), make_dy(case.case)
    inputs.u[1, 0, 5] = np.nan
    grads, _ = run_vjp(case, inputs, dy)
    clean = gradients_of(case.case, make_inputs(case.case), dy)
    for name in ("u", "in_gate", "out_gate"):
        grad = getattr(grads, name).astype(float)
        assert np.isfinite(grad[[0, 0, 1], [0, 1, 1]]).all()
    error = np.linalg.norm(grads.k[1] - clean.k[1])
    assert error < 1e-5 * np.linalg.norm(clean.k[1])
    assert not np.isfinite(grads.k[0]).all()
