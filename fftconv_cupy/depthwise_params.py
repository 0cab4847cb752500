"""Arguments of the depthwise kernels: the structures of kernels/depthwise_params.cuh, field by field."""

from __future__ import annotations

import ctypes
from typing import Any


def _pointers(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


def _strides(*names: str) -> tuple[tuple[str, Any], ...]:
    """Return the fields of `DepthwiseStrides` of each array."""
    return tuple((f"{name}_{axis}", ctypes.c_longlong) for name in names for axis in ("batch", "channel", "time"))


def _longs(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, ctypes.c_longlong) for name in names)


def _ints(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, ctypes.c_int) for name in names)


class DepthwiseParams(ctypes.Structure):
    """`fftconv::DepthwiseParams` of kernels/depthwise_params.cuh."""

    _fields_ = (
        *_pointers("x", "dy", "out", "weight", "bias", "seq_idx", "state", "d_final", "d_state", "sums"),
        *_strides("x", "dy", "out", "state", "d_final", "d_state"),
        *_longs("weight_stride", "tap_stride", "bias_stride", "seq_stride"),
        *_ints("batch", "channels", "weight_type", "bias_type"),
        *_ints("in_len", "out_begin", "out_end", "width", "pad", "is_reversed", "dy_len"),
        *_ints("tiles", "tile_len", "log2_lanes", "time_tiles", "chunks", "chunk_items"),
    )


class DepthwiseReduceParams(ctypes.Structure):
    """`fftconv::DepthwiseReduceParams` of kernels/depthwise_params.cuh."""

    _fields_ = (
        *_pointers("sums", "d_weight", "d_bias"),
        *_ints("chunks", "channels", "width", "weight_type", "bias_type"),
    )


class DepthwiseUpdateParams(ctypes.Structure):
    """`fftconv::DepthwiseUpdateParams` of kernels/depthwise_params.cuh."""

    _fields_ = (
        *_pointers("x", "out", "state", "weight", "bias", "cache_seqlens", "indices"),
        *_strides("x", "out", "state"),
        *_longs("weight_stride", "tap_stride", "bias_stride", "cache_stride", "index_stride"),
        *_ints("batch", "channels", "steps", "state_len", "states", "width"),
        *_ints("weight_type", "bias_type", "has_silu"),
    )


class DepthwiseStateParams(ctypes.Structure):
    """`fftconv::DepthwiseStateParams` of kernels/depthwise_params.cuh."""

    _fields_ = (
        *_pointers("x", "state", "final_state"),
        *_strides("x", "state", "final"),
        *_ints("batch", "channels", "in_len", "width"),
    )
