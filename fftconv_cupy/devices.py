"""Limits of the GPUs of this machine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from fftconv_cupy.archs import ARCHS, BULK_COPY_CAPABILITY, OLDEST_CAPABILITY, ArchLimits
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.errors import UnsupportedDeviceError, message


@cache
def device_limits(device: int) -> ArchLimits:
    """Return the limits of a CUDA device: those listed for its architecture, else what the device reports.

    Args:
        device: ordinal of the device.

    Raises:
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
    """
    gpu = import_cupy().cuda.Device(device)
    capability = gpu.compute_capability
    if int(capability) < OLDEST_CAPABILITY:
        raise UnsupportedDeviceError(
            message(
                f"GPU {device}",
                got=f"compute capability {capability[:-1]}.{capability[-1]}",
                allowed="7.5 (Turing) and later",
                do="Use a newer GPU, or pass CPU arrays, which are convolved by NumPy.",
            )
        )
    listed = ARCHS.get(f"sm_{capability}")
    if listed is not None:
        return replace(listed, multiprocessors=gpu.attributes["MultiProcessorCount"])
    return ArchLimits(
        f"sm_{capability}",
        gpu.attributes["MaxSharedMemoryPerBlockOptin"],
        gpu.attributes["MaxSharedMemoryPerMultiprocessor"],
        gpu.attributes["MultiProcessorCount"],
        has_bulk_copy=int(capability) >= BULK_COPY_CAPABILITY,
    )
