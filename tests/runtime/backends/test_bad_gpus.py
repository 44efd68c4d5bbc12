"""What goes wrong on a GPU, in one table: the error, its remedy, what the next call says, and that nothing leaks.

All on the fakes. ``load`` takes the next variant after each of them.
"""

import gc
import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FAKE_DEVICE, FakeCuda
from fake_tensorrt import FakeTensorRT, make_engine, make_header

from edgekiln.runtime.backends import onnxruntime as ort_backend
from edgekiln.runtime.backends import tensorrt as backend
from edgekiln.runtime.backends.tensorrt import TensorRTSession
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, write_manifest
from edgekiln.runtime.cuda import driver
from edgekiln.runtime.cuda.driver import cuda_failure
from edgekiln.runtime.errors import (
    DeviceError,
    DeviceLostError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    ForkedError,
    InputError,
    ResourceError,
    UsageError,
)
from edgekiln.runtime.serving.loading import load

DISCRETE = replace(FAKE_DEVICE, integrated=False)
OLD = "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))


@dataclass
class Machine:
    """A GPU and its library, which an engine is opened on."""

    flavour: str
    properties: Any = DISCRETE
    cuda_fails: dict[str, int] = field(default_factory=dict)
    library_fails: dict[str, int] = field(default_factory=dict)
    words: str = "told to fail"
    no_cuda: str = ""
    engine: dict[str, Any] = field(default_factory=dict)

    def library(self):
        cuda = FakeCuda(properties=self.properties, fail_at=self.cuda_fails)
        library = FakeTensorRT(cuda, self.flavour, fail_at=self.library_fails)
        library.fail_words, library.no_cuda = self.words, self.no_cuda
        return library

    @property
    def backend(self):
        return "tensorrt-rtx" if self.flavour == "rtx" else "tensorrt"

    def data(self, model):
        return make_engine(model, self.flavour, **self.engine)


OPENING = {
    "a driver that is too old": (
        Machine("11.4", no_cuda=OLD),
        DeviceError,
        "does not start: .*error: 35",
        "update the driver",
    ),
    "a driver that is too old, seen by the kernels": (
        Machine(
            "rtx", library_fails={"create_execution_context": 1}, words="CUDA driver version is insufficient"
        ),
        DeviceError,
        "No execution context for batch 1: .*insufficient",
        "update the driver",
    ),
    "a library of another CUDA": (
        Machine("10.3", library_fails={"Runtime": 1}, words="no kernel image is available"),
        EnvironmentProblem,
        "does not start: .*no kernel image",
        "edgekiln doctor",
    ),
    "memory of the GPU exhausted": (
        Machine("10.3", properties=replace(DISCRETE, total_memory=4096), engine={"workspace": 8192}),
        ResourceError,
        "CUDA_ERROR_OUT_OF_MEMORY",
        "free memory",
    ),
    "memory exhausted in the library": (
        Machine(
            "11.4",
            library_fails={"create_execution_context": 2},
            words="OutOfMemory (requested size was 5 bytes)",
        ),
        ResourceError,
        "No execution context for batch 2",
        "Fewer slots",
    ),
    "page-locked memory exhausted": (
        Machine("10.3", cuda_fails={"allocate_pinned": 1}),
        DeviceError,
        "fake allocate_pinned failed",
        "start the process again",
    ),
    "an engine of a newer version": (
        Machine("10.3", engine={"header": make_header("10.3", (10, 16, 0, 0))}),
        DeviceError,
        r"built by TensorRT 10\.16\.0\.0, newer than",
        "edgekiln build",
    ),
    "an engine of another GPU": (
        Machine("rtx", properties=replace(DISCRETE, compute_capability=(7, 5))),
        DeviceError,
        "this GPU has 75",
        "edgekiln build",
    ),
    "an engine of another GPU, told by the library": (
        Machine(
            "10.3",
            library_fails={"deserialize_cuda_engine": 1},
            words="The engine plan was generated on an incompatible device, expecting compute 8.6 got 8.7",
        ),
        DeviceError,
        "refused this engine: .*incompatible device",
        "edgekiln build",
    ),
    "a damaged engine": (
        Machine("10.3", library_fails={"deserialize_cuda_engine": 1}),
        EngineError,
        "refused this engine",
        "edgekiln build",
    ),
}


def open_on(machine, model, library, **options):
    return TensorRTSession(
        [machine.data(model)],
        flavour=machine.backend,
        cuda=library.cuda,
        trt=library.module,
        **options,
    )


def assert_nothing_is_left(library):
    gc.collect()  # a failure's traceback still holds what it was about
    assert library.cuda.live == {}
    assert library.cuda.allocated == 0
    assert not library.cuda.active
    assert +library.alive == {}
    assert library.hollow_freed == 0
    assert library.destroyed_unprotected == []


