"""ONNX Runtime, beyond what every session promises (test_cpu_sessions.py): distributions, devices, locks."""

import onnxruntime
import pytest

from edgekiln.runtime.backends import onnxruntime as backend
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import DeviceError, EngineError, EnvironmentProblem, ExitCode, UsageError

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


def test_installed_distributions_are_found_by_their_metadata():
    assert backend._is_installed("numpy")
    assert not backend._is_installed("edgekiln-no-such-distribution")


def test_threads_are_told_to_the_library(mean_model):
    session = open_session("onnxruntime-cpu", mean_model, threads=2)
    assert session._session.get_session_options().intra_op_num_threads == 2


def test_the_library_itself_opens_no_other_files_either(model_with_external_weights, monkeypatch):
    # The second lock on the door that onnx_files.scan holds shut.
    monkeypatch.setattr(backend, "check_onnx", lambda model, **_: None)
    with pytest.raises(EngineError, match=r"cannot load this model: .*[Ee]xternal data"):
        open_session("onnxruntime-cpu", model_with_external_weights("weights.bin"))
