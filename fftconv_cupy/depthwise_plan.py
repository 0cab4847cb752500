"""Which kernels compute a depthwise convolution or its gradients on an architecture, and why.

Few taps, aligned and with nothing special, go at the speed of memory through depthwise_fwd and depthwise_bwd; so do
outputs of more of them, of 16-bit arrays, through depthwise_mma on tensor cores. All else goes through shared memory,
depthwise_tile and depthwise_taps.
"""

from __future__ import annotations

from dataclasses import dataclass

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.depthwise_kernels import MAX_BACKWARD_TAPS, MAX_FORWARD_TAPS
from fftconv_cupy.depthwise_problem import DepthwiseProblem, DepthwiseWanted
from fftconv_cupy.depthwise_steps import (
    Correlation,
    Step,
    correlation_step,
    fused_step,
    reduce_step,
    state_step,
    sums_step,
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


def make_depthwise_plan(problem: DepthwiseProblem, limits: ArchLimits, *, is_vector: bool = True) -> DepthwisePlan:
    """Plan the outputs of a problem, and its final state.

    Args:
        problem: the convolution; ``batch >= 1``.
        limits: of the GPU.
        is_vector: all arrays lie at multiples of 16 bytes along all strides, so 16 bytes are accessed at a time.
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
    is_plain = not problem.has_seq_idx and not problem.has_initial_state
    steps = [correlation_step(problem, limits, correlation, is_plain=is_plain, is_vector=is_vector)]
    if problem.has_final_state:
        steps.append(state_step(problem))
    reasons = _reasons(problem, MAX_FORWARD_TAPS, steps, is_plain=is_plain, is_vector=is_vector)
    return DepthwisePlan(problem, limits, tuple(steps), reasons=reasons)


def make_depthwise_vjp_plan(
    problem: DepthwiseProblem,
    wanted: DepthwiseWanted,
    limits: ArchLimits,
    *,
    is_vector: bool = True,
    has_final_gradient: bool = False,
) -> DepthwisePlan:
    """Plan gradients of a problem.

    Args:
        problem: the convolution; ``batch >= 1``.
        wanted: which gradients, one at least.
        limits: of the GPU.
        is_vector: as for outputs.
        has_final_gradient: a gradient of the final state is given.
    """
    has_input, has_sums = wanted.x or wanted.initial_state, wanted.weight or wanted.bias
    has_silu = problem.activation == "silu"
    is_plain = not (problem.has_seq_idx or problem.has_initial_state or has_final_gradient)
    steps, chunks, has_dz = [], 0, False
    if is_plain and is_vector and problem.pad < problem.width <= MAX_BACKWARD_TAPS and (has_sums or has_silu):
        fused, chunks = fused_step(problem, limits, has_input=has_input, has_sums=has_sums)
        steps.append(fused)
    else:
        has_dz = has_silu
        if has_dz:
            slope = _slope(problem)
            steps.append(correlation_step(problem, limits, slope, is_plain=is_plain, is_vector=is_vector))
        dz_dtype = "float32" if has_dz else problem.dtype
        if has_input:
            transposed = _transposed(problem, wanted, dz_dtype)
            steps.append(correlation_step(problem, limits, transposed, is_plain=is_plain, is_vector=is_vector))
        if has_sums:
            sums, chunks = sums_step(problem, limits, dz_dtype, is_vector=is_vector)
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
        reasons=_reasons(problem, MAX_BACKWARD_TAPS, steps, is_plain=is_plain, is_vector=is_vector),
    )


def make_depthwise_update_plan(problem: DepthwiseProblem, limits: ArchLimits) -> DepthwisePlan:
    """Plan a few steps of decoding; `problem` is that of the new points."""
    return DepthwisePlan(problem, limits, (update_step(problem),))


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


def _reasons(
    problem: DepthwiseProblem, most_taps: int, steps: list[Step], *, is_plain: bool, is_vector: bool
) -> tuple[str, ...]:
    reasons = []
    if any(step.spec.entry == "depthwise_mma" for step in steps):
        reasons.append("many taps of a 16-bit array, where registers cannot hold them: tensor cores multiply them")
    if problem.width > most_taps:
        reasons.append(f"more than {most_taps} taps: points and sums do not fit in registers")
    if problem.pad >= problem.width:
        reasons.append("the padding is not shorter than the filter")
    if not is_plain:
        reasons.append("sequence indices or states are met in shared memory only")
    if not is_vector:
        reasons.append("an address, length or stride is no multiple of 16 bytes: elements are accessed one by one")
    return tuple(reasons)
