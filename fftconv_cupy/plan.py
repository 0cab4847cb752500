"""Which kernels compute a problem on an architecture, with which sizes, and why.

Planning is pure arithmetic over two tables, of architectures (archs.py) and of block configurations (blocks.py), so any
plan can be made and printed without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import (
    BLOCK_CONFIGS,
    COMPLEX_BYTES,
    PERSISTENT,
    BlockConfig,
    FilterVariant,
    ForwardVariant,
    can_prefetch,
    filter_spec,
    fitting_configs,
    forward_bytes,
    forward_spec,
)
from fftconv_cupy.errors import UnsupportedProblemError, message
from fftconv_cupy.problem import Problem, Wanted
from fftconv_cupy.source import KernelSpec
from fftconv_cupy.triple_blocks import fitting_triple

# A call takes at most 64 MiB above inputs and output; the twiddle tables, made once, have their share of it.
WORKSPACE_LIMIT = 63 << 20
LARGEST_AXIS = 1 << 30  # sums of two lengths and of a row index and a block's slots stay within an int
LARGEST_FFT_SIZE = 1 << 24
GRID_YZ = 65535  # CUDA's limit for the second and third dimension of a grid


@dataclass(frozen=True, slots=True)
class FilterLags:
    """Where the taps of a filter lie in the ring; the fields are those of ``FilterParams`` in kernels/params.cuh.

    Attributes:
        shift: index of the tap at lag 0.
        negative_shift: the same for negative lags, which a circular filter has at its end.
        period: the filter is folded modulo this number; 0 means not.
        positive: lags 0 .. positive - 1 are kept.
        negative: lags -1 .. -negative are kept.
    """

    shift: int
    negative_shift: int
    period: int
    positive: int
    negative: int

    @property
    def is_wrapped(self) -> bool:
        """The filter is not simply the first taps from lag 0 on."""
        return self.shift > 0 or self.period > 0 or self.negative > 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one call is computed; ``print(plan)`` tells it in words.

    Attributes:
        problem: what is computed.
        limits: of the architecture.
        strategy: ``"linear"`` (a row is one negacyclic transform) or ``"paired"`` (two rows are one cyclic transform).
        config: the block configuration.
        forward: the fused kernel.
        filter: the kernel that makes the filter's spectrum.
        lags: where the taps lie in the ring.
        is_prepared: the spectrum comes with the call, so `filter` is not launched.
        grid: blocks of `forward` for one group of channels.
        turns: jobs of a block with prefetch; the distance of two blocks in jobs, and of two turns in channels and jobs.
        shared_bytes: dynamic shared memory of a block of `forward`.
        log2_batch_slots: log2 of the rows of a block that differ in batch; the others differ in channel.
        channel_group: channels whose spectrum is in the workspace at a time.
        launches: kernels launched by a call.
        workspace_bytes: device memory that a call takes beside its output.
        reasons: why it is so, a sentence each.
    """

    problem: Problem
    limits: ArchLimits
    strategy: str
    config: BlockConfig
    forward: KernelSpec
    filter: KernelSpec
    lags: FilterLags
    is_prepared: bool
    grid: tuple[int, int, int]
    turns: tuple[int, int, int, int]
    shared_bytes: int
    log2_batch_slots: int
    channel_group: int
    launches: int
    workspace_bytes: int
    reasons: tuple[str, ...]

    @property
    def kernels(self) -> tuple[tuple[KernelSpec, int], ...]:
        """The kernels that a call launches, each with the dynamic shared memory of a block."""
        own = ((self.forward, self.shared_bytes),)
        return own if self.is_prepared else (*own, (self.filter, self.config.exchange_bytes))

    def __str__(self) -> str:
        """Return the plan in words, one fact a line."""
        problem, config = self.problem, self.config
        radices = " x ".join(map(str, config.radices))
        lines = [
            problem_line(problem, self.limits),
            f"  FFT size        {2 * config.points if config.roots > 1 else problem.fft_size} real points",
            precision_line(problem),
            f"  transform       {config.points} complex points = {radices}, {self.strategy}",
            f"  passes          1 over global memory, {len(config.radices)} in the block each way",
            f"  block           {config.threads} threads, {1 << config.log2_ept} points each, {config.rows} row(s), "
            f"{self.shared_bytes} bytes of shared memory",
            f"  grid            {self.grid}, {self.turns[0]} turn(s) a block",
            f"  launches        {self.launches}{' (filter prepared)' if self.is_prepared else ''}",
            f"  workspace       {self.workspace_bytes} bytes, {self.channel_group} channel(s) a group",
        ]
        return "\n".join(lines + [f"  why             {reason}" for reason in self.reasons])


