"""The TensorRT session on a fake TensorRT and a fake CUDA: answers, threads, lifetime, and every failure."""

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fake_tensorrt
import numpy as np
import pytest
from fake_cuda import FAKE_DEVICE, FakeCuda
from fake_tensorrt import RTX_KERNELS, VERSIONS, FakeTensorRT, make_engine, make_header
from onnx import TensorProto

from edgekiln.runtime.backends import kernel_cache, open_session
from edgekiln.runtime.backends import tensorrt as backend
from edgekiln.runtime.backends.kernel_cache import KernelCache, kernel_cache_folder
from edgekiln.runtime.backends.tensorrt import GraphUse, TensorRTSession
from edgekiln.runtime.backends.tensorrt_buckets import ProfileUse
from edgekiln.runtime.cuda import arrays
from edgekiln.runtime.errors import (
    DeviceError,
    EngineError,
    EnvironmentProblem,
    InputError,
    MissingExtraError,
    NonFiniteError,
    ResourceError,
    UsageError,
)

DISCRETE = replace(FAKE_DEVICE, integrated=False)
ALL = ["10.3", "11.4", "rtx"]
SECONDS = 20  # more than any wait here takes; a hang becomes a failure
LIBRARY_CALLS = [
    "Runtime",
    "deserialize_cuda_engine",
    "create_runtime_config",
    "create_execution_context",
    "set_input_shape",
    "set_tensor_address",
    "set_device_memory",
    "execute_async_v3",
]
CUDA_CALLS = [
    "create_event",
    "create_stream",
    "allocate_pinned",
    "allocate_device",
    "copy_to_device",
    "copy_to_host",
    "capture",
    "launch",
    "synchronize",
]


class GatedCuda(FakeCuda):
    """Once ``shut``, a call waits in ``synchronize`` until ``gate`` is set, and tells so in ``entered``."""

    def __init__(self):
        super().__init__(properties=DISCRETE)
        self.shut, self.gate, self.entered = False, threading.Event(), threading.Semaphore(0)

    def _synchronize_stream(self, token):
        if self.shut:
            self.entered.release()
            assert self.gate.wait(SECONDS)
        super()._synchronize_stream(token)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def open_fake(mean_model):
    """Opens a session on fakes, with one engine of the mean model; sees that closing it leaves nothing behind."""
    opened = []

    def open_(flavour, *engines, cuda=None, library=None, **options):
        library = library or FakeTensorRT(cuda or FakeCuda(properties=DISCRETE), flavour)
        engines = engines or (make_engine(mean_model, flavour),)
        session = TensorRTSession(
            engines, flavour=name_of(flavour), cuda=library.cuda, trt=library.module, **options
        )
        opened.append((session, library))
        return session, library.cuda, library

    yield open_
    for session, library in opened:
        session.close()
        assert_nothing_is_left(library)
        assert library.destroyed_unprotected == []


def name_of(flavour):
    return "tensorrt-rtx" if flavour == "rtx" else "tensorrt"


def exact(frames):
    return frames.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def frames_of(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 8, 3), np.uint8)


def assert_nothing_is_left(library):
    if +library.alive:
        gc.collect()  # a failure's traceback still holds what it was about
    assert library.cuda.live == {}
    assert library.cuda.allocated == 0
    assert not library.cuda.active
    assert +library.alive == {}


def in_threads(*tasks: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result(SECONDS) for future in [pool.submit(task) for task in tasks]]


# ----------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("flavour", ALL)
def test_properties_tell_what_runs(open_fake, flavour):
    session, _, _ = open_fake(flavour)
    assert (session.backend, session.device, session.threads) == (name_of(flavour), "cuda:0", None)
    assert (session.frame_shape, session.num_classes) == ((4, 8), 3)
    assert session.buckets == (1, 2, 4)


@pytest.mark.parametrize("device", [DISCRETE, FAKE_DEVICE], ids=["discrete", "integrated"])
@pytest.mark.parametrize("wait", ["spin", "blocking"])
@pytest.mark.parametrize("flavour", ALL)
def test_any_batch_size_gives_the_answers_of_onnxruntime(open_fake, mean_model, flavour, wait, device):
    session, _, _ = open_fake(flavour, cuda=FakeCuda(properties=device), wait=wait)
    reference = open_session("onnxruntime-cpu", mean_model)
    for count in (0, 1, 2, 3, 5, 4, 5, 14, 3, 1):
        frames = frames_of(count, count)
        before = frames.copy()
        logits = session.run(frames)
        assert (logits.dtype, logits.shape) == (np.float32, (count, 3))
        np.testing.assert_array_equal(logits, reference.run(frames))
        np.testing.assert_array_equal(logits, exact(frames))
        np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize(
    ("batch", "buckets"),
    [
        ((1, 1), (1,)),
        ((1, 8), (1, 2, 4, 8)),
        ((1, 6), (1, 2, 4, 6)),
        ((3, 6), (3, 4, 6)),
        ((4, 4), (4,)),
        ((2, 3), (2, 3)),
    ],
)
def test_buckets_of_a_range(open_fake, mean_model, batch, buckets):
    session, _, library = open_fake("10.3", make_engine(mean_model, "10.3", batch), slots=1)
    assert session.buckets == buckets
    assert library.calls["create_execution_context"] == len(buckets)
    for count in range(2 * batch[1] + 2):
        frames = frames_of(count, count)
        np.testing.assert_array_equal(session.run(frames), exact(frames))


@pytest.mark.parametrize("flavour", ALL)
def test_static_engines_make_one_session(open_fake, mean_model, flavour):
    engines = [make_engine(mean_model, flavour, (size, size)) for size in (4, 1)]
    session, _, library = open_fake(flavour, *engines)
    assert session.buckets == (1, 4)
    assert library.calls["get_tensor_profile_shape"] == 0
    for count in range(10):
        frames = frames_of(count, count)
        np.testing.assert_array_equal(session.run(frames), exact(frames))


def test_the_narrower_of_two_engines_serves_a_size(open_fake, build_model, mean_model):
    twice = make_engine(build_model(scale=2.0), "10.3", (4, 4))
    once = make_engine(mean_model, "10.3", (1, 8))
    for engines in ((twice, once), (once, twice)):
        session, _, _ = open_fake("10.3", *engines)
        assert session.buckets == (1, 2, 4, 8)
        for count, factor in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 1), (8, 1)):
            frames = frames_of(count, count)
            np.testing.assert_array_equal(session.run(frames), factor * exact(frames))


# --------------------------------------------------------------------------------------- arrays on the GPU


