"""Cases for the kernels on the host runtime: which kernels are built, and which problems run on them.

Building a kernel takes a second or two, running it some milliseconds. So the kernels of a table are built (each size
row, dtype and kind of transform; the other flags pairwise), and many problems run on each.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pairwise import pairwise_cover

from fftconv_cupy.archs import ARCHS
from fftconv_cupy.benchmarks.problems import Case
from fftconv_cupy.blocks import BLOCK_CONFIGS, EXTRAS, ITEM_BYTES, ForwardVariant, can_prefetch, forward_spec
from fftconv_cupy.errors import InvalidArgumentError
from fftconv_cupy.plan import Plan, block_config, fits_block, make_plan, max_points
from fftconv_cupy.problem import DTYPES, MODES
from fftconv_cupy.source import KernelSpec

KINDS = ("real", "complex", "paired")
TESTED_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120")

LAYOUTS = ("packed", "batch-strided", "channel-strided", "transposed", "reversed", "even", "odd", "broadcast")

# Rows and filters, in (halves of M, more points): the edges of what each size row holds.
_LENGTHS = ((0, 1), (0, 2), (1, 1), (1, 2), (2, -2), (2, -1), (2, 0), (2, 1), (2, 2), (3, 0), (4, -2), (4, -1), (4, 0))
_TAPS = ((0, 1), (0, 2), (0, 3), (1, 1), (2, -1), (2, 0), (2, 1), (4, -1), (4, 1), (10, 3))
_GATES = {
    "none": ((False, False, False),),
    "gates": ((True, True, False),),
    "any": (
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, True),
        (False, True, True),
        (True, True, True),
    ),
}
_SMALL_ROWS = ((1, 1), (2, 3), (3, 2), (1, 21), (17, 3), (33, 1), (2, 19), (5, 4))
_LARGE_ROWS = ((1, 1), (2, 3), (3, 2), (1, 4), (5, 2), (9, 1))
_SMALL = 1024  # points up to which a block has several rows
_CELLS = (("mode", "taps", "filter_dtype"), ("gates", "skip"))  # all on each kernel
_SPLITS = ("one launch", "channel groups", "grid z")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One build of ``fftconv_fwd``; `access` is "prefetch", "whole", "tail" or "scalar"."""

    points: int
    dtype: str
    kind: str
    extras: str
    access: str

    @property
    def spec(self) -> KernelSpec:
        variant = ForwardVariant(
            self.dtype,
            is_paired=self.kind == "paired",
            is_complex=self.kind != "real",
            has_tail=self.access in ("tail", "scalar"),
            is_vector=self.access != "scalar",
            extras=self.extras,
            has_prefetch=self.access == "prefetch",
        )
        return forward_spec(BLOCK_CONFIGS[self.points], variant)

    def __str__(self) -> str:
        return "-".join((f"M{self.points}", self.dtype, self.kind, self.extras, self.access))


@dataclass(frozen=True, slots=True)
class KernelCase:
    """A problem, and the circumstances in which it runs."""

    case: Case
    arch: str
    split: str = _SPLITS[0]

    @property
    def label(self) -> str:
        return f"{self.case.label} on {self.arch}, {self.split}"


def kernels() -> Iterator[Kernel]:
    """Yield the kernels of the table: size x dtype x kind with flags in turn, and every one that prefetches."""
    for row, (points, config) in enumerate(sorted(BLOCK_CONFIGS.items())):
        for column, dtype in enumerate(DTYPES):
            for number, kind in enumerate(KINDS):
                accesses = ("tail", "scalar") if kind == "complex" else ("whole", "tail", "scalar")
                access = accesses[(row + (len(accesses) - 1) * column) % len(accesses)]
                extras = EXTRAS[(row + column + number) % 3]
                yield Kernel(points, dtype, kind, extras, access)
                is_paired = kind == "paired"
                if kind != "complex" and can_prefetch(config, ARCHS["sm_90"], dtype, is_paired=is_paired):
                    yield Kernel(points, dtype, kind, extras, "prefetch")


def planned(kernel_case: KernelCase) -> Plan:
    """Return the plan that the arrays of a case get, as laid out by `run`."""
    case = kernel_case.case
    lengths = case.seqlen | case.problem.out_len
    is_even = lengths % 2 == 0 and case.layout != "odd"
    is_bulk = is_even and lengths * ITEM_BYTES[case.dtype] % 16 == 0 and case.layout != "even"
    limits = ARCHS[kernel_case.arch]
    return make_plan(case.problem, limits, is_vector=is_even, is_bulk=is_bulk, is_prepared=case.prepared)


@cache
def cases_by_kernel() -> dict[Kernel, list[KernelCase]]:
    """Return the cases of each kernel of the table.

    Together they hold every pair of values of all axes that is possible on these kernels, and what `_CELLS` says. The
    same ones in every run.
    """
    drawn = [(kernel, kernel_case) for kernel in kernels() for kernel_case in _draw(kernel)]
    axes = [axes_of(kernel, kernel_case) for kernel, kernel_case in drawn]
    chosen = set(pairwise_cover(axes))
    for names in _CELLS:
        first: dict[Any, int] = {}
        for index in (*sorted(chosen), *range(len(axes))):
            first.setdefault((drawn[index][0], *(axes[index][name] for name in names)), index)
        chosen |= set(first.values())
    by_kernel = defaultdict(list)
    for index in sorted(chosen):
        kernel, kernel_case = drawn[index]
        by_kernel[kernel].append(kernel_case)
    return dict(by_kernel)


