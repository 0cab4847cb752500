"""Which kernels compute the gradients of rows that are cut into windows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import (
    FilterVariant,
    WindowsVariant,
    filter_backward_spec,
    filter_spec,
    reduce_spec,
    resident_blocks,
    stash_quads,
    windows_backward_spec,
)
from fftconv_cupy.chunks import channel_groups
from fftconv_cupy.plan import gradients_line, precision_line
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec
from fftconv_cupy.vjp_plan import VjpPlan, blocks_of, launches_of, stash_text, sum_text
from fftconv_cupy.window_plan import Cut, WindowPlan, alignment_of, checked_cut, extras_of_windows, make_window_plan


@dataclass(frozen=True, slots=True)
class WindowVjpPlan:
    """How the gradients of one call are computed window by window; ``print(plan)`` tells it in words.

    Attributes:
        problem: the convolution.
        wanted: which gradients.
        cut: how rows are cut for all gradients but that of the output gate: windows keep inputs. None as `backward`.
        backward: the kernels of these, as of a plan of whole rows; None where none of them is wanted.
        forward: what computes the gradient of the output gate: a convolution with dy in the place of the gate. None
            where it is not wanted. It is one of its own, for windows that keep inputs hold other points than those
            that keep outputs; beside other gradients it takes their groups of channels and their spectrum.
        workspace_bytes: device memory that a call takes beside its outputs.
        launches: kernels launched by a call.
    """

    problem: Problem
    wanted: Wanted
    cut: Cut | None
    backward: VjpPlan | None
    forward: WindowPlan | None
    workspace_bytes: int
    launches: int

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        made = [plan.kernels for plan in (self.backward, self.forward) if plan is not None]
        return tuple(dict.fromkeys(itertools.chain.from_iterable(made)))

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        limits = (self.backward or self.forward).limits  # type: ignore[union-attr]  # one of them is there
        lines = [
            gradients_line(self.problem, self.wanted, limits),
            precision_line(self.problem),
            f"  launches        {self.launches}",
            f"  workspace       {self.workspace_bytes} bytes",
        ]
        if self.backward is not None and self.cut is not None:
            made, config = self.backward, self.cut.config
            transforms = 1 + made.variant.has_sum + made.variant.has_in_gradient
            lines += [
                f"  windows         {self.cut.count(self.problem.seqlen)} a row, {transforms} transforms of "
                f"{config.points} complex points each, which yield {self.cut.step} of {2 * config.points} points",
                f"  block           {config.threads} threads, {config.rows} window(s), {made.shared_bytes} bytes of "
                "shared memory",
                f"  U and dY        one after the other in registers; {stash_text(made.variant, config)}",
                f"  sum of dk       {sum_text(made.variant, config)}",
                f"  grid            {made.chunks.blocks} persistent blocks, {made.chunks.count} chunks of "
                f"{made.chunks.chunk_steps} window(s) a slot",
            ]
        if self.forward is not None:
            given = "" if self.backward is None else " and the others' spectrum for a prepared filter"
            lines += [f"  dout_gate       as a convolution, with dy in the place of the gate{given}:"]
            lines += [f"  {line}" for line in str(self.forward).splitlines()[1:]]
        return "\n".join(lines)


def make_window_vjp_plan(
    problem: Problem,
    wanted: Wanted,
    limits: ArchLimits,
    *,
    is_vector: bool = True,
    is_prepared: bool = False,
    wants_state: bool = False,
) -> WindowVjpPlan:
    """Plan the gradients of a problem that is cut into windows for a GPU.

    Args:
        problem: the convolution; ``batch >= 1``.
        wanted: which gradients.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths, so two elements are accessed at a time.
        is_prepared: the filter's spectrum comes with the call.
        wants_state: the gradient of the initial state is wanted too.

    Raises:
        UnsupportedProblemError: see `window_plan.checked_cut`.
    """
    cut = backward = forward = None
    if wants_state or any(wanted._replace(out_gate=False)):
        cut = backward_cut(problem, limits)
        backward = make_backward_plan(
            problem, wanted, limits, is_vector=is_vector, is_prepared=is_prepared, wants_state=wants_state
        )
    if wanted.out_gate:
        is_given = is_prepared or backward is not None
        forward = make_window_plan(problem, limits, is_vector=is_vector, is_prepared=is_given)
        if backward is not None:
            forward = forward.in_groups(backward.channel_group)
    return WindowVjpPlan(
        problem=problem,
        wanted=wanted,
        cut=cut,
        backward=backward,
        forward=forward,
        workspace_bytes=sum(made.workspace_bytes for made in (backward, forward) if made),
        launches=sum(made.launches for made in (backward, forward) if made),
    )


def backward_cut(problem: Problem, limits: ArchLimits) -> Cut:
    """Return how the same windows keep inputs: what lay behind the first point kept lies ahead of the last one.

    Raises:
        UnsupportedProblemError: see `window_plan.checked_cut`.
    """
    cut = checked_cut(problem, limits)
    alignment = alignment_of(cut.config)
    lead = -(-cut.lags.negative // alignment) * alignment
    step = (2 * cut.config.points - lead - (cut.lags.positive - 1)) // alignment * alignment
    # Points before the first one of the row are inputs too where a state holds them.
    origin = -(-(problem.filter_len - 1) // alignment) * alignment if problem.initial_state else 0
    return replace(cut, lead=lead, step=step, origin=origin)


def make_backward_plan(
    problem: Problem,
    wanted: Wanted,
    limits: ArchLimits,
    *,
    is_vector: bool = True,
    is_prepared: bool = False,
    wants_state: bool = False,
) -> VjpPlan:
    """Plan the gradients but that of the output gate, of which there is one; see `make_window_vjp_plan`.

    Returns:
        The kernels, as of a plan of whole rows; they keep inputs as `backward_cut` says.
    """
    cut = backward_cut(problem, limits)
    config, lags = cut.config, cut.lags
    has_sum = wanted.k or wanted.skip
    extras = extras_of_windows(problem)
    variant = WindowsVariant(
        dtype=problem.dtype,
        is_complex=True,
        has_tail=True,
        is_vector=is_vector and cut.period % 2 == 0,
        extras=extras,
        # Without it the compiler spills thousands of bytes where it does not know what else there is.
        has_in_gradient=wanted.u or wanted.in_gate or wants_state or extras == "any",
        has_out_gradient=False,
        has_sum=has_sum,
        stash_quads=stash_quads(config, limits) if has_sum else 0,
    )
    jobs = problem.batch * cut.count(problem.seqlen)
    slots = min(config.rows, 1 << max(0, jobs - 1).bit_length())
    resident = resident_blocks(config, variant, limits)
    needs_spectrum = not is_prepared and (variant.has_in_gradient or wanted.out_gate)
    blocks = blocks_of(config, variant, slots, resident, needs_spectrum)
    group, chunks, has_reduce, workspace = channel_groups(problem, wanted, blocks, jobs)
    is_general = lags.is_wrapped or lags.positive > config.points
    return VjpPlan(
        problem=problem,
        wanted=wanted,
        limits=limits,
        config=config,
        backward_config=config,
        variant=variant,
        backward=windows_backward_spec(config, variant),
        filter=filter_spec(config, FilterVariant(problem.filter_dtype, is_paired=False, is_general=is_general)),
        filter_backward=filter_backward_spec(config, problem.filter_dtype),
        reduce=reduce_spec(config),
        lags=lags,
        is_prepared=is_prepared,
        needs_spectrum=needs_spectrum,
        shared_bytes=variant.shared_bytes(config),
        log2_batch_slots=slots.bit_length() - 1,
        resident_blocks=resident,
        channel_group=group,
        chunks=chunks,
        has_reduce=has_reduce,
        workspace=workspace,
        launches=launches_of(problem, wanted, has_sum, -(-problem.channels // group), has_reduce, needs_spectrum),
        reasons=(),
    )
