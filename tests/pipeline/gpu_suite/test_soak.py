"""The soak: on functions whose faults are known, on the CPU's engine, and on the fake CUDA."""

import threading

import numpy as np
import pytest
from fake_cuda import FakeCuda

from edgekiln.pipeline.gpu_suite import soak as soak_module
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart
from edgekiln.pipeline.gpu_suite.networks import make_frames
from edgekiln.pipeline.gpu_suite.soak import soak, soak_calls, soak_layer
from edgekiln.runtime.errors import DeviceError, MissingExtraError

POOL = make_frames(8, 8)


def answer(frames):
    return frames.reshape(len(frames), -1)[:, :5].astype(np.float32)


def test_calls_that_are_right_are_counted_and_timed():
    found = soak_calls(answer, POOL, 3, 0.2)
    assert found["calls"] > 10
    assert (found["wrong_answers"], found["errors"], found["threads"]) == (0, [], 4)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert soak_module._judge(found)["failures"] == []


def test_answers_that_are_mixed_up_and_calls_that_raise_are_told():
    lock, calls = threading.Lock(), []

    def run(frames):
        with lock:
            calls.append(len(frames))
            count = len(calls)
        if count > 20 and count % 7 == 0:
            return answer(frames[::-1])
        if count > 20 and count % 11 == 0:
            raise DeviceError("the device fell off")
        return answer(frames)

    found = soak_module._judge(soak_calls(run, POOL, 2, 0.3))
    assert found["wrong_answers"] > 0
    reasons = [entry["reason"] for entry in found["failures"]]
    assert "answers differ from the first ones" in reasons[0]
    assert any("the device fell off" in reason for reason in reasons)


def test_memory_of_the_device_that_is_lost_is_told():
    free = iter([10 << 30, 9 << 30])
    found = soak_module._judge(soak_calls(answer, POOL, 2, 0.05, free_bytes=lambda: next(free)))
    assert f"{1 << 30} bytes of device memory are lost" in found["failures"][0]["reason"]


def test_a_cuda_layer_is_soaked_where_there_is_no_engine(monkeypatch):
    cuda = FakeCuda()
    found = soak_layer(cuda, 0.3)
    assert found["calls"] > 3
    assert (found["wrong_answers"], found["errors"], found["lost_device_bytes"]) == (0, [], 0)
    assert not cuda.live
    monkeypatch.setattr(soak_module, "open_cuda", lambda name: cuda)
    arguments = {
        "model": "tiny",
        "batch": 1,
        "device": "cuda",
        "folders": [],
        "families": [],
        "seconds": 0.05,
    }
    told = []
    assert soak(arguments, told.append)["soaked"].startswith("CUDA layer ")
    assert told[-1]["doing"] == "open"


def test_without_engine_and_layer_it_is_skipped(monkeypatch):
    def missing(name):
        raise MissingExtraError(f"The package {name} is not installed.")

    monkeypatch.setattr(soak_module, "open_cuda", missing)
    arguments = {"model": "tiny", "batch": 1, "device": "cuda", "folders": []}
    arguments |= {"families": ["tensorrt"], "seconds": 0.05}
    with pytest.raises(SkippedPart, match=r"there is no tiny\.fp32\.b1\.trt\.engine.* is not installed"):
        soak(arguments, lambda event: None)
