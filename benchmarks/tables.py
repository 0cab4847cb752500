"""Results as text: a table a kind of problem, and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.cells import FULL_ROWS
from fftconv_cupy.benchmarks.peers import PUBLISHED_NOTE, is_same_problem

Record = dict[str, Any]
Aligned = Callable[[Sequence[str], Sequence[Sequence[str]]], str]

HEAD = ("way", "B x H", "L", "ms", "x floor", "x ours", "MiB", "error")
WRONG = 0.1
"""The relative error from which on a result is called wrong; no rounding explains it."""

_ONE_WAY = ("short", "start", "training")  # suites in which ours has no two kinds of filters
_UNSCALED = ("host", "start", "training", "models", "short")
_GROUP = ("suite", "direction", "mode", "gated", "dtype", "layout", "start")


def grouped(records: Sequence[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Return records by the kind of problem, those of one problem beside each other and ours first."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(name) for name in _GROUP), []).append(record)
    for members in groups.values():
        members.sort(key=lambda r: (r["seqlen"], -r["batch"], -r["channels"], r["filter_len"], r["impl"] != OURS))
    return groups


def is_scaled(record: Record) -> bool:
    """Return whether the time of a record is shown as one of B x H = 64 x 768."""
    return record["suite"] not in _UNSCALED


def shown_ms(record: Record) -> float:
    """Return the time of a record as it is shown."""
    return float(record["ms"] * record["scale"] if is_scaled(record) else record["ms"])


def titled(record: Record) -> str:
    """Return what a group of records is of, on one line."""
    words = [record["mode"], "gated" if record["gated"] else "plain", record["dtype"]]
    if record["suite"] == "training":
        words = [f"steps of a model of {record['layers']} layers and width H", record["dtype"]]
    words += [record["layout"]] if record.get("layout") else []
    words += [f"{record['start']} start"] if record.get("start") else []
    words += ["gradients"] if record["direction"] == "backward" else []
    scaled = f"; ms as of B x H = 64 x {FULL_ROWS // 64}" if is_scaled(record) else ""
    return f"{record['suite']}: {', '.join(words)}{scaled}"


def text(records: Sequence[Record], aligned: Aligned) -> str:
    """Return a table for each kind of problem; the shape stands at the first of the ways that compute it.

    Args:
        records: timed ones, and published ones beside them, which are marked with a star.
        aligned: makes a table of a head and rows.
    """
    parts = []
    for members in grouped(records).values():
        rows, shape = [], ("", "")
        for record in members:
            name, batch, length, *rest = _row(record, members)
            rows.append((name, *(("", "") if (batch, length) == shape else (batch, length)), *rest))
            shape = batch, length
        parts.append(f"{titled(members[0])}\n{aligned(HEAD, rows)}")
    return "\n\n".join(parts)


def comma_separated(records: Sequence[Record]) -> str:
    """Return records as comma-separated values: a column for each field that one of them has."""
    names = list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        runs = " ".join(map(str, record.get("runs_ms", ())))
        writer.writerow({**record, "runs_ms": runs} if "runs_ms" in record else record)
    return buffer.getvalue()


def ours_beside(record: Record, records: Sequence[Record]) -> Record | None:
    """Return our record of the same problem that does the same work: with a raw filter, where one was timed."""
    like = {**record, "filter": "raw"}
    same = [r for r in records if r["impl"] == OURS and r["ms"] and is_same_problem({**r, "filter": "raw"}, like)]
    same.sort(key=lambda r: (r["filter"] != "raw", r["precision"] != "highest", r["framework"] != record["framework"]))
    return same[0] if same else None


def way_of(record: Record) -> str:
    """Return who computed a record, ours with its kind of filter where there are two; with a star where published."""
    name = str(record["impl"])
    if name == OURS:
        name = "fftconv" if record["suite"] in _ONE_WAY else f"fftconv {record['filter']}"
        name += f" {record['precision']}" if record["precision"] != "highest" else ""
    return f"{name}*" if record.get("note") == PUBLISHED_NOTE else name


def line(record: Record) -> str:
    """Return who computed what, as one line."""
    words = [way_of(record), record["mode"], "gated" if record["gated"] else "plain", record["dtype"]]
    words += ["backward"] if record["direction"] == "backward" else []
    words += [str(record[name]) for name in ("layout", "start") if record.get(name)]
    taps = f" K={record['filter_len']}" if record["filter_len"] != record["seqlen"] else ""
    return f"{' '.join(words)} {record['batch']}x{record['channels']}x{record['seqlen']}{taps}"


def _row(record: Record, members: Sequence[Record]) -> tuple[str, ...]:
    name = way_of(record)
    if record["impl"] == OURS and len({r["framework"] for r in members if r["impl"] == OURS}) > 1:
        name += f", {record['framework']}"
    length = str(record["seqlen"])
    if record["filter_len"] != record["seqlen"]:
        length += f" K={record['filter_len']}"
    place = (name, f"{record['batch']}x{record['channels']}", length)
    if record["ms"] is None:
        return (*place, str(record["note"]))
    ours = ours_beside(record, members)
    return (
        *place,
        _digits(shown_ms(record)),
        _ratio(record["ms"], record["floor_ms"]) if record["suite"] != "host" else "-",
        _ratio(record["ms"], ours["ms"] if ours else None),
        "-" if record["extra_mib"] is None else f"{record['extra_mib']:.1f}",
        _error(record["error"]),
    )


def is_wrong(record: Record) -> bool:
    """Whether the result that was timed is wrong, which no rounding explains."""
    return record.get("error") is not None and record["error"] >= WRONG


def _digits(ms: float) -> str:
    """Return four significant digits, without an exponent."""
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.4g}"


def _error(error: float | None) -> str:
    if error is None:
        return "-"
    return f"{error:.1e}" if error < WRONG else "WRONG"


def _ratio(ms: float, other: float | None) -> str:
    if not other:
        return "-"
    return f"{ms / other:.2f}" if ms < 100 * other else f"{ms / other:.0f}"
