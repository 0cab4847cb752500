"""CuPy, NVRTC and CUDA's headers: found when first needed, else an error that names the extra to install."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

from fftconv_cupy.errors import MissingDependencyError, message

_import_lock = threading.Lock()


@cache
def import_cupy() -> Any:
    """Return the module ``cupy``.

    Raises:
        MissingDependencyError: CuPy is not installed, or cannot be imported.
    """
    # The environment is changed for the time of the import; a second thread waits until it is as it was.
    with _import_lock:
        made = _stand_in_for_cupys_cache()
        try:
            import cupy
        except ImportError as error:
            # CuPy wraps what went wrong into a page of general advice.
            found = (
                "none installed"
                if error.name == "cupy"
                else f"one that fails to import ({_first_line(error.__cause__ or error)})"
            )
            raise MissingDependencyError(
                message(
                    "CuPy, which arrays on a GPU need",
                    got=found,
                    allowed="cupy-cuda12x or cupy-cuda13x",
                    do="Run pip install 'fftconv-cupy[cuda12]' for CUDA 12, or 'fftconv-cupy[cuda13]' for CUDA 13.",
                )
            ) from error
        finally:
            if made is not None:
                del os.environ["CUPY_CACHE_DIR"]
    return cupy


def import_nvrtc() -> Any:
    """Return CuPy's binding of NVRTC, ``cupy.cuda.nvrtc``, with the library itself loaded.

    Raises:
        MissingDependencyError: CuPy or the NVRTC library is missing.
    """
    nvrtc = import_cupy().cuda.nvrtc
    try:
        nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as error:
        raise MissingDependencyError(
            message(
                "NVRTC, the compiler of the kernels",
                got=f"a library that cannot be loaded ({_first_line(error)})",
                allowed="the NVRTC of CuPy's CUDA version",
                do=_install_extra(),
            )
        ) from error
    return nvrtc


@cache
def cuda_header_dir() -> Path:
    """Return the folder that holds ``cuda_fp16.h`` and ``cuda_bf16.h``.

    Raises:
        MissingDependencyError: no such folder: CUDA's headers are not installed.
    """
    try:
        # Comes with every CuPy that we support.
        from cuda import pathfinder
    except ImportError as error:
        raise MissingDependencyError(
            message("cuda-pathfinder", got=f"none ({error})", allowed="version 1", do=_install_extra())
        ) from error
    found = pathfinder.find_nvidia_header_directory("cudart")
    if found is None or not (Path(found) / "cuda_fp16.h").is_file():
        raise MissingDependencyError(
            message("CUDA's headers", got="none", allowed="a folder with cuda_fp16.h", do=_install_extra())
        )
    return Path(found)


def _stand_in_for_cupys_cache() -> str | None:
    """Give CuPy a temporary cache folder where it cannot make its own: ``import cupy`` fails without one."""
    if "CUPY_CACHE_DIR" in os.environ or "cupy" in sys.modules:
        return None
    try:
        Path("~/.cupy/kernel_cache").expanduser().mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        folder = tempfile.mkdtemp(prefix="fftconv-cupy-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["CUPY_CACHE_DIR"] = folder
        return folder
    return None


def _install_extra() -> str:
    major = import_cupy().cuda.runtime.runtimeGetVersion() // 1000
    return f"Run pip install 'fftconv-cupy[cuda{major}]'."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
