"""Arguments of the kernels: the structures of kernels/params.cuh, field by field."""

from __future__ import annotations

import ctypes


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
        ("iterations", ctypes.c_int),
        ("skip_is_float", ctypes.c_int),
        ("skip_scale", ctypes.c_float),
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
        ("shift", ctypes.c_int),
        ("negative_shift", ctypes.c_int),
        ("period", ctypes.c_int),
        ("positive_lags", ctypes.c_int),
        ("negative_lags", ctypes.c_int),
        ("scale", ctypes.c_float),
    )
