"""The command ``fftconv bench`` without a GPU: what it times, shows, writes, draws, compares, and how it exits."""

from __future__ import annotations

import csv
import json
import math
import sys

import bench_session
import pytest
from bench_session import H100_COPY, RECORD_KEYS, bench, judged, on_target
from click.testing import CliRunner

from fftconv_cupy.benchmarks import environment, storage
from fftconv_cupy.benchmarks.baselines import OURS, Implementation
from fftconv_cupy.benchmarks.cells import Cell
from fftconv_cupy.benchmarks.short import ShortCell
from fftconv_cupy.cli import main

launches, played_gpu = bench_session.launches, bench_session.played_gpu


@pytest.mark.usefixtures("played_gpu")
def test_the_targets_are_timed_judged_and_written(tmp_path):
    path = tmp_path / "targets.json"
    done = bench("--suite", "targets", "--json", str(path), "--commit", "abc")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("193 of 193 targets met")
    content = json.loads(path.read_text())
    assert storage.flaws(content) == []
    described = content["environment"]
    assert {"gpu", "driver", "torch", "version", "command", "copy_gb_per_s"} <= set(described)
    assert described["commit"] == "abc"
    assert described["copies_gb_per_s"] == [H100_COPY] * 3
    assert all(list(record) == RECORD_KEYS for record in content["records"])


def rows_of(output, way):
    """Return the columns of every row of a table for a way."""
    return [line.removeprefix(way).split() for line in output.splitlines() if line.startswith(f"{way} ")]


@pytest.mark.usefixtures("played_gpu")
def test_options_choose_and_the_table_shows_ratios():
    done = bench("--fft-size", "256", "--gates", "none", "--filter", "raw")
    assert done.exit_code == 0, done.output
    assert "custom: causal, plain, float16; ms as of B x H = 64 x 768" in done.output
    # B = 64: 1.07 times 0.032 ms, and 10 ms for the rfft way, whose shape is that of the row above.
    assert rows_of(done.output, "fftconv raw") == [["64x768", "128", "0.03424", "4.11", "1.00", "12.5", "2.0e-04"]]
    assert rows_of(done.output, "torch.fft rfft") == [["10", "1200", "292", "12.5", "2.0e-04"]]
    assert "NVIDIA H100 80GB HBM3, driver 580.1, CuPy" in done.output


@pytest.mark.usefixtures("played_gpu")
def test_precisions_stand_beside_each_other(tmp_path):
    path = tmp_path / "timed.json"
    asked = ("--precision", "highest", "--precision", "medium")
    done = bench("--fft-size", "256", "--gates", "none", "--filter", "raw", *asked, "--json", path)
    assert done.exit_code == 0, done.output
    assert len(rows_of(done.output, "fftconv raw medium")) == 1
    records = [record for record in json.loads(path.read_text())["records"] if record["impl"] == OURS]
    assert [record["precision"] for record in records] == ["highest", "medium"]
    assert storage.flaws(storage.load(path)) == []


@pytest.mark.usefixtures("played_gpu")
def test_a_suite_is_narrowed_to_a_precision(tmp_path):
    path = tmp_path / "timed.json"
    done = bench("--suite", "precision", "--precision", "high", "--direction", "forward", "--runs", 1, "--json", path)
    assert done.exit_code == 0, done.output
    assert {record["precision"] for record in json.loads(path.read_text())["records"]} == {"high"}


@pytest.mark.usefixtures("played_gpu")
def test_others_are_compared_with_ours_that_transforms_its_filter_too():
    done = bench("--fft-size", "256", "--gates", "none")
    assert [row[4] for row in rows_of(done.output, "fftconv prepared")] == ["0.93"]
    assert [row[-3] for row in rows_of(done.output, "fftconv raw")] == ["1.00"]
    assert [row[-3] for row in rows_of(done.output, "torch.fft rfft")] == ["292"]


