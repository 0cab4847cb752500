"""Classify images as sequences of pixels, line after line, by long convolutions that look both ways.

The images are scikit-learn's bundled digits, 64 pixels each, or CIFAR-10, 1024 pixels of three colours, where the
folder of its binary version (data_batch_1.bin and so on) is given.

    python examples/classify_images.py
    python examples/classify_images.py --cifar10 cifar-10-batches-bin --width 128 --layers 4 --plot accuracy.png
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from fftconv_cupy.torch import fftconv

CLASSES = 10
WANTED_ACCURACY = 0.95  # on the digits
HELD_OUT_PART = 5  # one image in five of the digits, which come without a split of their own
CIFAR_RECORD = 1 + 3 * 1024  # a label, then the pixels of each colour
EVALUATED = 256  # images at a time


class Images(NamedTuple):
    """Pixels (n, L, colours) float32 about zero, and labels (n,) int64."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def to(self, device: str) -> Images:
        """Return the images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


def read_digits(seed: int) -> tuple[Images, Images]:
    """Return the images to learn from and those to judge by, drawn by the seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise click.UsageError("the digits need scikit-learn: pip install 'fftconv-cupy[examples]'") from None
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = len(labels) // HELD_OUT_PART
    pixels = (pixels[order, :, None] / 8 - 1).astype(np.float32)  # 0..16
    images = Images(torch.from_numpy(pixels), torch.from_numpy(labels[order]))
    return Images(*(a[held_out:] for a in images)), Images(*(a[:held_out] for a in images))


def read_cifar10(folder: Path) -> tuple[Images, Images]:
    """Return the images to learn from and those to judge by."""
    parts = [sorted(folder.glob(pattern)) for pattern in ("data_batch_*.bin", "test_batch.bin")]
    if not all(parts):
        raise click.UsageError(f"{folder} holds no data_batch_*.bin and test_batch.bin: get CIFAR-10's binary version")
    return tuple(read_cifar10_files(paths) for paths in parts)


def read_cifar10_files(paths: list[Path]) -> Images:
    """Return the images of files of the binary version."""
    content = np.concatenate([np.fromfile(path, np.uint8) for path in paths])
    if len(content) % CIFAR_RECORD:
        raise click.UsageError(f"{paths[0].parent}: the files' sizes are no multiple of {CIFAR_RECORD} bytes")
    records = torch.from_numpy(content.reshape(-1, CIFAR_RECORD))
    pixels = records[:, 1:].unflatten(1, (3, 1024)).mT.float() / 127.5 - 1
    return Images(pixels.contiguous(), records[:, 0].long())


class LongConvolution(torch.nn.Module):
    """The filters of each channel, a tap for each distance between two points of a row, and a skip term."""

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        reach = torch.from_numpy(np.geomspace(1, points, channels, dtype=np.float32))  # distance at which taps fade
        window = torch.exp(-torch.arange(1 - points, points).abs() / reach[:, None])
        self.taps = torch.nn.Parameter(
            torch.randn(channels, 2 * points - 1) * window / window.norm(dim=1, keepdim=True)
        )
        self.skip = torch.nn.Parameter(torch.ones(channels))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map (B, H, L) to the same shape. The tap of distance 0 is in the middle, as "same" has it."""
        return fftconv(rows, self.taps, mode="same", skip=self.skip)


class Block(torch.nn.Module):
    """A long convolution along the pixels, then a gated mixture of the channels of each; added to what came in."""

    def __init__(self, width: int, points: int, dropout: float) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.convolution = LongConvolution(width, points)
        self.mixture = torch.nn.Sequential(
            torch.nn.GELU(), torch.nn.Dropout(dropout), torch.nn.Linear(width, 2 * width), torch.nn.GLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, L, width) to the same shape."""
        rows = self.norm(x).mT.contiguous()  # (B, width, L)
        return x + self.mixture(self.convolution(rows).mT)


class Classifier(torch.nn.Module):
    """Blocks between an embedding of each pixel and a read-out of the mean over the pixels."""

    def __init__(self, colours: int, points: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = torch.nn.Linear(colours, width)
        self.place = torch.nn.Parameter(torch.randn(points, width) / 4)
        self.blocks = torch.nn.Sequential(*(Block(width, points, dropout) for _ in range(layers)))
        self.readout = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, CLASSES))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map (B, L, colours) to logits (B, CLASSES)."""
        return self.readout(self.blocks(self.embedding(pixels) + self.place).mean(dim=1))


def train(model: Classifier, images: Images, held_out: Images, epochs: int, batch: int, rate: float) -> list[float]:
    """Train for some epochs and return the accuracy on `held_out` after each."""
    steps = epochs * math.ceil(len(images.labels) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (steps / 10)) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    accuracies: list[float] = []
    with click.progressbar(
        length=steps,
        label="training",
        item_show_func=lambda _: f"accuracy {accuracies[-1]:.2%}" if accuracies else "",
    ) as bar:
        for _ in range(epochs):
            model.train()
            for chosen in torch.randperm(len(images.labels), device=images.labels.device).split(batch):
                loss = torch.nn.functional.cross_entropy(model(images.pixels[chosen]), images.labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(1)
            accuracies.append(accuracy_of(model, held_out))
    return accuracies


@torch.no_grad()
def accuracy_of(model: Classifier, images: Images) -> float:
    """Return the share of the images that are classified rightly."""
    model.eval()
    parts = zip(images.pixels.split(EVALUATED), images.labels.split(EVALUATED), strict=True)
    right = sum(int((model(pixels).argmax(dim=1) == labels).sum()) for pixels, labels in parts)
    return right / len(images.labels)


def plot(path: str, accuracies: list[float]) -> None:
    """Draw the accuracy after each epoch into a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise click.UsageError("--plot needs matplotlib: pip install 'fftconv-cupy[examples]'") from None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(accuracies) + 1), [100 * accuracy for accuracy in accuracies], ".-")
    axes.set(xlabel="epoch", ylabel="accuracy on held-out images, %")
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


@click.command()
@click.option("--cifar10", type=click.Path(exists=True, file_okay=False, path_type=Path), help="CIFAR-10's folder.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--width", type=click.IntRange(1), default=32, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True)
@click.option("--rate", default=4e-3, show_default=True, help="The highest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is one.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False), help="Draw the accuracy into this file.")
def main(
    cifar10: Path | None,
    epochs: int,
    batch: int,
    width: int,
    layers: int,
    dropout: float,
    rate: float,
    seed: int,
    device: str | None,
    plot_path: str | None,
) -> None:
    """Train a classifier of images by long convolutions; exits with 1 where it gets too few digits right."""
    torch.manual_seed(seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    images, held_out = (part.to(device) for part in (read_cifar10(cifar10) if cifar10 else read_digits(seed)))
    count, points, colours = images.pixels.shape
    model = Classifier(colours, points, width, layers, dropout).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{count} images to learn from, {len(held_out.labels)} to judge by, of {points} pixels, on {device}")
    print(f"model: {parameters:,} parameters, filters of {2 * points - 1} taps")
    accuracies = train(model, images, held_out, epochs, batch, rate)
    if plot_path:
        plot(plot_path, accuracies)
    is_good = cifar10 is not None or accuracies[-1] > WANTED_ACCURACY
    print(f"accuracy on held-out images: {accuracies[-1]:.2%}, {'fine' if is_good else 'TOO LITTLE'}")
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
