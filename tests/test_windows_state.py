"""Rows in parts: the state that one call hands to the next, and its gradients, on the CPU and on the host runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fftconv_cupy import fftconv, fftconv_vjp, numeric, prepare_filter
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError
from fftconv_cupy.readers import NUMPY_DTYPES
from fftconv_cupy.reference import fftconv_reference, fftconv_vjp_reference

_FIELDS = ("u", "k", "in_gate", "out_gate", "skip", "initial_state")


def _gpu() -> Any:
    from windows_cases import windows_gpu

    return windows_gpu(128)


def _to_gpu(values: Any) -> Any:
    from host_runtime.cupy_host import to_cupy

    return to_cupy(values)


def _from_gpu(values: Any) -> Any:
    from host_runtime.cupy_host import to_numpy

    return to_numpy(values).copy()


@pytest.fixture(params=["cpu", "kernels"])
def place(request: pytest.FixtureRequest) -> Any:
    """Return what takes arrays where the calls of a test compute, and what takes them back."""
    if request.param == "cpu":
        yield np.asarray, np.asarray
        return
    pytest.importorskip("cupy")
    with _gpu():
        yield _to_gpu, _from_gpu


def drawn(
    batch: int, channels: int, seqlen: int, filter_len: int, dtype: str, *, has_gates: bool = True
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seqlen * 1000 + filter_len)

    def rows(length: int) -> np.ndarray:
        return rng.standard_normal((batch, channels, length)).astype(NUMPY_DTYPES[dtype])

    arrays = {"u": rows(seqlen), "k": rng.standard_normal((channels, filter_len)).astype(np.float32)}
    if has_gates:
        skip = rng.standard_normal(channels).astype(np.float32)
        arrays |= {"in_gate": rows(seqlen), "out_gate": rows(seqlen), "skip": skip}
    return arrays


def part(arrays: dict[str, np.ndarray], first: int, end: int) -> dict[str, np.ndarray]:
    """Return the arguments of a call on points first .. end - 1."""
    rows = ("u", "in_gate", "out_gate")
    return {name: np.ascontiguousarray(x[..., first:end]) if name in rows else x for name, x in arrays.items()}


Place = tuple[Callable[[Any], Any], Callable[[Any], Any]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("lengths", "filter_len"),
    [((300, 301, 1, 2, 96), 65), ((7, 5, 1, 100), 30), ((50, 50), 1), ((1, 1, 1, 1), 2), ((20, 200, 3), 201)],
)
def test_parts_give_what_one_call_gives(place: Place, lengths: tuple[int, ...], filter_len: int, dtype: str) -> None:
    send, fetch = place
    arrays = drawn(2, 3, sum(lengths), filter_len, dtype)
    state, first, outputs = None, 0, []
    for length in lengths:
        arguments = {name: send(x) for name, x in part(arrays, first, first + length).items()}
        y, state = fftconv(**arguments, initial_state=state, return_final_state=True)
        outputs.append(fetch(y))
        first += length
    y64 = fftconv_reference(**arrays)
    assert numeric.compare(np.concatenate(outputs, axis=-1), y64, dtype).ok
    x = arrays["u"].astype(np.float64) * arrays["in_gate"].astype(np.float64)
    before = np.concatenate([np.zeros((2, 3, filter_len - 1)), x], axis=-1)
    expected = before[..., before.shape[-1] - filter_len + 1 :]
    assert fetch(state).dtype == np.float32
    assert fetch(state).shape == expected.shape
    assert numeric.relative_error(fetch(state), expected) < 1e-7


def test_a_final_state_alone_changes_nothing_else(place: Place) -> None:
    send, fetch = place
    arrays = {name: send(x) for name, x in drawn(2, 2, 500, 40, "float16").items()}
    y, state = fftconv(**arrays, return_final_state=True)
    assert fetch(y).tobytes() == fetch(fftconv(**arrays)).tobytes()
    zeros = send(np.zeros((2, 2, 39), np.float32))
    again, same = fftconv(**arrays, initial_state=zeros, return_final_state=True)
    assert fetch(state).tobytes() == fetch(same).tobytes()
    assert numeric.relative_error(fetch(again), fetch(y).astype(np.float64)) < 1e-3


@pytest.mark.parametrize("shape", [(70,), (2, 70), (3, 2, 70)])
def test_states_have_the_axes_of_u(place: Place, shape: tuple[int, ...]) -> None:
    send, fetch = place
    rng = np.random.default_rng(1)
    u, k = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    y, state = fftconv(send(u[..., :33].copy()), send(k), return_final_state=True)
    assert fetch(state).shape == (*shape[:-1], 8)
    rest = fftconv(send(u[..., 33:].copy()), send(k), initial_state=state)
    u64 = u[(None,) * (3 - u.ndim)]
    y64 = fftconv_reference(u64, k).reshape(shape)
    assert numeric.relative_error(np.concatenate([fetch(y), fetch(rest)], axis=-1), y64) < 1e-6


def test_a_filter_is_prepared_for_parts(place: Place) -> None:
    send, fetch = place
    arrays = drawn(2, 3, 200, 30, "float32", has_gates=False)
    for is_shared in (False, True):
        taps = arrays["k"][0] if is_shared else arrays["k"]
        k = prepare_filter(send(taps), seqlen=100, initial_state=True)
        y, state = fftconv(send(arrays["u"][..., :100].copy()), k, return_final_state=True)
        rest = fftconv(send(arrays["u"][..., 100:].copy()), k, initial_state=state)
        y64 = fftconv_reference(arrays["u"], taps)
        assert numeric.relative_error(np.concatenate([fetch(y), fetch(rest)], axis=-1), y64) < 1e-6
    plain = prepare_filter(send(arrays["k"]), seqlen=100)
    with pytest.raises(InvalidArgumentError, match="initial_state=True to prepare_filter"):
        fftconv(send(arrays["u"][..., 100:].copy()), plain, initial_state=state)


def gradients64(
    arrays: dict[str, np.ndarray], dy: np.ndarray, state: np.ndarray, d_final: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the gradients of a call with a state from those of the longer row that begins with it."""
    length = state.shape[-1]
    u, gate = arrays["u"].astype(np.float64), arrays["in_gate"].astype(np.float64)
    ones = np.ones(state.shape)
    longer = {
        "u": np.concatenate([state, u], axis=-1),
        "in_gate": np.concatenate([ones, gate], axis=-1),
        "out_gate": np.concatenate([ones, arrays["out_gate"].astype(np.float64)], axis=-1),
    }
    padded = np.concatenate([np.zeros(state.shape), dy.astype(np.float64)], axis=-1)
    grads = fftconv_vjp_reference(padded, **longer, k=arrays["k"], skip=arrays["skip"])._asdict()
    dx = np.zeros(longer["u"].shape)
    if d_final is not None:
        dx[..., dx.shape[-1] - length :] = d_final
    grads["u"] = grads["u"] + dx * longer["in_gate"]
    grads["in_gate"] = grads["in_gate"] + dx * longer["u"]
    rows = {name: grads[name][..., length:] for name in ("u", "in_gate", "out_gate")}
    return {**grads, **rows, "initial_state": grads["u"][..., :length]}


