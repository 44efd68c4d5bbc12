"""Engines as TensorRT's inspector tells of them: the fixtures in ``data/inspector``, and single layers."""

from tests_support import ROOT

from edgekiln.export.audits.engine_layers.inspector import parse_inspector
from edgekiln.export.audits.engine_layers.layer import EngineLayer

FIXTURES = ROOT / "tests" / "data" / "inspector"
PRODUCTS = {"/stem/Conv": 100, "/block/conv1/Conv": 400, "/block/conv2/Conv": 490, "/fc/Gemm": 10}
"""MACs by ONNX name."""
ISLAND = "/block/conv2/Conv + /block/Add + /block/relu_1/Relu"


def layers_of(name):
    return parse_inspector((FIXTURES / f"{name}.json").read_text())


def layer(kind="CaskConvolution", inputs=("fp16",), origins=("/stem/Conv",), **more):
    fields = {"name": "a", "outputs": ("fp16",), "tactic": None, **more}
    return EngineLayer(kind=kind, inputs=inputs, origins=origins, **fields)
