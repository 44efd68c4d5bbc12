"""ONNX Runtime, beyond what every session promises (test_cpu_sessions.py): distributions, devices, locks."""

import numpy as np
import onnxruntime
import pytest
from fake_onnxruntime import FakeOnnxRuntime, HostCuda
from onnx import TensorProto

from edgekiln.runtime.backends import cuda_needs, open_session
from edgekiln.runtime.backends import onnxruntime as backend
from edgekiln.runtime.errors import (
    DeviceError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    ExitCode,
    ResourceError,
    UsageError,
)

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def test_an_unknown_device_is_refused(mean_model):
    with pytest.raises(UsageError, match="Unknown device 'tpu'; known: cpu, cuda"):
        backend.OnnxRuntimeSession(mean_model, device="tpu")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_where_there_is_none_is_an_environment_problem(mean_model, capfd):
    with pytest.raises(DeviceError, match=r"has no CUDAExecutionProvider here.*edgekiln\[gpu\]") as caught:
        open_session("onnxruntime-cuda", mean_model)
    assert isinstance(caught.value, EnvironmentProblem)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    assert capfd.readouterr() == ("", "")


def test_both_distributions_together_are_refused_with_the_remedy(mean_model, monkeypatch):
    monkeypatch.setattr(backend, "_is_installed", lambda name: True)
    with pytest.raises(EnvironmentProblem, match="both installed") as caught:
        open_session("onnxruntime-cpu", mean_model)
    assert caught.value.exit_code == 5
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint
    assert "edgekiln[onnx]" in caught.value.hint