class OnGpu:
    """uint8 frames in the fake device's memory, as another library holds them."""

    def __init__(self, cuda, frames, *, stream=None, device=0, strides=None, typestr="|u1"):
        self.cuda, self.memory = cuda, cuda.allocate_device(max(1, frames.nbytes))
        with cuda.activate():
            cuda.view(self.memory.address, max(1, frames.nbytes))[: frames.nbytes] = frames.reshape(-1)
        self.shape, self.device = frames.shape, device
        self.about = {"shape": frames.shape, "typestr": typestr, "data": (self.memory.address, True),
                      "strides": strides, "version": 3, "stream": stream}  # fmt: skip


class ByInterface(OnGpu):
    @property
    def __cuda_array_interface__(self):
        return self.about


class ByDLPack(OnGpu):
    """Its capsule is made by the module under test, whose own reading of a real one is held against numpy below."""

    def __dlpack_device__(self):
        return 2, self.device

    def __dlpack__(self, *, stream):
        assert stream in self.cuda._queues  # ours: the producer orders its work before it
        return make_capsule(self.memory.address, self.shape)


def make_capsule(address, shape, code=1, bits=8, strides=None):
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(strides))(*strides) if strides else None
    pointer = ctypes.POINTER(ctypes.c_int64)
    tensor = arrays._DLTensor(address, 2, 0, len(shape), code, bits, 1, ctypes.cast(sizes, pointer),
                              ctypes.cast(steps, pointer) if steps else None, 0)  # fmt: skip
    managed = arrays._DLManagedTensor(tensor, None, arrays._delete)
    arrays._exported[ctypes.addressof(managed)] = (managed, sizes, steps)
    return arrays._new_capsule(ctypes.addressof(managed), b"dltensor", arrays._drop_capsule)


@pytest.mark.parametrize("kind", [ByInterface, ByDLPack])
@pytest.mark.parametrize("device", [DISCRETE, FAKE_DEVICE], ids=["discrete", "integrated"])
@pytest.mark.parametrize("flavour", ALL)
def test_frames_on_the_gpu_are_answered_without_the_host(open_fake, flavour, device, kind):
    session, cuda, _ = open_fake(flavour, cuda=FakeCuda(properties=device))
    for count in (0, 1, 3, 4, 9):
        frames = frames_of(count, count)
        given = kind(cuda, frames)
        before = cuda.calls.copy()
        np.testing.assert_array_equal(session.run(given), exact(frames))
        made = cuda.calls - before
        assert made["copy_on_device"] == -(-count // 4)
        assert not {"copy_to_device", "allocate_device", "allocate_pinned", "capture"} & made.keys()
        given.memory.free()
    assert arrays._exported == {}  # every capsule was let go


@pytest.mark.parametrize("kind", [ByInterface, np.asarray])
@pytest.mark.parametrize("flavour", ALL)
def test_answers_stay_on_the_gpu_where_asked_for(open_fake, flavour, kind):
    session, cuda, _ = open_fake(flavour)
    frames = frames_of(5, 9)
    given = kind(cuda, frames) if kind is ByInterface else frames
    answers = session.run_on_device(given)
    about = answers.__cuda_array_interface__
    assert (about["shape"], about["typestr"], about["strides"], about["stream"]) == (
        (9, 3),
        "<f4",
        None,
        None,
    )
    assert (answers.shape, answers.dtype, answers.device) == ((9, 3), np.float32, "cuda:0")
    with cuda.activate():
        logits = cuda.view(about["data"][0], 9 * 3 * 4).view(np.float32).reshape(9, 3)
    np.testing.assert_array_equal(logits, exact(frames))
    before = cuda.allocated
    del answers
    assert cuda.allocated == before - 9 * 3 * 4
    given.memory.free() if kind is ByInterface else None


def test_answers_are_read_by_dlpack_and_live_as_long_as_their_reader(open_fake):
    session, cuda, _ = open_fake("11.4")
    frames = frames_of(1, 3)
    answers = session.run_on_device(frames)
    before, capsule = cuda.allocated, answers.__dlpack__(stream=1)
    assert answers.__dlpack_device__() == (2, 0)
    tensor = arrays._DLTensor.from_address(arrays._pointer_of(capsule, b"dltensor"))
    assert (tensor.code, tensor.bits, tensor.lanes, tensor.ndim) == (2, 32, 1, 2)
    assert (tensor.shape[0], tensor.shape[1], bool(tensor.strides)) == (3, 3, False)
    with cuda.activate():
        logits = cuda.view(tensor.data, 36).view(np.float32).reshape(3, 3)
    np.testing.assert_array_equal(logits, exact(frames))
    del answers
    assert cuda.allocated == before  # the capsule holds it
    del capsule, tensor
    assert cuda.allocated == before - 36
    answers = session.run_on_device(frames)
    answers._memory.free()  # as the end of the CUDA that it is of
    with pytest.raises(UsageError, match="device memory is closed"):
        _ = answers.__cuda_array_interface__


def test_work_waits_for_the_stream_that_fills_the_frames(open_fake):
    """What the other stream still has to do is done before the frames are read, and nobody waits for it before."""
    session, cuda, _ = open_fake("10.3")
    frames, other = frames_of(2, 3), cuda.create_stream()
    given = ByInterface(cuda, np.zeros_like(frames), stream=other.handle)

    def fill():
        cuda.view(given.memory.address, frames.nbytes)[:] = frames.reshape(-1)

    with cuda.activate():
        cuda.enqueue(other.handle, fill)
    np.testing.assert_array_equal(session.run(given), exact(frames))
    assert cuda.calls["wait_for"] == 1
    given.memory.free()
    other.close()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"typestr": "<f4"}, r"Got float32 \(2, 4, 8, 3\) on the GPU, wanted uint8 \(N, 4, 8, 3\)"),
        ({"strides": (96, 8, 1, 32)}, r"strides \(96, 8, 1, 32\), wanted \(96, 24, 3, 1\)"),
        ({"stream": 0}, "stream 0, which the interface does not allow"),
        ({"typestr": "nonsense"}, "__cuda_array_interface__ cannot be read"),
    ],
)
def test_frames_of_another_kind_on_the_gpu_are_refused(open_fake, changes, told):
    session, cuda, _ = open_fake("10.3")
    given = ByInterface(cuda, frames_of(0, 2), **changes)
    with pytest.raises(InputError, match=told):
        session.run(given)
    given.memory.free()
    np.testing.assert_array_equal(session.run(frames_of(0, 2)), exact(frames_of(0, 2)))


