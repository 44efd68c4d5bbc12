"""Tiny ONNX models whose logits are known exactly, and bundles made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.contract import Contract

# 4 x 8 = 32 pixels: a power of two, so float32 means of uint8 pixels are exact whatever the order of the sum.
HEIGHT, WIDTH = 4, 8
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def _build_model(
    *,
    scale: float = 1.0,
    shift: float = 0.0,
    tail: str | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    input_type: int = TensorProto.UINT8,
    output_type: int = TensorProto.FLOAT,
    outputs: int = 1,
) -> bytes:
    """``logits = tail(scale * mean over the pixels + shift)``: one logit for red, green and blue each."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        helper.make_node(tail or "Identity", ["shifted"], ["last"]),
    ]
    names = ["logits", *(f"logits{i}" for i in range(1, outputs))]
    nodes += [helper.make_node("Cast", ["last"], [name], to=output_type) for name in names]
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("image", input_type, ["N", height, width, 3])],
        [helper.make_tensor_value_info(name, output_type, ["N", 3]) for name in names],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(np.array(scale, np.float32), "scale"),
            numpy_helper.from_array(np.array(shift, np.float32), "shift"),
        ],
    )
    # The oldest onnxruntime that pyproject.toml allows reads IR 10 and opset 18.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def build_model() -> Callable[..., bytes]:
    return _build_model


@pytest.fixture(scope="session")
def mean_model() -> bytes:
    return _build_model()


@pytest.fixture(scope="session")
def contract() -> Contract:
    return Contract(height=HEIGHT, width=WIDTH, classes=tuple(COLORS))


@pytest.fixture(scope="session")
def random_frames() -> Callable[[int], np.ndarray]:
    def make(count: int) -> np.ndarray:
        return np.random.default_rng(count).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)

    return make


def _variant(name: str, precision: str, **changes: object) -> dict[str, object]:
    return {
        "name": name,
        "backend": "onnxruntime-cpu",
        "precision": precision,
        "file": f"{name}.onnx",
        "verdict": "pass",
        "reason": f"why {name} got its verdict",
        "required": True,
        "figures": {"accuracy": 0.5},
        **changes,
    }


@pytest.fixture
def variant() -> Callable[..., dict[str, object]]:
    return _variant


@pytest.fixture
def make_bundle(tmp_path: Path, contract: Contract) -> Callable[..., Path]:
    """Writes a bundle; the engine of variant number i gives the mean pixel times i + 1."""

    def make(*variants: dict[str, object], name: str = "bundle", **content: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for i, values in enumerate(variants):
            if values["file"] is not None:
                (folder / str(values["file"])).write_bytes(_build_model(scale=i + 1.0))
        (folder / "report.json").write_text("{}")
        write_manifest(
            folder,
            {"name": "colors", "contract": contract.to_dict(), "variants": list(variants), **content},
        )
        return folder

    return make


@pytest.fixture
def bundle_folder(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(_variant("fp32", "fp32"), _variant("int8", "int8"))


@pytest.fixture
def model_with_external_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Makes ``logits = mean @ 2 I`` whose matrix stands in a file at ``location``, or inside where that is ``None``.

    The file exists, beside the current folder; ``{folder}`` in the location is its folder.
    """
    folder = tmp_path / "weights"
    folder.mkdir()
    weights = 2 * np.eye(3, dtype=np.float32)
    (folder / "weights.bin").write_bytes(weights.tobytes())
    monkeypatch.chdir(folder)

    def make(location: str | None) -> bytes:
        tensor = numpy_helper.from_array(weights, "weights")
        if location is not None:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location.format(folder=folder))
        nodes = [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
        axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
        graph = helper.make_graph(nodes, "external", [image], [logits], [axes, tensor])
        opset = helper.make_opsetid("", 18)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()

    return make
