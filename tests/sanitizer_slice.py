"""A slice of every kernel on a GPU, small enough for compute-sanitizer; every result is checked too.

    compute-sanitizer --error-exitcode 1 --tool memcheck python tests/sanitizer_slice.py

and the same with ``--tool racecheck`` and ``--tool initcheck``. Memory comes straight from cudaMalloc, so each array
has its own bounds and starts uninitialised.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import cupy
import numpy as np
import sanitizer_depthwise

from fftconv_cupy import fftconv, fftconv_vjp, prepare_filter
from fftconv_cupy.numeric import compare, compare_sum, relative_error
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference

BATCH, CHANNELS = 3, 2
# Rows that fill a transform (prefetched where that pays), and rows that end inside it at an odd address.
BOUNDS = {"float16": 5e-4, "bfloat16": 3e-3, "float32": 1e-6}  # of outputs, relative L2
LENGTHS = (128, 255, 256, 509, 512, 1000, 1024, 1500, 2048, 3001, 4096, 8191, 8192, 16383, 16384)


class Case(NamedTuple):
    """One convolution of the slice; `extras` are both gates and skip."""

    mode: str
    seqlen: int
    filter_len: int
    dtype: str
    extras: bool
    shared_filter: bool = False
    precision: str = "highest"

    @property
    def out_len(self) -> int:
        return self.seqlen + self.filter_len - 1 if self.mode == "full" else self.seqlen


def cases() -> list[Case]:
    """Return the convolutions whose outputs are checked."""
    found = []
    for index, seqlen in enumerate(LENGTHS):
        for mode in ("causal", "circular"):
            found.append(Case(mode, seqlen, seqlen, ("float16", "float32")[index % 2], index % 4 < 2))
        if seqlen <= 8192:  # more outputs than points of the transform
            found.append(Case("full", seqlen, seqlen // 3 + 1, "float16", index % 4 >= 2))
            found.append(Case("same", seqlen, seqlen + 5, "float32", False))
    return found + tensor_core_cases() + long_cases()


def tensor_core_cases() -> list[Case]:
    """Return convolutions that a GPU of compute capability 8.0 and later transforms on its tensor cores."""
    return [
        Case("causal", seqlen, seqlen, dtype, seqlen % 96 != 0, precision=precision)
        for seqlen in (2048, 4000, 4096, 8192)
        for dtype, precision in (("bfloat16", "medium"), ("float16", "medium"))
    ]


def long_cases() -> list[Case]:
    """Return convolutions of rows that outgrow a block, and of rows that are cut into windows."""
    return [
        Case("causal", 40000, 40000, "float16", True),
        Case("causal", 32768, 32768, "float32", False),
        Case("full", 40001, 9999, "bfloat16", True),
        Case("circular", 33001, 33001, "float32", False),
        Case("same", 40001, 129, "float16", True),
        Case("causal", 70000, 300, "float32", False),
    ]


def gradient_cases() -> list[Case]:
    """Return the convolutions whose gradients are checked; that of a shared filter is summed by a kernel of its own."""
    found = []
    for index, seqlen in enumerate(LENGTHS):
        dtype, other = ("float16", "float32") if index % 2 else ("float32", "float16")
        found.append(Case("causal", seqlen, seqlen, dtype, index % 4 < 2))
        found.append(Case("circular", seqlen, seqlen, other, index % 4 >= 2, shared_filter=index % 3 == 0))
    return found + tensor_core_cases() + long_cases()


def draw(case: Case, generator: np.random.Generator) -> dict[str, Any]:
    """Return NumPy arrays by the names of their arguments."""
    outputs = (BATCH, CHANNELS, case.out_len)
    dtype = NUMPY_DTYPES[case.dtype]
    u = generator.standard_normal((BATCH, CHANNELS, case.seqlen)).astype(dtype)
    taps = (case.filter_len,) if case.shared_filter else (CHANNELS, case.filter_len)
    arrays = {"u": u, "k": generator.standard_normal(taps).astype(np.float32)}
    if case.extras:
        arrays["in_gate"] = generator.standard_normal(u.shape).astype(dtype)
        arrays["out_gate"] = generator.standard_normal(outputs).astype(dtype)
        arrays["skip"] = generator.standard_normal(CHANNELS).astype(np.float32)
    return arrays


def check_outputs(case: Case, generator: np.random.Generator) -> list[str]:
    """Convolve with the taps and with a prepared filter; return what is wrong."""
    arrays = draw(case, generator)
    if case.mode == "circular":
        arrays["u"][0, 0] = 0  # a row without a norm: its pair is convolved row by row
    expected = fftconv_reference(**arrays, mode=case.mode)
    on_gpu = {name: cupy.asarray(array) for name, array in arrays.items()}
    taps = on_gpu.pop("k")
    wrong = []
    options: dict[str, Any] = {"mode": case.mode, "precision": case.precision}
    for filt in (taps, prepare_filter(taps, seqlen=case.seqlen, **options)):
        error = relative_error(cupy.asnumpy(fftconv(k=filt, **on_gpu, **options)), expected)
        if not error < BOUNDS[case.dtype] * (3 if case.precision == "medium" and case.dtype == "float16" else 1):
            wrong.append(f"{case}: {error:.2e}")
    return wrong


def check_gradients(case: Case, generator: np.random.Generator) -> list[str]:
    """Compute all gradients that run with the precision of a case; return what is wrong."""
    arrays = draw(case, generator)
    wrt = [name for name in arrays if case.precision == "highest" or name != "skip"]
    # So small that gradients stay within float16.
    dy = (generator.standard_normal((BATCH, CHANNELS, case.out_len)) / case.seqlen**0.5).astype(
        NUMPY_DTYPES[case.dtype]
    )
    expected = fftconv_vjp_reference(dy, **arrays, mode=case.mode)
    on_gpu = {name: cupy.asarray(array) for name, array in arrays.items()}
    grads = fftconv_vjp(cupy.asarray(dy), **on_gpu, wrt=wrt, mode=case.mode, precision=case.precision)
    wrong = []
    for name in wrt:
        grad, grad64 = cupy.asnumpy(getattr(grads, name)), getattr(expected, name)
        judge = compare_sum if name in ("k", "skip") else compare
        found = judge(grad, grad64, str(grad.dtype), precision=case.precision)
        if not found.ok:
            wrong.append(f"{case}, gradient of {name}: {found.error:.2e}")
    return wrong


def main() -> int:
    """Run the slice; return the number of wrong results."""
    cupy.cuda.set_allocator(None)
    generator = np.random.default_rng(0)
    wrong = []
    for case in cases():
        wrong += check_outputs(case, generator)
    for case in gradient_cases():
        wrong += check_gradients(case, generator)
    depthwise_calls, depthwise_wrong = sanitizer_depthwise.check_all()
    wrong += depthwise_wrong
    for line in wrong:
        print("WRONG", line)
    print(
        f"{2 * len(cases())} calls, {len(gradient_cases())} of gradients, {depthwise_calls} depthwise, "
        f"{len(wrong)} wrong"
    )
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