def test_frames_elsewhere_are_refused(open_fake):
    session, cuda, _ = open_fake("10.3")
    given = ByDLPack(cuda, frames_of(0, 2), device=1)
    with pytest.raises(InputError, match=r"are on cuda:1, and the session runs on cuda:0\. Move them"):
        session.run(given)
    freed = ByInterface(cuda, frames_of(0, 2))
    freed.memory.free()
    freed.about["data"] = (0x7_0000_0000_0000, True)
    with pytest.raises(InputError, match=r"is no memory of a GPU: .*An array that was freed"):
        session.run(freed)
    given.memory.free()


def test_a_capsule_of_another_layout_is_refused_and_let_go(open_fake, monkeypatch):
    session, cuda, _ = open_fake("10.3")
    given = ByDLPack(cuda, frames_of(0, 2))
    for code, bits, strides, told in ((2, 16, None, "Got float16"), (1, 8, (96, 8, 1, 32), "strides")):
        capsule = make_capsule(given.memory.address, (2, 4, 8, 3), code, bits, strides)
        monkeypatch.setattr(given, "__dlpack__", None, raising=False)
        monkeypatch.setattr(ByDLPack, "__dlpack__", lambda self, *, stream, kept=[capsule]: kept.pop())
        del capsule
        monkeypatch.delattr(given, "__dlpack__")
        with pytest.raises(InputError, match=told):
            session.run(given)
    given.memory.free()


TWO_PROFILES = [(1, 1, 1), (2, 4, 8)]


@pytest.mark.parametrize("device", [DISCRETE, FAKE_DEVICE], ids=["discrete", "integrated"])
@pytest.mark.parametrize("flavour", ALL)
def test_each_batch_runs_on_the_profile_with_the_nearest_opt(open_fake, mean_model, flavour, device):
    engine = make_engine(mean_model, flavour, TWO_PROFILES, workspace=[256, 4096])
    session, _, _ = open_fake(flavour, engine, cuda=FakeCuda(properties=device), slots=2)
    assert session.profiles == (ProfileUse(1, 1, 1, (1,), 256), ProfileUse(2, 4, 8, (2, 4, 8), 4096))
    chosen = [{size: b.context._profile for size, b in slot._buckets.items()} for slot in session._all_slots]
    assert chosen == [{1: 0, 2: 1, 4: 1, 8: 1}] * 2
    frame_bytes = 0 if device.integrated else 8 * (4 * 8 * 3 + 3 * 4)
    device_bytes = sum(memory.nbytes for memory in device_memories(session))
    assert device_bytes == 2 * (4096 + frame_bytes)  # a slot's profiles share the larger one
    for count in (0, 1, 2, 3, 5, 8, 9, 17):
        frames = frames_of(count, count)
        np.testing.assert_array_equal(session.run(frames), exact(frames))


def device_memories(session):
    found = ((slot._workspace, slot._device_in, slot._device_out) for slot in session._all_slots)
    return [memory for memories in found for memory in memories if memory is not None]


def test_a_session_of_one_profile_chooses_none(open_fake):
    session, _, library = open_fake("11.4")
    assert library.calls["set_optimization_profile_async"] == 0
    assert session.profiles == (ProfileUse(1, 4, 4, (1, 2, 4), 512),)


def test_a_profile_that_is_refused_leaves_nothing(open_fake, mean_model):
    engine = make_engine(mean_model, "10.3", TWO_PROFILES)
    library = FakeTensorRT(FakeCuda(properties=DISCRETE), "10.3", {"set_optimization_profile_async": 3})
    with pytest.raises(EngineError, match=r"The engine refused profile 1: .*told to fail"):
        open_fake("10.3", engine, library=library)
    assert_nothing_is_left(library)


def test_engines_of_different_models_are_refused(open_fake, build_model, mean_model):
    other = make_engine(build_model(height=8), "10.3", (1, 1))
    with pytest.raises(EngineError, match=r"they are not of one model\. Give the engines of one"):
        open_fake("10.3", make_engine(mean_model, "10.3"), other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"input_type": TensorProto.FLOAT}, r"image: DataType\.FLOAT \(-1, 4, 8, 3\), logits: "),
        ({"outputs": 2}, r"logits1: DataType\.FLOAT \(-1, 3\)"),
        ({"output_type": TensorProto.FLOAT16}, r"logits: DataType\.HALF"),
    ],
)
def test_an_engine_with_other_ends_is_refused(open_fake, build_model, changes, told):
    with pytest.raises(EngineError, match=f"{told}.*wanted one uint8.*Build it here"):
        open_fake("11.4", make_engine(build_model(**changes), "11.4"))


def test_no_engine_and_no_slot_are_refused(open_fake, mean_model):
    with pytest.raises(UsageError, match=r"at least one engine, got none\. Give"):
        TensorRTSession([], flavour="tensorrt", cuda=FakeCuda())
    with pytest.raises(UsageError, match=r"slots must be at least 1, got 0\. One slot"):
        open_fake("10.3", slots=0)


def test_views_of_frames_work(open_fake):
    session, _, _ = open_fake("10.3")
    frames = frames_of(0, 6)
    frames.flags.writeable = False
    mixed = np.ascontiguousarray(frames.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)
    for view in (frames, frames[::2], frames[::-1], frames[..., ::-1], mixed):
        np.testing.assert_array_equal(session.run(view), exact(view))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 4, 8, 3), np.float32),
        np.zeros((4, 8, 3), np.uint8),
        np.zeros((0, 8, 4, 3), np.uint8),
        [[0]],
    ],
)
def test_wrong_frames_are_refused(open_fake, frames):
    session, _, _ = open_fake("10.3")
    for call in (session.run, lambda given: session.measure_device_ms(given, 1)):
        with pytest.raises(InputError, match=r"wanted uint8 \(N, 4, 8, 3\)"):
            call(frames)


@pytest.mark.parametrize("flavour", ALL)
def test_nan_is_refused_with_its_image_and_does_not_leak_out_of_padding(open_fake, build_model, flavour):
    model = build_model(shift=-128.0, tail="Sqrt")  # NaN for dark pictures only
    session, _, _ = open_fake(flavour, make_engine(model, flavour), slots=1)
    dark, bright = np.zeros((6, 4, 8, 3), np.uint8), np.full((6, 4, 8, 3), 255, np.uint8)
    dark[:5] = 255
    with pytest.raises(
        NonFiniteError, match=rf"{name_of(flavour)} gave NaN .* image 5 of the batch \(1 in all\)"
    ):
        session.run(dark)
    with pytest.raises(NonFiniteError, match="image 0 of the batch"):
        session.run(dark[2:][::-1])  # leaves dark rows behind the first
    assert np.isfinite(session.run(bright[:3])).all()


# --------------------------------------------------------------------------------------- what a call does


