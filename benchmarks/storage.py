"""Files of results: written with a digest, read again, and checked for whether they can be true."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.kinds import cell_of_record
from fftconv_cupy.errors import FFTConvError, InvalidArgumentError, message

Record = dict[str, Any]
Content = dict[str, Any]

PUBLISHED = "published"
"""The field of an environment that says where figures come from that were not timed by this package."""

IDENTITY = (
    *("suite", "impl", "direction", "mode", "gated", "precision", "dtype", "filter", "framework"),
    *("batch", "channels", "seqlen", "filter_len", "layout", "start", "layers"),
)
"""The fields that say what a record is of; some kinds of records have not all of them."""

_LEAST_SHARE_OF_FLOOR = 0.7  # of small problems the output stays in L2
_LARGEST_ERROR = 0.1
_ROUNDED = 1e-6  # figures that were not timed by this package were rounded before they were scaled


def identity(record: Record) -> tuple[Any, ...]:
    """Return what a record is of; two with the same are two timings of one thing."""
    return tuple(record.get(name) for name in IDENTITY)


def digest(content: Content) -> str:
    """Return a digest of environment and records: who changes a figure by hand must want to."""
    text = json.dumps([content["environment"], content["records"]], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, content: Content) -> None:
    """Write results, indented, with their digest."""
    kept: Content = finite({name: content[name] for name in ("environment", "records")})
    path.write_text(json.dumps({**kept, "digest": digest(kept)}, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Content:
    """Return a file of results.

    Raises:
        InvalidArgumentError: it is none, or was changed after it had been written.
    """
    try:
        content: Content = json.loads(path.read_text())
        is_changed = content.get("digest", digest(content)) != digest(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidArgumentError(
            message(
                path.name,
                got="something else",
                allowed="results of fftconv bench: an object of environment and records",
                do="Pass a file that fftconv bench --json wrote.",
            )
        ) from None
    if is_changed:
        raise InvalidArgumentError(
            message(
                path.name,
                got="results whose digest is that of others",
                allowed="a file as fftconv bench wrote it",
                do="Take the file from where it was written; figures are not edited.",
            )
        )
    return content


def flaws(content: Content) -> list[str]:
    """Return every way in which results disagree with themselves, a line each; none of a file that can be true."""
    found = [] if content.get("digest") == digest(content) else ["the digest is that of other results"]
    environment, records = content["environment"], content["records"]
    needed = ("gpu", "driver", "copy_gb_per_s")
    found += [f"the environment has no {name}" for name in needed if not environment.get(name)]
    is_published = PUBLISHED in environment
    if not is_published:
        found += _flaws_of_runs(environment)
    seen = set()
    for record in records:
        what = _words(record)
        if identity(record) in seen:
            found.append(f"{what}: there are two of it")
        seen.add(identity(record))
        found += [f"{what}: {flaw}" for flaw in _flaws_of_record(record, environment, is_published=is_published)]
        found += [f"{what}: {flaw}" for flaw in _flaws_of_launches(record, records)]
    return found


def _flaws_of_runs(environment: dict[str, Any]) -> Iterator[str]:
    for name in ("version", "commit", "command"):
        if not environment.get(name):
            yield f"the environment has no {name}"
    copies = environment["copies_gb_per_s"]
    if not 0 < len(copies) <= environment["runs"]:
        yield f"{len(copies)} copies were timed in {environment['runs']} runs"
    elif environment["copy_gb_per_s"] != statistics.median(copies):
        yield "copy_gb_per_s is not the median of the copies"


def _flaws_of_record(record: Record, environment: dict[str, Any], *, is_published: bool) -> Iterator[str]:
    try:
        cell = cell_of_record(record)
        size, scale, floor_bytes = cell.fft_size, cell.scale, cell.floor_bytes
    except (KeyError, FFTConvError) as error:
        yield f"there is no such problem ({error})"
        return
    if record["fft_size"] != size:
        yield f"the FFT size is {size}"
    if not math.isclose(record["scale"], scale):
        yield f"the scale is {scale}"
    ms, floor = record["ms"], record["floor_ms"]
    tolerance = _ROUNDED if is_published else 1e-9
    if floor_bytes is not None:
        true_floor = floor_bytes / environment["copy_gb_per_s"] / 1e6
        if floor is None or not math.isclose(floor, true_floor, rel_tol=tolerance):
            yield f"the floor is {true_floor:.6g} ms, not {floor}"
    if ms is None:
        if not record.get("note"):
            yield "there is neither a time nor a note"
        return
    if not 0 < ms < math.inf or (cell.measured == "gpu" and floor and ms < _LEAST_SHARE_OF_FLOOR * floor):
        yield f"{ms} ms is less than memory allows"
    if "runs_ms" in record and ms != statistics.median(record["runs_ms"]):
        yield "the time is not the median of the runs"
    if not is_published and cell.measured == "gpu" and record["burst_ms"] < environment["min_burst_ms"]:
        yield f"a burst of {record['burst_ms']} ms is too short"
    if record["impl"] == OURS and record["error"] is not None and not 0 <= record["error"] < _LARGEST_ERROR:
        yield f"an error of {record['error']} is that of a wrong result"


def _flaws_of_launches(record: Record, records: list[Record]) -> Iterator[str]:
    """Compare launches with those of the same problem with a prepared filter, whose spectrum is not made."""
    launches = record["launches"]
    if record["impl"] != OURS:
        if launches is not None:
            yield f"{launches} launches of another library are not known"
        return
    if launches is None:
        if record["ms"] is not None and record["floor_ms"] is not None:
            yield "the launches are missing"
        return
    if launches < 1:
        yield f"{launches} launches compute nothing"
    prepared = identity({**record, "filter": "prepared"})
    if record["filter"] == "raw":
        for other in records:
            if identity(other) == prepared and other["launches"] is not None and launches < other["launches"]:
                yield f"{launches} launches are fewer than with a prepared filter"


def _words(record: Record) -> str:
    return " ".join(str(value) for value in identity(record) if value is not None)


def finite(value: Any) -> Any:
    """Return a value with None in place of numbers that are not finite, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
