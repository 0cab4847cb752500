"""A disk that does not cooperate, many processes and two compilers: the cache gives right bytes, or none is needed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from scratch_kernel import ARCH, run_python, scratch_spec, start_python, write_scratch_kernel

from fftconv_cupy import cache, compile

pytest.importorskip("cupy", reason="compiling needs CuPy and NVRTC: pip install 'fftconv-cupy[cuda12]'")

KEY = cache.CacheKey("sm_90", 256, "fftconv_fwd", "0123456789abcdef" * 4)
CONTENT = b"\x7fELF" + bytes(range(256)) * 40
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FFTCONV_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def kernel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scratch_kernel(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def right_bytes(kernel_dir: Path) -> bytes:
    return compile.compile_cubin(scratch_spec(), ARCH, kernel_dir).cubin


def _obtain(kernel_dir: Path) -> tuple[bytes, Path | None]:
    return compile.obtain_cubin(scratch_spec(), ARCH, kernel_dir)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


_IMPORTS = """
import hashlib, os, sys, time
from pathlib import Path
from fftconv_cupy.compile import compile_cubin, obtain_cubin
from fftconv_cupy.dependencies import import_nvrtc
from scratch_kernel import ARCH, scratch_spec
"""
_OBTAIN = """
cubin, path = obtain_cubin(scratch_spec(), ARCH, Path(sys.argv[1]))
print(hashlib.sha256(cubin).hexdigest(), path)
"""
# Root reads and writes what it likes, so it gives its rights up. It compiles once before, for the imports that come
# with it: another user may not be let into the folder of this Python.
_OBTAIN_UNPRIVILEGED = f"""
{_IMPORTS}
if os.geteuid() == 0:
    compile_cubin(scratch_spec(factor=1), ARCH, Path(sys.argv[1]))
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
{_OBTAIN}
"""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_unwritable_folder_as_an_unprivileged_user(open_folder: Path, right_bytes: bytes) -> None:
    kernels = write_scratch_kernel(open_folder / "kernels")
    (open_folder / "cache").mkdir(mode=0o555)
    environment = {"FFTCONV_CACHE_DIR": str(open_folder / "cache")}
    output = run_python(_OBTAIN_UNPRIVILEGED, str(kernels), env=environment)
    assert output == f"{_sha256(right_bytes)} None"


def test_unreadable_entry_as_an_unprivileged_user(open_folder: Path, right_bytes: bytes) -> None:
    kernels = write_scratch_kernel(open_folder / "kernels")
    folder = open_folder / "cache"
    folder.mkdir(mode=0o700)
    if IS_ROOT:
        os.chown(folder, NOBODY, NOBODY)
    environment = {"FFTCONV_CACHE_DIR": str(folder)}
    first = run_python(_OBTAIN_UNPRIVILEGED, str(kernels), env=environment)
    path = Path(first.split()[1])
    assert first == f"{_sha256(right_bytes)} {path}"
    path.chmod(0)
    assert run_python(_OBTAIN_UNPRIVILEGED, str(kernels), env=environment) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a readable entry took its place"


@pytest.mark.parametrize("blocked", ["root", "parent", "arch", "size"])
def test_path_blocked_by_a_file(
    blocked: str, monkeypatch: pytest.MonkeyPatch, cache_dir: Path, kernel_dir: Path, right_bytes: bytes
) -> None:
    path = {"root": cache_dir, "parent": cache_dir, "arch": cache_dir / ARCH, "size": cache_dir / ARCH / "64"}[blocked]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    path.write_bytes(b"")
    if blocked == "parent":
        monkeypatch.setenv("FFTCONV_CACHE_DIR", str(cache_dir / "below"))
    assert _obtain(kernel_dir) == (right_bytes, None)
    assert path.read_bytes() == b""
    assert cache.entries() == []
    assert cache.clear() == 0


def _failing(monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    """Let one step of writing an entry fail as a full disk makes it fail."""
    error = OSError(code, os.strerror(code))

    def fail(*arguments: object, **options: object) -> None:
        raise error

    real_open, real_write, real_close = os.open, os.write, os.close
    written = 0

    def open_unless_new(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            raise error
        return real_open(path, flags, *rest)

    def write_half_then_fail(descriptor: int, content: memoryview) -> int:
        nonlocal written
        if written:
            raise error
        written = real_write(descriptor, content[: len(content) // 2])
        return written

    def close_then_fail(descriptor: int) -> None:
        real_close(descriptor)
        raise error

    target, name, replacement = {
        "mkdir": (Path, "mkdir", fail),
        "open": (os, "open", open_unless_new),
        "write": (os, "write", fail),
        "second write": (os, "write", write_half_then_fail),
        "fsync": (os, "fsync", fail),
        "close": (os, "close", close_then_fail),
        "replace": (Path, "replace", fail),
    }[step]
    monkeypatch.setattr(target, name, replacement)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["mkdir", "open", "write", "second write", "fsync", "close", "replace"])
def test_each_step_of_writing_may_fail(
    step: str, code: int, cache_dir: Path, kernel_dir: Path, right_bytes: bytes
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, step, code)
        assert _obtain(kernel_dir) == (right_bytes, None)
    assert _files(cache_dir) == [], "nothing half-written is left"
    cubin, path = _obtain(kernel_dir)
    assert cubin == right_bytes
    assert path is not None
    assert path.read_bytes() == right_bytes


def test_short_writes_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real_write(descriptor, content[:1000]))
    path = cache.store(KEY, CONTENT)
    assert path is not None
    assert path.read_bytes() == CONTENT


def test_a_full_file_system(cache_dir: Path, kernel_dir: Path, right_bytes: bytes) -> None:
    cache_dir.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "tmpfs", str(cache_dir)]
    if not IS_ROOT or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root and mount")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        filler = cache_dir / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1 << 20))
        assert _obtain(kernel_dir) == (right_bytes, None)
        assert _files(cache_dir) == [filler]
        filler.unlink()
        assert _obtain(kernel_dir)[1] is not None
    finally:
        subprocess.run(["umount", str(cache_dir)], check=True)


def test_an_unusable_folder_is_reported_once(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_warned", set())
    cache_dir.write_bytes(b"")
    with caplog.at_level("DEBUG", logger="fftconv_cupy"):
        assert cache.store(KEY, CONTENT) is None
        assert cache.store(KEY, CONTENT) is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG"]
    assert str(cache_dir) in caplog.text


_TOGETHER = f"""
{_IMPORTS}
import_nvrtc()
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
{_OBTAIN}
"""


def test_eight_processes_at_once(cache_dir: Path, kernel_dir: Path, right_bytes: bytes, tmp_path: Path) -> None:
    processes = [start_python(_TOGETHER, str(kernel_dir), str(tmp_path / "go")) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    (path,) = _files(cache_dir)
    assert path.read_bytes() == right_bytes
    assert {output for output, _ in outputs} == {f"{_sha256(right_bytes)} {path}\n"}


def test_two_versions_of_nvrtc_live_side_by_side(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path, kernel_dir: Path, right_bytes: bytes
) -> None:
    import cupy

    paths = []
    for version in ((12, 9), (13, 0), (12, 9)):
        monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", lambda version=version: version)
        cubin, path = _obtain(kernel_dir)
        assert cubin == right_bytes
        paths.append(path)
    assert paths[0] == paths[2] != paths[1]
    assert _files(cache_dir) == sorted({path for path in paths if path is not None})


def test_an_entry_is_read_and_not_compiled_again(monkeypatch: pytest.MonkeyPatch, kernel_dir: Path) -> None:
    first = _obtain(kernel_dir)

    def refuse(*arguments: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compile, "_compile", refuse)
    assert _obtain(kernel_dir) == first
