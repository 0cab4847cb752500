"""Runs the plans of gradients: workspace, launches in groups of channels. `launch` is its counterpart for outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fftconv_cupy import arrays
from fftconv_cupy.archs import ArchLimits
from fftconv_cupy.arrays import ArrayView
from fftconv_cupy.blocks import CUDA_TYPES, REDUCE_COLUMNS, REDUCE_THREADS
from fftconv_cupy.chunks import Chunks
from fftconv_cupy.compile import LoadedKernel
from fftconv_cupy.dependencies import import_nvrtc
from fftconv_cupy.devices import device_limits
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.launch import device_table, launch_filter, row_strides
from fftconv_cupy.launch_mma import launch_convert, mma_device_table
from fftconv_cupy.launchers import Kernels, Launchers
from fftconv_cupy.mma_vjp_plan import MmaVjpPlan, make_row_vjp_plan
from fftconv_cupy.params import BwdParams, FilterBwdParams, ReduceParams, Slot, packer
from fftconv_cupy.plan import GRID_YZ, block_config
from fftconv_cupy.problem import ITEM_BYTES, Gradients, Problem, Wanted
from fftconv_cupy.vjp_plan import VjpPlan

_STORAGE_TYPES = {dtype: index for index, dtype in enumerate(CUDA_TYPES)}  # of kernels/fftconv_filter_bwd.cu


@dataclass(frozen=True, slots=True)
class Launcher:
    """A plan with its kernels loaded on a device; those that it does not launch are None.

    Attributes:
        groups: first channel and number of channels of each group, and its chunks.
    """

    plan: VjpPlan
    backward: LoadedKernel
    filter: LoadedKernel | None
    convert: LoadedKernel | None
    filter_backward: LoadedKernel | None
    reduce: LoadedKernel | None
    twiddles: int
    backward_twiddles: int
    groups: tuple[tuple[int, int, Chunks], ...]


_backward, _filter_backward = Slot(BwdParams), Slot(FilterBwdParams)
_pack_backward, _pack_filter_backward = packer(BwdParams).pack_into, packer(FilterBwdParams).pack_into


@dataclass(slots=True)
class VjpCall:
    """The addresses of one call: of u, in_gate, out_gate, dy and the gradients of the first three, and the rest."""

    pointers: list[int]
    strides: list[int]
    spectrum: int
    skip: int
    skip_is_float: bool
    dk: int
    d_skip: int
    workspace: int
    stream: int

    @classmethod
    def of(
        cls,
        pointers: list[int],
        strides: list[int],
        spectrum: int,
        skip: ArrayView | None,
        grads: Gradients,
        workspace: int,
        stream: int,
    ) -> VjpCall:
        """Return a call with the addresses of `addresses_of`, of a spectrum, a skip and a workspace."""
        return cls(
            pointers,
            strides,
            spectrum,
            0 if skip is None else skip.ptr,
            skip is None or skip.dtype == "float32",
            0 if grads.k is None else grads.k.ptr,
            0 if grads.skip is None else grads.skip.ptr,
            workspace,
            stream,
        )


def addresses_of(
    problem: Problem,
    dy: ArrayView,
    u: ArrayView,
    in_gate: ArrayView | None,
    out_gate: ArrayView | None,
    grads: Gradients,
) -> tuple[list[int], list[int], int]:
    """Return addresses and strides of the arrays of rows as the kernels take them, and their bits: all or'ed."""
    item = ITEM_BYTES[problem.dtype]
    bits = problem.seqlen | problem.out_len
    pointers: list[int] = []
    strides: list[int] = []
    # A gate that is absent has an address that can be read.
    for array in (u, in_gate or u, out_gate or dy, dy, grads.u, grads.in_gate, grads.out_gate):
        if array is None:
            pointers.append(0)
            strides += (0, 0)
        else:
            batch_stride, channel_stride = row_strides(array)
            pointers.append(array.ptr)
            strides += (batch_stride, channel_stride)
            bits |= array.ptr // item | batch_stride | channel_stride
    return pointers, strides, bits


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
) -> None:
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

    Raises:
        UnsupportedProblemError: the transform does not fit one block of this GPU.
        CompileError, MissingDependencyError: a kernel had to be compiled and could not be.
    """
    pointers, strides, bits = addresses_of(problem, dy, u, in_gate, out_gate, grads)
    launcher = _launchers[u.device, (problem, wanted, bits & 1 == 0, bits & 7 == 0, isinstance(filt, FilterSpectrum))]
    made = launcher.plan
    if workspace is None and made.workspace_bytes:
        _, workspace = arrays.empty(u, (made.workspace_bytes // 4,), "float32", stream)
    memory = 0 if workspace is None else workspace.ptr
    made_at = memory + made.workspace.spectrum + made.converted_offset
    spectrum = filt.ptr if isinstance(filt, FilterSpectrum) else made_at
    call = VjpCall.of(pointers, strides, spectrum, skip, grads, memory, stream)
    for first, channels, chunks in launcher.groups:
        if isinstance(filt, ArrayView) and not (first and problem.shared_filter):
            _make_spectrum(launcher, call, filt, first, channels)
        launch_backward(launcher, call, first, channels, chunks)
        finish_sums(launcher, call, first, channels, chunks)
    if problem.shared_filter and wanted.k:
        launch_filter_backward(launcher, call, made.workspace.total, 1, 1, call.dk, 0, 1)


def warm_vjp(problem: Problem, wanted: Wanted, archs: Sequence[str] | None = None) -> list[str]:
    """Compile, and where `archs` is None also load, what gradients need for arrays of any alignment, with a raw filter.

    Args:
        problem: the convolution.
        wanted: which gradients.
        archs: architectures to compile for into the cache on disk; None means for the current device, and load there.

    Returns:
        A line for each kernel, see `launchers.describe`.
    """
    alignments = ((True, True), (True, False), (False, False))
    return _launchers.warm([(problem, wanted, *alignment, False) for alignment in alignments], archs)


def _plan(key: tuple[Problem, Wanted, bool, bool, bool], limits: ArchLimits) -> VjpPlan:
    problem, wanted, is_vector, is_wide, is_prepared = key
    return make_row_vjp_plan(problem, wanted, limits, is_vector=is_vector, is_wide=is_wide, is_prepared=is_prepared)


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
        groups=groups_of(made),
    )


_launchers = Launchers(_plan, load)


def groups_of(made: VjpPlan) -> tuple[tuple[int, int, Chunks], ...]:
    """Return first channel, number of channels and chunks of each group; the last may have fewer channels."""
    groups = []
    for first in range(0, made.problem.channels, made.channel_group):
        channels = min(made.channel_group, made.problem.channels - first)
        groups.append((first, channels, replace(made.chunks, groups=-(-channels // made.group_channels))))
    return tuple(groups)


def _make_spectrum(launcher: Launcher, call: VjpCall, k: ArrayView, first: int, channels: int) -> None:
    """Launch the filter's transform for some channels, where the call needs it."""
    if launcher.filter is None:
        return
    made = launcher.plan
    scratch = call.spectrum - made.converted_offset
    launch_filter(launcher.filter, made, k, launcher.twiddles, scratch, first, channels, call.stream)
    if launcher.convert is not None:
        launch_convert(launcher.convert, made, scratch, call.spectrum, channels, call.stream)


