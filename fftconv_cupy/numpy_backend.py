"""`fftconv` and `fftconv_vjp` on the CPU: NumPy's real transforms in float64, each result rounded once to its dtype.

Rows are transformed in groups that keep the float64 copies small. A row is never combined with another one, but in the
gradients that sum over rows; so a non-finite value stays in its row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fftconv_cupy.problem import Gradients, Problem, needed_fft_size

Array = NDArray[Any]
_GROUP_POINTS = 1 << 20  # float64 points that are transformed at a time: 8 MiB, and as much for their spectrum


def transform_points(problem: Problem) -> int:
    """Return the real points of the transform that computes `problem` here.

    A linear mode takes the smallest power of two free of wrapped terms, whatever larger FFT size is asked for. A
    circular convolution takes its period N; but where N >= 2 L - 1 no lag between two points of a row wraps onto
    another, and 2 L - 1 points rounded up will do, however large N is.
    """
    if problem.initial_state:  # its points come first, and their outputs may be hit by wrapped terms
        return _next_power_of_two(problem.seqlen + problem.filter_len - 1)
    if problem.mode != "circular":
        return _next_power_of_two(needed_fft_size(problem.mode, problem.seqlen, problem.filter_len))
    if problem.fft_size < 2 * problem.seqlen - 1:
        return problem.fft_size
    return _next_power_of_two(2 * problem.seqlen - 1)


def filter_spectrum(problem: Problem, k: Array) -> NDArray[np.complex128]:
    """Return the spectrum of a filter, (..., points / 2 + 1), for a filter ``k`` of shape (..., K)."""
    points = transform_points(problem)
    taps = k[..., : problem.taps].astype(np.float64)
    if problem.mode != "circular":
        return _rfft(_fold(taps, points), points)
    period, seqlen = problem.fft_size, problem.seqlen
    if taps.shape[-1] > period:
        taps = _fold(taps, period)
    if points == period:
        return _rfft(taps, points)
    # Taps 0 .. L-1 are lags forward, taps N-L+1 .. N-1 lags backward; the others reach no point of a row.
    wrapped = np.zeros((*taps.shape[:-1], points))
    ahead = taps[..., :seqlen]
    wrapped[..., : ahead.shape[-1]] = ahead
    first_back = period - seqlen + 1
    back = taps[..., first_back:]
    start = points - seqlen + 1
    wrapped[..., start : start + back.shape[-1]] = back
    return _rfft(wrapped, points)


def convolve(
    problem: Problem,
    u: Array,
    filt: Array,
    in_gate: Array | None,
    out_gate: Array | None,
    skip: Array | None,
    out: Array,
    initial_state: Array | None = None,
) -> None:
    """Fill `out` with ``out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))``.

    Args:
        problem: lengths, mode and FFT size.
        u: (B, H, L).
        filt: the filter, (H, K) or (K,) for all channels; or, complex, its spectrum as `filter_spectrum` returns it.
        in_gate: (B, H, L) or None.
        out_gate: (B, H, outputs) or None.
        skip: (H,) or None.
        out: (B, H, outputs), written in its own dtype. Must share no memory with the inputs.
        initial_state: (B, H, K - 1) or None.
    """
    points = transform_points(problem)
    with expected_errors():
        filt = _prepared_once(problem, filt)
        for channels, batches in _groups(problem):
            h = _spectrum(problem, filt, channels)
            for batch in batches:
                group = (batch, channels)
                x = _product(u, in_gate, group)
                before = _with_state(problem, x, initial_state, (batch, channels))
                y = _outputs(problem, _rfft(before, points) * h, x, skip, channels)
                if out_gate is not None:
                    y *= out_gate[group].astype(np.float64)
                store(out, group, y)


def final_state(problem: Problem, u: Array, in_gate: Array | None, initial_state: Array | None, out: Array) -> None:
    """Fill `out`, (B, H, K - 1), with the last gated inputs of each row, after those of the state before it."""
    state_len = problem.filter_len - 1
    fresh = min(state_len, problem.seqlen)
    group = (slice(None), slice(None), slice(problem.seqlen - fresh, None))
    with expected_errors():
        out[..., state_len - fresh :] = _product(u, in_gate, group)
    out[..., : state_len - fresh] = 0 if initial_state is None else initial_state[..., fresh:]


def vjp(
    problem: Problem,
    dy: Array,
    u: Array,
    filt: Array,
    in_gate: Array | None,
    out_gate: Array | None,
    skip: Array | None,
    grads: Gradients,
    initial_state: Array | None = None,
    d_final_state: Array | None = None,
    d_initial_state: Array | None = None,
) -> None:
    """Fill `grads` with the gradients of ``sum(dy * y)``, where ``y`` is what `convolve` computes.

    Every step is the transpose of one of `convolve`: outputs are put back to where they were taken from and correlated
    with the filter, through its conjugate spectrum; folded taps get the gradient of their sum.

    Args:
        problem: lengths, mode and FFT size.
        dy: (B, H, outputs).
        u: (B, H, L).
        filt: the filter or its spectrum, as for `convolve`; only read for the gradients of `u` and the gates.
        in_gate: (B, H, L) or None.
        out_gate: (B, H, outputs) or None.
        skip: (H,) or None.
        grads: arrays with the shapes of the arguments, written in their own dtypes; what is None is not computed.
        initial_state: (B, H, K - 1) or None.
        d_final_state: the gradient of the final state, likewise.
        d_initial_state: as `grads`, for the gradient of the initial state.
    """
    points = transform_points(problem)
    needs_filter = any(grad is not None for grad in (grads.u, grads.in_gate, grads.out_gate, d_initial_state))
    with expected_errors():
        if needs_filter:
            filt = _prepared_once(problem, filt)
        shared_sum = np.zeros(points // 2 + 1, np.complex128)
        for channels, batches in _groups(problem):
            h = _spectrum(problem, filt, channels) if needs_filter else None
            count = u[:, channels].shape[1]
            filter_sum = np.zeros((count, points // 2 + 1), np.complex128)
            skip_sum = np.zeros(count)
            for batch in batches:
                group = (batch, channels)
                rows = _Rows(problem, group, h, dy, u, in_gate, out_gate, skip, initial_state, d_final_state)
                rows.fill(grads)
                if d_initial_state is not None:
                    store(d_initial_state, group, rows.state_gradient)
                if grads.k is not None:
                    filter_sum += rows.filter_term()
                if grads.skip is not None:
                    skip_sum += rows.skip_term()
            if grads.skip is not None:
                store(grads.skip, channels, skip_sum)
            if grads.k is not None and problem.shared_filter:
                shared_sum += filter_sum.sum(axis=0)
            elif grads.k is not None:
                store(grads.k, channels, _tap_gradients(problem, filter_sum))
        if grads.k is not None and problem.shared_filter:
            store(grads.k, slice(None), _tap_gradients(problem, shared_sum))


class _Rows:
    """Some rows of a call of `vjp`: what several gradients need is computed once, and only when one asks for it."""

    def __init__(
        self,
        problem: Problem,
        group: tuple[slice, slice],
        h: Any,
        dy: Array,
        u: Array,
        in_gate: Array | None,
        out_gate: Array | None,
        skip: Array | None,
        initial_state: Array | None,
        d_final_state: Array | None,
    ) -> None:
        self._problem, self._group = problem, group
        self._points = transform_points(problem)
        self._h, self._dy, self._u = h, dy, u
        self._in_gate, self._out_gate, self._skip = in_gate, out_gate, skip
        self._initial_state, self._d_final_state = initial_state, d_final_state

    @cached_property
    def _x(self) -> Array:
        return _product(self._u, self._in_gate, self._group)

    @cached_property
    def _g(self) -> Array:
        """The gradient before the output gate."""
        return _product(self._dy, self._out_gate, self._group)

    @cached_property
    def _x_spectrum(self) -> Array:
        return _rfft(_with_state(self._problem, self._x, self._initial_state, self._group), self._points)

    @cached_property
    def _g_spectrum(self) -> Array:
        placed = _with_state(self._problem, _placed(self._problem, self._g), None, self._group)
        return _rfft(placed, self._points)

    @cached_property
    def _dx_with_state(self) -> Array:
        """The gradient after the input gate, of the points of the initial state too."""
        length = _state_len(self._problem) + self._problem.seqlen
        dx: Array = np.fft.irfft(self._g_spectrum * np.conj(self._h), self._points)[..., :length]
        if self._d_final_state is not None:
            dx[..., self._problem.seqlen :] += self._d_final_state[self._group].astype(np.float64)
        return dx

    @cached_property
    def _dx(self) -> Array:
        """The gradient after the input gate."""
        dx = self._dx_with_state[..., _state_len(self._problem) :]
        if self._skip is not None:
            dx = dx + self._skip[self._group[1], None].astype(np.float64) * self._g[..., : dx.shape[-1]]
        return dx

    @property
    def state_gradient(self) -> Array:
        """The gradient of the initial state."""
        return self._dx_with_state[..., : _state_len(self._problem)]

    def fill(self, grads: Gradients) -> None:
        """Write these rows of the gradients that have them."""
        group = self._group
        if grads.u is not None:
            dx = self._dx
            store(grads.u, group, dx if self._in_gate is None else dx * self._in_gate[group].astype(np.float64))
        if grads.in_gate is not None:
            store(grads.in_gate, group, self._dx * self._u[group].astype(np.float64))
        if grads.out_gate is not None:
            z = _outputs(self._problem, self._x_spectrum * self._h, self._x, self._skip, group[1])
            store(grads.out_gate, group, self._dy[group].astype(np.float64) * z)

    def filter_term(self) -> Array:
        """Return the spectrum of dk, (channels, points / 2 + 1), summed over these batches."""
        term: Array = (self._g_spectrum * np.conj(self._x_spectrum)).sum(axis=0)
        return term

    def skip_term(self) -> Array:
        """Return the gradient of skip, (channels,), summed over these batches."""
        term: Array = (self._g[..., : self._problem.seqlen] * self._x).sum(axis=(0, 2))
        return term


def expected_errors() -> np.errstate:
    """Return a context without warnings: float16 overflows to infinity and a row may hold NaN, and both are results."""
    return np.errstate(over="ignore", invalid="ignore")


def _groups(problem: Problem) -> Iterator[tuple[slice, list[slice]]]:
    """Yield groups of channels, and for each the groups of batches that are computed at a time."""
    rows = max(1, _GROUP_POINTS // transform_points(problem))
    channel_step = min(problem.channels, rows)
    batch_step = max(1, rows // channel_step)
    batches = [slice(start, start + batch_step) for start in range(0, problem.batch, batch_step)]
    for first in range(0, problem.channels, channel_step):
        yield slice(first, first + channel_step), batches


def _prepared_once(problem: Problem, filt: Array) -> Array:
    """Return the spectrum of a shared filter; another one is transformed as its channels come."""
    return filter_spectrum(problem, filt) if problem.shared_filter and filt.dtype.kind != "c" else filt


def _spectrum(problem: Problem, filt: Array, channels: slice) -> Array:
    """Return the filter's spectrum for some channels."""
    h = filt if problem.shared_filter else filt[channels]
    return h if h.dtype.kind == "c" else filter_spectrum(problem, h)


