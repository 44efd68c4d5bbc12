import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekiln.export.to_onnx import SHAPE_OPERATORS, PixelModel, export_onnx, normalize, read_contract
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.training.constructors import TinyCnn
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract, Normalization
from edgekiln.runtime.errors import ContractError, GateError


def contract(size=32, normalization=SHARED_NORMALIZATION):
    return Contract(height=size, width=size, classes=("a", "b", "c"), normalization=normalization)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = PixelModel(TinyCnn(3), SHARED_NORMALIZATION).eval()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, contract(), path)
    return model, path


def frames(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def test_shared_normalization_is_exact_in_float32():
    model = PixelModel(nn.Identity(), SHARED_NORMALIZATION)
    pixels = torch.arange(256, dtype=torch.float32).view(1, 1, 1, -1).expand(1, 3, 1, 256)
    assert torch.equal(normalize(pixels, model.scale, model.offset), (pixels - 127) / 128)


def test_graph_has_the_promised_form(exported):
    proto = onnx.load(exported[1])
    assert [n.op_type for n in proto.graph.node[:4]] == ["Cast", "Transpose", "Mul", "Add"]
    assert proto.ir_version <= 10
    assert {o.domain: o.version for o in proto.opset_import} == {"": 18}
    [image], [logits] = proto.graph.input, proto.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert image.type.tensor_type.shape.dim[0].dim_param
    assert read_contract(proto) == contract()
    metadata = {p.key: p.value for p in proto.metadata_props}
    assert metadata["edgekiln.classes"] == "a\nb\nc"
    assert metadata["edgekiln.contract_digest"] == contract().digest


def test_file_names_no_path_of_the_machine_that_made_it(exported):
    raw = exported[1].read_bytes()
    assert b"/home" not in raw
    assert b".py" not in raw


@pytest.mark.parametrize("batch", [1, 2, 5, 17])
def test_any_batch_equals_pytorch(exported, batch):
    model, path = exported
    images = frames(batch)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    got = open_session("onnxruntime-cpu", path.read_bytes()).run(images)
    # 1e-4 absolute on logits of order 1: float32 sums of 8,192 products in another order
    assert np.abs(got - expected).max() < 1e-4


def test_file_runs_under_plain_onnxruntime_with_no_edgekiln_code(exported, tmp_path):
    np.save(tmp_path / "x.npy", frames(3))
    code = (
        "import sys, numpy, onnxruntime\n"
        f"s = onnxruntime.InferenceSession({str(exported[1])!r}, providers=['CPUExecutionProvider'])\n"
        f"y = s.run(['logits'], {{'image': numpy.load({str(tmp_path / 'x.npy')!r})}})[0]\n"
        "assert 'edgekiln' not in sys.modules and y.shape == (3, 3) and y.dtype == 'float32'\n"
        "assert s.get_modelmeta().custom_metadata_map['edgekiln.classes'].split() == ['a', 'b', 'c']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_own_normalization_goes_into_the_graph(tmp_path):
    own = Normalization((120.0, 110.0, 100.0), (60.0, 55.0, 50.0))

    class Pick(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    export_onnx(PixelModel(Pick(), own), contract(8, own), tmp_path / "m.onnx")
    grey = np.full((1, 8, 8, 3), 130, np.uint8)
    got = open_session("onnxruntime-cpu", (tmp_path / "m.onnx").read_bytes()).run(grey)[0]
    # 1e-5: one multiplication and one addition in float32 on values below 3
    assert got == pytest.approx([10 / 60, 20 / 55, 30 / 50], abs=1e-5)


def test_frozen_batch_is_refused(tmp_path):
    class Stuck(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3)) + torch.zeros(2, 3)  # only a batch of 2 broadcasts

    with pytest.raises(Exception, match=r"[Cc]onstrain|batch"):
        export_onnx(PixelModel(Stuck(), SHARED_NORMALIZATION), contract(8), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_foreign_file_has_no_contract(exported):
    proto = onnx.load(exported[1])
    del proto.metadata_props[:]
    with pytest.raises(ContractError, match="no edgekiln contract"):
        read_contract(proto)


@pytest.mark.slow
def test_lite0_graph_has_no_shape_arithmetic(lite0_run):
    proto = onnx.load(lite0_run.bundle / "fp32.onnx")
    operators = Counter(node.op_type for node in proto.graph.node)
    assert not SHAPE_OPERATORS & set(operators)
    assert not {"Pad", "BatchNormalization"} & set(operators)
    assert (operators["Conv"], operators["Add"] - 1) == (49, 9)  # one Add belongs to the normalization


@pytest.mark.slow
def test_lite0_parity_was_taken_on_real_images(lite0_run):
    parity = lite0_run.report["parity"]
    assert parity["images"] >= 64
    assert parity["max_difference"] <= 1e-3 * parity["logit_range"]
    assert parity["worst_image"] in load_split(lite0_run.stages["data"].folder, "val").keys


def test_newer_opset_than_tensorrt_10_3_reads_is_refused(tmp_path):
    with pytest.raises(GateError, match="opset"):
        export_onnx(PixelModel(TinyCnn(3), SHARED_NORMALIZATION), contract(), tmp_path / "m.onnx", opset=21)


def test_torchvision_transformer_keeps_its_layer_norms_whole(tmp_path):
    """timm's are counted where they are quantized (``precision/test_outliers.py``)."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3)
    export_onnx(PixelModel(network.eval(), SHARED_NORMALIZATION), contract(16), tmp_path / "m.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    assert operators["LayerNormalization"] == sum(isinstance(m, nn.LayerNorm) for m in network.modules()) == 3
    assert not set(operators) & {"Pow", "Sqrt", "Reciprocal", "ReduceMean"}


def test_a_slice_of_everything_leaves_nothing_between_convolutions(tmp_path):
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 3)

        def forward(self, pixels):
            cut = torch.cat([self.first(pixels), self.first(pixels)], 1)[:, :16]
            cut += 1  # as GhostNet adds its shortcut: in place, into a view of everything
            return self.head(self.second(cut).mean((2, 3)))

    model = PixelModel(Sliced(), SHARED_NORMALIZATION).eval()
    export_onnx(model, contract(), tmp_path / "m.onnx")
    assert "Identity" not in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    session = open_session("onnxruntime-cpu", (tmp_path / "m.onnx").read_bytes())
    with torch.no_grad():
        np.testing.assert_allclose(session.run(frames(2)), model(torch.from_numpy(frames(2))), atol=1e-4)
