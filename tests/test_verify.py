"""``fftconv verify``: each check sees the fault that it is there for; what is printed, and the exit codes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import fftconv_cupy
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks import case_sets, checks, environment, gradient_checks, places, problems, verification
from fftconv_cupy.benchmarks.places import CPU, Place
from fftconv_cupy.benchmarks.problems import Case
from fftconv_cupy.benchmarks.ranges import RANGES
from fftconv_cupy.cli import main
from fftconv_cupy.cluster_plan import ClusterPlan
from fftconv_cupy.errors import CompileError, MissingDependencyError
from fftconv_cupy.long_plan import LongPlan
from fftconv_cupy.mma_blocks import MMA_CONFIGS
from fftconv_cupy.mma_plan import make_mma_plan
from fftconv_cupy.plan import LARGEST_FFT_SIZE, Plan
from fftconv_cupy.problem import CPU_DTYPES, DTYPES, MODES
from fftconv_cupy.window_plan import WindowPlan

REPOSITORY = Path(__file__).resolve().parent.parent
SM_90 = ARCHS["sm_90"]
CUDA = SimpleNamespace(runtime=SimpleNamespace(runtimeGetVersion=lambda: 12090))
CASE = Case("same", "float16", 2048, 301, batch=5, channels=2, in_gate=True)


@pytest.fixture
def no_gpu(monkeypatch):
    """Let the command see no GPU, also on a machine with one."""
    monkeypatch.setattr(environment, "gpu_count", lambda: (0, "none for this test"))


@pytest.fixture
def wrong(monkeypatch):
    """Return a function that makes `fftconv` wrong: what it is given gets the right output, to spoil it in place."""
    right = fftconv_cupy.fftconv

    def plant(spoil):
        def fftconv(u, k, **options):
            y = right(u, k, **options)
            spoil(y, u=u, **options)
            return y

        monkeypatch.setattr(fftconv_cupy, "fftconv", fftconv)

    return plant


def verify(*arguments):
    return CliRunner().invoke(main, ["verify", *arguments])


@pytest.mark.usefixtures("no_gpu")
def test_the_numpy_backend_passes_and_no_gpu_is_claimed(tmp_path):
    report = tmp_path / "report.json"
    done = verify("--quick", "--json", str(report))
    assert done.exit_code == 0, done.output
    closing = done.output.splitlines()[-1]
    assert closing.startswith("PASS: ")
    assert "no GPU was checked" in closing
    content = json.loads(report.read_text())
    assert content["passed"]
    assert content["gpus_checked"] == 0
    assert content["summary"] == closing
    outputs = {"accuracy", "repeats", "confinement"}
    gradients = {"gradients", "gradient repeats", "gradient confinement"}
    short = {"depthwise", *(f"depthwise {check}" for check in ("gradients", "repeats", "confinement", "update"))}
    streams = {"states", "state gradients"}
    assert {finding["check"] for finding in content["findings"]} == outputs | gradients | streams | short
    assert {finding["dtype"] for finding in content["findings"]} == set(CPU_DTYPES)
    assert {"version", "numpy", "python", "cache", "commit", "command"} <= set(content["environment"])


@pytest.mark.usefixtures("no_gpu")
def test_a_mismatch_exits_with_1_and_names_the_configuration(wrong):
    def spoil(y, *, mode, **_):
        if mode == "same" and y.dtype == np.float32:
            y *= 1.001

    wrong(spoil)
    done = verify("--quick")
    assert done.exit_code == 1
    failures = [line for line in done.output.splitlines() if line.startswith("FAILED ")]
    assert failures
    assert all(": same float32 N=" in line for line in failures)
    closing = done.output.splitlines()[-1]
    assert closing.startswith("FAIL: ")
    assert "first: same float32 N=" in closing


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_require_gpu_exits_with_3():
    done = verify("--require-gpu")
    assert done.exit_code == 3
    assert "none for this test" in done.output


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_not_there_is_a_usage_error():
    done = verify("--device", "1")
    assert done.exit_code == 2
    assert "cuda:1 is not there" in done.output


@pytest.mark.usefixtures("no_gpu")
def test_dtype_limits_what_is_checked(tmp_path):
    report = tmp_path / "report.json"
    assert verify("--quick", "--dtype", "bfloat16", "--json", str(report)).exit_code == 0
    assert {finding["dtype"] for finding in json.loads(report.read_text())["findings"]} == {"bfloat16"}


@pytest.mark.usefixtures("no_gpu")
def test_arch_compiles_and_a_kernel_that_does_not_compile_fails(monkeypatch):
    monkeypatch.setattr(environment, "software", lambda: {"nvrtc": "12.9"})
    compiled = []

    def precompile(spec, arch):
        compiled.append((spec, arch))
        if spec.entry == "fftconv_filter":
            raise CompileError("expected a ;")

    monkeypatch.setattr("fftconv_cupy.compile.precompile", precompile)
    done = verify("--quick", "--dtype", "float32", "--arch", "sm_75")
    assert done.exit_code == 1
    assert "fftconv_filter FFT size" in done.output
    assert "CompileError: expected a ;" in done.output
    assert {arch for _, arch in compiled} == {"sm_75"}
    assert len(compiled) == len(set(compiled)) > 10


@pytest.mark.usefixtures("no_gpu")
def test_arch_without_nvrtc_says_that_nothing_is_compiled(monkeypatch):
    def missing():
        raise MissingDependencyError("no NVRTC here")

    monkeypatch.setattr(environment, "import_nvrtc", missing)
    monkeypatch.setattr(environment, "import_cupy", lambda: SimpleNamespace(__version__="14.2.0", cuda=CUDA))
    done = verify("--quick", "--dtype", "float32", "--arch", "sm_75")
    assert done.exit_code == 0
    assert "Nothing is compiled for sm_75: no NVRTC here" in done.output


def test_an_unknown_arch_is_a_usage_error():
    done = verify("--arch", "sm_1")
    assert done.exit_code == 2
    assert "'sm_1' is not one of" in done.output


def test_an_error_of_the_library_is_one_line_and_no_traceback(monkeypatch):
    def gpu_count():
        raise MissingDependencyError("a broken CuPy")

    monkeypatch.setattr(environment, "gpu_count", gpu_count)
    done = verify()
    assert done.exit_code == 1
    assert done.output.strip() == "Error: MissingDependencyError: a broken CuPy"


def test_accuracy_sees_a_write_beside_the_output(wrong):
    def spoil(y, **_):
        y.base[..., 40] = 0  # the buffer around the output starts with a guard

    wrong(spoil)
    finding = checks.accuracy(CASE, Place(CPU))
    assert not finding.ok
    assert "1 elements beside the output overwritten" in finding.detail


def test_accuracy_sees_an_element_that_was_not_written(wrong):
    def spoil(y, **_):
        y[-1, -1, -1] = np.nan

    wrong(spoil)
    finding = checks.accuracy(CASE, Place(CPU))
    assert not finding.ok
    assert finding.error == np.inf


def test_repeats_sees_one_different_bit(wrong):
    calls = []

    def spoil(y, **_):
        calls.append(1)
        if len(calls) == 7:
            y[0, 0, 0] = np.nextafter(y[0, 0, 0], np.float16(9))

    wrong(spoil)
    finding = checks.repeats(CASE, Place(CPU))
    assert finding.error == 1
    assert not finding.ok


def test_confinement_sees_a_nan_in_another_row(wrong):
    def spoil(y, *, u, **_):
        y[0] += 0 * u[1].astype(np.float32).sum()

    assert checks.confinement(CASE, Place(CPU)).ok
    wrong(spoil)
    assert not checks.confinement(CASE, Place(CPU)).ok


def test_an_exception_is_a_finding(monkeypatch):
    def fftconv(*_, **__):
        raise RuntimeError("launch failed")

    monkeypatch.setattr(fftconv_cupy, "fftconv", fftconv)
    finding = verification.Job(checks.accuracy, CASE).run(Place(CPU))
    assert not finding.ok
    assert finding.detail == "RuntimeError: launch failed"
    assert finding.label == CASE.label


def test_every_size_is_checked_in_every_mode_and_the_full_level_has_every_gate():
    for level in case_sets.LEVELS:
        cases = case_sets.verify_cases(level, DTYPES, SM_90)
        assert len({case.label for case in cases}) == len(cases)
        found = {(case.mode, case.problem.fft_size) for case in cases}
        for log2 in range(1, 16):
            linear = {(mode, 1 << log2) for mode in MODES if mode != "circular"}
            assert linear <= found
            assert log2 == 15 or ("circular", 1 << log2) in found
        ways = {type(problems.planned(case, SM_90)) for case in cases}
        assert ways == {Plan, WindowPlan, ClusterPlan} | (set() if level == "quick" else {LongPlan})
        assert {case.dtype for case in cases} == set(DTYPES)
        assert {case.layout for case in cases} == set(problems.LAYOUTS)
    gates = {(c.problem.fft_size, c.mode, c.dtype, c.in_gate, c.out_gate, bool(c.skip_dtype)) for c in cases}
    assert len({gate[3:] for gate in gates if gate[:3] == (4096, "causal", "float16")}) == 6


def test_every_size_of_tensor_cores_is_checked():
    for level in case_sets.LEVELS:
        cases = case_sets.verify_cases(level, DTYPES, SM_90, ["medium"])
        plans = [make_mma_plan(case.problem, SM_90) for case in cases]
        assert {made.tensor.points for made in plans} == set(MMA_CONFIGS)
        assert {case.range for case in cases} == {None, *RANGES}
        assert {case.dtype for case in cases} == {"float16", "bfloat16"}
    for nothing in ((["float32"], SM_90, "medium"), (DTYPES, ARCHS["sm_75"], "medium"), (DTYPES, SM_90, "high")):
        assert not case_sets.verify_cases("full", *nothing[:2], [nothing[2]])
    checked = {job.check for job in verification.jobs_for("quick", DTYPES, Place(CPU), SM_90, ["medium"])}
    assert checked == {checks.accuracy, checks.repeats, checks.confinement, *gradient_checks.CHECKS}


@pytest.mark.usefixtures("no_gpu")
def test_precision_limits_what_is_checked(tmp_path):
    report = tmp_path / "report.json"
    assert verify("--quick", "--precision", "medium", "--dtype", "bfloat16", "--json", str(report)).exit_code == 0
    assert {finding["precision"] for finding in json.loads(report.read_text())["findings"]} == {"medium"}


@pytest.mark.parametrize("name", RANGES)
def test_inputs_of_each_range_and_their_outputs_are_in_range(name):
    for dtype, seqlen in itertools.product(RANGES[name].dtypes, (256, 1024, 16384)):
        case = Case("causal", dtype, seqlen, seqlen, 4, 2, range=name)
        inputs = problems.make_inputs(case)
        y = problems.reference_of(case, inputs).astype(inputs.u.dtype).astype(np.float32)
        for array in (inputs.u.astype(np.float32), inputs.k, y):
            assert np.isfinite(array).all()
            assert (array != 0).mean() > 0.9


def test_cases_keep_to_the_limits_of_the_gpu():
    small = case_sets.verify_cases("full", DTYPES, ARCHS["sm_75"])
    in_a_block = [case for case in small if isinstance(problems.planned(case, ARCHS["sm_75"]), Plan)]
    assert max(case.problem.fft_size for case in in_a_block if case.mode != "circular") == 8192
    assert max(case.seqlen for case in in_a_block if case.mode == "circular") == 4096
    assert max(case.problem.fft_size for case in small) == LARGEST_FFT_SIZE


def test_cases_and_inputs_are_the_same_in_every_run():
    assert case_sets.verify_cases("quick", DTYPES, SM_90) == case_sets.verify_cases("quick", DTYPES, SM_90)
    first, second = problems.make_inputs(CASE), problems.make_inputs(CASE)
    assert first.u.tobytes() == second.u.tobytes()
    assert first.k.tobytes() == second.k.tobytes()


@pytest.mark.parametrize("layout", problems.LAYOUTS)
@pytest.mark.parametrize("dtype", CPU_DTYPES)
def test_layouts_hold_the_same_numbers(rng, layout, dtype):
    host = problems.make_inputs(Case("causal", dtype, 7, 7, in_gate=True, layout=layout)).in_gate
    array = Place(CPU).lay_out(host, layout)
    np.testing.assert_array_equal(array.astype(np.float64), host.astype(np.float64))
    packed = (21 * array.itemsize, 7 * array.itemsize, array.itemsize)
    assert (array.strides == packed) == (layout == "packed")


def test_guards_count_what_is_overwritten():
    guarded = Place(CPU).guarded((2, 3, 5), "bfloat16", "strided")
    guarded.out[:] = 1
    y, overwritten = guarded.read()
    assert overwritten == 0
    np.testing.assert_array_equal(y.astype(np.float32), 1)
    guarded.buffer[guarded.first + 5] = 0  # the gap after the first row
    guarded.buffer[0] = 0
    assert guarded.read()[1] == 2
    assert places.CPU == -1


def scratch_copy(folder, file, right, planted):
    """Assemble the package in a folder with one line of it changed, and verify with that copy."""
    package = folder / "fftconv_cupy"
    shutil.copytree(REPOSITORY / "fftconv_cupy", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernels", "cli", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(REPOSITORY / name, package / name, ignore=ignored)
    path = package / file
    text = path.read_text()
    assert text.count(right) == 1, f"{file} no longer has exactly one {right!r}"
    path.write_text(text.replace(right, planted))
    return subprocess.run(
        [sys.executable, "-m", "fftconv_cupy", "verify", "--quick", "--dtype", "float32"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(bool(environment.gpu_count()[0]), reason="with a GPU the NumPy backend is not what is verified")
@pytest.mark.parametrize(("check", "line"), [("accuracy", "return y["), ("gradients", "if first == 0:")])
def test_a_fault_planted_in_the_numpy_backend_is_named(tmp_path, check, line):
    done = scratch_copy(
        tmp_path,
        "numpy_backend.py",
        f'(problem.filter_len - 1) // 2 if problem.mode == "same" else 0\n    {line}',
        f'problem.filter_len // 2 if problem.mode == "same" else 0\n    {line}',
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED {check} on cpu: same float32 N=" in done.stdout


@pytest.mark.gpu
def test_a_wrong_twiddle_in_the_kernels_is_named(tmp_path):
    done = scratch_copy(
        tmp_path, "kernels/dft.cuh", "cos_turn(kAngle - kTurn / 4))", "cos_turn(kAngle - kTurn / 4 + 1))"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED accuracy on cuda:0: causal float32 N=" in done.stdout


@pytest.mark.gpu
def test_the_gpu_passes():
    done = verify("--quick", "--require-gpu")
    assert done.exit_code == 0, done.output
    assert "no GPU" not in done.output.splitlines()[-1]
