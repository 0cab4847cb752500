"""Problems to check: one record each, the inputs that belong to it, its float64 results, and its plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.benchmarks.ranges import RANGES
from fftconv_cupy.cluster_vjp_plan import ClusterVjpPlan
from fftconv_cupy.errors import UnsupportedProblemError
from fftconv_cupy.long_vjp_plan import LongVjpPlan
from fftconv_cupy.plans import AnyPlan, plan_call
from fftconv_cupy.problem import CPU_DTYPES, DTYPES, Gradients, Problem, Wanted, make_problem
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference
from fftconv_cupy.window_vjp_plan import WindowVjpPlan

Array = NDArray[np.generic]

LAYOUTS = ("packed", "strided", "transposed", "gapped", "broadcast")
"""How arrays lie in memory, see `fftconv_cupy.benchmarks.places`."""

_GPU_DTYPES = {**{dtype: dtype for dtype in DTYPES}, "float64": "float32"}
"""The CPU checks float64 in the sizes that a GPU has of float32."""


@dataclass(frozen=True, slots=True)
class Case:
    """One convolution, with everything that is needed to run it again.

    Attributes:
        mode: one of "causal", "full", "same", "circular".
        dtype: of u, the gates and the output.
        seqlen: L.
        filter_len: K.
        batch: B.
        channels: H.
        fft_size: as passed, None for the default.
        filter_dtype: of k.
        in_gate: with an input gate.
        out_gate: with an output gate.
        skip_dtype: dtype of the skip vector, None for none.
        shared_filter: k is (K,).
        prepared: the filter goes through `prepare_filter`.
        layout: one of `LAYOUTS`.
        scaled: the rows of u differ in scale by powers of two.
        precision: as passed.
        range: the name of a `fftconv_cupy.benchmarks.ranges.RANGES` for rows and filter, None for noise.
        wrt: the arguments whose gradients are asked for, where it is gradients that are checked; None for all.
    """

    mode: str
    dtype: str
    seqlen: int
    filter_len: int
    batch: int = 2
    channels: int = 3
    fft_size: int | None = None
    filter_dtype: str = "float32"
    in_gate: bool = False
    out_gate: bool = False
    skip_dtype: str | None = None
    shared_filter: bool = False
    prepared: bool = False
    layout: str = "packed"
    scaled: bool = False
    precision: str | None = "highest"
    range: str | None = None
    wrt: tuple[str, ...] | None = None

    @property
    def problem(self) -> Problem:
        """The validated problem."""
        return make_problem(
            self.mode,
            batch=self.batch,
            channels=self.channels,
            seqlen=self.seqlen,
            filter_len=self.filter_len,
            dtype=self.dtype,
            filter_dtype=self.filter_dtype,
            fft_size=self.fft_size,
            shared_filter=self.shared_filter,
            in_gate=self.in_gate,
            out_gate=self.out_gate,
            skip=self.skip_dtype is not None,
            precision=self.precision,
            dtypes=CPU_DTYPES,
        )

    @property
    def given(self) -> tuple[str, ...]:
        """The arguments that there are gradients of: a prepared filter has none."""
        there = Gradients(True, not self.prepared, self.in_gate, self.out_gate, self.skip_dtype is not None)
        return tuple(name for name, is_given in there._asdict().items() if is_given)

    @property
    def wanted(self) -> Wanted:
        """The gradients that are asked for."""
        names = self.given if self.wrt is None else self.wrt
        return Wanted(*(name in names for name in Wanted._fields))

    @property
    def is_one_wave(self) -> bool:
        """Whether nearly all of each row is one frequency or one point."""
        return self.range is not None and RANGES[self.range].is_one_wave

    @property
    def label(self) -> str:
        """The configuration on one line, as failures name it."""
        words = [f"{self.mode} {self.dtype} N={self.problem.fft_size} L={self.seqlen} K={self.filter_len}"]
        words.append(f"B={self.batch} H={self.channels} k={self.filter_dtype}")
        flags = {
            "in_gate": self.in_gate,
            "out_gate": self.out_gate,
            f"skip={self.skip_dtype}": self.skip_dtype is not None,
            "shared": self.shared_filter,
            "prepared": self.prepared,
            self.layout: self.layout != "packed",
            "scaled": self.scaled,
            f"precision={self.precision}": self.precision != "highest",
            f"range={self.range}": self.range is not None,
            f"wrt={','.join(self.wrt or ())}": self.wrt is not None,
        }
        return " ".join(words + [name for name, on in flags.items() if on])


@dataclass(frozen=True, slots=True)
class Inputs:
    """NumPy arrays of a case: u (B, H, L), k (H, K) or (K,), gates or None, skip (H,) or None."""

    u: Array
    k: Array
    in_gate: Array | None
    out_gate: Array | None
    skip: Array | None

    @property
    def named(self) -> dict[str, Any]:
        """The arrays by the names of the arguments that they are."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def make_inputs(case: Case) -> Inputs:
    """Draw the inputs of a case: the same ones in every run and on every machine.

    Taps are white with a sum of squares of 1, not decaying: each counts, and outputs are of the order of the inputs.
    """
    rng = _generator(case.label)
    problem = case.problem

    def draw(shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Array:
        values = rng.standard_normal(shape) * scale
        return values.astype(NUMPY_DTYPES[dtype])

    rows = (case.batch, case.channels, case.seqlen)
    u = draw(rows, case.dtype)
    if case.scaled:
        exponents = rng.integers(-6, 7, (case.batch, case.channels, 1))
        u = (u.astype(np.float64) * 2.0**exponents).astype(u.dtype)
    outputs = (case.batch, case.channels, problem.out_len)
    taps = (case.filter_len,) if case.shared_filter else (case.channels, case.filter_len)
    k = draw(taps, case.filter_dtype, case.filter_len**-0.5)
    if case.range is not None:
        made = RANGES[case.range]
        u = made.rows(u.astype(np.float64)).astype(u.dtype)
        k = made.taps(k.astype(np.float64)).astype(k.dtype)
    gate_rows = (1, *rows[1:]) if case.layout == "broadcast" else rows
    out_gate_rows = (1, *outputs[1:]) if case.layout == "broadcast" else outputs
    return Inputs(
        u=u,
        k=k,
        in_gate=np.broadcast_to(draw(gate_rows, case.dtype), rows) if case.in_gate else None,
        out_gate=np.broadcast_to(draw(out_gate_rows, case.dtype), outputs) if case.out_gate else None,
        skip=draw((case.channels,), case.skip_dtype) if case.skip_dtype else None,
    )


def make_output_gradient(case: Case) -> Array:
    """Draw the gradient of a case's output, (B, H, outputs): of a scale at which sums over a channel are of order 1."""
    shape = (case.batch, case.channels, case.problem.out_len)
    rows = (1, *shape[1:]) if case.layout == "broadcast" else shape
    values = _generator(f"dy of {case.label}").standard_normal(rows)
    if case.range is not None:
        values = RANGES[case.range].rows(values)
    values *= max(1, case.batch * case.seqlen) ** -0.5
    return np.broadcast_to(values.astype(NUMPY_DTYPES[case.dtype]), shape)


def reference_of(case: Case, inputs: Inputs) -> NDArray[np.float64]:
    """Return the float64 result of a case, (B, H, outputs)."""
    return fftconv_reference(**inputs.named, mode=case.mode, fft_size=case.fft_size)


def gradients_of(case: Case, inputs: Inputs, dy: Array) -> Gradients:
    """Return the float64 gradients that a case asks for, None for the rest."""
    grads = fftconv_vjp_reference(dy, **inputs.named, mode=case.mode, fft_size=case.fft_size)
    return Gradients(*(grad if is_wanted else None for grad, is_wanted in zip(grads, case.wanted, strict=True)))


def terms_of(case: Case, inputs: Inputs, dy: Array) -> Gradients:
    """Return what the float64 gradients of k and skip add up: of each sum, the root of its terms' squares.

    Both sums are of products of points of rows, so the gradients that squared rows have are sums of squares.
    """

    def square(row: Array) -> NDArray[np.float64]:
        return row.astype(np.float64) ** 2

    gates = {"in_gate": inputs.in_gate, "out_gate": inputs.out_gate}
    squared = {name: None if gate is None else square(gate) for name, gate in gates.items()}
    sums = fftconv_vjp_reference(
        square(dy), square(inputs.u), inputs.k, **squared, skip=inputs.skip, mode=case.mode, fft_size=case.fft_size
    )

    def root(found: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        return None if found is None else np.sqrt(np.maximum(found, 0.0))  # the reference transforms: it may err

    return Gradients(None, root(sums.k), None, None, root(sums.skip))


def planned(case: Case, limits: ArchLimits, wanted: Wanted | None = None, *, has_state: bool = False) -> AnyPlan | None:
    """Return how a GPU computes a case, or with `wanted` those gradients of it; None: it cannot.

    With `has_state` there is an initial state.
    """
    problem = case.problem
    problem = replace(
        problem,
        batch=max(1, problem.batch),  # of an empty batch nothing is launched
        dtype=_GPU_DTYPES[problem.dtype],
        filter_dtype=_GPU_DTYPES[problem.filter_dtype],
        initial_state=has_state,
    )
    is_contiguous = case.layout != "strided"
    try:
        return plan_call(problem, limits, wanted, is_prepared=case.prepared, is_contiguous=is_contiguous)
    except UnsupportedProblemError:
        return None


def gradient_transform(case: Case, limits: ArchLimits) -> tuple[str, int] | None:
    """Return how the GPU computes gradients of a case, and in how many complex points; None: it cannot.

    How is "block" (rows that fit one), "cluster" (rows that several share), "long" (rows that outgrow these) or
    "windows" (of rows).
    """
    plan = planned(case, limits, case.wanted)
    if plan is None:
        return None
    if isinstance(plan, WindowVjpPlan):
        return "windows", (plan.backward or plan.forward).config.points  # type: ignore[union-attr]  # one is there
    if isinstance(plan, ClusterVjpPlan):
        return "cluster", plan.config.points
    return "long" if isinstance(plan, LongVjpPlan) else "block", plan.config.points


def _generator(name: str) -> np.random.Generator:
    """Return a generator whose seed is a name."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
