"""How rows that the blocks of a cluster share are computed on an architecture, with which sizes, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import COMPLEX_BYTES, BlockConfig, ForwardVariant
from fftconv_cupy.cluster_blocks import cluster_spec, fitting_cluster_configs, shared_bytes
from fftconv_cupy.long_blocks import long_config
from fftconv_cupy.long_plan import LongPlan, make_long_plan
from fftconv_cupy.plan import check_sizes, extras_of, fits_block, precision_line, problem_line, transform_of
from fftconv_cupy.problem import Problem
from fftconv_cupy.source import KernelSpec

# The twiddle tables, made once, take up to 2 MiB of the 64 that a call may take above inputs and output.
SPECTRUM_LIMIT = 61 << 20
_MOST_TURNS = 8  # rows of a cluster: more save no time
_STARTING_TURNS = 0.1  # what it costs a cluster to start, in rows


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """How one call on rows that a cluster shares is computed; ``print(plan)`` tells it in words.

    Attributes:
        problem: what is computed.
        limits: of the architecture.
        config: the block configuration.
        kernel: the kernel.
        filter: how the filters of a group of channels are transformed, into the workspace.
        is_prepared: the spectrum comes with the call.
        turns: rows that a cluster takes one after the other.
        channel_group: channels whose spectrum is in the workspace at a time.
        reasons: why it is so, a sentence each.
    """

    problem: Problem
    limits: ArchLimits
    config: BlockConfig
    kernel: KernelSpec
    filter: LongPlan
    is_prepared: bool
    turns: int
    channel_group: int
    reasons: tuple[str, ...]

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        own = ((self.kernel, shared_bytes(self.config)),)
        return own if self.is_prepared else own + self.filter.kernels

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return -(-self.problem.channels // self.channel_group)

    @property
    def launches(self) -> int:
        """Kernels launched by a call; the filters' counters are set to zero before each of theirs."""
        filters = 0 if self.is_prepared else 1 if self.problem.shared_filter else self.groups
        return self.groups + filters

    @property
    def spectrum_bytes(self) -> int:
        """Bytes of the spectra in the workspace."""
        rows = 0 if self.is_prepared else 1 if self.problem.shared_filter else self.channel_group
        return rows * self.config.points * COMPLEX_BYTES

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a call takes beside its output."""
        return 0 if self.is_prepared else self.spectrum_bytes + self.filter.workspace_bytes

    def grid(self, channels: int) -> tuple[int, int, int]:
        """Return the blocks for so many channels."""
        clusters = -(-self.problem.batch * channels // self.turns)
        return clusters * self.config.cluster_blocks, 1, 1

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        config = self.config
        radices = " x ".join(str(1 << log2) for log2 in config.log2_radices)
        lines = [
            problem_line(self.problem, self.limits),
            f"  FFT size        {self.problem.fft_size} real points",
            precision_line(self.problem),
            f"  transform       {config.points} complex points = {radices}, linear",
            f"  passes          1 over global memory, {len(config.log2_radices)} in a cluster of "
            f"{config.cluster_blocks} blocks each way",
            f"  block           {config.threads} threads, {1 << config.log2_ept} points each, "
            f"{shared_bytes(config)} bytes of shared memory",
            f"  grid            {self.grid(self.channel_group)}, {self.turns} row(s) a cluster",
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes, {self.channel_group} channel(s) a group",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])


def cluster_config(problem: Problem, limits: ArchLimits) -> BlockConfig | None:
    """Return the configuration of a problem that clusters compute; None where a block does, or only L2 is enough.

    Its transform has as many points as that of `make_long_plan`, which makes the filter's spectrum.
    """
    if fits_block(problem, limits):
        return None
    points = long_config(transform_of(problem, can_pair=False)[1], limits).points
    return next((config for config in fitting_cluster_configs(limits) if config.points == points), None)


def make_cluster_plan(
    problem: Problem, limits: ArchLimits, *, is_vector: bool = True, is_prepared: bool = False
) -> ClusterPlan:
    """Plan a problem that has a `cluster_config`.

    Args:
        problem: what is computed; ``batch >= 1``.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths, so two elements are accessed at a time.
        is_prepared: the filter's spectrum comes with the call.

    Raises:
        UnsupportedProblemError: see `plan.check_sizes`.
        ValueError: the problem has no such configuration.
    """
    check_sizes(problem)
    config = cluster_config(problem, limits)
    if config is None:
        raise ValueError(f"no cluster computes {problem} on {limits.arch}: see cluster_config")
    is_whole = problem.seqlen == problem.out_len == config.points
    variant = ForwardVariant(
        dtype=problem.dtype,
        is_paired=False,
        is_complex=max(problem.seqlen, problem.out_len) > config.points,
        has_tail=not is_whole or not is_vector,
        is_vector=is_vector,
        extras=extras_of(problem),
        has_prefetch=False,
    )
    group = problem.channels
    if not is_prepared and not problem.shared_filter:
        groups = min(group, -(-group * config.points * COMPLEX_BYTES // SPECTRUM_LIMIT))
        group = -(-group // groups)
    filters = make_long_plan(filter_problem(problem, group), limits, is_vector=is_even(problem))
    return ClusterPlan(
        problem=problem,
        limits=limits,
        config=config,
        kernel=cluster_spec(config, variant, filters.config),
        filter=filters,
        is_prepared=is_prepared,
        turns=_turns(problem.batch * group, config, limits),
        channel_group=group,
        reasons=_reasons(problem, limits, config, variant, -(-problem.channels // group)),
    )


def _turns(rows: int, config: BlockConfig, limits: ArchLimits) -> int:
    """Return how many rows a cluster takes, so that the last of so many are done soonest."""
    resident = limits.at_a_time(config.min_blocks, config.cluster_blocks)

    def duration(turns: int) -> float:
        """Return the time of all rows, in that of a row."""
        clusters = -(-rows // turns)
        return -(-clusters // resident) * (turns + _STARTING_TURNS)

    return min(range(1, _MOST_TURNS + 1), key=duration)


def filter_problem(problem: Problem, channels: int) -> Problem:
    """Return the problem of transforming the filters of so many channels only, for `make_long_plan`."""
    return replace(problem, batch=0, channels=channels)


def is_even(problem: Problem) -> bool:
    """Return whether rows have even lengths: the filters' kernel is that of calls with contiguous arrays."""
    return problem.seqlen % 2 == problem.out_len % 2 == 0


def _reasons(
    problem: Problem, limits: ArchLimits, config: BlockConfig, variant: ForwardVariant, groups: int
) -> tuple[str, ...]:
    blocks = config.cluster_blocks
    reasons = [
        f"{config.points} points outgrow a block of {limits.arch}: {blocks} blocks of a cluster hold "
        f"{config.points // blocks} each, and exchange points through their shared memory"
    ]
    if problem.mode == "circular":
        reasons.append("a circular filter is wrapped by hand, one row a transform")
    if variant.is_complex:
        reasons.append("rows or outputs past the half of the ring: they are the imaginary part")
    if not variant.is_vector:
        reasons.append("an odd length, address or stride: elements are accessed one by one")
    if groups > 1:
        reasons.append(f"{groups} groups of channels keep the spectrum within {SPECTRUM_LIMIT >> 20} MiB")
    return tuple(reasons)
