"""A slice of every kernel on a GPU, small enough for compute-sanitizer; every result is checked too.

    compute-sanitizer --error-exitcode 1 --tool memcheck python tests/sanitizer_slice.py

and the same with ``--tool racecheck`` and ``--tool initcheck``. Memory comes straight from cudaMalloc, so each array
has its own bounds and starts uninitialised.
"""

from __future__ import annotations

import sys

import cupy
import numpy as np

from fftconv_cupy import fftconv, prepare_filter
from fftconv_cupy.numeric import relative_error
from fftconv_cupy.reference import fftconv_reference

BATCH, CHANNELS = 3, 2
# Rows that fill a transform (prefetched where that pays), and rows that end inside it at an odd address.
LENGTHS = (128, 255, 256, 509, 512, 1000, 1024, 2048, 3001, 4096, 8191, 8192, 16383, 16384)


def cases() -> list[tuple[str, int, int, str, bool]]:
    """Return (mode, seqlen, filter_len, dtype, with gates and skip)."""
    found = []
    for index, seqlen in enumerate(LENGTHS):
        for mode in ("causal", "circular"):
            found.append((mode, seqlen, seqlen, ("float16", "float32")[index % 2], index % 4 < 2))
        if seqlen <= 8192:  # more outputs than points of the transform
            found.append(("full", seqlen, seqlen // 3 + 1, "float16", index % 4 >= 2))
            found.append(("same", seqlen, seqlen + 5, "float32", False))
    return found


def main() -> int:
    """Run the slice; return the number of wrong results."""
    cupy.cuda.set_allocator(None)
    generator = np.random.default_rng(0)
    wrong = 0
    for mode, seqlen, filter_len, dtype, has_extras in cases():
        out_len = seqlen + filter_len - 1 if mode == "full" else seqlen
        u = generator.standard_normal((BATCH, CHANNELS, seqlen)).astype(dtype)
        if mode == "circular":
            u[0, 0] = 0  # a row without a norm: its pair is convolved row by row
        k = generator.standard_normal((CHANNELS, filter_len)).astype(np.float32)
        extras = {}
        if has_extras:
            extras = {
                "in_gate": generator.standard_normal(u.shape).astype(dtype),
                "out_gate": generator.standard_normal((BATCH, CHANNELS, out_len)).astype(dtype),
                "skip": generator.standard_normal(CHANNELS).astype(np.float32),
            }
        expected = fftconv_reference(u, k, mode=mode, **extras)
        on_gpu = {name: cupy.asarray(value) for name, value in extras.items()}
        filters = (cupy.asarray(k), prepare_filter(cupy.asarray(k), seqlen=seqlen, mode=mode))
        for filt in filters:
            y = cupy.asnumpy(fftconv(cupy.asarray(u), filt, mode=mode, **on_gpu))
            error = relative_error(y, expected)
            if not error < (1e-6 if dtype == "float32" else 5e-4):
                wrong += 1
                print(f"WRONG {mode} L={seqlen} K={filter_len} {dtype} extras={has_extras}: {error:.2e}")
    print(f"{2 * len(cases())} calls, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
