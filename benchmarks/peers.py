"""Figures of other libraries on an H100, committed once, for machines on which those are not installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fftconv_cupy.benchmarks import storage

PUBLISHED_NOTE = "published"
"""The note of a record that was not timed in the run that it is shown with."""

FILE = Path(__file__).resolve().parent / "results" / "peers-h100.json"
_PROBLEM = ("direction", "mode", "gated", "dtype", "filter", "batch", "channels", "seqlen", "filter_len", "layout")

Record = dict[str, Any]


def is_same_problem(one: Record, other: Record) -> bool:
    """Return whether two records are of the same problem, whoever computed it."""
    return all(one.get(name) == other.get(name) for name in _PROBLEM)


@cache
def published() -> tuple[Record, ...]:
    """Return all published figures; none where the package does not run from a checkout."""
    return tuple(storage.load(FILE)["records"]) if FILE.exists() else ()


def published_beside(records: Sequence[Record], names: Iterable[str]) -> list[Record]:
    """Return figures of the libraries `names` for the problems of records, marked as published.

    The floor is that of the bandwidth at which they were timed. Only a checkout of the repository has the file.
    """
    known = [record for record in published() if record["impl"] in set(names)]
    found = []
    for record in records:
        if record["suite"] not in ("host", "start", "training"):
            same = (other for other in known if is_same_problem(record, other))
            found += [{**other, "suite": record["suite"], "note": PUBLISHED_NOTE} for other in same]
    unique = {storage.identity(record): record for record in found}
    return list(unique.values())


def source() -> str:
    """Return where the published figures come from, on one line."""
    facts = storage.load(FILE)["environment"]
    return f"{facts['gpu']}, driver {facts['driver']}, {facts['date']}, benchmarks/results/{FILE.name}"
