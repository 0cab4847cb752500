"""What the project's metadata promises: commands, extras, packages, and that CI runs the README's own command."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import fftconv_cupy

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
MAPPED = {"kernels": (".cu", ".cuh"), "cli": (".py",), "benchmarks": (".py",)}


def test_the_version_is_the_same_everywhere():
    assert metadata.version("fftconv-cupy") == fftconv_cupy.__version__
    assert f"## {fftconv_cupy.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("folder", MAPPED)
def test_mapped_folders_are_found_inside_the_package(folder):
    installed = resources.files(f"fftconv_cupy.{folder}")
    names = {item.name for item in installed.iterdir()}
    for path in (REPOSITORY / folder).iterdir():
        if path.suffix in MAPPED[folder]:
            assert path.name in names


def test_base_dependencies_are_three_and_no_framework():
    required = metadata.requires("fftconv-cupy") or []
    base = [re.match(r"[\w-]+", line)[0] for line in required if "extra ==" not in line]
    assert sorted(base) == ["click", "ml_dtypes", "numpy"]
    extras = metadata.metadata("fftconv-cupy").get_all("Provides-Extra")
    assert sorted(extras) == ["cuda12", "cuda13", "dev", "docs", "examples", "jax", "plot", "test", "torch"]
    assert not any("[ctk]" in line for line in required)


def test_python_minus_m_is_the_console_script():
    done = subprocess.run([sys.executable, "-m", "fftconv_cupy", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: fftconv ")
    assert {"verify", "bench", "cache"} <= set(re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE))
    (script,) = metadata.entry_points(group="console_scripts", name="fftconv")
    assert script.value == "fftconv_cupy.cli:main"


def test_ci_runs_the_second_command_of_the_readme():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert commands == ["pip install '.[cuda12]' && fftconv verify", "pip install -e '.[test]' && pytest"]
    wanted = re.search(r"grep -m 1 -F \"(.*?)\" README.md", (REPOSITORY / ".ci" / "run").read_text())[1]
    assert next(line for line in README.splitlines() if wanted in line) == commands[1]


def test_nothing_imports_a_mapped_folder_by_its_place_in_the_tree():
    pattern = re.compile(r"^\s*(?:from|import) (?:kernels|cli|benchmarks)\b", re.MULTILINE)
    sources = [path for path in REPOSITORY.rglob("*.py") if not {".venv", "build"} & set(path.parts)]
    assert sources
    assert [path for path in sources if pattern.search(path.read_text())] == []
