"""From a kernel specification to a kernel that can be launched: NVRTC, the cache on disk, the CUDA module.

Compiling needs no GPU. Code is made for one real architecture (a cubin), never PTX: PTX of a newer NVRTC fails on an
older driver.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache as memoised
from pathlib import Path
from typing import Any

from fftconv_cupy import cache
from fftconv_cupy._version import __version__
from fftconv_cupy.dependencies import cuda_header_dir, import_cupy, import_nvrtc
from fftconv_cupy.driver import launch_early
from fftconv_cupy.errors import CompileError, InvalidArgumentError, UnsupportedDeviceError, message
from fftconv_cupy.source import KernelSpec, build_source, digest

# No fast-math and no flush to zero: the float32 arithmetic is IEEE's, and the same wherever a kernel is compiled.
# With -default-device the lambdas in our headers need no annotation; ptxas reports registers and spills with -v.
NVRTC_OPTIONS = ("-std=c++17", "-default-device", "--ptxas-options=-v")
# The CUDA headers that a kernel may include; their text is a part of what is compiled.
CUDA_HEADERS = ("cuda_fp16.h", "cuda_fp16.hpp", "cuda_bf16.h", "cuda_bf16.hpp")
# More dynamic shared memory than this must be asked for, whatever the architecture.
SMEM_WITHOUT_OPT_IN = 48 * 1024

_LOG = logging.getLogger("fftconv_cupy")
_ARCH = re.compile(r"sm_(\d+)[a-z]?")


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled kernel and what ptxas reported of it.

    ``registers`` (a thread), ``spill_bytes`` (stores and loads), ``stack_bytes`` and ``smem_static`` are those of the
    entry and of the functions it calls; ``registers`` is 0 where the log does not tell.
    """

    cubin: bytes
    log: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    smem_static: int


class LoadedKernel:
    """A kernel on one device, ready to launch from any thread and inside a CUDA graph's capture."""

    __slots__ = (
        "_context",
        "_current_context",
        "_error",
        "_function",
        "_handle",
        "_launch",
        "_set_context",
        "smem_bytes",
    )

    def __init__(self, driver: Any, function: Any, context: int, smem_bytes: int) -> None:
        """Bind ``function``.

        Args:
            driver: ``cupy.cuda.driver``.
            function: a ``cupy.cuda.function.Function``, which keeps its module loaded.
            context: the CUDA context that the module was loaded into.
            smem_bytes: dynamic shared memory of every launch.
        """
        self.smem_bytes = smem_bytes
        self._function = function
        self._handle: int = function.ptr
        self._context = context
        self._current_context: Callable[[], int] = driver.ctxGetCurrent
        self._set_context: Callable[[int], None] = driver.ctxSetCurrent
        self._launch: Callable[..., None] = driver.launchKernel
        self._error: Callable[[int], Exception] = driver.CUDADriverError

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        params: ctypes.Structure,
        stream: int,
        address: int = 0,
        is_early: bool = False,
    ) -> None:
        """Launch with ``params`` as the only argument, by value, asynchronously on ``stream``.

        ``params`` is read before this returns. This calls the driver's own launch, without CuPy's look-ups of device
        and stream and its conversion of each argument.

        Args:
            grid: blocks in x, y and z.
            threads: threads a block, in x.
            params: the struct that the entry takes.
            stream: handle of a stream of the kernel's own device.
            address: of a pointer to `params`, where the caller has one; 0 makes one.
            is_early: the kernel may start while the one before it runs (see `driver.launch_early`).
        """
        if not address:
            pointer = ctypes.c_void_p(ctypes.addressof(params))
            address = ctypes.addressof(pointer)
        current = self._current_context()
        is_foreign = current != self._context
        if is_foreign:  # another device may be current in this thread, or none yet
            self._set_context(self._context)
        try:
            if not is_early:
                x, y, z = grid
                self._launch(self._handle, x, y, z, threads, 1, 1, self.smem_bytes, stream, address, 0)
            elif status := launch_early(self._handle, grid, threads, self.smem_bytes, stream, address):
                raise self._error(status)
        finally:
            if is_foreign:
                self._set_context(current)