def problem_line(problem: Problem, limits: ArchLimits) -> str:
    """Return what is computed, as the first line of a plan."""
    flags = [name for name, on in (("in_gate", problem.in_gate), ("out_gate", problem.out_gate)) if on]
    flags += ["skip"] * problem.skip
    return (
        f"fftconv {problem.mode}: u ({problem.batch}, {problem.channels}, {problem.seqlen}) {problem.dtype}, "
        f"k ({'' if problem.shared_filter else f'{problem.channels}, '}{problem.filter_len}) "
        f"{problem.filter_dtype}{', ' + ' + '.join(flags) if flags else ''} on {limits.arch}"
    )


def gradients_line(problem: Problem, wanted: Wanted, limits: ArchLimits) -> str:
    """Return which gradients are computed, and of what, as the first line of a plan."""
    names = ", ".join(f"d{name}" for name, is_wanted in wanted._asdict().items() if is_wanted)
    return f"gradients {names} of {problem_line(problem, limits)}"


def precision_line(problem: Problem, intermediate: str | None = None) -> str:
    """Return the line of a plan in float32 that says so, and what else was asked for.

    Args:
        problem: what is computed.
        intermediate: dtype of what lies between its passes; None where nothing does.
    """
    asked = problem.precision
    why = (
        f"; {asked!r} would do, but tensor cores would be no faster, or not exact enough"
        if asked in ("high", "medium")
        else ""
    )
    return f"  precision       highest: float32 arithmetic{why}{intermediate_note(problem, intermediate)}"


def intermediate_note(problem: Problem, intermediate: str | None = None) -> str:
    """Return what becomes of an `intermediate` that was asked for, for the end of a line; see `precision_line`."""
    if problem.intermediate is None:
        return ""
    if intermediate is None:
        return f"; nothing lies between passes that could be {problem.intermediate}"
    return f"; {intermediate} between the passes, as asked for"


def max_points(limits: ArchLimits) -> int:
    """Return the complex points of the largest transform that one block of the GPU can hold."""
    return fitting_configs(limits)[-1].points


def transform_of(problem: Problem, *, can_pair: bool = True) -> tuple[str, int]:
    """Return the strategy of a problem, and the least number of complex points that its transform may have.

    A circular convolution of a power of two N with rows longer than N / 2 pairs two rows in a cyclic transform of N
    points. Everything else is linear: M complex points hold 2M reals, enough for the wanted outputs to be free of
    wrapped terms; a circular filter is wrapped by hand then, and rows of L points need M >= L. Gradients are never
    paired (`can_pair` False).
    """
    if problem.mode == "circular":
        n = problem.fft_size
        smallest = min(BLOCK_CONFIGS)
        if can_pair and n & (n - 1) == 0 and 2 * problem.seqlen > n and n >= smallest:
            return "paired", n
        return "linear", problem.seqlen
    length, taps = problem.seqlen, problem.taps
    needed = length + taps // 2 if problem.mode == "same" else length + taps - 1
    return "linear", (needed + 1) // 2


def fits_block(problem: Problem, limits: ArchLimits, *, can_pair: bool = True) -> bool:
    """Return whether one block of the GPU can hold the transform of a problem."""
    return transform_of(problem, can_pair=can_pair)[1] <= max_points(limits)


