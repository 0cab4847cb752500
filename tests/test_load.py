"""Kernels are loaded once a device, from the file or from memory, and launched in their own context."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scratch_kernel import ENTRY, Params, scratch_spec, write_scratch_kernel

from fftconv_cupy import compile, driver
from fftconv_cupy.errors import InvalidArgumentError

OPT_IN = 8


class FakeDriverError(RuntimeError):
    """Stands for CUDADriverError."""


class FakeCuda:
    """A CUDA of three devices, in which the context of device i is 100 + i; records what is asked of it."""

    def __init__(self) -> None:
        self.current = 0  # no context yet
        self.opted_in: list[tuple[int, int, int]] = []
        self.loaded: list[object] = []
        self.launches: list[tuple[Any, ...]] = []
        self.contexts_set: list[int] = []
        self.path_error: Exception | None = None
        self.launch_error: Exception | None = None
        driver = SimpleNamespace(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=OPT_IN,
            CUDADriverError=FakeDriverError,
            funcSetAttribute=lambda *arguments: self.opted_in.append(arguments),
            ctxGetCurrent=lambda: self.current,
            ctxSetCurrent=self._set_context,
            launchKernel=self._launch,
        )
        function = SimpleNamespace(Module=lambda: self._module(None))
        runtime = SimpleNamespace(setDevice=lambda device: setattr(self, "current", 100 + device))
        cuda = SimpleNamespace(driver=driver, function=function, runtime=runtime, Device=self._device)
        self.cupy = SimpleNamespace(cuda=cuda, RawModule=lambda path: self._module(path))

    @contextlib.contextmanager
    def _device(self, device: int) -> Iterator[None]:
        before = self.current
        self.current = 100 + device
        yield
        self.current = before

    def _module(self, path: str | None) -> Any:
        if path is not None:
            if self.path_error is not None:
                raise self.path_error
            self.loaded.append(path)
        module = SimpleNamespace(
            load=self.loaded.append, get_function=lambda name: SimpleNamespace(ptr=len(self.loaded), name=name)
        )
        module.module = module
        return module

    def _set_context(self, context: int) -> None:
        self.contexts_set.append(context)
        self.current = context

    def _launch(self, *arguments: Any) -> None:
        params = ctypes.cast(ctypes.c_void_p.from_address(arguments[9]).value, ctypes.POINTER(Params)).contents
        self.launches.append((self.current, *arguments[:9], arguments[10], params.value, params.count))
        if self.launch_error is not None:
            raise self.launch_error


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(compile, "import_cupy", lambda: fake.cupy)
    monkeypatch.setattr(compile, "_slots", {})
    monkeypatch.setattr(compile, "obtain_cubin", lambda spec, arch: (b"cubin", Path("/cache/a.cubin")))
    return fake


def test_a_kernel_is_loaded_once_a_device(cuda: FakeCuda) -> None:
    first = compile.load_kernel(scratch_spec(), "sm_90", 1024, 0)
    assert compile.load_kernel(scratch_spec(), "sm_90", 1024, 0) is first
    assert cuda.loaded == ["/cache/a.cubin"]
    others = [
        compile.load_kernel(scratch_spec(), "sm_90", 1024, 1),
        compile.load_kernel(scratch_spec(), "sm_80", 1024, 0),
        compile.load_kernel(scratch_spec(factor=4), "sm_90", 1024, 0),
    ]
    assert len({id(kernel) for kernel in (first, *others)}) == 4
    assert cuda.opted_in == []
    assert cuda.current == 0, "the thread's current device is left as it was"


@pytest.mark.parametrize(("smem_bytes", "asks"), [(48 * 1024, False), (48 * 1024 + 1, True), (227 * 1024, True)])
def test_large_shared_memory_is_asked_for(cuda: FakeCuda, smem_bytes: int, asks: bool) -> None:
    compile.load_kernel(scratch_spec(), "sm_90", smem_bytes, 0)
    assert cuda.opted_in == ([(1, OPT_IN, smem_bytes)] if asks else [])


def test_one_spec_has_one_amount_of_shared_memory(cuda: FakeCuda) -> None:
    compile.load_kernel(scratch_spec(), "sm_90", 1024, 0)
    with pytest.raises(InvalidArgumentError, match="smem_bytes: got 2048; allowed: 1024"):
        compile.load_kernel(scratch_spec(), "sm_90", 2048, 0)


def test_loaded_from_memory_where_there_is_no_file(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "obtain_cubin", lambda spec, arch: (b"cubin", None))
    compile.load_kernel(scratch_spec(), "sm_90", 0, 0)
    assert cuda.loaded == [b"cubin"]


def test_loaded_from_memory_where_the_file_has_gone(cuda: FakeCuda) -> None:
    cuda.path_error = FakeDriverError("CUDA_ERROR_FILE_NOT_FOUND")
    compile.load_kernel(scratch_spec(), "sm_90", 0, 0)
    assert cuda.loaded == [b"cubin"]


def test_eight_threads_compile_once_and_share_the_kernel(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    barrier = threading.Barrier(8)

    def slow_obtain(spec: object, arch: str) -> tuple[bytes, None]:
        compiled.append(spec)
        threading.Event().wait(0.05)
        return b"cubin", None

    def load(_: int) -> object:
        barrier.wait()
        return compile.load_kernel(scratch_spec(), "sm_90", 0, 0)

    monkeypatch.setattr(compile, "obtain_cubin", slow_obtain)
    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(load, range(8)))
    assert len(compiled) == 1
    assert len({id(kernel) for kernel in kernels}) == 1


def test_a_failed_compilation_is_tried_again(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: object, arch: str) -> None:
        raise RuntimeError("no compiler")

    with monkeypatch.context() as patch:
        patch.setattr(compile, "obtain_cubin", fail)
        with pytest.raises(RuntimeError, match="no compiler"):
            compile.load_kernel(scratch_spec(), "sm_90", 0, 0)
    assert compile.load_kernel(scratch_spec(), "sm_90", 0, 0)


@pytest.mark.parametrize("current", [101, 0, 102], ids=["own-device", "no-context-yet", "other-device"])
def test_launch_in_the_kernels_own_context(cuda: FakeCuda, current: int) -> None:
    kernel = compile.load_kernel(scratch_spec(), "sm_90", 2048, 1)
    cuda.current = current
    kernel.launch((2, 3, 4), 128, Params(value=1.5, count=7), 99)
    assert cuda.launches == [(101, 1, 2, 3, 4, 128, 1, 1, 2048, 99, 0, 1.5, 7)]
    assert cuda.current == current
    assert cuda.contexts_set == ([] if current == 101 else [101, current])


def test_the_context_is_put_back_after_a_failed_launch(cuda: FakeCuda) -> None:
    kernel = compile.load_kernel(scratch_spec(), "sm_90", 0, 1)
    cuda.current = 102
    cuda.launch_error = FakeDriverError("CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(FakeDriverError):
        kernel.launch((1, 1, 1), 32, Params(), 0)
    assert cuda.current == 102


def test_an_early_launch_goes_to_the_driver_itself(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = iter((0, 1))
    launched = []
    monkeypatch.setattr(compile, "launch_early", lambda *arguments: launched.append(arguments[1:5]) or next(statuses))
    kernel = compile.load_kernel(scratch_spec(), "sm_90", 2048, 1)
    cuda.current = 102
    kernel.launch((2, 3, 4), 128, Params(), 99, is_early=True)
    with pytest.raises(FakeDriverError):
        kernel.launch((2, 3, 4), 128, Params(), 99, is_early=True)
    assert launched == [((2, 3, 4), 128, 2048, 99)] * 2
    assert cuda.launches == []
    assert cuda.current == 102


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(ctypes.c_int)),
        ("attribute_count", ctypes.c_uint),
    )


def test_an_early_launch_describes_itself_as_cuda_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(LaunchConfig), *(ctypes.c_void_p,) * 3)
    def launch(config: Any, function: int, address: int, extra: None) -> int:
        c = config.contents
        seen.append((*c.grid, *c.block, c.shared_bytes, c.stream, c.attributes[:3], c.attribute_count))
        seen.append((function, address, extra))
        return 7

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *(ctypes.c_void_p,) * 3)
    monkeypatch.setattr(driver, "_launch_kernel_ex", lambda: ctypes.cast(launch, kind))
    assert driver.launch_early(11, (2, 3, 4), 128, 2048, 99, 12) == 7
    assert seen == [(2, 3, 4, 128, 1, 1, 2048, 99, [6, 0, 1], 1), (11, 12, None)]
    assert struct.calcsize("@3I3IIPPI0P") == ctypes.sizeof(LaunchConfig)


@pytest.fixture
def real_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that loads the scratch kernel of so much shared memory on a device of this machine."""
    import cupy

    folder = write_scratch_kernel(tmp_path / "kernels")
    build_source = compile.build_source
    monkeypatch.setattr(compile, "build_source", lambda spec, kernel_dir=None: build_source(spec, folder))
    monkeypatch.setattr(compile, "_slots", {})
    monkeypatch.setenv("FFTCONV_CACHE_DIR", str(tmp_path / "cache"))

    def load(smem_bytes: int = 1024, device: int = 0) -> compile.LoadedKernel:
        arch = f"sm_{cupy.cuda.Device(device).compute_capability}"
        return compile.load_kernel(scratch_spec(), arch, smem_bytes, device)

    return load