@pytest.mark.parametrize("has_final", [False, True])
@pytest.mark.parametrize(("seqlen", "filter_len"), [(300, 40), (17, 60), (1, 2), (500, 201), (40, 1)])
def test_gradients(place: Place, seqlen: int, filter_len: int, has_final: bool) -> None:
    send, fetch = place
    arrays = drawn(2, 2, seqlen, filter_len, "float32")
    rng = np.random.default_rng(2)
    dy = rng.standard_normal(arrays["u"].shape).astype(np.float32)
    shape = (2, 2, filter_len - 1)
    state = rng.standard_normal(shape).astype(np.float32)
    d_final = rng.standard_normal(shape).astype(np.float32) if has_final else None
    known = {"initial_state": send(state), "d_final_state": None if d_final is None else send(d_final)}
    sent = {name: send(x) for name, x in arrays.items()}
    grads = fftconv_vjp(send(dy), **sent, **known)
    assert grads._fields == _FIELDS
    expected = gradients64(arrays, dy, state, d_final)
    for name in _FIELDS:
        allowed = 1e-5 if name in ("k", "skip") else 1e-6
        assert numeric.relative_error(fetch(getattr(grads, name)), expected[name]) < allowed, name
    for name in ("u", "k", "initial_state"):
        one = fftconv_vjp(send(dy), **sent, **known, wrt=name)
        assert [field for field in _FIELDS if getattr(one, field) is not None] == [name]
        assert numeric.relative_error(fetch(getattr(one, name)), expected[name]) < 1e-5


