import io
import json

import numpy as np
import pytest
from PIL import Image

from edgekiln.benchmarks.timing.inputs import save_inputs
from edgekiln.runtime.backends import open_session


@pytest.fixture
def engine(tiny_run, tmp_path):
    """(engine file, frames file, logits) of the tiny run's FP32 engine."""
    path = tiny_run[2].bundle / "fp32.onnx"
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    pictures = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    contract = json.loads((tiny_run[2].bundle / "manifest.json").read_text())["contract"]
    save_inputs(tmp_path / "inputs.npz", frames, pictures, json.dumps(contract))
    return path, tmp_path / "inputs.npz", open_session("onnxruntime-cpu", path.read_bytes()).run(frames)
