"""Runs the plans of gradients: workspace, launches in groups of channels. `launch` is its counterpart for outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import COMPLEX_BYTES, CUDA_TYPES, REDUCE_COLUMNS, REDUCE_THREADS
from fftconv_cupy.chunks import Chunks
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import FilterStep, device_table
from fftconv_cupy.launch_mma import launch_convert, mma_device_table
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.mma_vjp_plan import MmaVjpPlan, make_row_vjp_plan
from fftconv_cupy.params import BwdParams, FilterBwdParams, ReduceParams, Slot
from fftconv_cupy.plan import GRID_YZ, block_config
from fftconv_cupy.problem import ITEM_BYTES, Gradients, Problem, Wanted
from fftconv_cupy.vjp_calls import VjpCall, VjpKey, VjpRows, arrays_of_rows, begin, keys_of
from fftconv_cupy.vjp_plan import VjpPlan

_STORAGE_TYPES = {dtype: index for index, dtype in enumerate(CUDA_TYPES)}  # of kernels/fftconv_filter_bwd.cu


@dataclass(frozen=True, slots=True)
class Launcher:
    """A plan with its kernels loaded on a device; those that it does not launch are None."""

    plan: VjpPlan
    backward: LoadedKernel
    filter: LoadedKernel | None
    convert: LoadedKernel | None
    filter_backward: LoadedKernel | None
    reduce: LoadedKernel | None
    twiddles: int
    backward_twiddles: int


class Step(NamedTuple):
    """The launches for a group of channels, but for the addresses of the arrays.

    Attributes:
        first: channel of the group.
        channels: of the group.
        chunks: how its rows are dealt out.
        filter: the launch of the filter's transform, or None.
        offsets: from the addresses of the arrays of rows, and of states, to the first channel, in bytes.
        spectrum: from that of the filter's spectrum to where the fused kernel reads it.
        skip: from that of skip.
        constants: the arguments of the fused kernel that follow the addresses, in their order.
        blocks: of the fused kernel.
    """

    first: int
    channels: int
    chunks: Chunks
    filter: FilterStep | None
    offsets: tuple[int, ...]
    spectrum: int
    skip: int
    constants: tuple[float, ...]
    blocks: int


Call = VjpCall[Launcher, tuple[Step, ...]]
Rows = VjpRows[Launcher, tuple[Step, ...]]
_backward, _filter_backward = Slot(BwdParams), Slot(FilterBwdParams)


def check_vjp(problem: Problem, wanted: Wanted, device: int) -> None:
    """Raise what a call on this device would raise, but for failed compilations, before anything is allocated.

    Args:
        problem: the convolution.
        wanted: which gradients; all take the same transforms.
        device: ordinal of the device.

    Raises:
        UnsupportedDeviceError: the GPU is older than compute capability 7.5.
        UnsupportedProblemError: the transform does not fit one block of this GPU.
        MissingDependencyError: NVRTC is not installed.
    """
    block_config(problem, device_limits(device), can_pair=False)
    import_nvrtc()


def run_vjp(
    problem: Problem,
    wanted: Wanted,
    dy: ArrayView,
    u: ArrayView,
    filt: ArrayView | FilterSpectrum,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    skip: ArrayView | None,
    grads: Gradients,
    stream: int,
    workspace: ArrayView | None = None,
    rows: Rows | None = None,
) -> Rows:
    """Compute the wanted gradients on the GPU of `u`, asynchronously on `stream`.

    Args:
        problem: the convolution, with ``batch >= 1``.
        wanted: which gradients.
        dy: gradient of the output, of its shape.
        u: the input, (B, H, L) | (H, L) | (L,).
        filt: the filter, (H, K) | (K,), or its spectrum.
        in_gate: of the input's shape, or None.
        out_gate: of the output's shape, or None.
        skip: (H,), or None.
        grads: views of the arrays to fill, contiguous, of the shapes and dtypes of their arguments; None for the rest.
        stream: handle of a stream of that GPU.
        workspace: as many bytes as the plan says, or more; None allocates it.
        rows: what a call of the same signature has returned; None finds it out.

    Returns:
        What such calls have in common.

    Raises:
        UnsupportedProblemError: the transform does not fit one block of this GPU.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    given = arrays_of_rows(dy, u, in_gate, out_gate, grads)
    call = begin(_launchers, steps_of, problem, wanted, given, filt, skip, grads, stream, workspace, rows)
    for step in call.steps:
        if isinstance(filt, ArrayView) and step.filter is not None:
            _make_spectrum(call, step, filt)
        launch_backward(call, step)
        finish_sums(call, step)
    finish_shared_sum(call)
    return call.rows


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, what gradients need for arrays of any alignment, with a raw filter.

    Args:
        problem: the convolution.
        wanted: which gradients.
        archs: architectures to compile for into the cache on disk; None means for the current device, and load there.

    Returns:
        A line for each kernel, see `launchers.describe`.
    """
    return _launchers.warm(keys_of(problem, wanted), archs)


def _plan(key: VjpKey, limits: ArchLimits) -> VjpPlan:
    return make_row_vjp_plan(
        key.problem,
        key.wanted,
        limits,
        is_vector=key.is_vector,
        is_wide=key.is_wide,
        is_prepared=key.is_prepared,
    )


def load(made: VjpPlan, kernels: Kernels, device: int) -> Launcher:
    """Return the launcher of a plan whose kernels are loaded on a device."""
    if isinstance(made, MmaVjpPlan):
        table = mma_device_table(made.tensor, device)
    else:
        table = device_table(made.backward_config, False, device)
    return Launcher(
        plan=made,
        backward=kernels[made.backward],
        filter=kernels.get(made.filter),
        convert=None if made.convert is None else kernels.get(made.convert),
        filter_backward=kernels.get(made.filter_backward),
        reduce=kernels.get(made.reduce),
        twiddles=device_table(made.config, False, device),
        backward_twiddles=table,
    )


_launchers = Launchers(_plan, load)


def steps_of(
    launcher: Launcher, rows: Rows, windows: tuple[int, ...] = (), state_items: tuple[int, ...] = ()
) -> tuple[Step, ...]:
    """Return what is launched for rows, a step for each group of channels; the last may have fewer of them.

    `windows` are the arguments of a kernel that cuts rows, and `state_items` the bytes of elements of its states.
    """
    made, strides = launcher.plan, rows.strides
    problem, points = made.problem, made.config.points
    item, is_shared = ITEM_BYTES[problem.dtype], problem.shared_filter
    items = (*(item,) * (len(strides) // 2 - len(state_items)), *state_items)
    steps = []
    for first in range(0, problem.channels, made.channel_group):
        channels = min(made.channel_group, problem.channels - first)
        chunks = replace(made.chunks, groups=-(-channels // made.group_channels))
        constants = (
            *strides,
            0 if is_shared else made.spectrum_quads,
            chunks.count,
            *(chunks.group_steps, chunks.chunk_steps, chunks.group_chunks),
            *(problem.batch, channels, problem.seqlen, problem.out_len),
            *windows,
            *(made.log2_batch_slots, problem.in_gate, problem.out_gate, int(rows.skip_is_float)),
            1.0 / points,
            0,
        )
        kernel = launcher.filter if first == 0 or not is_shared else None
        own = first * points * COMPLEX_BYTES if made.is_prepared and not is_shared else 0
        steps.append(
            Step(
                first,
                channels,
                chunks,
                None if kernel is None else FilterStep.of(kernel, made, launcher.twiddles, first, channels),
                tuple(first * stride * size for stride, size in zip(strides[1::2], items, strict=True)),
                made.converted_offset + own,
                first * (4 if rows.skip_is_float else item),
                constants,
                min(chunks.blocks, chunks.count) * made.backward_config.cluster_blocks,
            )
        )
    return tuple(steps)


def _make_spectrum(call: Call, step: Step, k: ArrayView) -> None:
    """Launch the filter's transform for a group of channels."""
    launcher = call.launcher
    step.filter.launch(k, call.spectrum, call.stream)  # type: ignore[union-attr]
    if launcher.convert is not None:
        target = call.spectrum + step.spectrum
        launch_convert(launcher.convert, launcher.plan, call.spectrum, target, step.channels, call.stream)