@pytest.mark.parametrize("device", [DISCRETE, FAKE_DEVICE], ids=["discrete", "integrated"])
@pytest.mark.parametrize("flavour", ALL)
def test_a_call_allocates_nothing_and_touches_no_context(open_fake, flavour, device):
    session, cuda, library = open_fake(flavour, cuda=FakeCuda(properties=device))
    for count in (1, 2, 3, 4):
        session.run(frames_of(count, count))
    calls, library_calls, live = cuda.calls.copy(), library.calls.copy(), set(cuda.live)
    for call in range(50):
        session.run(frames_of(call, call % 4 + 1))
    assert set(cuda.live) == live
    copies = 0 if device.integrated else 50
    if flavour == "rtx":
        expected = {"synchronize": 50, "copy_to_device": copies, "copy_to_host": copies}
        assert library.calls - library_calls == {"execute_async_v3": 50}
    else:  # the copies are in the graph
        expected = {"synchronize": 50, "launch": 50}
        assert library.calls == library_calls
    assert cuda.calls - calls == {name: number for name, number in expected.items() if number}


@pytest.mark.parametrize("flavour", ALL)
def test_shared_memory_is_mapped_and_never_copied(open_fake, flavour):
    session, cuda, _ = open_fake(flavour, cuda=FakeCuda(properties=FAKE_DEVICE))
    np.testing.assert_array_equal(session.run(frames_of(0, 7)), exact(frames_of(0, 7)))
    assert (cuda.calls["copy_to_device"], cuda.calls["copy_to_host"]) == (0, 0)
    assert cuda.calls["allocate_device"] == 2  # working memory, one for each slot


def test_memory_that_cannot_be_mapped_is_copied(open_fake):
    unable = replace(FAKE_DEVICE, can_map_host_memory=False)
    session, cuda, _ = open_fake("10.3", cuda=FakeCuda(properties=unable))
    np.testing.assert_array_equal(session.run(frames_of(0, 3)), exact(frames_of(0, 3)))
    assert cuda.calls["copy_to_device"] > 0


def test_an_engine_without_working_memory_gets_none(open_fake, mean_model):
    session, cuda, library = open_fake("10.3", make_engine(mean_model, "10.3", workspace=0))
    assert library.calls["set_device_memory"] == 0
    assert cuda.calls["allocate_device"] == 4  # in and out, of two slots
    np.testing.assert_array_equal(session.run(frames_of(0, 3)), exact(frames_of(0, 3)))


def test_rtx_captures_graphs_itself_and_compiles_ahead(open_fake):
    _, cuda, library = open_fake("rtx")
    (config,) = library.configs
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert cuda.calls["capture"] == 0


@pytest.mark.parametrize("flavour", ALL)
def test_a_slot_has_one_working_memory_for_all_its_contexts(open_fake, mean_model, flavour):
    engine = make_engine(mean_model, flavour, (1, 32), workspace=4096)
    _, cuda, library = open_fake(flavour, engine, cuda=FakeCuda(properties=FAKE_DEVICE), slots=2)
    assert library.calls["create_execution_context"] == 12
    assert cuda.allocated == 2 * 4096
    assert library.own_memory == 0  # what contexts allocated for themselves


def test_graphs_tell_what_runs_as_one(open_fake, caplog):
    assert open_fake("10.3")[0].graphs == GraphUse((1, 2, 4), False, {})
    assert open_fake("rtx")[0].graphs == GraphUse((), True, {})
    assert caplog.messages == []
    cuda = FakeCuda(properties=DISCRETE, fail_at={"capture": 5})  # the second slot's second one
    session, _, _ = open_fake("11.4", cuda=cuda)
    reason = "fake capture failed: CUDA_ERROR_FAKE (call 5 was told to fail)."
    assert session.graphs == GraphUse((1, 4), False, {2: reason})
    assert caplog.messages == [f"no CUDA graph for batch size 2, which runs call by call: {reason}"]
    calls, live = cuda.calls.copy(), set(cuda.live)
    for _ in range(4):
        np.testing.assert_array_equal(session.run(frames_of(2, 2)), exact(frames_of(2, 2)))
    assert set(cuda.live) == live  # nor is anything allocated where there is no graph
    assert not (cuda.calls - calls).keys() & {"allocate_device", "allocate_pinned", "create_event", "capture"}
    with pytest.raises(AttributeError):
        session.graphs = None


class NamedCuda(FakeCuda):
    """Keeps the order of what puts work on a stream or marks it."""

    def __init__(self):
        super().__init__(properties=DISCRETE)
        self.order = []

    def _count(self, name):
        super()._count(name)
        self.order.append(name)


def test_the_gpu_is_at_work_when_a_measurement_begins(open_fake):
    session, cuda, _ = open_fake("10.3", cuda=NamedCuda())
    cuda.order.clear()
    session.measure_device_ms(frames_of(0, 3), 2)
    assert cuda.order == ["launch", "record", "launch", "record", "synchronize_event"] * 2


@pytest.mark.parametrize("wait", ["spin", "blocking"])
def test_waiting_is_done_as_asked(open_fake, wait):
    session, cuda, _ = open_fake("10.3", wait=wait)
    before = cuda.calls.copy()
    session.run(frames_of(0, 1))
    spin = {"launch": 1, "synchronize": 1}
    assert cuda.calls - before == (
        spin if wait == "spin" else {"launch": 1, "record": 1, "synchronize_event": 1}
    )


@pytest.mark.parametrize("flavour", ALL)
def test_device_time_is_measured(open_fake, flavour):
    session, _, _ = open_fake(flavour)
    times = session.measure_device_ms(frames_of(0, 3), 5)
    assert len(times) == 5
    assert all(isinstance(ms, float) and ms > 0 for ms in times)
    np.testing.assert_array_equal(session.run(frames_of(1, 3)), exact(frames_of(1, 3)))


@pytest.mark.parametrize("count", [0, 5])
def test_device_time_is_of_one_batch(open_fake, count):
    session, _, _ = open_fake("10.3")
    for measure in (session.measure_device_ms, session.measure_phases):
        with pytest.raises(UsageError, match=f"One batch has 1 to 4 frames, got {count}"):
            measure(frames_of(0, count), 1)


@pytest.mark.parametrize("flavour", ALL)
@pytest.mark.parametrize("integrated", [False, True])
def test_phases_of_a_call_are_told_apart(open_fake, flavour, integrated):
    cuda = FakeCuda(properties=replace(FAKE_DEVICE, integrated=integrated))
    session, _, _ = open_fake(flavour, cuda=cuda)
    alive = cuda.calls["create_event"]
    found = session.measure_phases(frames_of(0, 3), 4)
    assert len(found) == 4
    assert cuda.calls["create_event"] == alive + 4 * 4
    for phases in found:
        assert min(phases.host_ms, phases.enqueue_ms, phases.device_ms) > 0
        copies = (phases.copy_in_ms, phases.copy_out_ms)
        assert copies == (None, None) if integrated else min(copies) >= 0
    np.testing.assert_array_equal(session.run(frames_of(1, 3)), exact(frames_of(1, 3)))


