"""Rows of a kernel on the host runtime that must not see each other, and arrays that lie in every way."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from dataclasses import replace

import numpy as np
import pytest
from host_runtime.cupy_host import to_cupy, to_numpy
from kernel_cases import KINDS, Kernel, KernelCase, case_on, kernels
from kernel_runs import Placed, check, cupy, describe, host_gpu, run

from fftconv_cupy import fftconv, numeric, prepare_filter
from fftconv_cupy.benchmarks.problems import Inputs, make_inputs, reference_of
from fftconv_cupy.blocks import BLOCK_CONFIGS
from fftconv_cupy.problem import DTYPES, MODES
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_reference

KERNELS = list(kernels())
# A dtype, in turn, of each size and kind: what rows and channels have to do with one another does not depend on it.
SIZES = sorted(BLOCK_CONFIGS)
SOME = [k for k in KERNELS if k.dtype == DTYPES[(SIZES.index(k.points) + KINDS.index(k.kind)) % len(DTYPES)]]
PAIRED = [kernel for kernel in KERNELS if kernel.kind == "paired"]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)
some_kernels = pytest.mark.parametrize("kernel", SOME, ids=str)
every_paired = pytest.mark.parametrize("kernel", PAIRED, ids=str)


def rows_of(inputs: Inputs, rows: slice) -> Inputs:
    """Return the inputs of some rows of the batch."""
    picked = {name: getattr(inputs, name) for name in ("u", "in_gate", "out_gate")}
    return replace(inputs, **{name: None if array is None else array[rows] for name, array in picked.items()})


def alone(kernel_case: KernelCase, inputs: Inputs, row: int) -> np.ndarray:
    """Return the output of one row of the batch, computed by itself."""
    single = replace(kernel_case, case=replace(kernel_case.case, batch=1))
    return run(single, rows_of(inputs, slice(row, row + 1)))[0][0]


def assert_close(kernel_case: KernelCase, y: np.ndarray, inputs: Inputs, *selections: object) -> None:
    """Judge parts of the output each by itself: a large row must not hide a small one."""
    y64 = reference_of(kernel_case.case, inputs)
    for selection in selections:
        agreement = numeric.compare(y[selection], y64[selection], kernel_case.case.dtype)
        assert agreement.ok, f"{describe(agreement)}: {kernel_case.label}, {selection}"


@some_kernels
def test_a_value_that_is_not_finite_stays_in_its_row(kernel: Kernel) -> None:
    kernel_case = case_on(kernel, 5, 3)
    inputs = make_inputs(kernel_case.case)
    dirty = replace(inputs, u=inputs.u.copy())
    dirty.u[1, 0, kernel_case.case.seqlen // 2] = np.nan
    dirty.u[2, 2, 0] = -np.inf
    y, _ = run(kernel_case, dirty)
    assert not np.isfinite(y[1, 0]).all()
    assert not np.isfinite(y[2, 2]).all()
    clean = np.ones(y.shape[:2], bool)
    clean[1, 0] = clean[2, 2] = False
    assert_close(kernel_case, y, inputs, clean)
    # The other row of the pair is what it is by itself, bit by bit.
    assert y[0, 0].tobytes() == alone(kernel_case, inputs, 0)[0].tobytes()
    assert y[3, 2].tobytes() == alone(kernel_case, inputs, 3)[2].tobytes()
    assert y[4].tobytes() == alone(kernel_case, inputs, 4).tobytes()


@every_paired
def test_rows_of_zeros(kernel: Kernel) -> None:
    kernel_case = case_on(kernel, 5, 2)
    inputs = make_inputs(kernel_case.case)
    inputs.u[0, 0] = inputs.u[3] = inputs.u[4, 1] = 0
    y, _ = run(kernel_case, inputs, order="random")
    for zero in ((0, 0), 3, (4, 1)):
        assert not y[zero].any()
    assert_close(kernel_case, y, inputs, np.s_[:], 2, np.s_[:, 0])


@some_kernels
def test_an_odd_last_row_is_what_it_is_by_itself(kernel: Kernel) -> None:
    kernel_case = case_on(kernel, 3, 2)
    inputs = make_inputs(kernel_case.case)
    y, _ = run(kernel_case, inputs)
    assert y[2].tobytes() == alone(kernel_case, inputs, 2).tobytes()


@every_kernel
def test_rows_of_other_scales(kernel: Kernel) -> None:
    """Rows 2^20 and 2^80 apart, which are balanced, and rows whose squares leave float32, which are split."""
    kernel_case = case_on(kernel, 7, 4)
    inputs = make_inputs(kernel_case.case)
    is_large = np.arange(7) % 3 == 0
    wide = ((40, -40), (80, -80), (0, -80), (-80, 0))
    for large, small in ((10, -10), *(() if kernel.dtype == "float16" else wide)):
        scale = np.where(is_large, 2.0**large, 2.0**small)[:, None, None]
        scaled = replace(inputs, u=(inputs.u.astype(np.float64) * scale).astype(inputs.u.dtype))
        y, _ = run(kernel_case, scaled)
        assert_close(kernel_case, y, scaled, is_large, ~is_large)
        if kernel.points >= numeric.ROW_OUTPUTS:
            assert_close(kernel_case, y, scaled, *np.ndindex(7, 4))


@pytest.mark.parametrize("split", ["channel groups", "grid z"], ids=["groups", "grid"])
@some_kernels
def test_many_channels(kernel: Kernel, split: str) -> None:
    """Spectra in groups of two channels, and two blocks in the second dimension of the grid: more of both than one."""
    batch = BLOCK_CONFIGS[kernel.points].rows  # so that each block has one channel
    skips = [kernel.dtype, "float32", "float32"] if kernel.extras == "any" else [None] * 3
    for filter_dtype, skip_dtype, is_shared in zip(DTYPES[::-1], skips, (False, False, True), strict=True):
        changes = {"filter_dtype": filter_dtype, "skip_dtype": skip_dtype, "shared_filter": is_shared}
        kernel_case = case_on(kernel, batch, 7, layout="channel-strided", **changes)
        made = check(replace(kernel_case, split=split), orders=("ascending",))
        assert made.launches == (2 if is_shared or split == "grid z" else 8)
        # Blocks with prefetch take the rows of all channels from one list.
        assert (made.grid[2] > 1) == (split == "grid z" and kernel.access != "prefetch")


def test_calls_that_differ_only_in_how_arrays_lie() -> None:
    """One after the other on one GPU: what was loaded for one must not serve another that it does not fit."""
    kernel_case = case_on(Kernel(4096, "float16", "real", "gates", "prefetch"), 3, 2)
    inputs = make_inputs(kernel_case.case)
    expected = run(kernel_case, inputs)[0]
    names = ("u", "in_gate", "out_gate", "out")
    with host_gpu():
        k = to_cupy(inputs.k)
        for layout, name in itertools.product(("packed", "odd", "packed", "even", "transposed", "odd"), names):
            layouts = {**dict.fromkeys(names, "packed"), name: layout}
            arrays = {other: Placed.of(getattr(inputs, other), layouts[other]).array for other in names[:-1]}
            out = Placed.poisoned(expected.shape, "float16", layouts["out"])
            fftconv(k=k, out=out.array, **arrays)
            assert out.take().tobytes() == expected.tobytes()


def test_a_prepared_filter_serves_any_batch_gates_and_dtype() -> None:
    rng = np.random.default_rng(5)
    k = rng.standard_normal((3, 100)) / 10
    with host_gpu("sm_80"):
        filters = {
            mode: prepare_filter(to_cupy(k, np.float32), seqlen=127, mode=mode) for mode in ("causal", "circular")
        }
        for mode, dtype, batch in itertools.product(filters, DTYPES, (1, 2, 5)):
            u = rng.standard_normal((batch, 3, 127)).astype(NUMPY_DTYPES[dtype])
            y = fftconv(to_cupy(u), filters[mode], mode=mode, out_gate=to_cupy(u))
            y64 = fftconv_reference(u, k.astype(np.float32), mode=mode, out_gate=u)
            assert numeric.compare(to_numpy(y), y64, dtype).ok


@pytest.mark.parametrize("mode", MODES)
def test_arrays_of_one_and_two_axes(mode: str) -> None:
    rng = np.random.default_rng(6)
    u, k = (rng.standard_normal((2, 3, n)).astype(np.float32) for n in (127, 77))
    skip = rng.standard_normal(3).astype(np.float32)
    with host_gpu("sm_86"):

        def convolve(u: np.ndarray, k: np.ndarray, skip: np.ndarray) -> np.ndarray:
            y = fftconv(to_cupy(u), to_cupy(k), mode=mode, in_gate=to_cupy(u), skip=to_cupy(skip))
            return to_numpy(y).copy()

        expected = fftconv_reference(u[:1], k[0], mode=mode, in_gate=u[:1], skip=skip)
        assert numeric.compare(convolve(u[:1], k[0], skip), expected, "float32").ok
        assert convolve(u[0], k[0], skip).tobytes() == convolve(u[:1], k[0], skip).tobytes()
        assert convolve(u[0, 1], k[0, 1], skip[1:2]).tobytes() == convolve(u[:1, 1:2], k[0, 1:2], skip[1:2]).tobytes()


def sparse(shape: tuple[int, ...], strides: tuple[int, ...]) -> cupy.ndarray:
    """Return a float16 array of zeros with strides (in elements) of which only the touched pages take memory."""
    nbytes = 2 * (1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)))
    no_reserve = 0x4000
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    except OSError as error:
        pytest.skip(f"{nbytes >> 30} GiB of address space: {error}")
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    pointer = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, nbytes, memory, 0), 0)
    return cupy.ndarray(shape, np.float16, pointer, tuple(2 * stride for stride in strides))


@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("far_axis", ["batch", "channel"])
def test_offsets_beyond_32_bits(far_axis: str, mode: str) -> None:
    far = (1 << 31) + 130
    rng = np.random.default_rng(7)
    u, k = rng.standard_normal((3, 2, 128)).astype(np.float16), rng.standard_normal((2, 99)).astype(np.float16) / 10
    strides = (far, 128, 1) if far_axis == "batch" else (128, far, 1)
    with host_gpu():
        arrays = {name: sparse(u.shape, strides) for name in ("u", "in_gate", "out_gate", "out")}
        arrays["k"] = sparse(k.shape, (far, 1))
        for name, values in (("u", u), ("in_gate", u), ("out_gate", u), ("k", k)):
            to_numpy(arrays[name])[...] = values
        y = to_numpy(fftconv(**arrays, mode=mode))
        y64 = fftconv_reference(u, k, mode=mode, in_gate=u, out_gate=u)
        assert numeric.compare(y, y64, "float16").ok
