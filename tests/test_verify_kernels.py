"""The checks of ``fftconv verify`` on the kernels themselves, run on the CPU: right ones pass, a wrong one is named."""

from __future__ import annotations

import pytest

pytest.importorskip("cupy", reason="CuPy holds the arrays of these tests; pip install 'fftconv-cupy[cuda12]'")

from host_runtime.cupy_host import host_backed_gpu, to_cupy, to_numpy
from host_runtime.harness import require_compiler

from fftconv_cupy import launch
from fftconv_cupy.benchmarks import checks, gradient_checks
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
    Case("same", "float16", 4000, 100, batch=3, channels=2, prepared=True, precision="medium", layout="strided"),
    Case("causal", "bfloat16", 4096, 4096, batch=4, channels=2, precision="medium", range="rows 1e6 apart"),
)


GRADIENTS_ON_KERNELS = (
    Case("full", "bfloat16", 97, 50, batch=3, channels=2, out_gate=True, skip_dtype="float32", layout="strided"),
    Case("circular", "float32", 128, 128, batch=3, channels=2, in_gate=True, shared_filter=True, layout="broadcast"),
    Case("causal", "float16", 100, 100, batch=3, channels=3, out_gate=True, wrt=("out_gate",)),
)


@pytest.mark.parametrize(
    ("check", "case"),
    [
        *((checks.accuracy, case) for case in ON_KERNELS),
        *((gradient_checks.gradients, case) for case in GRADIENTS_ON_KERNELS),
    ],
    ids=lambda value: value.mode if isinstance(value, Case) else value.__name__,
)
def test_the_kernels_pass_and_a_wrong_twiddle_fails(monkeypatch, check, case):
    require_compiler()
    with host_backed_gpu():
        assert check(case, HostBackedGpu(0)).ok
    right = launch.twiddle_table

    def twiddle_table(*arguments, **options):
        table = right(*arguments, **options).copy()
        assert table[7] != 0
        table[7] *= -1  # one twiddle is conjugated
        return table

    monkeypatch.setattr(launch, "twiddle_table", twiddle_table)
    with host_backed_gpu():
        finding = check(case, HostBackedGpu(0))
    assert not finding.ok
    assert finding.place == "cuda:0"
    assert finding.label == case.label
    assert finding.label.startswith(f"{case.mode} {case.dtype} N=")


@pytest.mark.parametrize("check", gradient_checks.CHECKS[1:], ids=lambda check: check.__name__)
def test_gradients_repeat_and_stay_in_their_rows_on_the_kernels(check):
    require_compiler()
    case = Case("same", "float32", 100, 31, batch=5, channels=3, in_gate=True, out_gate=True, skip_dtype="float32")
    with host_backed_gpu():
        finding = check(case, HostBackedGpu(0))
    assert finding.ok, finding