def _launch_into(kernel: compile.LoadedKernel, out: Any, stream: int, value: float = 2.0) -> None:
    kernel.launch((1, 1, 1), 256, Params(out=out.data.ptr, value=value, count=out.size), stream)


@pytest.mark.gpu
@pytest.mark.parametrize("smem_bytes", [1024, 48 * 1024, 60 * 1024])
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
def test_launch_on_the_gpu(real_kernel: Any, smem_bytes: int, in_memory: bool, tmp_path: Path) -> None:
    import cupy

    if in_memory:
        (tmp_path / "cache").write_bytes(b"")
    with cupy.cuda.Device(0):
        out = cupy.zeros(1000, cupy.float32)
        _launch_into(real_kernel(smem_bytes), out, cupy.cuda.get_current_stream().ptr)
        assert (out == 6).all()
    assert len(list((tmp_path).rglob(f"{ENTRY}*.cubin"))) == (0 if in_memory else 1)


@pytest.mark.gpu
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "captured"])
def test_an_early_launch(real_kernel: Any, in_graph: bool) -> None:
    import cupy

    if int(cupy.cuda.Device(0).compute_capability) < 90:
        pytest.skip("this needs a GPU of compute capability 9.0")
    out, kernel = cupy.zeros(1000, cupy.float32), real_kernel()
    params = Params(out=out.data.ptr, value=2.0, count=out.size)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        if in_graph:
            stream.begin_capture()
        kernel.launch((1, 1, 1), 256, Params(out=out.data.ptr, value=9.0, count=out.size), stream.ptr)
        kernel.launch((1, 1, 1), 256, params, stream.ptr, is_early=True)
        if in_graph:
            stream.end_capture().launch(stream)
        stream.synchronize()
    # The scratch kernel does not wait for the one before: either may have written last.
    assert set(cupy.asnumpy(out)) <= {6.0, 27.0}
    assert 6.0 in cupy.asnumpy(out)


