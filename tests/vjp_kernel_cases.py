"""Cases for the kernels of gradients on the host runtime, and running them through the API."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from host_runtime.cupy_host import to_cupy, to_numpy
from host_runtime.harness import ORDERS
from kernel_runs import Placed, describe, host_gpu
from vjp_cases import agreement

from fftconv_cupy import Gradients, chunks, fftconv_vjp, launch_vjp
from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case, Inputs, gradients_of, make_inputs, make_output_gradient
from fftconv_cupy.blocks import BLOCK_CONFIGS, COMPLEX_BYTES, EXTRAS
from fftconv_cupy.plan import block_config, max_points
from fftconv_cupy.problem import DTYPES, MODES, Problem
from fftconv_cupy.vjp_plan import VjpPlan

KINDS = ("real", "complex")
ACCESSES = ("whole", "tail", "scalar")
# Wanted names by what the kernel computes: input side, output side, sums.
WANTED = (None, ("u", "k"), ("u",), ("k",), ("u", "out_gate"), ("in_gate", "skip"), ("out_gate", "k"), ("out_gate",))
LAYOUTS = ("packed", "batch-strided", "transposed", "even", "odd")
_GATES = {
    "none": ((False, False, False),),
    "gates": ((True, True, False),),
    "any": ((True, False, True), (False, True, False), (True, True, True), (False, False, True)),
}
_ROWS = ((1, 1), (2, 3), (5, 2), (9, 1), (37, 2), (3, 7))
_TESTED_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120")


@dataclass(frozen=True, slots=True)
class VjpCase:
    """A problem, the gradients asked for, and the circumstances.

    Attributes:
        case: the convolution.
        wrt: names of the gradients; None means all.
        arch: of the GPU that is played.
        has_groups: the workspace limit makes groups of two channels.
    """

    case: Case
    wrt: tuple[str, ...] | None = None
    arch: str = "sm_90"
    has_groups: bool = False

    @property
    def label(self) -> str:
        groups = ", channel groups" if self.has_groups else ""
        return f"{self.case.label} wrt {self.wrt or 'all'} on {self.arch}{groups}"


@dataclass(frozen=True, slots=True)
class Flags:
    """What decides which kernels a case needs."""

    kind: str
    access: str
    extras: str
    wrt: tuple[str, ...] | None
    arch: str
    filter_dtype: str


def drawn(points: int, dtype: str, count: int) -> Iterator[VjpCase]:
    """Yield cases of a size row and dtype, the same ones in every run; they share one kernel, with flags in turn."""
    draw = random.Random(f"{points} {dtype}")
    row, column = list(BLOCK_CONFIGS).index(points), DTYPES.index(dtype)
    number = 3 * row + column
    kind = KINDS[(row + column) % 2]
    accesses = ACCESSES if kind == "real" else ACCESSES[1:]
    archs = [arch for arch in _TESTED_ARCHS if max_points(ARCHS[arch]) >= points]
    extras = EXTRAS[2 - (row + 2 * column) % 3]
    wanted = [wrt for wrt in WANTED if extras != "none" or {"u", "k"} & set(wrt or ("u",))]
    flags = Flags(
        kind,
        access=accesses[number % len(accesses)],
        extras=extras,
        wrt=wanted[number % len(wanted)] if column else None,
        arch=archs[number % len(archs)],
        filter_dtype=DTYPES[(row + column) % 3],
    )
    for _ in range(count):
        yield _draw_one(draw, points, dtype, flags)


def _draw_one(draw: random.Random, points: int, dtype: str, flags: Flags) -> VjpCase:
    is_real = flags.kind == "real"
    while True:
        low, high = (points // 2 + 1, points) if is_real else (points + 1, 2 * points - 2)
        seqlen = points if flags.access == "whole" else draw.randint(low, high)
        if flags.access == "tail":
            seqlen -= seqlen % 2
        in_gate, out_gate, skip = draw.choice(_GATES[flags.extras])
        given = {"u": True, "k": True, "in_gate": in_gate, "out_gate": out_gate, "skip": skip}
        asked = flags.wrt and tuple(name for name in flags.wrt if given[name])
        batch, channels = draw.choice(_ROWS if points <= 2048 else _ROWS[:4])
        case = Case(
            draw.choice(MODES),
            dtype,
            seqlen,
            draw.choice((1, 2, 3, 2 * (points // 8) + 1, points // 2, 2 * points + 3)),
            batch,
            channels,
            draw.choice((None, 2 * points, 4 * points)),
            filter_dtype=flags.filter_dtype,
            in_gate=in_gate,
            out_gate=out_gate,
            skip_dtype=draw.choice(("float32", dtype)) if skip else None,
            shared_filter=draw.random() < 0.3,
            layout="odd" if flags.access == "scalar" else draw.choice(LAYOUTS[:-1]),
        )
        if asked != () and _serves(case, flags.arch, points, is_real=is_real):
            return VjpCase(case, asked, flags.arch, draw.random() < 0.3)


def _serves(case: Case, arch: str, points: int, *, is_real: bool) -> bool:
    try:
        problem: Problem = case.problem
        _, config = block_config(problem, ARCHS[arch], can_pair=False)
    except ValueError:
        return False
    return config.points == points and (max(problem.seqlen, problem.out_len) <= points) == is_real


def make_dy(case: Case) -> np.ndarray:
    """Draw the gradient of the output of a case, to be changed at will."""
    return make_output_gradient(case).copy()


def run(
    vjp_case: VjpCase,
    inputs: Inputs | None = None,
    dy: np.ndarray | None = None,
    *,
    order: str = ORDERS[0],
    race_check: bool = False,
) -> tuple[Gradients, VjpPlan]:
    """Run a case through the API; return the gradients as NumPy arrays and the plan by which they were computed."""
    case = vjp_case.case
    inputs = make_inputs(case) if inputs is None else inputs
    dy = make_dy(case) if dy is None else dy
    points = block_config(case.problem, ARCHS[vjp_case.arch], can_pair=False)[1].points

    def place(host: np.ndarray | None, layout: str) -> Any:
        return None if host is None else Placed.of(host, layout).array

    with pytest.MonkeyPatch.context() as patch, host_gpu(vjp_case.arch, order=order, race_check=race_check):
        if vjp_case.has_groups:
            patch.setattr(chunks, "WORKSPACE_LIMIT", 6 * points * COMPLEX_BYTES)
        others = "odd" if case.layout == "odd" else "packed"
        grads = fftconv_vjp(
            place(dy, others),
            place(inputs.u, case.layout),
            to_cupy(inputs.k) if case.shared_filter else place(inputs.k[None], "channel-strided")[0],
            mode=case.mode,
            fft_size=case.fft_size,
            in_gate=place(inputs.in_gate, others),
            out_gate=place(inputs.out_gate, others),
            skip=None if inputs.skip is None else to_cupy(inputs.skip),
            wrt=vjp_case.wrt,
            precision=case.precision,
        )
        (launcher,) = launch_vjp._launchers.values()
        return Gradients(*(None if grad is None else to_numpy(grad).copy() for grad in grads)), launcher.plan


def judge(case: Case, grads: Gradients, grads64: Gradients) -> None:
    """Hold gradients against float64, each by its own bound for the precision that was asked for."""
    for name, grad, grad64 in zip(Gradients._fields, grads, grads64, strict=True):
        if grad is None:
            continue
        dtype = {"k": case.filter_dtype, "skip": case.skip_dtype or ""}.get(name, case.dtype)
        options = {"precision": case.precision or "highest", "is_one_wave": case.is_one_wave}
        found = agreement(name, grad, grad64, dtype, case.problem.fft_size, **options)
        assert found.ok, f"d{name}: {describe(found)}: {case.label}"


def check(vjp_case: VjpCase, *, orders: tuple[str, ...] = ORDERS, race_check: bool = False) -> VjpPlan:
    """Run a case in several orders: the same bits in each, within the bounds, and nothing that was not asked for."""
    case = vjp_case.case
    inputs, dy = make_inputs(case), make_dy(case)
    results = []
    for order in orders:
        print(vjp_case.label, order)  # seen where a test fails
        grads, made = run(vjp_case, inputs, dy, order=order, race_check=race_check)
        results.append(grads)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is two is None or one.tobytes() == two.tobytes(), "the order of the threads changes the result"
    for name, grad in zip(Gradients._fields, results[0], strict=True):
        is_given = name in ("u", "k") or getattr(inputs, name) is not None
        assert (grad is not None) == (is_given if vjp_case.wrt is None else name in vjp_case.wrt)
    judge(case, results[0], gradients_of(case, inputs, dy))
    return made


def case_of(points: int, dtype: str = "float32", **changes: Any) -> Case:
    """Return a case with everything on, whose rows fill a transform."""
    case = Case("causal", dtype, points, points // 2 + 1, 5, 2, in_gate=True, out_gate=True, skip_dtype="float32")
    return replace(case, **changes)