def _draw(kernel: Kernel, wanted: int = 48) -> list[KernelCase]:
    """Draw cases that run on a kernel, from all modes that it serves."""
    draw = random.Random(str(kernel))
    archs = [arch for arch in TESTED_ARCHS if max_points(ARCHS[arch]) >= kernel.points]
    shapes = _shapes(kernel)
    modes = sorted(shapes)
    found: list[KernelCase] = []
    while len(found) < wanted:
        mode = modes[len(found) % len(modes)]
        seqlen, filter_len, fft_size = draw.choice(shapes[mode])
        in_gate, out_gate, skip = draw.choice(_GATES[kernel.extras])
        batch, channels = draw.choice(_SMALL_ROWS if kernel.points <= _SMALL else _LARGE_ROWS)
        case = Case(
            mode,
            kernel.dtype,
            seqlen,
            filter_len,
            batch,
            channels,
            fft_size,
            filter_dtype=draw.choice(DTYPES),
            in_gate=in_gate,
            out_gate=out_gate,
            skip_dtype=draw.choice(("float32", kernel.dtype)) if skip else None,
            shared_filter=draw.random() < 0.2,
            prepared=draw.random() < 0.2,
            layout=draw.choice(LAYOUTS),
            scaled=draw.random() < 0.3,
        )
        kernel_case = KernelCase(case, draw.choice(archs), draw.choice(_SPLITS))
        if fits_block(case.problem, ARCHS[kernel_case.arch]) and planned(kernel_case).forward == kernel.spec:
            found.append(kernel_case)
    return found


def _shapes(kernel: Kernel) -> dict[str, list[tuple[int, int, int | None]]]:
    """Return by mode the (L, K, fft_size) that a kernel serves."""
    shapes = defaultdict(list)
    for mode, shape, kind, access in _all_shapes(kernel.points):
        # Rows of any length lie at odd addresses too.
        if kind == kernel.kind and (
            kernel.access in (access, "scalar") or (kernel.access, access) == ("prefetch", "whole")
        ):
            shapes[mode].append(shape)
    return dict(shapes)


@cache
def _all_shapes(points: int) -> list[tuple[str, tuple[int, int, int | None], str, str]]:
    """Return the (mode, (L, K, fft_size), kind, access) of a size row, with access as of arrays that lie well."""
    shapes = []
    for mode, fft_size, *ends in itertools.product(MODES, (None, points, 2 * points, 4 * points), _LENGTHS, _TAPS):
        seqlen, filter_len = (_at(points, end) for end in ends)
        try:
            problem = Case(mode, "float32", seqlen, filter_len, fft_size=fft_size).problem
            strategy, config = block_config(problem, ARCHS["sm_90"])
        except InvalidArgumentError:
            continue
        is_real = max(seqlen, problem.out_len) <= points
        kind = "paired" if strategy == "paired" else "real" if is_real else "complex"
        is_even = seqlen % 2 == problem.out_len % 2 == 0
        access = "whole" if seqlen == problem.out_len == points else "tail" if is_even else "scalar"
        if config.points == points:
            shapes.append((mode, (seqlen, filter_len, fft_size), kind, access))
    return shapes


def _at(points: int, length: tuple[int, int]) -> int:
    return length[0] * points // 2 + length[1]


def axes_of(kernel: Kernel, kernel_case: KernelCase) -> dict[str, Any]:
    """Return what is covered pairwise."""
    case, points = kernel_case.case, kernel.points
    made = planned(kernel_case)
    rows = _SMALL_ROWS if points <= _SMALL else _LARGE_ROWS
    return {
        "points": points,
        "dtype": kernel.dtype,
        "kind": kernel.kind,
        "access": kernel.access,
        "mode": case.mode,
        "seqlen": next(length for length in _LENGTHS if _at(points, length) == case.seqlen),
        "filter_len": next(length for length in _TAPS if _at(points, length) == case.filter_len),
        "is_default_size": case.fft_size is None,
        "taps": (made.strategy, dict(made.filter.defines)["FFTCONV_IS_GENERAL"]),
        "filter_dtype": case.filter_dtype,
        "gates": (case.in_gate, case.out_gate),
        "skip": "none" if case.skip_dtype is None else "own" if case.skip_dtype == case.dtype else "float32",
        "rows": (points <= _SMALL, rows.index((case.batch, case.channels))),
        "filter": (case.shared_filter, case.prepared),
        "layout": case.layout,
        "scaled": case.scaled,
        "arch": kernel_case.arch,
        "split": kernel_case.split,
    }


def case_on(kernel: Kernel, batch: int, channels: int, **changes: Any) -> KernelCase:
    """Return a case with as many gates as a kernel takes, with rows nearly as long as it holds."""
    points = kernel.points
    length = {"tail": points - 2, "scalar": points - 1}.get(kernel.access, points)
    if kernel.kind == "complex":
        length = 2 * points - length
    in_gate, out_gate, skip = _GATES[kernel.extras][-1]
    case = Case(
        "circular" if kernel.kind == "paired" else "causal",
        kernel.dtype,
        length,
        points // 2 + 1,
        batch,
        channels,
        fft_size=points if kernel.kind == "paired" else None,
        in_gate=in_gate,
        out_gate=out_gate,
        skip_dtype="float32" if skip else None,
    )
    return KernelCase(replace(case, **changes), "sm_90" if kernel.access == "prefetch" else "sm_80")
