"""Depthwise calls that must be refused, generated over the three functions, frameworks, arguments and mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from bad_calls import Bad
from frameworks import CPU_FRAMEWORKS, FRAMEWORKS, World, cupy_on_host

from fftconv_cupy import depthwise_conv1d, depthwise_conv1d_update, depthwise_conv1d_vjp
from fftconv_cupy.errors import FFTConvError, InvalidArgumentError, InvalidTypeError

FORWARD, VJP, UPDATE = depthwise_conv1d, depthwise_conv1d_vjp, depthwise_conv1d_update
# Of good calls with B, D, L, K = 2, 3, 16, 4 and W = 5.
SHAPES = {
    "x": (2, 3, 16),
    "weight": (3, 4),
    "bias": (3,),
    "initial_state": (2, 3, 3),
    "seq_idx": (2, 16),
    "dy": (2, 3, 16),
    "d_final_state": (2, 3, 3),
    "state": (2, 3, 5),
    "cache_seqlens": (2,),
    "conv_state_indices": (2,),
}
ARGUMENTS = {
    FORWARD: ("x", "weight", "bias", "initial_state"),
    VJP: ("dy", "x", "weight", "bias", "initial_state", "d_final_state"),
    UPDATE: ("x", "state", "weight", "bias", "cache_seqlens", "conv_state_indices"),
}
INDICES = ("seq_idx", "cache_seqlens", "conv_state_indices")


def good(world: World, call: Callable[..., Any], **changes: Any) -> dict[str, Any]:
    """Return the arguments of a good call with some changed: (shape, dtype) or a shape becomes an array."""
    arguments: dict[str, Any] = {}
    for name in ARGUMENTS[call]:
        if name not in changes:
            arguments[name] = world.array(SHAPES[name], "int32" if name in INDICES else "float32")
    for name, given in changes.items():
        if name in SHAPES and isinstance(given, tuple):
            shape, dtype = given if given and isinstance(given[0], tuple) else (given, None)
            arguments[name] = world.array(shape, dtype or ("int32" if name in INDICES else "float32"))
        else:
            arguments[name] = given
    return arguments


def all_bad_depthwise_calls() -> list[Bad]:
    return [*_shapes(), *_dtypes(), *_no_arrays(), *_options(), *_together(), *_places(), *_names(), *_states()]


def _bad(
    name: str,
    framework: str,
    call: Callable[..., Any],
    changes: dict[str, Any],
    error: type[FFTConvError],
    what: str,
    got: str,
    do: str,
) -> Bad:
    def make(world: World) -> dict[str, Any]:
        return good(world, call, **changes)

    return Bad(f"{framework}-{call.__name__}-{name}", framework, make, error, what, got, do, call)


def _shapes() -> Iterator[Bad]:
    cases: tuple[tuple[Callable[..., Any], str, dict[str, Any], str, str], ...] = (
        (FORWARD, "x", {"x": (16,)}, "(16,), 1 axes", "Reshape x"),
        (FORWARD, "x", {"x": (3, 16)}, "(3, 16), 2 axes", "Reshape x"),
        (FORWARD, "x", {"x": (1, 2, 3, 16)}, "(1, 2, 3, 16), 4 axes", "Reshape x"),
        (FORWARD, "x", {"x": (2, 0, 16)}, "(2, 0, 16)", "at least one point"),
        (FORWARD, "x", {"x": (2, 3, 0)}, "(2, 3, 0)", "at least one point"),
        (FORWARD, "weight", {"weight": (4,)}, "(4,)", "one row of taps a channel"),
        (FORWARD, "weight", {"weight": (3, 1, 4)}, "(3, 1, 4)", "one row of taps a channel"),
        (FORWARD, "weight", {"weight": (4, 3)}, "(4, 3)", "one row of taps a channel"),
        (FORWARD, "weight", {"weight": (1, 4)}, "(1, 4)", "one row of taps a channel"),
        (FORWARD, "weight", {"weight": (3, 0)}, "(3, 0)", "at least one tap"),
        (FORWARD, "weight", {"weight": (3, 129)}, "(3, 129)", "Use fftconv for longer filters"),
        (FORWARD, "bias", {"bias": (1,)}, "(1,)", "nothing is broadcast"),
        (FORWARD, "bias", {"bias": (3, 1)}, "(3, 1)", "Pass bias of that shape"),
        (FORWARD, "bias", {"bias": ()}, "()", "Pass bias of that shape"),
        (FORWARD, "initial_state", {"initial_state": (2, 3, 4)}, "(2, 3, 4)", "Pass initial_state of that shape"),
        (
            FORWARD,
            "initial_state",
            {"initial_state": (2, 3, 3), "weight": (3, 1)},
            "(2, 3, 3)",
            "Pass initial_state of that shape",
        ),
        (FORWARD, "initial_state", {"initial_state": (1, 3, 3)}, "(1, 3, 3)", "nothing is broadcast"),
        (
            FORWARD,
            "initial_state",
            {"layout": "BLH", "weight": (16, 4), "bias": None},
            "(2, 3, 3)",
            "Pass initial_state of that shape",
        ),
        (
            FORWARD,
            "seq_idx",
            {"initial_state": None, "seq_idx": (2, 3, 16)},
            "(2, 3, 16)",
            "Pass seq_idx of that shape",
        ),
        (FORWARD, "seq_idx", {"initial_state": None, "seq_idx": (16,)}, "(16,)", "nothing is broadcast"),
        (FORWARD, "seq_idx", {"initial_state": None, "seq_idx": (2, 15)}, "(2, 15)", "Pass seq_idx of that shape"),
        (VJP, "dy", {"dy": (2, 3, 15)}, "(2, 3, 15)", "Pass dy of that shape"),
        (VJP, "dy", {"dy": (2, 16, 3)}, "(2, 16, 3)", "Pass dy of that shape"),
        (VJP, "dy", {"dy": (3, 16)}, "(3, 16)", "Pass dy of that shape"),
        (VJP, "d_final_state", {"d_final_state": (2, 3, 4)}, "(2, 3, 4)", "Pass d_final_state of that shape"),
        (UPDATE, "x", {"x": (3,)}, "(3,), 1 axes", "Reshape x"),
        (UPDATE, "x", {"x": (2, 3, 0)}, "(2, 3, 0)", "at least one point"),
        (UPDATE, "x", {"x": (2, 0)}, "(2, 0)", "at least one point"),
        (UPDATE, "state", {"state": (2, 3, 2)}, "(2, 3, 2)", "Pass a state of that shape"),
        (UPDATE, "state", {"state": (2, 4, 5)}, "(2, 4, 5)", "Pass a state of that shape"),
        (UPDATE, "state", {"state": (3, 3, 5), "conv_state_indices": None}, "(3, 3, 5)", "Pass a state of that shape"),
        (UPDATE, "state", {"state": (3, 5)}, "(3, 5)", "Pass a state of that shape"),
        (UPDATE, "state", {"state": (0, 3, 5)}, "(0, 3, 5)", "Pass a state of that shape"),
        (UPDATE, "state", {"state": (2, 3, 0), "weight": (3, 1)}, "(2, 3, 0)", "Pass a state of that shape"),
        (UPDATE, "cache_seqlens", {"cache_seqlens": (1,)}, "(1,)", "Pass cache_seqlens of that shape"),
        (
            UPDATE,
            "conv_state_indices",
            {"conv_state_indices": (2, 1)},
            "(2, 1)",
            "Pass conv_state_indices of that shape",
        ),
    )
    for framework in FRAMEWORKS:
        for number, (call, what, changes, got, do) in enumerate(cases):
            if not (framework == "jax" and call is UPDATE):
                name = f"shape{number}-{what}"
                yield _bad(name, framework, call, changes, InvalidArgumentError, f"{what}.shape", got, do)


def _dtypes() -> Iterator[Bad]:
    for framework in FRAMEWORKS:
        for argument in ("x", "weight", "bias", "initial_state"):
            for dtype in ("int32", "bool", "complex64"):
                changes = {argument: (SHAPES[argument], dtype)}
                do = f"Convert {argument} to a real floating-point dtype"
                yield _bad(
                    f"{argument}-{dtype}", framework, FORWARD, changes, InvalidTypeError, f"{argument}.dtype", dtype, do
                )
        for call, argument in ((FORWARD, "initial_state"), (VJP, "dy"), (VJP, "d_final_state"), (UPDATE, "state")):
            if framework == "jax" and call is UPDATE:
                continue
            changes = {argument: (SHAPES[argument], "float16")}
            do = f"Convert {argument} to float32"
            yield _bad(
                f"{argument}-mixed", framework, call, changes, InvalidTypeError, f"{argument}.dtype", "float16", do
            )
        for call, argument in ((FORWARD, "seq_idx"), (UPDATE, "cache_seqlens"), (UPDATE, "conv_state_indices")):
            for dtype in ("int16", "uint32", "float32", "bool"):
                changes = {argument: (SHAPES[argument], dtype), **({"initial_state": None} if call is FORWARD else {})}
                do = f"Convert {argument} to int32"
                yield _bad(
                    f"{argument}-{dtype}", framework, call, changes, InvalidTypeError, f"{argument}.dtype", dtype, do
                )
    for argument in ("x", "weight", "bias", "initial_state"):
        changes, do = {argument: (SHAPES[argument], "float64")}, f"Convert {argument} to float32"
        got = "float64 on cuda:0"
        yield _bad(f"{argument}-64", "cupy", FORWARD, changes, InvalidTypeError, f"{argument}.dtype", got, do)
    changes = {"initial_state": None, "seq_idx": ((2, 16), ">i4")}
    do = "Convert seq_idx to int32"
    yield _bad("swapped", "numpy", FORWARD, changes, InvalidTypeError, "seq_idx.dtype", "byte-swapped", do)


def _no_arrays() -> Iterator[Bad]:
    for call in (FORWARD, VJP, UPDATE):
        for argument in ARGUMENTS[call]:
            for thing, got in (([1.0], "builtins.list"), (2.5, "float"), ("abc", "str")):
                changes = {argument: thing}
                name = f"{argument}-is-{got}"
                yield _bad(name, "numpy", call, changes, InvalidTypeError, argument, got, "Convert it")
            if argument in ("x", "weight", "dy", "state"):
                changes = {argument: None}
                yield _bad(f"{argument}-None", "numpy", call, changes, InvalidTypeError, argument, "None", "Convert it")
    changes = {"initial_state": None, "seq_idx": object()}
    yield _bad("seq_idx-object", "numpy", FORWARD, changes, InvalidTypeError, "seq_idx", "builtins.object", "Convert")
    masked = np.ma.masked_array(np.ones((2, 3, 16), np.float32))
    yield _bad("masked", "numpy", FORWARD, {"x": masked}, InvalidTypeError, "x", "a masked array", "Pass x.filled(0)")


def _options() -> Iterator[Bad]:
    cases: tuple[tuple[str, Any, type[FFTConvError], str, str], ...] = (
        ("padding", "valid", InvalidArgumentError, "'valid'", "Pass one of these"),
        ("padding", "Causal", InvalidArgumentError, "'Causal'", "Pass one of these"),
        ("padding", -1, InvalidArgumentError, "-1", "of at least 0"),
        ("padding", 1.0, InvalidTypeError, "1.0 of type float", "Pass one of these"),
        ("padding", True, InvalidTypeError, "True of type bool", "Pass one of these"),
        ("padding", None, InvalidTypeError, "None of type NoneType", "Pass one of these"),
        ("padding", (1,), InvalidTypeError, "(1,) of type tuple", "Pass one of these"),
        ("padding", [1], InvalidTypeError, "[1] of type list", "Pass one of these"),
        ("activation", "relu", InvalidArgumentError, "'relu'", "Pass one of these"),
        ("activation", "SiLU", InvalidArgumentError, "'SiLU'", "Pass one of these"),
        ("activation", True, InvalidTypeError, "True of type bool", "Pass one of these"),
        ("activation", 0, InvalidTypeError, "0 of type int", "Pass one of these"),
        ("layout", "LBH", InvalidArgumentError, "'LBH'", "Pass one of these"),
        ("layout", "bhl", InvalidArgumentError, "'bhl'", "Pass one of these"),
        ("layout", None, InvalidTypeError, "None of type NoneType", "Pass one of these"),
        ("layout", ["BHL"], InvalidTypeError, "of type list", "Pass one of these"),
        ("return_final_state", 1, InvalidTypeError, "1 of type int", "Pass one of these"),
        ("return_final_state", None, InvalidTypeError, "None of type NoneType", "Pass one of these"),
    )
    for framework in FRAMEWORKS:
        for name, value, error, got, do in cases:
            changes = {"initial_state": None, name: value}
            yield _bad(f"{name}-{value!r}", framework, FORWARD, changes, error, name, got, do)
        for seqlen, padding, got in ((2, 0, "-1 outputs"), (1, 1, "0 outputs")):
            changes = {"x": (2, 3, seqlen), "initial_state": None, "padding": padding}
            do = "Pad more"
            yield _bad(f"padding-{got}", framework, FORWARD, changes, InvalidArgumentError, "padding", got, do)
    for framework in ("numpy", "cupy"):
        got, do = "'relu'", "Pass one of these"
        yield _bad("act", framework, UPDATE, {"activation": "relu"}, InvalidArgumentError, "activation", got, do)
    for framework in CPU_FRAMEWORKS:
        for call in (FORWARD, VJP) if framework == "jax" else (FORWARD, VJP, UPDATE):
            got, do = "for arrays on the CPU", "Leave stream out"
            yield _bad("stream", framework, call, {"stream": 7}, InvalidArgumentError, "stream", got, do)
            got = "'default' of type str"
            yield _bad("no-stream", framework, call, {"stream": "default"}, InvalidTypeError, "stream", got, "Pass")


def _together() -> Iterator[Bad]:
    without: dict[str, Any] = {"initial_state": None}
    for framework in FRAMEWORKS:
        for padding in ("same", 1, 0):
            for call, name, changes in (
                (FORWARD, "initial_state", {}),
                (FORWARD, "return_final_state", {**without, "return_final_state": True}),
                (FORWARD, "seq_idx", {**without, "seq_idx": (2, 16)}),
                (VJP, "initial_state", {"d_final_state": None}),
                (VJP, "d_final_state", without),
                (VJP, "seq_idx", {**without, "d_final_state": None, "seq_idx": (2, 16)}),
            ):
                changes = {**changes, "padding": padding}
                got, do = f"{name} with padding={padding!r}", "or pass padding='causal'"
                title = f"{name}-padded-{padding}"
                yield _bad(title, framework, call, changes, InvalidArgumentError, name, got, do)
        for call, name, changes in (
            (FORWARD, "initial_state", {}),
            (FORWARD, "return_final_state", {**without, "return_final_state": True}),
            (VJP, "initial_state", {"d_final_state": None}),
            (VJP, "d_final_state", without),
        ):
            changes = {**changes, "seq_idx": (2, 16)}
            got, do = f"{name} with seq_idx", f"Leave {name} or seq_idx out"
            yield _bad(f"{name}-packed", framework, call, changes, InvalidArgumentError, name, got, do)


def _places() -> Iterator[Bad]:
    for call in (FORWARD, VJP, UPDATE):
        for argument in ARGUMENTS[call]:
            if argument == "x":
                continue
            dtype = "int32" if argument in INDICES else "float32"
            for framework in FRAMEWORKS:
                for other in FRAMEWORKS:
                    if framework == other:
                        continue

                    def make(
                        world: World,
                        call: Callable[..., Any] = call,
                        argument: str = argument,
                        other: str = other,
                        dtype: str = dtype,
                    ) -> dict[str, Any]:
                        return good(world, call, **{argument: World(other).array(SHAPES[argument], dtype)})

                    what, got, do = f"{argument}'s framework", f"{other} (on ", "come from one framework"
                    if framework == "jax" and call is UPDATE:
                        continue
                    name = f"{framework}-{call.__name__}-{argument}-of-{other}"
                    yield Bad(name, framework, make, InvalidTypeError, what, got, do, call)

            def elsewhere(
                world: World, call: Callable[..., Any] = call, argument: str = argument, dtype: str = dtype
            ) -> dict[str, Any]:
                arguments = good(world, call)
                with cupy_on_host(device=1):
                    return {**arguments, argument: world.array(SHAPES[argument], dtype)}

            what, do = f"{argument}'s device", f"Move {argument} to the device of x"
            name = f"cupy-{call.__name__}-{argument}-elsewhere"
            yield Bad(name, "cupy", elsewhere, InvalidTypeError, what, "cuda:1", do, call)
    do = "Call depthwise_conv1d with initial_state"
    yield _bad("state-of-jax", "jax", UPDATE, {}, InvalidTypeError, "state", "a JAX array", do)


def _names() -> Iterator[Bad]:
    cases: tuple[tuple[Any, type[FFTConvError], str, str], ...] = (
        ("u", InvalidArgumentError, "'u'", "Pass names of arguments"),
        ("dy", InvalidArgumentError, "'dy'", "Pass names of arguments"),
        ("seq_idx", InvalidArgumentError, "'seq_idx'", "Pass names of arguments"),
        ((), InvalidArgumentError, "no name", "Name at least one"),
        (3, InvalidTypeError, "an object of type int", "Pass wrt=('x', 'weight')"),
        (("x", 3), InvalidTypeError, "an item of type int", "no arrays"),
        ([["x"]], InvalidTypeError, "an item of type list", "no arrays"),
    )
    for framework in FRAMEWORKS:
        for number, (wrt, error, got, do) in enumerate(cases):
            yield _bad(f"wrt{number}", framework, VJP, {"wrt": wrt}, error, "wrt", got, do)
        for name in ("bias", "initial_state"):
            changes = {"wrt": ("x", name), name: None}
            got, do = f"'{name}', which was not given", f"leave '{name}' out of wrt"
            yield _bad(f"wrt-{name}", framework, VJP, changes, InvalidArgumentError, "wrt", got, do)


def _states() -> Iterator[Bad]:
    def same(world: World) -> dict[str, Any]:
        x = world.array((2, 3, 5))
        return good(world, UPDATE) | {"x": x, "state": x}

    for framework in ("numpy", "torch", "cupy"):
        do = "Pass a contiguous array of its own"
        name, got = f"{framework}-state-is-x", "memory that overlaps x"
        yield Bad(name, framework, same, InvalidArgumentError, "state", got, do, UPDATE)
