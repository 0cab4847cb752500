"""What differs between the kinds of cells: their arrays, their sample, their kernels, who computes them."""

from __future__ import annotations

from typing import Any

import fftconv_cupy
from fftconv_cupy import gpu, launch_depthwise
from fftconv_cupy.arrays import current_device
from fftconv_cupy.benchmarks.baselines import CONVOLUTIONS, OURS
from fftconv_cupy.benchmarks.cells import Cell, Timed
from fftconv_cupy.benchmarks.data import Sample, make_data
from fftconv_cupy.benchmarks.short import DEPTHWISE, ShortCell, ShortSample, make_short_data
from fftconv_cupy.benchmarks.starts import STARTED, StartCell
from fftconv_cupy.benchmarks.training import TRAINED, TrainingCell
from fftconv_cupy.depthwise_plan import make_depthwise_plan, make_depthwise_vjp_plan
from fftconv_cupy.depthwise_problem import DepthwiseWanted
from fftconv_cupy.devices import device_limits

Record = dict[str, Any]

IMPLEMENTATIONS = (*CONVOLUTIONS, *DEPTHWISE, *STARTED, *TRAINED)

_KINDS: dict[str, type[Timed]] = {"layout": ShortCell, "start": StartCell, "layers": TrainingCell}  # by their own field
_FIELDS = (
    *("mode", "gated", "dtype", "batch", "channels", "seqlen", "filter_len", "filter", "framework", "direction"),
    "precision",
)


def draw(cell: Timed) -> Any:
    """Return the arrays of a cell on the current GPU, None where it makes its own."""
    if isinstance(cell, Cell):
        return make_data(cell)
    return make_short_data(cell) if isinstance(cell, ShortCell) else None


def judge(cell: Timed, data: Any) -> Sample | ShortSample | None:
    """Return the sample of a cell's rows that gives the error of a result; None where results are not compared."""
    if isinstance(cell, Cell):
        return Sample(cell, data)
    return ShortSample(cell, data) if isinstance(cell, ShortCell) else None


def launches(cell: Timed, name: str) -> int | None:
    """Return the kernels that a call of ours launches on the current GPU; what others launch is not known."""
    if name != OURS:
        return None
    if isinstance(cell, ShortCell):
        limits = device_limits(current_device())
        if cell.is_backward:
            return len(make_depthwise_vjp_plan(cell.problem, DepthwiseWanted(x=True, weight=True), limits).steps)
        return len(make_depthwise_plan(cell.problem, limits).steps)
    if not isinstance(cell, Cell):
        return None
    planned = fftconv_cupy.plan(
        cell.batch,
        cell.channels,
        cell.seqlen,
        cell.filter_len,
        mode=cell.mode,
        dtype=cell.dtype,
        in_gate=cell.gated,
        out_gate=cell.gated,
        prepared=cell.filter == "prepared",
        precision=cell.precision,
        wrt=[name for name, is_wanted in cell.wanted._asdict().items() if is_wanted] or None,
    )
    return planned.launches


def warm(cell: Timed) -> None:
    """Compile and load the kernels of a cell on the current GPU."""
    if isinstance(cell, ShortCell):
        launch_depthwise.warm(cell.problem)
    elif isinstance(cell, Cell) and cell.is_backward:
        gpu.warm_vjp(cell.problem, cell.wanted)
    elif isinstance(cell, Cell):
        gpu.warm(cell.problem)


def cell_of_record(record: Record) -> Timed:
    """Return the cell that a record was made from."""
    shared = {name: record[name] for name in _FIELDS}
    for field, kind in _KINDS.items():
        if field in record:
            return kind(suite=record["suite"], **shared, **{field: record[field]})
    is_strided = record["suite"] == "strided"
    return Cell(suite="shapes" if is_strided else record["suite"], **shared, strided=is_strided)
