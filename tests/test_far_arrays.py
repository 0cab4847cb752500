"""More than 2^31 elements on a real GPU: rows that lie far apart, and more rows than 32 bits count the points of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fftconv_cupy import depthwise_conv1d, depthwise_conv1d_vjp, fftconv, fftconv_vjp, prepare_filter
from fftconv_cupy.depthwise_reference import DepthwiseReference
from fftconv_cupy.numeric import compare, compare_sum, relative_error
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference

pytestmark = pytest.mark.gpu

FAR = (1 << 31) + 4096  # elements between two rows
MARGIN = 2 << 30  # bytes that must be free beside the arrays


@pytest.fixture
def cupy():
    """CuPy, with nothing left in its pool before and after."""
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    yield cupy
    pool.free_all_blocks()


def require(cupy: Any, elements: int) -> None:
    """Skip where so many elements of 16 bits do not fit."""
    free, _ = cupy.cuda.Device().mem_info
    if free < 2 * elements + MARGIN:
        pytest.skip(f"this needs {(2 * elements + MARGIN) >> 30} GiB of free GPU memory, there are {free >> 30}")


class Buffer:
    """Memory of float16 in which rows lie `FAR` elements apart; what lies between them is never touched."""

    def __init__(self, cupy: Any, room: int) -> None:
        self._cupy, self._used = cupy, 0
        self._memory = cupy.empty(FAR + room, np.float16)

    def place(self, host: np.ndarray, axis: int) -> Any:
        """Return an array of two rows along `axis`, with the values of `host`."""
        length = host.shape[-1]
        strides = [2 * length] * 2 + [2]
        strides[axis] = 2 * FAR
        view = self._cupy.lib.stride_tricks.as_strided(self._memory[self._used :], host.shape, strides)
        view[...] = self._cupy.asarray(host)
        self._used += -(-length // 64) * 64
        return view


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float16)


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "channels"])
@pytest.mark.parametrize(
    ("seqlen", "filter_len"),
    [(1000, 1000), (2048, 2048), (16384, 16384), (70_000, 70_000), (100_000, 128)],
    ids=["tail", "whole", "large", "long", "windows"],
)
def test_rows_far_apart(cupy, rng, seqlen, filter_len, axis):
    require(cupy, 2 * FAR)
    shape = (2, 1, seqlen) if axis == 0 else (1, 2, seqlen)
    host = {name: normal(rng, *shape) for name in ("u", "in_gate", "out_gate", "dy")}
    k = (rng.standard_normal((shape[1], filter_len)) / filter_len**0.5).astype(np.float32)
    buffer, target = Buffer(cupy, 1 << 20), Buffer(cupy, 1 << 20)
    placed = {name: buffer.place(x, axis) for name, x in host.items()}
    out = target.place(np.zeros(shape, np.float16), axis)
    dy, dy_host = placed.pop("dy"), host.pop("dy")
    taps, size = cupy.asarray(k), 2 * seqlen
    expected = fftconv_reference(k=k, **host)
    for filt in (taps, prepare_filter(taps, seqlen=seqlen)):
        out[...] = 0
        fftconv(k=filt, out=out, **placed)
        assert compare(cupy.asnumpy(out), expected, "float16", fft_size=size).ok
    grads = fftconv_vjp(dy, k=taps, **placed)
    expected_grads = fftconv_vjp_reference(dy_host, k=k, **host)
    for name in host:
        assert compare(
            cupy.asnumpy(getattr(grads, name)), getattr(expected_grads, name), "float16", fft_size=size
        ).ok, name
    assert compare_sum(cupy.asnumpy(grads.k), expected_grads.k, "float32").ok


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "channels"])
@pytest.mark.parametrize("width", [4, 64])
def test_rows_of_depthwise_convolutions_far_apart(cupy, rng, width, axis):
    require(cupy, FAR)
    shape = (2, 1, 5000) if axis == 0 else (1, 2, 5000)
    x_host, dy_host = normal(rng, *shape), normal(rng, *shape)
    weight = rng.standard_normal((shape[1], width)).astype(np.float32)
    buffer = Buffer(cupy, 1 << 20)
    x, dy, taps = buffer.place(x_host, axis), buffer.place(dy_host, axis), cupy.asarray(weight)
    y = depthwise_conv1d(x, taps)
    assert compare(cupy.asnumpy(y), DepthwiseReference(x_host, weight).outputs(), "float16").ok
    grads, expected = depthwise_conv1d_vjp(dy, x, taps), DepthwiseReference(x_host, weight).gradients(dy_host)
    assert compare(cupy.asnumpy(grads.x), expected.x, "float16").ok
    assert compare_sum(cupy.asnumpy(grads.weight), expected.weight, "float32").ok


COUNT, SEQLEN, UNIQUE = (1 << 21) + 3, 1024, 61  # COUNT * SEQLEN > 2^31; rows repeat with a period that divides nothing
SUM_BOUND = 1e-4  # of so many equal terms


def tiled(cupy: Any, host: np.ndarray) -> Any:
    """Return (COUNT, 1, SEQLEN) on the GPU: row i has the values of row i modulo UNIQUE of `host`."""
    result = cupy.empty((COUNT, 1, SEQLEN), np.float16)
    rows = cupy.asarray(host)
    for first in range(0, COUNT, UNIQUE << 10):
        chunk = result[first : first + (UNIQUE << 10)]
        chunk[...] = cupy.tile(rows, (1 << 10, 1, 1))[: len(chunk)]
    return result


def rows_agree(cupy: Any, found: Any, expected: np.ndarray) -> bool:
    """Compare the first and the last rows with float64, and all others with these, bit by bit."""
    first, last = (COUNT - UNIQUE) % UNIQUE, found[-UNIQUE:]
    order = [(first + i) % UNIQUE for i in range(UNIQUE)]
    head = found[:UNIQUE]
    agree = (
        compare(cupy.asnumpy(head), expected, "float16").ok
        and compare(cupy.asnumpy(last), expected[order], "float16").ok
    )
    whole = found[: COUNT // UNIQUE * UNIQUE].view(np.uint16).reshape(-1, UNIQUE, SEQLEN)
    same = all(bool((whole[i : i + 1024] == whole[:1]).all()) for i in range(0, len(whole), 1024))
    return agree and same


def test_more_points_than_32_bits_count(cupy, rng):
    require(cupy, 3 * COUNT * SEQLEN)
    u_host, dy_host = normal(rng, UNIQUE, 1, SEQLEN), normal(rng, UNIQUE, 1, SEQLEN)
    k = (rng.standard_normal((1, SEQLEN)) / 32).astype(np.float32)
    u, taps = tiled(cupy, u_host), cupy.asarray(k)
    y = fftconv(u, taps)
    assert rows_agree(cupy, y, fftconv_reference(u_host, k))
    del y
    dy = tiled(cupy, dy_host)
    grads = fftconv_vjp(dy, u, taps)
    expected = fftconv_vjp_reference(dy_host, u_host, k)
    assert rows_agree(cupy, grads.u, expected.u)
    rest = COUNT % UNIQUE
    left = fftconv_vjp_reference(dy_host[:rest], u_host[:rest], k)
    assert relative_error(cupy.asnumpy(grads.k), COUNT // UNIQUE * expected.k + left.k) < SUM_BOUND


def test_more_points_of_depthwise_convolutions_than_32_bits_count(cupy, rng):
    require(cupy, 3 * COUNT * SEQLEN)
    x_host, dy_host = normal(rng, UNIQUE, 1, SEQLEN), normal(rng, UNIQUE, 1, SEQLEN)
    weight = rng.standard_normal((1, 4)).astype(np.float32)
    x, taps = tiled(cupy, x_host), cupy.asarray(weight)
    y = depthwise_conv1d(x, taps)
    assert rows_agree(cupy, y, DepthwiseReference(x_host, weight).outputs())
    del y
    dy = tiled(cupy, dy_host)
    grads = depthwise_conv1d_vjp(dy, x, taps)
    expected = DepthwiseReference(x_host, weight).gradients(dy_host)
    assert rows_agree(cupy, grads.x, expected.x)
    rest = COUNT % UNIQUE
    left = DepthwiseReference(x_host[:rest], weight).gradients(dy_host[:rest])
    assert relative_error(cupy.asnumpy(grads.weight), COUNT // UNIQUE * expected.weight + left.weight) < SUM_BOUND
