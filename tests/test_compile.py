"""Compiling for any architecture without a GPU, what the compiler reports, and errors that say what to do."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from scratch_kernel import ARCH, ENTRY, run_python, scratch_spec, write_scratch_kernel

from fftconv_cupy.archs import ARCHS
from fftconv_cupy.compile import NVRTC_OPTIONS, compile_cubin, obtain_cubin, parse_ptxas_log, precompile
from fftconv_cupy.errors import CompileError, InvalidArgumentError, UnsupportedDeviceError
from fftconv_cupy.kernel_matrix import iter_kernel_specs

pytest.importorskip("cupy", reason="compiling needs CuPy and NVRTC: pip install 'fftconv-cupy[cuda12]'")


@pytest.fixture
def kernel_dir(tmp_path: Path) -> Path:
    return write_scratch_kernel(tmp_path / "kernels")


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FFTCONV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _elf_size(content: bytes) -> int:
    """Return where the last table or section of a 64-bit ELF file ends."""
    (program_at, section_at) = struct.unpack_from("<QQ", content, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", content, 54)
    ends = [program_at + program_size * program_count, section_at + section_size * section_count]
    for index in range(section_count):
        kind, _, _, offset, size = struct.unpack_from("<IQQQQ", content, section_at + index * section_size + 4)
        if kind != 8:  # SHT_NOBITS takes no room in the file
            ends.append(offset + size)
    return max(ends)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_whole_cubin_for_every_architecture(arch: str, kernel_dir: Path) -> None:
    compiled = compile_cubin(scratch_spec(), arch, kernel_dir)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert _elf_size(compiled.cubin) == len(compiled.cubin), "CuPy cuts a cubin's last byte off"
    assert ENTRY.encode() in compiled.cubin
    assert 0 < compiled.registers <= 64
    assert (compiled.spill_bytes, compiled.stack_bytes) == (0, 0)


def test_the_same_source_gives_the_same_bytes(kernel_dir: Path) -> None:
    assert (
        compile_cubin(scratch_spec(), ARCH, kernel_dir).cubin == compile_cubin(scratch_spec(), ARCH, kernel_dir).cubin
    )


def test_arithmetic_is_ieee() -> None:
    assert not any("fast" in option or "ftz" in option or "prec-" in option for option in NVRTC_OPTIONS)


def test_spills_are_seen(kernel_dir: Path) -> None:
    path = kernel_dir / f"{ENTRY}.cu"
    text = path.read_text(encoding="utf-8").replace("__launch_bounds__(256)", "__launch_bounds__(1024, 2)")
    greedy = "float r[48]; for (int i = 0; i < 48; ++i) r[i] = p.out[i];"
    greedy += " for (int k = 1; k < 6; ++k) for (int i = 0; i < 48; ++i) r[i] = r[i] * r[(i + 7 * k) % 48] + p.value;"
    greedy += " for (int i = 0; i < 48; ++i) p.out[i] = r[i];"
    greedy = greedy.replace("for (", "\n#pragma unroll\nfor (")
    path.write_text(text.replace("__syncthreads();", "__syncthreads();" + greedy), encoding="utf-8")
    compiled = compile_cubin(scratch_spec(), ARCH, kernel_dir)
    assert compiled.registers <= 32
    assert compiled.spill_bytes > 0
    assert compiled.stack_bytes > 0


_LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'other' for 'sm_90'
ptxas info    : Function properties for other
ptxas         .     800 bytes stack frame, 900 bytes spill stores, 1000 bytes spill loads
ptxas info    : Used 250 registers, used 0 barriers
ptxas info    : Compiling entry function 'mine' for 'sm_90'
ptxas info    : Function properties for mine
ptxas         .     128 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 136 bytes cumulative stack size, 32 bytes smem
ptxas info    : Compile time = 16.491 ms
ptxas info    : Function properties for called
    8 bytes stack frame, 16 bytes spill stores, 32 bytes spill loads
"""


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("mine", (40, 60, 136, 32)), ("other", (250, 1900, 800, 0)), ("absent", (0, 0, 0, 0))],
)
def test_parse_ptxas_log(entry: str, expected: tuple[int, ...]) -> None:
    found = parse_ptxas_log(_LOG, entry)
    assert tuple(found[name] for name in ("registers", "spill_bytes", "stack_bytes", "smem_static")) == expected


