"""Calls of `fftconv_vjp` that must be refused: all that `fftconv` refuses, and mistakes in `dy` and `wrt`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from bad_calls import Bad, all_bad_calls
from frameworks import CPU_FRAMEWORKS, FRAMEWORKS, World, cupy_on_host

from fftconv_cupy import fftconv, fftconv_vjp, prepare_filter
from fftconv_cupy.errors import FFTConvError, InvalidArgumentError, InvalidTypeError
from fftconv_cupy.problem import CPU_DTYPES


def good(world: World, mode: str = "causal", dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    """Return the arguments of a call with every array, of B, H, L, K = 2, 3, 16, 5, with some changed."""
    arguments = world.good(mode, dtype)
    del arguments["out"]
    return {"dy": world.array((2, 3, 20 if mode == "full" else 16), dtype), **arguments, **changes}


def all_bad_vjp_calls() -> list[Bad]:
    return [*_as_forward(), *_gradients_of_the_output(), *_names()]


def _as_forward() -> Iterator[Bad]:
    """Everything that `fftconv` refuses, but for `out`, is refused in the same words, for a `dy` that would do."""
    for bad in all_bad_calls():
        if bad.call is fftconv and bad.what.partition(".")[0].partition("'")[0] != "out":

            def make(world: World, bad: Bad = bad) -> dict[str, Any]:
                arguments = bad.make(world)
                arguments.pop("out", None)
                u = arguments["u"]
                dtype = str(getattr(u, "dtype", "")).removeprefix("torch.")
                shape = tuple(getattr(u, "shape", (2, 3, 16)))
                dy = world.array(shape, dtype if dtype in CPU_DTYPES else "float32")
                return {"dy": dy, **arguments}

            yield replace(bad, make=make, call=fftconv_vjp)


def _bad(
    name: str,
    framework: str,
    make: Callable[[World], dict[str, Any]],
    error: type[FFTConvError],
    what: str,
    got: str,
    do: str,
) -> Bad:
    return Bad(f"{framework}-{name}", framework, make, error, what, got, do, fftconv_vjp)


def _gradients_of_the_output() -> Iterator[Bad]:
    for framework in FRAMEWORKS:
        for shape, mode in (
            ((2, 3, 15), "causal"),
            ((3, 16), "same"),
            ((1, 3, 16), "circular"),
            ((2, 3, 16), "full"),
            ((2, 3, 20), "circular"),
            ((16,), "causal"),
            ((), "causal"),
        ):

            def make(world: World, shape: tuple[int, ...] = shape, mode: str = mode) -> dict[str, Any]:
                return good(world, mode, dy=world.array(shape))

            name, do = f"dy{shape}-{mode}", "Pass dy of that shape"
            yield _bad(name, framework, make, InvalidArgumentError, "dy.shape", str(shape), do)
        for dtype, of_u, do in (
            ("float16", "float32", "Convert dy to float32"),
            ("float32", "bfloat16", "Convert dy to bfloat16"),
            ("float32", "float16", "Convert dy to float16"),
            ("int32", "float32", "Convert dy to a real floating-point dtype"),
            ("complex64", "float32", "Convert dy to a real floating-point dtype"),
        ):

            def make_dtype(world: World, dtype: str = dtype, of_u: str = of_u) -> dict[str, Any]:
                return good(world, dtype=of_u, dy=world.array((2, 3, 16), dtype))

            yield _bad(f"dy-{dtype}-for-{of_u}", framework, make_dtype, InvalidTypeError, "dy.dtype", dtype, do)
        for other in FRAMEWORKS:
            if other != framework:

                def make_mixed(world: World, other: str = other) -> dict[str, Any]:
                    return good(world, dy=World(other).array((2, 3, 16)))

                do = "come from one framework"
                yield _bad(
                    f"dy-of-{other}", framework, make_mixed, InvalidTypeError, "dy's framework", f"{other} (on ", do
                )
        for thing, got in ((None, "None"), ([1.0], "builtins.list"), (1.0, "1.0 of type float")):

            def make_thing(world: World, thing: Any = thing) -> dict[str, Any]:
                return good(world, dy=thing)

            yield _bad(f"dy-is-{got}", framework, make_thing, InvalidTypeError, "dy", got, "Convert it")

    def elsewhere(world: World) -> dict[str, Any]:
        arguments = good(world)
        with cupy_on_host(device=1):
            return {**arguments, "dy": world.array((2, 3, 16))}

    do = "Move dy to the device of u"
    yield _bad("dy-on-another-gpu", "cupy", elsewhere, InvalidTypeError, "dy's device", "cuda:1", do)


def _names() -> Iterator[Bad]:
    cases: tuple[tuple[Any, type[FFTConvError], str, str], ...] = (
        ("x", InvalidArgumentError, "'x'", "Pass names of arguments"),
        ("dy", InvalidArgumentError, "'dy'", "Pass names of arguments"),
        ("", InvalidArgumentError, "''", "Pass names of arguments"),
        ("uk", InvalidArgumentError, "'uk'", "Pass names of arguments"),
        (("u", "out"), InvalidArgumentError, "'out'", "Pass names of arguments"),
        ((), InvalidArgumentError, "no name", "Name at least one"),
        ([], InvalidArgumentError, "no name", "Name at least one"),
        (iter(()), InvalidArgumentError, "no name", "Name at least one"),
        (3, InvalidTypeError, "an object of type int", "Pass wrt=('u', 'k')"),
        (True, InvalidTypeError, "an object of type bool", "Pass wrt=('u', 'k')"),
        (("u", 3), InvalidTypeError, "an item of type int", "no arrays"),
        (("u", None), InvalidTypeError, "an item of type NoneType", "no arrays"),
        (b"u", InvalidTypeError, "an item of type int", "no arrays"),
        ([["u"]], InvalidTypeError, "an item of type list", "no arrays"),
        ([np.ones(3)], InvalidTypeError, "an item of type ndarray", "no arrays"),
    )
    for framework in FRAMEWORKS:
        for number, (wrt, error, got, do) in enumerate(cases):

            def make(world: World, wrt: Any = wrt) -> dict[str, Any]:
                return good(world, wrt=wrt)

            yield _bad(f"wrt{number}-{got}", framework, make, error, "wrt", got, do)
        for name in ("in_gate", "out_gate", "skip"):
            for wrt in (name, ("u", name)):

                def make_missing(world: World, name: str = name, wrt: Any = wrt) -> dict[str, Any]:
                    return good(world, wrt=wrt, **{name: None})

                got, do = f"'{name}', which was not given", f"Pass {name}, or leave '{name}' out of wrt"
                yield _bad(f"wrt-{wrt}-missing", framework, make_missing, InvalidArgumentError, "wrt", got, do)

    def prepared(world: World) -> dict[str, Any]:
        return good(world, k=prepare_filter(world.array((3, 5)), seqlen=16), wrt=("u", "k"))

    for framework in CPU_FRAMEWORKS:
        got, do = "'k', a prepared filter", "Pass the taps as k"
        yield _bad("wrt-prepared", framework, prepared, InvalidArgumentError, "wrt", got, do)