@pytest.mark.gpu
def test_an_early_launch_that_fails_is_an_error(real_kernel: Any) -> None:
    import cupy

    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        real_kernel().launch((1, 1, 1), 4096, Params(), 0, is_early=True)


@pytest.mark.gpu
def test_launch_from_threads_without_a_context(real_kernel: Any) -> None:
    import cupy

    outs = [cupy.zeros(1000, cupy.float32) for _ in range(8)]
    cupy.cuda.Device().synchronize()
    kernel = real_kernel()
    threads = [threading.Thread(target=_launch_into, args=(kernel, out, 0, index)) for index, out in enumerate(outs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cupy.cuda.Device().synchronize()
    assert [float(out.max()) for out in outs] == [float(out.min()) for out in outs] == [3.0 * i for i in range(8)]


@pytest.mark.gpu
def test_launch_in_a_graphs_capture(real_kernel: Any) -> None:
    import cupy

    out = cupy.zeros(1000, cupy.float32)
    kernel = real_kernel()
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        _launch_into(kernel, out, stream.ptr)
        graph = stream.end_capture()
    assert not out.any()
    graph.launch(stream)
    stream.synchronize()
    assert (out == 6).all()


@pytest.mark.gpu
def test_launch_on_a_device_that_is_not_current(real_kernel: Any) -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this needs two GPUs")
    with cupy.cuda.Device(1):
        out = cupy.zeros(1000, cupy.float32)
        cupy.cuda.Device(1).synchronize()
    cupy.cuda.Device(0).use()
    _launch_into(real_kernel(device=1), out, 0)
    assert cupy.cuda.runtime.getDevice() == 0
    with cupy.cuda.Device(1):
        assert (out == 6).all()