def test_the_gradient_of_a_final_state_needs_no_initial_one(place: Place) -> None:
    send, fetch = place
    arrays = drawn(2, 2, 300, 40, "float32")
    rng = np.random.default_rng(3)
    dy = rng.standard_normal(arrays["u"].shape).astype(np.float32)
    d_final = rng.standard_normal((2, 2, 39)).astype(np.float32)
    grads = fftconv_vjp(send(dy), **{name: send(x) for name, x in arrays.items()}, d_final_state=send(d_final))
    assert grads._fields == _FIELDS[:-1]
    expected = gradients64(arrays, dy, np.zeros(d_final.shape), d_final)
    assert numeric.relative_error(fetch(grads.u), expected["u"]) < 1e-6
    assert numeric.relative_error(fetch(grads.k), expected["k"]) < 1e-5


def test_float64_states_of_float64_rows() -> None:
    arrays = {name: x.astype(np.float64) for name, x in drawn(1, 2, 90, 12, "float32").items()}
    y, state = fftconv(**part(arrays, 0, 40), return_final_state=True)
    assert state.dtype == np.float64
    rest = fftconv(**part(arrays, 40, 90), initial_state=state)
    assert numeric.relative_error(np.concatenate([y, rest], axis=-1), fftconv_reference(**arrays)) < 1e-13


