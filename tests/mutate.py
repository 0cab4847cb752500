"""Plants faults, one at a time, in a copy of the library: which test of the kernels finds each?

The faults are those of ``mutations.py`` and of the files beside it whose names end so.

``python tests/mutate.py [NAME ...]`` prints a table and exits with 1 where a fault survives. The table of all faults is
kept in ``mutation_results.txt``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster_mutations import CLUSTER_MUTATIONS
from depthwise_mutations import DEPTHWISE_MUTATIONS
from mma_mutations import MMA_MUTATIONS
from mutations import KERNEL_MUTATIONS, Mutation
from triple_mutations import TRIPLE_MUTATIONS
from vjp_mutations import VJP_MUTATIONS

MUTATIONS = (
    *KERNEL_MUTATIONS,
    *TRIPLE_MUTATIONS,
    *CLUSTER_MUTATIONS,
    *VJP_MUTATIONS,
    *MMA_MUTATIONS,
    *DEPTHWISE_MUTATIONS,
)
ROOT = Path(__file__).resolve().parent.parent
# Folder in the repository: folder in the package, as pyproject.toml maps them.
FOLDERS = {
    "fftconv_cupy": "fftconv_cupy",
    "kernels": "fftconv_cupy/kernels",
    "cli": "fftconv_cupy/cli",
    "benchmarks": "fftconv_cupy/benchmarks",
    "tests": "tests",
}


class Copy:
    """A copy of the library and its tests, in which one fault at a time is planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for source, target in FOLDERS.items():
            ignored = shutil.ignore_patterns("__pycache__", "results", *(() if source == "tests" else ("test_*",)))
            shutil.copytree(ROOT / source, folder / target, ignore=ignored, dirs_exist_ok=True)
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.environment = {
            **os.environ,
            "PYTEST_ADDOPTS": "",  # the output is read
            "CI": "true",  # nothing may be skipped
            "PYTHONPATH": str(folder),  # before what is installed
            "PYTHONDONTWRITEBYTECODE": "1",
            "FFTCONV_HOST_CACHE": str(folder / "host_cache"),
        }

    def path(self, file: str) -> Path:
        """Return where a file of the repository lies in the copy."""
        folder, _, rest = file.partition("/")
        return self.folder / FOLDERS[folder] / rest

    def run_tests(self, tests: tuple[str, ...]) -> tuple[int, str]:
        """Run tests until one fails; return pytest's exit code and output."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rf", "--tb=short", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def check_itself(self) -> None:
        """Make sure that the copy is what runs, and that without a fault all the tests pass.

        Raises:
            RuntimeError: with the output of what did not.
        """
        command = [sys.executable, "-c", "import fftconv_cupy.kernels as k; print(k.__file__)"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if Path(done.stdout.strip()) != self.path("kernels/__init__.py"):
            raise RuntimeError(f"another copy of the library is imported: {done.stdout}{done.stderr}")
        code, output = self.run_tests(tuple(dict.fromkeys(test for m in MUTATIONS for test in m.tests)))
        if code:
            raise RuntimeError(f"the tests fail without a fault:\n{output}")

    def judge(self, mutation: Mutation) -> tuple[bool, str]:
        """Return whether a test catches a fault, and which, with its message."""
        path = self.path(mutation.file)
        original = path.read_text(encoding="utf-8")
        path.write_text(mutation.apply(original), encoding="utf-8")
        try:
            code, output = self.run_tests(mutation.tests)
        finally:
            path.write_text(original, encoding="utf-8")
        failed = re.search(r"^FAILED tests/(\S+)(?: - (.*))?$", output, re.MULTILINE)
        if code == 0:
            return False, "SURVIVED"
        if code != 1 or failed is None or "HostBuildError" in output:
            return False, f"INVALID, no test judged it (exit code {code}):\n{output[-2000:]}"
        message = re.sub(r"0x[0-9a-f]+", "0x...", (failed[2] or "").strip()).removeprefix("host_runtime.harness.")
        return True, f"{failed[1]}: {message[:70]}"


def main(names: list[str]) -> int:
    """Judge the faults of these names, default all; return the exit code."""
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    os.nice(10)
    survived = 0
    with tempfile.TemporaryDirectory(prefix="fftconv_mutate_") as folder:
        copy = Copy(Path(folder).resolve())
        if not names:
            copy.check_itself()
        print(f"{'fault':52} {'file':26} caught by")
        for mutation in chosen:
            start = time.monotonic()
            is_caught, verdict = copy.judge(mutation)
            survived += not is_caught
            print(f"{mutation.name:52} {mutation.file:26} {verdict}", flush=True)
            print(f"{mutation.name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    print(f"{len(chosen)} faults, {len(chosen) - survived} caught, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
