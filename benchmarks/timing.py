"""Time on a GPU: bursts of calls between CUDA events, each after a flush of L2; copy bandwidth; memory; host time.

Everything runs on the device's default stream, which CuPy and torch share, so one pair of events serves both.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fftconv_cupy.benchmarks import device_code
from fftconv_cupy.dependencies import import_cupy

MIB = 1 << 20
BURST_MS = 100.0  # of repeats, the flushes between them not counted
IDLE_MS = 30.0  # before each burst: a GPU at its power limit clocks down within seconds
COPY_BYTES = 2 << 30
_MOST_REPEATS = 20_000  # between two waits for the GPU

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Median time of a call in one burst, and the time of all its repeats together, in milliseconds."""

    ms: float
    burst_ms: float


class GpuClock:
    """Times calls that launch on the default stream of one GPU."""

    l2_flushed = True

    def __init__(self, ordinal: int) -> None:
        """Allocate what flushing L2 takes, on the current device ``ordinal``."""
        self._cupy = import_cupy()
        self._stream = self._cupy.cuda.Stream.null
        l2_bytes = self._cupy.cuda.runtime.getDeviceProperties(ordinal)["l2CacheSize"]
        # Read, not written: lines left dirty by the flush would be written back at the expense of the timed call.
        # It also runs longer than Python needs for the next call, so the GPU does not wait for the host.
        self._evictor = self._cupy.zeros(max(256 * MIB, 6 * l2_bytes) // 4, "float32")
        self._sink = self._cupy.zeros(1, "float32")
        self._events: list[tuple[Any, Any]] = []

    def flush(self) -> None:
        """Fill L2 with other data, asynchronously."""
        device_code.read_all(self._evictor, self._sink)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self._stream.synchronize()

    def time(self, call: Call) -> Timing:
        """Return the median over a burst of at least `BURST_MS`, after a warm-up and an idle gap."""
        estimate = statistics.median(self._burst(call, 5))
        time.sleep(IDLE_MS / 1000)
        times: list[float] = []
        while (missing := BURST_MS - sum(times)) > 0:
            times += self._burst(call, min(_MOST_REPEATS, max(5, math.ceil(1.05 * missing / max(estimate, 1e-3)))))
        return Timing(statistics.median(times), sum(times))

    def copy_gb_per_s(self) -> float:
        """Return bytes read and written a second by a copy within the GPU of `COPY_BYTES`, in GB/s."""
        source = self._cupy.empty(COPY_BYTES, "uint8")
        target = self._cupy.empty(COPY_BYTES, "uint8")
        source.data.memset(1, COPY_BYTES)
        ms = self.time(lambda: target.data.copy_from_device_async(source.data, COPY_BYTES, self._stream)).ms
        source = target = None
        self._cupy.get_default_memory_pool().free_all_blocks()
        return 2 * COPY_BYTES / ms / 1e6

    def extra_mib(self, call: Call, framework: str) -> float | None:
        """Return the peak memory that a call takes above its inputs and what it returns, arrays or one, in MiB.

        Of JAX it is known where the call is the first to take so much: the peak of its allocator cannot be reset.
        """
        self.synchronize()
        if framework == "torch":
            import torch

            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            result = call()
            peak = torch.cuda.max_memory_allocated() - before
        elif framework == "jax":
            import jax

            device = jax.devices("cuda")[self._cupy.cuda.Device().id]
            stats = device.memory_stats()
            result = call()
            if (highest := device.memory_stats()["peak_bytes_in_use"]) == stats["peak_bytes_in_use"]:
                return None
            peak = highest - stats["bytes_in_use"]
        else:
            hook = _peak_hook(self._cupy)
            with hook:
                result = call()
            peak = hook.peak
        self.synchronize()
        returned = result if isinstance(result, tuple) else (result,)
        return max(0.0, float(peak - sum(array.nbytes for array in returned if array is not None)) / MIB)

    def release(self) -> None:
        """Give memory that no array holds any more back to the GPU, for other libraries to take."""
        if "cupyx.scipy.fft" in sys.modules:
            self._cupy.fft.config.get_plan_cache().clear()  # plans hold workspace
        self._cupy.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def host_ms(self, call: Call) -> float:
        """Return the time that Python spends in a call, in milliseconds; the GPU works meanwhile, unawaited."""
        times = []
        for _ in range(50):
            self.synchronize()
            started = time.perf_counter()
            for _ in range(100):
                call()
            times.append((time.perf_counter() - started) * 10)
        self.synchronize()
        return statistics.median(times)

    def _burst(self, call: Call, repeats: int) -> list[float]:
        event = self._cupy.cuda.Event
        while len(self._events) < repeats:
            self._events.append((event(), event()))
        events = self._events[:repeats]
        for start, end in events:
            self.flush()
            start.record(self._stream)
            call()
            end.record(self._stream)
        self.synchronize()
        return [float(self._cupy.cuda.get_elapsed_time(start, end)) for start, end in events]


def _peak_hook(cupy: Any) -> Any:
    """Return a memory hook with an attribute ``peak``: the most bytes taken from CuPy's pool at a time."""

    class PeakHook(cupy.cuda.MemoryHook):  # type: ignore[misc]
        name = "fftconv peak memory"

        def __init__(self) -> None:
            self.used = self.peak = 0

        def malloc_postprocess(self, **facts: Any) -> None:
            self.used += facts["mem_size"]
            self.peak = max(self.peak, self.used)

        def free_postprocess(self, **facts: Any) -> None:
            self.used -= facts["mem_size"]

    return PeakHook()
