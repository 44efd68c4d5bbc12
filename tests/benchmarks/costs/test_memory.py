import numpy as np
import pytest

from edgekiln.benchmarks.costs import memory
from edgekiln.benchmarks.costs.memory import measure_memory, read_peak_rss_mb
from edgekiln.benchmarks.timing.inputs import save_inputs
from edgekiln.runtime.errors import EngineError


@pytest.fixture
def request_of(tiny_run, tmp_path):
    np.save(tmp_path / "frames.npy", np.zeros((2, 32, 32, 3), np.uint8))
    path = str(tiny_run[2].bundle / "fp32.onnx")
    arguments = {"paths": [path], "backend": "onnxruntime-cpu", "threads": 1}
    return "edgekiln.benchmarks.timing.worker:open_engine", arguments, tmp_path / "frames.npy"


def test_peak_of_the_child_is_its_own_and_not_the_parents(request_of):
    ballast = np.ones(400_000_000, np.uint8)  # ru_maxrss of a child would start at 400 MB and more
    used = measure_memory(*request_of)
    assert len(ballast) == 400_000_000
    assert read_peak_rss_mb() > 400
    # Python and numpy take some 30 MB, onnxruntime and a tiny network some 30 more.
    assert 10 < used.start_rss_mb < used.peak_rss_mb < 300
    assert used.device_mb is None


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_frames_that_are_not_run_are_no_memory_of_the_engine(request_of, tmp_path, suffix):
    factory, arguments, few = request_of
    frames = np.zeros((50_000, 32, 32, 3), np.uint8)  # 154 MB
    many = tmp_path / f"many{suffix}"
    if suffix == ".npz":
        save_inputs(many, frames)
    else:
        np.save(many, frames)
    del frames
    used = [measure_memory(factory, arguments, path).peak_rss_mb for path in (few, many)]
    assert used[1] == pytest.approx(used[0], abs=60)


def test_a_process_that_does_not_end_is_told(request_of, monkeypatch):
    monkeypatch.setattr(memory, "_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(EngineError, match=r"did not end within 0\.01 s and was killed"):
        measure_memory(*request_of)


def test_gpu_memory_is_unknown_without_a_gpu(request_of, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert measure_memory(*request_of, on_gpu=True).device_mb is None


def test_an_engine_that_cannot_be_opened_is_told(request_of):
    factory, arguments, frames = request_of
    with pytest.raises(EngineError, match=r"measures memory ended with 1: .*nothing-like-it"):
        measure_memory(factory, {**arguments, "backend": "nothing-like-it"}, frames)


def test_peak_is_read_in_megabytes(tmp_path):
    (tmp_path / "status").write_text("VmPeak:\t  900 kB\nVmHWM:\t  250000 kB\n")
    assert read_peak_rss_mb(tmp_path / "status") == pytest.approx(256)
    assert read_peak_rss_mb(tmp_path / "absent") is None
