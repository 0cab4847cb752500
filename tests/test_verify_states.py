"""``fftconv verify`` on states: right parts pass, and each check sees a state or a gradient that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

import fftconv_cupy
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks import case_sets, state_checks, verification
from fftconv_cupy.benchmarks.places import CPU, Place
from fftconv_cupy.benchmarks.problems import Case
from fftconv_cupy.problem import CPU_DTYPES, DTYPES
from fftconv_cupy.window_plan import WindowPlan
from fftconv_cupy.window_vjp_plan import WindowVjpPlan

SM_90 = ARCHS["sm_90"]
CASE = Case("causal", "float16", 1500, 33, in_gate=True, out_gate=True, skip_dtype="float32")


@pytest.mark.parametrize("check", state_checks.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("dtype", CPU_DTYPES)
def test_right_parts_pass(check, dtype):
    for changes in ({}, {"shared_filter": True, "layout": "strided"}, {"in_gate": False, "filter_len": 1000}):
        finding = check(replace(CASE, dtype=dtype, **changes), Place(CPU))
        assert finding.ok, finding


def test_a_state_that_is_late_by_a_point_is_seen(monkeypatch):
    right = fftconv_cupy.fftconv

    def fftconv(u, k, *, initial_state=None, **options):
        late = None if initial_state is None else initial_state[..., [0, *range(initial_state.shape[-1] - 1)]].copy()
        return right(u, k, initial_state=late, **options)

    monkeypatch.setattr(fftconv_cupy, "fftconv", fftconv)
    assert "output: error" in state_checks.states(CASE, Place(CPU)).detail


def test_a_wrong_final_state_is_seen(monkeypatch):
    right = fftconv_cupy.fftconv

    def fftconv(u, k, *, initial_state=None, **options):
        y, state = right(u, k, initial_state=initial_state, **options)
        return y, state if initial_state is None else state * 1.001

    monkeypatch.setattr(fftconv_cupy, "fftconv", fftconv)
    assert "final state: error" in state_checks.states(CASE, Place(CPU)).detail


def test_a_dropped_gradient_of_the_final_state_is_seen(monkeypatch):
    right = fftconv_cupy.fftconv_vjp

    def fftconv_vjp(dy, u, k, *, d_final_state=None, **options):
        return right(dy, u, k, **options)

    monkeypatch.setattr(fftconv_cupy, "fftconv_vjp", fftconv_vjp)
    assert "gradient of u: error" in state_checks.state_gradients(CASE, Place(CPU)).detail


def test_a_filter_gradient_that_misses_the_state_is_seen(monkeypatch):
    right = fftconv_cupy.fftconv_vjp

    def fftconv_vjp(dy, u, k, *, initial_state=None, **options):
        grads = right(dy, u, k, initial_state=initial_state, **options)
        return grads if initial_state is None else grads._replace(k=right(dy, u, k, **options).k)

    monkeypatch.setattr(fftconv_cupy, "fftconv_vjp", fftconv_vjp)
    assert "gradient of k: error" in state_checks.state_gradients(CASE, Place(CPU)).detail


@pytest.mark.parametrize("level", case_sets.LEVELS)
def test_streams_are_checked_by_kernels_of_windows(level):
    jobs = [job for job in verification.jobs_for(level, DTYPES, Place(CPU), SM_90) if job.check in state_checks.CHECKS]
    assert len(jobs) >= 6
    assert {type(job.plan(SM_90)) for job in jobs} == {WindowPlan, WindowVjpPlan}
    assert all(job.specs(SM_90) for job in jobs)
