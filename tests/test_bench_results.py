"""Committed results are consistent and as they were written, and the README shows what they hold."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path

import pytest
from bench_session import bench

from fftconv_cupy.benchmarks import peers, readme, storage
from fftconv_cupy.benchmarks.baselines import OURS
from fftconv_cupy.benchmarks.cells import cell_of
from fftconv_cupy.benchmarks.short import ShortCell
from fftconv_cupy.errors import InvalidArgumentError

FILES = sorted(readme.RESULTS.glob("*.json"))
README = (readme.REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_committed_results_are_consistent(path):
    content = storage.load(path)
    assert "digest" in content
    assert storage.flaws(content) == []


@pytest.mark.parametrize("name", ["ms", "floor_ms", "error", "extra_mib", "batch", "launches"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_figure_that_was_changed_by_hand_is_found(path, name, tmp_path):
    content = json.loads(path.read_text())
    record = next(record for record in content["records"] if record["ms"])
    record[name] = 1 + 2 * (record[name] or 0)
    edited = tmp_path / path.name
    edited.write_text(json.dumps(content))
    with pytest.raises(InvalidArgumentError, match="whose digest is that of others"):
        storage.load(edited)
    assert storage.flaws(content)[0] == "the digest is that of other results"
    done = bench("--from", edited)
    assert done.exit_code == 1
    assert "figures are not edited" in done.output


@pytest.mark.parametrize("option", ["--check", "--from"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_file_is_shown_and_judged_in_80_columns(path, option, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = bench(option, path)
    assert done.exit_code == 0, done.output
    assert [line for line in done.output.splitlines() if len(line) > 80] == []
    if option == "--from":
        found, said = json.loads(path.read_text())["environment"], " ".join(done.output.split())
        versions = [found[name] for name in ("gpu", "driver", "cupy", "nvrtc") if name in found]
        assert all(version in said for version in (*versions, found.get("commit", "")[:12]))


def made():
    """Return results of a forward cell with both filters, and of a short convolution, as a run would write them."""
    records = []
    short = ShortCell.of(16, 768, 1024, 3, layout="BHL", direction="forward")
    for cell, launches in (
        (cell_of("conv", "causal", 1024, gated=True, dtype="float16"), 1),
        (cell_of("conv", "causal", 1024, gated=True, dtype="float16", filter="raw"), 2),
        (short, 1),
    ):
        floor = cell.floor_bytes / 3000.0 / 1e6
        times = {"ms": 2 * floor, "runs_ms": [3 * floor, 2 * floor, floor], "floor_ms": floor, "scale": cell.scale}
        rest = {
            "error": 2e-4,
            "extra_mib": 1.0,
            "burst_ms": 101.0,
            "l2_flushed": True,
            "launches": launches,
            "note": None,
        }
        records.append({"suite": cell.suite, "impl": OURS, **cell.facts, **times, **rest})
    environment = {"gpu": "H100", "driver": "1", "version": "1", "commit": "abc", "command": "fftconv bench", "runs": 3}
    environment |= {"copies_gb_per_s": [3000.0] * 3, "copy_gb_per_s": 3000.0, "min_burst_ms": 100.0}
    return {"environment": environment, "records": records}


def flaws_of(content):
    """Return the flaws of results whose digest was made anew, as by one who means it."""
    return storage.flaws({**content, "digest": storage.digest(content)})


def test_results_of_a_run_have_no_flaws():
    assert flaws_of(made()) == []


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"ms": 0.5}, "the time is not the median of the runs"),
        ({"ms": 0.01, "runs_ms": [0.01]}, "0.01 ms is less than memory allows"),
        ({"ms": None}, "there is neither a time nor a note"),
        ({"floor_ms": 0.07}, "the floor is 0.0671089 ms, not 0.07"),
        ({"floor_ms": None}, "the floor is 0.0671089 ms, not None"),
        ({"scale": 2.0}, "the scale is 1.0"),
        ({"fft_size": 2048}, "the FFT size is 1024"),
        ({"batch": 32}, "the scale is 2.0"),
        ({"dtype": "float32"}, "the floor is"),
        ({"gated": False}, "the floor is"),
        ({"mode": "half"}, "there is no such problem"),
        ({"error": 0.5}, "an error of 0.5 is that of a wrong result"),
        ({"burst_ms": 99.0}, "a burst of 99.0 ms is too short"),
        ({"launches": None}, "the launches are missing"),
        ({"launches": 0}, "0 launches compute nothing"),
        ({"launches": 3}, "2 launches are fewer than with a prepared filter"),
        ({"impl": "FlashFFTConv"}, "1 launches of another library are not known"),
        ({"filter": "raw"}, "there are two of it"),
    ],
)
def test_records_that_cannot_be_true_are_found(change, flaw):
    content = made()
    content["records"][0] |= change
    assert any(flaw in found for found in flaws_of(content)), flaws_of(content)


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"copy_gb_per_s": 2999.0}, "copy_gb_per_s is not the median of the copies"),
        ({"copies_gb_per_s": [3000.0] * 4}, "4 copies were timed in 3 runs"),
        ({"commit": ""}, "the environment has no commit"),
        ({"driver": None}, "the environment has no driver"),
    ],
)
def test_environments_that_cannot_be_true_are_found(change, flaw):
    content = made()
    content["environment"] |= change
    assert flaw in flaws_of(content)


def test_a_record_without_memory_has_no_flaw():
    content = made()
    content["records"][2] |= {"ms": None, "runs_ms": [], "error": None, "burst_ms": None, "launches": None}
    content["records"][2]["note"] = "out of memory"
    assert flaws_of(content) == []


def test_what_is_written_is_read_and_infinities_are_none(tmp_path):
    content = copy.deepcopy(made())
    content["records"][0]["error"] = float("inf")
    path = tmp_path / "results.json"
    storage.write(path, content)
    assert storage.load(path)["records"][0]["error"] is None


def test_the_published_figures_are_those_of_the_table():
    """A few of each part, as they stand there: scaled, in milliseconds."""
    found = {storage.identity(record): record for record in peers.published()}

    def record(impl, cell):
        return found[storage.identity({"suite": cell.suite, "impl": impl, **cell.facts, "framework": "torch"})]

    def shown(impl, cell):
        return record(impl, cell)["ms"] * cell.scale

    gated = cell_of("conv", "causal", 32768, gated=True, dtype="float16", filter="raw")
    assert shown("FlashFFTConv", gated) == pytest.approx(25.1)
    assert record("FlashFFTConv", gated)["error"] == 1.0e-3
    assert shown(
        "subquadratic-ops", cell_of("conv", "causal", 1 << 22, gated=False, dtype="float16", filter="raw")
    ) == (pytest.approx(1514))
    assert shown("FlashFFTConv", cell_of("conv", "circular", 8192, gated=True, dtype="bfloat16", filter="raw")) == (
        pytest.approx(4.05)
    )
    short = ShortCell.of(16, 8192, 8192, 4, layout="BLH", direction="backward")
    assert shown("causal-conv1d", short) == 6.06
    assert len(peers.published()) == 222


def test_the_readme_shows_the_committed_results():
    assert readme.updated(README) == README


@pytest.mark.parametrize("name", ["speed", "peers", "precision"])
def test_a_figure_of_the_readme_that_was_changed_is_found(name):
    figure = readme.sections()[name].splitlines()[-1].split("|")[-2]  # in the last row
    assert f"|{figure}|" in README
    changed = README.replace(f"|{figure}|", "| 0.01 |")
    assert readme.updated(changed) == README


def test_the_summary_says_what_the_table_of_ratios_says():
    summary, rows = (readme.sections()[name] for name in ("summary", "peers"))
    assert summary in README
    head, _, *lines = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines())
    spans = []
    for column in range(1, len(head)):
        factors = sorted(float(line[column].split()[0]) for line in lines)
        spans.append(f"{factors[0]} to {factors[-1]}")
    for index, name in enumerate(head[1::2]):
        assert f"{name} {spans[2 * index]} and {spans[2 * index + 1]}" in summary.replace("\n", " ")
    changed = README.replace(summary, summary.replace(" to ", " to 1", 1))
    assert readme.updated(changed) == README != changed


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="<!-- peers -->"):
        readme.updated(README.replace("<!-- peers -->", ""))


def png_texts(path: Path) -> dict[str, str]:
    """Return the text chunks of a PNG file."""
    data, texts, place = path.read_bytes(), {}, 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"tEXt":
            name, _, text = data[place + 8 : place + 8 + length].partition(b"\0")
            texts[name.decode("latin1")] = text.decode("latin1")
        place += length + 12
    return texts


PICTURES = {"PICTURE": readme.PICTURED, "PRECISION_PICTURE": (readme.PRECISION,)}


@pytest.mark.parametrize(("picture", "source"), PICTURES.items())
def test_pictures_were_drawn_from_the_committed_results(picture, source):
    path = getattr(readme, picture)
    assert png_texts(path)["Description"] == readme.digest_of(*source)
    pages = [readme.REPOSITORY / "README.md", *(readme.REPOSITORY / "docs").glob("*.md")]
    assert any(str(path.relative_to(readme.REPOSITORY)) in page.read_text() for page in pages)


def test_the_command_writes_readme_and_pictures(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figure = readme.sections()["precision"].splitlines()[-1].split("|")[-2]
    (tmp_path / "README.md").write_text(README.replace(f"|{figure}|", "| 0.01 |"))
    monkeypatch.setattr(readme, "REPOSITORY", tmp_path)
    for picture in PICTURES:
        monkeypatch.setattr(readme, picture, tmp_path / f"{picture}.png")
    readme.main()
    assert (tmp_path / "README.md").read_text() == README
    for picture, source in PICTURES.items():
        assert png_texts(tmp_path / f"{picture}.png")["Description"] == readme.digest_of(*source)
    assert capsys.readouterr().out == "README.md\nPICTURE.png\nPRECISION_PICTURE.png\n"