@pytest.mark.parametrize("case", OPENING)
def test_what_fails_while_opening_is_one_typed_error_and_leaves_nothing(mean_model, case):
    machine, kind, message, remedy = OPENING[case]
    for _ in range(2):  # and again: a failure is not remembered
        library = machine.library()
        with pytest.raises(EdgekilnError, match=message) as caught:
            open_on(machine, mean_model, library)
        assert type(caught.value) is kind
        assert remedy is None or remedy in caught.value.hint
        assert library.destroyed_unprotected == []  # while the error is still held
        assert +library.alive == {}
        del caught
        assert_nothing_is_left(library)


@pytest.fixture
def bundle(make_bundle, variant, mean_model, contract):
    """A bundle whose preferred variant is an engine of TensorRT's, followed by one for the CPU."""

    def make(machine):
        gpu = variant("gpu", "fp16", backend=machine.backend, file="gpu.engine")
        variants = [gpu, variant("cpu", "fp32")]
        folder = make_bundle(*variants)
        (folder / "gpu.engine").write_bytes(machine.data(mean_model))
        (folder / MANIFEST_NAME).unlink()
        write_manifest(folder, {"name": "colors", "contract": contract.to_dict(), "variants": variants})
        return folder

    return make


def serve_on(monkeypatch, machine):
    """Lets ``load`` find that machine; returns the libraries that sessions were opened on, and the GPUs' numbers."""
    libraries, numbers = [], []

    def open_cuda(device=0):
        libraries.append(machine.library())
        numbers.append(device)
        return libraries[-1].cuda

    monkeypatch.setattr(backend, "open_cuda", open_cuda)
    monkeypatch.setattr(backend, "import_tensorrt", lambda *_, **__: libraries[-1].module)
    return libraries, numbers


@pytest.mark.parametrize("case", [case for case in OPENING if case != "a damaged engine"])
def test_load_takes_the_next_variant(bundle, monkeypatch, case):
    machine, kind, message, _ = OPENING[case]
    folder = bundle(machine)
    libraries, _ = serve_on(monkeypatch, machine)
    with load(folder, slots=1, wait="blocking") as classifier:
        assert classifier.variant.name == "cpu"
        assert "gpu cannot run here (" in classifier.variant.reason
        assert classifier.predict(np.full((4, 8, 3), (9, 200, 9), np.uint8)).label == "green"
    with pytest.raises(EdgekilnError, match=message) as caught:
        load(folder, variant="gpu")
    assert type(caught.value) is kind
    del caught
    assert len(libraries) == 2
    for library in libraries:
        assert_nothing_is_left(library)


def test_load_without_a_driver_takes_the_next_variant(bundle, monkeypatch):
    folder = bundle(Machine("10.3"))
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-here.so.1")

    def open_cuda(device=0):
        return driver.require_device(device, "libcuda-that-is-not-here.so.1")

    monkeypatch.setattr(backend, "open_cuda", open_cuda)
    with load(folder) as classifier:
        assert classifier.variant.name == "cpu"
        assert "There is no NVIDIA driver" in classifier.variant.reason
    with pytest.raises(DeviceError, match="There is no NVIDIA driver") as caught:
        load(folder, variant="gpu")
    assert "nvidia-smi" in caught.value.hint


def test_load_hands_slots_wait_and_the_number_of_the_gpu_on(bundle, monkeypatch):
    machine = Machine("10.3")
    folder = bundle(machine)
    libraries, numbers = serve_on(monkeypatch, machine)
    with load(folder, device="cuda:1", slots=3, wait="blocking") as classifier:
        session = classifier.session
        assert classifier.variant.name == "gpu"
        assert len(session._all_slots) == 3
        cuda = libraries[0].cuda
        before = cuda.calls.copy()
        classifier.predict(np.zeros((4, 8, 3), np.uint8))
        assert (cuda.calls - before)["synchronize_event"] == 1
        classifier.reload(folder)  # with the same options
        assert len(classifier.session._all_slots) == 3
    with load(folder) as classifier:
        assert len(classifier.session._all_slots) == 2
    assert numbers == [1, 1, 0]
    for library in libraries:
        assert_nothing_is_left(library)