def check_sizes(problem: Problem) -> None:
    """Refuse what is too large for every GPU.

    Raises:
        UnsupportedProblemError: an axis reaches 2^30, or the transform exceeds `LARGEST_FFT_SIZE`.
    """
    if max(problem.batch, problem.channels, problem.seqlen, problem.filter_len) >= LARGEST_AXIS:
        raise UnsupportedProblemError(
            message(
                "shape",
                got=f"B = {problem.batch}, H = {problem.channels}, L = {problem.seqlen}, K = {problem.filter_len}",
                allowed="each below 2^30",
                do="Split the arrays.",
            )
        )
    least = transform_of(problem, can_pair=False)[1]
    if max(2 * least, problem.fft_size) > LARGEST_FFT_SIZE:
        _refuse_size(problem, "", LARGEST_FFT_SIZE // 2)


def block_config(problem: Problem, limits: ArchLimits, *, can_pair: bool = True) -> tuple[str, BlockConfig]:
    """Return the strategy and the block configuration of a problem.

    Raises:
        UnsupportedProblemError: the transform does not fit one block of this GPU, or see `check_sizes`.
    """
    check_sizes(problem)
    strategy, least = transform_of(problem, can_pair=can_pair)
    if least > max_points(limits):
        _refuse_size(problem, f"in one block of {limits.arch} ", max_points(limits))
    return strategy, whole_config(strategy, least, limits)


def whole_config(strategy: str, least: int, limits: ArchLimits) -> BlockConfig:
    """Return the configuration of the smallest transform of at least `least` points, of which the GPU has one."""
    config = next(config for config in fitting_configs(limits) if config.points >= least)
    triple = None if strategy == "paired" else fitting_triple(config, least, limits)
    return triple or config


def _refuse_size(problem: Problem, where: str, points: int) -> NoReturn:
    raise UnsupportedProblemError(
        message(
            "FFT size",
            got=f"{problem.fft_size} for {problem.mode!r} with L = {problem.seqlen} and K = {problem.filter_len}",
            allowed=f"{where}up to {2 * points} in linear modes, and L up to {points} in 'circular'",
            do="Shorten the row or the filter, or split the row into overlapping parts.",
        )
    )


def make_plan(
    problem: Problem, limits: ArchLimits, *, is_vector: bool = True, is_bulk: bool = True, is_prepared: bool = False
) -> Plan:
    """Plan a problem for a GPU.

    Args:
        problem: what is computed; ``batch >= 1``.
        limits: of the GPU.
        is_vector: rows start at even elements and have even lengths, so two elements are accessed at a time.
        is_bulk: rows of the input start at multiples of 16 bytes.
        is_prepared: the filter's spectrum comes with the call.

    Raises:
        UnsupportedProblemError: the transform does not fit one block of this GPU, or an axis reaches 2^30.
    """
    strategy, config = block_config(problem, limits)
    points, is_paired = config.points, strategy == "paired"
    variant = _forward_variant(problem, config, limits, is_paired=is_paired, is_vector=is_vector, is_bulk=is_bulk)
    jobs = (problem.batch + 1) // 2 if is_paired else problem.batch
    slots = min(config.rows, 1 << max(0, jobs - 1).bit_length())
    lags = filter_lags(problem, strategy)
    spectrum_bytes = points * COMPLEX_BYTES
    group = channel_group(problem, spectrum_bytes, is_prepared)
    groups = -(-problem.channels // group)
    channel_blocks = -(-group // (config.rows // slots))
    grid = (-(-jobs // slots), min(channel_blocks, GRID_YZ), -(-channel_blocks // GRID_YZ))
    turns = (1, 1, 0, 1)
    if variant.has_prefetch:
        turns = _turns(config, limits, jobs, group, is_paired=is_paired)
        grid = (-(-jobs * group // turns[0]), 1, 1)
    return Plan(
        problem=problem,
        limits=limits,
        strategy=strategy,
        config=config,
        forward=forward_spec(config, variant),
        filter=filter_spec(config, _filter_variant(problem, lags, points, is_paired=is_paired)),
        lags=lags,
        is_prepared=is_prepared,
        grid=grid,
        turns=turns,
        shared_bytes=forward_bytes(config, problem.dtype, is_paired=is_paired, has_prefetch=variant.has_prefetch),
        log2_batch_slots=slots.bit_length() - 1,
        channel_group=group,
        launches=1 if is_prepared else 2 if problem.shared_filter else 2 * groups,
        workspace_bytes=0 if is_prepared else spectrum_bytes * (1 if problem.shared_filter else group),
        reasons=_reasons(problem, config, variant, groups),
    )


def _is_whole(problem: Problem, points: int) -> bool:
    """Return whether input and output rows fill the real part of the transform."""
    return problem.seqlen == problem.out_len == points


def _forward_variant(
    problem: Problem, config: BlockConfig, limits: ArchLimits, *, is_paired: bool, is_vector: bool, is_bulk: bool
) -> ForwardVariant:
    is_whole = _is_whole(problem, config.points)
    can_copy = can_prefetch(config, limits, problem.dtype, is_paired=is_paired)
    return ForwardVariant(
        dtype=problem.dtype,
        is_paired=is_paired,
        is_complex=is_paired or max(problem.seqlen, problem.out_len) > config.points,
        has_tail=not is_whole or not is_vector,
        is_vector=is_vector,
        extras=extras_of(problem),
        has_prefetch=is_whole and is_vector and is_bulk and can_copy,
    )


def _filter_variant(problem: Problem, lags: FilterLags, points: int, *, is_paired: bool) -> FilterVariant:
    return FilterVariant(
        dtype=problem.filter_dtype, is_paired=is_paired, is_general=lags.is_wrapped or lags.positive > points
    )


def extras_of(problem: Problem) -> str:
    """Return the kernel's variant for the gates and skip term of a problem (`blocks.EXTRAS`)."""
    if problem.in_gate and problem.out_gate and not problem.skip:
        return "gates"
    return "any" if problem.in_gate or problem.out_gate or problem.skip else "none"


def _turns(
    config: BlockConfig, limits: ArchLimits, jobs: int, channels: int, *, is_paired: bool
) -> tuple[int, int, int, int]:
    """Return how many jobs a prefetching block takes, and their distances, see `Plan.turns`.

    A block takes jobs that lie side by side. Persistent ones, which share all that there are, take them turn by turn
    instead: at any time they work on a few channels, whose spectra stay in L2.
    """
    most, total = config.prefetch_jobs[is_paired], jobs * channels
    resident = limits.multiprocessors * config.min_blocks
    if most < PERSISTENT:
        count = min(most, max(1, total // resident))
        return count, count, 1 // jobs, 1 % jobs
    count = -(-total // resident)
    return count, 1, *divmod(-(-total // count), jobs)


def channel_group(problem: Problem, spectrum_bytes: int, is_prepared: bool) -> int:
    """Return the channels of a group: as few groups as the workspace limit allows, of about the same size."""
    if is_prepared or problem.shared_filter:
        return problem.channels
    groups = -(-problem.channels * spectrum_bytes // WORKSPACE_LIMIT)
    return -(-problem.channels // groups)


def filter_lags(problem: Problem, strategy: str) -> FilterLags:
    """Return where each tap lies in the ring.

    The tap at lag d multiplies the input d points before the output. "same" drops the first (K-1)//2 outputs of the
    full convolution, which is a filter that starts at lag -(K-1)//2; a circular filter in a linear transform is seen
    from lag -(L-1) to L-1. Lags that no pair of an input and an output has are left out.
    """
    seqlen, filter_len = problem.seqlen, problem.filter_len
    if problem.mode == "circular":
        n = problem.fft_size
        period = n if filter_len > n else 0
        if strategy == "paired":
            return FilterLags(0, 0, period, min(filter_len, n), 0)
        return FilterLags(0, n, period, min(filter_len, seqlen), seqlen - 1)
    if problem.mode == "same":
        shift = (filter_len - 1) // 2
        return FilterLags(shift, shift, 0, min(filter_len - shift, seqlen), min(shift, seqlen - 1))
    return FilterLags(0, 0, 0, problem.taps, 0)


def _reasons(problem: Problem, config: BlockConfig, variant: ForwardVariant, groups: int) -> tuple[str, ...]:
    reasons = []
    if variant.is_paired:
        reasons.append("N is a power of two and L > N / 2: two batch rows are real and imaginary part of one transform")
    elif problem.mode == "circular":
        n = problem.fft_size
        why = "is no power of two" if n & (n - 1) else "is small" if 2 * problem.seqlen > n else "is at least 2 L"
        reasons.append(f"N = {n} {why}: a linear transform with a wrapped filter, one row each")
    elif variant.is_complex:
        reasons.append(f"rows or outputs of more than {config.points} points: the rest is the imaginary part")
    else:
        reasons.append(f"rows fit in {config.points} points: no padding is transformed, the input is real")
    if config.roots > 1:
        fft_size, least = 2 * config.points, transform_of(problem)[1]
        reasons.append(
            f"{2 * least} real points or more will do: {fft_size} = 3 x 2^{(fft_size // 3).bit_length() - 1} take less "
            f"time than {fft_size // 3 * 4}"
        )
    elif problem.mode != "circular" and problem.fft_size > max(2 * config.points, 2):
        reasons.append(f"{2 * config.points} real points are enough: a larger FFT size would change nothing")
    if not _is_whole(problem, config.points):
        reasons.append("rows end inside the transform: loads and stores test the length")
    if not variant.is_vector:
        reasons.append("an odd length, address or stride: elements are accessed one by one")
    if variant.has_prefetch:
        reasons.append("the next row is copied to shared memory while one is transformed")
    if groups > 1:
        reasons.append(f"{groups} groups of channels keep the spectrum within {WORKSPACE_LIMIT >> 20} MiB")
    return tuple(reasons)