def test_phases_are_measured_behind_a_call_and_between_events(open_fake):
    session, cuda, _ = open_fake("10.3", cuda=NamedCuda())
    cuda.order.clear()
    session.measure_phases(frames_of(0, 3), 1)
    timed = ["record", "copy_to_device", "record", "record", "copy_to_host", "record"]
    assert cuda.order == [*["create_event"] * 4, "launch", *timed, "synchronize_event"]


# ----------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("flavour", ALL)
def test_each_of_eight_threads_gets_its_own_answers(open_fake, flavour):
    session, _, _ = open_fake(flavour, slots=2)
    barrier = threading.Barrier(8)

    def work(seed):
        barrier.wait(SECONDS)
        for call in range(30):
            frames = frames_of((seed, call), (seed + call) % 7)
            np.testing.assert_array_equal(session.run(frames), exact(frames))
        return seed

    assert in_threads(*(lambda seed=seed: work(seed) for seed in range(8))) == list(range(8))


@pytest.mark.parametrize("flavour", ALL)
def test_close_waits_for_calls_under_way_and_refuses_later_ones(open_fake, flavour, monkeypatch):
    session, cuda, _ = open_fake(flavour, cuda=GatedCuda(), slots=2)
    cuda.shut = True
    outcomes = {}

    def call(seed):
        try:
            outcomes[seed] = (session.run(frames_of(seed, 2)) == exact(frames_of(seed, 2))).all()
        except UsageError as error:
            outcomes[seed] = error.message

    started = [threading.Thread(target=call, args=(seed,), daemon=True) for seed in range(2)]
    waiting = [threading.Thread(target=call, args=(seed,), daemon=True) for seed in range(2, 6)]
    closer = threading.Thread(target=session.close, daemon=True)
    closing, get = threading.Event(), session._idle.get

    def tell_and_get():
        if threading.current_thread() is closer:
            closing.set()
        return get()

    monkeypatch.setattr(session._idle, "get", tell_and_get)
    for thread in started:
        thread.start()
    for _ in started:
        assert cuda.entered.acquire(timeout=SECONDS)  # both slots are taken
    for thread in [*waiting, closer]:
        thread.start()
    assert closing.wait(SECONDS)
    with pytest.raises(UsageError, match="session is closed"):
        session.run(frames_of(0, 1))  # at once, while the calls under way go on
    assert closer.is_alive()
    cuda.gate.set()
    for thread in [*started, *waiting, closer]:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert [outcomes[seed] for seed in range(2)] == [True, True]
    # Who waited for a slot when it closed may still have got one.
    assert {outcomes[seed] for seed in range(2, 6)} <= {True, "This session is closed."}


def test_whoever_comes_late_is_woken_and_told(open_fake, monkeypatch):
    session, cuda, _ = open_fake("10.3", cuda=GatedCuda())
    push, outcomes = cuda._push, []

    def wait_and_push():  # after the session was found open, before a slot is asked for
        if threading.current_thread() in late:
            cuda.entered.release()
            assert cuda.gate.wait(SECONDS)
        push()

    def call():
        with pytest.raises(UsageError, match="session is closed"):
            session.run(frames_of(0, 1))
        outcomes.append("told")

    late = [threading.Thread(target=call, daemon=True) for _ in range(3)]
    monkeypatch.setattr(cuda, "_push", wait_and_push)
    for thread in late:
        thread.start()
    for _ in late:
        assert cuda.entered.acquire(timeout=SECONDS)
    session.close()
    cuda.gate.set()
    for thread in late:
        thread.join(SECONDS)
    assert outcomes == ["told"] * 3


def test_whoever_closes_finds_it_closed_when_that_returns(open_fake):
    session, cuda, _ = open_fake("10.3", slots=3)
    barrier, left = threading.Barrier(7), []

    def close():
        barrier.wait(SECONDS)
        session.close()
        left.append(len(cuda.live))

    closers = [threading.Thread(target=close, daemon=True) for _ in range(6)]
    for thread in closers:
        thread.start()
    with session._borrow():  # a call under way
        barrier.wait(SECONDS)
        closers[0].join(0.1)  # long enough for one that does not wait
        assert left == []
    for thread in closers:
        thread.join(SECONDS)
    assert left == [0] * 6


# ---------------------------------------------------------------------------------------------- lifetime


@pytest.mark.parametrize("flavour", ALL)
def test_closing_frees_everything_and_twice_does_nothing(open_fake, flavour):
    session, _, library = open_fake(flavour)
    session.close()
    assert_nothing_is_left(library)
    calls = library.cuda.calls.copy()
    session.close()
    assert library.cuda.calls == calls
    for call in (session.run, lambda frames: session.measure_device_ms(frames, 1)):
        with pytest.raises(UsageError, match=r"session is closed\. Load the bundle again"):
            call(frames_of(0, 1))
    assert (session.frame_shape, session.num_classes, session.buckets) == ((4, 8), 3, (1, 2, 4))
    library.cuda.create_stream().close()  # it is the caller's, and still open


def test_graphs_go_before_contexts_and_contexts_before_their_memory(open_fake, monkeypatch):
    session, cuda, library = open_fake("10.3", slots=1)
    order = []
    for name, method in (("graph", "_destroy_graph"), ("memory", "_free_device")):
        original = getattr(cuda, method)
        monkeypatch.setattr(
            cuda,
            method,
            lambda token, name=name, original=original: (
                order.append((name, library.alive["IExecutionContext"])),
                original(token),
            ),
        )
    session.close()
    assert order == [("graph", 3), ("graph", 2), ("graph", 1), *[("memory", 0)] * 3]


