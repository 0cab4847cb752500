"""Arguments of the kernels that only transforms on tensor cores have; that of rows takes `FwdParams`."""

from __future__ import annotations

import ctypes


class MmaFilterParams(ctypes.Structure):
    """`fftconv::MmaFilterParams` of kernels/fftconv_mma_filter.cu."""

    _fields_ = (("spectrum", ctypes.c_void_p), ("out", ctypes.c_void_p))
