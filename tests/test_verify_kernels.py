"""The checks of ``fftconv verify`` on the kernels themselves, run on the CPU: right ones pass, a wrong one is named."""

from __future__ import annotations

import pytest

pytest.importorskip("cupy", reason="CuPy holds the arrays of these tests; pip install 'fftconv-cupy[cuda12]'")

from host_runtime.cupy_host import host_backed_gpu, to_cupy, to_numpy
from host_runtime.harness import require_compiler

from fftconv_cupy import launch
from fftconv_cupy.benchmarks import checks
from fftconv_cupy.benchmarks.places import Place
from fftconv_cupy.benchmarks.problems import Case


class HostBackedGpu(Place):
    """A GPU whose memory is the host's, on which the kernels run on the CPU."""

    def upload(self, host):
        return to_cupy(host)

    def download(self, array):
        return to_numpy(array)


ON_KERNELS = (
    Case("causal", "float16", 97, 200, batch=3, channels=2, in_gate=True, layout="strided"),
    Case("circular", "float32", 128, 128, batch=3, channels=2, prepared=True, layout="transposed", scaled=True),
)


@pytest.mark.parametrize("case", ON_KERNELS, ids=lambda case: case.mode)
def test_the_kernels_pass_and_a_wrong_twiddle_fails(monkeypatch, case):
    require_compiler()
    with host_backed_gpu():
        assert checks.accuracy(case, HostBackedGpu(0)).ok
    right = launch.twiddle_table

    def twiddle_table(*arguments, **options):
        table = right(*arguments, **options).copy()
        assert table[7] != 0
        table[7] *= -1  # one twiddle is conjugated
        return table

    monkeypatch.setattr(launch, "twiddle_table", twiddle_table)
    with host_backed_gpu():
        finding = checks.accuracy(case, HostBackedGpu(0))
    assert not finding.ok
    assert finding.place == "cuda:0"
    assert finding.label == case.label
    assert finding.label.startswith(f"{case.mode} {case.dtype} N=")
