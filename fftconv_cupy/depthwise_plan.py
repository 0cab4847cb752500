"""Which kernels compute a depthwise convolution or its gradients on an architecture, and why.

Few taps with nothing special go at the speed of memory through depthwise_fwd and depthwise_bwd; so do outputs of more
of them, of aligned 16-bit arrays, through depthwise_mma on tensor cores. All else goes through shared memory,
depthwise_tile and depthwise_taps.
"""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.depthwise_kernels import MAX_ROW_TAPS, MAX_SEQUENCE_TAPS, VECTOR_BYTES
from fftconv_cupy.depthwise_problem import DepthwiseProblem, DepthwiseWanted
from fftconv_cupy.depthwise_rows import fused_step, row_step
from fftconv_cupy.depthwise_steps import (
    Correlation,
    Step,
    has_vectors,
    matrix_step,
    reduce_step,
    state_step,
    suits_matrix,
    sums_step,
    tile_step,
    update_step,
)
from fftconv_cupy.source import KernelSpec

_ALIGNMENT = 256  # of each part of the workspace, in bytes


@dataclass(frozen=True, slots=True)
class DepthwisePlan:
    """The launches of a call, in their order; ``print(plan)`` tells them in words.

    Attributes:
        problem: the convolution.
        limits: of the architecture.
        steps: the launches.
        dz_bytes: of workspace for the gradient before the activation, in float32.
        sums_bytes: of workspace for partial sums.
        reasons: why it is so, a sentence each.
    """

    problem: DepthwiseProblem
    limits: ArchLimits
    steps: tuple[Step, ...]
    dz_bytes: int = 0
    sums_bytes: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        return tuple((step.spec, step.shared_bytes) for step in self.steps)

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a call takes beside its outputs."""
        return self.dz_bytes + self.sums_bytes

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        p = self.problem
        shape = (p.batch, p.channels, p.seqlen) if p.layout == "BHL" else (p.batch, p.seqlen, p.channels)
        lines = [
            f"depthwise_conv1d {p.layout}: x {shape} {p.dtype}, {p.width} taps, {p.pad} points before the first, "
            f"{p.out_len} outputs, on {self.limits.arch}"
        ]
        for step in self.steps:
            blocks = step.grid[0] * step.grid[1] * step.grid[2]
            lines.append(
                f"  {step.role:<15} {step.spec.entry}, {blocks} blocks of {step.threads} threads, "
                f"{step.shared_bytes} bytes of shared memory each"
            )
        lines.append(f"  workspace       {self.workspace_bytes} bytes")
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])


def make_depthwise_plan(
    problem: DepthwiseProblem, limits: ArchLimits, *, alignment: int = VECTOR_BYTES
) -> DepthwisePlan:
    """Plan the outputs of a problem, and its final state.

    Args:
        problem: the convolution; ``batch >= 1``.
        limits: of the GPU.
        alignment: bytes at multiples of which all rows of all arrays lie, up to 16: along the axis of unit stride so
            many are accessed at a time.
    """
    correlation = Correlation(
        role="output",
        in_dtype=problem.dtype,
        out_dtype=problem.dtype,
        in_len=problem.seqlen,
        out_begin=0,
        out_end=problem.out_len,
        pad=problem.pad,
        epilogue=problem.activation or "none",
    )
    has_states = problem.has_initial_state
    steps = [_correlation_step(problem, limits, correlation, has_states=has_states, alignment=alignment)]
    if problem.has_final_state:
        steps.append(state_step(problem))
    reasons = _reasons(problem, steps, has_states=has_states, alignment=alignment)
    return DepthwisePlan(problem, limits, tuple(steps), reasons=reasons)


def make_depthwise_vjp_plan(
    problem: DepthwiseProblem,
    wanted: DepthwiseWanted,
    limits: ArchLimits,
    *,
    alignment: int = VECTOR_BYTES,
    has_final_gradient: bool = False,
) -> DepthwisePlan:
    """Plan gradients of a problem.

    Args:
        problem: the convolution; ``batch >= 1``.
        wanted: which gradients, one at least.
        limits: of the GPU.
        alignment: as for outputs.
        has_final_gradient: a gradient of the final state is given.
    """
    has_input, has_sums = wanted.x or wanted.initial_state, wanted.weight or wanted.bias
    has_silu = problem.activation == "silu"
    has_states = problem.has_initial_state or has_final_gradient
    steps, chunks, has_dz = [], 0, False
    # The gradient of x alone is a convolution, but for one in which sequences have their ends.
    if _fits_registers(problem, has_states) and (has_sums or has_silu or problem.has_seq_idx):
        fused, chunks = fused_step(problem, limits, has_input=has_input, has_sums=has_sums, alignment=alignment)
        steps.append(fused)
    else:
        has_dz = has_silu
        if has_dz:
            slope = _slope(problem)
            steps.append(_correlation_step(problem, limits, slope, has_states=has_states, alignment=alignment))
        dz_dtype = "float32" if has_dz else problem.dtype
        if has_input:
            transposed = _transposed(problem, wanted, dz_dtype)
            steps.append(_correlation_step(problem, limits, transposed, has_states=has_states, alignment=alignment))
        if has_sums:
            sums, chunks = sums_step(problem, limits, dz_dtype, alignment)
            steps.append(sums)
    if has_sums:
        steps.append(reduce_step(problem, chunks))
    points = problem.batch * problem.channels * problem.out_len
    return DepthwisePlan(
        problem,
        limits,
        tuple(steps),
        dz_bytes=-(-4 * points // _ALIGNMENT) * _ALIGNMENT if has_dz else 0,
        sums_bytes=4 * chunks * (problem.width + 1) * problem.channels if has_sums else 0,
        reasons=_reasons(problem, steps, has_states=has_states, alignment=alignment),
    )


def make_depthwise_update_plan(problem: DepthwiseProblem, limits: ArchLimits) -> DepthwisePlan:
    """Plan a few steps of decoding; `problem` is that of the new points."""
    return DepthwisePlan(problem, limits, (update_step(problem),))


def _correlation_step(
    problem: DepthwiseProblem, limits: ArchLimits, correlation: Correlation, *, has_states: bool, alignment: int
) -> Step:
    """Return the launch of a correlation: in registers, on tensor cores, or in shared memory where neither can be.

    Args:
        problem: the convolution that it belongs to.
        limits: of the GPU.
        correlation: what is computed.
        has_states: with a state before its input, or gradients of the last one.
        alignment: bytes at multiples of which all rows lie, up to 16.
    """
    is_same = correlation.in_dtype == correlation.out_dtype and correlation.epilogue != "slope"
    if is_same and not has_states and correlation.out_begin == 0:
        if correlation.pad >= 0 and _fits_registers(problem, has_states):
            return row_step(problem, limits, correlation, alignment)
        if not problem.has_seq_idx and has_vectors(problem, alignment) and suits_matrix(problem, limits, correlation):
            return matrix_step(problem, limits, correlation, alignment)
    return tile_step(problem, correlation, alignment)


def _fits_registers(problem: DepthwiseProblem, has_states: bool) -> bool:
    """Return whether depthwise_fwd and depthwise_bwd take a problem."""
    most_taps = MAX_SEQUENCE_TAPS if problem.has_seq_idx else MAX_ROW_TAPS
    return not has_states and problem.pad < problem.width <= most_taps


def _slope(problem: DepthwiseProblem) -> Correlation:
    """Return what makes dz: dy times the slope of the activation, in float32."""
    return Correlation(
        role="slope",
        in_dtype=problem.dtype,
        out_dtype="float32",
        in_len=problem.seqlen,
        out_begin=0,
        out_end=problem.out_len,
        pad=problem.pad,
        epilogue="slope",
    )


def _transposed(problem: DepthwiseProblem, wanted: DepthwiseWanted, dz_dtype: str) -> Correlation:
    """Return what makes the gradient of x, and of the state before it, from dz."""
    return Correlation(
        role="input",
        in_dtype=dz_dtype,
        out_dtype=problem.dtype,
        in_len=problem.out_len,
        out_begin=1 - problem.width if wanted.initial_state else 0,
        out_end=problem.seqlen if wanted.x else 0,
        pad=problem.width - 1 - problem.pad,
        is_reversed=True,
    )


def _reasons(problem: DepthwiseProblem, steps: list[Step], *, has_states: bool, alignment: int) -> tuple[str, ...]:
    reasons = []
    if any(step.spec.entry == "depthwise_mma" for step in steps):
        reasons.append("many taps of a 16-bit array, where registers cannot hold them: tensor cores multiply them")
    if problem.width > MAX_ROW_TAPS:
        reasons.append(f"more than {MAX_ROW_TAPS} taps: points and sums do not fit in registers")
    if problem.pad >= problem.width:
        reasons.append("the padding is not shorter than the filter")
    is_tiled = any(step.spec.entry in ("depthwise_tile", "depthwise_taps") for step in steps)
    if has_states or (problem.has_seq_idx and is_tiled):
        reasons.append("states, and gradients of packed sequences, are met in shared memory only")
    if alignment < VECTOR_BYTES:
        how = "elements are accessed one by one" if is_tiled else f"{alignment} bytes are accessed at a time, or fewer"
        if problem.layout == "BHL":
            how = "vectors that begin before a row are shifted"
        reasons.append(f"an address, length or stride is no multiple of 16 bytes: {how}")
    return tuple(reasons)
