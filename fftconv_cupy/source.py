"""From a kernel specification to one CUDA source text and its digest.

All our headers are put into the text, so the text alone says what will be compiled: nothing is looked up on disk by
the compiler but CUDA's own ``<...>`` headers, and a digest of the text sees an edit of any header.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from fftconv_cupy.errors import InvalidArgumentError, message

if TYPE_CHECKING:
    from importlib.abc import Traversable

# Raised whenever the fields of the digest, or the meaning of a cache entry, change.
DIGEST_SCHEMA = 1

_INCLUDE = re.compile(r'\s*#\s*include\s*"([^"]*)"')
_PRAGMA_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")
_CONDITION_OPENS = re.compile(r"\s*#\s*if(def|ndef)?\b")
_CONDITION_CLOSES = re.compile(r"\s*#\s*endif\b")
_FILE_NAME = re.compile(r"[A-Za-z0-9_]+\.(cuh|cu|h)")
_ENTRY_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DEFINE_NAME = re.compile(r"FFTCONV_[A-Z0-9_]+")


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One kernel to compile: everything about it but the architecture.

    Attributes:
        entry: name of the ``extern "C"`` entry and of its file, ``kernels/<entry>.cu``.
        fft_size: FFT size in real points; names the folder in the cache.
        defines: (name, value) pairs of the macros that the entry reads, all ``FFTCONV_*``.
    """

    entry: str
    fft_size: int
    defines: tuple[tuple[str, str], ...]


def build_source(spec: KernelSpec, kernel_dir: Path | None = None) -> str:
    """Return the CUDA source of ``spec``: defines, then the entry's file with each of our headers put in once.

    ``#line`` markers keep the compiler's messages at the true file and line. ``<...>`` includes are left as they are.

    Args:
        spec: the kernel.
        kernel_dir: folder to read the ``.cu`` and ``.cuh`` files from; default the installed ``fftconv_cupy.kernels``.

    Raises:
        InvalidArgumentError: a malformed name or value, a header that does not exist, or one of our headers included
            inside ``#if`` (it would be missing wherever the condition is false).
    """
    if not _ENTRY_NAME.fullmatch(spec.entry):
        raise InvalidArgumentError(
            message("kernel entry", got=repr(spec.entry), allowed="a C name in lower case", do="Correct the spec.")
        )
    root = files("fftconv_cupy.kernels") if kernel_dir is None else kernel_dir
    lines = [_define_line(name, value) for name, value in spec.defines]
    lines.extend(_inlined(root, f"{spec.entry}.cu", set()))
    return "\n".join(lines) + "\n"


def digest(
    source: str, *, arch: str, nvrtc_version: Sequence[int], options: Sequence[str], cuda_headers: str, version: str
) -> str:
    """Return the SHA-256, in hex, of everything that can change the cubin.

    Each field is labelled and length-prefixed, so no two different sets of fields give the same bytes.

    Args:
        source: text from :func:`build_source`, which holds the defines and our headers.
        arch: architecture, such as ``"sm_90"``.
        nvrtc_version: version of the compiler, (major, minor).
        options: options passed to NVRTC, but for machine-dependent include folders.
        cuda_headers: digest of the CUDA headers that the source may include.
        version: our own version.
    """
    hasher = hashlib.sha256(usedforsecurity=False)
    _add_field(hasher, "schema", str(DIGEST_SCHEMA))
    _add_field(hasher, "version", version)
    _add_field(hasher, "arch", arch)
    _add_field(hasher, "nvrtc", ".".join(str(part) for part in nvrtc_version))
    _add_field(hasher, "options", str(len(options)))
    for option in options:
        _add_field(hasher, "option", option)
    _add_field(hasher, "cuda_headers", cuda_headers)
    _add_field(hasher, "source", source)
    return hasher.hexdigest()


def _add_field(hasher: hashlib._Hash, label: str, text: str) -> None:
    for payload in (label.encode(), text.encode()):
        hasher.update(len(payload).to_bytes(8, "big"))
        hasher.update(payload)


def _define_line(name: str, value: str) -> str:
    if not _DEFINE_NAME.fullmatch(name) or not value.isprintable() or value.endswith("\\"):
        raise InvalidArgumentError(
            message(
                "kernel define",
                got=f"{name}={value!r}",
                allowed="a name FFTCONV_*, a value of one line",
                do="Correct the spec.",
            )
        )
    return f"#define {name} {value}"


def _inlined(root: Path | Traversable, name: str, seen: set[str]) -> Iterator[str]:
    """Yield the lines of file ``name`` with our headers that are not in ``seen`` put in place."""
    seen.add(name)
    yield f'#line 1 "{name}"'
    depth = 0
    for number, line in enumerate(_read(root, name).splitlines(), start=1):
        depth += bool(_CONDITION_OPENS.match(line)) - bool(_CONDITION_CLOSES.match(line))
        include = _INCLUDE.match(line)
        if include is None:
            # A blank line in place of the pragma keeps the numbering; NVRTC warns of it outside a header.
            yield "" if _PRAGMA_ONCE.match(line) else line
            continue
        if depth:
            raise InvalidArgumentError(
                message(
                    f"{name}:{number}",
                    got=f"{line.strip()} inside #if",
                    allowed="includes of our headers at the top level",
                    do="Move it out of the condition, or put the condition into the header.",
                )
            )
        if include[1] in seen:
            yield ""
            continue
        yield from _inlined(root, include[1], seen)
        yield f'#line {number + 1} "{name}"'


def _read(root: Path | Traversable, name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise InvalidArgumentError(
            message("kernel file", got=repr(name), allowed="a plain .cu, .cuh or .h name", do="Correct the #include.")
        )
    try:
        return root.joinpath(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidArgumentError(
            message("kernel file", got=name, allowed=f"the files in {root}", do="Correct the name, or reinstall.")
        ) from None