def test_states_of_no_rows(place: Place) -> None:
    send, fetch = place
    u, k = np.zeros((0, 2, 50), np.float32), np.ones((2, 5), np.float32)
    y, state = fftconv(send(u), send(k), initial_state=send(np.zeros((0, 2, 4), np.float32)), return_final_state=True)
    assert (fetch(y).shape, fetch(state).shape) == ((0, 2, 50), (0, 2, 4))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"mode": "circular"}, InvalidArgumentError, "initial_state: got a call in mode 'circular'"),
        ({"initial_state": (2, 2, 5)}, InvalidArgumentError, "initial_state.shape: got (2, 2, 5)"),
        ({"initial_state": (2, 4)}, InvalidArgumentError, "initial_state.shape: got (2, 4)"),
        ({"initial_state": np.zeros((2, 2, 4))}, InvalidTypeError, "initial_state.dtype: got float64"),
        ({"initial_state": None, "mode": "same"}, InvalidArgumentError, "return_final_state: got a call in mode"),
        ({"k": 16385}, InvalidArgumentError, "initial_state: got a filter with K = 16385; allowed: K up to 16384"),
    ],
)
def test_what_has_no_state_is_refused(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    given: dict[str, Any] = {"initial_state": (2, 2, 4), "k": 5} | changes
    if isinstance(given["initial_state"], tuple):
        given["initial_state"] = np.zeros(given["initial_state"], np.float32)
    given["k"] = np.ones((2, given["k"]), np.float32)
    with pytest.raises(error) as caught:
        fftconv(np.ones((2, 2, 30), np.float32), **given, return_final_state=True)
    assert says in str(caught.value)


def test_states_come_from_the_framework_of_the_rows() -> None:
    torch = pytest.importorskip("torch")
    u, k, state = torch.ones(2, 2, 30), torch.ones(2, 5), torch.zeros(2, 2, 4)
    y, final = fftconv(u, k, initial_state=state, return_final_state=True)
    assert isinstance(final, torch.Tensor)
    assert (final == 1).all()
    with contextlib.suppress(ImportError):
        import jax.numpy as jnp

        y, final = fftconv(jnp.ones((2, 2, 30)), jnp.ones((2, 5)), return_final_state=True)
        assert type(final) is type(y)


def test_what_was_warmed_up_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    from fftconv_cupy import launch_windows, launchers, warmup

    with _gpu():
        flags = {"in_gate": True, "out_gate": True, "skip": True, "initial_state": True}
        lines = warmup(2, 3, 50, 9, dtype="float32", **flags, wrt=("u", "k", "in_gate", "out_gate", "skip"))
        entries = {line.split()[2].rstrip(":") for line in lines}
        assert {"fftconv_windows", "fftconv_windows_bwd", "fftconv_filter", "fftconv_state"} <= entries
        for module in (launchers, launch_windows):
            monkeypatch.setattr(module, "load_kernel", None)
        arrays = {name: _to_gpu(x) for name, x in drawn(2, 3, 50, 9, "float32").items()}
        state, dy = _to_gpu(np.ones((2, 3, 8), np.float32)), _to_gpu(np.ones((2, 3, 50), np.float32))
        fftconv(**arrays, initial_state=state, return_final_state=True)
        fftconv_vjp(dy, **arrays, initial_state=state)


def test_a_final_state_alone_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    from fftconv_cupy import launch_windows, launchers, warmup

    with _gpu():
        lines = warmup(2, 3, 50, 40, dtype="float32", return_final_state=True)
        assert "fftconv_state:" in {line.split()[2] for line in lines}
        for module in (launchers, launch_windows):
            monkeypatch.setattr(module, "load_kernel", None)
        arrays = {name: _to_gpu(x) for name, x in drawn(2, 3, 50, 40, "float32", has_gates=False).items()}
        fftconv(**arrays, return_final_state=True)
    with pytest.raises(InvalidArgumentError, match="return_final_state: got a call in mode 'same'"):
        warmup(2, 3, 50, 40, mode="same", return_final_state=True, archs=["sm_90"])


@pytest.mark.parametrize("names", [(), ("k",), ("u", "k")])
def test_the_workspace_that_is_told_is_enough_for_the_gradient_of_a_state(names: tuple[str, ...]) -> None:
    pytest.importorskip("cupy")
    from fftconv_cupy import gpu
    from fftconv_cupy.arrays import view
    from fftconv_cupy.problem import Gradients, States, Wanted, make_problem

    arrays = drawn(2, 3, 50, 9, "float32", has_gates=False)
    rng = np.random.default_rng(0)
    dy, state = (rng.standard_normal((2, 3, n)).astype(np.float32) for n in (50, 8))
    exact = fftconv_vjp(
        *(x.astype(np.float64) for x in (dy, arrays["u"], arrays["k"])), initial_state=state.astype(np.float64)
    )
    problem = make_problem("causal", batch=2, channels=3, seqlen=50, filter_len=9, dtype="float32", initial_state=True)
    with _gpu():
        wanted = Wanted(**dict.fromkeys(names, True))
        # Memory that ends at an inaccessible page, as do the arrays.
        workspace = _to_gpu(np.zeros(gpu.workspace_bytes(problem, 0, wanted) // 4, np.float32))
        found = {name: _to_gpu(np.zeros_like(arrays[name])) for name in names}
        d_state = _to_gpu(np.zeros_like(state))
        inputs = [view(_to_gpu(x), "x") for x in (dy, arrays["u"], arrays["k"])]
        grads = Gradients(**{name: view(x, name) for name, x in found.items()})
        states = States(view(_to_gpu(state), "s"), None, view(d_state, "d"))
        known = {"workspace": view(workspace, "w"), "states": states}
        gpu.run_vjp(problem, wanted, *inputs, None, None, None, grads, 0, **known)
        for name, x in {**found, "initial_state": d_state}.items():
            assert numeric.relative_error(_from_gpu(x), getattr(exact, name)) < 1e-5, name