def launch_backward(launcher: Launcher, call: VjpCall, first: int, channels: int, chunks: Chunks) -> None:
    """Launch the fused kernel on `channels` channels from `first` on."""
    made = launcher.plan
    problem, points = made.problem, made.config.points
    item = ITEM_BYTES[problem.dtype]
    pointers = [
        pointer and pointer + first * stride * item
        for pointer, stride in zip(call.pointers, call.strides[1::2], strict=True)
    ]
    is_shared = problem.shared_filter
    spectrum_offset = first * points * 8 if made.is_prepared and not is_shared else 0
    _pack_backward(
        _backward.params,
        0,
        *pointers,
        call.spectrum + spectrum_offset,
        launcher.backward_twiddles,
        call.skip and call.skip + first * (4 if call.skip_is_float else item),
        call.workspace + made.workspace.sums,
        call.workspace + made.workspace.stash,
        *call.strides,
        0 if is_shared else made.spectrum_quads,
        chunks.count,
        *(chunks.group_steps, chunks.chunk_steps, chunks.group_chunks),
        problem.batch,
        channels,
        problem.seqlen,
        problem.out_len,
        made.log2_batch_slots,
        problem.in_gate,
        problem.out_gate,
        int(call.skip_is_float),
        1.0 / points,
        0,
    )
    blocks = min(chunks.blocks, chunks.count) * made.backward_config.cluster_blocks
    launcher.backward.launch((blocks, 1, 1), made.backward_threads, _backward.params, call.stream, _backward.address)


