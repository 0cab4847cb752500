"""What can be known and done ahead of a call: how it would be computed, and its kernels compiled and loaded."""

from __future__ import annotations

from collections.abc import Sequence

from fftconv_cupy import arrays, execute
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.errors import MissingDependencyError, UnsupportedDeviceError, message
from fftconv_cupy.plans import AnyPlan, plan_call
from fftconv_cupy.problem import Problem, Wanted, check_int, make_problem, make_wanted
from fftconv_cupy.state_checks import check_has_states


def plan(
    batch: int,
    channels: int,
    seqlen: int,
    filter_len: int,
    *,
    mode: str = "causal",
    dtype: str = "float16",
    filter_dtype: str = "float32",
    fft_size: int | None = None,
    in_gate: bool = False,
    out_gate: bool = False,
    skip: bool = False,
    shared_filter: bool = False,
    initial_state: bool = False,
    prepared: bool = False,
    precision: str | None = None,
    intermediate: str | None = None,
    wrt: Sequence[str] | str | None = None,
    arch: str | None = None,
) -> AnyPlan:
    """Return how a GPU would compute a call with contiguous arrays; ``print`` it to read it.

    It tells the sizes, the passes, threads, shared memory, grid, launches and workspace, and why they are so.

    Args:
        batch: B >= 1.
        channels: H.
        seqlen: L.
        filter_len: K.
        mode: as for `fftconv`.
        dtype: of the input: "float16", "bfloat16" or "float32".
        filter_dtype: of the filter, likewise.
        fft_size: as for `fftconv`.
        in_gate: with an input gate.
        out_gate: with an output gate.
        skip: with a skip term.
        shared_filter: one filter row for all channels.
        initial_state: with an initial state.
        prepared: the filter comes from `prepare_filter`.
        precision: as for `fftconv`, and with `wrt` as for `fftconv_vjp`.
        intermediate: as for `fftconv`.
        wrt: plan the call of `fftconv_vjp` that computes the gradients of these arguments, as a `VjpPlan`.
        arch: an architecture such as "sm_90", which needs no GPU; None means the current GPU.

    Raises:
        InvalidTypeError, InvalidArgumentError: a number, mode or dtype that is not allowed.
        UnsupportedProblemError: the transform is larger than the kernels go.
        UnsupportedDeviceError: `arch` is not known, or it is None and there is no GPU.

    Example:
        >>> plan(8, 768, 1000, 1000, arch="sm_90").config.points
        1024
    """
    problem = make_problem(
        mode,
        batch=check_int(batch, "batch", minimum=1),
        channels=channels,
        seqlen=seqlen,
        filter_len=filter_len,
        dtype=dtype,
        filter_dtype=filter_dtype,
        fft_size=fft_size,
        shared_filter=shared_filter,
        in_gate=in_gate,
        out_gate=out_gate,
        skip=skip,
        initial_state=initial_state,
        precision=precision,
        intermediate=intermediate,
    )
    limits = _current_limits("arch") if arch is None else arch_limits(arch)
    wanted = None if wrt is None else _wanted(problem, wrt, is_prepared=prepared)
    return plan_call(problem, limits, wanted, is_prepared=prepared)


