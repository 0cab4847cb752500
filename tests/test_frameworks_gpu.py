"""Arrays of every framework on a real GPU: outputs, streams, copies, hand-over to JAX, graphs, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from frameworks import direct, to_float64

from fftconv_cupy import arrays, fftconv, numeric, prepare_filter, warmup
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, UnsupportedProblemError
from fftconv_cupy.problem import DTYPES, MODES
from fftconv_cupy.readers import NUMPY_DTYPES

pytestmark = pytest.mark.gpu

GPU_FRAMEWORKS = ("cupy", "torch", "jax")


@pytest.fixture(autouse=True)
def device_zero() -> Iterator[None]:
    """Leave the first GPU current to the tests that follow, in this file and others."""
    import cupy

    cupy.cuda.runtime.setDevice(0)
    yield
    cupy.cuda.runtime.setDevice(0)


def on_gpu(framework: str, array: np.ndarray, device: int = 0) -> Any:
    """Return an array of `framework` on a GPU with the content of `array`."""
    if framework == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("torch has no GPU")
        if array.dtype == NUMPY_DTYPES["bfloat16"]:
            return torch.from_numpy(array.view(np.int16).copy()).cuda(device).view(torch.bfloat16)
        return torch.from_numpy(array.copy()).cuda(device)
    if framework == "jax":
        jax = pytest.importorskip("jax")
        try:
            gpu = jax.devices("cuda")[device]
        except RuntimeError as error:
            pytest.skip(f"JAX has no GPU ({error})")
        return jax.device_put(array.copy(), gpu)
    import cupy

    with cupy.cuda.Device(device):
        return cupy.asarray(array)


def content(array: Any) -> np.ndarray:
    """Return a GPU array in float64, complete."""
    module = type(array).__module__
    if module.startswith("torch"):
        return array.double().cpu().numpy()
    if module.startswith("cupy"):
        bits = array.view(np.uint16) if array.dtype == NUMPY_DTYPES["bfloat16"] else array
        return bits.get().view(array.dtype).astype(np.float64)
    return to_float64(array)


def random(rng, shape, dtype="float32"):
    return rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype])


def agrees(y, y64, dtype="float32"):
    agreement = numeric.compare(content(y), y64, dtype)
    assert agreement.ok, agreement


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", GPU_FRAMEWORKS)
def test_parity(rng, framework, dtype, mode):
    for u_shape, k_shape in (((3, 2, 64), (2, 9)), ((2, 3, 33), (50,)), ((3, 100), (3, 100)), ((31,), (4,))):
        u, k = random(rng, u_shape, dtype), random(rng, k_shape)
        optional = {"in_gate": random(rng, u_shape, dtype), "skip": random(rng, u_shape[-2:-1] or (1,))}
        y = fftconv(on_gpu(framework, u), on_gpu(framework, k), mode=mode,
                    **{name: on_gpu(framework, value) for name, value in optional.items()})  # fmt: skip
        assert type(y) is type(on_gpu(framework, u))
        assert str(y.dtype).removeprefix("torch.") == dtype
        agrees(y, direct(u, k, mode=mode, **optional), dtype)


@pytest.mark.parametrize("framework", GPU_FRAMEWORKS)
def test_an_empty_batch(framework):
    u, k = on_gpu(framework, np.ones((0, 3, 16), np.float16)), on_gpu(framework, np.ones((3, 5), np.float32))
    y = fftconv(u, k, mode="full")
    assert tuple(y.shape) == (0, 3, 20)
    assert type(y) is type(u)


@pytest.mark.parametrize("framework", GPU_FRAMEWORKS)
def test_prepared_filters_serve_every_framework(rng, framework):
    u, k = random(rng, (2, 3, 64), "bfloat16"), random(rng, (3, 20), "float16")
    prepared = prepare_filter(on_gpu(framework, k), seqlen=64)
    y64 = direct(u, k)
    for other in GPU_FRAMEWORKS:
        agrees(fftconv(on_gpu(other, u), prepared), y64, "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_strides(rng, framework, dtype):
    wide, filters = random(rng, (4, 6, 64), dtype), random(rng, (6, 40), dtype)
    skip = random(rng, (6,))
    on = on_gpu(framework, wide), on_gpu(framework, filters), on_gpu(framework, skip)
    for cut in (np.s_[::2, ::2, :32], np.s_[1:3, ::2, ::2], np.s_[:, 1::2, 3:40]):
        u, k = wide[cut], filters[::2, ::2]
        y = fftconv(on[0][cut], on[1][::2, ::2], in_gate=on[0][cut], skip=on[2][::2])
        agrees(y, direct(u, k, in_gate=u, skip=skip[::2]), dtype)
    if framework == "cupy":
        u = wide[::-1, ::-1, ::-1]
        agrees(fftconv(on[0][::-1, ::-1, ::-1], on[1]), direct(u, filters), dtype)


@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_out_and_what_it_may_not_be(rng, framework):
    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))
    on = on_gpu(framework, u), on_gpu(framework, k)
    padded = on_gpu(framework, np.zeros((4, 5, 70), np.float32))
    out = padded[1:3, 1:4, 3:-3]
    assert fftconv(*on, out=out) is out
    agrees(out, direct(u, k))
    assert np.count_nonzero(content(padded)) == np.count_nonzero(content(out))
    with pytest.raises(InvalidArgumentError, match="overlaps u"):
        fftconv(*on, out=on[0])
    with pytest.raises(InvalidTypeError, match="framework"):
        fftconv(u, on[1])
    with pytest.raises(UnsupportedProblemError, match="FFT size"):
        fftconv(*on, fft_size=1 << 25)


class CudaArray:
    """An object of an unknown framework that only has the CUDA array interface."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


