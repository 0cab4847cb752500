"""Twiddle factors of the block transforms, computed in float64 and rounded once to float32.

Layout and order are those of ``kernels/layout.cuh`` and ``kernels/dft.cuh``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fftconv_cupy.blocks import BlockConfig


def twiddle_table(config: BlockConfig, *, is_paired: bool) -> npt.NDArray[np.float32]:
    """Return the twiddles of all passes but the first, as a flat float32 array of (re, im) pairs.

    For each pass from the second on (from the first on, where a row has several roots): the forward table [radix /
    4][nodes][2] of the twiddles of the even sub-nodes (level 1, level 2, two of level 3, four of level 4, ...), then
    the inverse table [radix / 2][nodes][2] of e(m phi / radix), m = 0 .. radix - 1, where phi is the phase of the node
    and e(x) = exp(2 pi i x).

    Args:
        config: the block configuration.
        is_paired: the ring is cyclic (root phase 0), not negacyclic (root phase 1/4).
    """
    columns = (1 << config.log2_ept) >> config.log2_radices[-1]
    phase = 0.0 if is_paired else 0.25
    return _table(config.log2_radices, (phase + np.arange(config.roots)) / config.roots, columns)


def tile_table(log2_radices: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the same for the passes over a tile of columns, each a negacyclic transform; empty for a single pass."""
    return _table(log2_radices, np.array([0.25]), 1)


def _table(log2_radices: tuple[int, ...], roots: npt.NDArray[np.float64], last_columns: int) -> npt.NDArray[np.float32]:
    """Return the twiddles of passes; those of the last one column by column, in the order that threads read them.

    `roots` are the phases of the nodes of the first pass, whose twiddles are constants where there is one node.
    """
    parts = [np.empty(0, np.float32)]
    log2_nodes = 0
    last = len(log2_radices) - 1
    for index, log2_radix in enumerate(log2_radices):
        if index == 0 and len(roots) == 1:
            log2_nodes = log2_radix
            continue
        nodes, radix = 1 << log2_nodes, 1 << log2_radix
        order = np.arange(len(roots) * nodes)
        if index == last:
            order = order.reshape(-1, last_columns).T.reshape(-1)
        phase = (roots[order >> log2_nodes] + _bit_reverse(order & (nodes - 1), log2_nodes)) / nodes
        forward = []
        for level in range(1, log2_radix + 1):
            for even in range(1 if level == 1 else 1 << (level - 2)):
                forward.append((phase + _bit_reverse(np.array(2 * even), level - 1)) / (1 << level))
        inverse = [phase * m / radix for m in range(radix)]
        parts += [_pairs(np.stack(forward)), _pairs(np.stack(inverse))]
        log2_nodes += log2_radix
    return np.concatenate(parts)


def _bit_reverse(values: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    reversed_values = np.zeros_like(values)
    for bit in range(bits):
        reversed_values |= ((values >> bit) & 1) << (bits - 1 - bit)
    return reversed_values


def _pairs(turns: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return e(turns), shape (twiddles, nodes), as flat float32 [twiddles / 2][nodes][2][re, im]."""
    count, nodes = turns.shape
    roots = np.exp(2j * np.pi * turns).reshape(count // 2, 2, nodes).transpose(0, 2, 1)
    return np.ascontiguousarray(roots.astype(np.complex64)).view(np.float32).reshape(-1)
