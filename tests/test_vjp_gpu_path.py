"""The way of `fftconv_vjp` on GPU arrays, walked without a GPU: see test_gpu_path.py, whose stand-in this extends."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import test_gpu_path
from frameworks import convert, host_memory
from test_gpu_path import CAPTURED_STREAM, CURRENT_STREAM, NumpyLauncher, memory_of, rows
from vjp_cases import NAMES, agreement, converted, expected, vjp_case

from fftconv_cupy import Gradients, arrays, execute, fftconv_vjp, gradients, numpy_backend, prepare_filter
from fftconv_cupy.errors import InvalidArgumentError, UnsupportedProblemError
from fftconv_cupy.filters import FilterSpectrum
from fftconv_cupy.problem import DTYPES, MODES, Wanted

host_gpu = test_gpu_path.launcher


class VjpLauncher(NumpyLauncher):
    """Computes gradients too at the addresses that `launch` would give to the kernels."""

    def __init__(self):
        super().__init__()
        self.known = []

    def check_vjp(self, problem, wanted, device):
        self.checked.append((problem, wanted, device))

    def run_vjp(self, problem, wanted, dy, u, filt, in_gate, out_gate, skip, grads, stream, **known):
        self.calls.append((problem, wanted, stream))
        self.known.append(known["rows"])
        assert [grad is not None for grad in grads] == list(wanted)
        for seen in (dy, u, in_gate, out_gate, skip, filt, *grads):
            if seen is not None and not isinstance(seen, FilterSpectrum):
                assert seen.shape[-1] == 1 or seen.strides[-1] == 1  # what the kernels rely on
        for grad in grads:
            assert grad is None or grad.strides == arrays.contiguous_strides(tuple(grad.shape))
        numpy_backend.vjp(
            problem,
            *(rows(memory_of(seen)) for seen in (dy, u)),
            self.spectra[filt.ptr] if isinstance(filt, FilterSpectrum) else memory_of(filt),
            *(rows(memory_of(seen)) for seen in (in_gate, out_gate)),
            memory_of(skip),
            Gradients(
                *(
                    memory_of(grad) if name in ("k", "skip") else rows(memory_of(grad))
                    for name, grad in zip(NAMES, grads, strict=True)
                )
            ),
        )
        return wanted

    def vjp_runner(self, problem, device):
        return self.run_vjp


@pytest.fixture
def launcher(host_gpu, monkeypatch):
    stands_in = VjpLauncher()
    monkeypatch.setattr(execute, "_launch", stands_in)
    # Memory for a stream that is not CuPy's current one comes out of the same host memory.
    monkeypatch.setattr(arrays, "cupy_stream", lambda *_: contextlib.nullcontext())
    return stands_in


def on_host(grad):
    return None if grad is None else host_memory(grad)


def same(one, two):
    return all(map(np.array_equal, map(on_host, one), map(on_host, two)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_parity(rng, launcher, mode, dtype):
    for u_shape, k_shape in (((2, 3, 16), (3, 5)), ((2, 3, 16), (9,)), ((3, 33), (3, 40)), ((21,), (4,))):
        case = vjp_case(rng, u_shape, k_shape, mode, dtype)
        grads = fftconv_vjp(**converted("cupy", case), mode=mode)
        for name, grad, grad64 in zip(NAMES, grads, expected(case, mode=mode), strict=True):
            assert grad.shape == case[name].shape
            assert grad.dtype == case[name].dtype
            found = agreement(name, host_memory(grad), grad64, str(grad.dtype))
            assert found.ok, (name, found)


def test_only_what_is_wanted_is_allocated_and_asked_for(rng, launcher):
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32"))
    whole = fftconv_vjp(**case)
    grads = fftconv_vjp(**case, wrt=("skip", "u"))
    assert [name for name, grad in zip(NAMES, grads, strict=True) if grad is not None] == ["u", "skip"]
    assert launcher.calls[-1][1] == Wanted(u=True, skip=True)
    assert np.array_equal(on_host(grads.u), on_host(whole.u))
    assert np.array_equal(on_host(grads.skip), on_host(whole.skip))


def test_gapped_inputs_are_copied_once_and_the_rest_is_not(rng, launcher, monkeypatch):
    copied = []

    def copy(seen, stream):
        copied.append((id(seen.owner), stream))
        return arrays.view(convert("cupy", np.ascontiguousarray(host_memory(seen.owner))), "copy")

    monkeypatch.setattr(arrays, "unit_stride", copy)
    case = vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32")
    dense = converted("cupy", case)
    whole = fftconv_vjp(**dense)
    assert copied == []
    for name in case:
        gapped = convert("cupy", np.repeat(case[name], 2, axis=-1))[..., ::2]
        assert same(fftconv_vjp(**{**dense, name: gapped}), whole)
        assert copied == [(id(gapped), CURRENT_STREAM)], name
        copied.clear()


def test_a_prepared_filter_is_used_and_gets_no_gradient(rng, launcher):
    for mode in MODES:
        case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), mode, "float32"))
        whole = fftconv_vjp(**case, mode=mode)
        grads = fftconv_vjp(**{**case, "k": prepare_filter(case["k"], seqlen=16, mode=mode)}, mode=mode)
        assert grads.k is None
        assert same(grads._replace(k=whole.k), whole)


def test_an_empty_batch_launches_nothing_and_zeroes_the_sums(rng, launcher, monkeypatch):
    zeroed = []

    def memset(ptr, value, size, stream):
        zeroed.append((ptr, value, size, stream))

    monkeypatch.setattr(pytest.importorskip("cupy").cuda.runtime, "memsetAsync", memset)
    for k_shape in ((3, 5), (5,)):
        case = converted("cupy", vjp_case(rng, (0, 3, 16), k_shape, "causal", "float16"))
        grads = fftconv_vjp(**case, stream=77)
        assert all(getattr(grads, name).shape == case[name].shape for name in NAMES)
        sums = (grads.k, grads.skip)
        assert zeroed == [(grad.data.ptr, 0, grad.nbytes, 77) for grad in sums]
        zeroed.clear()
    assert launcher.calls == []


def test_the_gpu_is_asked_once_whether_it_can(rng, launcher, monkeypatch):
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32"))
    for _ in range(2):
        fftconv_vjp(**case)
        fftconv_vjp(**case, wrt="u")
    assert [wanted for _, wanted, _ in launcher.checked] == [Wanted(*(True,) * 5), Wanted(u=True)]

    def too_large(*_):
        raise UnsupportedProblemError("too large")

    monkeypatch.setattr(launcher, "check_vjp", too_large)
    monkeypatch.setattr(arrays, "empty", lambda *_: pytest.fail("something was allocated"))
    for _ in range(2):
        with pytest.raises(UnsupportedProblemError):
            fftconv_vjp(**case, wrt="k")


def test_what_a_call_found_out_serves_those_of_its_signature(rng, launcher):
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32"))
    for wrt in (None, None, "u", "u", None):
        fftconv_vjp(**case, wrt=wrt)
    everything = Wanted(*(True,) * 5)
    assert launcher.known == [None, everything, None, Wanted(u=True), everything]


def test_the_stream_that_is_given_is_used(rng, launcher):
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32"))
    fftconv_vjp(**case)
    fftconv_vjp(**case, stream=77)
    assert [stream for _, _, stream in launcher.calls] == [CURRENT_STREAM, 77]


def test_a_capture_is_refused_where_workspace_would_be_taken(rng, launcher):
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32"))
    prepared = {**case, "k": prepare_filter(case["k"], seqlen=16)}
    gapped = convert("cupy", np.ones((2, 3, 32), np.float32))[..., ::2]
    for arguments in (case, {**prepared, "wrt": "skip"}, prepared, {**prepared, "dy": gapped, "wrt": "u"}):
        with pytest.raises(InvalidArgumentError, match="captured"):
            fftconv_vjp(**arguments, stream=CAPTURED_STREAM)
    assert launcher.calls == []
    fftconv_vjp(**prepared, wrt=("u", "in_gate", "out_gate"), stream=CAPTURED_STREAM)
    assert launcher.calls[-1][2] == CAPTURED_STREAM


def test_borrowed_arrays_are_kept_until_the_kernels_are_done(rng, launcher, monkeypatch):
    kept = []
    read = arrays.view

    def borrow(obj, name, stream=None):
        seen = read(obj, name, stream)
        seen.is_borrowed = name == "dy"
        return seen

    monkeypatch.setattr(arrays, "keep_alive", lambda *arguments: kept.append(arguments))
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32", flags=1))
    fftconv_vjp(**case)
    assert kept == []
    monkeypatch.setattr(gradients, "view", borrow)
    fftconv_vjp(**case)
    ((owners, device, stream),) = kept
    assert [id(owner) for owner in owners] == [id(case[name]) for name in ("u", "k", "in_gate", "dy")]
    assert (device, stream) == (0, CURRENT_STREAM)


def test_a_stream_that_is_given_is_told_to_torch(rng, launcher, monkeypatch):
    told = []
    monkeypatch.setattr(arrays, "record_use", lambda owners, *rest: told.append(([id(o) for o in owners], *rest)))
    read, allocate = arrays.view, arrays.empty

    def as_torch(obj, name, stream=None):
        seen = read(obj, name, stream)
        seen.framework = "torch"
        return seen

    def empty(like, shape, dtype, stream):
        like.framework = "cupy"
        made = allocate(like, shape, dtype, stream)
        like.framework = "torch"
        return made

    monkeypatch.setattr(gradients, "view", as_torch)
    monkeypatch.setattr(arrays, "empty", empty)
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32", flags=4))
    grads = fftconv_vjp(**case, stream=77)
    inputs = [id(case[name]) for name in ("u", "k", "skip", "dy")]
    assert told == [([*inputs, *map(id, grads)], 0, 77)]


def test_each_gradient_of_jax_arrays_is_handed_over(rng, launcher, monkeypatch):
    handed = []
    read = arrays.view

    def as_jax(obj, name, stream=None):
        seen = read(obj, name, stream)
        seen.framework = "jax"
        return seen

    def hand_over(result, like, stream):
        handed.append(result)
        return ("handed over", len(handed), like.owner.shape, stream)

    monkeypatch.setattr(gradients, "view", as_jax)
    monkeypatch.setattr(arrays, "hand_over", hand_over)
    case = converted("cupy", vjp_case(rng, (2, 3, 16), (3, 5), "causal", "float32", flags=4))
    grads = fftconv_vjp(**case, wrt=("k", "u"))
    shapes = [((2, 3, 16), 1), ((2, 3, 16), 2)]
    assert grads == Gradients(*(("handed over", n, shape, CURRENT_STREAM) for shape, n in shapes))
    assert [result.shape for result in handed] == [(2, 3, 16), (3, 5)]
