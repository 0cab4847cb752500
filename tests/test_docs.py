"""The documentation is true: its code runs, its messages are those that are raised, the names in it are there."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_calls import Bad, all_bad_calls
from bad_depthwise_calls import all_bad_depthwise_calls
from bad_vjp_calls import all_bad_vjp_calls
from frameworks import cupy_on_host

import fftconv_cupy
from fftconv_cupy.errors import FFTConvError
from fftconv_cupy.plan import LARGEST_FFT_SIZE

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}
TEXTS = {**{name: path.read_text() for name, path in PAGES.items()}, "CONTRIBUTING.md": ""}
TEXTS["CONTRIBUTING.md"] = (REPOSITORY / "CONTRIBUTING.md").read_text()
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in TEXTS.items()}
STATED_SHAPE = re.compile(r"^([\w.]+)(?: = .*?)?  # \((\d+(?:, \d+)*)\)", re.MULTILINE)
FRAMEWORKS = ("torch", "jax", "cupy")
MESSAGES = re.findall(r"```text\n(.*?)\n```", TEXTS["troubleshooting.md"], re.DOTALL)

# How the messages begin that only a GPU, or a machine that lacks something, raises; and lines of the log.
NOT_ON_THE_CPU = (
    "k (prepared filter): got one for",
    "stream: got a stream being captured",
    "CuPy, which",
    "NVRTC, the",
    "CUDA's headers",
    "GPU …",
    "arch: got",
    "…=None, the current GPU",
    "kernel cache",
)


@pytest.fixture(autouse=True)
def nothing_is_changed_for_other_tests() -> Iterator[None]:
    """The pages may set the level of the log, and the environment."""
    logger = logging.getLogger("fftconv_cupy")
    level, environment = logger.level, dict(os.environ)
    yield
    logger.setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


def is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks and name != "guide.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    """Each block goes on from those before it; what needs a framework that is not installed is left out.

    The guide goes on from the README, and its code is run by test_readme.py.
    """
    monkeypatch.setenv("FFTCONV_CACHE_DIR", str(tmp_path))
    names: dict[str, Any] = {}
    left_out = set()
    for block in BLOCKS[page]:
        missing = {name for name in FRAMEWORKS if re.search(rf"^import {name}\b", block, re.MULTILINE)}
        missing = {name for name in missing if not is_installed(name)}
        left_out |= missing
        if missing:
            continue
        exec(compile(block, f"{page}", "exec"), names)
        for expression, shape in STATED_SHAPE.findall(block):
            assert tuple(eval(expression, names).shape) == tuple(map(int, shape.split(", "))), expression
    if left_out:
        pytest.skip(f"all but what needs {', '.join(sorted(left_out))} has run")


def test_every_page_on_the_maths_has_code_that_compares():
    pages = [name for name in BLOCKS if name.startswith("maths/")]
    assert len(pages) >= 7
    assert [name for name in pages if "assert np.allclose" not in "".join(BLOCKS[name])] == []


def pattern_of(message: str) -> re.Pattern[str]:
    """Return the pattern of a message in which a … stands for any text, or none."""
    return re.compile(".*?".join(map(re.escape, message.split("…"))), re.DOTALL)


def raised(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(FFTConvError) as error:
        call(*args, **options)
    return str(error.value)


def raised_messages() -> list[str]:
    """Return the messages of what the tests of wrong calls do with arrays of NumPy and CuPy, and of a few more."""
    calls: list[Bad] = [*all_bad_calls(), *all_bad_vjp_calls(), *all_bad_depthwise_calls()]
    with cupy_on_host():
        found = [bad.message() for bad in calls if bad.framework in ("numpy", "cupy")]
    messages = [match.string for match in found if match is not None]
    u, k = np.ones((3, 16), np.float32), np.ones((3, 5), np.float32)
    fields = np.zeros((3, 16), np.dtype([("a", np.float32), ("b", np.int8)]))
    messages += [
        raised(fftconv_cupy.fftconv, fields["a"], k),
        raised(fftconv_cupy.plan, 1, 1, 1 << 26, 1 << 26, arch="sm_90"),
        raised(fftconv_cupy.plan, 1, 1, 1 << 30, 1, arch="sm_90"),
        raised(fftconv_cupy.prepare_filter(k, seqlen=16).__reduce__),
        raised(fftconv_cupy.fftconv, u, k, mode="same", initial_state=np.zeros((3, 4), np.float32)),
        raised(fftconv_cupy.fftconv, u, np.ones((3, 1 << 15), np.float32), return_final_state=True),
    ]
    torch, jax = importlib.import_module("torch"), importlib.import_module("jax")
    drop_in = importlib.import_module("fftconv_cupy.torch").FlashFFTConv(8)
    taps = torch.ones(3, 5, requires_grad=True)
    arrays = jax.numpy.ones((3, 16)), jax.numpy.ones((3, 5))
    return [
        *messages,
        raised(fftconv_cupy.prepare_filter, taps, seqlen=16),
        raised(fftconv_cupy.fftconv, torch.ones(3, 16), taps, out=torch.ones(3, 16)),
        raised(drop_in, torch.ones(3, 16), torch.ones(3, 5)),
        raised(jax.jit(fftconv_cupy.fftconv), *arrays),
        raised(fftconv_cupy.fftconv, *arrays, out=arrays[0]),
        raised(importlib.import_module("fftconv_cupy.jax").fftconv, u, k),
    ]


def test_the_messages_of_troubleshooting_are_those_that_are_raised():
    for framework in FRAMEWORKS:
        pytest.importorskip(framework)
    real = raised_messages()
    documented = [message for message in MESSAGES if not message.startswith(NOT_ON_THE_CPU)]
    assert len(documented) >= 28
    assert [message for message in documented if not any(map(pattern_of(message).fullmatch, real))] == []


def test_the_messages_that_the_cpu_does_not_raise_are_in_the_sources():
    sources = "".join(path.read_text() for path in sorted((REPOSITORY / "fftconv_cupy").glob("*.py")))
    documented = [message for message in MESSAGES if message.startswith(NOT_ON_THE_CPU)]
    assert len(documented) >= len(NOT_ON_THE_CPU)
    for message in documented:
        parts = re.split(r"…|: got |; allowed: |(?<=[\w)])\. (?=[A-Z])", message)
        fragments = [part for part in (part.strip(" .:();,=") for part in parts) if len(part) > 3]
        assert fragments, message
        assert [part for part in fragments if part not in sources] == [], message


def test_the_files_that_are_named_are_there():
    named = {
        (page, file)
        for page, text in TEXTS.items()
        for file in re.findall(r"`((?:kernels|fftconv_cupy|tests|benchmarks|examples|cli|docs)/[\w./]*)`", text)
    }
    assert len(named) >= 20
    assert [item for item in sorted(named) if not (REPOSITORY / item[1]).exists()] == []


def test_the_functions_and_classes_that_are_named_are_there():
    named = {
        (page, name) for page, text in TEXTS.items() for name in re.findall(r"`(fftconv_cupy(?:\.[A-Za-z_]\w*)+)", text)
    }
    assert len(named) >= 10
    missing = []
    for page, name in sorted(named):
        if name.split(".")[1] in FRAMEWORKS and not is_installed(name.split(".")[1]):
            continue
        target: Any = fftconv_cupy
        for part in name.split(".")[1:]:
            if not hasattr(target, part) and is_installed(f"{target.__name__}.{part}"):
                importlib.import_module(f"{target.__name__}.{part}")
            target = getattr(target, part, None)
        if target is None:
            missing.append((page, name))
    assert missing == []


def test_the_commands_that_are_named_are_there():
    from fftconv_cupy.cli import main

    for page, text in TEXTS.items():
        for words in re.findall(r"`fftconv ((?:[a-z]+ ?)+)", text):
            command: Any = main
            for word in words.split():
                assert hasattr(command, "commands"), f"{page}: fftconv {words}"
                assert word in command.commands, f"{page}: fftconv {words}"
                command = command.commands[word]
        for suite in re.findall(r"--suite (\w+)", text):
            option = next(option for option in main.commands["bench"].params if option.name == "suite")
            assert suite in option.type.choices, page


def test_every_public_function_is_in_the_reference():
    text = TEXTS["api.md"]
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)(?:\(\))?$", text, re.MULTILINE))
    assert documented == set(fftconv_cupy.__all__) - {"__version__"}


def test_the_tables_of_figures_are_those_of_the_committed_files(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    figures = importlib.import_module("figures")
    if not figures.RESULTS.exists():
        pytest.skip("no benchmarks/results, as in a source distribution")
    for name, table in figures.TABLES.items():
        head, *rows = table()
        assert rows, name
        assert {len(row) for row in rows} == {len(head)}, name
    wanted = {"suite": "speed", "mode": "causal", "gated": True, "dtype": "float16", "filter": "prepared"}
    records = json.loads((REPOSITORY / "benchmarks/results/targets-h100.json").read_text())["records"]
    for record in records:
        if record["impl"] == "fftconv_cupy" and all(record[key] == value for key, value in wanted.items()):
            row = next(row for row in figures.forward() if row[0] == str(record["fft_size"]))
            ms, ratio = re.fullmatch(r"(\S+)\s\((\S+)\)", row[figures.forward()[0].index("causal, gated")]).groups()
            assert float(ms) == pytest.approx(record["ms"] * record["scale"], rel=5e-3)
            assert float(ratio) == pytest.approx(record["ms"] / record["floor_ms"], abs=6e-3)
    used = {name for text in TEXTS.values() for name in re.findall(r"^```{figures} (\w+)", text, re.MULTILINE)}
    assert used == set(figures.TABLES)


def test_no_figure_of_a_time_is_written_by_hand():
    """Nor of a time as a share or a multiple of another: those are read off the tables, which are generated."""
    readme = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    for page, text in {**TEXTS, "README.md": readme}.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert re.findall(r"\d\s*(?:ms|us|µs|GB/s|TFLOP)\b", prose) == [], page
        shares = r"\b0\.\d+\b|(?:faster|slower|longer) by an? \w+|\ba \w+ (?:slower|longer)"
        assert re.findall(shares, prose) == [], page


def test_the_limiter_of_every_size_is_told():
    told = re.findall(r"^\| (\d+)(?: to (\d+))? \|(.*)$", TEXTS["performance.md"], re.MULTILINE)
    every = {2**i for i in range(1, LARGEST_FFT_SIZE.bit_length())}
    for columns in (3, 2):  # of outputs, of gradients
        ranges = [(int(first), int(last or first)) for first, last, rest in told if rest.count("|") == columns - 1]
        assert {size for size in every for first, last in ranges if first <= size <= last} == every
        assert all(after[0] == 2 * before[1] for before, after in itertools.pairwise(ranges))
