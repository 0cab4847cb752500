"""The host runtime itself: kernels with and without planted faults (``host_runtime/selftest.cu``)."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from host_runtime.build import HostBuildError, NoCompilerError
from host_runtime.guarded import guarded_array
from host_runtime.harness import (
    ORDERS,
    DivergentBarrierError,
    HostKernel,
    HostRuntimeError,
    MemoryFaultError,
    MisuseError,
    RaceError,
    StuckError,
    ThreadExitError,
    require_compiler,
)

from fftconv_cupy.source import KernelSpec

FOLDER = Path(__file__).parent / "host_runtime"
_ENUM = re.search(r"enum Case \{(.*?)\}", (FOLDER / "selftest.cu").read_text(), re.DOTALL)
assert _ENUM
CASES = [name.strip() for name in _ENUM[1].split(",")]
BLOCKS, THREADS, SMEM_BYTES = 2, 64, 4096
X = np.arange(BLOCKS * THREADS, dtype=np.float32)
ROWS = X.reshape(BLOCKS, THREADS)


class Params(ctypes.Structure):
    _fields_ = (("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("which", ctypes.c_int))


def run(
    case: str, *, race_check: bool = False, order: str = "ascending", seed: int = 0, x: np.ndarray = X, outputs: int = 1
) -> np.ndarray:
    """Run a case on two blocks; every array ends at a guard page."""
    require_compiler()
    kernel = HostKernel(
        KernelSpec("selftest", 64, ()), race_check=race_check, order=order, seed=seed, kernel_dir=FOLDER
    )
    x = guarded_array(x)
    y = guarded_array(np.zeros(outputs * BLOCKS * THREADS), np.float32)
    params = Params(x.ctypes.data, y.ctypes.data, CASES.index(case))
    kernel.launch((BLOCKS, 1, 1), THREADS, SMEM_BYTES, params)
    return np.array(y).reshape(BLOCKS, -1)


def _shuffled() -> np.ndarray:
    lane = np.arange(THREADS) % 32
    up, eighth = np.where(lane < 3, lane, lane - 3), lane // 8 * 8 + 2
    down = np.where(lane % 16 + 5 > 15, lane, lane + 5)
    first = X.reshape(-1, 32)[:, :1].repeat(32, 1).reshape(BLOCKS, THREADS)
    return (first + up) + 100 * (first + down) + 10000 * (first + eighth)


def _one_sum() -> np.ndarray:
    sums = np.zeros_like(ROWS)
    sums[:, 0] = ROWS.sum(1)
    return sums


SECOND_ROW = np.concatenate([X, X])[64:]
CORRECT = {
    "kReverse": ROWS[:, ::-1],
    "kRotateTwice": np.roll(ROWS, -2, axis=1),
    "kWarpReverse": X.reshape(-1, 32)[:, ::-1],
    "kHalfWarps": X.reshape(-1, 16)[:, ::-1],
    "kShuffles": _shuffled(),
    "kBlockSum": _one_sum(),
    "kBlockVotes": np.full_like(ROWS, 1000 + 100 + 22),
    "kWarpVotes": np.where(np.arange(THREADS) < 32, 100 + 8, 1000 + 8) + 0 * ROWS,
    "kNeighbourHalves": ROWS,
    "kPoisoned": np.full_like(ROWS, np.nan),
    "kCopy": 2 * ROWS[:1, ::-1] + ROWS[1:, ::-1] + 0 * ROWS,
    "kCopyOneWaits": 2 * ROWS[:1, ::-1] + ROWS[1:, ::-1] + 0 * ROWS,
}

# Found by what the runtime sees, in every order, with and without the race check.
ERRORS = {
    "kEarlyExit": (ThreadExitError, r"thread 5 exited before the __syncthreads at selftest.cu:\d+"),
    "kDivergentBarrier": (DivergentBarrierError, r"thread \d+ is at selftest.cu:\d+, others at selftest.cu:\d+"),
    "kBarrierAgainstWarp": (DivergentBarrierError, "in a warp function"),
    "kAbsentLane": (MisuseError, "lane 20, which takes no part"),
    "kOwnBitMissing": (MisuseError, "without its own bit in mask 0x0000ffff"),
    "kCopyMisaligned": (MisuseError, "not all multiples of 16"),
    "kNoInit": (MisuseError, "not initialised"),
    "kNeverArrives": (StuckError, "waits for ever"),
    "kPastSharedEnd": (MemoryFaultError, "past the 4096 bytes of dynamic shared memory, at offset 4096"),
    "kPastArrayEnd": (MemoryFaultError, "invalid access to global address"),
}

# Found by the race check in every order, whatever the result.
RACES = {
    "kReverseNoBarrier": "dynamic shared memory",
    "kRotateNoBarrier": "dynamic shared memory",
    "kWarpReverseNoSync": "dynamic shared memory",
    "kWarpReverseShuffleOnly": "dynamic shared memory",
    "kWarpSyncAcrossWarps": "dynamic shared memory",
    "kHalfWarpsCrossed": "dynamic shared memory",
    "kBlockSumNoBarrier": "static shared memory",
    "kCopyNoWait": "which a bulk copy .* has written",
    "kCopySomeWait": "which a bulk copy .* has written|thread 0 writes 256 bytes",
    "kCopyTooEarly": "thread 0 writes 256 bytes|which a bulk copy .* has written",
    "kInitNoBarrier": "race: .* dynamic shared memory [+] 256|not initialised",
    "kBlocksCollide": "of another block",
}

# Without the race check: the orders in which a wrong result (or an error) shows; of random order, with the seed used
# here. A case may be right in the others, which is why each kernel is to be run in all of them.
SHOWS_IN = {
    "kReverseNoBarrier": ORDERS,
    "kRotateNoBarrier": ORDERS,
    "kWarpReverseNoSync": ORDERS,
    "kWarpSyncAcrossWarps": ORDERS,
    "kHalfWarpsCrossed": ("ascending", "descending"),
    "kBlockSumNoBarrier": ("ascending",),
    "kCopyNoWait": ORDERS,
    "kCopySomeWait": ("descending", "random"),
    "kCopyTooEarly": ("ascending", "random"),
}
INTENDED = {
    "kReverseNoBarrier": "kReverse",
    "kRotateNoBarrier": "kRotateTwice",
    "kWarpReverseNoSync": "kWarpReverse",
    "kWarpSyncAcrossWarps": "kReverse",
    "kHalfWarpsCrossed": "kWarpReverse",
    "kBlockSumNoBarrier": "kBlockSum",
    "kCopyNoWait": "kCopy",
    "kCopySomeWait": "kCopy",
    "kCopyTooEarly": "kCopy",
}

both_builds = pytest.mark.parametrize("race_check", [False, True], ids=["plain", "race-check"])
every_order = pytest.mark.parametrize("order", ORDERS)


@every_order
@both_builds
@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernel(case: str, race_check: bool, order: str) -> None:
    expected = CORRECT[case].reshape(BLOCKS, THREADS)
    np.testing.assert_array_equal(run(case, race_check=race_check, order=order, seed=3), expected)


@every_order
@both_builds
@pytest.mark.parametrize("case", ERRORS)
def test_error(case: str, race_check: bool, order: str) -> None:
    error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        run(case, race_check=race_check, order=order, seed=3)


@every_order
@pytest.mark.parametrize("case", RACES)
def test_race_check(case: str, order: str) -> None:
    with pytest.raises((RaceError, MisuseError), match=RACES[case]):
        run(case, race_check=True, order=order, seed=3)


@every_order
@pytest.mark.parametrize("case", SHOWS_IN)
def test_order_shows_race(case: str, order: str) -> None:
    try:
        is_wrong = not np.array_equal(run(case, order=order, seed=3), CORRECT[INTENDED[case]].reshape(BLOCKS, THREADS))
    except HostRuntimeError:
        is_wrong = True
    assert is_wrong == (order in SHOWS_IN[case])


@both_builds
def test_conversions_round_to_nearest_even(race_check: bool, rng: np.random.Generator) -> None:
    x = np.ldexp(rng.standard_normal(X.size), rng.integers(-26, 17, X.size)).astype(np.float32)
    x[:12] = [
        0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        65504,
        65519.99,
        65520,
        2**-25,
        2**-24 * 1.5,
        1 + 2**-11,
        1 + 3 * 2**-11,
    ]
    y = run("kConversions", race_check=race_check, x=x, outputs=4).reshape(-1, 4)
    with np.errstate(over="ignore"):
        half = x.astype(np.float16).astype(np.float32)
    bfloat16 = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(y, np.stack([half, bfloat16, half, -half], axis=1))


def test_spinning() -> None:
    assert (run("kSpin") == 1).all()
    with pytest.raises(StuckError, match="thread 0 waits for ever"):
        run("kSpinForEver")


def test_misaligned_vector_access() -> None:
    with pytest.raises(MemoryFaultError, match=r"misaligned access .* float2.* at selftest.cu:\d+"):
        run("kMisaligned", race_check=True)


def test_seed_changes_the_random_order() -> None:
    # Right only where both warps have written before thread 0 reads.
    results = {run("kBlockSumNoBarrier", order="random", seed=seed)[0, 0] == ROWS[0].sum() for seed in range(20)}
    assert results == {True, False}


def test_launches_of_many_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        for y in pool.map(lambda _: run("kRotateTwice"), range(40)):
            np.testing.assert_array_equal(y, CORRECT["kRotateTwice"])


def test_launch_checks() -> None:
    require_compiler()
    kernel = HostKernel(KernelSpec("selftest", 64, ()), kernel_dir=FOLDER)
    with pytest.raises(MisuseError, match="beyond CUDA's limits"):
        kernel.launch((1, 1, 1), 2048, 0, Params())
    with pytest.raises(MisuseError, match="beyond CUDA's limits"):
        kernel.launch((1, 1, 1), 64, 300_000, Params())
    with pytest.raises(MisuseError, match="parameter struct has 4 bytes, the kernel's has 24"):
        kernel.launch((1, 1, 1), 64, 0, ctypes.c_int(0))  # type: ignore[arg-type]


def test_build_error_names_file_and_line(tmp_path: Path) -> None:
    require_compiler()
    (tmp_path / "broken.cu").write_text("\nint f() { return missing; }\n")
    with pytest.raises(HostBuildError, match=r"broken.cu:2"):
        HostKernel(KernelSpec("broken", 2, ()), kernel_dir=tmp_path)


def test_require_compiler_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> tuple[str, ...]:
        raise NoCompilerError("none here")

    monkeypatch.setattr("host_runtime.harness.find_compiler", none)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="none here"):
        require_compiler()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="none here"):
        require_compiler()
