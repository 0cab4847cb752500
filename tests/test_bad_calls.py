"""Every wrong call is refused before anything is computed, with the right class, saying what was got and what to do."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from bad_calls import MESSAGE, all_bad_calls
from frameworks import FRAMEWORKS, World, allocated, convert, cupy_on_host
from refusals import check_names, check_refused, forbid_computing

import fftconv_cupy
from fftconv_cupy import arrays, execute, fftconv, numpy_backend, plan, prepare_filter, warmup
from fftconv_cupy.dependencies import import_cupy
from fftconv_cupy.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    MissingDependencyError,
    UnsupportedDeviceError,
    UnsupportedProblemError,
)

BAD_CALLS = all_bad_calls()


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch):
    forbid_computing(monkeypatch)


def test_there_are_enough_and_each_has_a_name():
    check_names(BAD_CALLS, least=200)


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.name)
def test_bad_call(bad):
    check_refused(bad)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_call_that_the_bad_ones_vary_is_good(framework, monkeypatch):
    monkeypatch.setattr(arrays, "current_device", lambda: 0)
    stream = {"stream": 0} if framework == "cupy" else {}  # there is no current one without a GPU
    with allocated(framework), pytest.raises(AssertionError, match=r"the backend was called|launch\.check was used"):
        fftconv(**World(framework).good(), **stream)


def refused(error, call, *args, **kwargs):
    with pytest.raises(error) as raised:
        call(*args, **kwargs)
    assert type(raised.value) is error
    parts = MESSAGE.fullmatch(str(raised.value))
    assert parts is not None, str(raised.value)
    return parts


U, K = np.ones((2, 3, 16), np.float32), np.ones((3, 5), np.float32)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torch_tensors_with_gradients():
    torch = pytest.importorskip("torch")
    u, k = torch.ones(2, 3, 16), torch.ones(3, 5)
    leaf = k.clone().requires_grad_()
    for needing in (leaf, leaf * 2, torch.nn.Parameter(k)):
        parts = refused(InvalidTypeError, prepare_filter, needing, seqlen=16)
        assert parts["what"] == "k"
        assert "requires grad" in parts["got"]
        assert "torch.no_grad()" in parts["do"]
        for option in ({"out": torch.ones(2, 3, 16)}, {"stream": 0}):
            parts = refused(InvalidArgumentError, fftconv, u, needing, **option)
            assert parts["what"] in option
            assert "differentiates" in parts["got"]
    refused(InvalidTypeError, fftconv, u, k, out=torch.ones(2, 3, 16, requires_grad=True))
    assert refused(InvalidTypeError, fftconv, u.numpy(), leaf)["what"] == "u"
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(k, torch.ones_like(k))
        assert "tangent" in refused(InvalidTypeError, prepare_filter, dual, seqlen=16)["got"]


@pytest.mark.filterwarnings("ignore")  # torch calls several of these kinds of tensors prototypes or deprecated
def test_torch_tensors_without_plain_memory():
    torch = pytest.importorskip("torch")
    k = torch.ones(3, 5)
    meta = torch.ones(2, 3, 16, device="meta")
    assert "device meta" in refused(InvalidTypeError, fftconv, meta, k)["got"]
    assert "sparse_coo" in refused(InvalidTypeError, fftconv, torch.ones(3, 16).to_sparse(), k)["got"]
    assert "sparse_csr" in refused(InvalidTypeError, fftconv, torch.ones(3, 16).to_sparse_csr(), k)["got"]
    assert "mkldnn" in refused(InvalidTypeError, fftconv, torch.ones(3, 16).to_mkldnn(), k)["got"]
    nested = torch.nested.nested_tensor([torch.ones(16), torch.ones(8)])
    refused(InvalidTypeError, fftconv, nested, k)
    refused(InvalidTypeError, fftconv, torch._efficientzerotensor((3, 16)), k)
    quantised = torch.quantize_per_tensor(torch.ones(3, 16), 0.1, 0, torch.qint8)
    assert refused(InvalidTypeError, fftconv, quantised, k)["what"] == "u.dtype"
    negated = torch.ones(3, 16, dtype=torch.complex64).conj().imag
    parts = refused(InvalidTypeError, fftconv, negated, k)
    assert "negative bit" in parts["got"]
    assert "resolve_neg" in parts["do"]
    conjugated = torch.ones(3, 16, dtype=torch.complex64).conj()
    assert parts["what"] in refused(InvalidTypeError, fftconv, conjugated, k)["what"]
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = torch.ones(3, 16)
    assert "FakeTensor" in refused(InvalidTypeError, fftconv, fake, k)["got"]


def test_torch_function_transforms():
    torch = pytest.importorskip("torch")
    for transform in (torch.func.vmap, torch.func.grad):
        parts = refused(InvalidTypeError, transform(lambda k: prepare_filter(k, seqlen=16)), torch.ones(2, 3, 5))
        assert "no_grad" in parts["do"] or "torch.func" in parts["do"]


def test_jax_tracers_and_deleted_arrays():
    jax = pytest.importorskip("jax")
    u, k = convert("jax", U), convert("jax", K)
    for transform in (jax.jit, jax.vmap, jax.grad):
        parts = refused(InvalidTypeError, transform(lambda u: fftconv(u, k).sum()), u)
        assert parts["what"] == "u"
        assert "tracer" in parts["got"]
        assert "fftconv_cupy.jax" in parts["do"]
    u.delete()
    assert "deleted" in refused(InvalidTypeError, fftconv, u, k)["got"]
    assert refused(InvalidTypeError, fftconv, jax.random.split(jax.random.key(0), 16), k)["what"] == "u.dtype"


def test_strides_between_elements():
    record = np.zeros((2, 3, 16), np.dtype([("a", np.float32), ("b", np.int8)]))
    parts = refused(InvalidArgumentError, fftconv, record["a"], K)
    assert parts["what"] == "u.strides"
    assert "bytes" in parts["got"]
    assert "contiguous copy" in parts["do"]
    flat = np.zeros((16,), np.dtype([("a", np.float32), ("b", np.int8)]))
    refused(InvalidArgumentError, fftconv, flat["a"], K[0])


def test_misaligned_gpu_array():
    with cupy_on_host() as cupy:
        memory = cupy.cuda.alloc(1024)
        u = cupy.ndarray((2, 3, 16), np.float32, memory + 2)
        parts = refused(InvalidArgumentError, fftconv, u, cupy.empty((3, 5), np.float32))
    assert parts["what"] == "u's address"
    assert "Pass a copy" in parts["do"]


def test_objects_on_unknown_devices():
    class Exported:
        def __init__(self, device):
            self.device = device

        def __dlpack_device__(self):
            return self.device

        def __dlpack__(self, **_):
            raise BufferError("not today")

    parts = refused(InvalidTypeError, fftconv, Exported((10, 0)), K)  # kDLROCM
    assert "DLPack device type 10" in parts["got"]
    parts = refused(InvalidTypeError, fftconv, Exported((1, 0)), K)
    assert "not today" in parts["got"]
    assert "Convert it" in parts["do"]


def test_gpu_arrays_without_cupy(monkeypatch):
    class OnGpu:
        __cuda_array_interface__ = {"shape": (2, 3, 16), "typestr": "<f4", "data": (1 << 20, False), "version": 3}  # noqa: RUF012

    class Exported:
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **_):
            raise AssertionError("must not be asked")

    monkeypatch.setitem(sys.modules, "cupy", None)
    import_cupy.cache_clear()
    for array in (OnGpu(), Exported()):
        with pytest.raises(MissingDependencyError) as raised:
            fftconv(array, K)
        parts = MESSAGE.fullmatch(str(raised.value))
        assert parts is not None
        assert "fftconv-cupy[cuda12]" in parts["do"]
    assert isinstance(raised.value, ImportError)
    monkeypatch.setattr(execute, "_launch", None)
    with pytest.raises(MissingDependencyError, match=r"fftconv-cupy\[cuda13\]"):
        warmup(1, 1, 16, 16, archs=["sm_90"])
    refused(UnsupportedDeviceError, plan, 1, 1, 16, 16)
    monkeypatch.setattr(numpy_backend, "convolve", lambda *_: None)
    assert fftconv(U, K).shape == U.shape  # the CPU needs none
    import_cupy.cache_clear()


@pytest.mark.parametrize("call", [plan, warmup])
def test_plan_and_warmup(call):
    for changes, error, what in (
        ({"batch": 0}, InvalidArgumentError, "batch"),
        ({"channels": 0}, InvalidArgumentError, "channels"),
        ({"seqlen": -1}, InvalidArgumentError, "seqlen"),
        ({"filter_len": 0}, InvalidArgumentError, "filter_len"),
        ({"seqlen": 16.0}, InvalidTypeError, "seqlen"),
        ({"mode": "valid"}, InvalidArgumentError, "mode"),
        ({"dtype": "float64"}, InvalidTypeError, "dtype"),
        ({"dtype": np.float16}, InvalidTypeError, "dtype"),
        ({"filter_dtype": "int32"}, InvalidTypeError, "filter_dtype"),
        ({"fft_size": 100}, InvalidArgumentError, "fft_size"),
        ({"fft_size": 16}, InvalidArgumentError, "fft_size"),
    ):
        where = {"arch": "sm_90"} if call is plan else {"archs": ["sm_90"]}
        shape = {"batch": 2, "channels": 3, "seqlen": 16, "filter_len": 5}
        assert refused(error, call, **{**shape, **where, **changes})["what"] == what


def test_plan_of_other_architectures():
    assert "sm_70" in refused(UnsupportedDeviceError, plan, 1, 1, 16, 16, arch="sm_70")["got"]
    assert "33554432" in refused(UnsupportedProblemError, plan, 1, 1, 1 << 24, 1 << 24, arch="sm_90")["got"]
    refused(UnsupportedProblemError, plan, 1, 1, 16, 16, fft_size=1 << 25, arch="sm_90")


def test_a_default_period_is_not_advised_where_it_cannot_be_passed():
    u, k = np.ones((3, 1000), np.float32), np.ones((3, 5), np.float32)
    for fft_size, do in ((None, "Leave fft_size out here too"), (1024, "Pass fft_size=1024")):
        prepared = prepare_filter(k, seqlen=1000, mode="circular", fft_size=fft_size)
        parts = refused(InvalidArgumentError, fftconv, u, prepared, mode="circular", fft_size=2048)
        assert do in parts["do"]


def test_errors_are_what_python_calls_them():
    assert issubclass(InvalidArgumentError, ValueError)
    assert issubclass(InvalidTypeError, TypeError)
    assert issubclass(fftconv_cupy.UnsupportedProblemError, ValueError)
    with pytest.raises(TypeError):
        fftconv(U, K, kernel_size=3)
