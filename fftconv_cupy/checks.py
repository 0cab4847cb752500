"""From the views of a call's arguments to its problem: every rule about frameworks, devices, dtypes and shapes.

Nearly all of it depends on shapes, strides, dtypes and devices alone, so it runs once for calls that agree in these;
the memory of an output is looked at in every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fftconv_cupy.arrays import byte_span
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError, message
from fftconv_cupy.filter_checks import (
    check_prepared,
    check_prepared_rows,
    check_prepared_size,
    filter_precision,
    filter_shape,
    refuse_filter,
)
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.out_checks import check_out_layout
from fftconv_cupy.problem import (
    CPU_DTYPES,
    DTYPES,
    Problem,
    StateGradients,
    Wanted,
    check_mode,
    check_precision,
    make_problem,
    make_wanted,
)
from fftconv_cupy.readers import ArrayView, device_name
from fftconv_cupy.state_checks import check_has_states, check_states


@dataclass(slots=True)
class Arguments:
    """The views of one call; None where an argument was left out. `returns_state`: the final state is asked for."""

    u: ArrayView
    k: ArrayView | FilterSpectrum
    in_gate: ArrayView | None = None
    out_gate: ArrayView | None = None
    skip: ArrayView | None = None
    out: ArrayView | None = None
    initial_state: ArrayView | None = None
    returns_state: bool = field(default=False, init=False)

    def signature(self, mode: object, fft_size: object) -> tuple[object, ...]:
        """Return everything that the checks of `resolve` look at, as a key."""
        u, k = self.u, self.k
        return (
            mode,
            fft_size,
            type(fft_size),  # 256.0 is equal to 256, and no FFT size
            _signature(u),
            k.signature if isinstance(k, FilterSpectrum) else _signature(k),
            None if self.in_gate is None else _signature(self.in_gate),
            None if self.out_gate is None else _signature(self.out_gate),
            None if self.skip is None else _signature(self.skip),
            None if self.out is None else _signature(self.out),
            None if self.initial_state is None else _signature(self.initial_state),
            self.returns_state,
        )

    def inputs(self) -> Iterator[tuple[str, ArrayView]]:
        """Yield name and view of every array that is read, `u` first."""
        for name in ("u", "k", "in_gate", "out_gate", "skip", "initial_state"):
            value = getattr(self, name)
            if isinstance(value, ArrayView):
                yield name, value

    def named(self) -> list[tuple[str, ArrayView]]:
        """Return name and view of the inputs, `u` first, and of the output where it was given."""
        return [*self.inputs(), *([("out", self.out)] if self.out is not None else [])]


@dataclass(slots=True, kw_only=True)
class VjpArguments(Arguments):
    """The views of one call of `fftconv_vjp`, and the names of the gradients that it asks for."""

    dy: ArrayView
    d_final_state: ArrayView | None = None
    wrt: tuple[object, ...] | None = None

    def signature(self, mode: object, fft_size: object) -> tuple[object, ...]:
        """Return everything that the checks of `resolve` look at, as a key, which is none of an `Arguments`."""
        d_final_state = None if self.d_final_state is None else _signature(self.d_final_state)
        return (*Arguments.signature(self, mode, fft_size), _signature(self.dy), d_final_state, self.wrt)

    def inputs(self) -> Iterator[tuple[str, ArrayView]]:
        """Yield name and view of every array that is read, `u` first and `dy` last."""
        yield from Arguments.inputs(self)
        if self.d_final_state is not None:
            yield "d_final_state", self.d_final_state
        yield "dy", self.dy


@dataclass(slots=True)
class Call:
    """What calls with the same signature have in common.

    Attributes:
        problem: the problem.
        out_shape: of the output, with as many axes as u.
        copied: names of the inputs whose last axis does not have unit stride: a GPU needs a copy of each.
        spans: for each input its name, and the bytes from its address to its first byte and past its last one.
        is_borrowed: an array's memory is borrowed (see `ArrayView`).
        is_capturable: a CUDA graph may hold the call: it takes no memory that CuPy would give to others after it.
        wanted: the gradients that `fftconv_vjp` is asked for; none of `fftconv`.
        wants_state: whether that of the initial state is among them.
        state_shape: of a state, with as many axes as u.
        is_checked: the GPU is known to be able to compute it; set by the first call.
        rows: where the rows of the arrays lie (see `launch.Rows`, `vjp_calls.VjpRows`); set by the first call.
        run: what computes it on the GPU; set by the first call.
    """

    problem: Problem
    out_shape: tuple[int, ...]
    copied: tuple[str, ...]
    spans: tuple[tuple[str, int, int], ...]
    is_borrowed: bool
    is_capturable: bool
    wanted: Wanted
    wants_state: bool
    state_shape: tuple[int, ...]
    is_checked: bool = False
    rows: Any = None
    run: Any = None


def resolve(
    arguments: Arguments, mode: object, fft_size: object, precision: object = None, intermediate: object = None
) -> Call:
    """Check a call and return what it computes.

    Raises:
        InvalidTypeError: a dtype, framework or device that does not go with the others.
        InvalidArgumentError: a shape, length, stride, mode, FFT size or name of a gradient that is not allowed, or a
            prepared filter that was made for something else.
    """
    u, k = arguments.u, arguments.k
    mode, precision = check_mode(mode), check_precision(precision)
    _check_places(arguments)
    _check_dtypes(arguments)
    batch, channels, seqlen = _rows(u)
    filter_len, is_shared = filter_shape(k, u, channels)
    if isinstance(k, FilterSpectrum):
        check_prepared(k, mode, seqlen)
        # Gradients from a spectrum take one of the highest precision, whatever is asked for.
        precision = filter_precision(k, "highest" if isinstance(arguments, VjpArguments) else precision, u.dtype)
    has_state = check_states(arguments, mode, filter_len)
    problem = make_problem(
        mode,
        batch=batch,
        channels=channels,
        seqlen=seqlen,
        filter_len=filter_len,
        dtype=u.dtype,
        filter_dtype=k.dtype,
        fft_size=fft_size,  # type: ignore[arg-type]  # make_problem checks it
        shared_filter=is_shared,
        in_gate=arguments.in_gate is not None,
        out_gate=arguments.out_gate is not None,
        skip=arguments.skip is not None,
        initial_state=has_state,
        precision=precision,
        intermediate=intermediate,
        dtypes=CPU_DTYPES,
    )
    if isinstance(k, FilterSpectrum):
        check_prepared_size(k, problem)
    out_shape = (*u.shape[:-1], problem.out_len)
    state_shape = (*u.shape[:-1], filter_len - 1)
    shapes = {"in_gate": u.shape, "out_gate": out_shape, "skip": (channels,), "out": out_shape, "dy": out_shape}
    shapes |= {"initial_state": state_shape, "d_final_state": state_shape}
    for name, array in arguments.named():
        if name in shapes and array.shape != shapes[name]:
            _refuse_shape(name, array, tuple(shapes[name]), u)
    if arguments.out is not None:
        check_out_layout(arguments.out)
    wanted, wants_state = Wanted(), False
    if isinstance(arguments, VjpArguments):
        if isinstance(k, FilterSpectrum):
            check_prepared_rows(k)
        given = [name for name, _ in arguments.inputs() if name in StateGradients._fields]
        wanted, wants_state = make_wanted(arguments.wrt, given)
    copied = tuple(name for name, array in arguments.inputs() if array.shape[-1] > 1 and array.strides[-1] != 1)
    is_borrowed = any(array.is_borrowed for _, array in arguments.named())
    # What is summed over rows goes through workspace, as does a filter that was not prepared.
    needs_workspace = isinstance(k, ArrayView) or k.strategy == "long" or wanted.k or wanted.skip
    takes_memory = bool(copied) or is_borrowed or needs_workspace
    return Call(
        problem,
        out_shape,
        copied,
        spans=tuple((name, *byte_span(array)) for name, array in arguments.inputs()),
        is_borrowed=is_borrowed,
        # In a capture torch allocates from a pool of the graph's own.
        is_capturable=u.framework == "torch" or not takes_memory,
        wanted=wanted,
        wants_state=wants_state,
        state_shape=state_shape,
    )


def filter_problem(
    k: ArrayView,
    seqlen: object,
    mode: object,
    fft_size: object,
    *,
    initial_state: bool = False,
    precision: object = None,
) -> Problem:
    """Check the arguments of `prepare_filter` and return a problem with batch 1 that uses the filter.

    Raises:
        InvalidTypeError, InvalidArgumentError: as for `resolve`.
    """
    if k.device >= 0 and k.dtype == "float64":
        _refuse_float64("k", k.device)
    if len(k.shape) not in (1, 2) or 0 in k.shape:
        refuse_filter(k, "(H, K), or (K,) for all channels, none of them 0")
    is_shared = len(k.shape) == 1
    mode = check_mode(mode)
    if initial_state:
        check_has_states("initial_state", mode, k.shape[-1])
    precision = check_precision(precision) or "highest"
    return make_problem(
        mode,
        batch=1,
        channels=1 if is_shared else k.shape[0],
        seqlen=seqlen,  # type: ignore[arg-type]  # make_problem checks both
        filter_len=k.shape[-1],
        dtype=k.dtype if precision == "highest" else "float16",  # only rows of 16 bits have less
        in_gate=precision != "highest",  # what is faster with any extras is so without
        filter_dtype=k.dtype,
        fft_size=fft_size,  # type: ignore[arg-type]
        shared_filter=is_shared,
        initial_state=initial_state,
        precision=precision,
        dtypes=CPU_DTYPES,
    )


def _signature(array: ArrayView) -> tuple[object, ...]:
    return (array.framework, array.device, array.dtype, array.shape, array.strides, array.is_borrowed)


def _check_places(arguments: Arguments) -> None:
    """All arrays come from the framework of u and lie on its device; a prepared filter only has to lie there."""
    u, k = arguments.u, arguments.k
    for name, array in arguments.named()[1:]:
        if array.framework != u.framework:
            raise InvalidTypeError(
                message(
                    f"{name}'s framework",
                    got=f"{array.framework} (on {device_name(array.device)})",
                    allowed=f"{u.framework} (on {device_name(u.device)}), as u",
                    do=f"Convert {name} or u, so that all arrays come from one framework.",
                )
            )
        if array.device != u.device:
            _refuse_device(name, array.device, u.device)
    if isinstance(k, FilterSpectrum) and k.device != u.device:
        _refuse_device("k (prepared filter)", k.device, u.device)
    if arguments.out is not None and u.framework == "jax":
        raise InvalidTypeError(
            message(
                "out",
                got="a JAX array",
                allowed="None for JAX, whose arrays cannot be written to",
                do="Leave out away and use the returned array.",
            )
        )


def _check_dtypes(arguments: Arguments) -> None:
    u = arguments.u
    if u.device >= 0:
        for name, array in arguments.inputs():
            if array.dtype == "float64":
                _refuse_float64(name, u.device)
    for name, array in arguments.named()[1:]:
        allowed = (u.dtype, "float32") if name == "skip" else (u.dtype,)
        if name not in ("k", "initial_state", "d_final_state") and array.dtype not in allowed:
            also = " or float32" if name == "skip" and u.dtype != "float32" else ""
            raise InvalidTypeError(
                message(
                    f"{name}.dtype",
                    got=array.dtype,
                    allowed=f"{u.dtype}, as u{also}",
                    do=f"Convert {name} to {u.dtype}.",
                )
            )


def _rows(u: ArrayView) -> tuple[int, int, int]:
    """Return (B, H, L) of u."""
    shape = u.shape
    if not 1 <= len(shape) <= 3:
        raise InvalidArgumentError(
            message(
                "u.shape",
                got=f"{tuple(shape)}, {len(shape)} axes",
                allowed="(B, H, L), (H, L) or (L,)",
                do="Reshape u.",
            )
        )
    batch, channels, seqlen = (*(1,) * (3 - len(shape)), *shape)
    if not (channels and seqlen):
        raise InvalidArgumentError(
            message(
                "u.shape",
                got=f"{tuple(shape)}",
                allowed="H >= 1 and L >= 1 (only B may be 0)",
                do="Pass rows with at least one point, of at least one channel.",
            )
        )
    return batch, channels, seqlen


def _refuse_device(name: str, device: int, wanted: int) -> NoReturn:
    raise InvalidTypeError(
        message(
            f"{name}'s device",
            got=device_name(device),
            allowed=f"{device_name(wanted)}, as u",
            do=f"Move {name} to the device of u, or u to that of {name}.",
        )
    )


def _refuse_float64(name: str, device: int) -> NoReturn:
    raise InvalidTypeError(
        message(
            f"{name}.dtype",
            got=f"float64 on {device_name(device)}",
            allowed=f"{', '.join(DTYPES)} there; float64 on the CPU only",
            do=f"Convert {name} to float32.",
        )
    )


def _refuse_shape(name: str, array: ArrayView, wanted: tuple[int, ...], u: ArrayView) -> NoReturn:
    raise InvalidArgumentError(
        message(
            f"{name}.shape",
            got=f"{tuple(array.shape)}",
            allowed=f"{wanted}, with u of shape {tuple(u.shape)}",
            do=f"Pass {name} of that shape; nothing is broadcast.",
        )
    )
