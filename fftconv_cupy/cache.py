"""Compiled kernels on disk, shared by all processes of one user.

Layout: ``<dir>/<arch>/<fft_size>/<entry>-<digest>.<hash>.cubin``, where ``digest`` names everything that went into the
compilation and ``hash`` is the SHA-256 of the file's bytes, 32 hex digits each. A file is a plain cubin, so tools such
as ``cuobjdump`` read it; it appears under its name in one atomic step, and a truncated or altered one no longer has the
hash of its name. Files and folders that another user could have written are neither read nor written. The cache is
never needed: whatever goes wrong on disk costs a compilation and nothing else.

Atomic for readers, not crash-durable: after a power cut an entry may be damaged, is then detected and compiled again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fftconv_cupy.errors import FFTConvError, message

_LOG = logging.getLogger("fftconv_cupy")
_DIGITS = 32
_ENTRY_FILE = re.compile(rf"([a-z][a-z0-9_]*)-([0-9a-f]{{{_DIGITS}}})\.([0-9a-f]{{{_DIGITS}}})\.cubin")
_TEMPORARY_FILE = re.compile(r"\.writing-[0-9a-f]+")
_ARCH_FOLDER = re.compile(r"sm_[0-9]+[a-z]?")
_SIZE_FOLDER = re.compile(r"[0-9]+")
_OWN_ONLY = 0o700
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SHARES_ACCOUNTS = hasattr(os, "geteuid")  # Windows keeps the profile folder apart by access lists instead

_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Names one compiled kernel: its folder (arch, FFT size), its entry, and the digest of all it is made from."""

    arch: str
    fft_size: int
    entry: str
    digest: str


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache: ``size`` in bytes, ``modified`` in seconds since the epoch."""

    key: CacheKey
    path: Path
    size: int
    modified: float


class _NotOursError(OSError):
    """A file or folder that another user owns or may write."""


def directory() -> Path:
    """Return the cache folder: ``FFTCONV_CACHE_DIR``, else ``fftconv_cupy`` in the platform's folder for caches."""
    chosen = os.environ.get("FFTCONV_CACHE_DIR")
    if chosen:
        path = Path(chosen)
        with suppress(RuntimeError):  # "~" of nobody is a name like any other
            path = path.expanduser()
        return path.absolute()
    try:
        home = Path.home()
    except RuntimeError:  # an account without a home
        return _temporary_directory()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base.absolute() / "fftconv_cupy"


def find(key: CacheKey) -> tuple[Path, bytes] | None:
    """Return the path and the bytes of the entry of ``key``, or None where there is no sound one."""
    folder = _folder(key)
    prefix = f"{key.entry}-{key.digest[:_DIGITS]}."
    try:
        _check_folders(folder)
        paths = sorted(path for path in folder.iterdir() if path.name.startswith(prefix))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _LOG.debug("kernel cache: %s is not read: %s", folder, error)
        return None
    for path in paths:
        name = _ENTRY_FILE.fullmatch(path.name)
        if name is None:
            continue
        try:
            content = _read_own_file(path)
        except OSError as error:
            _LOG.debug("kernel cache: %s is not read: %s", path, error)
            continue
        if _content_hash(content) == name[3]:
            return path, content
        _LOG.debug("kernel cache: %s is truncated or altered; the kernel is compiled again", path)
    return None


def store(key: CacheKey, content: bytes) -> Path | None:
    """Write ``content`` as the entry of ``key`` and return its path, or None where it cannot be written."""
    folder = _folder(key)
    path = folder / f"{key.entry}-{key.digest[:_DIGITS]}.{_content_hash(content)}.cubin"
    try:
        _make_folders(folder)
        _write_atomically(path, content)
    except OSError as error:
        root = str(directory())
        # Once a process: without a cache every process pays for compilation, which its user would like to know.
        level = logging.DEBUG if root in _warned else logging.WARNING
        _warned.add(root)
        _LOG.log(level, "kernel cache: %s cannot be used, so every process compiles its kernels: %s", root, error)
        return None
    return path