def test_installed_distributions_are_found_by_their_metadata(tmp_path, monkeypatch):
    assert backend._is_installed("numpy")
    assert not backend._is_installed("edgekiln-no-such-distribution")
    assert not backend._is_installed("num")
    (tmp_path / "onnxruntime_gpu-1.27.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert backend._is_installed("onnxruntime-gpu")


@pytest.mark.parametrize("changes", [{"input_type": TensorProto.FLOAT}, {"output_type": TensorProto.FLOAT16}])
def test_a_model_with_other_ends_is_refused_with_a_remedy(build_model, changes):
    with pytest.raises(EngineError, match=r"wanted one tensor.*Take a model that edgekiln exported"):
        open_session("onnxruntime-cpu", build_model(**changes))


def test_threads_are_told_to_the_library(mean_model):
    session = open_session("onnxruntime-cpu", mean_model, threads=2)
    assert session._session.get_session_options().intra_op_num_threads == 2


def test_the_library_gets_the_callers_own_frames(mean_model, random_frames, monkeypatch):
    session, got = open_session("onnxruntime-cpu", mean_model), []
    library = session._session

    class Watched:
        def run(self, names, feed):
            got.extend(feed.values())
            return library.run(names, feed)

    monkeypatch.setattr(session, "_session", Watched())
    session.run(frames := random_frames(2))
    assert got[0] is frames


def test_waiting_worker_threads_soon_go_to_sleep(mean_model):
    key, value = backend._limit_spinning(onnxruntime.__version__)
    options = open_session("onnxruntime-cpu", mean_model, threads=2)._session.get_session_options()
    assert options.get_session_config_entry(key) == value


@pytest.mark.parametrize("version", ["1.20.1", "1.25.1"])
def test_a_library_without_a_duration_stops_spinning_with_each_call(version):
    assert backend._limit_spinning(version) == ("session.force_spinning_stop", "1")


@pytest.mark.parametrize("version", ["1.26.0", "1.32.0", "1.100.0.dev20300101", "2.0.0"])
def test_a_newer_library_is_told_a_duration(version):
    assert backend._limit_spinning(version) == ("session.intra_op.spin_duration_us", "50")


def test_the_entry_is_one_that_the_installed_library_reads(mean_model, capfd):
    """Unknown ones are ignored without a word; of this one it says that "soon" is no duration."""
    key, _ = backend._limit_spinning(onnxruntime.__version__)
    if "duration" not in key:
        pytest.skip("this version does not check its value")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 2
    options.add_session_config_entry(key, "soon")
    onnxruntime.InferenceSession(mean_model, options, providers=["CPUExecutionProvider"])
    assert key in capfd.readouterr().err


def test_the_library_itself_opens_no_other_files_either(model_with_external_weights, monkeypatch):
    # The second lock on the door that onnx_files.scan holds shut.
    monkeypatch.setattr(backend, "check_onnx", lambda model, **_: None)
    with pytest.raises(EngineError, match=r"cannot load this model: .*[Ee]xternal data"):
        open_session("onnxruntime-cpu", model_with_external_weights("weights.bin"))


# ------------------------------------------------------------------------------------ on CUDA, as far as fakes go


@pytest.fixture
def library(monkeypatch):
    library = FakeOnnxRuntime()
    monkeypatch.setattr(backend, "import_onnxruntime", lambda device: library)
    return library


@pytest.fixture
def cuda(library, monkeypatch):
    cuda = HostCuda()

    def open_cuda(api="auto", device=0):
        library.events.append(f"{api} {device}")
        return cuda

    monkeypatch.setattr("edgekiln.runtime.cuda.open_cuda", open_cuda)
    return cuda


@pytest.fixture
def session(library, cuda, mean_model):
    session = open_session("onnxruntime-cuda", mean_model)
    yield session
    session.close()
    assert cuda.live == {}
    assert "run without bound buffers" not in library.events


def exact(frames):
    return frames.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def test_on_cuda_the_driver_is_asked_by_its_own_library_before_the_session_is_made(
    library, session, random_frames
):
    assert library.events == ["libcuda 0", "session"]  # PyCUDA is not needed, and may be broken
    for count in (0, 1, 5, 300):
        np.testing.assert_array_equal(session.run(random_frames(count)), exact(random_frames(count)))


def test_a_session_that_cannot_be_made_closes_cuda(library, cuda, mean_model):
    library.refuses = "This is an invalid model"
    with pytest.raises(EngineError, match="invalid model"):
        open_session("onnxruntime-cuda", mean_model)
    with pytest.raises(UsageError, match="CUDA API is closed"):
        cuda.memory()


@pytest.mark.parametrize("count", [0, 2, 300])
def test_a_session_that_is_closed_while_a_call_begins_says_so(session, random_frames, monkeypatch, count):
    admit = session._admit

    def admit_and_close(engine, frames):
        admitted = admit(engine, frames)
        session.close()
        return admitted

    monkeypatch.setattr(session, "_admit", admit_and_close)
    with pytest.raises(UsageError, match="This session is closed"):
        session.run(random_frames(count))


def test_a_session_that_is_closed_between_two_parts_of_a_call_says_so(session, random_frames, monkeypatch):
    bound = session._bound
    run = bound.run

    def run_and_close(frames):
        logits = run(frames)
        session.close()
        return logits

    monkeypatch.setattr(bound, "run", run_and_close)
    with pytest.raises(UsageError, match="This session is closed"):
        session.run(random_frames(300))


def test_the_bare_call_on_cuda_has_bound_buffers_too(session, random_frames):
    frames = random_frames(3)
    np.testing.assert_array_equal(session.bare_call(frames)(), exact(frames))
    session.close()
    with pytest.raises(UsageError, match="This session is closed"):
        session.bare_call(frames)


@pytest.mark.parametrize(
    ("supported", "message"),
    [
        ((12, 6), r"onnxruntime-gpu needs an NVIDIA driver for CUDA 13\.0 or later; .* up to 12\.6"),
        ((13, 1), "CUDAExecutionProvider was asked for and CPUExecutionProvider was given"),
        (None, "CUDAExecutionProvider was asked for and CPUExecutionProvider was given"),
    ],
)
def test_a_driver_that_is_too_old_is_told_with_both_versions(
    library, cuda, mean_model, monkeypatch, supported, message
):
    monkeypatch.setattr(
        cuda_needs, "needed_cuda", lambda name: (13, 0) if name == "onnxruntime-gpu" else None
    )
    monkeypatch.setattr("edgekiln.runtime.cuda.driver.supported_cuda", lambda: supported)
    library.gives = "CPUExecutionProvider"  # what the library takes where CUDA does not start
    with pytest.raises(DeviceError, match=message):
        open_session("onnxruntime-cuda", mean_model)
    library.refuses = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    old = (
        r"CUDA 13\.0 or later; .* It says: .*CUDA failure 35"
        if supported
        else "cannot load this model: CUDA fail"
    )
    with pytest.raises(DeviceError, match=old):
        open_session("onnxruntime-cuda", mean_model)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED_CUBLAS ; GPU=0", DeviceError),
        ("CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR", DeviceError),
        ("CUDA failure 719: unspecified launch failure", DeviceError),
        ("CUDA error executing cudaStreamSynchronize", DeviceError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", ResourceError),
        ("This is an invalid model", EngineError),
    ],
)
def test_what_cuda_and_its_libraries_say_is_of_the_device(library, cuda, mean_model, words, kind):
    library.refuses = words
    with pytest.raises(EdgekilnError, match="cannot load this model") as caught:
        open_session("onnxruntime-cuda", mean_model)
    assert type(caught.value) is kind
    assert caught.value.hint
    assert type(backend._convert("on a CPU", RuntimeError("cudnn_1: no such node"), "cpu")) is EngineError
