"""The faults of ``mutate.py`` still apply to the sources, and each was caught when they were last planted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutate import MUTATIONS, ROOT, Copy
from mutations import CLASSES, Mutation

RESULTS = Path(__file__).with_name("mutation_results.txt")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_fault_applies_to_the_sources(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutation.apply(text) != text


def test_every_class_of_faults_has_one() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names))
    assert {name.partition(":")[0] for name in names} >= set(CLASSES)
    assert len(CLASSES) == 13


def test_an_old_text_must_occur_once() -> None:
    mutation = Mutation("gate", "a.cu", "x", "y", ())
    assert mutation.apply("a x") == "a y"
    for text in ("a", "x x"):
        with pytest.raises(ValueError, match=r"gate: \d times in a.cu"):
            mutation.apply(text)


def test_the_tests_that_judge_exist() -> None:
    pytest.importorskip("cupy", reason="the kernels' tests need CuPy; pip install 'fftconv-cupy[cuda12]'")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    files = sorted({test.partition("::")[0] for mutation in MUTATIONS for test in mutation.tests})
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}  # the output is read
    done = subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    missing = {test for mutation in MUTATIONS for test in mutation.tests} - set(done.stdout.splitlines())
    assert not missing


def test_the_kept_results_are_of_these_faults_and_none_survived() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    for mutation in MUTATIONS:
        assert re.search(rf"^{re.escape(mutation.name)} +{re.escape(mutation.file)} +test_\S+", text, re.MULTILINE)
    assert text.splitlines()[-1] == f"{len(MUTATIONS)} faults, {len(MUTATIONS)} caught, 0 survived"


def test_a_fault_that_nothing_judges_does_not_count_as_caught(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    copy.path("tests/test_three.py").write_text(
        "def test_right(): assert 1 + 1 == 2\ndef test_wrong(): assert 1 + 1 == 3\n"
    )

    def judge(*tests: str) -> tuple[bool, str]:
        ids = tuple(f"tests/test_three.py{test}" for test in tests)
        return copy.judge(Mutation("gate", "fftconv_cupy/_version.py", "__version__", "__version__", ids))

    assert judge("::test_right") == (False, "SURVIVED")
    is_caught, verdict = judge("")
    assert is_caught
    assert verdict.startswith("test_three.py::test_wrong: assert")
    is_caught, verdict = judge("::test_absent")
    assert not is_caught
    assert verdict.startswith("INVALID")
