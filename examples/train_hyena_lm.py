"""Train a small Hyena-style language model on the source text of Python's standard library, byte by byte.

Each layer mixes along the text by gated long convolutions only: a short convolution in front, then filters as long as
the text, which a small network makes from the lag. The model must beat a byte-bigram model of the same text by far; the
loss is that on modules it has not seen. With --compare the same model is trained with torch.fft too, and the two loss
curves, step times and peak memories are set side by side.

    python examples/train_hyena_lm.py --plot loss.png
    python examples/train_hyena_lm.py --compare
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from stdlib_text import Corpus, bigram_loss, even_windows, random_windows, read_corpus

from fftconv_cupy.torch import fftconv

BYTES = 256
SHORT_TAPS = 3
HELD_OUT_BYTES = 65536
EVALUATED_BYTES = 8192  # at a time
MARGIN = 0.2  # nats a byte under the bigram model
AGREEMENT = 0.01  # largest relative difference of two loss curves
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Convolve = Callable[..., torch.Tensor]


def torch_fftconv(
    u: torch.Tensor, k: torch.Tensor, *, in_gate: torch.Tensor, out_gate: torch.Tensor, skip: torch.Tensor
) -> torch.Tensor:
    """Compute what `fftconv` does in its causal mode, by torch.fft in float32."""
    points = u.shape[-1]
    x = (in_gate * u).float()
    product = torch.fft.rfft(x, 2 * points) * torch.fft.rfft(k, 2 * points)
    y = torch.fft.irfft(product, 2 * points)[..., :points] + skip[:, None] * x
    return (out_gate * y).to(u.dtype)


class ImplicitFilter(torch.nn.Module):
    """Filters (channels, taps) float32, made from the lag by a small network, under windows of different reach."""

    def __init__(self, channels: int, taps: int, hidden: int = 64, periods: int = 16) -> None:
        super().__init__()
        lag = torch.arange(taps, dtype=torch.float32)[:, None]
        angle = 2 * math.pi * lag / torch.from_numpy(np.geomspace(2, 2 * taps, periods, dtype=np.float32))
        self.register_buffer("position", torch.cat((angle.cos(), angle.sin()), dim=1), persistent=False)
        reach = torch.from_numpy(np.geomspace(2, taps, channels, dtype=np.float32))  # the lag where it fell to 1/e
        window = torch.exp(-lag.T / reach[:, None])
        self.register_buffer("window", window / window.norm(dim=1, keepdim=True), persistent=False)
        self.first = torch.nn.Linear(2 * periods, hidden)
        self.second = torch.nn.Linear(hidden, hidden)
        self.last = torch.nn.Linear(hidden, channels)

    def forward(self) -> torch.Tensor:
        """Return the taps; in float32 under autocast too, where filters are best left."""
        with torch.autocast(self.position.device.type, enabled=False):
            hidden = torch.sin(self.second(torch.sin(2 * self.first(self.position))))
            return self.last(hidden).T * self.window


class HyenaOperator(torch.nn.Module):
    """``out_gate * (conv(in_gate * value) + skip * (in_gate * value))`` of three projections of the input."""

    def __init__(self, width: int, length: int, convolve: Convolve) -> None:
        super().__init__()
        self.convolve = convolve
        self.project = torch.nn.Linear(width, 3 * width)
        self.short = torch.nn.Conv1d(3 * width, 3 * width, SHORT_TAPS, groups=3 * width)
        torch.nn.init.normal_(self.short.weight, std=SHORT_TAPS**-0.5)  # the rows keep their size
        self.filter = ImplicitFilter(width, length)
        self.skip = torch.nn.Parameter(torch.ones(width))
        self.mix = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, L, width) to the same shape; no point sees a later one."""
        padded = torch.nn.functional.pad(self.project(x).mT, (SHORT_TAPS - 1, 0))  # (B, 3 * width, L + 2)
        value, in_gate, out_gate = self.short(padded).chunk(3, dim=1)  # views, which are convolved where they lie
        y = self.convolve(value, self.filter(), in_gate=in_gate, out_gate=out_gate, skip=self.skip)
        return self.mix(y.mT)


