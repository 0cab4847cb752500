"""Arguments of the kernels for long rows: the structures of kernels/long_params.cuh and kernels/pipeline.cuh."""

from __future__ import annotations

import ctypes

from fftconv_cupy.params import Lags


class ScheduleParams(ctypes.Structure):
    """`fftconv::Schedule` of kernels/pipeline.cuh."""

    _fields_ = (
        ("tasks", ctypes.c_uint),
        ("distance", ctypes.c_int),
        ("is_mixed", ctypes.c_int),
        ("slots", ctypes.c_int),
        ("filter_slots", ctypes.c_int),
        ("sum_slots", ctypes.c_int),
        ("chains", ctypes.c_int),
        ("filters", ctypes.c_int),
        ("lead", ctypes.c_int),
        ("has_own_filter", ctypes.c_int),
        ("channel_items", ctypes.c_int),
        ("batch", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("is_shared", ctypes.c_int),
    )


class Taps(ctypes.Structure):
    """`fftconv::Taps` of kernels/long_params.cuh."""

    _fields_ = (
        ("filter", ctypes.c_void_p),
        ("stride", ctypes.c_longlong),
        ("length", ctypes.c_int),
        ("type", ctypes.c_int),
        ("lags", Lags),
    )


class LongParams(ctypes.Structure):
    """`fftconv::LongParams` of kernels/long_params.cuh."""

    _fields_ = (
        ("u", ctypes.c_void_p),
        ("in_gate", ctypes.c_void_p),
        ("out_gate", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("row_twiddles", ctypes.c_void_p),
        ("tile_twiddles", ctypes.c_void_p),
        ("points", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("strides", ctypes.c_longlong * 8),  # batch and channel stride of each of the four arrays
        ("taps", Taps),
        ("schedule", ScheduleParams),
        ("in_len", ctypes.c_int),
        ("out_len", ctypes.c_int),
        ("has_in_gate", ctypes.c_int),
        ("has_out_gate", ctypes.c_int),
        ("skip_is_float", ctypes.c_int),
        ("skip_scale", ctypes.c_float),
    )


class LongBwdParams(ctypes.Structure):
    """`fftconv::LongBwdParams` of kernels/long_params.cuh."""

    _fields_ = (
        ("u", ctypes.c_void_p),
        ("in_gate", ctypes.c_void_p),
        ("out_gate", ctypes.c_void_p),
        ("dy", ctypes.c_void_p),
        ("du", ctypes.c_void_p),
        ("d_in_gate", ctypes.c_void_p),
        ("d_out_gate", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("dk", ctypes.c_void_p),
        ("d_skip", ctypes.c_void_p),
        ("row_twiddles", ctypes.c_void_p),
        ("tile_twiddles", ctypes.c_void_p),
        ("points", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("stash", ctypes.c_void_p),
        ("spectrum", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("total", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("strides", ctypes.c_longlong * 14),  # batch and channel stride of each of the seven arrays
        ("taps", Taps),
        ("schedule", ScheduleParams),
        ("in_len", ctypes.c_int),
        ("out_len", ctypes.c_int),
        ("has_in_gate", ctypes.c_int),
        ("has_out_gate", ctypes.c_int),
        ("skip_is_float", ctypes.c_int),
        ("skip_type", ctypes.c_int),
        ("skip_scale", ctypes.c_float),
    )
