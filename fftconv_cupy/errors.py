"""Exceptions of fftconv_cupy.

Every message says what was got, what is allowed and what to do; `message` keeps the form the same everywhere.
"""

from __future__ import annotations


class FFTConvError(Exception):
    """Base of every error that fftconv_cupy raises on purpose."""


class InvalidArgumentError(FFTConvError, ValueError):
    """A shape, length, mode or other value is not allowed."""


class UnsupportedProblemError(InvalidArgumentError):
    """The problem is well-formed but larger than this version, or this GPU, can compute."""


class InvalidTypeError(FFTConvError, TypeError):
    """An argument has a wrong dtype, comes from another framework or device, or is not an array."""


class UnsupportedDeviceError(FFTConvError, RuntimeError):
    """The GPU is older than the oldest supported architecture, or no GPU can be used."""


class MissingDependencyError(FFTConvError, ImportError):
    """An optional package that this call needs is not installed."""


class CompileError(FFTConvError, RuntimeError):
    """NVRTC rejected a kernel; the message holds the entry, the architecture, the defines and the compiler's log."""


def message(what: str, *, got: object, allowed: object, do: str) -> str:
    """Return the text of an error: what is wrong, what was got, what is allowed, and what to do about it.

    Args:
        what: the argument or the fact at fault, such as ``"fft_size"``.
        got: the value that was passed, as it should be shown.
        allowed: the values that would be accepted.
        do: one sentence in the imperative that gets the caller further.
    """
    return f"{what}: got {got}; allowed: {allowed}. {do}"
