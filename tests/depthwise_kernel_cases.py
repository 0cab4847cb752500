"""Cases for the depthwise kernels on the host runtime: arrays, and what is exact in float64."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pairwise import pairwise_cover

from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseProblem, DepthwiseWanted, make_depthwise_problem
from fftconv_cupy.readers import NUMPY_DTYPES

WIDTHS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 127, 128)
DTYPES = ("float16", "bfloat16", "float32")
SPECIALS = ("none", "none", "seq_idx", "initial", "final", "states")
PADDINGS = ("causal", "causal", "same", "none", "some", "more")
WANTED = ("all", "input", "sums", "weight", "bias")
_ARCHS = ("sm_75", "sm_80", "sm_90", "sm_120")


@dataclass(frozen=True, slots=True)
class DepthwiseCase:
    """One convolution and the circumstances.

    Attributes:
        sizes: B, D, L, K.
        padding: "causal", "same" or a number.
        dtype: of x, dy, the states.
        weight_dtype: of the taps.
        bias_dtype: of the bias, or None.
        layout: "BHL" or "BLH".
        activation: "silu" or None.
        special: one of `SPECIALS`.
        placing: of arrays in memory, see `kernel_runs`.
        wanted: which gradients, one of `WANTED`.
        arch: of the GPU that is played.
    """

    sizes: tuple[int, int, int, int]
    padding: Any = "causal"
    dtype: str = "float16"
    weight_dtype: str = "float32"
    bias_dtype: str | None = "float32"
    layout: str = "BHL"
    activation: str | None = None
    special: str = "none"
    placing: str = "packed"
    wanted: str = "all"
    arch: str = "sm_90"

    @property
    def problem(self) -> DepthwiseProblem:
        batch, channels, seqlen, width = self.sizes
        return make_depthwise_problem(
            batch=batch,
            channels=channels,
            seqlen=seqlen,
            width=width,
            padding=self.padding,
            activation=self.activation,
            layout=self.layout,
            dtype=self.dtype,
            weight_dtype=self.weight_dtype,
            bias_dtype=self.bias_dtype,
            has_seq_idx=self.special == "seq_idx",
            has_initial_state=self.special in ("initial", "states"),
            has_final_state=self.special in ("final", "states"),
        )

    @property
    def wanted_gradients(self) -> DepthwiseWanted:
        has_bias, has_state = self.bias_dtype is not None, self.problem.has_initial_state
        is_bias_only = self.wanted == "bias" and has_bias
        return DepthwiseWanted(
            x=self.wanted in ("all", "input"),
            weight=self.wanted in ("all", "sums", "weight") or (self.wanted == "bias" and not has_bias),
            bias=has_bias and (self.wanted in ("all", "sums") or is_bias_only),
            initial_state=has_state and self.wanted != "sums",
        )

    @property
    def label(self) -> str:
        sizes = "x".join(map(str, self.sizes))
        dtypes = (self.dtype, self.weight_dtype, str(self.bias_dtype))
        flags = (self.layout, str(self.padding), self.activation or "linear", self.special, self.placing, self.wanted)
        return "-".join((sizes, *dtypes, *flags, self.arch))


class DepthwiseInputs(NamedTuple):
    """The arrays of a case, rows as (B, D, points) whatever its layout."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    seq_idx: np.ndarray | None
    initial_state: np.ndarray | None
    dy: np.ndarray
    d_final_state: np.ndarray | None


