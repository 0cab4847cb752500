"""The torch operator and `FlashFFTConv` on a real GPU: the published grid, streams, graphs, memory, several devices."""

from __future__ import annotations

import itertools
import threading

import pytest

torch = pytest.importorskip("torch")

from torch_cases import NAMES, arguments, detached, error, reference  # noqa: E402

from fftconv_cupy import errors, prepare_filter  # noqa: E402
from fftconv_cupy.problem import MODES  # noqa: E402
from fftconv_cupy.torch import FlashFFTConv, fftconv  # noqa: E402
from fftconv_cupy.torch_operator import forward_op, vjp_op  # noqa: E402

pytestmark = pytest.mark.gpu

HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def torch_has_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch has no GPU")


def bound(name, exact, dtype):
    """The error allowed for a result of `dtype` whose exact value is `exact`."""
    if name in ("k", "skip"):
        return 1e-5
    return 1.2 * error(exact.to(dtype), exact) + 1e-6 if dtype in HALF else 1e-6


def both(tensors, dy=None, **options):
    """Return value and gradients by name, of the operator and in float64."""
    exact = detached(tensors)
    y, y64 = fftconv(**tensors, **options), reference(**exact, **options)
    dy = torch.randn_like(y) if dy is None else dy
    found = torch.autograd.grad(y, tuple(tensors.values()), dy)
    wanted = torch.autograd.grad(y64, tuple(exact.values()), dy.double())
    return dict(zip(tensors, found, strict=True)) | {"y": y}, dict(zip(tensors, wanted, strict=True)) | {"y": y64}


def agree(found, exact, dtype):
    for name, result in found.items():
        assert error(result, exact[name]) <= bound(name, exact[name], dtype), name


def on_gpu(mode="causal", dtype=torch.float16, device="cuda", **changes):
    tensors = arguments(mode, **{"shape": (3, 5, 300), "taps": 128, "dtype": dtype, **changes})
    return {name: t.detach().to(device).requires_grad_() for name, t in tensors.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients(mode, dtype, shared):
    agree(*both(on_gpu(mode, dtype, shared=shared), mode=mode), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_prepared_filters_of_torch_and_cupy(dtype):
    import cupy

    tensors = on_gpu("same", dtype)
    taps = tensors.pop("k").detach()
    exact = detached(tensors)
    y64 = reference(k=taps.double(), mode="same", **exact)
    dy = torch.randn_like(y64).to(dtype)
    wanted = torch.autograd.grad(y64, tuple(exact.values()), dy.double())
    for filt in (taps, cupy.from_dlpack(taps)):
        k = prepare_filter(filt, seqlen=300, mode="same")
        cupy.cuda.Device().synchronize()
        y = fftconv(k=k, mode="same", **tensors)
        del k
        found = torch.autograd.grad(y, tuple(tensors.values()), dy)
        for name, result, right in zip(("y", *tensors), (y, *found), (y64, *wanted), strict=True):
            assert error(result, right) <= bound(name, right, dtype), name


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode):
    tensors = list(on_gpu(mode, torch.float32, shape=(2, 3, 9), taps=5).values())
    torch.library.opcheck(forward_op, (*tensors, mode, None, None, None, None))
    dy = forward_op(*tensors, mode, None, None, None, None).detach().requires_grad_()
    torch.library.opcheck(vjp_op, (dy, *tensors, mode, None, None, None, None, [True, True, False, True, False]))


def test_second_derivatives():
    tensors = on_gpu(dtype=torch.float32, shape=(2, 3, 40), taps=20)
    results = []
    for convolve, given in ((fftconv, tensors), (reference, detached(tensors))):
        first = torch.autograd.grad(convolve(**given).pow(3).mean(), tuple(given.values()), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), tuple(given.values())))
    for found, exact in zip(*results, strict=True):
        assert error(found, exact) < 1e-5


