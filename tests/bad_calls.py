"""Calls that must be refused, generated over frameworks, arguments and kinds of mistake."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from frameworks import CPU_FRAMEWORKS, FRAMEWORKS, World, cupy_on_host

from fftconv_cupy import fftconv, prepare_filter
from fftconv_cupy.errors import FFTConvError, InvalidArgumentError, InvalidTypeError
from fftconv_cupy.problem import MODES

ARRAYS = ("u", "k", "in_gate", "out_gate", "skip", "out")
MESSAGE = re.compile(r"(?P<what>.+?): got (?P<got>.*); allowed: (?P<allowed>.+?)\. (?P<do>[A-Z].+\.)", re.DOTALL)


@dataclass(frozen=True)
class Bad:
    """A refused call: how to make it, and what the error must say."""

    name: str
    framework: str
    make: Callable[[World], dict[str, Any]]
    error: type[FFTConvError]
    what: str  # how the message begins
    got: str  # part of what it says was got
    do: str  # part of what it says to do
    call: Callable[..., Any] = fftconv

    def message(self) -> re.Match[str] | None:
        """Make the call and return its parsed message; None where it is not of the one form."""
        try:
            self.call(**self.make(World(self.framework)))
        except FFTConvError as error:
            if type(error) is not self.error:
                raise
            return MESSAGE.fullmatch(str(error))
        raise AssertionError("the call was not refused")


def all_bad_calls() -> list[Bad]:
    return [*_shapes(), *_dtypes(), *_sizes(), *_no_arrays(), *_mixed(), *_prepared(), *_outputs(), *_streams()]


def _with(**changes: Any) -> Callable[[World], dict[str, Any]]:
    """Make a good call with some arguments changed; a tuple (shape, dtype) or shape becomes an array."""

    def make(world: World) -> dict[str, Any]:
        def value(name: str, given: Any) -> Any:
            if name not in ARRAYS or not isinstance(given, tuple):
                return given
            return world.array(*given) if given and isinstance(given[0], tuple) else world.array(given)

        return world.good(**{name: value(name, given) for name, given in changes.items()})

    return make


def _rank(u: tuple[int, ...], k: tuple[int, ...], **others: Any) -> Callable[[World], dict[str, Any]]:
    """Make a call with nothing but u, k and `others`."""
    return _with(u=u, k=k, **{"in_gate": None, "out_gate": None, "skip": None, "out": None, **others})


def _shapes() -> Iterator[Bad]:
    cases = [
        (_rank((), (5,)), "u.shape", "(), 0 axes", "Reshape u"),
        (_rank((1, 2, 3, 16), (3, 5)), "u.shape", "(1, 2, 3, 16), 4 axes", "Reshape u"),
        (_rank((2, 0, 16), (0, 5)), "u.shape", "(2, 0, 16)", "at least one channel"),
        (_rank((2, 3, 0), (3, 5)), "u.shape", "(2, 3, 0)", "at least one point"),
        (_rank((0, 16), (0, 5)), "u.shape", "(0, 16)", "at least one channel"),
        (_rank((3, 0), (3, 5)), "u.shape", "(3, 0)", "at least one point"),
        (_rank((0,), (5,)), "u.shape", "(0,)", "at least one point"),
        (_rank((0, 0, 16), (0, 5)), "u.shape", "(0, 0, 16)", "at least one channel"),
        (_rank((2, 3, 16), ()), "k.shape", "()", "Reshape or cut k"),
        (_rank((2, 3, 16), (1, 3, 5)), "k.shape", "(1, 3, 5)", "Reshape or cut k"),
        (_rank((2, 3, 16), (2, 5)), "k.shape", "(2, 5)", "Reshape or cut k"),
        (_rank((2, 3, 16), (1, 5)), "k.shape", "(1, 5)", "Reshape or cut k"),
        (_rank((2, 3, 16), (5, 3)), "k.shape", "(5, 3)", "Reshape or cut k"),
        (_rank((2, 3, 16), (3, 0)), "k.shape", "(3, 0)", "at least one tap"),
        (_rank((2, 3, 16), (0,)), "k.shape", "(0,)", "at least one tap"),
        (_rank((3, 16), (4, 5)), "k.shape", "(4, 5)", "Reshape or cut k"),
        (_rank((16,), (1, 5)), "k.shape", "(1, 5)", "Reshape or cut k"),
        (_rank((16,), (3, 5)), "k.shape", "(3, 5)", "Reshape or cut k"),
        (_rank((16,), (5,), skip=(3,)), "skip.shape", "(3,)", "Pass skip of that shape"),
        (_rank((3, 16), (3, 5), in_gate=(2, 3, 16)), "in_gate.shape", "(2, 3, 16)", "nothing is broadcast"),
        (_with(in_gate=(2, 3, 15)), "in_gate.shape", "(2, 3, 15)", "Pass in_gate of that shape"),
        (_with(in_gate=(1, 3, 16)), "in_gate.shape", "(1, 3, 16)", "nothing is broadcast"),
        (_with(in_gate=(16,)), "in_gate.shape", "(16,)", "Pass in_gate of that shape"),
        (_with(out_gate=(2, 3, 20)), "out_gate.shape", "(2, 3, 20)", "Pass out_gate of that shape"),
        (_with(out_gate=(3, 16)), "out_gate.shape", "(3, 16)", "Pass out_gate of that shape"),
        (_with(mode="full", out_gate=(2, 3, 16)), "out_gate.shape", "(2, 3, 16)", "Pass out_gate of that shape"),
        (_with(skip=(2,)), "skip.shape", "(2,)", "Pass skip of that shape"),
        (_with(skip=(1,)), "skip.shape", "(1,)", "nothing is broadcast"),
        (_with(skip=(3, 1)), "skip.shape", "(3, 1)", "Pass skip of that shape"),
        (_with(skip=()), "skip.shape", "()", "Pass skip of that shape"),
    ]
    for framework in FRAMEWORKS:
        for number, case in enumerate(cases):
            yield Bad(f"{framework}-shape{number}-{case[1]}", framework, case[0], InvalidArgumentError, *case[1:])
        if framework == "jax":
            continue
        for shape, mode in (((2, 3, 15), "causal"), ((3, 16), "same"), ((2, 3, 16), "full"), ((2, 3, 20), "circular")):
            make = _with(mode=mode, out=shape)
            name = f"{framework}-out{shape}-{mode}"
            yield Bad(name, framework, make, InvalidArgumentError, "out.shape", str(shape), "Pass out of that shape")


def _dtypes() -> Iterator[Bad]:
    shapes = {"u": (2, 3, 16), "k": (3, 5), "in_gate": (2, 3, 16), "out_gate": (2, 3, 16), "skip": (3,)}
    for framework in FRAMEWORKS:
        for argument, shape in shapes.items():
            for dtype in ("int32", "bool", "complex64") if argument in "uk" else ("int8",):
                make = _with(**{argument: (shape, dtype)})
                name, do = f"{framework}-{argument}-{dtype}", f"Convert {argument} to a real floating-point dtype"
                yield Bad(name, framework, make, InvalidTypeError, f"{argument}.dtype", dtype, do)
        for argument, dtype, of_u in (
            ("in_gate", "float16", "float32"),
            ("in_gate", "float32", "bfloat16"),
            ("out_gate", "bfloat16", "float32"),
            ("out_gate", "float16", "bfloat16"),
            ("skip", "float16", "float32"),
            ("skip", "bfloat16", "float16"),
            ("out", "float16", "float32"),
            ("out", "float32", "bfloat16"),
        ):
            if argument == "out" and framework == "jax":
                continue
            make = _with(dtype=of_u, **{argument: (shapes.get(argument, (2, 3, 16)), dtype)})
            name = f"{framework}-{argument}-{dtype}-for-{of_u}"
            yield Bad(name, framework, make, InvalidTypeError, f"{argument}.dtype", dtype, f"Convert {argument} to")
    for argument, shape in (("u", (2, 3, 16)), ("k", (3, 5))):
        make = _with(**{argument: (shape, "float64")})
        got, do = "float64 on cuda:0", f"Convert {argument} to float32"
        yield Bad(f"cupy-{argument}-float64", "cupy", make, InvalidTypeError, f"{argument}.dtype", got, do)
    for dtype in (">f4", ">f2"):
        make = _with(u=((2, 3, 16), dtype))
        yield Bad(f"numpy-u-{dtype}", "numpy", make, InvalidTypeError, "u.dtype", "byte-swapped", "newbyteorder")
    for dtype in ("object", "U4", "M8[s]", "longdouble"):
        make = _with(k=((3, 5), dtype))
        got = str(np.dtype(dtype))
        yield Bad(f"numpy-k-{dtype}", "numpy", make, InvalidTypeError, "k.dtype", got, "Convert k to")


def _sizes() -> Iterator[Bad]:
    for framework in FRAMEWORKS:
        for mode in MODES:
            for size, error, got, do in (
                (48, InvalidArgumentError, "48", "Pass fft_size=64"),
                (8, InvalidArgumentError, "8", "Pass fft_size="),
                (0, InvalidArgumentError, "0", "of at least 2"),
                (-32, InvalidArgumentError, "-32", "of at least 2"),
                (32.0, InvalidTypeError, "32.0 of type float", "as an int"),
                ("32", InvalidTypeError, "'32' of type str", "as an int"),
                (True, InvalidTypeError, "True of type bool", "as an int"),
            ):
                # One framework has all of them, the others a few.
                if framework == "numpy" or (mode in ("causal", "circular") and size in (48, 8, 32.0)):
                    name = f"{framework}-fft_size-{size!r}-{mode}"
                    yield Bad(name, framework, _with(mode=mode, fft_size=size), error, "fft_size", got, do)
        for mode, error in (("valid", InvalidArgumentError), (None, InvalidTypeError), (["causal"], InvalidTypeError)):
            got, do = repr(mode), "Pass one of these strings"
            make = _rank((2, 3, 16), (3, 5), mode=mode)
            yield Bad(f"{framework}-mode-{got}", framework, make, error, "mode", got, do)
    for changes, error, what in (
        ({"seqlen": 0}, InvalidArgumentError, "seqlen"),
        ({"seqlen": -5}, InvalidArgumentError, "seqlen"),
        ({"seqlen": 16.0}, InvalidTypeError, "seqlen"),
        ({"seqlen": None}, InvalidTypeError, "seqlen"),
        ({"mode": "valid"}, InvalidArgumentError, "mode"),
        ({"fft_size": 24}, InvalidArgumentError, "fft_size"),
        ({"fft_size": 16}, InvalidArgumentError, "fft_size"),
    ):
        for framework in FRAMEWORKS:

            def make(world: World, changes: dict[str, Any] = changes) -> dict[str, Any]:
                return {"k": world.array((3, 5)), "seqlen": 16, **changes}

            got = str(changes[what])
            yield Bad(f"{framework}-prepare-{what}-{got}", framework, make, error, what, got, "Pass", prepare_filter)
    for shape in ((), (3, 0), (0, 5), (1, 3, 5)):
        for framework in FRAMEWORKS:

            def make_k(world: World, shape: tuple[int, ...] = shape) -> dict[str, Any]:
                return {"k": world.array(shape), "seqlen": 16}

            do = "tap" if 0 in shape else "Reshape"
            name = f"{framework}-prepare-k{shape}"
            yield Bad(name, framework, make_k, InvalidArgumentError, "k.shape", str(shape), do, prepare_filter)


def _no_arrays() -> Iterator[Bad]:
    things = (
        ([1.0, 2.0], "builtins.list"),
        ((1.0, 2.0), "builtins.tuple"),
        ("abc", "'abc' of type str"),
        (1.5, "1.5 of type float"),
        (True, "True of type bool"),
        (np.float32(2), "numpy.float32"),
        ({}, "builtins.dict"),
        (object(), "builtins.object"),
    )
    for argument in ARRAYS:
        for thing, got in things:

            def make(world: World, argument: str = argument, thing: Any = thing) -> dict[str, Any]:
                return {**world.good(), argument: thing}

            yield Bad(f"numpy-{argument}-is-{got}", "numpy", make, InvalidTypeError, argument, got, "Convert it")
    for argument in ("u", "k"):
        for framework in FRAMEWORKS:
            make = _with(**{argument: None})
            yield Bad(f"{framework}-{argument}-None", framework, make, InvalidTypeError, argument, "None", "Convert it")

    def masked(world: World) -> dict[str, Any]:
        return world.good(u=np.ma.masked_array(np.ones((2, 3, 16), np.float32)))

    yield Bad("numpy-masked", "numpy", masked, InvalidTypeError, "u", "a masked array", "Pass u.filled(0)")


def _mixed() -> Iterator[Bad]:
    shapes = {"k": (3, 5), "in_gate": (2, 3, 16), "out_gate": (2, 3, 16), "skip": (3,), "out": (2, 3, 16)}
    for framework in FRAMEWORKS:
        for other in FRAMEWORKS:
            for argument, shape in shapes.items():
                if other == framework or (argument == "out" and "jax" in (framework, other)):
                    continue

                def make(
                    world: World, argument: str = argument, shape: tuple[int, ...] = shape, other: str = other
                ) -> dict[str, Any]:
                    return {**world.good(), argument: World(other).array(shape)}

                name, got = f"{framework}-{argument}-of-{other}", f"{other} (on "
                what, do = f"{argument}'s framework", "come from one framework"
                yield Bad(name, framework, make, InvalidTypeError, what, got, do)
    for argument, shape in shapes.items():

        def elsewhere(world: World, argument: str = argument, shape: tuple[int, ...] = shape) -> dict[str, Any]:
            arguments = world.good()
            with cupy_on_host(device=1):
                arguments[argument] = world.array(shape)
            return arguments

        do = f"Move {argument} to the device of u"
        yield Bad(f"two-gpus-{argument}", "cupy", elsewhere, InvalidTypeError, f"{argument}'s device", "cuda:1", do)


def _prepared() -> Iterator[Bad]:
    cases = (
        ({"seqlen": 32}, {}, "seqlen", "16", "Pass u with L = 32"),
        ({"mode": "same"}, {}, "mode", "'causal'", "Pass mode='same'"),
        ({}, {"mode": "circular"}, "mode", "'circular'", "Pass mode='causal'"),
        ({"fft_size": 64}, {}, "fft_size", "32", "Pass fft_size=64"),
        ({}, {"fft_size": 64}, "fft_size", "64", "Pass fft_size=32"),
        ({"mode": "circular", "fft_size": 32}, {"mode": "circular"}, "fft_size", "16", "Pass fft_size=32"),
        ({"channels": 4}, {}, "H", "3", "Pass (3, K), or (K,)"),
        ({"channels": 1}, {}, "H", "3", "Pass (3, K), or (K,)"),
        ({"channels": 3}, {"u": (16,)}, "H", "no channel axis", "Pass (K,)"),
        ({"channels": 1}, {"u": (16,)}, "H", "no channel axis", "Pass (K,)"),
    )
    for framework in CPU_FRAMEWORKS:
        for number, (made, used, what, got, do) in enumerate(cases):

            def make(world: World, made: dict[str, Any] = made, used: dict[str, Any] = used) -> dict[str, Any]:
                options = {"seqlen": 16, **{name: value for name, value in made.items() if name != "channels"}}
                prepared = prepare_filter(world.array((made.get("channels", 3), 5)), **options)
                return {**_rank((2, 3, 16), (3, 5))(world), **_rank(used.get("u", (2, 3, 16)), (5,))(world)} | {
                    "k": prepared,
                    "mode": used.get("mode", "causal"),
                    "fft_size": used.get("fft_size"),
                }

            name = f"{framework}-prepared{number}-{what}"
            yield Bad(name, framework, make, InvalidArgumentError, f"k (prepared filter): {what}", got, do)

    def on_the_cpu(world: World) -> dict[str, Any]:
        return world.good(k=prepare_filter(np.ones((3, 5), np.float32), seqlen=16))

    what, do = "k (prepared filter)'s device", "Move k"
    yield Bad("cupy-prepared-on-the-cpu", "cupy", on_the_cpu, InvalidTypeError, what, "the CPU", do)
    for argument in ("u", "in_gate", "out_gate", "skip", "out"):

        def as_array(world: World, argument: str = argument) -> dict[str, Any]:
            return {**world.good(), argument: prepare_filter(np.ones((3, 5), np.float32), seqlen=16)}

        got = "FilterSpectrum"
        yield Bad(f"numpy-spectrum-as-{argument}", "numpy", as_array, InvalidTypeError, argument, got, "Convert it")


def _outputs() -> Iterator[Bad]:
    def overlapping(argument: str) -> Callable[[World], dict[str, Any]]:
        def make(world: World) -> dict[str, Any]:
            arguments = world.good()
            if argument in ("in_gate", "out_gate", "u"):
                return {**arguments, "out": arguments[argument]}
            buffer = world.array((2, 4, 16))
            part = buffer[0, 1:, :5] if argument == "k" else buffer[1, 1, :3]
            return {**arguments, "out": buffer[:, 1:], argument: part}

        return make

    def shifted(world: World) -> dict[str, Any]:
        buffer = world.array((2, 3, 17))
        return world.good(u=buffer[..., 1:], out=buffer[..., :-1])

    for framework in ("numpy", "torch", "cupy"):
        for argument in ("u", "k", "in_gate", "out_gate", "skip"):
            make, got = overlapping(argument), f"memory that overlaps {argument}"
            name, do = f"{framework}-out-overlaps-{argument}", "Pass another array"
            yield Bad(name, framework, make, InvalidArgumentError, "out", got, do)
        yield Bad(
            *(f"{framework}-out-shifted", framework, shifted, InvalidArgumentError),
            *("out", "memory that overlaps u", "Pass another array"),
        )
        for name, got, cut in (
            ("step", "stride 2 along the last axis", lambda world: world.array((2, 3, 32))[..., ::2]),
            ("transposed", "stride 6 along the last axis", _transposed),
            ("expanded", "may share an address", _expanded),
        ):

            def laid_out(world: World, cut: Callable[[World], Any] = cut) -> dict[str, Any]:
                return world.good(out=cut(world))

            do = "Pass a contiguous array"
            yield Bad(f"{framework}-out-{name}", framework, laid_out, InvalidArgumentError, "out", got, do)

    def read_only(world: World) -> dict[str, Any]:
        out = world.array((2, 3, 16))
        out.flags.writeable = False
        return world.good(out=out)

    do = "Pass a contiguous array"
    yield Bad("numpy-out-read-only", "numpy", read_only, InvalidArgumentError, "out", "a read-only array", do)
    make = _with(out=(2, 3, 16))
    yield Bad("jax-out", "jax", make, InvalidTypeError, "out", "a JAX array", "Leave out away")


def _transposed(world: World) -> Any:
    array = world.array((16, 2, 3))
    return array.permute(1, 2, 0) if world.framework == "torch" else array.transpose(1, 2, 0)


def _expanded(world: World) -> Any:
    row = world.array((1, 3, 16))
    if world.framework == "torch":
        return row.expand(2, 3, 16)
    if world.framework == "cupy":
        import cupy

        return cupy.lib.stride_tricks.as_strided(row, (2, 3, 16), (0, 64, 4))
    return np.lib.stride_tricks.as_strided(row, (2, 3, 16), (0, 64, 4))


def _streams() -> Iterator[Bad]:
    class Stream:
        def __init__(self, **attributes: Any) -> None:
            self.__dict__.update(attributes)

        def __repr__(self) -> str:
            return f"Stream({', '.join(self.__dict__)})"

    for framework in CPU_FRAMEWORKS:
        for stream in (0, 7, Stream(ptr=5), Stream(cuda_stream=5)):
            make = _with(stream=stream)
            name, got = f"{framework}-stream-{stream}", "for arrays on the CPU"
            yield Bad(name, framework, make, InvalidArgumentError, "stream", got, "Leave stream out")
    for framework in FRAMEWORKS:
        for stream, error, got in (
            ("default", InvalidTypeError, "'default' of type str"),
            (1.0, InvalidTypeError, "1.0 of type float"),
            (True, InvalidTypeError, "True of type bool"),
            (Stream(), InvalidTypeError, "of type Stream"),
            (Stream(ptr="5"), InvalidTypeError, "of type Stream"),
            (-1, InvalidArgumentError, "-1"),
        ):
            name = f"{framework}-stream-{got}-{getattr(stream, 'ptr', '')}"
            yield Bad(name, framework, _with(stream=stream), error, "stream", got, "Pass")
    for attributes in ({"ptr": 5, "device_id": 1}, {"cuda_stream": 5, "device_index": 1}):
        make, got = _with(stream=Stream(**attributes)), "a stream of cuda:1"
        name, do = f"cupy-{next(iter(attributes))}-of-another-gpu", "Pass a stream of that device"
        yield Bad(name, "cupy", make, InvalidTypeError, "stream", got, do)
