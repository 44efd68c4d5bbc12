"""Inspector documents of TensorRT 10 and 11; the fixtures' README says where their form is from."""

import json

import pytest
from inspector_support import ISLAND, layers_of

from edgekiln.export.audits.engine_layers.inspector import parse_inspector
from edgekiln.runtime.errors import EngineError


@pytest.mark.parametrize("name", ["v10_fp16", "v11_fp16"])
def test_both_schemas_give_the_fused_layer_its_origins_and_types(name):
    fused = next(found for found in layers_of(name) if found.name == ISLAND)
    assert fused.kind == "CaskConvolution"
    assert fused.origins == ("/block/conv2/Conv", "/block/Add", "/block/relu_1/Relu")
    assert fused.inputs == ("fp16", "fp16")
    assert fused.outputs == ("fp16",)
    assert fused.weights == "fp16"
    assert "f16f16" in fused.tactic


def test_without_metadata_the_fused_name_gives_the_origins():
    fused = layers_of("v10_no_metadata")[3]
    assert fused.origins == ("/block/conv2/Conv", "/block/Add", "/block/relu_1/Relu")
    assert layers_of("v10_no_metadata")[0].origins == ()  # a reformat's name only says for whom it is


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]\x1f[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]__gemm_from_conv1x1\x1f[ONNX Layer: b[0]]", ("a", "b[0]")),
        ("[ONNX Layer: a]\x1f[ONNX Layer: a]", ("a",)),
        ("[ONNX Layer: a", ("fused",)),  # not metadata: the name has to do
    ],
)
def test_metadata_gives_onnx_names(metadata, expected):
    text = json.dumps({"Layers": [{"Name": "fused", "LayerType": "gemm", "Metadata": metadata}]})
    assert parse_inspector(text)[0].origins == expected


def test_myelin_suffix_and_horizontal_fusion_are_taken_off_a_name():
    text = json.dumps({"Layers": ["/a/Conv || /b/Conv", "/fc/MatMul_myl0_10"]})
    assert [found.origins for found in parse_inspector(text)] == [("/a/Conv", "/b/Conv"), ("/fc/MatMul",)]


def test_layers_without_detail_are_of_unknown_type():
    found = layers_of("names_only")
    assert [entry.kind for entry in found] == ["unknown"] * 5
    assert found[1].origins == ("/stem/Conv", "/relu/Relu")


@pytest.mark.parametrize(
    "text", ["", "Layer(CaskConvolution): a", "[]", "{}", '{"Layers": {}}', '{"Layers": [3]}', "[" * 100_000]
)
def test_other_text_is_refused(text):
    with pytest.raises(EngineError, match="wanted the engine inspector's JSON"):
        parse_inspector(text)
