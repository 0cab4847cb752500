"""Depthwise convolutions on a real GPU: every framework, layout and dtype, large grids, graphs, equal bits.

What is exact here is computed on the CPU in float64, which test_depthwise_cpu.py compares with sums tap by tap.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from depthwise_cases import NAMES, agreement, case, packed, random, updated
from test_frameworks_gpu import content, on_gpu

from fftconv_cupy import depthwise_conv1d, depthwise_conv1d_update, depthwise_conv1d_vjp
from fftconv_cupy.problem import DTYPES

pytestmark = pytest.mark.gpu

FRAMEWORKS = ("cupy", "torch", "jax")
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 127, 128)


def wide(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the same numbers in float64; indices are left as they are."""
    return {name: a if a.dtype == np.int32 else a.astype(np.float64) for name, a in arrays.items()}


def put(framework: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: on_gpu(framework, array) for name, array in arrays.items()}


def dtype_of(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def check(rng, framework: str, arrays: dict[str, Any], **options: Any) -> None:
    """Compare output, final state and every gradient with float64."""
    exact, on = wide(arrays), put(framework, arrays)
    dtype = dtype_of(arrays["x"])
    with_state = "initial_state" in arrays
    y, y64 = (depthwise_conv1d(**a, **options, return_final_state=with_state) for a in (on, exact))
    cotangents = {}
    if with_state:
        (y, final), (y64, final64) = y, y64
        assert np.array_equal(content(final), final64)
        cotangents["d_final_state"] = random(rng, final64.shape, dtype)
    assert type(y) is type(on["x"])
    assert dtype_of(y) == dtype
    found = agreement("y", content(y), y64, dtype)
    assert found.ok, found
    cotangents["dy"] = random(rng, y64.shape, dtype)
    grads = depthwise_conv1d_vjp(**put(framework, cotangents), **on, **options)
    wanted = depthwise_conv1d_vjp(**wide(cotangents), **exact, **options)
    for name, grad, grad64 in zip(NAMES, grads, wanted, strict=True):
        if name in arrays:
            assert dtype_of(grad) == str(arrays[name].dtype)
            found = agreement(name, content(grad), grad64, str(arrays[name].dtype))
            assert found.ok, (name, found)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity(rng, framework, layout, dtype):
    for number, (sizes, padding) in enumerate(
        (
            ((3, 5, 33, 4), "causal"),
            ((2, 64, 300, 3), "same"),
            ((1, 7, 1, 2), 1),
            ((2, 24, 1000, 5), 4),
            ((2, 16, 257, 128), "causal"),
        )
    ):
        kinds = {"weight_dtype": DTYPES[number % 3], "bias_dtype": (None, *DTYPES)[number % 4]}
        arrays = case(rng, sizes, dtype=dtype, layout=layout, **kinds)
        check(rng, framework, arrays, padding=padding, layout=layout, activation=(None, "silu")[number % 2])


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_and_odd_sizes(rng, width, layout):
    for number, (channels, seqlen) in enumerate(((1, 1), (33, 17), (64, 1023), (200, 4096), (17, 2))):
        for dtype, activation in (("bfloat16", "silu"), ("float16", None), ("float32", "silu"))[number % 3 :]:
            arrays = case(rng, (2, channels, seqlen, width), dtype=dtype, layout=layout)
            check(rng, "cupy", arrays, layout=layout, activation=activation)
            padding = max(number, (width - seqlen + 1) // 2)
            check(rng, "cupy", arrays, layout=layout, activation=activation, padding=padding)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("width", WIDTHS)
def test_states_and_packed_sequences(rng, width, layout):
    for dtype, activation in itertools.product(("float16", "float32"), (None, "silu")):
        for seqlen in (1, 5, 130, 1000):
            arrays = case(rng, (2, 24, seqlen, width), dtype=dtype, layout=layout, with_state=True)
            check(rng, "cupy", arrays, layout=layout, activation=activation)
            del arrays["initial_state"]
            check(rng, "cupy", arrays | {"seq_idx": packed(rng, 2, seqlen)}, layout=layout, activation=activation)


@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_updates(rng, framework):
    for steps, width, size, is_ring, is_mapped in itertools.product(
        (None, 1, 3, 9), (1, 2, 4, 64), (63, 64, 70), (False, True), (False, True)
    ):
        dtype = DTYPES[(width + size) % 3]
        arrays = {
            "x": random(rng, (3, 40) if steps is None else (3, 40, steps), dtype),
            "state": random(rng, (6 if is_mapped else 3, 40, size), dtype),
            "weight": random(rng, (40, width), "float32"),
            "bias": random(rng, (40,), dtype),
        }
        if is_ring:
            arrays["cache_seqlens"] = np.array([0, 5, 12345], np.int32)
        if is_mapped:
            arrays["conv_state_indices"] = np.array([5, -1, 2], np.int32)
        y64, state64 = updated(**arrays, activation="silu")
        on = put(framework, arrays)
        y = depthwise_conv1d_update(**on, activation="silu")
        assert agreement("y", content(y), y64, dtype).ok, (steps, width, size, is_ring, is_mapped)
        assert np.array_equal(content(on["state"]), state64), (steps, width, size, is_ring, is_mapped)


def test_an_index_past_the_state_gives_nan_and_touches_no_state(rng):
    state = random(rng, (4, 8, 3), "float32")
    on = on_gpu("cupy", state)
    y = depthwise_conv1d_update(
        on_gpu("cupy", np.ones((2, 8), np.float32)),
        on,
        on_gpu("cupy", np.ones((8, 4), np.float32)),
        conv_state_indices=on_gpu("cupy", np.array([4, 1 << 30], np.int32)),
    )
    assert np.isnan(content(y)).all()
    assert np.array_equal(content(on), state)


def test_strides_and_misaligned_addresses(rng):
    buffer = random(rng, (5, 40, 130), "float16")
    on = on_gpu("cupy", buffer)
    weights = random(rng, (40, 8), "float32")
    on_weights = on_gpu("cupy", weights)
    for cut, layout, taps in (
        (np.s_[::2, ::3, 1:], "BHL", np.s_[::3, ::2]),
        (np.s_[::-1, 3:, 2:99], "BHL", np.s_[3:, 3:7]),
        (np.s_[1:, ::2, :40], "BLH", np.s_[:, 1::2]),
        (np.s_[:, :, 5:45], "BLH", np.s_[::-1, :3]),
        (np.s_[:, :, 1::2], "BHL", np.s_[:, :4]),
    ):
        for name, padding in itertools.product(("float16", "float32"), ("causal", "same")):
            x, weight = buffer[cut].astype(name), weights[taps]
            on_x = on.astype(name)[cut]
            options = {"layout": layout, "padding": padding, "activation": "silu"}
            y64 = depthwise_conv1d(x.astype(np.float64), weight.astype(np.float64), **options)
            y = depthwise_conv1d(on_x, on_weights[taps], **options)
            assert agreement("y", content(y), y64, name).ok
            grads = depthwise_conv1d_vjp(y, on_x, on_weights[taps], **options)
            wanted = depthwise_conv1d_vjp(content(y), x.astype(np.float64), weight.astype(np.float64), **options)
            assert agreement("x", content(grads.x), wanted.x, name).ok
            assert agreement("weight", content(grads.weight), wanted.weight, "float32").ok


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("sizes", [(70000, 3, 5, 4), (2, 70001, 9, 4), (1, 1, 300001, 7), (70000, 1, 1, 2)])
def test_grids_past_65535(rng, sizes, layout):
    arrays = case(rng, sizes, dtype="float16", layout=layout)
    check(rng, "cupy", arrays, layout=layout)
    check(rng, "cupy", arrays, layout=layout, activation="silu")


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_nothing_is_written_beside_the_results(rng, layout):
    import cupy

    arrays = case(rng, (2, 33, 129, 5), dtype="float16", layout=layout, with_state=True)
    dy = random(rng, arrays["x"].shape, "float16")
    on, on_dy = put("cupy", arrays), on_gpu("cupy", dy)
    expected = depthwise_conv1d(**on, layout=layout).get()
    before = cupy.cuda.get_allocator()

    def with_canaries(size: int) -> Any:
        pointer = before(size + 2048)
        cupy.cuda.runtime.memset(pointer.ptr, 0x5A, size + 2048)
        guarded.append((pointer, size))
        return pointer + 1024

    guarded: list[Any] = []
    cupy.cuda.set_allocator(with_canaries)
    try:
        y, state = depthwise_conv1d(**on, layout=layout, return_final_state=True)
        grads = depthwise_conv1d_vjp(on_dy, **on, layout=layout, activation="silu", d_final_state=state)
        cupy.cuda.Device().synchronize()
    finally:
        cupy.cuda.set_allocator(before)
    assert np.array_equal(y.get(), expected)
    assert all(grad is not None for grad in grads)
    for pointer, size in guarded:
        whole = cupy.ndarray((size + 2048,), np.uint8, pointer).get()
        assert (whole[:1024] == 0x5A).all()
        assert (whole[1024 + size :] == 0x5A).all()


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("width", [4, 64])
def test_ten_calls_give_the_same_bits(rng, layout, width):
    arrays = case(rng, (8, 96, 1031, width), dtype="bfloat16", layout=layout)
    on = put("cupy", arrays)
    dy = on_gpu("cupy", random(rng, arrays["x"].shape, "bfloat16"))
    options = {"layout": layout, "activation": "silu"}
    first = [depthwise_conv1d(**on, **options), *depthwise_conv1d_vjp(dy, **on, **options)[:3]]
    for _ in range(10):
        again = [depthwise_conv1d(**on, **options), *depthwise_conv1d_vjp(dy, **on, **options)[:3]]
        for one, other in zip(first, again, strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_value_that_is_not_finite_stays_in_its_row(rng):
    for layout, at in (("BHL", (1, 7, 500)), ("BLH", (1, 500, 7))):
        arrays = case(rng, (3, 64, 1024, 4), dtype="float16", layout=layout)
        arrays["x"][at] = np.nan
        y = content(depthwise_conv1d(**put("cupy", arrays), layout=layout))
        rows = y if layout == "BHL" else y.transpose(0, 2, 1)
        assert np.argwhere(np.isnan(rows)).tolist() == [[1, 7, t] for t in range(500, 504)]


def test_a_side_stream_and_two_streams_at_once(rng):
    import cupy

    arrays = [case(rng, (4, 64, 2048, 4), dtype="float16") for _ in range(2)]
    on = [put("cupy", a) for a in arrays]
    expected = [depthwise_conv1d(**a).get() for a in on]
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for _ in range(5):
        results = [depthwise_conv1d(**a, stream=s) for a, s in zip(on, streams, strict=True)]
        for stream in streams:
            stream.synchronize()
        for y, right in zip(results, expected, strict=True):
            assert np.array_equal(y.get(), right)


def test_a_graph_of_torch_replays_outputs_gradients_and_updates(rng):
    torch = pytest.importorskip("torch")
    arrays = case(rng, (4, 64, 500, 4), dtype="float16")
    on = put("torch", arrays)
    dy, state = torch.ones_like(on["x"]), torch.zeros(4, 64, 3, device="cuda", dtype=torch.float16)

    def work() -> list[Any]:
        grads = depthwise_conv1d_vjp(dy, **on, activation="silu")
        update = depthwise_conv1d_update(on["x"][..., :1], state, on["weight"], on["bias"])
        return [depthwise_conv1d(**on, activation="silu"), *grads[:3], update]

    work()
    state.zero_()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    on["x"].normal_()
    state.zero_()
    graph.replay()
    torch.cuda.synchronize()
    replayed = [t.clone() for t in captured]
    state.zero_()
    for one, other in zip(replayed, work(), strict=True):
        assert torch.equal(one, other)


def test_a_graph_of_cupy_holds_a_call_without_workspace(rng):
    import cupy

    on = put("cupy", case(rng, (4, 64, 500, 4), dtype="float16"))
    expected = depthwise_conv1d(**on, activation="silu").get()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        y = depthwise_conv1d(**on, activation="silu")
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
    assert np.array_equal(y.get(), expected)


def test_the_torch_operator_and_the_module(rng):
    torch = pytest.importorskip("torch")
    from fftconv_cupy.torch import FlashDepthWiseConv1d

    for dtype, padding, is_bhl in itertools.product((torch.float16, torch.bfloat16), (2, 4, "causal"), (True, False)):
        conv = torch.nn.Conv1d(48, 48, 5, groups=48, device="cuda")
        module = FlashDepthWiseConv1d(48, 5, padding, conv.weight, conv.bias, is_bhl, dtype=dtype)
        rows = torch.randn(3, 48, 333, device="cuda").to(dtype)
        x = (rows if is_bhl else rows.transpose(1, 2).contiguous()).clone().requires_grad_()
        x64 = rows.double().requires_grad_()
        weight, bias = (p.detach().double().requires_grad_() for p in (module.weights, module.bias))
        left = 4 if padding == "causal" else padding
        y64 = torch.nn.functional.conv1d(x64, weight[:, None], bias, padding=left, groups=48)
        y64 = y64[..., :333] if padding == "causal" else y64
        y = torch.compile(module, fullgraph=True)(x) if padding == "causal" else module(x)
        dy = torch.randn_like(y64)
        y.backward((dy if is_bhl else dy.transpose(1, 2)).to(dtype))
        y64.backward(dy.to(dtype).double())
        for result, exact in (
            (y if is_bhl else y.transpose(1, 2), y64),
            (x.grad if is_bhl else x.grad.transpose(1, 2), x64.grad),
            (module.weights.grad, weight.grad),
            (module.bias.grad, bias.grad),
        ):
            rounding = float((exact.to(dtype).double() - exact).norm() / exact.norm())
            assert float((result.double() - exact).norm() / exact.norm()) <= 1.2 * rounding + 1e-5


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_jax_under_jit_and_grad_with_its_own_streams(rng, layout):
    jax = pytest.importorskip("jax")
    fj = pytest.importorskip("fftconv_cupy.jax")
    for dtype, with_state in itertools.product(DTYPES, (False, True)):
        arrays = case(rng, (2, 40, 300, 4), dtype=dtype, layout=layout, with_state=with_state)
        if not with_state:
            arrays["seq_idx"] = packed(rng, 2, 300)
        on = put("jax", arrays)
        some = {name: a for name, a in on.items() if name != "seq_idx"}
        rest = {name: a for name, a in on.items() if name == "seq_idx"}
        options = {"layout": layout, "activation": "silu"}

        def call(some, rest=rest, options=options):
            return fj.depthwise_conv1d(**some, **rest, **options)

        y, transpose = jax.vjp(jax.jit(call), some)
        dy = random(rng, y.shape, dtype)
        (grads,) = transpose(on_gpu("jax", dy))
        y64 = depthwise_conv1d(**wide(arrays), **options)
        assert agreement("y", content(y), y64, dtype).ok
        wanted = depthwise_conv1d_vjp(dy.astype(np.float64), **wide(arrays), **options)._asdict()
        for name, grad in grads.items():
            assert agreement(name, content(grad), wanted[name], str(grad.dtype)).ok, name
        mapped = jax.jit(jax.vmap(call))(jax.tree.map(lambda a: jax.numpy.stack([a, a]), some))
        assert np.array_equal(content(mapped[1]), content(y))
    assert "xla_buffer_python_gpu_callback" in jax.jit(call).lower(some).as_text()