def test_transformations():
    tensors = on_gpu(dtype=torch.float32, shape=(2, 3, 40), taps=20)
    u, k = torch.stack([tensors["u"].detach()] * 3), tensors["k"].detach()
    loss = lambda u, k: fftconv(u, k).square().sum()  # noqa: E731
    du, dk = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))(u, k)
    exact = torch.func.grad(lambda u, k: reference(u, k).square().sum(), (0, 1))(u[0].double(), k.double())
    for i in range(3):
        assert error(du[i], exact[0]) < 1e-5
        assert error(dk[i], exact[1]) < 1e-5


def test_expanded_and_gapped_tensors():
    base = torch.randn(4, 60, 5, device="cuda", requires_grad=True)
    taps = torch.randn(40, device="cuda", requires_grad=True)
    results = []
    for convolve in (fftconv, reference):
        u = base.transpose(1, 2)[..., ::2]
        results.append(torch.autograd.grad(convolve(u, taps.expand(5, 40)[:, ::2]).sum(), (base, taps)))
    for found, exact in zip(*results, strict=True):
        assert error(found, exact) < 1e-5


def test_autocast():
    tensors = on_gpu(dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        y = fftconv(**tensors)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert all(t.grad.dtype is torch.float32 for t in tensors.values())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_one_compiled_graph(mode):
    tensors = on_gpu(dtype=torch.float32)
    layer = lambda *args: fftconv(args[0].sin(), *args[1:2], **dict(zip(NAMES[2:], args[2:], strict=True))).cos()  # noqa: E731
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    args = tuple(tensors.values())
    for _ in range(4):  # reduce-overhead warms up, records a CUDA graph and replays it
        y, expected = compiled(*args), layer(*args)
        found = torch.autograd.grad(y.square().sum(), args)
        exact = torch.autograd.grad(expected.square().sum(), args)
        for result, right in zip((y, *found), (expected, *exact), strict=True):
            assert error(result, right) < 1e-5


def test_a_prepared_filter_in_a_compiled_graph():
    u = torch.randn(2, 5, 64, device="cuda", requires_grad=True)
    compiled = torch.compile(lambda u, k: fftconv(u * 2, k), fullgraph=True)
    taps = torch.randn(5, 64, device="cuda")
    for scale in (1, 2):
        (gradient,) = torch.autograd.grad(compiled(u, prepare_filter(taps * scale, seqlen=64)).sum(), u)
        (exact,) = torch.autograd.grad(reference(u * 2, taps * scale).sum(), u)
        assert error(gradient, exact) < 1e-5


def test_forward_and_backward_in_a_cuda_graph():
    tensors = on_gpu()
    dy = torch.randn_like(tensors["u"])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up
        for _ in range(3):
            torch.autograd.grad(fftconv(**tensors), tuple(tensors.values()), dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fftconv(**tensors)
        gradients = torch.autograd.grad(y, tuple(tensors.values()), dy)
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in (*tensors.values(), dy):
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        found = dict(zip(NAMES, gradients, strict=True)) | {"y": y}
        agree(found, both(tensors, dy)[1], torch.float16)


def test_forward_and_backward_on_side_streams():
    tensors = on_gpu(shape=(8, 64, 2000), taps=2000)
    dy = torch.randn(8, 64, 2000, device="cuda").half()
    expected = torch.autograd.grad(fftconv(**tensors), tuple(tensors.values()), dy)
    side = torch.cuda.Stream()
    for _ in range(3):
        late = {name: torch.zeros_like(t).requires_grad_() for name, t in tensors.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            with torch.no_grad():
                for name, tensor in late.items():
                    tensor.copy_(tensors[name])
            y = fftconv(**late)
            found = torch.autograd.grad(y, tuple(late.values()), dy)
        torch.cuda.synchronize()
        for result, right in zip(found, expected, strict=True):
            assert torch.equal(result, right)


def test_threads_train_at_once():
    def train(number, results):
        tensors = on_gpu(shape=(2, 3, 100 + number), taps=50)
        for _ in range(10):
            found, exact = both(tensors)
            agree(found, exact, torch.float16)
        results.append(number)

    done = []
    threads = [threading.Thread(target=train, args=(number, done)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3]


def test_memory_comes_from_torch():
    import cupy

    tensors = on_gpu(shape=(4, 64, 4096), taps=4096)
    fftconv(**tensors).sum().backward()
    torch.cuda.synchronize()
    in_cupy = cupy.get_default_memory_pool().used_bytes()
    before = torch.cuda.memory_allocated()
    y = fftconv(**tensors)
    assert torch.cuda.memory_allocated() - before == y.nbytes
    y.sum().backward()
    del y
    assert torch.cuda.memory_allocated() == before
    assert cupy.get_default_memory_pool().used_bytes() == in_cupy


def test_tensors_on_different_devices_are_refused():
    with pytest.raises(errors.InvalidTypeError, match="k's device"):
        fftconv(torch.ones(2, 3, 8, device="cuda", requires_grad=True), torch.ones(3, 8))


def circular_by_channels(u, k, dy, size, gates):
    """Yield slices of channels with value and gradients in float64: the memory would not hold them all at once."""
    for first in range(0, k.shape[0], 16):
        part = slice(first, first + 16)
        leaves = [t[..., part, :].detach().double().requires_grad_() for t in (u, k, *gates)]
        x = leaves[0] * leaves[2] if gates else leaves[0]
        y = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(leaves[1], size), size)[..., : u.shape[-1]]
        y = y * leaves[3] if gates else y
        yield part, (y, *torch.autograd.grad(y, leaves, dy[..., part, :].double()))


PUBLISHED = [
    (size, batch, channels, points)
    for size in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    for batch, channels in itertools.product((1, 2, 4, 8, 64), (768, 111))
    for points in ((size // 2, size) if size <= 16384 else (size // 2,))
]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("size", "batch", "channels", "points"), PUBLISHED)
def test_the_published_grid_of_flashfftconv(size, batch, channels, points, gated, dtype):
    torch.manual_seed(size + batch)
    shape = (batch, channels, points)
    u, dy, *gates = (torch.randn(shape, device="cuda").to(dtype) for _ in range(4 if gated else 2))
    k = torch.randn(channels, points, device="cuda") / points**0.5
    leaves = [t.requires_grad_() for t in (u, k, *gates)]
    y = FlashFFTConv(size, dtype=dtype).to("cuda")(*leaves)
    results = (y, *torch.autograd.grad(y, leaves, dy))
    squares = torch.zeros(len(results), 3, dtype=torch.float64, device="cuda")
    for part, exact in circular_by_channels(u, k, dy, size, gates):
        for i, (result, right) in enumerate(zip(results, exact, strict=True)):
            own, right = result[..., part, :].detach(), right.detach()
            parts = (own - right, right.to(own.dtype) - right, right)
            squares[i] += torch.stack([value.square().sum() for value in parts])
    for name, (got, rounding, norm) in zip(("y", *NAMES), squares.tolist(), strict=False):
        allowed = 1e-5 if name == "k" else (1.2 * (rounding / norm) ** 0.5 + 1e-6)
        assert (got / norm) ** 0.5 <= allowed, name


def needs_two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")


def test_the_second_gpu():
    needs_two_gpus()
    torch.cuda.set_device(0)
    tensors = on_gpu(device="cuda:1")
    agree(*both(tensors), torch.float16)
    assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in tensors.values())


def test_data_parallel_on_two_gpus():
    needs_two_gpus()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.k = torch.nn.Parameter(torch.randn(5, 64))
            self.skip = torch.nn.Parameter(torch.randn(5))
            self.conv = FlashFFTConv(128)

        def forward(self, u):
            return self.conv(fftconv(u, self.k, skip=self.skip), self.k)

    model, u = Model().to("cuda:0"), torch.randn(6, 5, 64, device="cuda:0")
    model(u).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parallel = torch.nn.DataParallel(model, device_ids=[0, 1])
    parallel(u).square().sum().backward()
    for parameter, exact in zip(model.parameters(), expected, strict=True):
        assert error(parameter.grad, exact) < 1e-5
