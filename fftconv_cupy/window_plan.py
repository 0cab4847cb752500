"""Overlap-save: whether a row is cut into windows, into which, and which kernels convolve them.

A window is the 2M real points of one packed transform (kernels/windows.cuh). A filter spoils as many of them as its
taps reach, so windows pay where the filter is far shorter than the row: they cost the same a point however long the row
is, in one pass over memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NoReturn

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import (
    COMPLEX_BYTES,
    BlockConfig,
    FilterVariant,
    filter_spec,
    fitting_configs,
    windows_spec,
)
from fftconv_cupy.errors import UnsupportedProblemError, message
from fftconv_cupy.plan import (
    GRID_YZ,
    LARGEST_AXIS,
    WORKSPACE_LIMIT,
    FilterLags,
    channel_group,
    extras_of,
    filter_lags,
    max_points,
    precision_line,
    problem_line,
    transform_of,
    whole_config,
)
from fftconv_cupy.problem import Problem
from fftconv_cupy.source import KernelSpec

# Picoseconds a complex point of a transform pair, by the points of the transform, measured on an H100 (plain causal
# rows in float16, benchmarks/results/targets-h100.json); only their ratios matter.
_BLOCK_COSTS = {128: 3310, 256: 3050, 512: 2900, 1024: 3090, 2048: 3540, 4096: 3670, 8192: 4150, 16384: 5120}
_TRIPLE_COSTS = {1536: 3810}  # on an H200, against 2048 of the same
_LONG_COST = 10900  # of a transform that outgrows a block, which goes through L2 two times more
# The same of windows, which read and write twice as much a point, and of their gradients (H200, plain, L = 65536 and K
# = 128, 1024 or 4096; those of 128 points are as much above those of 256 as of whole rows).
_WINDOW_COSTS = {128: 3350, 256: 3090, 512: 3320, 1024: 4070, 2048: 4290, 4096: 4360, 8192: 4610, 16384: 5460}
_GRADIENT_COSTS = {128: 7640, 256: 7040, 512: 7290, 1024: 8370, 2048: 8830, 4096: 9520, 8192: 10980, 16384: 17750}
_LOSS_FOR_GRADIENTS = 1.25  # that outputs may take longer so that gradients take less
LEAST_GAIN = 1.25  # by which windows must be cheaper than a whole row in one block, for the estimate is rough
_ALIGNMENT = 64  # of windows, in elements, so that warps access whole lines; less where windows are small
_MOST_WINDOWS = (1 << 31) - 1  # of a channel: the first dimension of a grid


@dataclass(frozen=True, slots=True)
class Cut:
    """How rows are cut: window w keeps `step` points from w * step - origin on, at ring positions from `lead` on.

    Attributes:
        config: the block configuration that transforms windows.
        lags: where the taps lie in the ring of a window.
        step: points that a window keeps.
        lead: ring position of the first one.
        origin: points before the first one of the row that are kept too.
        period: of a circular row; else 0.
    """

    config: BlockConfig
    lags: FilterLags
    step: int
    lead: int
    origin: int
    period: int

    def count(self, length: int) -> int:
        """Return the windows of a row of `length` points."""
        return -(-(length + self.origin) // self.step)

    def cost(self, length: int, *, of_gradients: bool = False) -> int:
        """Return what the windows of a row cost, in picoseconds."""
        points = self.config.points
        costs = _GRADIENT_COSTS if of_gradients else _WINDOW_COSTS
        return self.count(length) * points * costs[points]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """How one call is computed window by window; ``print(plan)`` tells it in words.

    Attributes:
        problem: what is computed.
        limits: of the architecture.
        cut: how rows are cut.
        forward: the fused kernel.
        filter: the kernel that makes the filter's spectrum.
        is_prepared: the spectrum comes with the call, so `filter` is not launched.
        grid: blocks of `forward` for one group of channels.
        channel_group: channels whose spectrum is in the workspace at a time.
        launches: kernels launched by a call.
        workspace_bytes: device memory that a call takes beside its output.
        reasons: why it is so, a sentence each.
    """

    problem: Problem
    limits: ArchLimits
    cut: Cut
    forward: KernelSpec
    filter: KernelSpec
    is_prepared: bool
    grid: tuple[int, int, int]
    channel_group: int
    launches: int
    workspace_bytes: int
    reasons: tuple[str, ...]

    def grid_of(self, channels: int) -> tuple[int, int, int]:
        """Return the blocks for so many channels."""
        return self.grid[0], min(channels, GRID_YZ), -(-channels // GRID_YZ)

    def in_groups(self, channels: int) -> WindowPlan:
        """Return the plan of a prepared filter in groups of so many channels, a launch each."""
        groups = -(-self.problem.channels // channels)
        return replace(self, grid=self.grid_of(channels), channel_group=channels, launches=groups)

    @property
    def strategy(self) -> str:
        """The strategy, as of a `Plan`."""
        return "windows"

    @property
    def config(self) -> BlockConfig:
        """The block configuration."""
        return self.cut.config

    @property
    def lags(self) -> FilterLags:
        """Where the taps lie in the ring of a window."""
        return self.cut.lags

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block of `forward`."""
        return self.config.exchange_bytes

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        own = ((self.forward, self.shared_bytes),)
        return own if self.is_prepared else (*own, (self.filter, self.config.exchange_bytes))

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        config, cut = self.config, self.cut
        radices = " x ".join(str(1 << log2) for log2 in config.log2_radices)
        lines = [
            problem_line(self.problem, self.limits),
            precision_line(self.problem),
            f"  windows         {cut.count(self.problem.out_len)} a row, each yields {cut.step} of "
            f"{2 * config.points} points",
            f"  transform       {config.points} complex points = {radices}, packed: the second half of a window is the "
            f"imaginary part",
            f"  passes          1 over global memory, {len(config.log2_radices)} in the block each way",
            f"  block           {config.threads} threads, {1 << config.log2_ept} points each, {config.rows} window(s), "
            f"{self.shared_bytes} bytes of shared memory",
            f"  grid            {self.grid}",
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes, {self.channel_group} channel(s) a group",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])


@lru_cache(maxsize=4096)
def cut_of(problem: Problem, limits: ArchLimits) -> Cut | None:
    """Return how the rows of a problem are cut, or None where a transform of whole rows costs less.

    Only lengths, mode and FFT size matter, so a prepared filter serves any batch, gates and dtype, and gradients. Rows
    with an initial state are always cut where they can be.
    """
    if max(problem.batch, problem.channels, problem.seqlen, problem.filter_len) >= LARGEST_AXIS:
        return None  # the plan of whole rows says what is wrong
    lags = _lags(problem)
    if lags is None:
        return None
    cuts = [found for config in fitting_configs(limits) if (found := _cut(problem, config, lags))]
    if not cuts:
        return None
    length = problem.out_len
    least = min(cut.cost(length) for cut in cuts)
    near = [cut for cut in cuts if cut.cost(length) <= _LOSS_FOR_GRADIENTS * least]
    best = min(near, key=lambda cut: cut.cost(length, of_gradients=True))
    is_cheaper = best.cost(problem.out_len) < _whole_cost(problem, limits)[0]
    return best if is_cheaper or problem.initial_state else None


def make_window_plan(
    problem: Problem, limits: ArchLimits, *, is_vector: bool = True, is_prepared: bool = False
) -> WindowPlan:
    """Plan a problem that is cut into windows for a GPU.

    Args:
        problem: what is computed; ``batch >= 1``, and `cut_of` has an answer.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths, so two elements are accessed at a time.
        is_prepared: the filter's spectrum comes with the call.

    Raises:
        UnsupportedProblemError: see `checked_cut`.
    """
    cut = checked_cut(problem, limits)
    config = cut.config
    is_vector = is_vector and cut.period % 2 == 0
    spectrum_bytes = config.points * COMPLEX_BYTES
    group = channel_group(problem, spectrum_bytes, is_prepared)
    groups = -(-problem.channels // group)
    is_general = cut.lags.is_wrapped or cut.lags.positive > config.points
    return WindowPlan(
        problem=problem,
        limits=limits,
        cut=cut,
        forward=windows_spec(config, problem.dtype, extras_of_windows(problem), is_vector=is_vector),
        filter=filter_spec(config, FilterVariant(problem.filter_dtype, is_paired=False, is_general=is_general)),
        is_prepared=is_prepared,
        grid=(
            -(-problem.batch * cut.count(problem.out_len) // config.rows),
            min(group, GRID_YZ),
            -(-group // GRID_YZ),
        ),
        channel_group=group,
        launches=1 if is_prepared else 2 if problem.shared_filter else 2 * groups,
        workspace_bytes=0 if is_prepared else spectrum_bytes * (1 if problem.shared_filter else group),
        reasons=_reasons(problem, limits, cut, is_vector, groups),
    )


def checked_cut(problem: Problem, limits: ArchLimits) -> Cut:
    """Return how the rows of a problem are cut, for one that must be.

    Raises:
        UnsupportedProblemError: there is an initial state and a filter too long for windows of this GPU, or a channel
            has too many windows.
    """
    cut = cut_of(problem, limits)
    if cut is None:
        _refuse(
            "K",
            f"{problem.filter_len} with an initial state",
            f"on {limits.arch} below {2 * max_points(limits) - _ALIGNMENT}",
            "Shorten the filter.",
        )
    count = problem.batch * cut.count(problem.out_len)
    if count > _MOST_WINDOWS:
        _refuse("B x L", f"{count} windows of a channel", f"at most {_MOST_WINDOWS}", "Split the batch.")
    return cut


def _refuse(what: str, got: str, allowed: str, do: str) -> NoReturn:
    raise UnsupportedProblemError(message(what, got=got, allowed=allowed, do=do))


def _lags(problem: Problem) -> FilterLags | None:
    """Return where the taps lie in the ring of any window; None for a circular filter longer than its period."""
    if problem.mode != "circular":
        return filter_lags(problem, "linear")
    # What a window reads is wrapped, not the filter.
    return FilterLags(0, 0, 0, problem.filter_len, 0) if problem.filter_len <= problem.fft_size else None


def alignment_of(config: BlockConfig) -> int:
    """Return what the positions of a configuration's windows are multiples of, in points."""
    return min(_ALIGNMENT, config.points >> 4)


def _cut(problem: Problem, config: BlockConfig, lags: FilterLags) -> Cut | None:
    """Return how windows of a block configuration cut rows; None where the filter spoils all of their points."""
    alignment = alignment_of(config)
    lead = -(-(lags.positive - 1) // alignment) * alignment
    step = (2 * config.points - lead - lags.negative) // alignment * alignment
    period = problem.fft_size if problem.mode == "circular" else 0
    # A window may reach beyond one end of a circular row, not around it.
    is_possible = step > 0 and (period == 0 or lead <= period)
    return Cut(config, lags, step, lead, 0, period) if is_possible else None


def extras_of_windows(problem: Problem) -> str:
    """Return the kernel's variant: only "any" looks for points before the first one."""
    return "any" if problem.initial_state or problem.mode == "circular" else extras_of(problem)


def _whole_cost(problem: Problem, limits: ArchLimits) -> tuple[float, str]:
    """Return what a transform of whole rows costs a row, less what windows must gain, and how it would be done."""
    strategy, least = transform_of(problem)
    if least > max_points(limits):
        points = 1 << (least - 1).bit_length()
        return float(points * _LONG_COST), f"a transform of {points} points through L2"
    points = whole_config(strategy, least, limits).points
    cost = points * (_BLOCK_COSTS | _TRIPLE_COSTS)[points] / (2 if strategy == "paired" else 1)
    return cost / LEAST_GAIN, f"a transform of {points} points in a block"


def _reasons(problem: Problem, limits: ArchLimits, cut: Cut, is_vector: bool, groups: int) -> tuple[str, ...]:
    whole, what = _whole_cost(problem, limits)
    points, length = cut.config.points, problem.out_len
    reasons = [
        f"overlap-save: a filter of {cut.lags.positive + cut.lags.negative} taps spoils {2 * points - cut.step} of "
        f"the {2 * points} points of a window, and other windows cost more"
    ]
    if problem.initial_state:
        reasons.append("an initial state is the points before the first one, which only windows read")
    else:
        reasons.append(f"estimated {cut.cost(length) / length:.0f} ps a point, and {whole / length:.0f} ps for {what}")
    if cut.period:
        reasons.append("the first window of a circular row starts with the row's last points")
    if not is_vector:
        reasons.append("an odd length, address, stride or period: elements are accessed one by one")
    if groups > 1:
        reasons.append(f"{groups} groups of channels keep the spectrum within {WORKSPACE_LIMIT >> 20} MiB")
    return tuple(reasons)