@pytest.mark.parametrize("ordinal", [1, 2, 3])
def test_a_close_that_is_interrupted_leaves_a_session_that_runs_and_closes(open_fake, monkeypatch, ordinal):
    session, _, library = open_fake("10.3", slots=3)
    get, calls = session._idle.get, []

    def interrupt():
        calls.append(None)
        if len(calls) == ordinal:
            raise KeyboardInterrupt
        return get()

    with monkeypatch.context() as patch:
        patch.setattr(session._idle, "get", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.close()
    frames = [frames_of(seed, 2) for seed in range(3)]
    answers = in_threads(*(lambda batch=batch: session.run(batch) for batch in frames))
    for answer, batch in zip(answers, frames, strict=True):
        np.testing.assert_array_equal(answer, exact(batch))
    session.close()
    assert_nothing_is_left(library)


def test_a_close_that_is_interrupted_while_it_frees_is_ended_by_the_next_one(open_fake, monkeypatch):
    session, _, library = open_fake("10.3")

    def interrupt(error=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "_release", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.close()
    assert library.cuda.live
    session._closed = False  # as for who had found it open
    (told,) = in_threads(lambda: _told_closed(session))
    assert told
    session.close()
    assert_nothing_is_left(library)


def _told_closed(session):
    session._idle.put(session._idle.get(timeout=SECONDS))  # a call that waited for a slot is woken
    session._closed = True
    with pytest.raises(UsageError, match="session is closed"):
        session.run(frames_of(0, 1))
    return True


def test_graphs_are_told_of_a_closed_session_as_of_an_open_one(open_fake):
    session, _, _ = open_fake("11.4", cuda=FakeCuda(properties=DISCRETE, fail_at={"capture": 2}))
    before = session.graphs
    session.close()
    assert session.graphs == before
    assert list(before.refused) == [2]


def test_a_failure_while_closing_is_told_and_stops_nothing(open_fake):
    session, cuda, library = open_fake("10.3", slots=2)
    cuda.fail_at = {"close_graph": 2}
    with pytest.raises(DeviceError, match="fake close_graph failed"):
        session.close()
    assert_nothing_is_left(library)


def test_its_own_cuda_is_closed_with_it(mean_model, monkeypatch):
    cuda = FakeCuda(properties=DISCRETE)
    library = FakeTensorRT(cuda, "10.3")
    monkeypatch.setattr(backend, "open_cuda", lambda device: cuda)
    session = TensorRTSession([make_engine(mean_model, "10.3")], flavour="tensorrt", trt=library.module)
    np.testing.assert_array_equal(session.run(frames_of(0, 3)), exact(frames_of(0, 3)))
    session.close()
    with pytest.raises(UsageError, match="CUDA API is closed"):
        cuda.memory()
    with pytest.raises(UsageError, match="This session is closed"):
        session.run(frames_of(0, 1))
    session.close()


def test_its_own_cuda_is_closed_where_the_library_is_missing(mean_model, monkeypatch):
    cuda = FakeCuda()

    def refuse(flavour, *, to_build):
        assert not to_build
        raise MissingExtraError(f"{flavour} is not installed.")

    monkeypatch.setattr(backend, "open_cuda", lambda device: cuda)
    monkeypatch.setattr(backend, "import_tensorrt", refuse)
    with pytest.raises(MissingExtraError, match="tensorrt is not installed"):
        TensorRTSession([make_engine(mean_model, "10.3")], flavour="tensorrt")
    with pytest.raises(UsageError, match="CUDA API is closed"):
        cuda.memory()


def test_a_missing_driver_is_told_before_the_library_is_looked_for(mean_model, monkeypatch):
    def refuse(device):
        raise DeviceError("no driver")

    monkeypatch.setattr(backend, "open_cuda", refuse)
    monkeypatch.setattr(backend, "import_tensorrt", lambda *args, **kwargs: pytest.fail("was asked"))
    with pytest.raises(DeviceError, match="no driver"):
        TensorRTSession([make_engine(mean_model, "10.3")], flavour="tensorrt")


# Python 3.12 and later warn of any fork where threads are; the child here only raises and leaves.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_and_touches_nothing(open_fake):
    session, _, _ = open_fake("10.3", slots=1)
    session.run(frames_of(0, 4))
    (slot,) = session._all_slots
    before = slot._frames.copy()
    with session._borrow():  # in the child nobody ever returns this slot
        child = os.fork()
        if child == 0:
            status = 0
            uses = (lambda: session.run(frames_of(1, 4)), session.close)
            for bit, use in enumerate(uses):
                try:
                    use()
                except UsageError as error:
                    if "cannot be used in its fork" in error.message:
                        status |= 1 << bit
            os._exit(status | (4 if (slot._frames == before).all() else 0))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    np.testing.assert_array_equal(session.run(frames_of(1, 4)), exact(frames_of(1, 4)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_that_lets_a_session_go_destroys_nothing_of_the_library(mean_model):
    library = FakeTensorRT(FakeCuda(properties=DISCRETE), "10.3")
    session = TensorRTSession(
        [make_engine(mean_model, "10.3")], flavour="tensorrt", cuda=library.cuda, trt=library.module
    )
    before = library.alive.copy()
    child = os.fork()
    if child == 0:
        del session
        gc.collect()
        os._exit(7 if library.alive == before and not library.destroyed_unprotected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    session.close()
    assert_nothing_is_left(library)


# ---------------------------------------------------------------------------------------------- failures


def opening_calls(flavour, model):
    """What opening asks of the fakes, and how often."""
    library = FakeTensorRT(FakeCuda(properties=DISCRETE), flavour)
    session = TensorRTSession(
        [make_engine(model, flavour)], flavour=name_of(flavour), cuda=library.cuda, trt=library.module
    )
    calls = library.cuda.calls.copy(), library.calls.copy()
    session.close()
    return calls


def assert_runs_without_a_graph(model, flavour, library, reason):
    session = TensorRTSession(
        [make_engine(model, flavour)], flavour=name_of(flavour), cuda=library.cuda, trt=library.module
    )
    ((size, told),) = session.graphs.refused.items()
    assert reason in told
    assert set(session.graphs.captured) == {1, 2, 4} - {size}
    for count in (1, 2, 4, 7):
        np.testing.assert_array_equal(session.run(frames_of(count, count)), exact(frames_of(count, count)))
    session.close()
    assert_nothing_is_left(library)


@pytest.mark.parametrize("name", LIBRARY_CALLS)
@pytest.mark.parametrize("flavour", ALL)
def test_each_failure_of_the_library_while_opening_is_told_and_frees_everything(mean_model, flavour, name):
    times = opening_calls(flavour, mean_model)[1][name]
    unused = {"10.3": {"create_runtime_config"}, "11.4": set(), "rtx": set()}[flavour]
    assert bool(times) == (name not in unused)
    for ordinal in range(1, times + 1):
        library = FakeTensorRT(FakeCuda(properties=DISCRETE), flavour, fail_at={name: ordinal})
        kind = EnvironmentProblem if name == "Runtime" else EngineError
        if (
            name == "execute_async_v3" and flavour != "rtx" and ordinal % 2 == 0
        ):  # each second one is captured
            assert_runs_without_a_graph(mean_model, flavour, library, "told to fail")
            continue
        with pytest.raises(kind, match=r"told to fail|device memory are not set"):
            TensorRTSession(
                [make_engine(mean_model, flavour)],
                flavour=name_of(flavour),
                cuda=library.cuda,
                trt=library.module,
            )
        assert_nothing_is_left(library)


@pytest.mark.parametrize("name", CUDA_CALLS)
@pytest.mark.parametrize("flavour", ALL)
def test_each_failure_of_cuda_while_opening_is_told_and_frees_everything(mean_model, flavour, name):
    times = opening_calls(flavour, mean_model)[0][name]
    assert bool(times) == (flavour != "rtx" or name not in ("capture", "launch"))
    for ordinal in range(1, times + 1):
        cuda = FakeCuda(properties=DISCRETE, fail_at={name: ordinal})
        library = FakeTensorRT(cuda, flavour)
        captured = name in ("copy_to_device", "copy_to_host") and ordinal % 2 == 0  # each second one is
        if name == "capture" or (captured and flavour != "rtx"):
            assert_runs_without_a_graph(mean_model, flavour, library, f"fake {name} failed: CUDA_ERROR_FAKE")
            continue
        with pytest.raises(
            DeviceError, match=f"fake {name} failed: CUDA_ERROR_FAKE .call {ordinal} was told"
        ):
            TensorRTSession(
                [make_engine(mean_model, flavour)], flavour=name_of(flavour), cuda=cuda, trt=library.module
            )
        assert_nothing_is_left(library)


def test_the_second_engine_failing_frees_the_first(mean_model):
    library = FakeTensorRT(FakeCuda(), "11.4", fail_at={"deserialize_cuda_engine": 2})
    with pytest.raises(
        EngineError, match=r"fake_tensorrt_11_4 11\.4\.0\.106 refused this engine: .*told to fail"
    ):
        TensorRTSession(
            [make_engine(mean_model, "11.4", (1, 1)), make_engine(mean_model, "11.4", (2, 2))],
            flavour="tensorrt",
            cuda=library.cuda,
            trt=library.module,
        )
    assert_nothing_is_left(library)


def test_a_damaged_engine_is_refused_in_the_words_of_the_library(open_fake, mean_model):
    engine = make_engine(mean_model, "10.3")
    with pytest.raises(EngineError, match=r"refused this engine: Deserialization failed: .*Build it here"):
        open_fake("10.3", engine[:-200])
    with pytest.raises(EngineError, match="This is no TensorRT engine: it begins with b'garb'"):
        open_fake("10.3", b"garbage" * 20)


@pytest.mark.parametrize("words", ["Cuda Runtime (out of memory)", "Error Code 2: OutOfMemory (5 bytes)"])
@pytest.mark.parametrize("flavour", ALL)
def test_memory_that_ran_out_in_the_library_is_a_resource_error(open_fake, flavour, words):
    library = FakeTensorRT(FakeCuda(), flavour, fail_at={"create_execution_context": 2})
    library.fail_words = words
    with pytest.raises(ResourceError, match=r"No execution context for batch 2: .*Fewer slots"):
        open_fake(flavour, library=library)


def test_memory_that_ran_out_in_cuda_is_a_resource_error(open_fake, mean_model):
    small = replace(DISCRETE, total_memory=4096)
    with pytest.raises(ResourceError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        open_fake("10.3", make_engine(mean_model, "10.3", workspace=4096), cuda=FakeCuda(properties=small))


@pytest.mark.parametrize(
    ("flavour", "name"),
    [
        ("10.3", "launch"),
        ("10.3", "synchronize"),
        ("11.4", "launch"),
        ("rtx", "copy_to_device"),
        ("rtx", "copy_to_host"),
        ("rtx", "synchronize"),
        ("rtx", "execute_async_v3"),
    ],
)
def test_a_failure_in_a_call_leaves_the_session_usable(open_fake, flavour, name):
    session, cuda, library = open_fake(flavour, slots=1)
    failing, kind = (library, EngineError) if name == "execute_async_v3" else (cuda, DeviceError)
    for ordinal in (1, 2):  # of two batches
        failing.fail_at = {name: failing.calls[name] + ordinal}
        with pytest.raises(kind, match=f"{name}.*told to fail"):
            session.run(frames_of(0, 8))
        assert cuda.pending(session._all_slots[0]._stream.handle) == 0
        np.testing.assert_array_equal(session.run(frames_of(1, 7)), exact(frames_of(1, 7)))


@pytest.mark.parametrize("name", ["record", "launch", "synchronize_event"])
def test_a_failure_in_a_measurement_leaves_the_session_usable(open_fake, name):
    session, cuda, _ = open_fake("10.3", slots=1)
    cuda.fail_at = {name: cuda.calls[name] + 1}
    with pytest.raises(DeviceError, match=f"fake {name} failed"):
        session.measure_device_ms(frames_of(0, 3), 2)
    assert cuda.pending(session._all_slots[0]._stream.handle) == 0
    np.testing.assert_array_equal(session.run(frames_of(1, 3)), exact(frames_of(1, 3)))


@pytest.mark.parametrize(
    ("flavour", "header", "capability", "reason"),
    [
        (
            "10.3",
            make_header("rtx"),
            (8, 7),
            r"built by tensorrt-rtx 1\.7\.1\.116, and tensorrt 10\.3\.0 is asked",
        ),
        ("rtx", make_header("10.3"), (8, 9), r"built by tensorrt 10\.3\.0\.0, and tensorrt-rtx 1\.7\.1\.116"),
        (
            "10.3",
            make_header("10.3", (10, 4, 0, 1)),
            (8, 7),
            r"TensorRT 10\.4\.0\.1, newer than the 10\.3\.0",
        ),
        ("11.4", make_header("11.4", (9, 1, 0, 0)), (8, 7), r"11\.4\.0\.106 runs no engine of TensorRT 9"),
        ("rtx", make_header("rtx", (1, 7, 1, 115)), (8, 9), r"RTX 1\.7\.1\.115 and runs with exactly that"),
        ("rtx", make_header("rtx"), (7, 5), r"capabilities 80, 86, 89, 120, 121, and this GPU has 75"),
    ],
)
def test_an_engine_for_elsewhere_is_refused_before_the_library_is_asked(
    open_fake, mean_model, flavour, header, capability, reason
):
    engine = make_engine(mean_model, flavour, header=header)
    library = FakeTensorRT(FakeCuda(properties=replace(DISCRETE, compute_capability=capability)), flavour)
    with pytest.raises(DeviceError, match=f"will not load here, because .*{reason}.*edgekiln build BUNDLE"):
        open_fake(flavour, engine, library=library)
    assert not library.calls
    assert_nothing_is_left(library)


# ------------------------------------------------------------------------------------------ kernel cache


@pytest.fixture
def saved(open_fake, cache_folder):
    """The kernel cache that a first session left behind."""
    open_fake("rtx")[0].close()
    (path,) = cache_folder.iterdir()
    return path


def test_kernels_are_saved_once_all_batch_sizes_ran_and_read_again(open_fake, saved, caplog):
    assert saved.read_bytes() == RTX_KERNELS
    assert saved.stat().st_mode & 0o777 == 0o600
    for folder in (saved.parent, saved.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    session, _, library = open_fake("rtx")
    assert (library.calls["deserialize"], library.calls["set_runtime_cache"]) == (1, 1)
    np.testing.assert_array_equal(session.run(frames_of(0, 3)), exact(frames_of(0, 3)))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert caplog.messages == []


@pytest.mark.parametrize("flavour", ["10.3", "11.4"])
def test_tensorrt_itself_keeps_no_kernels(open_fake, cache_folder, flavour):
    open_fake(flavour)
    assert not cache_folder.exists()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_kernels_that_others_could_write_are_not_read(open_fake, saved, caplog, mode):
    saved.chmod(mode)
    _, _, library = open_fake("rtx")
    assert library.calls["deserialize"] == 0
    assert caplog.messages == [f"{saved} can be written by others and was not read"]
    assert saved.stat().st_mode & 0o777 == 0o600  # replaced


def test_kernels_of_another_owner_are_not_read(open_fake, saved, caplog, monkeypatch):
    me = os.getuid()
    monkeypatch.setattr(kernel_cache.os, "getuid", lambda: me + 1)
    _, _, library = open_fake("rtx")
    assert library.calls["deserialize"] == 0
    assert "can be written by others" in caplog.text


def test_a_link_or_a_pipe_in_place_of_kernels_is_not_read(open_fake, saved, tmp_path, caplog):
    saved.rename(tmp_path / "elsewhere")
    saved.symlink_to(tmp_path / "elsewhere")
    assert open_fake("rtx")[2].calls["deserialize"] == 0
    assert "compiled kernels were not read" in caplog.text
    saved.unlink()
    os.mkfifo(saved, 0o600)
    assert open_fake("rtx")[2].calls["deserialize"] == 0
    assert saved.read_bytes() == RTX_KERNELS
    assert (tmp_path / "elsewhere").read_bytes() == RTX_KERNELS


def test_kernels_of_another_gpu_are_compiled_again(open_fake, saved, caplog):
    saved.write_bytes(b"of another GPU")
    session, _, library = open_fake("rtx")
    assert (library.calls["deserialize"], library.calls["set_runtime_cache"]) == (1, 1)
    assert caplog.messages == [
        f"{saved.name} is of another GPU, driver or library: kernels are compiled again"
    ]
    assert saved.read_bytes() == RTX_KERNELS
    np.testing.assert_array_equal(session.run(frames_of(0, 3)), exact(frames_of(0, 3)))


def test_too_many_kernels_are_neither_read_nor_written(open_fake, saved, caplog, monkeypatch):
    monkeypatch.setattr(kernel_cache, "_MAX_BYTES", len(RTX_KERNELS) - 1)
    _, _, library = open_fake("rtx")
    assert library.calls["deserialize"] == 0
    assert caplog.messages == [
        f"{saved} has {len(RTX_KERNELS)} bytes and was not read",
        f"compiled kernels were not kept: they are {len(RTX_KERNELS)} bytes",
    ]


def test_a_folder_that_cannot_be_written_is_only_logged(open_fake, tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "file"))
    session, _, _ = open_fake("rtx")
    assert "compiled kernels were not kept: " in caplog.text
    assert "Not a directory" in caplog.text
    np.testing.assert_array_equal(session.run(frames_of(0, 3)), exact(frames_of(0, 3)))


def test_a_write_that_fails_leaves_nothing_behind(open_fake, saved, caplog, monkeypatch):
    def refuse(self, target):
        raise OSError(28, "No space left on device")

    saved.write_bytes(b"older")
    monkeypatch.setattr(kernel_cache.Path, "replace", refuse)
    open_fake("rtx")
    assert "compiled kernels were not kept: [Errno 28] No space left on device" in caplog.text
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("create_runtime_cache", "the library made no cache for compiled kernels"),
        ("serialize", "compiled kernels were not kept: they are 0 bytes"),
    ],
)
def test_a_cache_that_the_library_does_not_give_is_only_logged(
    open_fake, caplog, cache_folder, name, message
):
    library = FakeTensorRT(FakeCuda(properties=DISCRETE), "rtx", fail_at={name: 1})
    session, _, _ = open_fake("rtx", library=library)
    assert caplog.messages == [message]
    assert not cache_folder.exists()
    np.testing.assert_array_equal(session.run(frames_of(0, 3)), exact(frames_of(0, 3)))


def test_a_hollow_cache_is_never_used(open_fake, caplog, cache_folder, monkeypatch):
    hollow, refused = object(), []

    def refuse(made):
        refused.append(made)
        return None if made is hollow else made

    monkeypatch.setattr(fake_tensorrt.RtxRuntimeConfig, "create_runtime_cache", lambda self: hollow)
    monkeypatch.setattr(kernel_cache, "refuse_hollow", refuse)
    open_fake("rtx")
    assert refused == [hollow]
    assert caplog.messages == ["the library made no cache for compiled kernels"]


def test_each_engine_gpu_and_driver_has_a_file_of_its_own(monkeypatch):
    names = {KernelCache(engine, gpu)._name for engine in (b"a", b"b") for gpu in ("RTX 4090", "../RTX/2")}
    assert len(names) == 4
    assert not any(set(name) & set("/ ") for name in names)
    monkeypatch.setattr(kernel_cache, "probe_driver", lambda: type("State", (), {"version": (99, 1)}))
    assert KernelCache(b"a", "RTX 4090")._name.endswith("-RTX-4090-99.1.bin")


def test_kernels_are_kept_where_the_environment_says(monkeypatch, tmp_path, caplog):
    assert kernel_cache_folder() == tmp_path / "cache" / "kernels"
    monkeypatch.delenv("EDGEKILN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache_folder() == tmp_path / "xdg" / "edgekiln" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kernel_cache_folder() == tmp_path / "home" / ".cache" / "edgekiln" / "kernels"


def test_a_user_without_a_home_folder_has_no_cache(open_fake, monkeypatch, caplog):
    def refuse(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGEKILN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(kernel_cache.Path, "expanduser", refuse)
    open_fake("rtx")
    assert caplog.messages == [
        "compiled kernels were not read: Could not determine home directory.",
        "compiled kernels were not kept: Could not determine home directory.",
    ]


def test_the_fakes_are_of_the_releases_that_are_supported():
    assert {VERSIONS[flavour] for flavour in ALL} == {"10.3.0", "11.4.0.106", "1.7.1.116"}
