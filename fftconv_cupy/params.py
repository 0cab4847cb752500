"""Arguments of the kernels: the structures of kernels/params.cuh, field by field."""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from typing import Any


class FwdParams(ctypes.Structure):
    """`fftconv::FwdParams` of kernels/params.cuh."""

    _fields_ = (
        ("u", ctypes.c_void_p),
        ("in_gate", ctypes.c_void_p),
        ("out_gate", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("twiddles", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("u_batch_stride", ctypes.c_longlong),
        ("u_channel_stride", ctypes.c_longlong),
        ("in_gate_batch_stride", ctypes.c_longlong),
        ("in_gate_channel_stride", ctypes.c_longlong),
        ("out_gate_batch_stride", ctypes.c_longlong),
        ("out_gate_channel_stride", ctypes.c_longlong),
        ("y_batch_stride", ctypes.c_longlong),
        ("y_channel_stride", ctypes.c_longlong),
        ("spectrum_stride", ctypes.c_longlong),
        ("batch", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("in_len", ctypes.c_int),
        ("out_len", ctypes.c_int),
        ("log2_batch_slots", ctypes.c_int),
        ("turns", ctypes.c_int),
        ("block_step", ctypes.c_int),
        ("turn_channels", ctypes.c_int),
        ("turn_jobs", ctypes.c_int),
        ("has_in_gate", ctypes.c_int),
        ("has_out_gate", ctypes.c_int),
        ("skip_is_float", ctypes.c_int),
        ("skip_scale", ctypes.c_float),
        ("zero", ctypes.c_int),
    )


class WindowsParams(ctypes.Structure):
    """`fftconv::WindowsParams` of kernels/params.cuh."""

    _fields_ = (
        ("u", ctypes.c_void_p),
        ("in_gate", ctypes.c_void_p),
        ("out_gate", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("twiddles", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("u_batch_stride", ctypes.c_longlong),
        ("u_channel_stride", ctypes.c_longlong),
        ("in_gate_batch_stride", ctypes.c_longlong),
        ("in_gate_channel_stride", ctypes.c_longlong),
        ("out_gate_batch_stride", ctypes.c_longlong),
        ("out_gate_channel_stride", ctypes.c_longlong),
        ("y_batch_stride", ctypes.c_longlong),
        ("y_channel_stride", ctypes.c_longlong),
        ("state_batch_stride", ctypes.c_longlong),
        ("state_channel_stride", ctypes.c_longlong),
        ("spectrum_stride", ctypes.c_longlong),
        ("batch", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("in_len", ctypes.c_int),
        ("out_len", ctypes.c_int),
        ("state_len", ctypes.c_int),
        ("window_count", ctypes.c_int),
        ("window_step", ctypes.c_int),
        ("window_lead", ctypes.c_int),
        ("window_origin", ctypes.c_int),
        ("window_period", ctypes.c_int),
        ("has_in_gate", ctypes.c_int),
        ("has_out_gate", ctypes.c_int),
        ("skip_is_float", ctypes.c_int),
        ("skip_scale", ctypes.c_float),
    )


class ChunkPlan(ctypes.Structure):
    """`fftconv::ChunkPlan` of kernels/params.cuh."""

    _fields_ = (
        ("group_steps", ctypes.c_int),
        ("chunk_steps", ctypes.c_int),
        ("group_chunks", ctypes.c_int),
    )


class BwdParams(ctypes.Structure):
    """`fftconv::BwdParams` of kernels/params.cuh."""

    _fields_ = (
        ("u", ctypes.c_void_p),
        ("in_gate", ctypes.c_void_p),
        ("out_gate", ctypes.c_void_p),
        ("dy", ctypes.c_void_p),
        ("du", ctypes.c_void_p),
        ("d_in_gate", ctypes.c_void_p),
        ("d_out_gate", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("twiddles", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("stash", ctypes.c_void_p),
        ("strides", ctypes.c_longlong * 14),  # batch and channel stride of each of the seven arrays
        ("spectrum_stride", ctypes.c_longlong),
        ("chunk_count", ctypes.c_longlong),
        ("chunks", ChunkPlan),
        ("batch", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("in_len", ctypes.c_int),
        ("out_len", ctypes.c_int),
        ("log2_batch_slots", ctypes.c_int),
        ("has_in_gate", ctypes.c_int),
        ("has_out_gate", ctypes.c_int),
        ("skip_is_float", ctypes.c_int),
        ("skip_scale", ctypes.c_float),
        ("zero", ctypes.c_int),
    )


class StateParams(ctypes.Structure):
    """`fftconv::StateParams` of kernels/params.cuh."""

    _fields_ = (
        ("u", ctypes.c_void_p),
        ("in_gate", ctypes.c_void_p),
        ("initial", ctypes.c_void_p),
        ("final", ctypes.c_void_p),
        ("strides", ctypes.c_longlong * 6),  # batch and channel stride of each of the first three arrays
        ("batch", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("in_len", ctypes.c_int),
        ("state_len", ctypes.c_int),
    )


class Windows(ctypes.Structure):
    """`fftconv::Windows` of kernels/params.cuh."""

    _fields_ = (
        ("count", ctypes.c_int),
        ("step", ctypes.c_int),
        ("lead", ctypes.c_int),
        ("origin", ctypes.c_int),
        ("period", ctypes.c_int),
    )


class WindowsBwdParams(ctypes.Structure):
    """`fftconv::WindowsBwdParams` of kernels/params.cuh."""

    _fields_ = (
        ("u", ctypes.c_void_p),
        ("in_gate", ctypes.c_void_p),
        ("out_gate", ctypes.c_void_p),
        ("dy", ctypes.c_void_p),
        ("du", ctypes.c_void_p),
        ("d_in_gate", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("d_final", ctypes.c_void_p),
        ("d_state", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("twiddles", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("stash", ctypes.c_void_p),
        ("strides", ctypes.c_longlong * 18),  # batch and channel stride of each of the first nine arrays
        ("spectrum_stride", ctypes.c_longlong),
        ("chunk_count", ctypes.c_longlong),
        ("chunks", ChunkPlan),
        ("batch", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("in_len", ctypes.c_int),
        ("out_len", ctypes.c_int),
        ("state_len", ctypes.c_int),
        ("windows", Windows),
        ("log2_batch_slots", ctypes.c_int),
        ("has_in_gate", ctypes.c_int),
        ("has_out_gate", ctypes.c_int),
        ("skip_is_float", ctypes.c_int),
        ("skip_scale", ctypes.c_float),
        ("zero", ctypes.c_int),
    )


class Lags(ctypes.Structure):
    """`fftconv::Lags` of kernels/params.cuh."""

    _fields_ = (
        ("shift", ctypes.c_int),
        ("negative_shift", ctypes.c_int),
        ("period", ctypes.c_int),
        ("positive", ctypes.c_int),
        ("negative", ctypes.c_int),
    )


class FilterParams(ctypes.Structure):
    """`fftconv::FilterParams` of kernels/params.cuh."""

    _fields_ = (
        ("filter", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("twiddles", ctypes.c_void_p),
        ("filter_stride", ctypes.c_longlong),
        ("channels", ctypes.c_int),
        ("filter_len", ctypes.c_int),
        ("lags", Lags),
        ("scale", ctypes.c_float),
    )


class FilterBwdParams(ctypes.Structure):
    """`fftconv::FilterBwdParams` of kernels/params.cuh."""

    _fields_ = (
        ("sums", ctypes.c_void_p),
        ("dk", ctypes.c_void_p),
        ("d_skip", ctypes.c_void_p),
        ("twiddles", ctypes.c_void_p),
        ("group_chunks", ctypes.c_int),
        ("group_channels", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("filter_len", ctypes.c_int),
        ("skip_type", ctypes.c_int),
        ("lags", Lags),
    )


class ReduceParams(ctypes.Structure):
    """`fftconv::ReduceParams` of kernels/params.cuh."""

    _fields_ = (
        ("sums", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("group_chunks", ctypes.c_int),
        ("group_channels", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("quads", ctypes.c_int),
        ("is_added", ctypes.c_int),
    )


_CODES = {ctypes.c_void_p: "P", ctypes.c_longlong: "q", ctypes.c_int: "i", ctypes.c_float: "f"}


class Slot(threading.local):
    """A structure in memory that each thread has for itself, filled anew for each launch: callers may be concurrent.

    Attributes:
        params: the structure.
        address: of a pointer to it.
        fill: fills it, by the values that `packer` takes.
    """

    def __init__(self, structure: Any) -> None:
        self.params = structure()
        self._pointer = ctypes.c_void_p(ctypes.addressof(self.params))
        self.address = ctypes.addressof(self._pointer)
        self.fill = functools.partial(packer(structure).pack_into, self.params, 0)


def packer(structure: Any) -> struct.Struct:
    """Return what fills a structure at once, in a third of the time that its constructor takes.

    Its values are those of the fields in their order; those of nested structures and arrays are spelled out.
    """
    return struct.Struct("@" + _format(structure))


def _format(kind: Any) -> str:
    """Return a field's type, or a structure, in the codes of `struct`."""
    if issubclass(kind, ctypes.Structure):
        return "".join(_format(field) for _, field in kind._fields_)
    if issubclass(kind, ctypes.Array):
        return str(_format(kind._type_) * kind._length_)
    return _CODES[kind]
