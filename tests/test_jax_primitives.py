"""What each platform runs for the primitives of JAX, seen without a GPU.

Programs are lowered for CUDA and looked at; and the callback that launches kernels there is run by XLA on the CPU, with
NumPy in the place of the kernels.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from frameworks import at_address, direct
from vjp_cases import NAMES, agreement, converted, expected, vjp_case

from fftconv_cupy import arrays, execute, numeric, numpy_backend
from fftconv_cupy.checks import Arguments, resolve
from fftconv_cupy.errors import UnsupportedDeviceError, UnsupportedProblemError
from fftconv_cupy.problem import DTYPES, ITEM_BYTES, MODES, Gradients, Wanted
from fftconv_cupy.readers import NUMPY_DTYPES, view

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
fj = pytest.importorskip("fftconv_cupy.jax")
jax_numpy = pytest.importorskip("fftconv_cupy.jax_numpy")
jax_primitives = pytest.importorskip("fftconv_cupy.jax_primitives")

STREAM = 4096
DEVICE = 1
CALLBACK = "xla_buffer_python_gpu_callback_cmd_buffer"


def memory_of(seen: Any) -> np.ndarray | None:
    """Return what a kernel would see through a view, as (B, H, points) or as it is for k and skip."""
    if seen is None:
        return None
    strides = tuple(stride * ITEM_BYTES[seen.dtype] for stride in seen.strides)
    return at_address(seen.ptr, seen.shape, strides, NUMPY_DTYPES[seen.dtype])


class NumpyLauncher:
    """Stands for `launch`: remembers what it was asked, and computes with NumPy at the addresses given to it."""

    def __init__(self):
        self.loaded = []
        self.runs = []
        self.too_large = False

    def check(self, problem, device):
        if self.too_large:
            raise UnsupportedProblemError("too large")
        self.loaded.append(("check", problem, device))

    def check_vjp(self, problem, wanted, device):
        self.loaded.append(("check_vjp", problem, wanted, device))

    def warm(self, problem):
        self.loaded.append(("warm", problem))

    def warm_vjp(self, problem, wanted):
        self.loaded.append(("warm_vjp", problem, wanted))

    def workspace_bytes(self, problem, device, wanted=None):
        return 1000 * (device + 1) + 2 + 4 * (wanted is not None)

    def run(self, problem, u, filt, in_gate, out_gate, skip, out, stream, workspace=None):
        self.runs.append((problem, None, out.device, stream))
        ctypes.memset(workspace.ptr, 0xFF, 2002)
        inputs = [memory_of(seen) for seen in (u, filt, in_gate, out_gate, skip, out)]
        numpy_backend.convolve(problem, *inputs)

    def run_vjp(self, problem, wanted, dy, u, filt, in_gate, out_gate, skip, grads, stream, workspace=None):
        self.runs.append((problem, wanted, dy.device, stream))
        ctypes.memset(workspace.ptr, 0xFF, 2006)
        assert Wanted(*(grad is not None for grad in grads)) == wanted
        inputs = [memory_of(seen) for seen in (dy, u, filt, in_gate, out_gate, skip)]
        numpy_backend.vjp(problem, *inputs, Gradients(*(memory_of(grad) for grad in grads)))


@pytest.fixture
def launcher(monkeypatch):
    stands_in = NumpyLauncher()
    monkeypatch.setattr(execute, "_launch", stands_in)
    monkeypatch.setattr(jax_primitives, "cuda_devices", lambda: [0, DEVICE])

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(arrays, "use_device", Device)
    jax.clear_caches()
    yield stands_in
    jax.clear_caches()


@pytest.fixture
def kernels_on_the_host(launcher, monkeypatch):
    """Run on the CPU what is lowered for CUDA: XLA calls the callback, with its buffers dressed as a GPU's."""
    stage = jax_primitives.buffer_callback

    class Buffer:
        def __init__(self, buffer):
            self.shape, self.dtype, self._host = buffer.shape, buffer.dtype, np.asarray(buffer)
            # The content does not tell whether it is written: what a result held before must not matter.
            self.__cuda_array_interface__ = {"data": (self._host.ctypes.data, not buffer.writeable), "version": 2}

        def __dlpack_device__(self):
            return (2, DEVICE)

    def staged(run, results, **options):
        assert options == {"command_buffer_compatible": True}

        def on_host(context, results, *operands):
            run(SimpleNamespace(stream=STREAM), [Buffer(x) for x in results], *(Buffer(x) for x in operands))

        return stage(on_host, results, **options)

    monkeypatch.setattr(jax_primitives, "buffer_callback", staged)
    monkeypatch.setattr(jax_primitives, "_forward_numpy", None)
    monkeypatch.setattr(jax_primitives, "_backward_numpy", None)
    return launcher