class Block(torch.nn.Module):
    """The operator along the text and a perceptron at each point, each added to what came in."""

    def __init__(self, width: int, length: int, convolve: Convolve) -> None:
        super().__init__()
        self.mixer = torch.nn.Sequential(torch.nn.LayerNorm(width), HyenaOperator(width, length, convolve))
        self.perceptron = torch.nn.Sequential(
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, 2 * width),
            torch.nn.GELU(),
            torch.nn.Linear(2 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, L, width) to the same shape."""
        x = x + self.mixer(x)
        return x + self.perceptron(x)


@dataclass(frozen=True)
class Settings:
    """All that a run depends on but the convolution."""

    steps: int
    batch: int
    length: int
    width: int
    layers: int
    rate: float
    seed: int
    device: str
    dtype: str

    def precision(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast(self.device, DTYPES[self.dtype], enabled=self.dtype != "float32")


class Run(NamedTuple):
    """What came of a training: the loss of each step in nats a byte, and what the steps cost."""

    name: str
    losses: list[float]
    held_out: float
    step_ms: float
    peak_mb: float


def language_model(settings: Settings, convolve: Convolve) -> torch.nn.Sequential:
    """Return a model of (B, L) bytes, which predicts at each point the byte after it: (B, L, 256) logits."""
    torch.manual_seed(settings.seed)
    return torch.nn.Sequential(
        torch.nn.Embedding(BYTES, settings.width),
        *(Block(settings.width, settings.length, convolve) for _ in range(settings.layers)),
        torch.nn.LayerNorm(settings.width),
        torch.nn.Linear(settings.width, BYTES),
    ).to(settings.device)


def loss_of(model: torch.nn.Module, windows: np.ndarray, settings: Settings) -> torch.Tensor:
    """Return the mean loss of windows (B, L + 1)."""
    text = torch.from_numpy(windows).to(settings.device)
    with settings.precision():
        logits = model(text[:, :-1])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())


def train(name: str, convolve: Convolve, corpus: Corpus, held_out: np.ndarray, settings: Settings) -> Run:
    """Train a model from its seed on, and judge it by the windows `held_out` (count, L + 1)."""
    model, rng = language_model(settings, convolve), np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, settings.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm) * (1 + math.cos(math.pi * step / settings.steps)) / 2
    )
    forget_peak(settings.device)
    losses, seconds = [], []
    with click.progressbar(range(settings.steps), label=name, item_show_func=lambda _: loss_text(losses)) as steps:
        for _ in steps:
            windows = random_windows(corpus.train, settings.length, settings.batch, rng)
            start = time.perf_counter()
            loss = loss_of(model, windows, settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())  # waits for the GPU
            seconds.append(time.perf_counter() - start)
    peak = peak_mb(settings.device)
    with torch.no_grad():
        parts = np.array_split(held_out, math.ceil(held_out.size / EVALUATED_BYTES))
        total = sum(loss_of(model, part, settings).item() * len(part) for part in parts)
    return Run(name, losses, total / len(held_out), 1e3 * statistics.median(seconds), peak)


def loss_text(losses: list[float]) -> str:
    """Return the loss as the progress bar shows it."""
    return f"loss {losses[-1]:.3f}" if losses else ""


def forget_peak(device: str) -> None:
    """Let the peak of the memory begin anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # not every container lets a process; its peak is then that of its life
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    """Return the most memory since `forget_peak`: that of torch's allocator on a GPU, of the process on the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def plot(path: str, runs: list[Run], bigram: float) -> None:
    """Draw the loss curves into a file, beside the loss of the bigram model."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise click.UsageError("--plot needs matplotlib: pip install 'fftconv-cupy[examples]'") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for run, style in zip(runs, ("-", ":"), strict=False):
        (line,) = axes.plot(range(1, len(run.losses) + 1), run.losses, style, linewidth=1, label=run.name)
        axes.plot(len(run.losses), run.held_out, "o", color=line.get_color(), label=f"{run.name}, held out")
    axes.axhline(bigram, color="gray", linestyle="--", linewidth=1, label="byte bigrams, held out")
    axes.set(xlabel="step", ylabel="nats a byte", ylim=(None, 4))
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


def compare(ours: Run, theirs: Run) -> bool:
    """Print how far two loss curves are apart at most, and return whether they agree."""
    ours_losses, theirs_losses = np.array(ours.losses), np.array(theirs.losses)
    difference = float(np.max(np.abs(ours_losses - theirs_losses) / theirs_losses))
    agrees = difference <= AGREEMENT
    print(f"largest relative difference of the loss in {len(ours_losses)} steps: {difference:.1e}, ", end="")
    print("fine" if agrees else f"TOO MUCH (more than {AGREEMENT:.0%})")
    return agrees


@click.command()
@click.option("--steps", type=click.IntRange(1), help="Default: 400, with --compare 300.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True)
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Bytes of a text.")
@click.option("--width", type=click.IntRange(1), default=96, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--rate", default=4e-3, show_default=True, help="The highest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is one.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--compare", "is_compared", is_flag=True, help="Train with torch.fft too; exit with 1 if they disagree.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False), help="Draw the losses into this file.")
def main(is_compared: bool, plot_path: str | None, steps: int | None, device: str | None, **options: object) -> None:
    """Train a byte-level language model of long convolutions; exits with 1 where it is not far better than bigrams."""
    if is_compared and options["dtype"] != "float32":
        raise click.UsageError("--compare is for float32: in bfloat16 two runs drift apart by rounding alone")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(steps=steps or (300 if is_compared else 400), device=device, **options)
    torch.backends.cudnn.deterministic = True  # two runs of one seed are the same
    corpus = read_corpus()
    held_out = even_windows(corpus.held_out, settings.length, max(1, HELD_OUT_BYTES // settings.length))
    bigram = bigram_loss(corpus.train, held_out)
    parameters = sum(p.numel() for p in language_model(settings, fftconv).parameters())
    print(f"text: {len(corpus.train):,} bytes to learn from, {held_out[:, 1:].size:,} of other modules to judge by")
    print(f"model: {parameters:,} parameters, {settings}")
    runs = [train("fftconv", fftconv, corpus, held_out, settings)]
    if is_compared:
        runs.append(train("torch.fft", torch_fftconv, corpus, held_out, settings))
    for run in runs:
        print(f"{run.name}: held-out loss {run.held_out:.3f} nats a byte, {run.step_ms:.1f} ms a step, ", end="")
        print(f"peak memory {run.peak_mb:.0f} MB")
    print(f"byte bigrams: held-out loss {bigram:.3f} nats a byte")
    if plot_path:
        plot(plot_path, runs, bigram)
    if is_compared:
        sys.exit(0 if compare(*runs) else 1)
    is_better = runs[0].held_out <= bigram - MARGIN
    print(f"{bigram - runs[0].held_out:.3f} nats under the bigrams, {'fine' if is_better else 'TOO LITTLE'}")
    sys.exit(0 if is_better else 1)


if __name__ == "__main__":
    main()