def _product(array: Array, gate: Array | None, group: tuple[slice, ...]) -> NDArray[np.float64]:
    """Return rows in float64, times their gate."""
    rows: NDArray[np.float64] = array[group].astype(np.float64)
    if gate is not None:
        rows *= gate[group].astype(np.float64)
    return rows


def _outputs(problem: Problem, spectrum: Array, x: Array, skip: Array | None, channels: slice) -> NDArray[np.float64]:
    """Return the rows before the output gate, from the spectrum of the convolution and the gated input."""
    y = _wanted(problem, np.fft.irfft(spectrum, transform_points(problem))[..., _state_len(problem) :])
    if skip is not None:
        y[..., : problem.seqlen] += skip[channels, None].astype(np.float64) * x
    return y


def _placed(problem: Problem, g: Array) -> Array:
    """Return gradients of the outputs at the points where `_wanted` took them from."""
    first = (problem.filter_len - 1) // 2 if problem.mode == "same" else 0
    if first == 0:
        return g
    placed = np.zeros((*g.shape[:-1], first + g.shape[-1]))
    placed[..., first:] = g
    return placed


def _tap_gradients(problem: Problem, spectrum: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return the gradients of all K taps from the spectrum of their correlation: the transpose of `filter_spectrum`."""
    points, seqlen, filter_len = transform_points(problem), problem.seqlen, problem.filter_len
    lags = np.fft.irfft(spectrum, points)
    dk = np.zeros((*lags.shape[:-1], filter_len))
    if problem.mode != "circular":
        dk[..., : problem.taps] = _unfold(lags, problem.taps)
        return dk
    period = problem.fft_size
    if points == period:
        return _unfold(lags, filter_len)
    ahead, first_back = dk[..., :seqlen], period - seqlen + 1
    ahead[...] = lags[..., : ahead.shape[-1]]
    back = dk[..., first_back:period]
    start = points - seqlen + 1
    back[...] = lags[..., start : start + back.shape[-1]]
    return _unfold(dk[..., :period], filter_len)


def _wanted(problem: Problem, y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outputs that the mode asks for, out of those of a transform."""
    first = (problem.filter_len - 1) // 2 if problem.mode == "same" else 0
    return y[..., first : first + problem.out_len]


def _state_len(problem: Problem) -> int:
    """Return how many points come before the first one of a row."""
    return problem.filter_len - 1 if problem.initial_state else 0


def _with_state(problem: Problem, x: Array, state: Array | None, group: tuple[slice, slice]) -> Array:
    """Return rows after the points that came before them where such matter, zeros where there is no state."""
    if not problem.initial_state:
        return x
    before = np.zeros((*x.shape[:-1], _state_len(problem))) if state is None else state[group].astype(np.float64)
    return np.concatenate([before, x], axis=-1)


def store(out: Array, index: slice | tuple[slice, ...], y: NDArray[np.float64]) -> None:
    """Write `y` in the dtype of `out`, rounded once."""
    out[index] = _to_bfloat16(y) if out.dtype == ml_dtypes.bfloat16 else y


def _to_bfloat16(y: NDArray[np.float64]) -> Array:
    """Round to nearest even once; the cast alone rounds to float32 before, and a tie there loses what lay beyond it."""
    single = y.astype(np.float32)
    # Towards zero, with the last bit set where something was cut off: no tie is left that is none.
    bits = single.view(np.uint32) - (np.abs(single) > np.abs(y))
    bits |= single != y
    return bits.view(np.float32).astype(ml_dtypes.bfloat16)


def _rfft(x: Array, points: int) -> NDArray[np.complex128]:
    """Transform the last axis, zero-padded to `points`."""
    spectrum: NDArray[np.complex128] = np.fft.rfft(x, points)
    return spectrum


def _fold(taps: Array, period: int) -> Array:
    """Add up the taps whose indices are equal modulo `period`."""
    length = taps.shape[-1]
    if length <= period:
        return taps
    turns = -(-length // period)
    padded = np.zeros((*taps.shape[:-1], turns * period))
    padded[..., :length] = taps
    folded: Array = padded.reshape(*taps.shape[:-1], turns, period).sum(axis=-2)
    return folded


def _unfold(sums: Array, length: int) -> Array:
    """Return `length` taps, each with the value at its index modulo the period that `sums` has: `_fold` transposed."""
    period = sums.shape[-1]
    unfolded: Array = sums[..., :length] if length <= period else sums[..., np.arange(length) % period]
    return unfolded


def _next_power_of_two(number: int) -> int:
    return 1 << max(1, (number - 1).bit_length())
