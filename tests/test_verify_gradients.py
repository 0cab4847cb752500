"""``fftconv verify`` on gradients: each check sees the fault that it is there for, and cases reach every kernel."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import fftconv_cupy
from fftconv_cupy import Gradients
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks import case_sets, environment, gradient_checks, problems, verification
from fftconv_cupy.benchmarks.places import CPU, Place
from fftconv_cupy.benchmarks.problems import Case
from fftconv_cupy.cli import main
from fftconv_cupy.mma_blocks import MMA_BACKWARD_CONFIGS
from fftconv_cupy.mma_vjp_plan import MmaVjpPlan
from fftconv_cupy.plan import transform_of
from fftconv_cupy.problem import CPU_DTYPES, DTYPES, MODES, PRECISIONS

SM_90 = ARCHS["sm_90"]
CASE = Case("same", "float16", 2048, 301, batch=5, channels=3, in_gate=True, out_gate=True, skip_dtype="float32")
NAMES = Gradients._fields


@pytest.fixture
def wrong(monkeypatch):
    """Return a function that makes `fftconv_vjp` wrong: what it is given gets the right gradients as a dictionary."""
    right = fftconv_cupy.fftconv_vjp

    def plant(spoil):
        def fftconv_vjp(dy, u, k, **options):
            found = right(dy, u, k, **options)
            grads = found._asdict()
            spoil(grads, dy=dy, u=u, **options)
            return type(found)(**grads)

        monkeypatch.setattr(fftconv_cupy, "fftconv_vjp", fftconv_vjp)

    return plant


def gradient_jobs(level, limits=SM_90, precisions=PRECISIONS):
    jobs = verification.jobs_for(level, DTYPES, Place(CPU), limits, precisions)
    return [job for job in jobs if job.is_of_gradients]


@pytest.mark.parametrize("level", case_sets.LEVELS)
def test_gradients_of_every_size_of_tensor_cores_are_checked(level):
    jobs = gradient_jobs(level, precisions=["medium"])
    plans = [job.plan(SM_90) for job in jobs]
    assert all(isinstance(made, MmaVjpPlan) for made in plans)
    assert {made.tensor.points for made in plans} == set(MMA_BACKWARD_CONFIGS)
    assert {job.check for job in jobs} == set(gradient_checks.CHECKS)
    assert {None, "6e4", "rows 1e6 apart", "a mean of 100 sigma"} < {job.case.range for job in jobs}
    assert not gradient_jobs(level, ARCHS["sm_75"], ["medium"])


@pytest.mark.parametrize("check", gradient_checks.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dtype", CPU_DTYPES)
def test_right_gradients_pass(check, dtype):
    case = replace(CASE, dtype=dtype)
    for changes in ({}, {"mode": "circular", "layout": "broadcast"}, {"filter_dtype": "bfloat16", "layout": "strided"}):
        finding = check(replace(case, **changes), Place(CPU))
        assert finding.ok, finding
        assert finding.label == replace(case, **changes).label


def test_an_empty_batch_a_shared_filter_and_a_prepared_one_pass():
    for changes in (
        {"batch": 0, "seqlen": 64},
        {"shared_filter": True},
        {"prepared": True},
        {"wrt": ("k",)},
        {"wrt": ("out_gate",)},
    ):
        finding = gradient_checks.gradients(replace(CASE, **changes), Place(CPU))
        assert finding.ok, finding


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_is_seen_in_each_gradient(wrong, name):
    def spoil(grads, **_):
        grads[name][-1] *= 1.5

    wrong(spoil)
    finding = gradient_checks.gradients(CASE, Place(CPU))
    assert not finding.ok
    assert finding.detail.startswith(f"gradient of {name}: error ")


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_finite_is_seen(wrong, name):
    def spoil(grads, **_):
        grads[name].flat[-1] = np.nan

    wrong(spoil)
    finding = gradient_checks.gradients(CASE, Place(CPU))
    assert not finding.ok
    assert finding.error == np.inf


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda u: None, "the gradient of u is missing"),
        (lambda u: u[:, :, :-1], r"the gradient of u is float16 \(5, 3, 2047\), u float16 \(5, 3, 2048\)"),
        (lambda u: u.astype(np.float32), "the gradient of u is float32"),
    ],
)
def test_a_gradient_of_another_shape_or_dtype_is_seen(wrong, spoiled, said):
    def spoil(grads, **_):
        grads["u"] = spoiled(grads["u"])

    wrong(spoil)
    finding = gradient_checks.gradients(CASE, Place(CPU))
    assert not finding.ok
    assert re.match(said, finding.detail)


def test_a_gradient_that_was_not_asked_for_is_seen(wrong):
    def spoil(grads, **_):
        grads["skip"] = np.zeros(3, np.float32)

    wrong(spoil)
    finding = gradient_checks.gradients(replace(CASE, wrt=("u", "k")), Place(CPU))
    assert finding.detail == "the gradient of skip is there unasked"


def test_a_gradient_that_is_no_array_of_the_place_is_a_finding(wrong):
    def spoil(grads, **_):
        grads["k"] = grads["k"].tolist()

    wrong(spoil)
    finding = verification.Job(gradient_checks.gradients, CASE).run(Place(CPU))
    assert (finding.check, finding.detail) == ("gradients", "TypeError: the gradient of k is of type list")


@pytest.mark.parametrize("name", NAMES)
def test_repeats_see_one_different_bit_of_each_gradient(wrong, name):
    calls = []

    def spoil(grads, **_):
        calls.append(1)
        if len(calls) == 7:
            grads[name].view(np.uint8).flat[0] ^= 1

    wrong(spoil)
    finding = gradient_checks.gradient_repeats(CASE, Place(CPU))
    assert finding.error == 1
    assert not finding.ok


@pytest.mark.parametrize("name", NAMES)
def test_confinement_sees_a_nan_in_another_row_or_sum(wrong, name):
    def spoil(grads, *, dy, **_):
        # What comes from the infinite value of the last channel; the clean row is the middle one of either.
        grads[name][1] += np.where(np.isfinite(dy).all(), 0, np.nan).astype(grads[name].dtype)

    assert gradient_checks.gradient_confinement(CASE, Place(CPU)).ok
    wrong(spoil)
    finding = gradient_checks.gradient_confinement(CASE, Place(CPU))
    assert not finding.ok
    assert finding.detail.startswith(f"a non-finite value reached another row: gradient of {name}")


CANCELLING = Case("circular", "float32", 513, 257, 3, 1, filter_dtype="float16", skip_dtype="float32", scaled=True)


@pytest.mark.parametrize(("share", "is_right"), [(3e-6, True), (3e-5, False), (1e-2, False)])
def test_a_sum_that_cancels_is_judged_by_its_terms(wrong, share, is_right):
    """The gradient of this skip is a hundredth of what random terms of that size add up to."""
    inputs, dy = problems.make_inputs(CANCELLING), problems.make_output_gradient(CANCELLING)
    terms = problems.terms_of(CANCELLING, inputs, dy)
    skip64 = problems.gradients_of(CANCELLING, inputs, dy).skip
    assert terms.skip == pytest.approx([np.linalg.norm(inputs.u.astype(np.float64) * dy)])
    assert abs(skip64) < 1e-2 * terms.skip

    def spoil(grads, **_):
        grads["skip"] += np.float32(share * terms.skip)

    wrong(spoil)
    finding = gradient_checks.gradients(CANCELLING, Place(CPU))
    assert finding.ok == is_right, finding


@pytest.mark.parametrize("changes", [{}, {"shared_filter": True}, {"mode": "circular"}, {"mode": "full"}])
def test_terms_are_what_gradients_of_filters_add_up(changes):
    case = replace(CASE, seqlen=37, filter_len=11, **changes)
    inputs, dy = problems.make_inputs(case), problems.make_output_gradient(case)
    squares = np.zeros((case.channels, case.filter_len))
    for b, h in np.ndindex(case.batch, case.channels):
        for i in range(case.seqlen):
            alone = np.zeros_like(inputs.u, dtype=np.float64)
            alone[b, h, i] = inputs.u[b, h, i]
            one = replace(case, shared_filter=False), replace(inputs, u=alone, k=np.zeros(squares.shape))
            squares += problems.gradients_of(*one, dy).k ** 2  # one point meets each tap once
    wanted = squares.sum(axis=0) if case.shared_filter else squares
    np.testing.assert_allclose(problems.terms_of(case, inputs, dy).k, wanted**0.5, rtol=1e-6)


def test_confinement_plants_values_that_are_not_finite(wrong):
    seen = []

    def spoil(grads, *, dy, u, **_):
        seen.extend((np.isnan(u).any(axis=2), np.isinf(dy).any(axis=2)))

    wrong(spoil)
    gradient_checks.gradient_confinement(CASE, Place(CPU))
    assert [np.argwhere(rows).tolist() for rows in seen] == [[[1, 0]], [[4, 2]]]


@pytest.mark.parametrize("level", case_sets.LEVELS)
def test_gradients_are_checked_at_every_transform_size_in_every_mode_and_dtype(level):
    cases = [job.case for job in gradient_jobs(level) if job.check is gradient_checks.gradients]
    assert len(cases) == len(set(cases)) > 30
    points = defaultdict(set)
    for way, count in (problems.gradient_transform(case, SM_90) for case in cases):
        points[way].add(count)
    assert points["block"] == {128, 256, 512, 1024, 1536, 2048, 4096, 8192, 16384}
    assert points["cluster"] == {32768, 65536}
    assert points["long"] >= (set() if level == "quick" else {131072})
    assert len(points["windows"]) >= 2
    assert {case.mode for case in cases} == set(MODES)
    assert {case.dtype for case in cases} == set(DTYPES)
    for name in NAMES:
        assert sum(getattr(case.wanted, name) for case in cases) >= 8
    assert any(case.wrt for case in cases)
    checks = {job.check for job in gradient_jobs(level)}
    assert checks == set(gradient_checks.CHECKS)


@pytest.mark.parametrize("level", case_sets.LEVELS)
def test_no_filter_is_prepared_for_pairs_of_rows(level):
    cases = [job.case for job in gradient_jobs(level)]
    assert any(case.prepared for case in cases)
    assert not any(case.prepared and transform_of(case.problem)[0] == "paired" for case in cases)
    assert any(case.wanted.k and transform_of(case.problem)[0] == "paired" for case in cases)


def test_cases_keep_to_the_limits_of_the_gpu():
    for arch in ("sm_75", "sm_86"):
        limits = ARCHS[arch]
        for job in gradient_jobs("full", limits):
            assert job.specs(limits)


def test_sums_are_of_order_one_so_that_no_float16_gradient_overflows():
    for job in gradient_jobs("full"):
        case = job.case
        if case.batch and case.seqlen <= 4097 and case.range is None:
            grads = problems.gradients_of(case, problems.make_inputs(case), problems.make_output_gradient(case))
            assert all(np.abs(grad).max() < 6e4 for grad in grads if grad is not None), case.label


def test_the_kernels_of_gradients_are_compiled_too():
    specs = verification.specs_for(gradient_jobs("quick"), "sm_75")
    assert len(specs) == len(set(specs))
    entries = {spec.entry for spec in specs} - {"fftconv_windows"}  # of the gradient of u alone, where one is drawn
    of_blocks = {"fftconv_bwd", "fftconv_filter", "fftconv_filter_bwd", "fftconv_reduce"}
    assert entries == of_blocks | {"fftconv_windows_bwd", "fftconv_long_bwd"}
    defines = [dict(spec.defines) for spec in specs if spec.entry == "fftconv_bwd"]
    assert {define["FFTCONV_IS_VECTOR"] for define in defines} == {"0", "1"}


def test_the_command_names_a_wrong_gradient(monkeypatch, wrong):
    monkeypatch.setattr(environment, "gpu_count", lambda: (0, "none for this test"))

    def spoil(grads, *, mode, **_):
        if mode == "full" and grads["k"] is not None:
            grads["k"] *= 1.01

    wrong(spoil)
    done = CliRunner().invoke(main, ["verify", "--quick", "--dtype", "float32"])
    assert done.exit_code == 1
    failures = [line for line in done.output.splitlines() if line.startswith("FAILED ")]
    assert failures
    assert all(" on cpu: full float32 N=" in line and "gradient of k: error" in line for line in failures)
    assert any(line.startswith("FAILED gradients on cpu") for line in failures)
