"""Compiles a kernel source as C++ to a shared object, with g++, clang++ or the ``ziglang`` package.

Objects lie in a per-user cache (``FFTCONV_HOST_CACHE``, else the temporary directory), named by the digest of
everything that goes into them. Several processes may build at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from cuda.pathfinder import find_nvidia_header_directory

_HERE = Path(__file__).parent
_HEADER = _HERE / "cuda_host.h"
_RUNTIME = ("runtime.cpp", "warp.cpp", "cluster.cpp", "mbarrier.cpp", "race.cpp")
_RUNTIME_HEADERS = ("cuda_host.h", "fiber_switch.h", "runtime.h", "stubs/crt/host_defines.h", "stubs/nv/target")

# CUDA code reads memory through pointers of other types; multiply and add are fused only where the source says fmaf.
_FLAGS = ("-std=c++17", "-fPIC", "-g0", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-math-errno")
_FLAGS += ("-fno-exceptions", "-fno-sanitize=undefined")  # zig's default
# Shared memory belongs to one object: its static __shared__ variables must not be merged with those of another.
_GCC_FLAGS = ("-fno-gnu-unique", "-fno-extern-tls-init")
_RUNTIME_FLAGS = ("-O2", "-fno-semantic-interposition")
# The kernels are long and run briefly: -O1 builds them in two thirds of the time of -O2 and runs as fast.
_KERNEL_FLAGS = ("-O1", "-fvisibility=hidden")
_RACE_FLAGS = ("-fsanitize=thread", "-fsanitize=alignment", "-fno-sanitize-recover=alignment")
# No sanitizer at the link: the callbacks are the runtime's own.
_LINK_FLAGS = ("-shared", "-fno-sanitize=undefined")
_DYNAMIC_SHARED = re.compile(r"\bextern\s+__shared__\s+(\w+)\s+(\w+)\s*\[\s*\]")
_CLUSTER = re.compile(r"\b__cluster_dims__\s*\(\s*(\w+)")


class NoCompilerError(RuntimeError):
    """No C++ compiler, or not a platform the host runtime is written for."""


class HostBuildError(RuntimeError):
    """The kernel does not compile as C++; the message is the compiler's."""


@lru_cache(maxsize=1)
def find_compiler() -> tuple[str, ...]:
    """Return the command of a C++ compiler: ``FFTCONV_HOST_CXX``, g++, clang++, or the ``ziglang`` package's.

    Raises:
        NoCompilerError: none of them is here, or the machine is neither x86-64 nor aarch64 Linux.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        raise NoCompilerError("the host runtime runs on Linux on x86-64 and aarch64")
    if chosen := os.environ.get("FFTCONV_HOST_CXX"):
        return tuple(chosen.split())
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise NoCompilerError("no g++, clang++ or ziglang package: pip install ziglang to run the kernels on the CPU")


def cache_dir() -> Path:
    """Return the folder of the shared objects: made if need be, ours alone."""
    chosen = os.environ.get("FFTCONV_HOST_CACHE")
    path = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"fftconv_host_{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user: set FFTCONV_HOST_CACHE to a folder of yours")
    return path


def build_kernel(source: str, entry: str, race_check: bool) -> Path:
    """Return the shared object of a kernel source, compiled or found.

    Args:
        source: what NVRTC would be given.
        entry: name of the kernel in it.
        race_check: report every load and store to the runtime, see ``race.cpp``.

    Raises:
        NoCompilerError: see :func:`find_compiler`.
        HostBuildError: the source does not compile.
    """
    _, flags, _ = _toolchain()
    dynamic = _DYNAMIC_SHARED.search(source)
    kind, name = dynamic.groups() if dynamic else ("float4", "s_none")
    cluster = _CLUSTER.search(source)
    text = f"{source}\nFFTCONV_HOST_ENTRY({entry}, {kind}, {name}, {cluster[1] if cluster else 1})\n"
    options = (*flags, *_KERNEL_FLAGS, *(_RACE_FLAGS if race_check else ()))
    return _shared_object(entry, text, options, _host_header(options), (str(runtime_library()),))


@lru_cache(maxsize=1)
def _toolchain() -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the compiler's command, its flags for this machine, and a text naming its version."""
    compiler = find_compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    cuda = find_nvidia_header_directory("cudart")
    if cuda is None:
        raise NoCompilerError("no CUDA headers: pip install nvidia-cuda-runtime-cu12")
    flags = [*_FLAGS, f"-I{_HERE / 'stubs'}", f"-I{_HERE}", f"-isystem{cuda}"]
    if "Free Software Foundation" in version:
        flags += _GCC_FLAGS
    if platform.machine() == "x86_64" and " fma " in Path("/proc/cpuinfo").read_text():
        flags.append("-mfma")
    return compiler, tuple(flags), version


def _digest(*parts: str) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        payload = part.encode()
        hasher.update(len(payload).to_bytes(8, "big") + payload)
    return hasher.hexdigest()[:32]


@lru_cache(maxsize=1)
def _runtime_text() -> str:
    return "".join((_HERE / name).read_text() for name in (*_RUNTIME, *_RUNTIME_HEADERS))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, so that of several processes that want the same object one builds it."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run_compiler(compiler: tuple[str, ...], arguments: tuple[str, ...], output: Path) -> None:
    """Run the compiler with a temporary output that then takes its place at once."""
    temporary = output.with_name(f"{output.name}.{os.getpid()}")
    try:
        command = [*compiler, *arguments, "-o", str(temporary)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise HostBuildError(run.stderr[-6000:])
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _shared_object(
    name: str, text: str, options: tuple[str, ...], header: tuple[str, ...], libraries: tuple[str, ...]
) -> Path:
    """Return the shared object of a C++ text, compiled with `options` and linked with `libraries`, or found."""
    compiler, _, version = _toolchain()
    path = cache_dir() / f"{name}-{_digest(version, *options, *libraries, _runtime_text(), text)}.so"
    with _locked(path):
        if path.exists():
            return path
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source, built = Path(folder) / "source.cpp", Path(folder) / "source.o"
            source.write_text(text)
            _run_compiler(compiler, (*options, *header, "-c", str(source)), built)
            # Nothing needs the C++ library, and zig builds its own for minutes when first asked to link it.
            linker = (*compiler[:-1], "cc") if "ziglang" in compiler else compiler
            _run_compiler(linker, (*_LINK_FLAGS, str(built), *libraries), path)
    return path


@lru_cache(maxsize=1)
def runtime_library() -> Path:
    """Return the runtime's shared object. It has no soname, so that kernels linked with it find it by this path."""
    _, flags, _ = _toolchain()
    text = "".join(f'#include "{name}"\n' for name in _RUNTIME)
    return _shared_object("runtime", text, (*flags, *_RUNTIME_FLAGS), (), ())


@lru_cache(maxsize=2)
def _host_header(options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the options that put ``cuda_host.h`` first; g++ gets it precompiled, which saves a fifth of each build."""
    compiler, flags, version = _toolchain()
    if not set(_GCC_FLAGS) <= set(flags):
        return ("-include", str(_HEADER))
    folder = cache_dir() / f"header-{_digest(version, *options, _runtime_text())}"
    folder.mkdir(mode=0o700, exist_ok=True)
    precompiled = folder / "cuda_host.h.gch"
    with _locked(precompiled):
        if not precompiled.exists():
            # What g++ falls back to where it does not accept the precompiled one.
            (folder / "cuda_host.h").write_text(f'#include "{_HEADER}"\n')
            _run_compiler(compiler, (*options, "-x", "c++-header", str(_HEADER)), precompiled)
    return ("-include", str(folder / "cuda_host.h"))
