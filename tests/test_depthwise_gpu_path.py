"""The way of depthwise calls on GPU arrays, walked without a GPU: see test_gpu_path.py, whose stand-in this extends."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import test_gpu_path
from depthwise_cases import NAMES, Loops, agreement, case, converted, random, updated
from frameworks import at_address, convert, cupy_on_host, host_memory
from test_gpu_path import CAPTURED_STREAM, CURRENT_STREAM

from fftconv_cupy import (
    arrays,
    depthwise_checks,
    depthwise_conv1d,
    depthwise_conv1d_update,
    depthwise_conv1d_vjp,
    depthwise_numpy,
    execute,
)
from fftconv_cupy.depthwise_problem import DepthwiseGradients, DepthwiseWanted
from fftconv_cupy.errors import InvalidArgumentError, UnsupportedDeviceError
from fftconv_cupy.problem import DTYPES
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.remembered import Remembered

host_gpu = test_gpu_path.launcher


def memory_of(seen):
    """Return what a kernel would see through a view."""
    if seen is None:
        return None
    dtype = np.dtype(np.int32) if seen.dtype == "int32" else NUMPY_DTYPES[seen.dtype]
    return at_address(seen.ptr, seen.shape, tuple(stride * dtype.itemsize for stride in seen.strides), dtype)


class DepthwiseLauncher:
    """Computes at the addresses that `launch_depthwise` would give to the kernels, and remembers what it was asked."""

    def __init__(self):
        self.calls, self.checked = [], []

    def check(self, problem, device):
        self.checked.append((problem, device))

    @staticmethod
    def rely(*rows):
        assert all(seen is None or seen.shape[-1] == 1 or seen.strides[-1] == 1 for seen in rows)

    def run(self, problem, x, weight, bias, seq_idx, initial_state, out, final_state, stream):
        self.calls.append((problem, x, stream))
        self.rely(x, out, seq_idx)
        assert (initial_state is not None) == problem.has_initial_state
        assert (final_state is not None) == problem.has_final_state
        views = (x, weight, bias, seq_idx, initial_state, out, final_state)
        depthwise_numpy.convolve(problem, *map(memory_of, views))

    def run_vjp(self, problem, wanted, dy, x, weight, bias, seq_idx, initial_state, d_final_state, gradients, stream):
        self.calls.append((problem, wanted, stream))
        self.rely(dy, x, seq_idx)
        assert (initial_state is not None) == problem.has_initial_state
        assert [grad is not None for grad in gradients] == list(wanted)
        views = (dy, x, weight, bias, seq_idx, initial_state, d_final_state)
        depthwise_numpy.vjp(problem, *map(memory_of, views), DepthwiseGradients(*map(memory_of, gradients)))

    def run_update(self, problem, x, state, weight, bias, cache_seqlens, conv_state_indices, out, stream):
        self.calls.append((problem, state, stream))
        steps = (*x.shape, 1)[:3]
        views = (state, weight, bias, cache_seqlens, conv_state_indices)
        result = memory_of(out).reshape(steps)
        depthwise_numpy.update(memory_of(x).reshape(steps), *map(memory_of, views), problem.activation, result)
        memory_of(out)[...] = result.reshape(out.shape)


@pytest.fixture
def launcher(host_gpu, monkeypatch):
    stands_in = DepthwiseLauncher()
    monkeypatch.setattr(execute, "_launch", SimpleNamespace(depthwise=stands_in))
    monkeypatch.setattr(depthwise_checks, "_calls", Remembered())
    # Memory for a stream that is not CuPy's current one comes out of the same host memory.
    monkeypatch.setattr(arrays, "cupy_stream", lambda *_: contextlib.nullcontext())
    return stands_in


@pytest.fixture
def copied(monkeypatch):
    """What is copied, on which stream."""
    seen_copies = []

    def copy(seen, stream):
        seen_copies.append((id(seen.owner), stream))
        dense = arrays.view(convert("cupy", np.ascontiguousarray(host_memory(seen.owner))), "copy")
        dense.dtype = seen.dtype
        return dense

    monkeypatch.setattr(arrays, "unit_stride", copy)
    return seen_copies


def on_host(grad):
    return None if grad is None else host_memory(grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("extra", ["none", "state", "seq_idx"])
@pytest.mark.parametrize("width", [1, 4])
def test_parity(rng, launcher, layout, dtype, extra, width):
    given = case(
        rng, (2, 3, 17, width), dtype=dtype, layout=layout, with_state=extra == "state", with_seq_idx=extra == "seq_idx"
    )
    options = {"activation": "silu", "layout": layout}
    exact = Loops(given, **options)
    on = converted("cupy", given)
    y = depthwise_conv1d(**on, **options, return_final_state=extra == "state")
    d_final = {}
    if extra == "state":
        y, final = y
        assert np.array_equal(host_memory(final), exact.final_state())
        d_final = {"d_final_state": random(rng, final.shape, dtype)}
    assert str(y.dtype) == dtype
    assert agreement("y", host_memory(y), exact.outputs(), dtype).ok
    dy = random(rng, y.shape, dtype)
    grads = depthwise_conv1d_vjp(convert("cupy", dy), **on, **options, **converted("cupy", d_final))
    wanted = exact.gradients(dy, d_final.get("d_final_state"))
    for name, grad, grad64 in zip(NAMES, grads, wanted, strict=True):
        if name in given:
            assert grad.shape == given[name].shape
            assert grad.dtype == given[name].dtype
            assert agreement(name, host_memory(grad), grad64, str(grad.dtype)).ok, name
        else:
            assert grad is None
    assert [stream for _, _, stream in launcher.calls] == [CURRENT_STREAM] * 2


def test_an_update_writes_the_state_where_it_lies(rng, launcher, copied):
    for steps in (None, 2):
        x = random(rng, (2, 3) if steps is None else (2, 3, steps), "bfloat16")
        state, weight = random(rng, (5, 3, 6), "bfloat16"), random(rng, (3, 4), "float32")
        seen, rows = np.array([7, 2], np.int32), np.array([4, -1], np.int32)
        y64, state64 = updated(x, state, weight, None, "silu", seen, rows)
        base = convert("cupy", np.zeros((6, 5, 3), state.dtype))
        strided = base.transpose(1, 2, 0)
        host_memory(strided)[...] = state
        y = depthwise_conv1d_update(
            convert("cupy", x),
            strided,
            convert("cupy", weight),
            activation="silu",
            cache_seqlens=convert("cupy", seen),
            conv_state_indices=convert("cupy", rows),
            stream=77,
        )
        assert agreement("y", host_memory(y), y64, "bfloat16").ok
        assert np.array_equal(host_memory(strided), state64)
        assert launcher.calls[-1][2] == 77
    assert copied == []


def test_strides_pass_as_they_are(rng, launcher, copied):
    buffer = convert("cupy", random(rng, (4, 9, 16), "float32"))
    taps = convert("cupy", random(rng, (6, 8), "float32"))
    x, weight = buffer[::-2, 6::-3], taps[::2, ::2]
    y = depthwise_conv1d(x, weight)
    _, seen, _ = launcher.calls[-1]
    assert (seen.ptr, seen.strides) == (x.data.ptr, (-288, -48, 1))
    exact = Loops({"x": host_memory(x), "weight": host_memory(weight)})
    assert agreement("y", host_memory(y), exact.outputs(), "float32").ok
    assert copied == []


def test_gaps_along_the_last_axis_are_copied_once(rng, launcher, copied):
    given = case(rng, with_seq_idx=True)
    dy = random(rng, (2, 3, 16), "float32")
    dense = converted("cupy", {**given, "dy": dy})
    whole = depthwise_conv1d_vjp(**dense)
    for name in ("x", "dy", "seq_idx"):
        array = dy if name == "dy" else given[name]
        gapped = convert("cupy", np.repeat(array, 2, axis=-1))[..., ::2]
        grads = depthwise_conv1d_vjp(**{**dense, name: gapped})
        assert len(copied) == 1, name
        assert all(map(np.array_equal, map(on_host, grads), map(on_host, whole)))
        copied.clear()


def test_only_what_is_wanted_is_allocated_and_asked_for(rng, launcher):
    on = converted("cupy", {**case(rng, with_state=True), "dy": random(rng, (2, 3, 16), "float32")})
    grads = depthwise_conv1d_vjp(**on, wrt=("weight", "initial_state"))
    assert [name for name, grad in zip(NAMES, grads, strict=True) if grad is not None] == ["weight", "initial_state"]
    assert launcher.calls[-1][1] == DepthwiseWanted(weight=True, initial_state=True)


def test_a_state_without_points_is_not_shown_to_the_kernels(rng, launcher):
    on = converted("cupy", {**case(rng, (2, 3, 16, 1), with_state=True)})
    y, final = depthwise_conv1d(**on, return_final_state=True)
    assert final.shape == (2, 3, 0)
    grads = depthwise_conv1d_vjp(y, **on, d_final_state=final)
    assert grads.initial_state.shape == (2, 3, 0)
    calls = len(launcher.calls)
    assert depthwise_conv1d_vjp(y, **on, wrt="initial_state").initial_state.shape == (2, 3, 0)
    assert len(launcher.calls) == calls


def test_an_empty_batch_launches_nothing_and_zeroes_the_sums(rng, launcher, monkeypatch):
    zeroed = []
    runtime = pytest.importorskip("cupy").cuda.runtime
    monkeypatch.setattr(runtime, "memsetAsync", lambda *arguments: zeroed.append(arguments))
    on = converted("cupy", case(rng, (0, 3, 16, 4), with_state=True))
    y, final = depthwise_conv1d(**on, return_final_state=True)
    assert (y.shape, final.shape) == ((0, 3, 16), (0, 3, 3))
    grads = depthwise_conv1d_vjp(y, **on, stream=77)
    assert zeroed == [(grad.data.ptr, 0, grad.nbytes, 77) for grad in (grads.weight, grads.bias)]
    assert depthwise_conv1d_update(on["x"], convert("cupy", np.zeros((0, 3, 4), np.float32)), on["weight"]).size == 0
    assert launcher.calls == []


def test_the_gpu_is_asked_once_whether_it_can_and_nothing_allocated_where_it_cannot(rng, launcher, monkeypatch):
    on = converted("cupy", case(rng))
    for _ in range(2):
        depthwise_conv1d(**on)
    assert len(launcher.checked) == 1

    def refuse(*_):
        raise UnsupportedDeviceError("too old")

    monkeypatch.setattr(launcher, "check", refuse)
    monkeypatch.setattr(arrays, "empty", lambda *_: pytest.fail("something was allocated"))
    for _ in range(2):
        with pytest.raises(UnsupportedDeviceError):
            depthwise_conv1d(**on, padding="same")


def test_another_device_is_made_current(launcher, monkeypatch):
    entered = []

    class Device:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            entered.append("left")

    monkeypatch.setattr(arrays, "use_device", Device)
    with cupy_on_host(device=1):
        depthwise_conv1d(*(convert("cupy", np.ones(shape, np.float32)) for shape in ((2, 3, 16), (3, 4))))
    assert entered == [1, "left"]


def test_a_capture_is_refused_where_memory_would_be_taken(rng, launcher):
    on = converted("cupy", case(rng))
    dy = convert("cupy", random(rng, (2, 3, 16), "float32"))
    gapped = convert("cupy", random(rng, (2, 3, 32), "float32"))[..., ::2]
    with pytest.raises(InvalidArgumentError, match="captured"):
        depthwise_conv1d(**{**on, "x": gapped}, stream=CAPTURED_STREAM)
    for options in ({}, {"wrt": "bias"}, {"wrt": "x", "activation": "silu"}):
        with pytest.raises(InvalidArgumentError, match="captured"):
            depthwise_conv1d_vjp(dy, **on, **options, stream=CAPTURED_STREAM)
    assert launcher.calls == []
    depthwise_conv1d(**on, activation="silu", stream=CAPTURED_STREAM)
    depthwise_conv1d_vjp(dy, **on, wrt="x", stream=CAPTURED_STREAM)
    state = convert("cupy", np.zeros((2, 3, 4), np.float32))
    depthwise_conv1d_update(gapped[..., :1], state, on["weight"], stream=CAPTURED_STREAM)
    assert len(launcher.calls) == 3


@pytest.fixture
def read_as(monkeypatch):
    """Let views say that their arrays are of another framework, or borrowed."""
    read = arrays.view

    def change(framework=None, borrowed=()):
        def view(obj, name, stream=None):
            seen = read(obj, name, stream)
            seen.framework = framework or seen.framework
            seen.is_borrowed = name in borrowed
            return seen

        monkeypatch.setattr(arrays, "view", view)

    return change


def test_borrowed_arrays_are_kept_until_the_kernels_are_done(rng, launcher, monkeypatch, read_as):
    kept = []
    monkeypatch.setattr(arrays, "keep_alive", lambda *arguments: kept.append(arguments))
    on = converted("cupy", case(rng))
    depthwise_conv1d(**on)
    assert kept == []
    read_as(borrowed=("weight",))
    depthwise_conv1d(**on)
    ((owners, device, stream),) = kept
    assert [id(owner) for owner in owners] == [id(on[name]) for name in ("x", "weight", "bias")]
    assert (device, stream) == (0, CURRENT_STREAM)


def test_a_stream_that_is_given_is_told_to_torch(rng, launcher, monkeypatch, read_as):
    told, allocate = [], arrays.empty
    monkeypatch.setattr(arrays, "record_use", lambda owners, *rest: told.append(([id(o) for o in owners], *rest)))
    monkeypatch.setattr(arrays, "mark_written", lambda _: None)

    def empty(like, *rest):
        like.framework = "cupy"
        made = allocate(like, *rest)
        like.framework = "torch"
        return made

    monkeypatch.setattr(arrays, "empty", empty)
    on = converted("cupy", case(rng))
    read_as("torch")
    y = depthwise_conv1d(**on, stream=77)
    given = [id(on[name]) for name in ("x", "weight", "bias")]
    assert told.pop() == ([*given, id(y), id(None)], 0, 77)
    grads = depthwise_conv1d_vjp(y, **on, stream=77)
    assert told.pop() == ([*given, id(y), *map(id, grads)], 0, 77)


def test_results_of_jax_arrays_are_handed_over(rng, launcher, monkeypatch, read_as):
    handed = []

    def hand_over(result, like, stream):
        handed.append(result)
        return ("handed over", len(handed), stream)

    monkeypatch.setattr(arrays, "hand_over", hand_over)
    on = converted("cupy", case(rng))
    read_as("jax")
    pair = depthwise_conv1d(**on, return_final_state=True)
    assert pair == (("handed over", 1, CURRENT_STREAM), ("handed over", 2, CURRENT_STREAM))
    grads = depthwise_conv1d_vjp(convert("cupy", np.ones((2, 3, 16), np.float32)), **on, wrt=("weight", "x"))
    assert grads == DepthwiseGradients(x=("handed over", 3, CURRENT_STREAM), weight=("handed over", 4, CURRENT_STREAM))
    assert [result.shape for result in handed] == [(2, 3, 16), (2, 3, 3), (2, 3, 16), (3, 4)]
