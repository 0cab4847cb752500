"""The prepared filter: its spectrum, and the problem that the spectrum is good for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from fftconv_cupy.errors import InvalidTypeError, message
from fftconv_cupy.problem import PRECISIONS, Problem
from fftconv_cupy.readers import device_name


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FilterSpectrum:
    """A filter transformed once, to be passed to `fftconv` in place of ``k`` any number of times.

    Made by `prepare_filter`. It is good for one mode, row length, FFT size, number of channels and device, and for any
    batch size, gates and dtype of the input. Its attributes cannot be changed, so a copy of it is itself. On a GPU
    `data` is a plain array, which must not be written to. It cannot be pickled: prepare it in each process.

    Attributes:
        mode: as prepared.
        seqlen: L, points of the rows it convolves.
        filter_len: K, points of the filter.
        fft_size: real points of the transform; in circular mode the period N.
        channels: H; 1 where the filter is shared.
        shared: one row serves all channels.
        dtype: of the filter it was made from.
        device: CUDA ordinal, or -1 for the CPU.
        points: M, complex points of a transform (on the CPU the real points of NumPy's transform).
        strategy: "linear", "paired", "long" or "windows", "medium" on tensor cores, "numpy" on the CPU;
            "stateful" and "numpy-stateful" where calls may have an initial state.
        data: array that holds the spectrum, and keeps its memory alive; only to be read.
        ptr: address of the spectrum.
        nbytes: size of the spectrum.
        signature: what calls that use this filter have in common; key of the look-up in every call.
    """

    mode: str
    seqlen: int
    filter_len: int
    fft_size: int
    channels: int
    shared: bool
    dtype: str
    device: int
    points: int
    strategy: str
    data: Any
    ptr: int
    nbytes: int
    signature: tuple[object, ...] = field(init=False)

    @classmethod
    def of(
        cls, problem: Problem, device: int, points: int, strategy: str, data: Any, ptr: int, nbytes: int
    ) -> FilterSpectrum:
        """Return the spectrum of the filter of `problem`; the other arguments are the attributes of their names."""
        return cls(
            mode=problem.mode,
            seqlen=problem.seqlen,
            filter_len=problem.filter_len,
            fft_size=problem.fft_size,
            channels=problem.channels,
            shared=problem.shared_filter,
            dtype=problem.filter_dtype,
            device=device,
            points=points,
            strategy=strategy,
            data=data,
            ptr=ptr,
            nbytes=nbytes,
        )

    def __post_init__(self) -> None:
        """Build the signature once."""
        lengths = (self.seqlen, self.filter_len, self.fft_size, self.channels, self.points)
        signature = ("prepared", self.mode, *lengths, self.shared, self.dtype, self.device, self.strategy)
        object.__setattr__(self, "signature", signature)

    @property
    def precision(self) -> str:
        """The precision of the calls that it is for."""
        return self.strategy if self.strategy in PRECISIONS else "highest"

    @property
    def is_stateful(self) -> bool:
        """Whether calls may have an initial state."""
        return self.strategy.endswith("stateful")

    def __copy__(self) -> FilterSpectrum:
        """Return the spectrum itself."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FilterSpectrum:
        """Return the spectrum itself: its address must stay that of its data."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: an address means nothing to another process.

        Raises:
            InvalidTypeError: always.
        """
        raise InvalidTypeError(
            message(
                "pickle",
                got=repr(self),
                allowed="its taps k, from which it was prepared",
                do="Pickle the taps, and call prepare_filter where they are loaded.",
            )
        )

    def __repr__(self) -> str:
        """Return the problem it is good for, without the data."""
        rows = "shared" if self.shared else f"H = {self.channels}"
        return (
            f"FilterSpectrum(mode={self.mode!r}, K = {self.filter_len} {self.dtype}, {rows}, for L = {self.seqlen}, "
            f"fft_size={self.fft_size}, on {device_name(self.device)}, {self.nbytes} bytes)"
        )
