"""Data-parallel training: two processes learn what one learns from the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from ddp_worker import Model, batch  # noqa: E402
from torch_cases import error  # noqa: E402

WORKER = Path(__file__).with_name("ddp_worker.py")
WORLD = 2


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_two_processes_train_as_one_does(tmp_path):
    path = tmp_path / "meet"
    command = [sys.executable, str(WORKER)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen([*command, str(rank), str(WORLD), str(path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
    model = Model()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        model(batch()).square().mean().backward()
        optimiser.step()
    first, second = (torch.load(f"{path}.{rank}") for rank in range(WORLD))
    for name, parameter in model.named_parameters():
        for mine, other, alone in zip(first[name], second[name], (parameter, parameter.grad), strict=True):
            assert torch.equal(mine, other)
            assert error(mine, alone) < 1e-5
