"""A small set of cases that still meets every pair of values: most faults need two particular values, rarely three."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations


def pairwise_cover(cases: Sequence[Mapping[str, Hashable]], together: int = 2) -> list[int]:
    """Return the indices, ascending, of a few cases that hold every pair of (axis, value) that any case holds.

    With `together` of 1 they hold every value, not every pair; with 3 every triple.

    Greedy: the case with the most new pairs is taken until none is missing. Only pairs that occur are asked for, so
    combinations that cannot exist are simply left out of ``cases``.
    """
    bit_of: dict[object, int] = {}
    masks = []
    for case in cases:
        mask = 0
        for pair in combinations(sorted(case.items(), key=lambda item: item[0]), together):
            mask |= 1 << bit_of.setdefault(pair, len(bit_of))
        masks.append(mask)
    # A case's number of new pairs only shrinks, so a stale count at the top of the heap is an upper bound.
    heap = [(-mask.bit_count(), index) for index, mask in enumerate(masks)]
    heapq.heapify(heap)
    missing = (1 << len(bit_of)) - 1
    chosen = []
    while missing:
        _, index = heapq.heappop(heap)
        gain = (masks[index] & missing).bit_count()
        if heap and -gain > heap[0][0]:
            heapq.heappush(heap, (-gain, index))
            continue
        chosen.append(index)
        missing &= ~masks[index]
    return sorted(chosen)
