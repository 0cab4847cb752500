"""Rows of 3 * 2^k points: their block configurations, which the kernels of blocks.py take too."""

from __future__ import annotations

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.blocks import BlockConfig, fitting_configs

# Of 3 * 2^k points, for rows that would leave a quarter or more of the next power of two empty: those that took less
# time on an H200, outputs and gradients, plain and with gates, at each length that was tried.
TRIPLE_CONFIGS = {
    config.points: config
    for config in (BlockConfig(1536, (4, 5), log2_ept=5, rows=2, min_blocks=4, backward_blocks=2, roots=3),)
}


def fitting_triples(limits: ArchLimits) -> list[BlockConfig]:
    """Return those of 3 * 2^k points, for which the next power of two fits too."""
    powers = (config.points for config in fitting_configs(limits))
    return [TRIPLE_CONFIGS[points // 4 * 3] for points in powers if points // 4 * 3 in TRIPLE_CONFIGS]


def fitting_triple(config: BlockConfig, points: int, limits: ArchLimits) -> BlockConfig | None:
    """Return the configuration of 3/4 of the points of `config`, if there is one and these are enough."""
    found = (triple for triple in fitting_triples(limits) if triple.points * 4 == config.points * 3)
    return next((triple for triple in found if triple.points >= points), None)
