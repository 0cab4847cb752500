"""The boundary to the frameworks: what a view tells, without a copy; streams; outputs; CuPy arrays on host memory."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from frameworks import CPU_FRAMEWORKS, FRAMEWORKS, allocated, convert, cupy_on_host, to_float64

from fftconv_cupy import arrays, readers
from fftconv_cupy.arrays import ArrayView, view
from fftconv_cupy.errors import InvalidArgumentError, InvalidTypeError
from fftconv_cupy.problem import DTYPES, ITEM_BYTES
from fftconv_cupy.readers import NUMPY_DTYPES


def content(shape=(2, 3, 4), dtype="float32"):
    return np.arange(np.prod(shape)).reshape(shape).astype(NUMPY_DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_views(framework, dtype):
    with allocated(framework) as make:
        for shape in ((2, 3, 4), (3, 4), (4,), (), (0, 3, 4), (1, 1, 1)):
            array = make(content(shape, dtype))
            seen = view(array, "u")
            assert tuple(seen.shape) == shape
            assert seen.dtype == dtype
            assert seen.framework == framework
            assert seen.device == (0 if framework == "cupy" else -1)
            assert seen.owner is array
            if 0 not in shape:
                assert seen.strides == arrays.contiguous_strides(shape)


def test_views_of_numpy_and_cupy_share_the_memory():
    for framework in ("numpy", "cupy"):
        with allocated(framework) as make:
            array = make(content((4, 6, 10)))
            part = array[1::2, ::-1, 2:7]
            seen = view(part, "u")
            assert seen.strides == (120, -10, 1)
            start = view(array, "u").ptr
            assert seen.ptr == start + 4 * (60 + 50 + 2)
            assert view(array.transpose(2, 0, 1), "u").strides == (1, 60, 10)
            assert view(array[0, 0], "u").strides == (1,)
            assert view(array[0], "u").strides == (10, 1)
            assert view(array[:, 0, ::3], "u").strides == (60, 3)


def test_views_of_torch_share_the_memory():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 6, 10, dtype=torch.bfloat16)
    seen = view(tensor[1::2, :, 2:7], "u")
    assert seen.ptr == tensor.data_ptr() + 2 * (60 + 2)
    assert seen.strides == (120, 10, 1)
    assert view(tensor.expand(4, 6, 10).transpose(0, 2), "u").strides == (1, 10, 60)
    assert view(torch.zeros(1, 6, 10).expand(4, 6, 10), "u").strides == (0, 10, 1)
    parameter = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        assert view(parameter, "k").ptr == parameter.data_ptr()

    class Plain(torch.Tensor):
        pass

    plain = torch.ones(3).as_subclass(Plain)
    assert view(plain, "k").framework == "torch"


def test_views_of_jax_share_the_memory():
    array = convert("jax", content(dtype="bfloat16"))
    seen = view(array, "u")
    assert seen.ptr == array.unsafe_buffer_pointer()
    assert seen.strides == (12, 4, 1)


class Exported:
    """An object of an unknown framework that only speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_unknown_frameworks_on_the_cpu_are_taken_as_numpy():
    array = content((2, 3, 4))
    seen = view(Exported(array), "u")
    assert (seen.framework, seen.device, seen.ptr) == ("numpy", -1, array.ctypes.data)
    from fftconv_cupy import fftconv

    y = fftconv(Exported(array), content((3, 2)))
    assert type(y) is np.ndarray
    assert np.array_equal(y, fftconv(array, content((3, 2))))
    out = np.empty_like(array)
    handed_in = Exported(out)
    assert fftconv(Exported(array), Exported(content((3, 2))), out=handed_in) is handed_in
    assert np.array_equal(out, y)


def test_the_reader_of_a_type_is_looked_up_once(monkeypatch):
    from fftconv_cupy import readers

    view(content(), "u")

    def unexpected(_):
        raise RuntimeError("looked up again")

    monkeypatch.setattr(readers, "_reader_for", unexpected)
    assert view(content(), "u").framework == "numpy"


