"""Runs the plans of short depthwise convolutions: arguments, workspace, launches. `launch` is that of long ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fftconv_cupy import arrays
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import CUDA_TYPES
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.depthwise_params import (
    DepthwiseParams,
    DepthwiseReduceParams,
    DepthwiseStateParams,
    DepthwiseUpdateParams,
)
from fftconv_cupy.depthwise_plan import (
    DepthwisePlan,
    make_depthwise_plan,
    make_depthwise_update_plan,
    make_depthwise_vjp_plan,
)
from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseProblem, DepthwiseWanted
from fftconv_cupy.depthwise_steps import Step, row_alignment
from fftconv_cupy.devices import device_limits
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.params import packer
from fftconv_cupy.problem import ITEM_BYTES

_STORAGE_TYPES = {dtype: index for index, dtype in enumerate(CUDA_TYPES)}  # of kernels/depthwise.cuh
_NO_STRIDES = (0, 0, 0)
_ID_BYTES = 4  # of a sequence index

# What to do, the bytes at multiples of which rows lie, and whether there is a d_final_state.
_Key = tuple[DepthwiseProblem, "DepthwiseWanted | str", int, bool]


@dataclass(frozen=True, slots=True)
class _Launcher:
    """A plan with its kernels loaded on a device, one for each step."""

    plan: DepthwisePlan
    kernels: tuple[LoadedKernel, ...]


@dataclass(slots=True)
class _Rows:
    """An array of (B, D, points) as the kernels take it: address and strides of batch, channel and time."""

    ptr: int = 0
    strides: tuple[int, int, int] = _NO_STRIDES


_pack = packer(DepthwiseParams).pack_into


def check(problem: DepthwiseProblem, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Args:
        problem: the convolution; every GPU computes every one.
        device: ordinal of the device.

    Raises:
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        MissingDependencyError: NVRTC is not installed.
    """
    device_limits(device)
    import_nvrtc()