def compile_cubin(spec: KernelSpec, arch: str, kernel_dir: Path | None = None) -> Compiled:
    """Compile ``spec`` for ``arch`` (such as ``"sm_90"``), without looking into the cache.

    Args:
        spec: the kernel.
        arch: architecture, of any GPU, present or not.
        kernel_dir: folder of the sources; default the installed ones.

    Raises:
        MissingDependencyError: CuPy, NVRTC or CUDA's headers are missing.
        UnsupportedDeviceError: the installed NVRTC does not know ``arch``.
        CompileError: NVRTC rejects the source.
    """
    return _compile(build_source(spec, kernel_dir), spec, arch)


def obtain_cubin(spec: KernelSpec, arch: str, kernel_dir: Path | None = None) -> tuple[bytes, Path | None]:
    """Return the cubin of ``spec`` for ``arch`` and its file, from the cache where it is there.

    The file is None where none could be written. Arguments and errors as for :func:`compile_cubin`.
    """
    source = build_source(spec, kernel_dir)
    version = import_nvrtc().getVersion()
    name = digest(
        source,
        arch=arch,
        nvrtc_version=version,
        options=NVRTC_OPTIONS,
        cuda_headers=_cuda_headers_digest(),
        version=__version__,
    )
    key = cache.CacheKey(arch, spec.fft_size, spec.entry, name)
    found = cache.find(key)
    if found is not None:
        return found[1], found[0]
    cubin = _compile(source, spec, arch).cubin
    return cubin, cache.store(key, cubin)


def precompile(spec: KernelSpec, arch: str) -> Path | None:
    """See to it that the cache holds ``spec`` for ``arch``; return its file, or None where it cannot be written."""
    return obtain_cubin(spec, arch)[1]