def problem_and_operands(given: dict[str, Any], mode: str) -> tuple[Any, list[Any]]:
    seen = {name: view(array, name) for name, array in given.items() if name != "dy"}
    problem = resolve(Arguments(**seen), mode, None).problem
    on = converted("jax", given)
    return problem, [on[name] for name in ("dy", *NAMES) if name in on]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_the_kernels_get_the_buffers_of_their_names(rng, kernels_on_the_host, mode, dtype):
    for flags in range(8):
        given = vjp_case(rng, (2, 3, 16), (3, 5) if flags % 2 else (5,), mode, dtype, flags, DTYPES[flags % 3])
        problem, (dy, *operands) = problem_and_operands(given, mode)
        (y,) = jax.jit(lambda *on, problem=problem: jax_primitives._forward_cuda(*on, problem=problem))(*operands)
        inputs = {name: array for name, array in given.items() if name != "dy"}
        assert numeric.compare(np.asarray(y), direct(**inputs, mode=mode), dtype).ok, flags
        assert kernels_on_the_host.runs[-1] == (problem, None, DEVICE, STREAM)
        for wanted in (
            Wanted(*(name in given for name in NAMES)),
            Wanted(k=True),
            Wanted(u=True, skip="skip" in given),
        ):
            on_cuda = jax.jit(
                lambda *on, problem=problem, wanted=wanted: jax_primitives._backward_cuda(
                    *on, problem=problem, wanted=wanted
                )
            )
            found = on_cuda(dy, *operands)
            assert kernels_on_the_host.runs[-1] == (problem, wanted, DEVICE, STREAM)
            names = [name for name, is_wanted in zip(NAMES, wanted, strict=True) if is_wanted]
            assert len(found) == len(names)
            for name, grad in zip(names, found, strict=True):
                wanted64 = getattr(expected(given, mode=mode), name)
                assert agreement(name, np.asarray(grad), wanted64, str(grad.dtype)).ok, (flags, name)


