"""``fftconv verify`` on depthwise convolutions: each check sees the fault that it is there for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from depthwise_cases import NAMES, PADDINGS, Loops, case, random

import fftconv_cupy
from fftconv_cupy import DepthwiseGradients
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks import case_sets, depthwise, verification
from fftconv_cupy.benchmarks.depthwise import DepthwiseCase, DepthwiseJob
from fftconv_cupy.benchmarks.places import CPU, Place
from fftconv_cupy.depthwise_reference import DepthwiseReference
from fftconv_cupy.problem import CPU_DTYPES, DTYPES

CASE = DepthwiseCase("BLH", "float16", 4, channels=5, activation="silu", extra="state")
CHECKS = (depthwise.outputs, depthwise.gradients, depthwise.repeats, depthwise.confinement, depthwise.update)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("extra", [*PADDINGS, "state", "seq_idx"], ids=str)
def test_the_reference_is_the_sum_tap_by_tap(rng, extra, activation, layout):
    padding = extra if extra in PADDINGS else "causal"
    for sizes in ((2, 3, 11, 4), (1, 2, 5, 1), (2, 1, 3, 4)):
        flags = {"with_state": extra == "state", "with_seq_idx": extra == "seq_idx"}
        arrays = case(rng, sizes, layout=layout, **flags)
        if padding in (0, 1) and sizes[2] < sizes[3]:
            continue
        options = {"padding": padding, "activation": activation, "layout": layout}
        loops, reference = Loops(arrays, **options), DepthwiseReference(**arrays, **options)
        np.testing.assert_allclose(reference.outputs(), loops.outputs(), rtol=1e-12, atol=1e-12)
        dy = random(rng, loops.outputs().shape, "float32")
        d_final = None
        if extra == "state":
            assert np.array_equal(reference.final_state(), loops.final_state())
            d_final = random(rng, loops.final_state().shape, "float32")
        found, wanted = reference.gradients(dy, d_final), loops.gradients(dy, d_final)
        for name in NAMES if extra == "state" else NAMES[:3]:
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dtype", CPU_DTYPES)
def test_right_results_pass(check, dtype):
    for changes in ({}, {"layout": "BHL", "placing": "gapped"}, {"extra": "", "padding": "same", "placing": "strided"}):
        tried = replace(CASE, dtype=dtype, **changes)
        if check is depthwise.update:
            tried = replace(tried, extra="", padding="causal")
        finding = check(tried, Place(CPU))
        assert finding.ok, finding


@pytest.fixture
def spoil(monkeypatch):
    """Return a function that has the result of a public function changed before it is returned."""

    def plant(name, change):
        right = getattr(fftconv_cupy, name)

        def function(*args, **options):
            result = right(*args, **options)
            return change(result)

        monkeypatch.setattr(fftconv_cupy, name, function)

    return plant


def test_outputs_sees_a_wrong_point_and_a_wrong_state(spoil):
    def shift(result):
        y, state = result
        return y, np.roll(state, 1, axis=-1)

    spoil("depthwise_conv1d", shift)
    assert "final state" in depthwise.outputs(CASE, Place(CPU)).detail
    spoil("depthwise_conv1d", lambda result: (np.roll(result[0], 1, axis=1), np.roll(result[1], -1, axis=-1)))
    finding = depthwise.outputs(CASE, Place(CPU))
    assert not finding.ok
    assert "error" in finding.detail


@pytest.mark.parametrize("name", NAMES)
def test_gradients_sees_a_wrong_one_and_says_which(spoil, name):
    def scale(grads):
        return grads._replace(**{name: (getattr(grads, name) * 1.01).astype(getattr(grads, name).dtype)})

    spoil("depthwise_conv1d_vjp", scale)
    finding = depthwise.gradients(CASE, Place(CPU))
    assert not finding.ok
    assert f"gradient of {name}" in finding.detail


def test_gradients_sees_a_wrong_dtype(spoil):
    spoil("depthwise_conv1d_vjp", lambda grads: grads._replace(x=grads.x.astype(np.float32)))
    assert "x: float32" in depthwise.gradients(CASE, Place(CPU)).detail


def test_repeats_sees_one_different_bit(spoil):
    calls = []

    def change(grads):
        calls.append(1)
        if len(calls) == 7:
            grads.weight[0, 0] = np.nextafter(grads.weight[0, 0], np.float32(9))
        return grads

    spoil("depthwise_conv1d_vjp", change)
    assert depthwise.repeats(CASE, Place(CPU)).error == 1


def test_confinement_sees_a_nan_in_another_row(spoil):
    plain = replace(CASE, extra="")

    def leak(y):
        y[..., 1] += 0 * y[..., 0]
        return y

    spoil("depthwise_conv1d", leak)
    assert not depthwise.confinement(plain, Place(CPU)).ok


def test_confinement_sees_a_nan_in_the_taps_of_another_channel(spoil):
    def leak(grads):
        grads.weight[1] += 0 * grads.weight[0]
        return DepthwiseGradients(*grads)

    spoil("depthwise_conv1d_vjp", leak)
    assert not depthwise.confinement(replace(CASE, extra=""), Place(CPU)).ok


def test_update_sees_an_output_of_other_steps(spoil):
    spoil("depthwise_conv1d_update", lambda y: np.roll(y, 1, axis=0))
    assert not depthwise.update(replace(CASE, extra=""), Place(CPU)).ok


def test_update_sees_a_state_that_is_not_written(monkeypatch):
    right = fftconv_cupy.depthwise_conv1d_update

    def forget(x, state, *args, **options):
        return right(x, state.copy(), *args, **options)

    monkeypatch.setattr(fftconv_cupy, "depthwise_conv1d_update", forget)
    assert "state does not hold" in depthwise.update(replace(CASE, extra="", width=1), Place(CPU)).detail


def test_an_exception_is_a_finding(monkeypatch):
    def raises(*_, **__):
        raise RuntimeError("launch failed")

    monkeypatch.setattr(fftconv_cupy, "depthwise_conv1d", raises)
    finding = DepthwiseJob(depthwise.outputs, CASE).run(Place(CPU))
    assert (finding.ok, finding.detail, finding.label) == (False, "RuntimeError: launch failed", CASE.label)


def test_every_width_is_checked_in_each_layout_and_every_dtype_is_drawn():
    for level in case_sets.LEVELS:
        jobs = [job for job in depthwise.jobs_for(level, DTYPES) if job.check is depthwise.gradients]
        assert {(job.case.width, job.case.layout) for job in jobs} >= {
            (width, layout) for width in depthwise.WIDTHS for layout in ("BHL", "BLH")
        }
        assert {job.case.dtype for job in jobs} == set(DTYPES)
        assert {job.case.extra for job in jobs} == {"", "state", "seq_idx"}
        assert {job.case.activation for job in jobs} == {None, "silu"}
        assert len({job.case.label for job in jobs}) == len(jobs)
    assert jobs == [job for job in depthwise.jobs_for("full", DTYPES) if job.check is depthwise.gradients]


def test_the_kernels_of_its_cases_are_compiled_for_an_architecture():
    jobs = [
        job
        for job in verification.jobs_for("quick", DTYPES, Place(CPU), ARCHS["sm_75"])
        if "depthwise" in job.case.label
    ]
    specs = verification.specs_for(jobs, "sm_75")
    assert {spec.entry for spec in specs} >= {"depthwise_fwd", "depthwise_tile", "depthwise_update", "depthwise_state"}
    assert len(set(specs)) == len(specs)


def test_the_checks_pass_on_the_kernels_themselves():
    pytest.importorskip("cupy")
    from kernel_runs import host_gpu
    from test_verify_kernels import HostBackedGpu

    tried = replace(CASE, width=3, seqlen=20, placing="strided")
    with host_gpu("sm_90"):
        for check in CHECKS:
            changes = {} if check in (depthwise.outputs, depthwise.gradients) else {"extra": ""}
            finding = check(replace(tried, **changes), HostBackedGpu(0))
            assert finding.ok, finding
            assert finding.place == "cuda:0"
