"""Constants of the transforms on tensor cores, computed in float64 and rounded once.

Layout and order are those of ``kernels/mma_layout.cuh``; which elements of a matrix a lane holds is told in
``kernels/mma.cuh``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fftconv_cupy.mma_blocks import MIDDLE_SCALE, OUTER_SCALES, PHASE, MmaConfig

_LANES = np.arange(32)
_G, _T = _LANES // 4, _LANES % 4
_HALF = np.arange(2)


def mma_table(config: MmaConfig) -> npt.NDArray[np.float32]:
    """Return the table of a configuration, as float32 words of any meaning."""
    parts = [
        _middle(),
        _first(config),
        _last(config),
        _strip_twiddles(config),
        _line_twiddles(config),
        *_factors(config),
    ]
    return np.concatenate([np.ascontiguousarray(part).view(np.float32).reshape(-1) for part in parts])


def _fragments(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
    """Return the left factors of a (16 a, 16 b) matrix as halves [a][b][lane][4][2]."""
    rows, columns = matrix.shape[0] // 16, matrix.shape[1] // 16
    blocks = matrix.reshape(rows, 16, columns, 16).transpose(0, 2, 1, 3)
    word = np.arange(4)
    row = _G[:, None, None] + 8 * (word % 2)[:, None]
    column = 2 * _T[:, None, None] + 8 * (word // 2)[:, None] + _HALF
    fragments: npt.NDArray[np.float16] = blocks[:, :, row, column].astype(np.float16)
    return fragments


def _middle() -> npt.NDArray[np.float16]:
    """Return the matrices of 16 points: forward of even and odd points, then inverse to even and odd points.

    Each is a transform of 8 complex points as a matrix of real ones, imaginary parts before real ones.
    """
    scale = MIDDLE_SCALE
    turns = np.outer(np.arange(8), np.arange(8)) / 8
    shift = np.arange(8)[:, None] / 16
    matrices = []
    for roots in (
        np.exp(2j * np.pi * turns),
        np.exp(2j * np.pi * (turns + shift)),
        np.exp(-2j * np.pi * turns),
        np.exp(-2j * np.pi * (turns + shift.T)),
    ):
        matrices.append(_fragments(scale * np.block([[roots.real, roots.imag], [-roots.imag, roots.real]]))[0, 0])
    return np.stack(matrices)


def _first(config: MmaConfig) -> npt.NDArray[np.float16]:
    """Return the matrices of the first pass by j0 and n0, cosines and sines; rows of a slab are blocks of them."""
    radix = config.radix
    turns = np.outer(np.arange(radix) + PHASE, np.arange(radix)) / radix
    matrix = OUTER_SCALES[radix] * np.kron(np.eye(config.lines // radix), np.exp(2j * np.pi * turns))
    return np.stack([_fragments(matrix.real), _fragments(matrix.imag)], axis=2)


def _last(config: MmaConfig) -> npt.NDArray[np.float16]:
    """Return those of the last pass, by n0 and j0; for each n1 with the twiddle of it where the kernel wants that."""
    radix = config.radix
    j0 = np.arange(radix) + PHASE
    parts = []
    for n1 in range(16) if config.has_column_matrices else (0,):
        roots = np.exp(2j * np.pi * np.outer(np.arange(radix) + n1 / 16, j0) / radix)
        matrix = OUTER_SCALES[radix] * np.kron(np.eye(config.lines // radix), roots)
        parts.append(np.stack([_fragments(matrix.real), _fragments(matrix.imag)], axis=2))
    return np.concatenate(parts)


def _strip_twiddles(config: MmaConfig) -> npt.NDArray[np.float32]:
    """Return e(n1 (j0 + phi) / (16 radix)), [strip][group][lane][lines g and g + 8][real, imaginary part]."""
    strip = np.arange(config.strips)[:, None, None, None]
    line = 16 * np.arange(config.lines // 16)[:, None, None] + _G[:, None] + 8 * _HALF
    n1 = (4 * strip + _T[:, None]) * config.tiles // 8
    return _parts(n1 * (line % config.radix + PHASE) / (16 * config.radix)).astype(np.float32)


def _line_twiddles(config: MmaConfig) -> npt.NDArray[np.generic]:
    """Return the same, [j0][n1 / 2][n1 % 2]: each part as two equal halves."""
    n1 = 2 * np.arange(8)[:, None] + _HALF
    parts = _parts(n1 * (np.arange(config.radix)[:, None, None] + PHASE) / (16 * config.radix))
    return np.repeat(parts.astype(np.float16), 2, axis=-1)


def _parts(turns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the real and the imaginary part of e(turns)."""
    return np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=-1)


def _factors(config: MmaConfig) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Return e(n2 (j0 + phi + radix j1) / M) in the two orders in which a lane meets them, pair by pair."""
    pair = np.arange(4)[:, None]
    j0 = np.arange(config.radix)[:, None, None, None]
    g, t = _G[:, None, None], _T[:, None, None]
    columns = 2 * t + _HALF
    forward = (g + 8 * (pair % 2), 2 * columns + pair // 2)  # rows are j1, columns n2
    inverse = (columns + 8 * (pair // 2), 2 * g + pair % 2)  # rows are n2, columns j1
    first, second = (
        pack_factors(np.exp(2j * np.pi * n2 * (j0 + PHASE + config.radix * j1) / config.points))
        for j1, n2 in (forward, inverse)
    )
    return first, second


def pack_factors(factors: npt.NDArray[np.complex128]) -> npt.NDArray[np.generic]:
    """Return factors [j0][lane][pair][2] as [j0][words][lane]: halves, real parts first."""
    parts = np.stack([factors.real, factors.imag], axis=1)  # [j0][part][lane][pair][2]
    return np.ascontiguousarray(parts).astype(np.float16)
