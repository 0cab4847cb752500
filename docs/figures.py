"""Tables of the committed timings, which the directive ``figures`` of conf.py puts into pages.

No figure is written in a page by hand, so none can disagree with ``benchmarks/results``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fftconv_cupy.benchmarks import targets

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
OUTPUTS, GRADIENTS = RESULTS / "targets-h100.json", RESULTS / "backward-h100.json"
PEERS = RESULTS / "peers-h100.json"
SHORT, PRECISION = RESULTS / "short-h200.json", RESULTS / "precision-h200.json"
FILES = (OUTPUTS, GRADIENTS, PEERS, SHORT, PRECISION)

Record = dict[str, Any]
Rows = list[list[str]]


def load(path: Path) -> dict[str, Any]:
    """Return a file of results: its environment and its records."""
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def forward() -> Rows:
    """Outputs in float16 by FFT size."""
    columns = {
        "causal": {"mode": "causal", "gated": False, "filter": "prepared"},
        "causal, raw filter": {"mode": "causal", "gated": False, "filter": "raw"},
        "causal, gated": {"mode": "causal", "gated": True, "filter": "prepared"},
        "circular": {"mode": "circular", "gated": False, "filter": "prepared"},
        "circular, gated": {"mode": "circular", "gated": True, "filter": "prepared"},
    }
    return _by_size(_chosen(OUTPUTS, suite="speed", dtype="float16"), columns)


def short() -> Rows:
    """Depthwise convolutions and their gradients, in both layouts, in times the floor."""
    kinds = [(direction, layout) for direction in ("forward", "backward") for layout in ("BHL", "BLH")]
    names = [f"{'gradients' if direction == 'backward' else 'outputs'}, {layout}" for direction, layout in kinds]
    rows = [["L", "D", "K", *names]]
    found: dict[tuple[int, int, int], dict[tuple[str, str], Record]] = {}
    for record in _chosen(SHORT):
        shape = record["seqlen"], record["channels"], record["filter_len"]
        found.setdefault(shape, {})[record["direction"], record["layout"]] = record
    for shape, cells in sorted(found.items()):
        rows.append([*map(str, shape), *(_floors(cells[kind]) if kind in cells else "" for kind in kinds)])
    return rows


def precision() -> Rows:
    """Time and error of each precision where they differ, causal."""
    rows = [["computed", "FFT size", "dtype", "highest", "error", "medium", "error"]]
    found: dict[tuple[str, bool, int, str], dict[str, Record]] = {}
    for record in _chosen(PRECISION, mode="causal"):
        problem = record["direction"], record["gated"], record["fft_size"], record["dtype"]
        found.setdefault(problem, {})[record["precision"]] = record
    for (direction, gated, size, dtype), cells in sorted(
        found.items(), key=lambda item: (item[0][0] == "backward", *item[0])
    ):
        what = f"{'gradients' if direction == 'backward' else 'outputs'}{', gated' if gated else ''}"
        shown = [
            text
            for name in ("highest", "medium")
            for text in (f"{_ms(cells[name])}\N{NO-BREAK SPACE}({_floors(cells[name])})", f"{cells[name]['error']:.1e}")
        ]
        rows.append([what, str(size), dtype, *shown])
    return rows


def float32() -> Rows:
    """Outputs in float32 by FFT size."""
    return _by_size(_chosen(OUTPUTS, suite="float32"), {"causal, float32": {"filter": "prepared"}})


def backward() -> Rows:
    """All gradients, with a raw filter, by FFT size."""
    columns = {
        "float16": {"gated": False, "dtype": "float16"},
        "float16, gated": {"gated": True, "dtype": "float16"},
        "bfloat16": {"gated": False, "dtype": "bfloat16"},
        "bfloat16, gated": {"gated": True, "dtype": "bfloat16"},
    }
    return _by_size(_chosen(GRADIENTS, suite="backward"), columns)


def shapes() -> Rows:
    """Rows that do not fill their transform, and strided ones, against those that do."""
    rows = [["what", "L", "gated", "ms", "times the floor"]]
    for record in _chosen(OUTPUTS, dtype="float16"):
        if record["suite"] in ("shapes", "strided"):
            what = "every other row" if record["suite"] == "strided" else record["mode"]
            gated = "yes" if record["gated"] else "no"
            rows.append([what, str(record["seqlen"]), gated, _ms(record), _floors(record)])
    return rows


def errors() -> Rows:
    """The least and the largest relative error against float64, by what was computed."""
    rows = [["computed", "dtype", "least error", "largest error"]]
    for what, path, suites in (("outputs", OUTPUTS, ("speed", "float32")), ("gradients", GRADIENTS, ("backward",))):
        found: dict[str, list[float]] = {}
        for record in _chosen(path):
            if record["suite"] in suites:
                found.setdefault(record["dtype"], []).append(record["error"])
        rows += [[what, dtype, f"{min(values):.2g}", f"{max(values):.2g}"] for dtype, values in found.items()]
    return rows


def missed() -> Rows:
    """Every figure that the project has set itself and not met."""
    rows = [["what", "problem", "measured", "at most"]]
    for path in (OUTPUTS, GRADIENTS):
        for verdict in targets.check(load(path)["records"]):
            if not verdict.is_met:
                numbers = [f"{number:.3g} {verdict.unit}" for number in (verdict.measured, verdict.limit)]
                rows.append([verdict.what, verdict.cell, *numbers])
    return rows


def peers() -> Rows:
    """Other libraries beside ours, each with the filter as it comes, in float16."""
    kinds = (
        ("causal", OUTPUTS, {"direction": "forward", "mode": "causal", "gated": False}),
        ("causal, gated", OUTPUTS, {"direction": "forward", "mode": "causal", "gated": True}),
        ("circular, gated", OUTPUTS, {"direction": "forward", "mode": "circular", "gated": True}),
        ("gradients, causal, gated", GRADIENTS, {"direction": "backward", "mode": "causal", "gated": True}),
    )
    others = ("FlashFFTConv", "subquadratic-ops", "torch.fft rfft")
    rows = [["what", "FFT size", "ours", *others]]
    for what, path, problem in kinds:
        wanted = {**problem, "dtype": "float16", "filter": "raw"}
        theirs = [record for record in load(PEERS)["records"] if _agrees(record, {**wanted, "suite": "conv"})]
        for record in _chosen(path, **wanted):
            same = {r["impl"]: r for r in theirs if r["fft_size"] == record["fft_size"]}
            if record["suite"] in ("speed", "backward") and same:
                times = [_times(same[name], record) if name in same else "" for name in others]
                rows.append([what, str(record["fft_size"]), _ms(record), *times])
    return rows


def memory() -> Rows:
    """Device memory beside inputs and outputs, where it is largest."""
    rows = [["problem", "dtype", "filter", "MiB"]]
    for record in _chosen(OUTPUTS, suite="memory"):
        shape = f"{record['mode']}, B={record['batch']} H={record['channels']} L={record['seqlen']}"
        rows.append([shape, record["dtype"], record["filter"], f"{record['extra_mib']:.1f}"])
    return rows


def places() -> Rows:
    """Where and at which commit the files were measured."""
    rows = [["file", "GPU", "driver", "CuPy", "NVRTC", "copy, GB/s", "commit"]]
    for path in FILES:
        found = load(path)["environment"]
        versions = [str(found.get(name, "")) for name in ("gpu", "driver", "cupy", "nvrtc")]
        rows.append([path.name, *versions, f"{found['copy_gb_per_s']:.0f}", str(found.get("commit", ""))])
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    table.__name__: table
    for table in (
        *(forward, float32, backward, shapes, errors, missed, peers, memory, places),
        *(short, precision),
    )
}


def _chosen(path: Path, **wanted: Any) -> list[Record]:
    """Return our records in which the given fields have the given values."""
    ours = {**wanted, "impl": "fftconv_cupy"}
    return [record for record in load(path)["records"] if _agrees(record, ours) and record["ms"] is not None]


def _agrees(record: Record, wanted: dict[str, Any]) -> bool:
    return all(record[key] == value for key, value in wanted.items())


def _by_size(records: Sequence[Record], columns: dict[str, dict[str, Any]]) -> Rows:
    """Return a row for each FFT size: its times in ms, and in parentheses how many times the floor they are."""
    rows = [["FFT size", *columns]]
    for size in sorted({record["fft_size"] for record in records}):
        row = [str(size)]
        for wanted in columns.values():
            cells = [record for record in records if _agrees(record, {**wanted, "fft_size": size})]
            row.append(f"{_ms(cells[0])}\N{NO-BREAK SPACE}({_floors(cells[0])})" if cells else "")
        rows.append(row)
    return rows


def _ms(record: Record) -> str:
    return f"{record['ms'] * record['scale']:.3g}"


def _times(record: Record, ours: Record) -> str:
    ratio = record["ms"] * record["scale"] / (ours["ms"] * ours["scale"])
    return f"{_ms(record)}\N{NO-BREAK SPACE}({ratio:.1f})"


def _floors(record: Record) -> str:
    return f"{record['ms'] / record['floor_ms']:.2f}"
