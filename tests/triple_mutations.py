"""Faults in the split of rows of 3 * 2^k points, as those of ``mutations.py``."""

from __future__ import annotations

from mutations import Mutation

_ROWS, _GRADIENTS = ("tests/test_triples.py::test_rows[1536]",), ("tests/test_triples.py::test_gradients[1536-None]",)

TRIPLE_MUTATIONS = (
    Mutation(
        "forward twiddle: powers of another root",
        "kernels/roots.cuh",
        "(1 + 4 * kRoot) * kSegment % 12;",
        "(1 + 4 * kSegment) * kRoot % 12;",
        _ROWS,
    ),
    Mutation(
        "inverse twiddle: of a sibling",
        "kernels/roots.cuh",
        "(kRoots - 1 - distance.value) * kUnits>(distance.value,",
        "(distance.value - 1) * kUnits>(distance.value,",
        _ROWS,
    ),
    Mutation(
        "barrier: none between the split and the first pass",
        "kernels/roots.cuh",
        "    __syncthreads();  // all have read before the first pass writes\n",
        "",
        _ROWS,
    ),
    Mutation(
        "barrier: none between rows of a block that are split",
        "kernels/row_fft.cuh",
        "if constexpr (Node::kRoots > 1) __syncthreads();",
        "",
        _GRADIENTS,
    ),
)
