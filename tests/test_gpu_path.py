"""The way of a call on GPU arrays, walked without a GPU: CuPy arrays on host memory, NumPy in the place of the kernels.

What a GPU alone can show (streams, memory pools, hand-over to JAX) is in test_frameworks_gpu.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from frameworks import at_address, convert, cupy_on_host, direct, host_memory

from fftconv_cupy import api, arrays, execute, fftconv, numeric, numpy_backend, prepare_filter
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.errors import InvalidArgumentError, UnsupportedProblemError
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.plan import block_config
from fftconv_cupy.problem import DTYPES, ITEM_BYTES, MODES
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.remembered import Remembered

CURRENT_STREAM = 4096
CAPTURED_STREAM = 8192


def memory_of(seen: ArrayView | None) -> np.ndarray | None:
    """Return what a kernel would see through a view, as (B, H, L)."""
    if seen is None:
        return None
    strides = tuple(stride * ITEM_BYTES[seen.dtype] for stride in seen.strides)
    return at_address(seen.ptr, seen.shape, strides, NUMPY_DTYPES[seen.dtype])


def rows(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array[(None,) * (3 - array.ndim)]


class NumpyLauncher:
    """Computes at the addresses that `launch` would give to the kernels, and remembers what it was asked."""

    def __init__(self):
        self.calls = []
        self.checked = []
        self.spectra = {}

    def check(self, problem, device):
        self.checked.append((problem, device))

    def run(self, problem, u, filt, in_gate, out_gate, skip, out, stream, **known):
        self.calls.append((problem, u, stream))
        # What the kernels rely on.
        assert all(seen is None or seen.shape[-1] == 1 or seen.strides[-1] == 1 for seen in (u, in_gate, out_gate, out))
        assert skip is None or skip.strides == (1,) or skip.shape == (1,)
        if isinstance(filt, FilterSpectrum):
            taps = self.spectra[filt.ptr]
        else:
            assert filt.strides[-1] == 1 or filt.shape[-1] == 1
            taps = memory_of(filt)
        numpy_backend.convolve(
            problem,
            rows(memory_of(u)),
            taps,
            rows(memory_of(in_gate)),
            rows(memory_of(out_gate)),
            memory_of(skip),
            rows(memory_of(out)),
        )
        strides = tuple(seen and seen.strides for seen in (u, in_gate, out_gate, out))
        assert known["rows"] in (None, strides)  # only of a call whose arrays lay alike
        return strides

    def runner(self, problem, device):
        return self.run

    def transform_of(self, problem, device):
        strategy, config = block_config(problem, ARCHS["sm_90"])
        return strategy, config.points

    def prepare(self, problem, k, stream):
        data, seen = arrays.empty(k, (16,), "float32", stream)
        self.spectra[seen.ptr] = numpy_backend.filter_spectrum(problem, memory_of(k))
        return data, seen


@pytest.fixture
def launcher(monkeypatch):
    stands_in = NumpyLauncher()
    monkeypatch.setattr(execute, "_launch", stands_in)
    monkeypatch.setattr(arrays, "current_device", lambda: 0)

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(arrays, "use_device", Device)
    with cupy_on_host() as cupy:
        current = SimpleNamespace(ptr=CURRENT_STREAM)
        monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda device=-1: current)
        monkeypatch.setattr(cupy.cuda.runtime, "streamIsCapturing", lambda stream: stream == CAPTURED_STREAM)
        monkeypatch.setattr(api, "_calls", Remembered())
        yield stands_in


def random(rng, shape, dtype):
    return rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_parity(rng, launcher, mode, dtype):
    for u_shape, k_shape in (((2, 3, 16), (3, 5)), ((2, 3, 16), (9,)), ((3, 33), (3, 40)), ((21,), (4,))):
        u, k = random(rng, u_shape, dtype), random(rng, k_shape, "float32")
        skip = random(rng, u_shape[-2:-1] or (1,), "float32")
        gate = random(rng, u_shape, dtype)
        y = fftconv(*(convert("cupy", a) for a in (u, k)), mode=mode, in_gate=convert("cupy", gate),
                    skip=convert("cupy", skip))  # fmt: skip
        y64 = direct(u, k, mode=mode, in_gate=gate, skip=skip)
        assert y.shape == y64.shape
        assert str(y.dtype) == dtype
        assert numeric.compare(host_memory(y), y64, dtype).ok
        assert launcher.calls[-1][2] == CURRENT_STREAM


def test_batch_and_channel_strides_pass_as_they_are(rng, launcher):
    buffer = convert("cupy", random(rng, (6, 9, 16), "float32"))
    u = buffer[::-2, 6::-3]
    k = convert("cupy", random(rng, (6, 5), "float32"))[::2]
    y = fftconv(u, k, in_gate=u)
    _, seen, _ = launcher.calls[-1]
    assert seen.ptr == u.data.ptr
    assert seen.strides == (-288, -48, 1)
    dense = host_memory(u)
    assert numeric.compare(host_memory(y), direct(dense, host_memory(k), in_gate=dense), "float32").ok


def test_a_stride_along_the_rows_is_copied_once(rng, launcher, monkeypatch):
    copied = []

    def copy(seen, stream):
        copied.append((seen.shape, stream))
        dense = convert("cupy", np.ascontiguousarray(host_memory(seen.owner)))
        return arrays.view(dense, "copy")

    monkeypatch.setattr(arrays, "unit_stride", copy)
    wide = convert("cupy", random(rng, (2, 3, 32), "float16"))
    k = convert("cupy", random(rng, (3, 10), "float32"))
    skip = convert("cupy", random(rng, (6,), "float32"))
    u, gate = wide[..., ::2], wide[..., ::-1][..., :16]
    y = fftconv(u, k[:, ::-2], in_gate=gate, skip=skip[::2])
    assert copied == [((2, 3, 16), CURRENT_STREAM), ((3, 5), CURRENT_STREAM), ((2, 3, 16), CURRENT_STREAM),
                      ((3,), CURRENT_STREAM)]  # fmt: skip
    dense, gates, taps, skips = (host_memory(a) for a in (u, gate, k[:, ::-2], skip[::2]))
    assert numeric.compare(host_memory(y), direct(dense, taps, in_gate=gates, skip=skips), "float16").ok
    copied.clear()
    fftconv(convert("cupy", np.ones((2, 3, 1), np.float32))[..., ::1], k)
    assert copied == []


@pytest.mark.parametrize("mode", MODES)
def test_prepared_filters(rng, launcher, mode):
    u, k = random(rng, (2, 3, 16), "float16"), random(rng, (3, 5), "bfloat16")
    prepared = prepare_filter(convert("cupy", k), seqlen=16, mode=mode)
    assert (prepared.device, prepared.dtype, prepared.channels) == (0, "bfloat16", 3)
    assert prepared.strategy == "linear"
    assert prepared.nbytes == 3 * 8 * prepared.points
    y = fftconv(convert("cupy", u), prepared, mode=mode)
    assert numeric.compare(host_memory(y), direct(u, k, mode=mode), "float16").ok


def test_a_stream_that_is_given(rng, launcher):
    arguments = [convert("cupy", random(rng, shape, "float32")) for shape in ((2, 3, 16), (3, 5), (2, 3, 16))]
    u, k, out = arguments
    for stream in (77, SimpleNamespace(ptr=77), SimpleNamespace(cuda_stream=77)):
        assert fftconv(u, k, out=out, stream=stream) is out
        assert launcher.calls[-1][2] == 77
    assert numeric.compare(host_memory(out), direct(host_memory(u), host_memory(k)), "float32").ok


def test_an_empty_batch_launches_nothing(launcher):
    y = fftconv(
        convert("cupy", np.ones((0, 3, 16), np.float16)), convert("cupy", np.ones((3, 5), np.float32)), mode="full"
    )
    assert y.shape == (0, 3, 20)
    assert launcher.calls == []


def test_another_device_is_made_current(launcher, monkeypatch):
    entered = []

    class Device:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            entered.append("left")

    monkeypatch.setattr(arrays, "use_device", Device)
    with cupy_on_host(device=1):
        u, k = convert("cupy", np.ones((2, 3, 16), np.float32)), convert("cupy", np.ones((3, 5), np.float32))
        fftconv(u, k)
    assert entered == [1, "left"]
    assert launcher.calls[-1][1].device == 1


def ones(shape, dtype=np.float32):
    return convert("cupy", np.ones(shape, dtype))


def test_the_gpu_is_checked_once_a_signature(launcher):
    u, k = ones((2, 3, 16)), ones((3, 5))
    for _ in range(3):
        fftconv(u, k)
    (checked,) = launcher.checked
    assert (checked[0].seqlen, checked[1]) == (16, 0)
    fftconv(u, k, mode="same")
    assert len(launcher.checked) == 2
    prepare_filter(k, seqlen=16)
    assert len(launcher.checked) == 3


def test_nothing_is_allocated_for_what_the_gpu_cannot_do(launcher, monkeypatch):
    def refuse(problem, device):
        raise UnsupportedProblemError("too large")

    def unexpected(*_):
        raise AssertionError("allocated")

    u, k = ones((2, 3, 32))[..., ::2], ones((3, 10))[:, ::2]
    monkeypatch.setattr(launcher, "check", refuse)
    monkeypatch.setattr(arrays, "empty", unexpected)
    monkeypatch.setattr(arrays, "unit_stride", unexpected)
    for _ in range(2):  # a refused call stays refused
        with pytest.raises(UnsupportedProblemError, match="too large"):
            fftconv(u, k)
    with pytest.raises(UnsupportedProblemError, match="too large"):
        prepare_filter(k, seqlen=16)
    assert launcher.calls == []


def test_what_takes_workspace_cannot_be_captured(launcher):
    u, k = ones((2, 3, 16)), ones((3, 5))
    prepared = prepare_filter(k, seqlen=16)
    strided = ones((2, 3, 32))[..., ::2]
    for arguments in ((u, k), (strided, prepared)):
        with pytest.raises(InvalidArgumentError, match=r"captured.*Call prepare_filter before the capture"):
            fftconv(*arguments, stream=CAPTURED_STREAM)
    with pytest.raises(InvalidArgumentError, match="captured"):
        prepare_filter(ones((3, 10))[:, ::2], seqlen=16, stream=CAPTURED_STREAM)
    with pytest.raises(InvalidArgumentError, match="captured"):  # taps become a spectrum of 16 bits by way of another
        prepare_filter(k, seqlen=4096, precision="medium", stream=CAPTURED_STREAM)
    assert launcher.calls == []
    fftconv(u, prepared, out=ones((2, 3, 16)), stream=CAPTURED_STREAM)
    assert launcher.calls[-1][2] == CAPTURED_STREAM


def test_borrowed_arrays_are_kept_until_the_kernels_are_done(launcher, monkeypatch):
    kept = []
    read = arrays.view

    def borrow(obj, name, stream=None):
        seen = read(obj, name, stream)
        seen.is_borrowed = name != "in_gate"
        return seen

    def copy(seen, stream):
        dense = convert("cupy", np.ascontiguousarray(host_memory(seen.owner)))
        return read(dense, "copy")

    monkeypatch.setattr(api, "view", borrow)
    monkeypatch.setattr(arrays, "unit_stride", copy)
    monkeypatch.setattr(arrays, "keep_alive", lambda *arguments: kept.append(arguments))
    u, k, gate, out = ones((2, 3, 32))[..., ::2], ones((3, 10))[:, ::2], ones((2, 3, 16)), ones((2, 3, 16))
    fftconv(u, k, in_gate=gate, out=out)
    ((owners, device, stream),) = kept
    # The arrays themselves, not the copies that were made of them.
    assert [id(owner) for owner in owners] == [id(array) for array in (u, k, gate, out)]
    assert (device, stream) == (0, CURRENT_STREAM)
    kept.clear()
    prepare_filter(k, seqlen=16)
    ((owners, _, _),) = kept
    assert owners[0] is k
    kept.clear()
    monkeypatch.setattr(api, "view", read)
    fftconv(u, k, in_gate=gate, out=out)
    assert kept == []


def test_a_stream_that_is_given_is_told_to_torch(launcher, monkeypatch):
    told = []
    monkeypatch.setattr(arrays, "record_use", lambda owners, *rest: told.append(([id(o) for o in owners], *rest)))
    read = arrays.view

    def as_torch(obj, name, stream=None):
        seen = read(obj, name, stream)
        seen.framework = "torch"
        return seen

    copies = []

    def copy(seen, stream):
        copies.append(convert("cupy", np.ascontiguousarray(host_memory(seen.owner))))
        return read(copies[-1], "copy")

    monkeypatch.setattr(api, "view", as_torch)
    monkeypatch.setattr(arrays, "unit_stride", copy)
    monkeypatch.setattr(arrays, "mark_written", lambda _: None)
    monkeypatch.setattr(launcher, "prepare", lambda problem, k, stream: (data, read(data, "data")))
    u, k, out, data = ones((2, 3, 32))[..., ::2], ones((3, 5)), ones((2, 3, 16)), ones((16,))
    fftconv(u, k, out=out, stream=77)
    assert told == [([id(u), id(k), id(out)], 0, 77)]
    told.clear()
    prepared = prepare_filter(k, seqlen=16, stream=77)
    assert told == [([id(k)], 0, 77)]
    told.clear()
    launcher.spectra[prepared.ptr] = numpy_backend.filter_spectrum(launcher.calls[-1][0], host_memory(k))
    fftconv(u, prepared, out=out, stream=77)
    assert told == [([id(u), id(data), id(out)], 0, 77)]