class Exported:
    """An object of an unknown framework that only speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("wrapper", [CudaArray, Exported])
def test_unknown_frameworks_are_taken_as_cupy(rng, wrapper):
    import cupy

    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))
    stream = cupy.cuda.Stream(non_blocking=True)
    for given in (None, stream):
        y = fftconv(wrapper(on_gpu("cupy", u)), wrapper(on_gpu("cupy", k)), stream=given)
        stream.synchronize()
        assert type(y) is cupy.ndarray
        agrees(y, direct(u, k))


def test_torch_streams(rng):
    """The kernels run on the current stream, or the given one: after what was put there and before what follows."""
    torch = pytest.importorskip("torch")
    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))
    on, taps = on_gpu("torch", u), on_gpu("torch", k)
    fftconv(on, taps)
    side = torch.cuda.Stream()
    for given in (None, side, side.cuda_stream):
        late = torch.zeros_like(on)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            late.copy_(on)
            if given is None:
                y = fftconv(late, taps)
        if given is not None:
            y = fftconv(late, taps, stream=given)
        with torch.cuda.stream(side):
            late.zero_()
        torch.cuda.synchronize()
        agrees(y, direct(u, k))


def test_cupy_streams(rng):
    import cupy

    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))
    on, taps = on_gpu("cupy", u), on_gpu("cupy", k)
    fftconv(on, taps)
    side = cupy.cuda.Stream(non_blocking=True)
    for given in (None, side, side.ptr):
        late = cupy.zeros_like(on)
        cupy.cuda.Device().synchronize()
        with side:
            for _ in range(200):
                late += 1
            cupy.copyto(late, on)
            if given is None:
                y = fftconv(late, taps)
        if given is not None:
            y = fftconv(late, taps, stream=given)
        with side:
            late.fill(0)
        side.synchronize()
        agrees(y, direct(u, k))


def test_default_stream_handles(rng):
    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))
    for framework in GPU_FRAMEWORKS:
        for handle in (0, 1, 2):
            y = fftconv(on_gpu(framework, u), on_gpu(framework, k), stream=handle)
            agrees(y, direct(u, k))


def test_jax_before_and_after(rng):
    """Inputs that JAX still computes, outputs that it uses at once, and inputs dropped as soon as the call returns."""
    jax = pytest.importorskip("jax")
    u, k = random(rng, (8, 64, 1024)), random(rng, (64, 1024))
    on, taps = on_gpu("jax", u), on_gpu("jax", k)
    scale = jax.jit(lambda x, factor: x * factor)
    expected = content(fftconv(on, taps))
    results = []
    for number in range(1, 40):
        scaled = scale(on, float(number))
        y = fftconv(scaled, taps)
        del scaled  # JAX may give its memory to the next result
        results.append(scale(y, 1 / number))
    for y in results:
        assert np.linalg.norm(content(y) - expected) < 1e-5 * np.linalg.norm(expected)


def test_jax_inputs_are_let_go(rng):
    import cupy

    u, k = on_gpu("jax", random(rng, (2, 3, 64))), on_gpu("jax", random(rng, (3, 20)))
    for _ in range(50):
        fftconv(u, k)
        cupy.cuda.Device().synchronize()
        assert len(arrays._in_flight) <= 2


def test_jax_output_is_handed_over_without_a_copy(rng, monkeypatch):
    pytest.importorskip("jax")
    u, k = on_gpu("jax", random(rng, (2, 3, 64))), on_gpu("jax", random(rng, (3, 20)))
    pointers = []
    allocate = arrays.empty

    def remember(*arguments):
        array, seen = allocate(*arguments)
        pointers.append(seen.ptr)
        return array, seen

    monkeypatch.setattr(arrays, "empty", remember)
    assert fftconv(u, k).unsafe_buffer_pointer() in pointers


def test_torch_graph_after_warmup(rng):
    torch = pytest.importorskip("torch")
    u, k = random(rng, (4, 8, 512), "float16"), random(rng, (8, 512))
    warmup(4, 8, 512, 512, dtype="float16")
    on, prepared = on_gpu("torch", u), prepare_filter(on_gpu("torch", k), seqlen=512)
    raw = on_gpu("torch", k)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fftconv(on, prepared)
        z = fftconv(on, raw)
    for factor in (1, -2):
        on.copy_(on_gpu("torch", (u * factor).astype(np.float16)))
        graph.replay()
        torch.cuda.synchronize()
        y64 = direct((u * factor).astype(np.float16), k)
        agrees(y, y64, "float16")
        agrees(z, y64, "float16")


def test_cupy_graphs_hold_what_takes_no_workspace(rng):
    import cupy

    u, k = random(rng, (4, 8, 512), "float16"), random(rng, (8, 512))
    on, raw = on_gpu("cupy", u), on_gpu("cupy", k)
    prepared, wide = prepare_filter(raw, seqlen=512), on_gpu("cupy", np.repeat(u, 2, axis=2))
    fftconv(on, raw)
    fftconv(on, prepared)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        for arguments in ((on, raw), (wide[..., ::2], prepared)):
            with pytest.raises(InvalidArgumentError, match="captured"):
                fftconv(*arguments)
        y = fftconv(on, prepared)
        graph = stream.end_capture()
    for factor in (1, -2):
        on.set((u * factor).astype(np.float16))
        cupy.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        agrees(y, direct((u * factor).astype(np.float16), k), "float16")


def test_torch_memory_is_not_reused_while_another_stream_reads_it(rng):
    torch = pytest.importorskip("torch")
    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))
    on, taps = on_gpu("torch", u), on_gpu("torch", k)
    fftconv(on, taps)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    dropped = on.clone()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
    y = fftconv(dropped, taps, stream=side)
    del dropped
    for _ in range(4):
        torch.full_like(on, float("nan"))
    torch.cuda.synchronize()
    agrees(y, direct(u, k))


@pytest.mark.parametrize("framework", GPU_FRAMEWORKS)
def test_eight_threads_at_once(rng, framework):
    cases = [(random(rng, (3, 4, 50 + number)), random(rng, (4, 20))) for number in range(8)]
    on = [(on_gpu(framework, u), on_gpu(framework, k)) for u, k in cases]
    expected = [direct(u, k) for u, k in cases]
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait(timeout=60)
        return [content(fftconv(*on[number])) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for results, y64 in zip(pool.map(work, range(8)), expected, strict=True):
            assert all(numeric.compare(y, y64, "float32").ok for y in results)


@pytest.mark.parametrize("framework", GPU_FRAMEWORKS)
def test_the_second_gpu(rng, framework):
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    u, k = random(rng, (2, 3, 64)), random(rng, (3, 20))
    on, taps = on_gpu(framework, u, 1), on_gpu(framework, k, 1)
    for current in (0, 1):
        # A framework may leave another device current than it found; fftconv may not.
        cupy.cuda.runtime.setDevice(current)
        y = fftconv(on, taps)
        assert cupy.cuda.runtime.getDevice() == current
        agrees(y, direct(u, k))
        cupy.cuda.runtime.setDevice(current)
        prepared = prepare_filter(taps, seqlen=64)
        assert cupy.cuda.runtime.getDevice() == current
        agrees(fftconv(on, prepared), direct(u, k))
    with pytest.raises(InvalidTypeError, match="cuda:0"):
        fftconv(on, on_gpu(framework, k, 0))