def make_inputs(case: DepthwiseCase) -> DepthwiseInputs:
    """Draw the arrays of a case, the same ones in every run."""
    generator = np.random.default_rng(len(case.label) + sum(case.sizes))
    problem = case.problem
    batch, channels, seqlen, width = case.sizes

    def draw(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return generator.standard_normal(shape).astype(NUMPY_DTYPES[dtype])

    seq_idx = None
    if problem.has_seq_idx:
        marks = generator.permutation(np.where(np.arange(seqlen) % 4 == 3, -1, np.arange(seqlen)))
        lengths = generator.integers(1, 2 * width + 2, seqlen)
        seq_idx = np.stack([np.roll(np.repeat(marks, lengths)[:seqlen], row) for row in range(batch)]).astype(np.int32)
    state_shape = (batch, channels, width - 1)
    return DepthwiseInputs(
        x=draw((batch, channels, seqlen), case.dtype),
        weight=draw((channels, width), case.weight_dtype),
        bias=None if case.bias_dtype is None else draw((channels,), case.bias_dtype),
        seq_idx=seq_idx,
        initial_state=draw(state_shape, case.dtype) if problem.has_initial_state else None,
        dy=draw((batch, channels, problem.out_len), case.dtype),
        d_final_state=draw(state_shape, case.dtype) if problem.has_final_state else None,
    )


class Exact:
    """What is exact for a case, in float64; rows as (B, D, points)."""

    def __init__(self, case: DepthwiseCase, inputs: DepthwiseInputs) -> None:
        self.problem, self.inputs = case.problem, inputs
        self.width, self.seqlen = inputs.weight.shape[1], inputs.x.shape[2]
        batch, channels, _ = inputs.x.shape
        shape = (batch, channels, self.width - 1)
        before = np.zeros(shape) if inputs.initial_state is None else inputs.initial_state.astype(np.float64)
        self.points = np.concatenate((before, inputs.x.astype(np.float64)), axis=2)
        self.weight = inputs.weight.astype(np.float64)
        self.z = np.zeros(inputs.dy.shape)
        if inputs.bias is not None:
            self.z += inputs.bias.astype(np.float64)[:, None]
        for tap, outputs, points, mask in self.pairs():
            self.z[..., outputs] += self.weight[:, tap, None] * self.points[..., points] * mask
        self.is_output = np.ones(self.z.shape, bool)
        if inputs.seq_idx is not None:
            self.is_output &= inputs.seq_idx[:, None] >= 0

    def pairs(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield each tap with the outputs and points that it joins, and a mask of those of them that count."""
        for tap in range(self.width):
            outputs = np.arange(self.problem.out_len)
            points = outputs + tap - self.problem.pad + self.width - 1
            is_inside = (points >= 0) & (points < self.points.shape[2])
            outputs, points = outputs[is_inside], points[is_inside]
            mask = np.ones((1, 1, len(outputs)))
            ids = self.inputs.seq_idx
            if ids is not None:
                times = points - self.width + 1
                mask = ((times >= 0) & (ids[:, outputs] == ids[:, np.maximum(times, 0)]))[:, None].astype(float)
            yield tap, outputs, points, mask

    def outputs(self) -> np.ndarray:
        y = self.z / (1 + np.exp(-self.z)) if self.problem.activation else self.z
        return np.where(self.is_output, y, 0.0)

    def final_state(self) -> np.ndarray:
        return self.points[..., self.seqlen :]

    def gradients(self) -> DepthwiseGradients:
        dz = np.where(self.is_output, self.inputs.dy.astype(np.float64), 0.0)
        if self.problem.activation:
            s = 1 / (1 + np.exp(-self.z))
            dz = dz * s * (1 + self.z * (1 - s))
        d_points, d_weight = np.zeros(self.points.shape), np.zeros(self.weight.shape)
        for tap, outputs, points, mask in self.pairs():
            d_points[..., points] += self.weight[:, tap, None] * dz[..., outputs] * mask
            d_weight[:, tap] = (dz[..., outputs] * self.points[..., points] * mask).sum(axis=(0, 2))
        if self.inputs.d_final_state is not None:
            d_points[..., self.seqlen :] += self.inputs.d_final_state.astype(np.float64)
        kept = self.width - 1
        return DepthwiseGradients(d_points[..., kept:], d_weight, dz.sum(axis=(0, 2)), d_points[..., :kept])


def drawn(seed: str, count: int) -> list[DepthwiseCase]:
    """Draw cases that hold every pair of the values below that `count` random ones hold."""
    draw = random.Random(seed)
    cases = [_draw_one(draw) for _ in range(count)]
    names = ("dtype", "weight_dtype", "bias_dtype", "layout", "activation", "special", "placing", "wanted")
    axes = [
        {**{name: getattr(case, name) for name in names}, "width": case.sizes[3], "padding": _kind(case)}
        for case in cases
    ]
    return [cases[index] for index in pairwise_cover(axes)]


def _kind(case: DepthwiseCase) -> str:
    padding, width = case.padding, case.sizes[3]
    return padding if isinstance(padding, str) else "short" if padding < width else "long"


def _draw_one(draw: random.Random) -> DepthwiseCase:
    width = draw.choice(WIDTHS)
    special = draw.choice(SPECIALS) if width > 1 else "none"
    padding: Any = "causal"
    if special == "none":
        kind = draw.choice(PADDINGS)
        padding = {"none": 0, "some": draw.randint(0, width - 1), "more": width + 2}.get(kind, kind)
    layout = draw.choice(("BHL", "BLH"))
    placing = draw.choice(("packed", "batch-strided", "channel-strided", "odd"))
    # Of unit stride is the last axis; at multiples of eight it can be accessed in vectors.
    aligned = placing != "odd" and draw.random() < 0.8
    seqlen = draw.choice((1, 3, 41, 130, 300) if width < 17 else (1, 5, 130, 300, 700))
    channels = draw.choice((1, 2, 5, 19, 33))
    if aligned and layout == "BHL":
        seqlen = draw.choice((8, 64, 136, 520, 2104))
    if aligned and layout == "BLH":
        channels = draw.choice((8, 16, 40, 264))
    if isinstance(padding, int) and seqlen + 2 * padding < width:
        padding = width - 1
    if aligned and layout == "BHL" and isinstance(padding, int) and width % 2:
        padding = (width - 1) // 2  # as many outputs as points
    batch = draw.choice((1, 2, 3)) if seqlen * channels < 4096 else 1
    return DepthwiseCase(
        (batch, channels, seqlen, width),
        padding,
        draw.choice(DTYPES),
        draw.choice(DTYPES),
        draw.choice((*DTYPES, None)),
        layout,
        draw.choice((None, "silu")),
        special,
        placing,
        draw.choice(WANTED),
        draw.choice(_ARCHS),
    )


LARGE = (
    # More rows than blocks beside each other, several tiles in time, several chunks of sums.
    DepthwiseCase((5, 5, 2104, 4), activation="silu"),
    DepthwiseCase((5, 24, 331, 4), layout="BLH", activation="silu"),
    DepthwiseCase((5, 3, 2104, 7), "same", dtype="float32"),
    DepthwiseCase((5, 264, 150, 7), "same", layout="BLH", dtype="float32"),
    DepthwiseCase((3, 3, 4504, 18), dtype="float32", activation="silu"),
    DepthwiseCase((3, 40, 300, 18), layout="BLH", dtype="float32", activation="silu"),
    DepthwiseCase((3, 3, 4504, 40), weight_dtype="float16", activation="silu"),
    DepthwiseCase((3, 40, 700, 40), layout="BLH", activation="silu"),
    DepthwiseCase((3, 2, 9000, 3), special="states"),
    DepthwiseCase((3, 40, 300, 9), layout="BLH", special="seq_idx"),
    DepthwiseCase((4, 130, 1, 4), special="states"),
    DepthwiseCase((4, 130, 2, 64), layout="BLH", special="states"),
)

ANYWHERE = (
    # Rows that begin at no multiple of 16 bytes. Where x and dy are "odd", those of the results begin at others still.
    DepthwiseCase((2, 5, 137, 4), "same"),
    DepthwiseCase((2, 5, 137, 4), "same", placing="odd"),
    DepthwiseCase((2, 3, 1024, 4), "same", placing="odd"),  # points are left for the first thread
    DepthwiseCase((3, 3, 9, 3), "same", "bfloat16", activation="silu", placing="odd"),
    DepthwiseCase((2, 3, 301, 7), "same", "float32", activation="silu"),
    DepthwiseCase((2, 9, 70, 4), layout="BLH"),
    DepthwiseCase((2, 10, 150, 5), "same", "bfloat16", layout="BLH", activation="silu"),
    DepthwiseCase((2, 33, 70, 8), "same", "float32", layout="BLH", placing="odd"),
)
