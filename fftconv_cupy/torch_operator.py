"""The operators ``fftconv_cupy::fftconv`` and ``fftconv_cupy::fftconv_vjp``: what they compute, of which shape.

Both compute by the functions of these names of the package, on every device. Autocast is registered here too;
derivatives and `vmap` are in `torch_derivatives`.

A prepared filter passes the dispatcher as the tensor of its spectrum, in the place of ``k``, and a string that says
what that is good for. So a compiled graph, a backward to come and a CUDA graph hold its memory as any other's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fftconv_cupy.api import fftconv
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.gradients import fftconv_vjp
from fftconv_cupy.problem import Gradients, check_mode

ARGUMENTS = ("u", "k", "in_gate", "out_gate", "skip")
"""The tensors of the convolution, in the operators' order."""

TENSORS = "Tensor u, Tensor k, Tensor? in_gate, Tensor? out_gate, Tensor? skip"
OPTIONS = "str mode, SymInt? fft_size, str? precision, str? intermediate, str? layout"
_OPTION_NAMES = (
    "mode",
    "fft_size",
    "precision",
    "intermediate",
)  # the layout goes with k

library = torch.library.Library("fftconv_cupy", "DEF")
library.define(f"fftconv({TENSORS}, {OPTIONS}) -> Tensor")
library.define(f"fftconv_vjp(Tensor dy, {TENSORS}, {OPTIONS}, bool[] wrt) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
forward_op = torch.ops.fftconv_cupy.fftconv.default
vjp_op = torch.ops.fftconv_cupy.fftconv_vjp.default


def layout_of(k: FilterSpectrum) -> str:
    """Return what a prepared filter is good for as one line, which `_spectrum` reads."""
    return (
        f"{k.mode} {k.strategy} {k.dtype} {k.seqlen} {k.filter_len} {k.fft_size} {k.channels} {k.points} {k.shared:d}"
    )


def carrier_of(k: FilterSpectrum) -> torch.Tensor:
    """Return the tensor that shares the memory of a prepared filter."""
    data = k.data
    if isinstance(data, torch.Tensor):
        return data
    if k.device >= 0:
        return torch.from_dlpack(data)
    if torch.compiler.is_compiling():
        return torch.from_numpy(data)
    # from_numpy warns of memory that is read-only, as a prepared filter's is: nobody writes to it here.
    return torch.from_numpy(np.asarray(_Writeable(data)))


class _Writeable:
    """Says that an array can be written to."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


@functools.lru_cache(maxsize=4096)
def _parsed(layout: str) -> dict[str, Any]:
    mode, strategy, dtype, *numbers = layout.split()
    names = ("seqlen", "filter_len", "fft_size", "channels", "points", "shared")
    fields: dict[str, Any] = dict(zip(names, map(int, numbers), strict=True))
    return {"mode": mode, "strategy": strategy, "dtype": dtype, **fields, "shared": bool(fields["shared"])}


def is_bound(layout: str | None) -> bool:
    """Return whether a call takes a prepared filter that has a row for each channel."""
    return layout is not None and not _parsed(layout)["shared"]


def filter_len_of(k: torch.Tensor, layout: str | None) -> int:
    """Return K of a call."""
    length: int = k.shape[-1] if layout is None else _parsed(layout)["filter_len"]
    return length


def filter_of(k: torch.Tensor, layout: str | None) -> Any:
    """Return what `fftconv` takes for ``k``: the taps, or the prepared filter whose spectrum the tensor is."""
    if layout is None:
        return k
    data = k if k.is_cuda else k.numpy()
    return FilterSpectrum(**_parsed(layout), device=k.get_device(), data=data, ptr=k.data_ptr(), nbytes=k.nbytes)


def named(tensors: Sequence[str], args: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `fftconv` by name for those of an operator, whose tensors have the names `tensors`."""
    *values, layout = args
    found = dict(zip((*tensors, *_OPTION_NAMES), values, strict=True))
    return {**found, "k": filter_of(found["k"], layout)}


def compute(
    u: torch.Tensor,
    k: torch.Tensor,
    in_gate: torch.Tensor | None,
    out_gate: torch.Tensor | None,
    skip: torch.Tensor | None,
    mode: str,
    fft_size: int | None,
    precision: str | None,
    intermediate: str | None,
    layout: str | None,
    prepared: FilterSpectrum | None = None,
) -> torch.Tensor:
    """Compute ``fftconv``; `prepared` is what `k` and `layout` stand for, where the caller has it.

    Its arguments are spelled out, not `named`: every eager call comes through here, and names take their time.
    """
    y: torch.Tensor = fftconv(
        u,
        filter_of(k, layout) if prepared is None else prepared,
        mode=mode,
        fft_size=fft_size,
        in_gate=in_gate,
        out_gate=out_gate,
        skip=skip,
        precision=precision,
        intermediate=intermediate,
    )
    return y


def compute_vjp(
    dy: torch.Tensor,
    u: torch.Tensor,
    k: torch.Tensor,
    in_gate: torch.Tensor | None,
    out_gate: torch.Tensor | None,
    skip: torch.Tensor | None,
    mode: str,
    fft_size: int | None,
    precision: str | None,
    intermediate: str | None,
    layout: str | None,
    wrt: Sequence[bool],
) -> Any:
    """Compute ``fftconv_vjp``; its arguments are spelled out as those of `compute`."""
    return fftconv_vjp(
        dy,
        u,
        filter_of(k, layout),
        mode=mode,
        fft_size=fft_size,
        in_gate=in_gate,
        out_gate=out_gate,
        skip=skip,
        wrt=names_of(ARGUMENTS, tuple(wrt)),
        precision=precision,
        intermediate=intermediate,
    )


@functools.lru_cache(maxsize=256)
def names_of(names: tuple[str, ...], wrt: tuple[bool, ...]) -> tuple[str, ...]:
    """Return those of some arguments whose gradients are asked for."""
    return tuple(name for name, is_wanted in zip(names, wrt, strict=True) if is_wanted)


def _fake(u: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Return a tensor of the output's shape; the rules about the arguments are looked at when it is computed."""
    mode, *_, layout = rest[len(ARGUMENTS) - 2 :]
    points = u.shape[-1]
    if check_mode(mode) == "full":
        points += filter_len_of(k, layout) - 1
    return u.new_empty((*u.shape[:-1], points))


def _fake_vjp(dy: torch.Tensor, *rest: Any) -> Gradients:
    tensors, wrt = rest[: len(ARGUMENTS)], rest[-1]
    return Gradients(*(t.new_empty(t.shape) if is_wanted else None for t, is_wanted in zip(tensors, wrt, strict=True)))


def autocast(
    u: Any, k: Any, in_gate: Any, out_gate: Any, skip: Any, *options: Any, dtype: torch.dtype
) -> tuple[Any, ...]:
    """Return the operator's arguments as autocast wants them.

    What is as long as the input is cast to `dtype`, but float64 is not, as nowhere in torch. The filter and skip are
    read in their own precision.
    """

    def cast(tensor: Any) -> Any:
        is_cast = tensor is not None and tensor.is_floating_point() and tensor.dtype is not torch.float64
        return tensor.to(dtype) if is_cast else tensor

    u = cast(u)
    if skip is not None and skip.dtype is not u.dtype:
        skip = skip.float()  # exact for the 16-bit dtypes, and allowed beside every dtype of u
    return (u, k, cast(in_gate), cast(out_gate), skip, *options)


def _autocast_kernel(key: torch.DispatchKey, device: str, *args: Any) -> torch.Tensor:
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        y: torch.Tensor = forward_op(*autocast(*args, dtype=torch.get_autocast_dtype(device)))
    return y


library.impl("fftconv", compute, "CompositeExplicitAutograd")
library.impl("fftconv_vjp", compute_vjp, "CompositeExplicitAutograd")
torch.library.register_fake("fftconv_cupy::fftconv", _fake, lib=library)
torch.library.register_fake("fftconv_cupy::fftconv_vjp", _fake_vjp, lib=library)
for _name, _device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
    _key = getattr(torch._C.DispatchKey, _name)
    library.impl("fftconv", functools.partial(_autocast_kernel, _key, _device), _name)
