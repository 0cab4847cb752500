"""`fftconv_cupy.jax.fftconv` refuses what `fftconv` refuses, in the same words, whether it is traced or not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from bad_calls import Bad, all_bad_calls
from frameworks import World
from vjp_cases import NAMES

from fftconv_cupy import fftconv, prepare_filter
from fftconv_cupy.errors import FFTConvError, InvalidTypeError

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
fj = pytest.importorskip("fftconv_cupy.jax")

SHARED_RULES = re.compile(r"(u|k|in_gate|out_gate|skip)\.(shape|dtype)|fft_size|mode")


def refusals_of_both() -> list[Bad]:
    """Return the bad calls with nothing but JAX arrays, by rules that hold for both functions."""
    calls = (bad for bad in all_bad_calls() if bad.framework == "jax" and bad.call is fftconv)
    return [bad for bad in calls if SHARED_RULES.fullmatch(bad.what)]


def test_there_are_many_of_them():
    assert len(refusals_of_both()) > 50


@pytest.mark.parametrize("bad", refusals_of_both(), ids=lambda bad: bad.name)
def test_bad_calls_are_refused_as_by_fftconv(bad):
    given = bad.make(World("jax"))
    given.pop("out", None)
    with pytest.raises(FFTConvError) as eager:
        fftconv(**given)
    arrays = {name: value for name, value in given.items() if name in NAMES}
    options = {name: value for name, value in given.items() if name not in NAMES}

    def call(some: dict[str, Any]) -> Any:
        return fj.fftconv(**some, **options)

    for refuse in (call, jax.jit(call)):
        with pytest.raises(FFTConvError) as ours:
            refuse(arrays)
        assert type(ours.value) is type(eager.value)
        assert str(ours.value) == str(eager.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_jax_array_is_refused(name):
    given = World("jax").good()
    del given["out"]
    for bad in (np.ones(3, np.float32), [1.0, 2.0], 1.0, "u"):
        with pytest.raises(InvalidTypeError, match=rf"^{name}: got .*jax\.numpy\.asarray\({name}\)"):
            fj.fftconv(**{**given, name: bad})
    if name in ("u", "k"):
        with pytest.raises(InvalidTypeError, match="NoneType"):
            fj.fftconv(**{**given, name: None})


def test_a_prepared_filter_is_refused():
    prepared = prepare_filter(World("jax").array((3, 5)), seqlen=16)
    with pytest.raises(InvalidTypeError, match=r"k: got FilterSpectrum.*taps"):
        fj.fftconv(jnp.ones((2, 3, 16)), prepared)


def test_fftconv_names_this_function_to_a_tracer():
    with pytest.raises(InvalidTypeError, match=r"use fftconv_cupy\.jax\.fftconv\."):
        jax.jit(lambda u: fftconv(u, u))(jnp.ones(16))
