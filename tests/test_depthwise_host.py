"""From the public depthwise functions down to the kernels themselves, which the host runtime runs on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from depthwise_cases import NAMES, Loops, agreement, case, packed, random, updated

pytest.importorskip("cupy")

from host_runtime.cupy_host import to_cupy, to_numpy
from kernel_runs import host_gpu

from fftconv_cupy import depthwise_conv1d, depthwise_conv1d_update, depthwise_conv1d_vjp


def put(arrays):
    return {name: to_cupy(array, array.dtype) for name, array in arrays.items()}


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("extra", ["none", "state", "seq_idx"])
def test_outputs_states_and_gradients(rng, layout, extra):
    arrays = case(rng, (2, 3, 19, 4), dtype="float16", layout=layout, with_state=extra == "state")
    if extra == "seq_idx":
        arrays["seq_idx"] = packed(rng, 2, 19)
    options = {"activation": "silu", "layout": layout, "padding": 2 if extra == "none" else "causal"}
    exact = Loops(arrays, **options)
    y64 = exact.outputs()
    dy = random(rng, y64.shape, "float16")
    with host_gpu("sm_90"):
        y = depthwise_conv1d(**put(arrays), **options, return_final_state=extra == "state")
        d_final = {}
        if extra == "state":
            y, final = y
            assert np.array_equal(to_numpy(final), exact.final_state())
            d_final = {"d_final_state": random(rng, final.shape, "float16")}
        assert agreement("y", to_numpy(y), y64, "float16").ok
        grads = depthwise_conv1d_vjp(to_cupy(dy, dy.dtype), **put(arrays), **options, **put(d_final))
        for name, grad, grad64 in zip(NAMES, grads, exact.gradients(dy, d_final.get("d_final_state")), strict=True):
            if name in arrays:
                assert agreement(name, to_numpy(grad), grad64, str(grad.dtype)).ok, name
            else:
                assert grad is None


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("is_ring", [False, True])
def test_updates(rng, steps, is_ring):
    arrays = {
        "x": random(rng, (3, 5) if steps is None else (3, 5, steps), "bfloat16"),
        "state": random(rng, (6, 5, 7), "bfloat16"),
        "weight": random(rng, (5, 4), "float32"),
        "conv_state_indices": np.array([5, -1, 2], np.int32),
    }
    if is_ring:
        arrays["cache_seqlens"] = np.array([0, 6, 12345], np.int32)
    y64, state64 = updated(**arrays, activation="silu")
    with host_gpu("sm_90"):
        on = put(arrays)
        y = depthwise_conv1d_update(**on, activation="silu")
        assert agreement("y", to_numpy(y), y64, "bfloat16").ok
        assert np.array_equal(to_numpy(on["state"]), state64)
