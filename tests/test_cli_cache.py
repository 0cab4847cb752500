"""``fftconv cache`` shows, clears and fills the cache, and fails with one line and a status."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scratch_kernel import scratch_spec, write_scratch_kernel

from fftconv_cupy import cache as store
from fftconv_cupy import compile
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.benchmarks import environment

# The package's attribute of that name is the command itself, not its module.
command = importlib.import_module("fftconv_cupy.cli.cache")
KEY = store.CacheKey("sm_90", 256, "fftconv_fwd", "0123456789abcdef" * 4)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FFTCONV_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def scratch_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the plan name two quick kernels, whatever the architecture."""
    pytest.importorskip("cupy", reason="compiling needs CuPy and NVRTC: pip install 'fftconv-cupy[cuda12]'")
    folder = write_scratch_kernel(tmp_path / "kernels")
    build_source = compile.build_source
    monkeypatch.setattr(compile, "build_source", lambda spec, kernel_dir=None: build_source(spec, folder))

    def specs(limits: ArchLimits, *, fft_sizes: tuple[int, ...] | None = None) -> list[object]:
        return [scratch_spec(fft_size=size) for size in (64, 128) if not fft_sizes or size in fft_sizes]

    monkeypatch.setattr(command, "iter_kernel_specs", specs)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(command.cache, arguments)


def test_path(cache_dir: Path) -> None:
    result = _run("path")
    assert (result.exit_code, result.output) == (0, f"{cache_dir}\n")
    assert not cache_dir.exists(), "asking makes nothing"


def test_list_prints_a_table(cache_dir: Path) -> None:
    store.store(KEY, bytes(3 << 19))
    result = _run("list")
    assert result.exit_code == 0
    head, row, total = result.output.splitlines()
    assert head.split() == ["arch", "fft", "size", "entry", "bytes", "written"]
    assert row.split()[:4] == ["sm_90", "256", "fftconv_fwd", str(3 << 19)]
    assert total == f"1 kernel, 1.5 MiB, in {cache_dir}"


def test_list_of_nothing(cache_dir: Path) -> None:
    result = _run("list")
    assert (result.exit_code, result.output) == (0, f"0 kernels, 0.0 MiB, in {cache_dir}\n")


def test_clear_asks_nothing_and_prints_the_count(cache_dir: Path) -> None:
    store.store(KEY, b"x")
    assert _run("clear").output == f"deleted 1 kernel in {cache_dir}\n"
    assert store.entries() == []
    assert _run("clear").output == f"deleted 0 kernels in {cache_dir}\n"


def test_clear_fails_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    store.store(KEY, b"x")

    def refuse(self: Path) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "unlink", refuse)
    result = _run("clear")
    assert result.exit_code == 1
    assert "not yours" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.usefixtures("scratch_kernels")
def test_warm_needs_no_gpu(cache_dir: Path) -> None:
    result = _run("warm", "--arch", "sm_90", "--arch", "sm_75", "--arch", "sm_90", "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert f"4 kernels ready in {cache_dir}" in result.output
    assert [(entry.key.arch, entry.key.fft_size) for entry in store.entries()] == [
        *(("sm_75", 64), ("sm_75", 128), ("sm_90", 64), ("sm_90", 128)),
    ]


@pytest.mark.usefixtures("scratch_kernels")
def test_warm_takes_fft_sizes() -> None:
    assert _run("warm", "--arch", "sm_80", "--fft-size", "128").exit_code == 0
    assert [entry.key.fft_size for entry in store.entries()] == [128]


@pytest.mark.usefixtures("scratch_kernels")
def test_warm_defaults_to_the_gpus_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpu_count", lambda: (2, ""))
    # sm_87 is not listed: its limits are read from the device.
    gpus = (ArchLimits("sm_87", 163 << 10, 164 << 10, 16, has_bulk_copy=False), arch_limits("sm_90"))
    monkeypatch.setattr(command, "device_limits", lambda device: gpus[device])
    result = _run("warm", "--fft-size", "64")
    assert result.exit_code == 0, result.output
    assert [entry.key.arch for entry in store.entries()] == ["sm_87", "sm_90"]


def test_kernels_of_a_gpu_that_is_not_listed() -> None:
    gpu = ArchLimits("sm_87", 163 << 10, 164 << 10, 16, has_bulk_copy=False)
    specs = list(command.iter_kernel_specs(gpu))
    assert specs == list(command.iter_kernel_specs("sm_80"))
    assert 1200 < len(specs) < 2400, "the help says one to two thousand"


def test_warm_without_gpu_and_arch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpu_count", lambda: (0, "no driver"))
    result = _run("warm")
    assert result.exit_code == 2
    assert "no driver" in result.output
    assert "--arch sm_90" in result.output


@pytest.mark.parametrize("arguments", [("--arch", "sm_61"), ("--arch", "sm_90", "--fft-size", "24")])
def test_warm_of_what_does_not_exist_fails_with_one_line(arguments: tuple[str, ...]) -> None:
    result = _run("warm", *arguments)
    assert result.exit_code == 1
    assert "allowed" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.usefixtures("scratch_kernels")
def test_warm_into_an_unwritable_folder_fails(cache_dir: Path) -> None:
    cache_dir.write_bytes(b"")
    result = _run("warm", "--arch", "sm_90")
    assert result.exit_code == 1
    assert f"2 kernels of 2 could not be written to {cache_dir}" in result.output


@pytest.mark.usefixtures("scratch_kernels")
def test_warm_stops_at_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels" / "fftconv_scratch.cu").write_text("error\n", encoding="utf-8")
    result = _run("warm", "--arch", "sm_90")
    assert result.exit_code == 1
    assert "CompileError" in result.output
