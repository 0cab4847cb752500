"""The cache on disk gives the right bytes or none: whatever happens to it, a kernel is compiled and right."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from scratch_kernel import ARCH, ENTRY, scratch_spec, write_scratch_kernel

from fftconv_cupy import cache, compile
from fftconv_cupy.errors import FFTConvError

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


def test_store_and_find(cache_dir: Path) -> None:
    assert cache.find(KEY) is None
    path = cache.store(KEY, CONTENT)
    assert path is not None
    assert path.parent == cache_dir / "sm_90" / "256"
    assert path.name.startswith("fftconv_fwd-0123456789abcdef0123456789abcdef.")
    assert path.read_bytes() == CONTENT, "a plain cubin, readable by other tools"
    assert cache.find(KEY) == (path, CONTENT)
    assert _files(cache_dir) == [path], "no temporary file is left"


def test_modes(cache_dir: Path) -> None:
    before = os.umask(0)
    try:
        path = cache.store(KEY, CONTENT)
    finally:
        os.umask(before)
    assert path is not None
    folders = [cache_dir, cache_dir / "sm_90", cache_dir / "sm_90" / "256"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FFTCONV_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"FFTCONV_CACHE_DIR": "", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/fftconv_cupy"),
        ({"HOME": "/h"}, "/h/.cache/fftconv_cupy"),
        ({"FFTCONV_CACHE_DIR": "relative"}, str(Path("relative").absolute())),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_directory(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name in ("FFTCONV_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache.directory()) == expected


def test_directory_of_an_account_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FFTCONV_CACHE_DIR")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache.directory().parent == Path(tempfile.gettempdir())


def test_a_chosen_folder_may_start_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FFTCONV_CACHE_DIR", "~/kernels")
    assert cache.directory() == tmp_path / "kernels"
    monkeypatch.setenv("FFTCONV_CACHE_DIR", "~nobody-of-this-name/kernels")
    assert cache.directory() == Path("~nobody-of-this-name/kernels").absolute()


@pytest.fixture
def temporary_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder of an account without a home, not made yet."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FFTCONV_CACHE_DIR")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache.directory()
    assert folder.parent == tmp_path
    return folder


def test_the_temporary_folder_is_used(temporary_dir: Path) -> None:
    path = cache.store(KEY, CONTENT)
    assert path is not None
    assert temporary_dir in path.parents
    assert cache.find(KEY) == (path, CONTENT)
    assert [entry.path for entry in cache.entries()] == [path]


def test_a_planted_link_in_the_temporary_folder_is_not_followed(temporary_dir: Path, tmp_path: Path) -> None:
    path = cache.store(KEY, CONTENT)
    assert path is not None
    temporary_dir.rename(tmp_path / "elsewhere")
    temporary_dir.symlink_to(tmp_path / "elsewhere")
    assert cache.find(KEY) is None
    assert cache.store(KEY, b"other") is None
    assert cache.entries() == []
    assert cache.clear() == 0
    assert [file.read_bytes() for file in _files(tmp_path / "elsewhere")] == [CONTENT]


def test_a_temporary_folder_open_to_others_is_not_used(temporary_dir: Path) -> None:
    assert cache.store(KEY, CONTENT) is not None
    temporary_dir.chmod(0o755)
    assert cache.find(KEY) is None
    assert cache.store(KEY, CONTENT) is None
    temporary_dir.chmod(0o700)
    assert cache.find(KEY) is not None


def test_the_warning_about_a_folder_that_others_may_write_says_what_to_do(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_warned", set())
    cache_dir.mkdir()
    cache_dir.chmod(0o775)
    with caplog.at_level("WARNING", logger="fftconv_cupy"):
        assert cache.store(KEY, CONTENT) is None
    assert f"run: chmod 700 {cache_dir}" in caplog.text


def test_entries_and_clear_touch_only_their_own(cache_dir: Path) -> None:
    other_key = cache.CacheKey("sm_120", 1024, "fftconv_filter", "f" * 64)
    paths = [cache.store(other_key, b"other"), cache.store(KEY, CONTENT)]
    assert [entry.path for entry in cache.entries()] == paths
    assert [entry.size for entry in cache.entries()] == [5, len(CONTENT)]
    assert cache.entries()[1].key == cache.CacheKey("sm_90", 256, "fftconv_fwd", KEY.digest[:32])
    foreign = [cache_dir / "notes.txt", cache_dir / "sm_90" / "256" / "x.cubin", cache_dir / "photos" / "256" / "a"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine", encoding="utf-8")
    left_by_a_crash = cache_dir / "sm_90" / "256" / ".writing-00ff"
    left_by_a_crash.write_bytes(b"half")
    assert len(cache.entries()) == 2
    assert cache.clear() == 2
    assert _files(cache_dir) == sorted(foreign)
    assert not (cache_dir / "sm_120").exists()
    assert cache.entries() == []
    assert cache.clear() == 0


def test_clear_says_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(KEY, CONTENT)

    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FFTConvError, match=r"Permission denied.*by hand"):
        cache.clear()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _forge_hash(path: Path) -> None:
    path.rename(path.with_name(f"{path.name.split('.')[0]}.{'0' * 32}.cubin"))


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def _let_group_write(path: Path) -> None:
    path.chmod(0o660)


def _let_all_write(path: Path) -> None:
    path.chmod(0o602)


@pytest.mark.parametrize(
    "damage",
    [
        *(_truncate, _empty, _flip_a_bit, _append, _forge_hash),
        *(_replace_by_folder, _replace_by_link, _let_group_write, _let_all_write),
    ],
)
def test_bad_entries_are_not_loaded(damage: Callable[[Path], None], kernel_dir: Path, right_bytes: bytes) -> None:
    cubin, path = _obtain(kernel_dir)
    assert path is not None
    assert cubin == right_bytes
    damage(path)
    key = cache.CacheKey(ARCH, 64, ENTRY, path.name.split("-")[1][:32])
    assert cache.find(key) is None
    cubin, path = _obtain(kernel_dir)
    assert cubin == right_bytes
    if damage is not _replace_by_folder:
        assert path is not None
        assert path.read_bytes() == right_bytes, "the sound entry takes the damaged one's place"
        assert cache.find(key) == (path, right_bytes)


@pytest.mark.parametrize("level", [0, 1, 2], ids=["root", "arch", "size"])
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_is_not_used(
    level: int, mode: int, kernel_dir: Path, right_bytes: bytes, cache_dir: Path
) -> None:
    _, path = _obtain(kernel_dir)
    assert path is not None
    [cache_dir, path.parent.parent, path.parent][level].chmod(mode)
    assert cache.find(cache.CacheKey(ARCH, 64, ENTRY, path.name.split("-")[1][:32])) is None
    assert _obtain(kernel_dir) == (right_bytes, None)


def test_a_linked_folder_inside_is_not_used(kernel_dir: Path, right_bytes: bytes, cache_dir: Path) -> None:
    _, path = _obtain(kernel_dir)
    assert path is not None
    (cache_dir / ARCH).rename(cache_dir / "elsewhere")
    (cache_dir / ARCH).symlink_to(cache_dir / "elsewhere")
    assert _obtain(kernel_dir) == (right_bytes, None)
    assert cache.entries() == []


def test_the_cache_folder_itself_may_be_a_link(cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    cache_dir.symlink_to(tmp_path / "real")
    path = cache.store(KEY, CONTENT)
    assert path is not None
    assert cache.find(KEY) == (path, CONTENT)
    assert [entry.path for entry in cache.entries()] == [path]


def test_entries_of_another_user_are_not_loaded(
    monkeypatch: pytest.MonkeyPatch, kernel_dir: Path, right_bytes: bytes
) -> None:
    _, path = _obtain(kernel_dir)
    assert path is not None
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert _obtain(kernel_dir) == (right_bytes, None)


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["entry", "size", "arch", "root"])
def test_entries_given_away_are_not_loaded(what: str, kernel_dir: Path, right_bytes: bytes, cache_dir: Path) -> None:
    _, path = _obtain(kernel_dir)
    assert path is not None
    target = {"entry": path, "size": path.parent, "arch": path.parent.parent, "root": cache_dir}[what]
    os.chown(target, NOBODY, NOBODY)
    assert cache.find(cache.CacheKey(ARCH, 64, ENTRY, path.name.split("-")[1][:32])) is None
    assert _obtain(kernel_dir)[0] == right_bytes