def warmup(
    batch: int,
    channels: int,
    seqlen: int,
    filter_len: int,
    *,
    mode: str = "causal",
    dtype: str = "float16",
    filter_dtype: str = "float32",
    fft_size: int | None = None,
    in_gate: bool = False,
    out_gate: bool = False,
    skip: bool = False,
    shared_filter: bool = False,
    initial_state: bool = False,
    return_final_state: bool = False,
    precision: str | None = None,
    intermediate: str | None = None,
    wrt: Sequence[str] | str | None = None,
    archs: Sequence[str] | None = None,
) -> list[str]:
    """Compile the kernels of a call ahead of it, for arrays of any alignment.

    After it, a call of this shape and these dtypes compiles and loads nothing; only an input without unit stride along
    the last axis makes CuPy compile a kernel of its own that copies it.

    Loading is not possible while a CUDA graph is captured, so warm up before. A call with torch tensors can then be
    captured as it is; one with CuPy arrays needs a prepared filter, rows that fit a block, and no copied input, since
    CuPy would give the workspace of the captured call to others (it raises).

    Args:
        batch: B >= 1.
        channels: H.
        seqlen: L.
        filter_len: K.
        mode: as for `fftconv`.
        dtype: of the input: "float16", "bfloat16" or "float32".
        filter_dtype: of the filter, likewise. Taps of another dtype than the default are transformed by another kernel:
            name theirs.
        fft_size: as for `fftconv`.
        in_gate: with an input gate.
        out_gate: with an output gate.
        skip: with a skip term.
        shared_filter: one filter row for all channels.
        initial_state: with an initial state.
        return_final_state: with a final state, which takes a kernel of its own.
        precision: as for `fftconv`.
        intermediate: as for `fftconv`.
        wrt: also what `fftconv_vjp` needs for the gradients of these arguments; each set of them has kernels of its
            own.
        archs: architectures such as "sm_90" to compile for into the cache on disk, which needs no GPU; None means to
            compile for the current GPU and load there.

    Returns:
        A line for each kernel.

    Raises:
        InvalidTypeError, InvalidArgumentError: a number, mode or dtype that is not allowed.
        UnsupportedProblemError: the transform is larger than the kernels go.
        UnsupportedDeviceError: an architecture is not known, or `archs` is None and there is no GPU.
        MissingDependencyError: CuPy or NVRTC is not installed.
        CompileError: a kernel could not be compiled.
    """
    problem = make_problem(
        mode,
        batch=check_int(batch, "batch", minimum=1),
        channels=channels,
        seqlen=seqlen,
        filter_len=filter_len,
        dtype=dtype,
        filter_dtype=filter_dtype,
        fft_size=fft_size,
        shared_filter=shared_filter,
        in_gate=in_gate,
        out_gate=out_gate,
        skip=skip,
        initial_state=initial_state,
        precision=precision,
        intermediate=intermediate,
    )
    if return_final_state:
        check_has_states("return_final_state", problem.mode, problem.filter_len)
    if archs is None:
        _current_limits("archs")
    names = None if archs is None else [archs] if isinstance(archs, str) else list(archs)
    gpu = execute.gpu_launcher()
    lines: list[str] = gpu.warm(problem, names)
    if return_final_state:
        lines += gpu.warm_state(problem, names)
    if wrt is not None:
        lines += gpu.warm_vjp(problem, _wanted(problem, wrt, is_prepared=False), names)
    return list(dict.fromkeys(lines))


def _wanted(problem: Problem, wrt: Sequence[str] | str, *, is_prepared: bool) -> Wanted:
    """Check the names of gradients against the arguments of a problem."""
    given = {"u": True, "k": not is_prepared, "in_gate": problem.in_gate, "out_gate": problem.out_gate}
    names = [name for name, is_given in (given | {"skip": problem.skip}).items() if is_given]
    return make_wanted((wrt,) if isinstance(wrt, str) else tuple(wrt), names)[0]


def _current_limits(name: str) -> ArchLimits:
    """Return the limits of the current GPU; `name` is the argument that would do without one."""
    try:
        device = arrays.current_device()
    except (MissingDependencyError, RuntimeError) as error:
        example = "'sm_90'" if name == "arch" else "['sm_90']"
        raise UnsupportedDeviceError(
            message(
                f"{name}=None, the current GPU",
                got=f"no usable GPU ({str(error).splitlines()[0]})",
                allowed=f"a GPU with CuPy, or {name}={example} and the like",
                do=f"Pass {name}={example}.",
            )
        ) from error
    limits: ArchLimits = execute.gpu_launcher().device_limits(device)
    return limits
