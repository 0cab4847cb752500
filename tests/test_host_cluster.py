"""Clusters in the host runtime: kernels with and without planted faults (``host_runtime/cluster_selftest.cu``)."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
from host_runtime.guarded import guarded_array
from host_runtime.harness import (
    ORDERS,
    DivergentBarrierError,
    HostKernel,
    MisuseError,
    RaceError,
    ThreadExitError,
    require_compiler,
)

from fftconv_cupy.source import KernelSpec

FOLDER = Path(__file__).parent / "host_runtime"
_ENUM = re.search(r"enum Case \{(.*?)\}", (FOLDER / "cluster_selftest.cu").read_text(), re.DOTALL)
assert _ENUM
CASES = [name.strip() for name in _ENUM[1].split(",")]
CLUSTERS, THREADS = 2, 64
X = np.arange(2 * CLUSTERS * THREADS, dtype=np.float32).reshape(CLUSTERS, 2, THREADS)
SWAPPED = X[:, ::-1]


class Params(ctypes.Structure):
    _fields_ = (("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("which", ctypes.c_int))


def run(case: str, *, race_check: bool = False, order: str = "ascending", blocks: int = 2 * CLUSTERS) -> np.ndarray:
    """Run a case on two clusters; every array ends at a guard page."""
    require_compiler()
    spec = KernelSpec("cluster_selftest", 64, ())
    kernel = HostKernel(spec, race_check=race_check, order=order, seed=3, kernel_dir=FOLDER)
    x, y = guarded_array(X.reshape(-1)), guarded_array(np.zeros(X.size), np.float32)
    kernel.launch((blocks, 1, 1), THREADS, 4096, Params(x.ctypes.data, y.ctypes.data, CASES.index(case)))
    return np.array(y).reshape(X.shape)


def _neighbours(x: np.ndarray) -> np.ndarray:
    return x.reshape(CLUSTERS, 2, -1, 2)[..., ::-1].reshape(X.shape)


CORRECT = {
    "kExchange": SWAPPED,
    "kExchangeTwice": X,
    "kOneBufferWhenReady": X,
    "kThroughGlobal": _neighbours(SWAPPED) + _neighbours(X),
    "kApart": X[..., ::-1],
}

ERRORS = {
    "kPeerExits": (MisuseError, "shared memory of rank 1, which has exited|on an mbarrier"),
    "kEarlyExit": (ThreadExitError, "thread 69 exited before the cluster's barrier"),
    "kNoArrival": (MisuseError, "without having arrived"),
    "kTwoArrivals": (MisuseError, "arrives twice"),
    "kNoWait": (MisuseError, "ends between two halves"),
    "kAbsentRank": (MisuseError, "of rank 2 of 2"),
    "kDivergent": (DivergentBarrierError, r"thread \d+ waits at the cluster's barrier, thread 64 elsewhere"),
    "kNoInit": (MisuseError, "on an mbarrier that was not initialised"),
    "kNobodyWaits": (MisuseError, "that no thread waited for|has exited"),
}

RACES = {
    "kNoBarrier": "which a bulk copy .* has written|has exited",
    "kReadEarly": "dynamic shared memory",
    "kThroughGlobalNoBarrier": "global address|dynamic shared memory",
}

every_order = pytest.mark.parametrize("order", ORDERS)
both_builds = pytest.mark.parametrize("race_check", [False, True], ids=["plain", "race-check"])


@every_order
@both_builds
@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernel(case: str, race_check: bool, order: str) -> None:
    np.testing.assert_array_equal(run(case, race_check=race_check, order=order), CORRECT[case])


@every_order
@both_builds
@pytest.mark.parametrize("case", ERRORS)
def test_error(case: str, race_check: bool, order: str) -> None:
    error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        run(case, race_check=race_check, order=order)


@every_order
@pytest.mark.parametrize("case", RACES)
def test_race_check(case: str, order: str) -> None:
    with pytest.raises((RaceError, MisuseError), match=RACES[case]):
        run(case, race_check=True, order=order)


@every_order
def test_a_buffer_that_is_sent_to_again_before_it_is_read_is_a_race(order: str) -> None:
    with pytest.raises(RaceError, match=r"thread \d+ (reads|writes) 4 bytes of dynamic shared memory"):
        run("kOneBuffer", race_check=True, order=order)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_a_block_that_has_not_started_cannot_be_written_to(order: str) -> None:
    with pytest.raises(MisuseError, match="which has not started"):
        run("kNoStart", order=order)


def test_a_grid_consists_of_whole_clusters() -> None:
    with pytest.raises(MisuseError, match="a grid of 3 blocks does not consist of clusters of 2"):
        run("kExchange", blocks=3)