def test_a_variant_without_slots_refuses_them_only_by_name(bundle):
    folder = bundle(Machine("10.3"))
    with load(folder, device="cpu", slots=2, wait="spin") as classifier:
        assert classifier.variant.name == "cpu"
    for options in ({"slots": 2}, {"wait": "spin"}):
        with pytest.raises(UsageError, match="'cpu' runs on onnxruntime-cpu, which has no slots"):
            load(folder, variant="cpu", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:"}, "Unknown device 'cuda:'"),
        ({"device": "cuda:-1"}, "Unknown device"),
        ({"device": "cuda:01"}, "Unknown device"),
        ({"device": "cpu:1"}, "Unknown device 'cpu:1'; known: cpu, cuda, cuda:0, cuda:1"),
        ({"device": 1}, "Unknown device 1"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"slots": 65}, "slots must be at most 64, got 65"),
        ({"slots": True}, "slots must be a whole number"),
        ({"wait": "poll"}, "Unknown wait 'poll'; known: spin, blocking"),
    ],
)
def test_wrong_options_are_refused(bundle, options, message):
    with pytest.raises(UsageError, match=message):
        load(bundle(Machine("10.3")), **options)


# ------------------------------------------------------------------------------------------ while it runs


class LosableCuda(FakeCuda):
    """Once ``lost``, everything that asks the GPU fails, as after an error of CUDA that stays."""

    lost = False

    def _count(self, name):
        if self.lost:
            raise cuda_failure(
                f"fake {name}", "CUDA_ERROR_LAUNCH_FAILED", "error 719, unspecified launch failure"
            )
        super()._count(name)

    def _destroy_stream(self, token):
        self._count("destroy_stream")

    def _destroy_event(self, token):
        self._count("destroy_event")


@pytest.mark.parametrize("wait", ["spin", "blocking"])
@pytest.mark.parametrize("flavour", ["10.3", "11.4", "rtx"])
def test_a_gpu_that_is_lost_is_told_at_once_by_every_later_call_and_close_ends(mean_model, flavour, wait):
    machine, cuda = Machine(flavour), LosableCuda(properties=DISCRETE)
    library = FakeTensorRT(cuda, flavour)
    session = open_on(machine, mean_model, library, wait=wait)
    frames = np.zeros((3, 4, 8, 3), np.uint8)
    session.run(frames)
    cuda.lost = True
    told = set()
    for _ in range(3):
        for call in (session.run, lambda given: session.measure_device_ms(given, 2)):
            before = sum(cuda.calls.values())
            with pytest.raises(DeviceLostError, match=r"lost to this process: .*error 719") as caught:
                call(frames)
            told.add((caught.value.message, caught.value.hint))
            assert sum(cuda.calls.values()) == before
    assert len(told) == 1
    assert "Start the process again" in told.pop()[1]
    session.close()
    session.close()
    with pytest.raises(UsageError, match="session is closed"):
        session.run(frames)
    assert cuda.live == {}


def test_a_failure_that_does_not_stay_loses_nothing(mean_model):
    machine = Machine("10.3")
    library = machine.library()
    session = open_on(machine, mean_model, library)
    library.cuda.fail_at = {"launch": library.cuda.calls["launch"] + 1}
    frames = np.zeros((1, 4, 8, 3), np.uint8)
    with pytest.raises(DeviceError, match="told to fail") as caught:
        session.run(frames)
    assert type(caught.value) is DeviceError
    session.run(frames)
    session.close()
    del caught
    assert_nothing_is_left(library)


def test_a_batch_outside_the_profile_is_split_and_one_below_it_is_filled_up(mean_model):
    machine = Machine("11.4", engine={"batch": (3, 4)})
    library = machine.library()
    session = open_on(machine, mean_model, library)
    frames = np.random.default_rng(1).integers(0, 256, (9, 4, 8, 3), np.uint8)
    for count in (0, 1, 2, 5, 9):
        want = frames[:count].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(session.run(frames[:count]), want)
    with pytest.raises(UsageError, match="One batch has 1 to 4 frames, got 5"):
        session.measure_device_ms(frames[:5], 1)
    with pytest.raises(InputError):
        session.run(frames[:, :3])
    session.close()
    assert_nothing_is_left(library)


# Python 3.12 and later warn of any fork where threads are; the child here only raises and leaves.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_of_a_lost_session_is_told_that_it_is_a_fork(mean_model):
    cuda = LosableCuda(properties=DISCRETE)
    session = open_on(Machine("10.3"), mean_model, FakeTensorRT(cuda, "10.3"))
    child = os.fork()
    if child == 0:
        try:
            session.close()
        except ForkedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    session.close()


# ------------------------------------------------------------------------------------- onnxruntime on CUDA


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0",
            DeviceError,
        ),
        ("CUDA failure 100: no CUDA-capable device is detected", DeviceError),
        ("CUDA failure 2: out of memory ; GPU=0", ResourceError),
        (
            "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9",
            ResourceError,
        ),
        ("This is an invalid model", EngineError),
    ],
)
def test_what_onnxruntime_says_decides_the_error(words, kind):
    error = ort_backend._convert("onnxruntime failed while running", RuntimeError(words))
    assert type(error) is kind
    assert words in error.message
    assert error.hint is not None or kind is EngineError
