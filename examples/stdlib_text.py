"""The text that the language models learn: Python's own standard library, split by files, and its byte bigrams."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

HELD_OUT_EVERY = 10  # one file in ten
SMOOTHING = 4.0  # bytes that the unigram distribution counts for beside those seen after a byte


class Corpus(NamedTuple):
    """Bytes (n,) uint8 of whole modules: those to learn from, and those to judge by."""

    train: np.ndarray
    held_out: np.ndarray


def read_corpus() -> Corpus:
    """Read the modules at the top of the standard library, in the order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(folder.glob("*.py"))
    if len(paths) < HELD_OUT_EVERY:
        sys.exit(f"{folder} holds {len(paths)} modules in source; at least {HELD_OUT_EVERY} are needed")
    held_out = paths[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    train = [path for path in paths if path not in held_out]
    return Corpus(*(np.frombuffer(b"".join(p.read_bytes() for p in part), np.uint8) for part in (train, held_out)))


def random_windows(text: np.ndarray, length: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Return (batch, length + 1) int64: at each of `length` points a byte, and the one to predict from it on."""
    starts = rng.integers(0, len(text) - length, size=batch)
    return text[starts[:, None] + np.arange(length + 1)].astype(np.int64)


def even_windows(text: np.ndarray, length: int, count: int) -> np.ndarray:
    """Return (count, length + 1) int64: windows at equal distances, the same in every run."""
    starts = np.linspace(0, len(text) - length - 1, count).astype(np.int64)
    return text[starts[:, None] + np.arange(length + 1)].astype(np.int64)


def bigram_loss(train: np.ndarray, windows: np.ndarray) -> float:
    """Return the nats a byte of `windows` (count, length + 1) under a bigram model of the bytes `train`.

    A byte's successors are counted, and its rare ones smoothed towards how often a byte occurs at all.
    """
    pairs = np.bincount(train[:-1].astype(np.int64) * 256 + train[1:], minlength=256 * 256).reshape(256, 256)
    unigram = (pairs.sum(axis=0) + 1) / (pairs.sum() + 256)
    model = (pairs + SMOOTHING * unigram) / (pairs.sum(axis=1, keepdims=True) + SMOOTHING)
    return float(-np.log(model[windows[:, :-1], windows[:, 1:]]).mean())
