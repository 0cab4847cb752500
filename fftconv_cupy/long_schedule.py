"""In which order the tasks of a call on long rows are numbered, and how much memory lies between them.

The fields are those of ``Schedule`` in kernels/pipeline.cuh, which tells what they are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# What lies between the phases should stay in L2 together with the spectra of a few filters: 50 MB on an H100.
_BYTES_IN_L2 = 48 << 20
_TASKS_APART = 3.0  # tasks from one phase of an item to the next, for each block at work: so blocks seldom wait
_ROW_STEPS = 2  # from the first phase of a row to its last


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order of the tasks.

    Attributes:
        tasks: in all.
        distance: steps between the phases of an item; 0: a step is all phases of one item.
        is_mixed: the phases of a step alternate, task by task.
        slots: rows whose points lie in the workspace at a time.
        filter_slots: filters whose spectra do, or all of them, where they come with the call or are all that is wanted.
        sum_slots: channels whose sums do.
        chains: sums of a channel: row b adds to that of number b modulo this.
        filters: filters that are transformed.
        lead: filters that are transformed before the first row.
        has_own_filter: the first item of a channel is a filter.
        channel_items: that, its rows, and its sums where there are any.
        batch: rows of a channel.
        channels: channels that have rows or filters of their own.
        is_shared: one filter serves all channels.
    """

    tasks: int
    distance: int
    is_mixed: bool
    slots: int
    filter_slots: int
    sum_slots: int
    chains: int
    filters: int
    lead: int
    has_own_filter: bool
    channel_items: int
    batch: int
    channels: int
    is_shared: bool

    @property
    def counters(self) -> int:
        """The number of the next task, and three counters of each slot."""
        return 1 + 3 * (self.slots + self.filter_slots * (self.filters > 0) + self.sum_slots)


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do.

    Attributes:
        batch: rows of a channel; 0 to transform filters only.
        channels: H.
        filters: that are transformed: H, 1 where all channels share one, or 0.
        is_shared: all channels share one filter.
        has_sums: the rows of a channel are summed.
        parts: tasks of a phase.
        phases: of an item.
        row_bytes: that a row takes between its phases.
        spectrum_bytes: that the spectrum of a filter takes, and a sum.
    """

    batch: int
    channels: int
    filters: int
    is_shared: bool
    has_sums: bool
    parts: int
    phases: int
    row_bytes: int
    spectrum_bytes: int

    @property
    def has_own_filter(self) -> bool:
        """Each channel has a filter that is transformed."""
        return self.filters > 0 and not self.is_shared

    @property
    def channel_items(self) -> int:
        """The filter, rows and sums of a channel."""
        return max(1, self.batch + self.has_own_filter + self.has_sums)


def make_schedule(load: Load, *, blocks: int, limit: int) -> Schedule:
    """Return the order of the tasks: phases as far apart as `blocks` blocks at work want it and memory allows.

    Args:
        load: what there is to do.
        blocks: blocks at work.
        limit: of the workspace, in bytes; the least that does may be more.
    """
    for distance, slots in _choices(load, blocks):
        schedule = _schedule(load, distance, slots)
        sums = schedule.sum_slots * schedule.chains * load.has_sums
        passing = slots * load.row_bytes + sums * load.spectrum_bytes
        spectra = schedule.filter_slots * load.spectrum_bytes * (load.filters > 0)
        total = load.spectrum_bytes * (load.has_sums and load.is_shared)
        if passing <= _BYTES_IN_L2 and passing + spectra + total <= limit:
            break
    return schedule


def _choices(load: Load, blocks: int) -> Iterator[tuple[int, int]]:
    """Yield distances of phases with numbers of slots, the best first and the smallest last.

    A slot is filled again `slots` items later, at the earliest in the step in which it has been emptied, by a task of a
    higher number: so there are at least as many slots as steps between the first phase and the last.
    """
    most = max(1, load.batch * load.channels)
    for distance in range(-(-int(_TASKS_APART * blocks) // (load.phases * load.parts)), 0, -1):
        yield distance, min((_ROW_STEPS + 1) * distance, most)
    yield 1, min(_ROW_STEPS, most)
    yield 0, 1


def _schedule(load: Load, distance: int, slots: int) -> Schedule:
    is_mixed = distance > 0 and (slots > _ROW_STEPS * distance or slots == load.batch * load.channels)
    is_apart = is_mixed or distance == 0  # what a task needs to be done is done in a step before its own
    lead, filter_slots = _filter_slots(load, distance, is_apart=is_apart)
    channels = load.channels if load.batch or load.has_own_filter or load.has_sums else 0
    items = lead + channels * load.channel_items
    return Schedule(
        tasks=(items + (load.phases - 1) * distance) * load.phases * load.parts,
        distance=distance,
        is_mixed=is_mixed,
        slots=slots,
        filter_slots=filter_slots,
        sum_slots=_sum_slots(load, distance, is_mixed=is_mixed),
        chains=min(load.batch, distance) or 1,
        filters=load.filters,
        lead=lead,
        has_own_filter=load.has_own_filter,
        channel_items=load.channel_items,
        batch=load.batch,
        channels=channels,
        is_shared=load.is_shared,
    )


def _filter_slots(load: Load, distance: int, *, is_apart: bool) -> tuple[int, int]:
    """Return how many filters come before the first row, and how many spectra are kept.

    A filter is transformed `distance` items before the first row that needs it. Its place must be free by then: the
    rows of the channel that had it before are multiplied by its spectrum in a step before the filter's own or, where
    phases come one after the other, in the same one.
    """
    if load.is_shared:
        return load.filters, 1
    if not load.filters or not load.batch:
        return 0, load.channels
    lead = min(load.filters, -(-max(0, distance - 1) // load.channel_items))
    return lead, min(load.filters, lead + -(-(load.batch + distance + is_apart) // load.channel_items))


def _sum_slots(load: Load, distance: int, *, is_mixed: bool) -> int:
    """Return how many channels have their sums at a time: a place is free once its taps are stored, as above."""
    if not load.has_sums:
        return 1
    steps = max(0, 2 * distance + is_mixed - 1 - load.has_own_filter)
    return min(load.channels, 1 + -(-steps // load.channel_items))