def _launch_reduce(
    launcher: Launcher,
    call: VjpCall,
    sums: int,
    out: int,
    group_chunks: int,
    group_channels: int,
    channels: int,
    *,
    is_added: bool = False,
) -> None:
    """Add up the sums at offset `sums` of the workspace into rows at offset `out`."""
    quads = launcher.plan.config.points // 2
    params = ReduceParams(
        call.workspace + sums, call.workspace + out, group_chunks, group_channels, channels, quads, int(is_added)
    )
    grid = (-(-quads // REDUCE_COLUMNS), min(channels, GRID_YZ), -(-channels // GRID_YZ))
    launcher.reduce.launch(grid, REDUCE_THREADS, params, call.stream)  # type: ignore[union-attr]


def launch_filter_backward(
    launcher: Launcher,
    call: VjpCall,
    sums: int,
    group_chunks: int,
    group_channels: int,
    dk: int,
    d_skip: int,
    channels: int,
) -> None:
    """Turn the sums at offset `sums` of the workspace into gradients of filters and skips, for `channels` rows."""
    made = launcher.plan
    problem, config = made.problem, made.config
    lags = made.lags
    _pack_filter_backward(
        _filter_backward.params,
        0,
        call.workspace + sums,
        dk,
        d_skip,
        launcher.twiddles,
        group_chunks,
        group_channels,
        channels,
        problem.filter_len,
        _STORAGE_TYPES["float32" if call.skip_is_float else problem.dtype],
        *(lags.shift, lags.negative_shift, lags.period, lags.positive, lags.negative),
    )
    grid, slot = (-(-channels // config.rows), 1, 1), _filter_backward
    launcher.filter_backward.launch(grid, config.threads, slot.params, call.stream, slot.address)  # type: ignore[union-attr]


def finish_sums(
    launcher: Launcher,
    call: VjpCall,
    first: int,
    channels: int,
    chunks: Chunks,
    launch_back: Callable[..., None] = launch_filter_backward,
) -> None:
    """Turn what the blocks have summed of `channels` channels from `first` on into gradients of filters and skips.

    `launch_back` transforms sums back, in their place or not: its arguments are those of `launch_filter_backward`.
    """
    made = launcher.plan
    problem, wanted = made.problem, made.wanted
    if not made.variant.has_sum:
        return
    sums, group_chunks, group_channels = made.workspace.sums, chunks.group_chunks, made.group_channels
    if launcher.reduce is not None:
        _launch_reduce(launcher, call, sums, made.workspace.reduced, group_chunks, group_channels, channels)
        sums, group_chunks, group_channels = made.workspace.reduced, 1, 1
    skip_item = 4 if call.skip_is_float else ITEM_BYTES[problem.dtype]
    d_skip = call.d_skip and call.d_skip + first * skip_item
    if not problem.shared_filter:
        dk = call.dk and call.dk + first * problem.filter_len * ITEM_BYTES[problem.filter_dtype]
        launch_back(launcher, call, sums, group_chunks, group_channels, dk, d_skip, channels)
        return
    if wanted.k:
        # The sums of the channels, as if they were chunks of one.
        _launch_reduce(launcher, call, sums, made.workspace.total, channels, 1, 1, is_added=first > 0)
    if d_skip:
        launch_back(launcher, call, sums, group_chunks, group_channels, 0, d_skip, channels)