@pytest.mark.usefixtures("played_gpu")
def test_only_what_is_missing_is_shown_as_published(monkeypatch, tmp_path):
    def missing(cell, data):
        raise ImportError("no module named flashfftconv")

    command = sys.modules["fftconv_cupy.cli.bench"]
    flash = Implementation("FlashFFTConv", "torch", lambda cell: True, missing)
    monkeypatch.setattr(command, "IMPLEMENTATIONS", (*command.IMPLEMENTATIONS, flash))
    path = tmp_path / "timed.json"
    done = bench("--fft-size", "256", "--gates", "none", "--json", path)
    assert done.exit_code == 0, done.output
    assert "FlashFFTConv is not timed: no module named flashfftconv" in done.output
    assert [row[0] for row in rows_of(done.output, "FlashFFTConv*")] == ["0.087"]
    assert "torch.fft rfft*" not in done.output
    assert "subquadratic-ops*" not in done.output
    assert {record["impl"] for record in json.loads(path.read_text())["records"]} == {OURS, "torch.fft rfft"}


@pytest.mark.usefixtures("played_gpu")
def test_gradients_are_compared_with_gradients():
    done = bench("--fft-size", "8192", "--gates", "both", "--filter", "raw", "--direction", "all")
    assert done.exit_code == 0, done.output
    heads = [line for line in done.output.splitlines() if line.startswith("custom: ")]
    assert [head.partition(";")[0] for head in heads] == [
        "custom: causal, gated, float16",
        "custom: causal, gated, float16, gradients",
    ]
    # 10 ms for the rfft way in either direction.
    assert [row[2:4] for row in rows_of(done.output, "fftconv raw")] == [["0.9416", "1.77"], ["2.15", "2.30"]]
    assert [row[2] for row in rows_of(done.output, "torch.fft rfft")] == ["10.62", "4.65"]


@pytest.mark.usefixtures("played_gpu")
@pytest.mark.parametrize("suite", ["conv", "shapes", "host"])
def test_tables_fit_a_terminal_of_80_columns(suite):
    done = bench("--suite", suite, "--runs", 1)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80


@pytest.mark.usefixtures("played_gpu")
def test_options_narrow_a_suite(tmp_path):
    path = tmp_path / "conv.json"
    options = ("--fft-size", 1024, "--fft-size", 4096, "--mode", "causal", "--gates", "both", "--direction", "forward")
    done = bench("--suite", "conv", *options, "--batch", 3, "--json", path)
    assert done.exit_code == 0, done.output
    records = [r for r in json.loads(path.read_text())["records"] if r["impl"] == OURS]
    assert [(r["fft_size"], r["filter"], r["batch"], r["channels"]) for r in records] == [
        (size, filter, 3, 768) for size in (1024, 4096) for filter in ("prepared", "raw")
    ]
    nothing = bench("--suite", "conv", "--fft-size", 2)
    assert nothing.exit_code == 2
    assert "has no problem of this kind" in nothing.output


@pytest.mark.usefixtures("played_gpu")
def test_the_budget_ends_a_benchmark_and_is_told(monkeypatch):
    done = bench("--fft-size", 256, "--budget-s", 0)
    assert done.exit_code == 0, done.output
    assert "The 0 seconds were over: of run 1, 4 of 4 problems were left out." in done.output


