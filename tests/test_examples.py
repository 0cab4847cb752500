"""The examples run as they stand, and fail where they should."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ("--device", "cpu", "--batch", "8", "--length", "128", "--width", "64")
TINY = ("--device", "cpu", "--batch", "2", "--length", "32", "--width", "8", "--layers", "1")


def test_quickstart_agrees_with_direct_sums():
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "quickstart.py")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("input: the first 16384 bytes of argparse.py")
    names = [line.partition(":")[0].split(" on ")[0] for line in lines[1:-1]]
    assert names == ["NumPy", "CuPy", "torch", "JAX"]
    assert lines[-1].endswith("fine")


@pytest.fixture
def example(monkeypatch):
    """Import an example as it finds itself when it is run: its neighbours beside it."""
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    return importlib.import_module


@pytest.fixture
def language_model(example):
    pytest.importorskip("torch")
    return example("train_hyena_lm")


@pytest.fixture
def classifier(example):
    pytest.importorskip("torch")
    return example("classify_images")


@pytest.fixture
def twin(example):
    pytest.importorskip("jax")
    return example("hyena_jax")


def run(module, *options):
    """Return exit status and output of an example's command."""
    done = CliRunner().invoke(module.main, options)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def number(pattern, output):
    return float(re.search(pattern, output)[1])


def test_the_language_model_is_far_better_than_bigrams(language_model):
    status, output = run(language_model, *SMALL, "--steps", "150")
    assert status == 0, output
    loss, bigram = (number(f"{name}: held-out loss ([\\d.]+)", output) for name in ("fftconv", "byte bigrams"))
    assert 1.0 < loss <= bigram - 0.2 < 2.4
    assert output.endswith("fine\n")


def test_a_language_model_that_learnt_little_is_a_failure_and_every_run_is_the_same(language_model):
    status, output = run(language_model, *TINY, "--steps", "2")
    assert status == 1
    assert output.endswith("TOO LITTLE\n")
    outputs = (output, *(run(language_model, *TINY, "--steps", steps)[1] for steps in ("2", "30")))
    losses = [number(r"fftconv: held-out loss ([\d.]+)", text) for text in outputs]
    assert losses[0] == losses[1] > losses[2]


def test_the_language_model_sees_no_later_byte(language_model):
    import torch

    settings = language_model.Settings(1, 1, 64, 16, 2, 1e-3, 0, "cpu", "float32")
    model = language_model.language_model(settings, language_model.fftconv)
    text = torch.randint(256, (1, 64))
    changed = text.clone()
    changed[0, 40] ^= 1
    apart = (model(text) - model(changed)).abs().amax(dim=(0, 2))
    assert apart[:40].max() < 1e-4 < apart[40:].min()


def test_the_loss_curves_of_ours_and_torch_fft_agree(language_model):
    status, output = run(language_model, *SMALL, "--steps", "20", "--compare")
    assert status == 0, output
    assert number(r"in 20 steps: ([\d.e+-]+), fine", output) < 1e-5
    for name in ("fftconv", "torch.fft"):
        assert number(rf"{name}: .* ([\d.]+) ms a step", output) > 0
        assert number(rf"{name}: .* peak memory (\d+) MB", output) > 50


def test_the_comparison_finds_a_wrong_convolution(language_model, monkeypatch):
    right = language_model.fftconv
    monkeypatch.setattr(language_model, "fftconv", lambda u, k, in_gate, **given: right(u, k, **given))
    status, output = run(language_model, *SMALL, "--steps", "20", "--compare")
    assert status == 1
    assert "TOO MUCH" in output


def test_the_language_model_trains_in_bfloat16_but_is_not_compared_in_it(language_model):
    _, output = run(language_model, *TINY, "--steps", "2", "--dtype", "bfloat16")
    assert 2 < number(r"fftconv: held-out loss ([\d.]+)", output) < 10
    status, output = run(language_model, *TINY, "--dtype", "bfloat16", "--compare")
    assert status == 2
    assert "float32" in output


