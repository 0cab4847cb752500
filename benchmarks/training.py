"""A training step of the example's language model as a cell to time, with our convolution and with torch's."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftconv_cupy.benchmarks.baselines import OURS, Call, Implementation
from fftconv_cupy.benchmarks.cells import Timed

_EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True, slots=True)
class TrainingCell(Timed):
    """A step of examples/train_hyena_lm.py: forward, backward and the optimizer; channels are the model's width.

    Attributes:
        layers: of the model.
    """

    layers: int = 2

    @classmethod
    def of(cls, batch: int, width: int, seqlen: int, *, dtype: str) -> TrainingCell:
        """Return a cell of the suite "training"."""
        return cls("training", "causal", True, dtype, batch, width, seqlen, seqlen, "raw", "torch")

    @property
    def own_facts(self) -> dict[str, Any]:
        """What only records of this kind of cells have."""
        return {"layers": self.layers}

    @property
    def remark(self) -> str:
        """What is timed of the model."""
        return f" training step of {self.layers} layers"


def _prepare_ours(cell: TrainingCell, data: None) -> Call:
    return training_step(cell, "fftconv")


def _prepare_torch(cell: TrainingCell, data: None) -> Call:
    return training_step(cell, "torch_fftconv")


def training_step(cell: TrainingCell, convolve: str, device: str = "cuda") -> Call:
    """Return a call that makes one step and returns the loss, a tensor; each call goes on from the one before.

    Args:
        cell: the model and its texts.
        convolve: the name of the convolution in the example.
        device: of torch.

    Raises:
        ImportError: torch is missing, or the example, which only a checkout of the repository has.
    """
    example = _example()
    import numpy as np
    import torch

    options = {"layers": cell.layers, "rate": 1e-3, "seed": 0, "device": device, "dtype": cell.dtype}
    settings = example.Settings(steps=1, batch=cell.batch, length=cell.seqlen, width=cell.channels, **options)
    model = example.language_model(settings, getattr(example, convolve))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate)
    rng = np.random.default_rng(0)
    windows = torch.from_numpy(rng.integers(0, 256, (cell.batch, cell.seqlen + 1))).to(device)

    def step() -> Any:
        with settings.precision():
            logits = model(windows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _example() -> Any:
    """Return the example's module, found as it finds its neighbours when it is run."""
    if not (_EXAMPLES / "train_hyena_lm.py").exists():
        raise ImportError("the model is one of the examples, which only a checkout of the repository has")
    sys.path.insert(0, str(_EXAMPLES))
    try:
        return importlib.import_module("train_hyena_lm")
    finally:
        sys.path.remove(str(_EXAMPLES))


TRAINED = (
    Implementation(OURS, "torch", lambda cell: True, _prepare_ours, TrainingCell),
    Implementation("torch.fft rfft", "torch", lambda cell: True, _prepare_torch, TrainingCell),
)