@pytest.mark.usefixtures("played_gpu")
def test_files_are_written_and_shown_again_without_a_gpu(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    paths = {ending: tmp_path / f"out.{ending}" for ending in ("json", "csv", "png")}
    files = ("--json", paths["json"], "--csv", paths["csv"], "--plot", paths["png"])
    timed = bench("--fft-size", 256, "--fft-size", 1024, *files)
    assert timed.exit_code == 0, timed.output
    content = storage.load(paths["json"])
    rows = list(csv.DictReader(paths["csv"].open()))
    assert [float(row["ms"]) for row in rows] == [record["ms"] for record in content["records"]]
    assert list(rows[0]) == RECORD_KEYS
    assert paths["png"].read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(environment, "gpu_count", lambda: (0, "none for this test"))
    again = tmp_path / "again.csv"
    shown = bench("--from", paths["json"], "--csv", again)
    assert shown.exit_code == 0, shown.output
    assert again.read_text() == paths["csv"].read_text()
    for way in ("fftconv raw", "fftconv prepared", "torch.fft rfft"):
        assert rows_of(shown.output, way) == rows_of(timed.output, way) != []


def test_what_is_not_installed_is_shown_as_published(tmp_path):
    """On another machine too, with a star, the place and the date; nothing of it is written."""
    ours = Cell("conv", "causal", True, "float16", 64, 768, 128, 128, "raw", direction="backward")
    short = ShortCell.of(16, 768, 1024, 3, layout="BHL", direction="forward")
    records = [
        {"suite": cell.suite, "impl": OURS, **cell.facts, "ms": 0.1, "scale": cell.scale, "error": 1e-4}
        | {"floor_ms": 0.05, "extra_mib": 0.0, "launches": 1, "note": None}
        for cell in (ours, short)
    ]
    path = tmp_path / "ours.json"
    storage.write(
        path, {"environment": {"gpu": "some GPU", "driver": "1", "copy_gb_per_s": 1000.0}, "records": records}
    )
    done = bench("--from", path, "--csv", tmp_path / "ours.csv")
    assert done.exit_code == 0, done.output
    assert "* not timed here: NVIDIA H100 80GB HBM3, driver 580.159.04, 2026-11-22" in done.output
    # Its gradient of the output's gate is another one; the time is there all the same.
    assert rows_of(done.output, "FlashFFTConv*") == [
        ["0.303", "10.39", "3.03", "-", "WRONG"],
        ["0.04", "2.40", "0.40", "-", "-"],
    ]
    assert rows_of(done.output, "causal-conv1d*")[0][0] == "0.027"
    assert "Flash" not in (tmp_path / "ours.csv").read_text()


@pytest.fixture
def old_file(tmp_path, played_gpu):
    """Return what the played GPU takes, written to a file, with a function that changes its times."""
    path = tmp_path / "old.json"
    assert bench("--fft-size", 256, "--fft-size", 1024, "--json", path).exit_code == 0

    def changed(name, factor, impl=OURS):
        content = json.loads(path.read_text())
        for record in content["records"]:
            if record["impl"] == impl and record["fft_size"] == 1024:
                record["ms"] *= factor
        storage.write(tmp_path / name, content)
        return tmp_path / name

    return changed


@pytest.mark.parametrize("way", ["timed", "from"])
@pytest.mark.parametrize(("factor", "exit_code", "count"), [(1 / 1.06, 1, 4), (1 / 1.04, 0, 0), (1.06, 0, 0)])
def test_a_regression_over_five_percent_is_flagged_and_fails(old_file, way, factor, exit_code, count):
    old = old_file("before.json", factor)
    now = ("--from", old_file("now.json", 1)) if way == "from" else ("--fft-size", 256, "--fft-size", 1024)
    done = bench(*now, "--compare", old, "--fail")
    assert done.exit_code == exit_code, done.output
    assert f"{count} of 12 times in both files are ours and over 5 % slower" in done.output
    assert sum(line.endswith("SLOWER") for line in done.output.splitlines()) == count
    assert sum(line.endswith("faster") for line in done.output.splitlines()) == (4 if factor > 1.05 else 0)
    assert bench(*now, "--compare", old).exit_code == 0


def test_a_slower_peer_is_told_and_does_not_fail(old_file):
    done = bench(
        "--from", old_file("now.json", 1), "--compare", old_file("before.json", 0.5, "torch.fft rfft"), "--fail"
    )
    assert done.exit_code == 0, done.output
    assert sum(line.endswith("slower") for line in done.output.splitlines()) == 3  # two rows and the sum of them


def test_comparison_tells_what_else_differs(old_file, tmp_path):
    path = old_file("before.json", 1)
    content = json.loads(path.read_text())
    content["environment"] |= {"gpu": "NVIDIA A100", "copy_gb_per_s": 1500.0}
    storage.write(path, content)
    done = bench("--from", old_file("now.json", 1), "--compare", path)
    assert "gpu: NVIDIA A100 before, NVIDIA H100 80GB HBM3 now" in done.output
    assert f"copy: 1500 GB/s before, {H100_COPY:.0f} now" in done.output


def test_memory_that_does_not_suffice_any_more_is_a_regression(old_file, tmp_path):
    now = old_file("now.json", 1)
    content = json.loads(now.read_text())
    content["records"][0] |= {"ms": None, "note": "out of memory", "error": None, "extra_mib": None}
    storage.write(now, content)
    done = bench("--from", now, "--compare", old_file("before.json", 1), "--fail")
    assert done.exit_code == 1
    assert "1 of 12 times in both files are ours" in done.output
    assert any(
        line.split() == ["fftconv", "prepared", "64x768", "128", "out", "of", "memory"]
        for line in done.output.splitlines()
    )


def test_fail_alone_is_refused():
    done = bench("--fail")
    assert done.exit_code == 2
    assert "--fail is about --compare" in done.output


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "results.json"
    for text in ("", "[]", "{}"):
        path.write_text(text)
        done = bench("--from", path)
        assert done.exit_code == 1
        assert "InvalidArgumentError: results.json: got something else" in done.output


def test_a_missing_matplotlib_is_told_before_anything_is_timed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = bench("--plot", tmp_path / "out.png")
    assert done.exit_code == 1
    assert "pip install 'fftconv-cupy[plot]'" in done.output


def test_without_a_gpu_bench_says_so_and_exits_with_3(monkeypatch):
    monkeypatch.setattr(environment, "gpu_count", lambda: (0, "none for this test"))
    done = bench()
    assert done.exit_code == 3
    assert "none for this test" in done.output
    assert "compute capability 7.5 or later" in " ".join(done.output.split())


@pytest.mark.usefixtures("launches")
def test_check_judges_a_file(tmp_path):
    records, _ = judged(lambda cell: on_target(cell) * (2 if cell.strided else 1))
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"environment": {}, "records": records}))
    done = bench("--check", str(path))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum(line.endswith("MISSED") for line in lines) == 6
    assert lines[-1].startswith("187 of 193 targets met")


