"""Plans with their kernels loaded, made once a configuration and kept: what the modules that launch kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from fftconv_cupy import arrays
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.compile import LoadedKernel, load_kernel, precompile
from fftconv_cupy.devices import device_limits
from fftconv_cupy.remembered import Made
from fftconv_cupy.source import KernelSpec


class _Plan(Protocol):
    @property
    def limits(self) -> ArchLimits: ...

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]: ...


class _Launcher(Protocol):
    @property
    def plan(self) -> Any: ...


Key = TypeVar("Key")
Launcher = TypeVar("Launcher", bound=_Launcher)
Kernels = Mapping[KernelSpec, LoadedKernel]


class Launchers(Made[tuple[int, Key], Launcher]):
    """The launchers of one kind of plans, by device and key; a first look-up plans, compiles and loads.

    A launcher is a plan with what its launches need on a device, and whatever else is the same in each of them. A key
    is all that the plan depends on but the device: the problem, the alignment of the arrays and the like.
    """

    def __init__(self, plan: Callable[[Key, ArchLimits], _Plan], load: Callable[[Any, Kernels, int], Launcher]) -> None:
        """Take how plans and launchers are made.

        Args:
            plan: makes the plan of a key for a GPU.
            load: makes the launcher of a plan from its loaded kernels, on a device.
        """
        super().__init__(self._launcher)
        self._plan, self._load = plan, load

    def _launcher(self, place: tuple[int, Key]) -> Launcher:
        device, key = place
        made = self._plan(key, device_limits(device))
        with ThreadPoolExecutor(len(made.kernels)) as pool:  # a first use compiles them, side by side
            loads = {
                spec: pool.submit(load_kernel, spec, made.limits.arch, shared_bytes, device)
                for spec, shared_bytes in made.kernels
            }
        return self._load(made, {spec: load.result() for spec, load in loads.items()}, device)

    def warm(self, keys: Iterable[Key], archs: Sequence[str] | None) -> list[str]:
        """Compile, and where `archs` is None also load, the kernels of some keys.

        Args:
            keys: such as those of a problem and each alignment that arrays may have.
            archs: architectures to compile for into the cache on disk; None means for the current device, and load
                there.

        Returns:
            A line for each kernel, see `describe`.
        """
        lines = []
        for key in keys:
            if archs is None:
                plans = [self[arrays.current_device(), key].plan]
            else:
                plans = [self._plan(key, arch_limits(arch)) for arch in archs]
            for made in plans:
                for spec, _ in made.kernels:
                    if archs is not None:
                        precompile(spec, made.limits.arch)
                    lines.append(describe(spec, made.limits))
        return list(dict.fromkeys(lines))


def describe(spec: KernelSpec, limits: ArchLimits) -> str:
    """Return a kernel on one line: architecture, FFT size, entry and template flags."""
    flags = ", ".join(f"{name.removeprefix('FFTCONV_').lower()}={value}" for name, value in spec.defines)
    return f"{limits.arch} fft_size={spec.fft_size} {spec.entry}: {flags}"