def run(
    problem: DepthwiseProblem,
    x: ArrayView,
    weight: ArrayView,
    bias: ArrayView | None,
    seq_idx: ArrayView | None,
    initial_state: ArrayView | None,
    out: ArrayView,
    final_state: ArrayView | None,
    stream: int,
) -> None:
    """Compute a validated problem on the GPU of `x`, asynchronously on `stream`, into `out`.

    Args:
        problem: the convolution, with ``batch >= 1``.
        x: (B, D, L) or (B, L, D), of unit stride along the last axis.
        weight: (D, K), any strides.
        bias: (D,) or None, any stride.
        seq_idx: int32 (B, L) of unit stride along the last axis, or None.
        initial_state: (B, D, K - 1) or None, any strides.
        out: as `x`, with the outputs' length.
        final_state: (B, D, K - 1) or None, any strides.
        stream: handle of a stream of that GPU.

    Raises:
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    launcher = _launchers[x.device, (problem, "output", _alignment(problem, x, out, seq_idx=seq_idx), False)]
    source, target, state = _rows(problem, x), _rows(problem, out), _states(initial_state)
    for step, kernel in zip(launcher.plan.steps, launcher.kernels, strict=True):
        if step.role == "output":
            _launch(kernel, step, problem, source, target, weight, bias, stream, seq_idx=seq_idx, state=state)
        elif final_state is not None:
            final = _states(final_state)
            params = DepthwiseStateParams(
                *(source.ptr, state.ptr, final.ptr, *source.strides, *state.strides, *final.strides),
                *(problem.batch, problem.channels, problem.seqlen, problem.width),
            )
            kernel.launch(step.grid, step.threads, params, stream)


def run_vjp(
    problem: DepthwiseProblem,
    wanted: DepthwiseWanted,
    dy: ArrayView,
    x: ArrayView,
    weight: ArrayView,
    bias: ArrayView | None,
    seq_idx: ArrayView | None,
    initial_state: ArrayView | None,
    d_final_state: ArrayView | None,
    gradients: DepthwiseGradients,
    stream: int,
    workspace: ArrayView | None = None,
) -> None:
    """Compute the wanted gradients on the GPU of `x`, asynchronously on `stream`.

    Args:
        problem: the convolution, with ``batch >= 1``.
        wanted: which gradients, one at least; that of `initial_state` only where there is one.
        dy: gradient of the output, of its shape.
        x: as for `run`, as are weight, bias, seq_idx, initial_state.
        weight: (D, K).
        bias: (D,) or None.
        seq_idx: (B, L) or None.
        initial_state: (B, D, K - 1) or None.
        d_final_state: gradient of the final state, (B, D, K - 1), or None, which means zero.
        gradients: views of the arrays to fill, those of weight and bias contiguous; None for the rest.
        stream: handle of a stream of that GPU.
        workspace: as many bytes as `load` says, or more; None allocates it.

    Raises:
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    alignment = _alignment(problem, x, dy, *(() if gradients.x is None else (gradients.x,)), seq_idx=seq_idx)
    launcher = _launchers[x.device, (problem, wanted, alignment, d_final_state is not None)]
    made = launcher.plan
    if workspace is None and made.workspace_bytes:
        _, workspace = arrays.empty(x, (made.workspace_bytes // 4,), "float32", stream)
    memory = 0 if workspace is None else workspace.ptr
    sums = memory + made.dz_bytes
    source, state = _rows(problem, x), _states(initial_state)
    dz = _rows(problem, dy)
    d_x = _Rows() if gradients.x is None else _rows(problem, gradients.x)
    for step, kernel in zip(made.steps, launcher.kernels, strict=True):
        if step.role == "slope":
            slope = _Rows(memory, _contiguous(problem))
            _launch(kernel, step, problem, source, slope, weight, bias, stream, dy=dz, seq_idx=seq_idx, state=state)
            dz = slope
        elif step.role == "input":
            d_final, d_state = _states(d_final_state), _states(gradients.initial_state)
            _launch(
                kernel, step, problem, dz, d_x, weight, None, stream, seq_idx=seq_idx, d_final=d_final, d_state=d_state
            )
        elif step.role == "reduce":
            _launch_reduce(kernel, step, problem, sums, gradients, stream)
        else:
            _launch(
                *(kernel, step, problem, source, d_x, weight, bias, stream),
                dy=dz,
                seq_idx=seq_idx,
                state=state,
                sums=sums,
            )


def run_update(
    problem: DepthwiseProblem,
    x: ArrayView,
    state: ArrayView,
    weight: ArrayView,
    bias: ArrayView | None,
    cache_seqlens: ArrayView | None,
    conv_state_indices: ArrayView | None,
    out: ArrayView,
    stream: int,
) -> None:
    """Compute a few steps of decoding on the GPU of `x`, asynchronously on `stream`, and take x up into the state.

    Args:
        problem: that of the new points, with ``batch >= 1``; its layout means nothing.
        x: (B, D) or (B, D, S), any strides.
        state: (N, D, W), any strides, W >= K - 1, written in place.
        weight: (D, K), any strides.
        bias: (D,) or None, any stride.
        cache_seqlens: int32 (B,) or None: the state is a ring, and the next point lies there, modulo W.
        conv_state_indices: int32 (B,) or None: rows of the state. A negative one means outputs of zero and no change;
            of one past the last row the outputs are NaN, and nothing changes.
        out: of the shape of `x`, any strides.
        stream: handle of a stream of that GPU.

    Raises:
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    launcher = _launchers[x.device, (problem, "update", 0, False)]
    (step,), (kernel,) = launcher.plan.steps, launcher.kernels
    steps = x.shape[2] if len(x.shape) == 3 else 1
    params = DepthwiseUpdateParams(
        *(array.ptr if array is not None else 0 for array in (x, out, state, weight, bias)),
        *(array.ptr if array is not None else 0 for array in (cache_seqlens, conv_state_indices)),
        *(stride for array in (x, out, state) for stride in (*array.strides, 1)[:3]),
        *weight.strides,
        *(0 if array is None else array.strides[0] for array in (bias, cache_seqlens, conv_state_indices)),
        *(problem.batch, problem.channels, steps, state.shape[2], state.shape[0], problem.width),
        *_types(problem),
        int(problem.activation == "silu"),
    )
    kernel.launch(step.grid, step.threads, params, stream)


def warm(problem: DepthwiseProblem, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, what outputs and gradients of all inputs need for any alignment.

    Args:
        problem: the convolution.
        archs: architectures to compile for into the cache on disk; None means for the current device, and load there.

    Returns:
        A line for each kernel.
    """
    wanted = DepthwiseWanted(True, True, problem.bias_dtype is not None, problem.has_initial_state)
    keys: list[_Key] = [
        (problem, what, alignment, problem.has_final_state)
        for what in ("output", wanted)
        for alignment in _alignments(problem)
    ]
    return _launchers.warm(keys, archs)


def load(problem: DepthwiseProblem, wanted: DepthwiseWanted | None, device: int) -> int:
    """Compile and load on the current device what a call needs, for arrays of any alignment.

    Args:
        problem: the convolution; where it has a final state, that has a gradient.
        wanted: which gradients; None means the output.
        device: ordinal of the current device.

    Returns:
        The bytes of workspace that a call takes at most.
    """
    what: DepthwiseWanted | str = "output" if wanted is None else wanted
    has_final_gradient = wanted is not None and problem.has_final_state
    return max(
        _launchers[device, (problem, what, alignment, has_final_gradient)].plan.workspace_bytes
        for alignment in _alignments(problem)
    )


def _plan(key: _Key, limits: ArchLimits) -> DepthwisePlan:
    problem, what, alignment, has_final_gradient = key
    if isinstance(what, DepthwiseWanted):
        return make_depthwise_vjp_plan(
            problem, what, limits, alignment=alignment, has_final_gradient=has_final_gradient
        )
    if what == "update":
        return make_depthwise_update_plan(problem, limits)
    return make_depthwise_plan(problem, limits, alignment=alignment)


def _load(made: DepthwisePlan, kernels: Kernels, device: int) -> _Launcher:
    return _Launcher(made, tuple(kernels[step.spec] for step in made.steps))


_launchers = Launchers(_plan, _load)


def _alignments(problem: DepthwiseProblem) -> set[int]:
    """Return what `_alignment` may return."""
    return {row_alignment(problem), ITEM_BYTES[problem.dtype]}


def _alignment(problem: DepthwiseProblem, *arrays_of_rows: ArrayView, seq_idx: ArrayView | None) -> int:
    """Return the bytes at multiples of which rows lie: of contiguous arrays and workspace, or else of any."""
    best, item = row_alignment(problem), ITEM_BYTES[problem.dtype]
    bits = 0
    for array in arrays_of_rows:
        bits |= array.ptr
        for size, stride in zip(array.shape[:2], array.strides[:2], strict=True):
            if size > 1:
                bits |= stride * item
    if seq_idx is not None and problem.layout == "BHL":  # else read one by one
        bits |= seq_idx.ptr | seq_idx.strides[0] * _ID_BYTES
    return best if bits % best == 0 else item


def _rows(problem: DepthwiseProblem, array: ArrayView) -> _Rows:
    batch, second, third = array.strides
    return _Rows(array.ptr, (batch, second, third) if problem.layout == "BHL" else (batch, third, second))


def _states(array: ArrayView | None) -> _Rows:
    return _Rows() if array is None else _Rows(array.ptr, array.strides)  # type: ignore[arg-type]


def _contiguous(problem: DepthwiseProblem) -> tuple[int, int, int]:
    """Return batch, channel and time stride of a contiguous array of outputs."""
    batch = problem.channels * problem.out_len
    return (batch, problem.out_len, 1) if problem.layout == "BHL" else (batch, 1, problem.channels)


def _types(problem: DepthwiseProblem) -> tuple[int, int]:
    return _STORAGE_TYPES[problem.weight_dtype], _STORAGE_TYPES[problem.bias_dtype or "float32"]


def _launch(
    kernel: LoadedKernel,
    step: Step,
    problem: DepthwiseProblem,
    source: _Rows,
    target: _Rows,
    weight: ArrayView,
    bias: ArrayView | None,
    stream: int,
    *,
    dy: _Rows | None = None,
    seq_idx: ArrayView | None = None,
    state: _Rows | None = None,
    d_final: _Rows | None = None,
    d_state: _Rows | None = None,
    sums: int = 0,
) -> None:
    """Launch a kernel that takes `DepthwiseParams`; what is None is absent."""
    nothing = _Rows()
    rows = (source, dy or nothing, target, state or nothing, d_final or nothing, d_state or nothing)
    params = DepthwiseParams()
    bias_ptr, bias_stride = (0, 0) if bias is None else (bias.ptr, bias.strides[0])
    seq_ptr, seq_stride = (0, 0) if seq_idx is None else (seq_idx.ptr, seq_idx.strides[0])
    _pack(
        params,
        0,
        *(rows[0].ptr, rows[1].ptr, rows[2].ptr, weight.ptr, bias_ptr, seq_ptr),
        *(rows[3].ptr, rows[4].ptr, rows[5].ptr, sums),
        *(stride for each in rows for stride in each.strides),
        *weight.strides,
        bias_stride,
        seq_stride,
        problem.batch,
        problem.channels,
        *_types(problem),
        *step.numbers,
    )
    kernel.launch(step.grid, step.threads, params, stream)


def _launch_reduce(
    kernel: LoadedKernel, step: Step, problem: DepthwiseProblem, sums: int, gradients: DepthwiseGradients, stream: int
) -> None:
    params = DepthwiseReduceParams(
        sums,
        0 if gradients.weight is None else gradients.weight.ptr,
        0 if gradients.bias is None else gradients.bias.ptr,
        *step.numbers,
        problem.channels,
        problem.width,
        *_types(problem),
    )
    kernel.launch(step.grid, step.threads, params, stream)