def test_compile_error_tells_entry_arch_defines_and_place(kernel_dir: Path) -> None:
    header = kernel_dir / "scratch.cuh"
    header.write_text(header.read_text(encoding="utf-8") + "#error planted\n", encoding="utf-8")
    line = len(header.read_text(encoding="utf-8").splitlines())
    with pytest.raises(CompileError) as caught:
        compile_cubin(scratch_spec(factor=7), "sm_80", kernel_dir)
    text = str(caught.value)
    for part in (ENTRY, "sm_80", "FFTCONV_FACTOR=7.f", "planted", f"scratch.cuh({line})"):
        assert part in text


@pytest.mark.parametrize("arch", ["sm90", "compute_90", "sm_", "", "sm_90; rm"])
def test_a_malformed_arch_is_refused(arch: str, kernel_dir: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"arch: got .*allowed"):
        compile_cubin(scratch_spec(), arch, kernel_dir)


def test_an_arch_that_nvrtc_does_not_know_is_refused(kernel_dir: Path) -> None:
    with pytest.raises(UnsupportedDeviceError, match=r"got sm_999; allowed: sm_75.*Install an NVRTC"):
        compile_cubin(scratch_spec(), "sm_999", kernel_dir)


@pytest.mark.parametrize("entry", ["fftconv_fwd", "fftconv_filter"])
def test_the_real_kernels_compile_and_are_cached(entry: str, cache_dir: Path) -> None:
    spec = next(spec for spec in iter_kernel_specs("sm_90", fft_sizes=[256]) if spec.entry == entry)
    path = precompile(spec, "sm_90")
    assert path is not None
    assert path.parent == cache_dir / "sm_90" / "256"
    assert obtain_cubin(spec, "sm_90") == (path.read_bytes(), path)


_BLOCK_IMPORT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
_NO_NVRTC = """
import cupy
from cuda import pathfinder
def missing(name): raise pathfinder.DynamicLibNotFoundError(f"no lib{name}")
pathfinder.load_nvidia_dynamic_lib = missing
"""
_NO_HEADERS = """
from cuda import pathfinder
pathfinder.find_nvidia_header_directory = lambda name: None
"""
_TRY = """
import sys
from pathlib import Path
from fftconv_cupy.compile import compile_cubin
from fftconv_cupy.errors import MissingDependencyError
from scratch_kernel import ARCH, scratch_spec
try:
    compile_cubin(scratch_spec(), ARCH, Path(sys.argv[1]))
except MissingDependencyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("breakage", "what"),
    [
        pytest.param(_BLOCK_IMPORT.format(name="cupy"), "CuPy, which arrays on a GPU need: got none", id="cupy"),
        pytest.param(
            _BLOCK_IMPORT.format(name="cupy_backends"),
            "CuPy, which arrays on a GPU need: got one that",
            id="broken-cupy",
        ),
        pytest.param(_NO_NVRTC, "NVRTC, the compiler of the kernels: got", id="nvrtc"),
        pytest.param(_NO_HEADERS, "CUDA's headers: got none", id="headers"),
    ],
)
def test_what_is_missing_is_named_with_the_extra_to_install(breakage: str, what: str, kernel_dir: Path) -> None:
    text = run_python(breakage + _TRY, str(kernel_dir))
    assert text.startswith(what)
    assert "; allowed: " in text
    assert "pip install 'fftconv-cupy[cuda1" in text
    assert len(text.splitlines()) == 1


def test_importing_needs_no_cupy() -> None:
    code = "import sys, fftconv_cupy.compile; print('cupy' in sys.modules)"
    assert run_python(code) == "False"


def test_an_account_without_home_compiles(kernel_dir: Path) -> None:
    code = "import os\n" + _TRY + "print('CUPY_CACHE_DIR' in os.environ)"
    assert run_python(code, str(kernel_dir), env={"HOME": "/proc/nowhere"}) == "False"


def test_threads_may_import_cupy_at_once() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from fftconv_cupy.dependencies import import_nvrtc
with ThreadPoolExecutor(8) as pool:
    print(len(set(pool.map(lambda _: id(import_nvrtc()), range(8)))))
"""
    assert run_python(code) == "1"
