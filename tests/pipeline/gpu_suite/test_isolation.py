"""Which errors of a part are a skip, and which a failure."""

import pytest

from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, state_after
from edgekiln.runtime.errors import BuildError, DeviceError, DeviceLostError, MissingExtraError


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (SkippedPart("torch is not installed"), "skipped"),
        (MissingExtraError("tensorrt is not installed."), "skipped"),
        (DeviceError("There is no NVIDIA driver: libcuda.so.1 is not found."), "skipped"),
        (DeviceError("onnxruntime gave the CPU: CUDA 13 or cuDNN 9 is missing."), "skipped"),
        (BuildError("TensorRT built no engine."), "failed"),
        (DeviceLostError("The GPU is lost to this process."), "failed"),
        (DeviceError("onnxruntime failed while running: CUDA failure 700: illegal address"), "failed"),
        (ValueError("a bug"), "failed"),
    ],
)
def test_what_was_tried_and_went_wrong_is_no_skip(error, state):
    assert state_after(error) == state
