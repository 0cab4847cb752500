"""The plans of smaller GPUs, made by their limits and run on the GPU at hand."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from remembering import nothing_remembered

from fftconv_cupy import fftconv, fftconv_vjp, prepare_filter
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.numeric import compare, compare_sum
from fftconv_cupy.plan import max_points
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["sm_75", "sm_80", "sm_86", "sm_120"])
def limits(request, monkeypatch):
    """Limits of a smaller architecture, with kernels compiled for this one."""
    import fftconv_cupy.gpu  # which imports all that plans for a device
    from fftconv_cupy.devices import device_limits

    played = replace(ARCHS[request.param], arch=device_limits(0).arch)
    for name, module in list(sys.modules.items()):
        if not name.startswith("fftconv_cupy."):
            continue
        if getattr(module, "device_limits", None) is device_limits and name != fftconv_cupy.devices.__name__:
            monkeypatch.setattr(module, "device_limits", lambda device: played)
    with nothing_remembered():
        yield played


def test_every_size_of_a_smaller_gpu_is_right(limits, rng):
    import cupy

    largest = max_points(limits)
    for mode, seqlen in ((mode, n) for n in (100, 1024, 4096, largest) for mode in ("causal", "circular")):
        u = rng.standard_normal((3, 2, seqlen)).astype(np.float16)
        k = rng.standard_normal((2, seqlen)).astype(np.float32)
        on_gpu, taps = cupy.asarray(u), cupy.asarray(k)
        expected = fftconv_reference(u, k, mode=mode)
        for filt in (taps, prepare_filter(taps, seqlen=seqlen, mode=mode)):
            agreement = compare(cupy.asnumpy(fftconv(on_gpu, filt, mode=mode)), expected, "float16")
            assert agreement.ok, (mode, seqlen, agreement)


def test_rows_that_outgrow_a_block_of_a_smaller_gpu_are_right(limits, rng):
    import cupy

    for seqlen in (max_points(limits) + 1, 2 * max_points(limits)):
        u, dy = (rng.standard_normal((3, 2, seqlen)).astype(np.float16) for _ in range(2))
        k = rng.standard_normal((2, seqlen)).astype(np.float32)
        on_gpu, taps = cupy.asarray(u), cupy.asarray(k)
        size = 2 * seqlen
        assert compare(cupy.asnumpy(fftconv(on_gpu, taps)), fftconv_reference(u, k), "float16", fft_size=size).ok
        grads, expected = fftconv_vjp(cupy.asarray(dy), on_gpu, taps), fftconv_vjp_reference(dy, u, k)
        assert compare(cupy.asnumpy(grads.u), expected.u, "float16", fft_size=size).ok
        assert compare_sum(cupy.asnumpy(grads.k), expected.k, "float32").ok
