"""The plans of smaller GPUs, made by their limits and run on the GPU at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fftconv_cupy import fftconv, prepare_filter
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.errors import UnsupportedProblemError
from fftconv_cupy.numeric import compare
from fftconv_cupy.plan import max_points
from fftconv_cupy.reference import fftconv_reference

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["sm_75", "sm_80", "sm_86", "sm_120"])
def limits(request, monkeypatch):
    """Limits of a smaller architecture, with kernels compiled for this one."""
    from fftconv_cupy import launch

    here = launch.device_limits(0).arch
    played = replace(ARCHS[request.param], arch=here)
    monkeypatch.setattr(launch, "device_limits", lambda device: played)
    monkeypatch.setattr(launch, "_launchers", {})
    return played


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


def test_one_point_more_than_a_smaller_gpu_holds_is_refused(limits):
    import cupy

    seqlen = max_points(limits) + 1
    with pytest.raises(UnsupportedProblemError, match="Shorten"):
        fftconv(cupy.zeros((1, seqlen), "float16"), cupy.zeros((1, seqlen), "float32"))
