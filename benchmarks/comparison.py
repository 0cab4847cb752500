"""Two files of results set against each other: which times have grown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.storage import Content, identity

TOLERANCE = 1.05

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """A time now and then; None where memory did not suffice."""

    record: Record
    before_ms: float | None

    @property
    def ratio(self) -> float:
        """The time now over that before: infinite where memory does not suffice any more, 0 where it does again."""
        now = self.record["ms"]
        if now is None or self.before_ms is None:
            return float("inf") if now is None else 0.0
        return float(now / self.before_ms)

    @property
    def is_regression(self) -> bool:
        """Whether it is one of ours and more than `TOLERANCE` times what it was."""
        return self.record["impl"] == OURS and self.ratio > TOLERANCE

    @property
    def word(self) -> str:
        """The change in one word."""
        if self.is_regression:
            return "SLOWER"
        return "slower" if self.ratio > TOLERANCE else "faster" if self.ratio < 1 / TOLERANCE else "same"


def changes(records: Sequence[Record], old: Sequence[Record]) -> list[Change]:
    """Return a change for each record that the old results have too, the largest growth first."""
    before = {identity(record): record["ms"] for record in old}
    found = [
        Change(record, before[identity(record)])
        for record in records
        if identity(record) in before and (record["ms"] is not None or before[identity(record)] is not None)
    ]
    return sorted(found, key=lambda change: -change.ratio)


def differences(environment: dict[str, Any], old: Content) -> list[str]:
    """Return what else than the code differs between two results, a line each: GPU, driver, bandwidth, versions."""
    other = old["environment"]
    lines = [
        f"{name}: {other.get(name)} before, {environment.get(name)} now"
        for name in ("gpu", "driver", "cupy", "nvrtc", "version", "commit")
        if other.get(name) != environment.get(name)
    ]
    copies = other["copy_gb_per_s"], environment["copy_gb_per_s"]
    if max(copies) > min(copies) * TOLERANCE:
        lines.append(f"copy: {copies[0]:.0f} GB/s before, {copies[1]:.0f} now")
    return lines
