"""The pairwise cover meets every pair with few cases, and the compile matrix built on it fails when it should."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import compile_all
import pytest
from click.testing import CliRunner
from pairwise import pairwise_cover
from scratch_kernel import ARCH, scratch_spec, write_scratch_kernel

from fftconv_cupy import compile
from fftconv_cupy.archs import ARCHS


def _pairs(cases: Sequence[Mapping[str, object]]) -> set[object]:
    return {pair for case in cases for pair in itertools.combinations(sorted(case.items()), 2)}


@pytest.mark.parametrize(
    ("values", "most"), [((2, 2, 2, 2, 2), 8), ((8, 7, 3, 2, 2, 2, 2), 70), ((5, 1), 5), ((3,), 0), ((), 0)]
)
def test_every_pair_is_met_by_few_cases(values: tuple[int, ...], most: int) -> None:
    names = "abcdefg"[: len(values)]
    cases = [dict(zip(names, case, strict=True)) for case in itertools.product(*map(range, values))]
    chosen = [cases[index] for index in pairwise_cover(cases)]
    assert _pairs(chosen) == _pairs(cases)
    assert len(chosen) <= most


def test_only_pairs_that_occur_are_asked_for() -> None:
    cases = [{"size": size, "kind": size % 2, "flag": flag} for size in range(4) for flag in (0, 1) if size or not flag]
    chosen = pairwise_cover(cases)
    assert chosen == sorted(set(chosen))
    assert _pairs([cases[index] for index in chosen]) == _pairs(cases)
    assert pairwise_cover(cases) == chosen
    assert pairwise_cover([]) == []


def test_the_compile_matrix_meets_every_size_dtype_flag_and_architecture() -> None:
    everything = compile_all.jobs_of(tuple(ARCHS), (), "all")
    sample = compile_all.jobs_of(tuple(ARCHS), (), "quick")

    def axes(jobs: list[compile_all.Job], *, paired: bool) -> list[dict[str, str]]:
        return [job.axes for job in jobs if (job.spec.entry == compile_all.PAIRED_ENTRY) == paired]

    def values(cases: list[dict[str, str]]) -> set[object]:
        return {(case["entry"], *item) for case in cases for item in case.items()}

    assert _pairs(axes(sample, paired=True)) == _pairs(axes(everything, paired=True))
    assert values(axes(sample, paired=False)) == values(axes(everything, paired=False))
    assert len(sample) < 300
    assert {job.arch for job in sample} == set(ARCHS)


@pytest.mark.parametrize(
    ("threads", "min_blocks", "expected"), [(128, 4, 128), (512, 1, 128), (64, 8, 128), (256, 3, 80), (32, 1, 255)]
)
def test_register_ceiling(threads: int, min_blocks: int, expected: int) -> None:
    assert compile_all.max_registers(threads, min_blocks) == expected


@pytest.mark.parametrize(
    ("max_registers", "text", "exit_code", "reported"),
    [
        (255, "", 0, "1 of 1 kernels compile within their ceilings"),
        (8, "", 1, "registers, at most 8 allowed"),
        (255, "#error planted", 1, "planted"),
    ],
)
def test_the_compile_matrix_fails_when_it_should(
    max_registers: int, text: str, exit_code: int, reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cupy", reason="compiling needs CuPy and NVRTC: pip install 'fftconv-cupy[cuda12]'")
    folder = write_scratch_kernel(tmp_path)
    with (folder / "scratch.cuh").open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    build_source = compile.build_source
    monkeypatch.setattr(compile, "build_source", lambda spec, kernel_dir=None: build_source(spec, folder))
    job = compile_all.Job(ARCH, scratch_spec(), max_registers)
    monkeypatch.setattr(compile_all, "jobs_of", lambda archs, fft_sizes, sample: [job])
    result = CliRunner().invoke(compile_all.main, ["--jobs", "1"])
    assert result.exit_code == exit_code, result.output
    assert reported in result.output
