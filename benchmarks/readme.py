"""The figures of README.md, made from committed results: ``python -m fftconv_cupy.benchmarks.readme`` writes them anew.

Tables stand between ``<!-- NAME -->`` and ``<!-- /NAME -->``. Pictures carry the digests of the results that they were
drawn from, so that a test can tell whether they are of today's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fftconv_cupy.benchmarks import peers, plots, storage, tables
from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.suites import PUBLISHED_SIZES

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
SOURCES = ("targets-h100.json", "backward-h100.json")
PICTURE = RESULTS / "speed-h100.png"

_SUITES = ("speed", "backward", "conv")
_COLUMNS = {
    "causal": ("forward", "causal", False),
    "causal, gated": ("forward", "causal", True),
    "circular, gated": ("forward", "circular", True),
    "causal gradients": ("backward", "causal", False),
    "causal gradients, gated": ("backward", "causal", True),
}
_PEERS = ("torch.fft rfft", "FlashFFTConv", "subquadratic-ops")

Record = dict[str, Any]


def sources() -> dict[str, storage.Content]:
    """Return the files of results that the README shows, by name."""
    return {name: storage.load(RESULTS / name) for name in SOURCES}


def digests() -> str:
    """Return the digests of all results that the picture is drawn from, on one line."""
    names = (*SOURCES, peers.FILE.name)
    return " ".join(storage.load(RESULTS / name)["digest"] for name in names)


def sections() -> dict[str, str]:
    """Return what the README has between its marks: our times, and how many times as long others take."""
    records = _records()
    return {"speed": "\n".join(_times(records)), "peers": "\n".join(_ratios(records))}


def updated(text: str) -> str:
    """Return the README's text with its figures written anew.

    Raises:
        ValueError: a mark is missing.
    """
    for name, section in sections().items():
        marks = re.compile(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- /{name} -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(
                f"README.md has no <!-- {name} --> and <!-- /{name} -->, each on a line between empty ones"
            )
        text = marks.sub(lambda match, section=section: match[1] + section + match[2], text)  # type: ignore[misc]
    return text


def draw(path: Path) -> None:
    """Draw the gated causal convolution beside the others, outputs and gradients."""
    records = [r for r in _records() if r["gated"] and r["mode"] == "causal"]
    beside = peers.published_beside(records, {record["impl"] for record in peers.published()})
    places = {f"{c['environment']['gpu']}, driver {c['environment']['driver']}" for c in sources().values()}
    caption = f"{' and '.join(sorted(places))}; ours at commit {' and '.join(_commits())}"
    plots.draw([*records, *beside], path, caption, metadata={"Description": digests()})


def _records() -> list[Record]:
    return [
        record
        for content in sources().values()
        for record in content["records"]
        if record["impl"] == OURS and record["dtype"] == "float16" and record["suite"] in _SUITES
    ]


def _commits() -> list[str]:
    return list(dict.fromkeys(content["environment"]["commit"] for content in sources().values()))


def _sizes(records: Sequence[Record]) -> list[int]:
    return sorted({record["fft_size"] for record in records} & {*PUBLISHED_SIZES})


def _times(records: Sequence[Record]) -> Iterator[str]:
    """Yield a row a size: outputs with a prepared filter, gradients with a raw one."""
    yield from _head(_COLUMNS)
    for size in _sizes(records):
        cells = [_cell(records, size, *column) for column in _COLUMNS.values()]
        yield _line([str(size), *(f"{tables.shown_ms(cell):.3g}" if cell else "" for cell in cells)])


def _ratios(records: Sequence[Record]) -> Iterator[str]:
    """Yield a row a size: gated causal outputs and gradients, a raw filter, theirs over ours."""
    yield from _head([f"{name}{what}" for name in _PEERS for what in ("", ", gradients")])
    for size in _sizes(records):
        cells = []
        for name in _PEERS:
            for direction in ("forward", "backward"):
                ours = _cell(records, size, direction, "causal", True, filter="raw")
                beside = peers.published_beside([ours], [name]) if ours else []
                cells.append(_ratio(beside[0], ours) if beside and ours else "")
        if any(cells):
            yield _line([str(size), *cells])


def _ratio(theirs: Record, ours: Record) -> str:
    is_wrong = theirs["error"] is not None and theirs["error"] >= tables.WRONG
    return f"{theirs['ms'] / ours['ms']:.1f}{' (a wrong result)' if is_wrong else ''}"


def _cell(
    records: Sequence[Record], size: int, direction: str, mode: str, gated: bool, filter: str = "prepared"
) -> Record | None:
    wanted = {"fft_size": size, "direction": direction, "mode": mode, "gated": gated}
    wanted["filter"] = "raw" if direction == "backward" else filter
    return next((r for r in records if all(r[name] == value for name, value in wanted.items())), None)


def _head(names: Sequence[str] | dict[str, Any]) -> Iterator[str]:
    yield _line(["FFT size", *names])
    yield _line(["---"] * (1 + len(names)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the tables of README.md and its picture anew."""
    path = REPOSITORY / "README.md"
    path.write_text(updated(path.read_text()))
    draw(PICTURE)
    sys.stdout.write(f"{path.name}\n{PICTURE.relative_to(REPOSITORY)}\n")


if __name__ == "__main__":
    main()