def test_options_name_cells():
    chosen_cells = sys.modules["fftconv_cupy.cli.bench"].chosen_cells
    given = dict.fromkeys(("seqlens", "sizes", "modes", "precisions", "dtypes", "filters"), ())
    given |= dict.fromkeys(("suite", "batch", "channels", "framework", "direction")) | {"gates": "all"}
    assert {cell.problem.fft_size for cell in chosen_cells(given)} == {256, 1024, 4096, 8192, 16384, 32768}
    given |= {"seqlens": (1000,), "gates": "both", "batch": 2, "filters": ("raw",), "modes": ("circular", "same")}
    assert [(c.mode, c.seqlen, c.batch, c.channels, c.gated, c.filter) for c in chosen_cells(given)] == [
        ("circular", 1000, 2, 768, True, "raw"),
        ("same", 1000, 2, 768, True, "raw"),
    ]
    given |= {"direction": "all", "filters": (), "modes": ("full",)}
    assert [(c.filter, c.direction) for c in chosen_cells(given)] == [
        ("prepared", "forward"),
        ("raw", "forward"),
        ("raw", "backward"),
    ]
    with pytest.raises(Exception, match="a raw filter"):
        chosen_cells(given | {"filters": ("prepared",)})
    given |= {"sizes": (1000,)}
    with pytest.raises(Exception, match="no power of two"):
        chosen_cells(given)


@pytest.mark.gpu
def test_a_small_benchmark_on_the_gpu(tmp_path):
    path = tmp_path / "bench.json"
    done = bench("--fft-size", "256", "--batch", "2", "--channels", "16", "--json", str(path))
    assert done.exit_code == 0, done.output
    content = json.loads(path.read_text())
    assert {"gpu", "driver", "cuda", "nvrtc", "cupy", "version", "commit", "command", "copy_gb_per_s"} <= set(
        content["environment"]
    )
    ours = [record for record in content["records"] if record["impl"] == OURS]
    assert len(ours) == 4
    for record in ours:
        assert list(record) == RECORD_KEYS
        assert 0 < record["ms"] < 1
        assert math.isfinite(record["error"])
        assert record["error"] < 3e-4
        assert record["burst_ms"] >= 100
        assert record["launches"] == (1 if record["filter"] == "prepared" else 2)


@pytest.mark.parametrize("words", [(), ("bench",), ("verify",), ("cache",), ("cache", "warm")], ids="-".join)
def test_help_fits_in_80_columns(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(main, [*words, "--help"])
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if len(line) > 80] == []