def test_plots_are_written(language_model, classifier, tmp_path):
    pytest.importorskip("matplotlib")
    language_model.plot(str(tmp_path / "loss.png"), [language_model.Run("a", [3.0, 2.0], 2.5, 1.0, 1.0)], 2.4)
    classifier.plot(str(tmp_path / "accuracy.png"), [0.5, 0.9])
    for name in ("loss.png", "accuracy.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_text_is_split_by_whole_files(example):
    corpus = example("stdlib_text").read_corpus()
    assert 0.05 < len(corpus.held_out) / len(corpus.train) < 0.2
    module = Path(argparse.__file__).read_bytes()
    assert sum(module in part.tobytes() for part in corpus) == 1


def test_the_bigram_loss_is_that_of_the_counts(example):
    bigram_loss = example("stdlib_text").bigram_loss
    noise = np.random.default_rng(0).integers(0, 16, 100_000).astype(np.uint8)
    assert bigram_loss(noise[:-1000], noise[None, -1000:].astype(np.int64)) == pytest.approx(np.log(16), abs=0.02)
    train = np.frombuffer(b"abac" * 5000, np.uint8)  # after b and c comes a; after a comes b, or as often c
    assert bigram_loss(train, np.array([[98, 97], [99, 97]])) == pytest.approx(0, abs=0.01)
    assert bigram_loss(train, np.array([[97, 98], [97, 99]])) == pytest.approx(np.log(2), abs=0.01)


def test_the_classifier_reads_more_than_95_percent_of_the_digits(classifier):
    pytest.importorskip("sklearn")
    status, output = run(classifier, "--device", "cpu")
    assert status == 0, output
    assert number(r"accuracy on held-out images: ([\d.]+)%, fine", output) > 95


def test_a_classifier_that_learnt_little_is_a_failure(classifier):
    pytest.importorskip("sklearn")
    status, output = run(classifier, "--device", "cpu", "--epochs", "1", "--batch", "2000", "--width", "4")
    assert status == 1
    assert "TOO LITTLE" in output


def write_cifar10(folder, images):
    rng = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        records = rng.integers(0, 256, (images, 3073)).astype(np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    return records


def test_the_classifier_takes_cifar10(classifier, tmp_path):
    records = write_cifar10(tmp_path, 4)
    train, held_out = classifier.read_cifar10(tmp_path)
    assert (len(train.labels), len(held_out.labels)) == (8, 4)
    assert held_out.labels.tolist() == records[:, 0].tolist()
    pixels = records[:, 1:].reshape(4, 3, 1024) / 127.5 - 1
    np.testing.assert_allclose(held_out.pixels.numpy(), pixels.transpose(0, 2, 1), rtol=0, atol=1e-6)
    status, output = run(classifier, "--cifar10", str(tmp_path), "--device", "cpu", "--epochs", "1", "--width", "4")
    assert status == 0, output
    assert "8 images to learn from, 4 to judge by, of 1024 pixels" in output


def test_a_folder_without_cifar10_is_refused_in_words(classifier, tmp_path):
    status, output = run(classifier, "--cifar10", str(tmp_path))
    assert status == 2
    assert "binary version" in output
    write_cifar10(tmp_path, 1)
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 100)
    status, output = run(classifier, "--cifar10", str(tmp_path))
    assert status == 2
    assert "3073" in output


def test_the_jax_twin_learns_with_the_gradients_of_jax_numpy(twin):
    status, output = run(twin, "--steps", "15", "--batch", "4", "--length", "128", "--width", "32")
    assert status == 0, output
    assert number(r"off jax.numpy's by ([\d.e+-]+), fine", output) <= 1e-5
    assert number(r"([\d.]+) at step 15", output) < number(r"([\d.]+) at step 1,", output) - 1


def test_the_jax_twin_finds_a_wrong_gradient(twin, monkeypatch):
    right = twin.jnp_fftconv
    monkeypatch.setattr(twin, "jnp_fftconv", lambda u, k, **given: right(u, k * (1 + 1e-4), **given))
    status, output = run(twin, "--steps", "1", "--batch", "2", "--length", "32", "--width", "8")
    assert status == 1
    assert "TOO MUCH" in output
