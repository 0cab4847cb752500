"""Runs cases whose rows the blocks of a cluster share on the host runtime, by small blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from host_runtime.harness import ORDERS
from kernel_runs import describe, host_gpu, place_all

from fftconv_cupy import cluster_blocks, fftconv, gpu, launch_cluster, numeric
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case, Inputs, make_inputs, reference_of
from fftconv_cupy.blocks import BLOCK_CONFIGS, BlockConfig
from fftconv_cupy.cluster_blocks import shared_bytes
from fftconv_cupy.cluster_plan import ClusterPlan
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
        spectrum_limit: bytes of spectra in the workspace; None means the library's limit.
    """

    case: Case
    blocks: int = 4
    block_points: int = 2048
    spectrum_limit: int | None = None

    @property
    def config(self) -> BlockConfig:
        """How the cluster transforms a row."""
        radices = (self.blocks.bit_length() - 1, *_RADICES[self.block_points])
        points = self.blocks * self.block_points
        return BlockConfig(points, radices, log2_ept=5, rows=1, min_blocks=1, cluster_blocks=self.blocks)

    @property
    def label(self) -> str:
        return f"{self.case.label} in {self.blocks} blocks of {self.block_points}"


@contextlib.contextmanager
def cluster_gpu(cluster_case: ClusterCase, *, order: str = ORDERS[0], race_check: bool = False) -> Iterator[None]:
    """Play a GPU whose blocks hold rows of so many points only; no row is cut into windows."""
    config = cluster_case.config
    limits = replace(
        ARCHS["sm_90"],
        block_shared_bytes=max(LongConfig(BLOCK_CONFIGS[SPECTRUM_POINTS], 1).shared_bytes, shared_bytes(config)),
        multiprocessors=2 * cluster_case.blocks,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "sm_90", limits)
        patch.setattr(gpu, "cut_of", lambda problem, limits: None)
        patch.setattr(cluster_blocks, "CLUSTER_CONFIGS", {config.points: config})
        if cluster_case.spectrum_limit is not None:
            patch.setattr("fftconv_cupy.cluster_plan.SPECTRUM_LIMIT", cluster_case.spectrum_limit)
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