def launch_backward(call: Call, step: Step, slot: Slot = _backward) -> None:
    """Launch the fused kernel on a group of channels, its arguments in `slot`."""
    launcher, made, workspace = call.launcher, call.launcher.plan, call.workspace
    pointers = call.pointers
    if step.first:
        pointers = [pointer and pointer + offset for pointer, offset in zip(pointers, step.offsets, strict=True)]
    slot.fill(
        *pointers,
        call.spectrum + step.spectrum,
        launcher.backward_twiddles,
        call.skip and call.skip + step.skip,
        workspace + made.workspace.sums,
        workspace + made.workspace.stash,
        *step.constants,
    )
    launcher.backward.launch((step.blocks, 1, 1), made.backward_threads, slot.params, call.stream, slot.address)


def _launch_reduce(
    call: Call,
    sums: int,
    out: int,
    group_chunks: int,
    group_channels: int,
    channels: int,
    *,
    is_added: bool = False,
) -> None:
    """Add up the sums at offset `sums` of the workspace into rows at offset `out`."""
    quads = call.launcher.plan.config.points // 2
    params = ReduceParams(
        call.workspace + sums, call.workspace + out, group_chunks, group_channels, channels, quads, int(is_added)
    )
    grid = (-(-quads // REDUCE_COLUMNS), min(channels, GRID_YZ), -(-channels // GRID_YZ))
    call.launcher.reduce.launch(grid, REDUCE_THREADS, params, call.stream)  # type: ignore[union-attr]


def launch_filter_backward(
    call: Call, sums: int, group_chunks: int, group_channels: int, dk: int, d_skip: int, channels: int
) -> None:
    """Turn the sums at offset `sums` of the workspace into gradients of filters and skips, for `channels` rows."""
    launcher, slot = call.launcher, _filter_backward
    made = launcher.plan
    problem, config, lags = made.problem, made.config, made.lags
    slot.fill(
        call.workspace + sums,
        dk,
        d_skip,
        launcher.twiddles,
        group_chunks,
        group_channels,
        channels,
        problem.filter_len,
        _STORAGE_TYPES["float32" if call.rows.skip_is_float else problem.dtype],
        *(lags.shift, lags.negative_shift, lags.period, lags.positive, lags.negative),
    )
    grid = (-(-channels // config.rows), 1, 1)
    launcher.filter_backward.launch(grid, config.threads, slot.params, call.stream, slot.address)  # type: ignore[union-attr]


def finish_sums(call: Call, step: Step, launch_back: Callable[..., None] = launch_filter_backward) -> None:
    """Turn what the blocks have summed of a group of channels into gradients of filters and skips.

    `launch_back` transforms sums back, in their place or not: its arguments are those of `launch_filter_backward`.
    """
    launcher, made, channels = call.launcher, call.launcher.plan, step.channels
    problem, wanted = made.problem, made.wanted
    if not made.variant.has_sum:
        return
    sums, group_chunks, group_channels = made.workspace.sums, step.chunks.group_chunks, made.group_channels
    if launcher.reduce is not None:
        _launch_reduce(call, sums, made.workspace.reduced, group_chunks, group_channels, channels)
        sums, group_chunks, group_channels = made.workspace.reduced, 1, 1
    d_skip = call.d_skip and call.d_skip + step.skip
    if not problem.shared_filter:
        dk = call.dk and call.dk + step.first * problem.filter_len * ITEM_BYTES[problem.filter_dtype]
        launch_back(call, sums, group_chunks, group_channels, dk, d_skip, channels)
        return
    if wanted.k:
        # The sums of the channels, as if they were chunks of one.
        _launch_reduce(call, sums, made.workspace.total, channels, 1, 1, is_added=step.first > 0)
    if d_skip:
        launch_back(call, sums, group_chunks, group_channels, 0, d_skip, channels)


def finish_shared_sum(call: Call, launch_back: Callable[..., None] = launch_filter_backward) -> None:
    """Turn the sum over all channels into the gradient of a filter that they share, where it is wanted."""
    made = call.launcher.plan
    if made.problem.shared_filter and made.wanted.k:
        launch_back(call, made.workspace.total, 1, 1, call.dk, 0, 1)
