"""What a result was obtained with: GPU, driver, versions, commit and command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fftconv_cupy import cache
from fftconv_cupy._version import __version__
from fftconv_cupy.dependencies import import_cupy, import_nvrtc
from fftconv_cupy.errors import MissingDependencyError

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_FRAMEWORKS = ("numpy", "ml_dtypes", "torch", "jax")
_PEERS = ("flashfftconv", "causal-conv1d", "subquadratic-ops-torch-cu12", "subquadratic-ops-torch-cu13")


def gpu_count() -> tuple[int, str]:
    """Return the number of GPUs that CuPy sees, and where there is none the reason."""
    try:
        cupy = import_cupy()
    except MissingDependencyError as error:
        return 0, str(error)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return 0, f"CuPy finds no GPU ({error})"
    return count, "" if count else "CuPy finds no GPU"


def software() -> dict[str, Any]:
    """Return versions of everything involved, None for a framework that is not installed, and the cache directory.

    It needs no GPU. Of the libraries that benchmarks compare with, only those are named that are installed.
    """
    found: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    found |= {name: _installed(name) for name in _FRAMEWORKS}
    found |= {name: version for name in _PEERS if (version := _installed(name)) is not None}
    try:
        cupy = import_cupy()
        found["cupy"] = cupy.__version__
        found["cuda"] = _dotted(cupy.cuda.runtime.runtimeGetVersion())
        found["nvrtc"] = ".".join(map(str, import_nvrtc().getVersion()))
    except MissingDependencyError as error:
        found["missing"] = str(error)
    found["cache"] = str(cache.directory())
    return found


def gpu(ordinal: int) -> dict[str, Any]:
    """Return name, compute capability, memory and driver of one GPU."""
    cupy = import_cupy()
    properties = cupy.cuda.runtime.getDeviceProperties(ordinal)
    name = properties["name"]
    return {
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
        "l2_mib": round(properties["l2CacheSize"] / 2**20, 1),
        "driver": driver_version(),
        "driver_cuda": _dotted(cupy.cuda.runtime.driverGetVersion()),
    }


def driver_version() -> str:
    """Return the version of NVIDIA's kernel driver, or "unknown"."""
    try:
        lines = _DRIVER_FILE.read_text().splitlines()
    except OSError:
        return (
            _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] or "unknown"
        )
    words = lines[0].split() if lines else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def commit() -> str:
    """Return the commit of the checkout that this package runs from, "-dirty" where it has changes, else "unknown"."""
    folder = str(Path(__file__).resolve().parent)
    head = _output("git", "-C", folder, "rev-parse", "HEAD")
    if not head or _output("git", "-C", folder, "ls-files", "--error-unmatch", Path(__file__).name) == "":
        return "unknown"
    return head + ("-dirty" if _output("git", "-C", folder, "status", "--porcelain") else "")


def command() -> str:
    """Return the command line that is running; of files elsewhere only the name, for reports are published."""
    return shlex.join(["fftconv", *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])])


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _dotted(version: int) -> str:
    """Return CUDA's 13000 as "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _output(*arguments: str) -> str:
    """Return what a command prints, or nothing where it fails or does not exist."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
