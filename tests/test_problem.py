"""The problem record: FFT sizes are the smallest that do not alias, and wrong numbers are refused in words."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError
from fftconv_cupy.problem import (
    CPU_DTYPES,
    DTYPES,
    MODES,
    check_dtype,
    check_int,
    check_mode,
    make_problem,
    needed_fft_size,
    resolve_fft_size,
)

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31)


def outputs_are_free_of_wrapped_terms(mode: str, seqlen: int, filter_len: int, size: int) -> bool:
    """Whether no wanted output of a transform of `size` points holds a term of another index, by enumeration."""
    first = (filter_len - 1) // 2 if mode == "same" else 0
    count = seqlen + filter_len - 1 if mode == "full" else seqlen
    wanted = set(range(first, first + count))
    terms = {s + j for s in range(seqlen) for j in range(min(filter_len, seqlen) if mode == "causal" else filter_len)}
    places = [index % size for index in sorted(wanted)]
    if len(set(places)) < len(places):
        return False
    return not any(term % size in places and term not in wanted for term in terms)


@pytest.mark.parametrize("mode", ["causal", "full", "same"])
def test_needed_size_is_the_smallest_without_aliases(mode):
    for seqlen in LENGTHS:
        for filter_len in LENGTHS:
            needed = needed_fft_size(mode, seqlen, filter_len)
            assert outputs_are_free_of_wrapped_terms(mode, seqlen, filter_len, needed), (seqlen, filter_len)
            if needed > 1 and not (mode == "same" and filter_len > seqlen):
                assert not outputs_are_free_of_wrapped_terms(mode, seqlen, filter_len, needed - 1), (seqlen, filter_len)


@pytest.mark.parametrize("mode", ["causal", "full", "same"])
def test_default_size_is_the_power_of_two_above(mode):
    for seqlen in LENGTHS:
        for filter_len in LENGTHS:
            size = resolve_fft_size(mode, seqlen, filter_len, None)
            needed = needed_fft_size(mode, seqlen, filter_len)
            assert size & (size - 1) == 0
            assert size >= max(2, needed)
            assert size == 2 or size // 2 < needed


@pytest.mark.parametrize(
    ("mode", "seqlen", "filter_len", "size"),
    [
        ("causal", 4096, 4096, 8192),
        ("causal", 4096, 100_000, 8192),
        ("causal", 4096, 1, 4096),
        ("full", 1000, 25, 1024),
        ("full", 1000, 26, 2048),
        ("same", 1000, 48, 1024),
        ("same", 1000, 50, 2048),
        ("circular", 1000, 5000, 1000),
        ("circular", 1, 3, 1),
        ("causal", 1, 1, 2),
    ],
)
def test_default_sizes_written_out(mode, seqlen, filter_len, size):
    assert resolve_fft_size(mode, seqlen, filter_len, None) == size


def test_given_sizes_are_kept():
    assert resolve_fft_size("causal", 100, 29, 128) == 128
    assert resolve_fft_size("causal", 100, 29, 1 << 20) == 1 << 20
    assert resolve_fft_size("circular", 100, 500, 128) == 128
    assert resolve_fft_size("full", 2, 1, np.int64(2)) == 2


@pytest.mark.parametrize(
    ("mode", "size", "error", "words"),
    [
        ("causal", 100, InvalidArgumentError, ("got 100", "power of two", "fft_size=256")),
        ("causal", 300, InvalidArgumentError, ("got 300", "power of two", "fft_size=512")),
        ("causal", 128, InvalidArgumentError, ("got 128", ">= 149", "fft_size=256")),
        ("full", 64, InvalidArgumentError, ("got 64", ">= 149", "L = 100 and K = 50")),
        ("same", 64, InvalidArgumentError, ("got 64", ">= 125", "fft_size=128")),
        ("circular", 64, InvalidArgumentError, ("got 64", ">= 100", "L = 100", "fft_size=128")),
        ("circular", 100, InvalidArgumentError, ("got 100", "power of two", "leave it out")),
        ("causal", 1, InvalidArgumentError, ("got 1", ">= 2")),
        ("causal", 0, InvalidArgumentError, ("got 0", ">= 2")),
        ("causal", -256, InvalidArgumentError, ("got -256", ">= 2")),
        ("causal", 256.0, InvalidTypeError, ("256.0 of type float", "an int")),
        ("causal", True, InvalidTypeError, ("True of type bool", "an int")),
        ("causal", "256", InvalidTypeError, ("'256' of type str", "an int")),
        ("causal", [256], InvalidTypeError, ("[256] of type list", "an int")),
    ],
)
def test_wrong_sizes_are_refused(mode, size, error, words):
    with pytest.raises(error) as raised:
        resolve_fft_size(mode, 100, 50, size)
    assert str(raised.value).startswith("fft_size: got ")
    for word in words:
        assert word in str(raised.value)


def test_named_size_is_accepted():
    for mode in ("causal", "full", "same"):
        with pytest.raises(InvalidArgumentError) as raised:
            resolve_fft_size(mode, 77, 99, 64)
        named = int(str(raised.value).split("Pass fft_size=")[1].split()[0])
        assert resolve_fft_size(mode, 77, 99, named) == resolve_fft_size(mode, 77, 99, None)


def test_checks_of_single_values():
    assert check_int(np.int32(5), "batch", minimum=0) == 5
    assert type(check_int(np.int32(5), "batch", minimum=0)) is int
    assert [check_mode(mode) for mode in MODES] == list(MODES)
    assert [check_dtype(name, "dtype") for name in DTYPES] == list(DTYPES)
    with pytest.raises(InvalidTypeError, match="float64"):
        check_dtype("float64", "dtype")
    assert check_dtype("float64", "dtype", allowed=CPU_DTYPES) == "float64"
    with pytest.raises(InvalidTypeError, match=r"dtype: got .*type type"):
        check_dtype(np.float32, "dtype")
    with pytest.raises(InvalidTypeError, match="mode: got None"):
        check_mode(None)
    with pytest.raises(InvalidArgumentError, match="mode: got 'valid'"):
        check_mode("valid")


def good(**changes):
    numbers = {"batch": 2, "channels": 3, "seqlen": 100, "filter_len": 7}
    return make_problem(**{"mode": "causal", **numbers, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"batch": -1}, InvalidArgumentError, "batch"),
        ({"channels": 0}, InvalidArgumentError, "channels"),
        ({"seqlen": 0}, InvalidArgumentError, "seqlen"),
        ({"filter_len": 0}, InvalidArgumentError, "filter_len"),
        ({"batch": 1.5}, InvalidTypeError, "batch"),
        ({"seqlen": "100"}, InvalidTypeError, "seqlen"),
        ({"channels": True}, InvalidTypeError, "channels"),
        ({"dtype": "float64"}, InvalidTypeError, "dtype"),
        ({"dtype": "int32"}, InvalidTypeError, "dtype"),
        ({"filter_dtype": "complex64"}, InvalidTypeError, "filter_dtype"),
        ({"mode": "valid"}, InvalidArgumentError, "mode"),
        ({"fft_size": 96}, InvalidArgumentError, "fft_size"),
    ],
)
def test_wrong_numbers_are_refused(changes, error, name):
    with pytest.raises(error) as raised:
        good(**changes)
    assert str(raised.value).startswith(f"{name}: got ")


def test_derived_lengths():
    assert good(mode="full").out_len == 106
    assert good(mode="same").out_len == 100
    assert good(filter_len=500).taps == 100
    assert good(mode="same", filter_len=500).taps == 500
    assert good(mode="circular", filter_len=500).taps == 500
    assert good(batch=0).batch == 0


def test_problems_are_keys():
    assert good() == good()
    assert hash(good()) == hash(good())
    assert len({good(), good(in_gate=True), good(mode="same"), good(dtype="float32"), good()}) == 4
    copy = pickle.loads(pickle.dumps(good()))
    assert copy == good()
    assert hash(copy) == hash(good())
    with pytest.raises(AttributeError):
        good().batch = 5