@dataclass(slots=True)
class _Slot:
    """What one process holds of one (spec, arch); under the lock, threads that want the same compile it once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    cubin: tuple[bytes, Path | None] | None = None
    kernels: dict[int, LoadedKernel] = field(default_factory=dict)


_slots: dict[tuple[KernelSpec, str], _Slot] = {}
_slots_lock = threading.Lock()


def load_kernel(spec: KernelSpec, arch: str, smem_bytes: int, device: int) -> LoadedKernel:
    """Return ``spec`` loaded on ``device``, the same object in each call and each thread of the process.

    Args:
        spec: the kernel.
        arch: the architecture of ``device``.
        smem_bytes: dynamic shared memory of a launch, in bytes; one number for one spec.
        device: CUDA ordinal.

    Raises:
        InvalidArgumentError: the kernel was loaded before with another ``smem_bytes``.
        MissingDependencyError, UnsupportedDeviceError, CompileError: as for :func:`compile_cubin`.
    """
    with _slots_lock:
        slot = _slots.setdefault((spec, arch), _Slot())
    with slot.lock:
        kernel = slot.kernels.get(device)
        if kernel is None:
            if slot.cubin is None:
                slot.cubin = obtain_cubin(spec, arch)
            kernel = slot.kernels[device] = _load(*slot.cubin, spec.entry, smem_bytes, device)
    if kernel.smem_bytes != smem_bytes:
        raise InvalidArgumentError(
            message("smem_bytes", got=smem_bytes, allowed=kernel.smem_bytes, do="Give one spec one amount.")
        )
    return kernel


def _load(cubin: bytes, path: Path | None, entry: str, smem_bytes: int, device: int) -> LoadedKernel:
    cupy = import_cupy()
    driver = cupy.cuda.driver
    started = time.perf_counter()
    with cupy.cuda.Device(device):
        # Makes the device's primary context current even in a thread that has not used CUDA yet.
        cupy.cuda.runtime.setDevice(device)
        function = _load_module(cupy, cubin, path).get_function(entry)
        if smem_bytes > SMEM_WITHOUT_OPT_IN:
            driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, smem_bytes)
        context = driver.ctxGetCurrent()
    _LOG.debug("loaded %s on device %d in %.1f ms", path or entry, device, 1e3 * (time.perf_counter() - started))
    return LoadedKernel(driver, function, context, smem_bytes)


def _load_module(cupy: Any, cubin: bytes, path: Path | None) -> Any:
    if path is not None:
        try:
            # CuPy remembers modules by path; ours name their content, so a path never comes to mean other bytes.
            return cupy.RawModule(path=str(path)).module
        except cupy.cuda.driver.CUDADriverError as error:  # such as a file that was cleared away in the meantime
            _LOG.debug("kernel cache: %s is loaded from memory instead: %s", path, error)
    module = cupy.cuda.function.Module()
    module.load(cubin)
    return module


def _compile(source: str, spec: KernelSpec, arch: str) -> Compiled:
    nvrtc = import_nvrtc()
    _check_arch(nvrtc, arch)
    options = (f"-arch={arch}", *NVRTC_OPTIONS, f"-I{cuda_header_dir()}")
    started = time.perf_counter()
    program = nvrtc.createProgram(source, f"{spec.entry}.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise _compile_error(spec, arch, nvrtc.getProgramLog(program), error) from None
        log = nvrtc.getProgramLog(program)
        # CuPy takes the last byte of a cubin, which is always 0, for a string's terminator and cuts it off.
        cubin = nvrtc.getCUBIN(program) + b"\0"
    finally:
        nvrtc.destroyProgram(program)
    compiled = Compiled(cubin, log, **parse_ptxas_log(log, spec.entry))
    _LOG.debug(
        "compiled %s, FFT size %d, for %s in %.2f s: %d registers, %d bytes spilled; %s",
        *(spec.entry, spec.fft_size, arch, time.perf_counter() - started, compiled.registers, compiled.spill_bytes),
        _defines_text(spec),
    )
    return compiled


def parse_ptxas_log(log: str, entry: str) -> dict[str, int]:
    """Return registers, spill_bytes, stack_bytes and smem_static of ``entry`` from a log of ``--ptxas-options=-v``.

    The lines from "Compiling entry function" to the next one count: they include the functions that the entry calls.
    """
    _, _, section = log.partition(f"Compiling entry function '{entry}'")
    section = section.partition("Compiling entry function")[0]

    def numbers(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, section)]

    return {
        "registers": max(numbers(r"Used (\d+) registers"), default=0),
        "spill_bytes": sum(numbers(r"(\d+) bytes spill (?:stores|loads)")),
        "stack_bytes": max(numbers(r"(\d+) bytes (?:stack frame|cumulative stack size)"), default=0),
        "smem_static": max(numbers(r"(\d+) bytes smem"), default=0),
    }


def _check_arch(nvrtc: Any, arch: str) -> None:
    match = _ARCH.fullmatch(arch)
    if match is None:
        raise InvalidArgumentError(message("arch", got=repr(arch), allowed='"sm_90" and the like', do="Correct it."))
    known = nvrtc.getSupportedArchs()
    if int(match[1]) not in known:
        raise UnsupportedDeviceError(
            message(
                "arch",
                got=arch,
                allowed=", ".join(f"sm_{number}" for number in known if number >= 75),
                do=f"Install an NVRTC that knows it; this is {'.'.join(map(str, nvrtc.getVersion()))}.",
            )
        )


def _compile_error(spec: KernelSpec, arch: str, log: str, error: Exception) -> CompileError:
    return CompileError(
        f"{spec.entry}, FFT size {spec.fft_size}, for {arch}: NVRTC reports {error}.\n"
        f"defines: {_defines_text(spec)}\n"
        f"log:\n{log.strip()}"
    )


def _defines_text(spec: KernelSpec) -> str:
    return " ".join(f"{name}={value}" for name, value in spec.defines)


@memoised
def _cuda_headers_digest() -> str:
    hasher = hashlib.sha256(usedforsecurity=False)
    for name in CUDA_HEADERS:
        path = cuda_header_dir() / name
        content = path.read_bytes() if path.exists() else b""
        hasher.update(len(content).to_bytes(8, "big"))
        hasher.update(content)
    return hasher.hexdigest()
