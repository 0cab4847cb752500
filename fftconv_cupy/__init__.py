"""Long and short convolutions on any DLPack array: on GPUs with kernels compiled at run time, on the CPU with NumPy."""

from fftconv_cupy._version import __version__
from fftconv_cupy.ahead import plan, warmup
from fftconv_cupy.api import fftconv, prepare_filter
from fftconv_cupy.depthwise import depthwise_conv1d, depthwise_conv1d_update, depthwise_conv1d_vjp
from fftconv_cupy.depthwise_problem import DepthwiseGradients
from fftconv_cupy.errors import (
    CompileError,
    FFTConvError,
    InvalidArgumentError,
    InvalidTypeError,
    MissingDependencyError,
    UnsupportedDeviceError,
    UnsupportedProblemError,
)
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.gradients import fftconv_vjp
from fftconv_cupy.plan import Plan
from fftconv_cupy.problem import Gradients

__all__ = [
    "CompileError",
    "DepthwiseGradients",
    "FFTConvError",
    "FilterSpectrum",
    "Gradients",
    "InvalidArgumentError",
    "InvalidTypeError",
    "MissingDependencyError",
    "Plan",
    "UnsupportedDeviceError",
    "UnsupportedProblemError",
    "__version__",
    "depthwise_conv1d",
    "depthwise_conv1d_update",
    "depthwise_conv1d_vjp",
    "fftconv",
    "fftconv_vjp",
    "plan",
    "prepare_filter",
    "warmup",
]