def entries() -> list[CacheEntry]:
    """Return the entries of the cache, sorted by arch, FFT size and name."""
    found = []
    for path, name in _walk(_ENTRY_FILE):
        with suppress(OSError):
            status = path.lstat()
            key = CacheKey(path.parent.parent.name, int(path.parent.name), name[1], name[2])
            found.append(CacheEntry(key, path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: (entry.key.arch, entry.key.fft_size, entry.path.name))


def clear() -> int:
    """Delete all entries, and nothing else that may lie in the folder; return how many there were.

    Raises:
        FFTConvError: an entry could not be deleted.
    """
    count = 0
    failure: OSError | None = None
    for path, name in [*_walk(_ENTRY_FILE), *_walk(_TEMPORARY_FILE)]:
        try:
            path.unlink()
            count += name.re is _ENTRY_FILE
        except FileNotFoundError:
            continue  # another process was faster
        except OSError as error:
            failure = error
    for folder in [*_folders(2), *_folders(1)]:
        with suppress(OSError):
            folder.rmdir()  # only ever an empty one
    if failure is not None:
        raise FFTConvError(
            message(
                "kernel cache", got=str(failure), allowed="a folder of your own", do=f"Delete {directory()} by hand."
            )
        )
    return count


def _temporary_directory() -> Path:
    """Return the cache folder of an account without a home, in a place where every user may make folders."""
    user = os.geteuid() if _SHARES_ACCOUNTS else "user"
    return Path(tempfile.gettempdir()).absolute() / f"fftconv_cupy-{user}"


def _folder(key: CacheKey) -> Path:
    return directory() / key.arch / str(key.fft_size)


def _content_hash(content: bytes) -> str:
    return hashlib.sha256(content, usedforsecurity=False).hexdigest()[:_DIGITS]


def _check_own(path: Path, status: os.stat_result) -> None:
    if not _SHARES_ACCOUNTS:
        return
    if status.st_uid != os.geteuid():
        raise _NotOursError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & _OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        do = f"run: chmod {'700' if stat.S_ISDIR(status.st_mode) else '600'} {shlex.quote(str(path))}"
        raise _NotOursError(f"{path} may be written by others (mode {mode:04o}); {do}")


def _check_folders(folder: Path) -> None:
    """Raise OSError unless ``folder`` and the two above it exist and only we can write them.

    The cache folder itself may be a link: whoever set it chose the target. But nobody chose the one in the temporary
    folder, where others may have planted a link, nor are links followed inside.
    """
    root = folder.parent.parent
    _check_root(root)
    for level in (folder.parent, folder):
        _check_folder(level, level.lstat())


def _check_root(root: Path) -> None:
    is_temporary = root == _temporary_directory()
    status = root.stat(follow_symlinks=not is_temporary)
    _check_folder(root, status)
    if is_temporary and _SHARES_ACCOUNTS and stat.S_IMODE(status.st_mode) != _OWN_ONLY:
        raise _NotOursError(f"{root} is open to others; run: chmod 700 {shlex.quote(str(root))}")


def _check_folder(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{path} is not a folder")
    _check_own(path, status)


def _make_folders(folder: Path) -> None:
    root = folder.parent.parent
    root.parent.mkdir(parents=True, exist_ok=True)
    for level in (root, folder.parent, folder):
        level.mkdir(mode=_OWN_ONLY, exist_ok=True)
    _check_folders(folder)


def _read_own_file(path: Path) -> bytes:
    # Checked on the open descriptor, so that the file read is the file checked.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _NotOursError(f"{path} is not a plain file")
        _check_own(path, status)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)  # some file systems tell only here that they are full
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _folders(depth: int) -> list[Path]:
    """Return the folders of ours at ``depth`` below the cache folder: 1 are archs, 2 FFT sizes."""
    root = directory()
    is_link = root == _temporary_directory() and root.is_symlink()  # see _check_folders
    found = [] if is_link else [root]
    for pattern in (_ARCH_FOLDER, _SIZE_FOLDER)[:depth]:
        found = [path for folder in found for path in _children(folder) if pattern.fullmatch(path.name)]
    return found


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as items:
            return sorted(Path(item.path) for item in items if item.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _walk(pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield each file below the cache folder whose name matches ``pattern``, with the match."""
    for folder in _folders(2):
        with suppress(OSError):
            for path in folder.iterdir():
                match = pattern.fullmatch(path.name)
                if match is not None:
                    yield path, match
