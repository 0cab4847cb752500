"""One process of a data-parallel training on the CPU: trains a model on its part of the batch and saves the gradients.

Run as ``python ddp_worker.py RANK WORLD FILE``; ``FILE`` is where the processes meet, ``FILE.RANK`` what is saved.
"""

from __future__ import annotations

import sys

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from fftconv_cupy.torch import FlashFFTConv, fftconv


class Model(torch.nn.Module):
    """Two convolutions with a filter and a skip term that are learnt, the second gated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(3, 8))
        self.second = torch.nn.Parameter(torch.randn(3, 16))
        self.skip = torch.nn.Parameter(torch.randn(3))
        self.conv = FlashFFTConv(16)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, 8) for (B, 3, 8)."""
        y = fftconv(u, self.first, skip=self.skip)
        return self.conv(y, self.second, u, y)


def batch() -> torch.Tensor:
    """Return what all the processes train on together."""
    return torch.randn(8, 3, 8, generator=torch.Generator().manual_seed(1))


def main(rank: int, world: int, path: str) -> None:
    """Take two steps of gradient descent."""
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    model = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        model(batch().chunk(world)[rank]).square().mean().backward()
        optimiser.step()
    torch.save({name: (p.detach(), p.grad) for name, p in model.module.named_parameters()}, f"{path}.{rank}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
