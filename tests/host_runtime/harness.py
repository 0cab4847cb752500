"""Run a kernel's own source on the CPU, see ``cuda_host.h``, and what of it is wrong on a GPU becomes an exception."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fftconv_cupy.source import KernelSpec, build_source
from host_runtime.build import NoCompilerError, build_kernel, find_compiler, runtime_library

ORDERS = ("ascending", "descending", "random")
_PREFETCHES = 1 << 14  # FFTCONV_HOST_PREFETCHES of cuda_host.h
# The runtime keeps its signal handlers and stacks per process.
_launching = threading.Lock()


class HostRuntimeError(RuntimeError):
    """A kernel did something that is wrong on a GPU. The message says which thread, where."""


class RaceError(HostRuntimeError):
    """Two accesses that nothing orders, at least one a write."""


class DivergentBarrierError(HostRuntimeError):
    """Threads of a block (or of a warp's mask) wait at different barriers."""


class ThreadExitError(HostRuntimeError):
    """A thread exited before a barrier at which others wait."""


class StuckError(HostRuntimeError):
    """No thread can go on."""


class MemoryFaultError(HostRuntimeError):
    """An access outside of any array (or past dynamic shared memory), or a misaligned one."""


class MisuseError(HostRuntimeError):
    """A warp function, an mbarrier or a launch used against its rules."""


# By host::Failure of runtime.h.
_ERRORS = (None, RaceError, DivergentBarrierError, ThreadExitError, StuckError, MemoryFaultError, MisuseError)


def require_compiler() -> None:
    """Skip the calling test without a C++ compiler; with ``CI=true`` fail it."""
    try:
        find_compiler()
    except NoCompilerError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"host-runtime tests must run in CI: {error}")
        pytest.skip(str(error))


class _Launch(ctypes.Structure):
    """FftconvHostLaunch of cuda_host.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("smem_bytes", ctypes.c_uint),
        ("order", ctypes.c_int),
        ("race_check", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("params", ctypes.c_void_p),
        ("params_bytes", ctypes.c_size_t),
        ("message", ctypes.c_char * 1024),
    )


class HostKernel:
    """A kernel compiled for the CPU.

    Args:
        spec: the kernel.
        race_check: build with every load and store checked (several times slower).
        order: order in which the threads of a block run between barriers, one of ``ORDERS``.
        seed: of the random order.
        kernel_dir: folder of the kernel's files, default the package's.

    Raises:
        NoCompilerError: see :func:`find_compiler`.
        HostBuildError: the source does not compile.
    """

    def __init__(
        self,
        spec: KernelSpec,
        *,
        race_check: bool = False,
        order: str = "ascending",
        seed: int = 0,
        kernel_dir: Path | None = None,
    ) -> None:
        self.spec = spec
        self.race_check = race_check
        self.order = ORDERS.index(order)
        self.seed = seed
        source = build_source(spec, kernel_dir)
        self._run = _load(build_kernel(source, spec.entry, race_check))

    def launch(self, grid: tuple[int, int, int], threads: int, smem_bytes: int, params: ctypes.Structure) -> None:
        """Run all blocks, one after another; every pointer in ``params`` is a host address.

        Raises:
            HostRuntimeError: one of its subclasses.
        """
        launch = _Launch(
            grid=grid,
            threads=threads,
            smem_bytes=smem_bytes,
            order=self.order,
            race_check=self.race_check,
            seed=self.seed,
            params=ctypes.addressof(params),
            params_bytes=ctypes.sizeof(params),
        )
        with _launching:
            failure = self._run(launch)
        if error := _ERRORS[failure]:
            raise error(f"{self.spec.entry}: {launch.message.decode(errors='replace')}")


class HostLoadedKernel:
    """``fftconv_cupy.compile.LoadedKernel`` on the CPU; a stream means nothing here."""

    def __init__(self, kernel: HostKernel, smem_bytes: int) -> None:
        self.kernel = kernel
        self.smem_bytes = smem_bytes

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        params: ctypes.Structure,
        stream: int,
        address: int = 0,
        is_early: bool = False,
    ) -> None:
        """Run the kernel at once."""
        self.kernel.launch(grid, threads, self.smem_bytes, params)


def host_loader(
    *, race_check: bool = False, order: str = "ascending", seed: int = 0, kernel_dir: Path | None = None
) -> Callable[[KernelSpec, str, int, int], HostLoadedKernel]:
    """Return a function to put in place of ``fftconv_cupy.compile.load_kernel(spec, arch, smem_bytes, device)``."""

    @cache
    def load_kernel(spec: KernelSpec, arch: str, smem_bytes: int, device: int) -> HostLoadedKernel:
        kernel = HostKernel(spec, race_check=race_check, order=order, seed=seed, kernel_dir=kernel_dir)
        return HostLoadedKernel(kernel, smem_bytes)

    return load_kernel


def forget_prefetched() -> None:
    """Let `take_prefetched` begin with what is prefetched from now on."""
    ctypes.c_uint.in_dll(ctypes.CDLL(str(runtime_library())), "fftconv_host_prefetch_count").value = 0


def take_prefetched() -> list[int]:
    """Return the addresses that kernels have prefetched since the last call of this, in their order."""
    runtime = ctypes.CDLL(str(runtime_library()))
    count = ctypes.c_uint.in_dll(runtime, "fftconv_host_prefetch_count")
    addresses = (ctypes.c_void_p * _PREFETCHES).in_dll(runtime, "fftconv_host_prefetched")
    if count.value > _PREFETCHES:
        raise OverflowError(f"{count.value} prefetches, of which {_PREFETCHES} are kept")
    found = [address or 0 for address in addresses[: count.value]]
    count.value = 0
    return found


@cache
def _load(path: Path) -> Callable[..., int]:
    run = ctypes.CDLL(str(path)).fftconv_host_run
    run.argtypes = [ctypes.POINTER(_Launch)]
    return run