@pytest.mark.parametrize("framework", CPU_FRAMEWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_to_numpy_shares_the_memory(framework, dtype):
    seen = view(convert(framework, content(dtype=dtype)), "u")
    shared = arrays.to_numpy(seen)
    assert shared.dtype == NUMPY_DTYPES[dtype]
    assert shared.ctypes.data == seen.ptr
    assert np.array_equal(shared, content(dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", ["numpy", "torch", "cupy"])
def test_empty_allocates_in_the_framework_of_the_input(framework, dtype):
    with allocated(framework) as make:
        for like in (make(content(dtype=dtype)), make(content((3, 4)))):
            for shape in ((2, 3, 4), (4, 3, 2), (5,), (0, 2, 3)):
                array, seen = arrays.empty(view(like, "u"), shape, dtype, None)
                assert type(array) is type(like)
                assert tuple(array.shape) == shape
                again = view(array, "y")
                assert again.dtype == seen.dtype == dtype
                assert seen.strides == arrays.contiguous_strides(shape)
                assert (again.device, again.framework, seen.framework) == (seen.device, framework, framework)
                if 0 not in shape:
                    assert again.ptr == seen.ptr
                    assert again.strides == seen.strides


def test_empty_like_a_transposed_tensor_is_contiguous():
    torch = pytest.importorskip("torch")
    like = torch.ones(2, 4, 3).transpose(1, 2)
    array, seen = arrays.empty(view(like, "u"), (2, 3, 4), "float32", None)
    assert array.is_contiguous()
    assert seen.strides == (12, 4, 1)


def test_jax_outputs_are_handed_over():
    jax = pytest.importorskip("jax")
    like = view(convert("jax", content()), "u")
    array, seen = arrays.empty(like, (2, 5), "bfloat16", None)
    assert seen.framework == "numpy"
    array[...] = 3
    result = arrays.hand_over(array, like, 0)
    assert isinstance(result, jax.Array)
    assert result.dtype == jax.numpy.bfloat16
    assert np.array_equal(to_float64(result), np.full((2, 5), 3.0))


def test_contiguous_strides():
    assert arrays.contiguous_strides((2, 3, 4)) == (12, 4, 1)
    assert arrays.contiguous_strides((7,)) == (1,)
    assert arrays.contiguous_strides(()) == ()
    assert arrays.contiguous_strides((1 << 20, 1 << 20, 1 << 10)) == (1 << 30, 1 << 10, 1)


class Stream:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def test_stream_handles():
    assert arrays.stream_handle(0) == 0
    assert arrays.stream_handle(np.int64(12345)) == 12345
    assert arrays.stream_handle(Stream(ptr=7)) == 7
    assert arrays.stream_handle(Stream(cuda_stream=9)) == 9
    for wrong in (None, "0", 1.5, False, Stream(), Stream(ptr=None)):
        with pytest.raises(InvalidTypeError, match="stream: got"):
            arrays.stream_handle(wrong)
    with pytest.raises(InvalidArgumentError, match="stream: got -1"):
        arrays.stream_handle(Stream(ptr=-1))


def test_streams_belong_to_a_device():
    arrays.check_stream_device(5, 1)
    arrays.check_stream_device(Stream(ptr=5, device_id=-1), 1)  # CuPy's default streams
    arrays.check_stream_device(Stream(ptr=5, device_id=1), 1)
    arrays.check_stream_device(Stream(cuda_stream=5, device_index=1), 1)
    with pytest.raises(InvalidTypeError, match="cuda:0"):
        arrays.check_stream_device(Stream(cuda_stream=5, device_index=0), 1)
    with pytest.raises(InvalidArgumentError, match="on the CPU"):
        arrays.check_stream_device(5, -1)


def test_cupy_arrays_of_another_device():
    with cupy_on_host(device=3) as cupy:
        assert view(cupy.empty((2, 3, 4), np.float16), "u").device == 3


def test_repr_of_a_view_is_short():
    seen = view(content((1000, 10, 10)), "u")
    assert repr(seen) == "ArrayView(numpy, (1000, 10, 10), strides (100, 10, 1), float32, the CPU)"
    assert "cuda:1" in repr(ArrayView(0, (1,), (1,), "float16", 1, "cupy", None))


def test_item_sizes():
    assert {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()} == ITEM_BYTES


class RecordingCupy:
    """A CuPy of host-backed arrays and of streams and events that only write down what they are asked."""

    def __init__(self, cupy, current):
        self.log = []
        self.asarray = lambda obj: self._shared(cupy, obj)
        self.cuda = SimpleNamespace(
            Device=lambda device: contextlib.nullcontext(),
            Event=lambda **_: SimpleNamespace(record=lambda stream: self.log.append(("record", stream.ptr))),
            Stream=SimpleNamespace(null=self._stream(0), from_external=lambda s: self._stream(s.__cuda_stream__()[1])),
            get_current_stream=lambda device: self._stream(current),
        )

    def _shared(self, cupy, obj):
        assert "stream" not in obj.__cuda_array_interface__, "CuPy would wait for it on the host"
        return cupy.empty(obj.__cuda_array_interface__["shape"], np.float32)

    def _stream(self, handle):
        return SimpleNamespace(ptr=handle, wait_event=lambda event: self.log.append(("wait", handle)))


@pytest.mark.parametrize(
    ("producer", "given", "log"),
    [
        (None, None, []),
        (1, None, [("record", 0), ("wait", 88)]),
        (55, 77, [("record", 55), ("wait", 77)]),
    ],
)
def test_the_stream_of_a_cuda_array_interface_is_waited_for_on_the_gpu(monkeypatch, producer, given, log):
    interface = {"shape": (3, 4), "typestr": "<f4", "data": (1 << 20, False), "version": 3, "stream": producer}
    with cupy_on_host() as cupy:
        recording = RecordingCupy(cupy, current=88)
        monkeypatch.setattr(readers, "import_cupy", lambda: recording)
        seen = view(SimpleNamespace(__cuda_array_interface__=interface), "u", given)
    assert (seen.shape, seen.framework, seen.is_borrowed) == ((3, 4), "cupy", True)
    assert recording.log == log
    assert "stream" in interface, "the object's own description is left as it is"


class FakeTensor:
    def __init__(self):
        self.recorded = []

    def record_stream(self, stream):
        self.recorded.append(stream)


def fake_torch(current):
    return SimpleNamespace(
        Tensor=FakeTensor,
        _C=SimpleNamespace(_cuda_getCurrentRawStream=lambda device: current),
        cuda=SimpleNamespace(
            default_stream=lambda device: ("default", device),
            ExternalStream=lambda handle, device: (handle, device),
        ),
    )


def test_torch_is_told_of_another_stream(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch(current=5))
    tensor = FakeTensor()
    arrays.record_use([tensor, np.ones(3)], 1, 5)
    assert tensor.recorded == []
    arrays.record_use([tensor, np.ones(3)], 1, 7)
    arrays.record_use([tensor], 1, 0)
    assert tensor.recorded == [(7, 1), ("default", 1)]


@pytest.mark.parametrize("current", [0, 1])
def test_memory_of_torch_is_on_the_device_of_the_array(monkeypatch, current):
    made = []
    guards = SimpleNamespace(_empty_strided_cuda=lambda *args: made.append(("current device", *args)) or FakeMemory())
    fake = fake_torch(current=5)
    fake._C._cuda_getDevice = lambda: current
    fake._C._dynamo = SimpleNamespace(guards=guards)
    fake.float32 = "float32"
    fake.empty = lambda shape, dtype, device: made.append((device, shape, dtype)) or FakeMemory()
    monkeypatch.setitem(sys.modules, "torch", fake)
    like = arrays.ArrayView(64, (2, 3), (3, 1), "float16", 1, "torch", None)
    _, seen = arrays.empty(like, (4, 8), "float32", 5)
    assert (seen.ptr, seen.strides, seen.device) == (4096, (8, 1), 1)
    assert made == [("cuda:1", (4, 8), "float32") if current == 0 else ("current device", (4, 8), (8, 1), "float32")]


class FakeMemory:
    def data_ptr(self):
        return 4096
