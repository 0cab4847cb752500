"""Sources are put together whole, and the digest sees everything that can change a cubin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scratch_kernel import scratch_spec, write_scratch_kernel

from fftconv_cupy.errors import InvalidArgumentError
from fftconv_cupy.kernel_matrix import iter_kernel_specs
from fftconv_cupy.source import KernelSpec, build_source, digest

SPEC = KernelSpec("fftconv_test", 64, (("FFTCONV_A", "1"), ("FFTCONV_LIST", "2, 3")))


@pytest.fixture
def kernel_dir(tmp_path: Path) -> Path:
    files = {
        "fftconv_test.cu": '// entry\n#include "b.cuh"\n#include "c.cuh"\nint last;\n',
        "b.cuh": '// b\n#pragma once\n#include <cuda_fp16.h>\n#include "c.cuh"\nint b;\n',
        "c.cuh": "#pragma once\nint c;\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_headers_are_inlined_once_with_line_markers(kernel_dir: Path) -> None:
    assert build_source(SPEC, kernel_dir).splitlines() == [
        "#define FFTCONV_A 1",
        "#define FFTCONV_LIST 2, 3",
        '#line 1 "fftconv_test.cu"',
        "// entry",
        '#line 1 "b.cuh"',
        "// b",
        "",
        "#include <cuda_fp16.h>",
        '#line 1 "c.cuh"',
        "",
        "int c;",
        '#line 5 "b.cuh"',
        "int b;",
        '#line 3 "fftconv_test.cu"',
        "",
        "int last;",
    ]


def _places(source: str) -> list[tuple[str, str, int]]:
    """Return each line of the source below the first marker, with the file and line that the markers give it."""
    name, number, found = "", 0, []
    for line in source.splitlines():
        if line.startswith("#line"):
            _, digits, quoted = line.split()
            name, number = quoted.strip('"'), int(digits)
        elif name:
            found.append((line, name, number))
            number += 1
    return found


@pytest.mark.parametrize("entry", ["fftconv_fwd", "fftconv_filter"])
def test_line_markers_of_the_real_kernels_are_true(entry: str) -> None:
    spec = next(spec for spec in iter_kernel_specs("sm_80") if spec.entry == entry)
    source = build_source(spec)
    assert '#include "' not in source
    places = _places(source)
    root = Path(__file__).parent.parent / "kernels"
    files = {name: (root / name).read_text(encoding="utf-8").splitlines() for _, name, _ in places}
    assert len(files) > 3
    for text, name, number in places:
        original = files[name][number - 1]
        assert text == original or (text == "" and original.startswith(("#include", "#pragma once")))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("c.cuh", '#ifdef X\n#include "d.cuh"\n#endif\n', id="inside-if"),
        pytest.param("c.cuh", '#include "missing.cuh"\n', id="missing"),
        pytest.param("c.cuh", '#include "../c.cuh"\n', id="outside"),
        pytest.param("c.cuh", '#include ""\n', id="empty"),
    ],
)
def test_bad_includes_are_refused(kernel_dir: Path, name: str, text: str) -> None:
    (kernel_dir / "d.cuh").write_text("int d;\n", encoding="utf-8")
    (kernel_dir / name).write_text(text, encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="allowed"):
        build_source(SPEC, kernel_dir)


def test_a_system_include_may_stand_inside_if(kernel_dir: Path) -> None:
    (kernel_dir / "c.cuh").write_text("#ifdef X\n#include <cuda_bf16.h>\n#endif\n", encoding="utf-8")
    assert "#include <cuda_bf16.h>" in build_source(SPEC, kernel_dir)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(replace(SPEC, entry="../etc"), id="entry-path"),
        pytest.param(replace(SPEC, entry="Fftconv"), id="entry-case"),
        pytest.param(replace(SPEC, entry="nothing"), id="entry-missing"),
        pytest.param(replace(SPEC, defines=(("A", "1"),)), id="define-name"),
        pytest.param(replace(SPEC, defines=(("FFTCONV_A", "1\n#error"),)), id="define-newline"),
        pytest.param(replace(SPEC, defines=(("FFTCONV_A", "1\\"),)), id="define-continued"),
    ],
)
def test_malformed_specs_are_refused(kernel_dir: Path, spec: KernelSpec) -> None:
    with pytest.raises(InvalidArgumentError, match="allowed"):
        build_source(spec, kernel_dir)


def _digest(**overrides: object) -> str:
    fields: dict[str, object] = {
        "source": "int main;",
        "arch": "sm_90",
        "nvrtc_version": (12, 9),
        "options": ("-std=c++17", "-v"),
        "cuda_headers": "abc",
        "version": "0.1.0",
    }
    fields.update(overrides)
    return digest(fields.pop("source"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "override",
    [
        pytest.param({"source": "int main; "}, id="source"),
        pytest.param({"arch": "sm_80"}, id="arch"),
        pytest.param({"nvrtc_version": (13, 0)}, id="nvrtc-major"),
        pytest.param({"nvrtc_version": (12, 8)}, id="nvrtc-minor"),
        pytest.param({"options": ("-std=c++17",)}, id="option-left-out"),
        pytest.param({"options": ("-v", "-std=c++17")}, id="option-order"),
        pytest.param({"options": ("-std=c++17-v",)}, id="option-boundary"),
        pytest.param({"cuda_headers": "abd"}, id="cuda-headers"),
        pytest.param({"version": "0.1.1"}, id="package-version"),
        pytest.param({"cuda_headers": "ab", "source": "cint main;"}, id="field-boundary"),
        pytest.param({"version": "0.1.0sm_9", "arch": "0"}, id="field-boundary-arch"),
    ],
)
def test_digest_differs_on(override: dict[str, object]) -> None:
    assert _digest(**override) != _digest()


def test_digest_of_equal_fields_is_equal() -> None:
    assert _digest() == _digest(options=["-std=c++17", "-v"], nvrtc_version=[12, 9])
    assert len(_digest()) == 64


def test_digest_differs_on_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _digest()
    monkeypatch.setattr("fftconv_cupy.source.DIGEST_SCHEMA", -1)
    assert _digest() != before


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param("header", id="header-text"),
        pytest.param("entry", id="entry-text"),
        pytest.param("define-value", id="define-value"),
        pytest.param("define-more", id="define-more"),
    ],
)
def test_source_differs_on(tmp_path: Path, changed: str) -> None:
    folder = write_scratch_kernel(tmp_path)
    spec = scratch_spec()
    before = build_source(spec, folder)
    assert build_source(spec, folder) == before
    if changed in ("header", "entry"):
        path = folder / ("scratch.cuh" if changed == "header" else f"{spec.entry}.cu")
        path.write_text(path.read_text(encoding="utf-8") + "// edited\n", encoding="utf-8")
    elif changed == "define-value":
        spec = scratch_spec(factor=4)
    else:
        spec = replace(spec, defines=(*spec.defines, ("FFTCONV_MORE", "1")))
    assert build_source(spec, folder) != before
