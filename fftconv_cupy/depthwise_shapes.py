"""What the threads of depthwise_fwd and depthwise_bwd take, as it measured best on an H200."""

from __future__ import annotations

from typing import NamedTuple


class RowShape(NamedTuple):
    """What a thread of depthwise_fwd or depthwise_bwd takes.

    Attributes:
        vector: elements of unit stride that it accesses together.
        repeat: of these at a time: in BHL side by side (backward) or a block apart, in BLH in time.
        min_blocks: blocks that should fit on a multiprocessor; bounds the registers of a thread.
        log2_lanes: in BLH, of the threads side by side along the channels, at most.
        is_ring: in BLH, what a thread holds of the rows before stays in its registers: for as many rows in time as
            taps, or more. That of depthwise_bwd always does.
    """

    vector: int
    repeat: int
    min_blocks: int
    log2_lanes: int = 7
    is_ring: bool = False


ROW_SHAPES = {
    ("BHL", False, 2): ((16, RowShape(8, 4, 4)),),
    ("BHL", False, 4): ((8, RowShape(4, 2, 6)), (16, RowShape(4, 2, 4))),
    ("BLH", False, 2): (
        (8, RowShape(4, 8, 4, 5)),
        (12, RowShape(2, 12, 4, 6, is_ring=True)),
        (16, RowShape(2, 16, 3, 5, is_ring=True)),
    ),
    ("BLH", False, 4): ((8, RowShape(4, 4, 3)), (16, RowShape(2, 16, 3, is_ring=True))),
    ("BHL", True, 2): ((5, RowShape(8, 1, 4)), (8, RowShape(8, 1, 8)), (16, RowShape(8, 2, 3))),
    ("BHL", True, 4): ((8, RowShape(4, 2, 4)), (16, RowShape(4, 4, 3))),
    ("BLH", True, 2): (
        (3, RowShape(4, 4, 4, 6)),
        (4, RowShape(2, 8, 4, 6)),
        (8, RowShape(2, 8, 4)),
        (12, RowShape(2, 12, 3)),
        (16, RowShape(2, 16, 2)),
    ),
    ("BLH", True, 4): ((8, RowShape(2, 8, 3)), (16, RowShape(1, 16, 3))),
}
"""By layout, direction (backward) and bytes of an element: up to how many taps which shape.

In BLH the taps, points and sums of so many channels fit in registers.
"""

SEQUENCE_SHAPES = {
    ("BHL", False, 2): ((8, RowShape(8, 2, 6)),),
    ("BHL", False, 4): ((8, RowShape(4, 2, 4)),),
    ("BLH", False, 2): ((4, RowShape(4, 8, 4, 5)), (8, RowShape(4, 4, 3, 5))),
    ("BLH", False, 4): ((8, RowShape(2, 4, 4, 6)),),
    ("BHL", True, 2): ((8, RowShape(8, 1, 4)),),
    ("BHL", True, 4): ((8, RowShape(4, 2, 3)),),
    ("BLH", True, 2): ((8, RowShape(2, 8, 3)),),
    ("BLH", True, 4): ((8, RowShape(1, 8, 4)),),
}
"""The same for sequence indices, which take registers too."""