def lowered_for(platform: str, function: Any, *inputs: Any) -> str:
    return jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def loss(u: Any, k: Any) -> Any:
    return jnp.sum(jnp.sin(fj.fftconv(u, k)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_program_for_cuda_calls_the_kernels_and_nothing_else_transforms(launcher, dtype):
    u, k = jnp.ones((2, 3, 16), dtype), jnp.ones((3, 5))
    for function, calls in ((fj.fftconv, 1), (jax.grad(loss, argnums=(0, 1)), 2), (jax.vmap(fj.fftconv, (0, None)), 1)):
        text = lowered_for("cuda", function, u, k)
        assert text.count(CALLBACK) == calls
        assert "fft(" not in text
        assert "stablehlo.fft" not in text


def test_the_workspace_is_a_result_large_enough_for_every_gpu(launcher):
    text = lowered_for("cuda", fj.fftconv, jnp.ones((2, 3, 16)), jnp.ones((3, 5)))
    call = next(line for line in text.splitlines() if CALLBACK in line)
    assert "tensor<501xf32>" in call  # 2002 bytes on the second GPU
    text = lowered_for("cuda", jax.grad(loss), jnp.ones((2, 3, 16)), jnp.ones((3, 5)))
    assert "tensor<502xf32>" in text


def test_kernels_are_loaded_on_every_gpu_as_a_program_is_lowered_for_one(launcher):
    u, k = jnp.ones((2, 3, 16)), jnp.ones((3, 5))
    traced = jax.jit(jax.grad(loss)).trace(u, k)
    traced.lower(lowering_platforms=("cpu",))
    assert launcher.loaded == []
    traced.lower(lowering_platforms=("cuda",))
    kinds = [entry[0] for entry in launcher.loaded]
    assert kinds == ["check", "warm"] * 2 + ["check_vjp", "warm_vjp"] * 2
    assert [entry[-1] for entry in launcher.loaded if entry[0].startswith("check")] == [0, 1, 0, 1]
    assert all(entry[2] == Wanted(u=True) for entry in launcher.loaded if entry[0].endswith("vjp"))


def test_a_problem_too_large_for_the_gpu_is_refused_as_it_is_lowered_for_one(launcher):
    launcher.too_large = True
    u, k = jnp.ones((2, 3, 16)), jnp.ones((3, 5))
    assert fj.fftconv(u, k).shape == (2, 3, 16)
    with pytest.raises(UnsupportedProblemError, match="too large"):
        lowered_for("cuda", fj.fftconv, u, k)


def test_an_empty_batch_and_float64_need_no_kernels(launcher):
    text = lowered_for("cuda", jax.grad(loss), jnp.ones((0, 3, 16)), jnp.ones((3, 5)))
    assert CALLBACK not in text
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        for u_dtype, k_dtype in (("float64", "float32"), ("float32", "float64")):
            text = lowered_for("cuda", jax.grad(loss), jnp.ones((2, 3, 16), u_dtype), jnp.ones((3, 5), k_dtype))
            assert CALLBACK not in text
            assert "xf64>" in text
    finally:
        jax.config.update("jax_enable_x64", before)
    assert launcher.loaded == []


def test_a_program_for_the_cpu_holds_no_callback(launcher):
    u, k = jnp.ones((2, 3, 16), "bfloat16"), jnp.ones((3, 5))
    for function in (fj.fftconv, jax.grad(loss, argnums=(0, 1)), jax.vmap(fj.fftconv, (0, None))):
        text = lowered_for("cpu", function, u, k)
        assert "callback" not in text
        assert "fft" in text


def test_lowering_for_cuda_where_jax_has_no_gpu_says_so(monkeypatch):
    def no_gpu(backend):
        raise RuntimeError(f"Unknown backend {backend}\nand more")

    monkeypatch.setattr(execute, "_launch", NumpyLauncher())
    monkeypatch.setattr(jax, "local_devices", no_gpu)
    with pytest.raises(UnsupportedDeviceError, match=r"Unknown backend cuda\).*Lower it there"):
        lowered_for("cuda", fj.fftconv, jnp.ones((2, 3, 16)), jnp.ones((3, 5)))


def test_repeated_calls_trace_and_lower_once(monkeypatch):
    lowered = []
    compute = jax_numpy.convolve
    monkeypatch.setattr(jax_numpy, "convolve", lambda *given: lowered.append(1) or compute(*given))
    jax.clear_caches()
    u, k = jnp.ones((2, 3, 17)), jnp.ones((3, 5))
    for _ in range(3):
        fj.fftconv(u, k)
        fj.fftconv(u * 2, k, mode="causal", fft_size=None)
    assert len(lowered) == 1
    fj.fftconv(u, k, mode="same")
    assert len(lowered) == 2


def test_the_primitives_run_one_by_one_where_jit_is_disabled():
    u, k = jnp.ones((2, 3, 16)), jnp.ones((3, 5))
    wanted = jax.grad(loss, argnums=(0, 1))(u, k)
    with jax.disable_jit():
        found = jax.grad(loss, argnums=(0, 1))(u, k)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("precision", [None, "medium"])
def test_gradients_take_the_precision_of_their_call(precision):
    arrays = jnp.ones((2, 3, 8)), jnp.ones((3, 8))
    program = jax.make_jaxpr(jax.grad(lambda u, k: fj.fftconv(u, k, precision=precision).sum()))(*arrays)
    assert f"precision={precision!r}" in str(program).partition("fftconv_vjp")[2]
