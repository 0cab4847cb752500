"""Runs cases whose rows the blocks of a cluster share on the host runtime, by small blocks: outputs and gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from host_runtime.cupy_host import to_numpy
from host_runtime.harness import ORDERS
from kernel_runs import Placed, describe, host_gpu, place_all
from vjp_kernel_cases import judge, make_dy

from fftconv_cupy import (
    Gradients,
    cluster_blocks,
    fftconv,
    fftconv_vjp,
    gpu,
    launch_cluster,
    launch_cluster_vjp,
    numeric,
)
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case, Inputs, gradients_of, make_inputs, reference_of
from fftconv_cupy.blocks import BLOCK_CONFIGS, QUAD_BYTES, BlockConfig
from fftconv_cupy.cluster_blocks import shared_bytes
from fftconv_cupy.cluster_plan import ClusterPlan
from fftconv_cupy.cluster_vjp_plan import ClusterVjpPlan
from fftconv_cupy.long_blocks import LongConfig

# Of a row of the filter's transform, unless the blocks of the cluster take more shared memory than such rows.
SPECTRUM_POINTS = 2048
_RADICES = {1024: (4, 3, 3), 2048: (4, 4, 3), 16384: (4, 5, 5)}  # of a block's points


@dataclass(frozen=True, slots=True)
class ClusterCase:
    """A problem, and the cluster that computes it.

    Attributes:
        case: the problem; its transform has `blocks` times `block_points` points.
        blocks: of the cluster.
        block_points: complex points of a block.
        spectrum_limit: bytes of spectra and sums in the workspace; None means the library's limit.
        wrt: names of the gradients, where these are computed; None means all.
        chunk_steps: rows that are summed at a time, at most.
    """

    case: Case
    blocks: int = 4
    block_points: int = 2048
    spectrum_limit: int | None = None
    wrt: tuple[str, ...] | None = None
    chunk_steps: int = 32

    @property
    def config(self) -> BlockConfig:
        """How the cluster transforms a row."""
        return BlockConfig(
            self.blocks * self.block_points,
            (self.blocks.bit_length() - 1, *_RADICES[self.block_points]),
            log2_ept=5,
            rows=1,
            min_blocks=1,
            backward_prefetch=True,
            chunk_steps=self.chunk_steps,
            cluster_blocks=self.blocks,
        )

    @property
    def block_bytes(self) -> int:
        """Shared memory of a block: as much as a row of the filter's transform takes, and what the cluster's do."""
        stash = self.config.quads * self.config.threads * QUAD_BYTES if self.block_points <= SPECTRUM_POINTS else 0
        return max(LongConfig(BLOCK_CONFIGS[SPECTRUM_POINTS], 1).shared_bytes, shared_bytes(self.config) + stash)

    @property
    def label(self) -> str:
        wrt = "" if self.wrt is None else f" wrt {self.wrt}"
        return f"{self.case.label}{wrt} in {self.blocks} blocks of {self.block_points}"


@contextlib.contextmanager
def cluster_gpu(cluster_case: ClusterCase, *, order: str = ORDERS[0], race_check: bool = False) -> Iterator[None]:
    """Play a GPU whose blocks hold rows of so many points only; no row is cut into windows."""
    config = cluster_case.config
    limits = replace(
        ARCHS["sm_90"], block_shared_bytes=cluster_case.block_bytes, multiprocessors=2 * cluster_case.blocks
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "sm_90", limits)
        patch.setattr(gpu, "cut_of", lambda problem, limits: None)
        patch.setattr(cluster_blocks, "CLUSTER_CONFIGS", {config.points: config})
        patch.setattr(cluster_blocks, "GRADIENT_CLUSTERS", {config.points: config})
        if cluster_case.spectrum_limit is not None:
            for planner in ("cluster_plan", "cluster_vjp_plan"):
                patch.setattr(f"fftconv_cupy.{planner}.SPECTRUM_LIMIT", cluster_case.spectrum_limit)
        with host_gpu("sm_90", order=order, race_check=race_check):
            yield


def run(
    cluster_case: ClusterCase, inputs: Inputs | None = None, *, order: str = ORDERS[0], race_check: bool = False
) -> tuple[np.ndarray, ClusterPlan]:
    """Run a case; return the output and the plan of the call."""
    case = cluster_case.case
    inputs = make_inputs(case) if inputs is None else inputs
    with cluster_gpu(cluster_case, order=order, race_check=race_check):
        arguments, out = place_all(case, inputs)
        fftconv(**arguments)
        (launcher,) = launch_cluster._launchers.values()
        return out.take(), launcher.plan


def check(cluster_case: ClusterCase, *, orders: tuple[str, ...] = ORDERS, race_check: bool = False) -> ClusterPlan:
    """Run a case in several orders: the same bits in each, and within the bounds of `numeric`; return the plan."""
    case = cluster_case.case
    inputs = make_inputs(case)
    results = []
    for order in orders:
        print(cluster_case.label, order)  # seen where a test fails
        y, made = run(cluster_case, inputs, order=order, race_check=race_check)
        results.append(y)
    assert all(y.tobytes() == results[0].tobytes() for y in results), "the order of the threads changes the result"
    agreement = numeric.compare(results[0], reference_of(case, inputs), case.dtype, fft_size=case.problem.fft_size)
    assert agreement.ok, f"{describe(agreement)}: {cluster_case.label}"
    return made


def run_vjp(
    cluster_case: ClusterCase,
    inputs: Inputs | None = None,
    dy: np.ndarray | None = None,
    *,
    order: str = ORDERS[0],
    race_check: bool = False,
) -> tuple[Gradients, ClusterVjpPlan]:
    """Run the gradients of a case; return them and the plan of the call."""
    case = cluster_case.case
    inputs = make_inputs(case) if inputs is None else inputs
    dy = make_dy(case) if dy is None else dy
    with cluster_gpu(cluster_case, order=order, race_check=race_check):
        arguments, _ = place_all(case, inputs)
        for name in ("out", "precision"):
            del arguments[name]
        dy_there = Placed.of(dy, "odd" if case.layout == "odd" else "batch-strided").array
        grads = fftconv_vjp(dy_there, **arguments, wrt=cluster_case.wrt)
        (launcher,) = launch_cluster_vjp._launchers.values()
        return Gradients(*(None if grad is None else to_numpy(grad).copy() for grad in grads)), launcher.plan


def check_vjp(
    cluster_case: ClusterCase, *, orders: tuple[str, ...] = ("random",), race_check: bool = False
) -> ClusterVjpPlan:
    """Run the gradients of a case in several orders: the same bits in each, within their bounds; return the plan."""
    case = cluster_case.case
    inputs, dy = make_inputs(case), make_dy(case)
    results = []
    for order in orders:
        print(cluster_case.label, order)  # seen where a test fails
        grads, made = run_vjp(cluster_case, inputs, dy, order=order, race_check=race_check)
        results.append(grads)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is two is None or one.tobytes() == two.tobytes(), "the order of the threads changes the result"
    wanted = case.given if cluster_case.wrt is None else cluster_case.wrt
    assert {name for name, grad in results[0]._asdict().items() if grad is not None} == set(wanted)
    judge(case, results[0], gradients_of(case, inputs, dy))
    return made
