"""Sums inside a node: found where they overflow FP16 although every tensor fits, and kept in FP32."""

import numpy as np
import onnx
import pytest
import torch
from export_support import export_network, export_residual, make_calibration
from onnx.reference import ReferenceEvaluator
from torch import nn

from edgekiln.export.precision import fp16
from edgekiln.export.precision.ranges import measure_peaks
from edgekiln.export.precision.sums import measure_sums

CALIBRATION = make_calibration(32, 32)


class Summing(nn.Module):
    """An L2 norm, a mean and a product whose terms cancel: all small, of values up to some 150."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.cancel = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            self.stem.bias += 100  # every channel is some 100 at every one of 1,024 places
            self.cancel.weight[:, 16:] = -self.cancel.weight[:, :16].clone().mul_(15)
            self.cancel.weight[:, :16] *= 15

    def forward(self, x):
        x = torch.relu(self.stem(x))
        cancelled = self.cancel(torch.cat([x, x.flip(3)], 1))
        unit = x / x.norm(dim=1, keepdim=True)
        return self.head(
            (x.mean(dim=(2, 3)) - 100) + unit.amax(dim=(2, 3)) + 0.01 * cancelled.amax(dim=(2, 3))
        )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    return export_network(Summing(), tmp_path_factory.mktemp("sums") / "m.onnx", 32)


def answer_in_fp16(path):
    """ONNX's reference in numpy: sums of float16 are added up in float16, as a GPU may do."""
    with np.errstate(all="ignore"):
        (logits,) = ReferenceEvaluator(str(path)).run(None, {"image": CALIBRATION.frames[:2]})
    return logits


def test_sums_that_do_not_fit_stay_in_fp32(source, tmp_path, monkeypatch):
    pytest.importorskip("modelopt", reason="converts with nvidia-modelopt")
    expected = answer_in_fp16(source)
    report = fp16.convert_to_fp16(source, tmp_path / "new.onnx", CALIBRATION)
    monkeypatch.setattr(fp16, "measure_sums", lambda *_: ())
    before = fp16.convert_to_fp16(source, tmp_path / "old.onnx", CALIBRATION)
    operators = {node.name: node.op_type for node in onnx.load(source).graph.node}
    found = {operators[peak.node] for peak in report.large_sums}
    assert {"ReduceMean", "ReduceL2"} <= found
    assert {peak.node for peak in report.large_sums} <= set(report.kept_fp32)
    assert (before.large_sums, report.peak.value < fp16.MAX_MAGNITUDE) == ((), True)
    assert not np.isfinite(answer_in_fp16(tmp_path / "old.onnx")).any()
    # 11 bits of values around 100 are steps of 1/16; the answers are differences of such.
    assert np.abs(answer_in_fp16(tmp_path / "new.onnx") - expected).max() < 0.5


def test_a_sum_is_that_of_the_absolute_terms(source):
    peaks = measure_peaks(source.read_bytes(), CALIBRATION.frames)
    graph = onnx.load(source).graph
    sums = {
        p.node: p.value for p in measure_sums(source.read_bytes(), CALIBRATION.frames[:4], peaks, limit=0)
    }
    by_operator = {node.op_type: node for node in graph.node if node.name in sums}
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    network = Summing()
    network.load_state_dict({k.removeprefix("network."): torch.tensor(v) for k, v in weights.items()
                             if k.startswith("network.")})  # fmt: skip
    pixels = (torch.from_numpy(CALIBRATION.frames[:4]).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        x = torch.relu(network.stem(pixels))
        joined = torch.cat([x, x.flip(3)], 1)
        cancel = nn.functional.conv2d(joined.abs(), network.cancel.weight.abs()).max()
    assert sums[by_operator["ReduceMean"].name] == pytest.approx(float(x.sum((2, 3)).max()), rel=1e-4)
    assert sums[by_operator["ReduceL2"].name] == pytest.approx(float((x**2).sum(1).max()), rel=1e-4)
    cancelling = next(n.name for n in graph.node if "network.cancel.weight" in n.input)
    assert sums[cancelling] == pytest.approx(float(cancel), rel=1e-4)


def test_a_usual_network_has_no_large_sum(tmp_path):
    source = export_residual(tmp_path / "m.onnx").read_bytes()
    frames = make_calibration().frames
    assert measure_sums(source, frames, measure_peaks(source, frames)) == ()


def test_pools_and_instance_norms_are_summed_over_their_places(tmp_path):
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.AvgPool2d(2), nn.InstanceNorm2d(16), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(16, 3)),
    )
    torch.manual_seed(0)
    source = export_network(network.eval(), tmp_path / "m.onnx")
    frames = make_calibration().frames[:4]
    sums = measure_sums(source.read_bytes(), frames, measure_peaks(source.read_bytes(), frames), limit=0)
    operators = {node.name: node.op_type for node in onnx.load(source).graph.node}
    found = {operators[peak.node]: peak.value for peak in sums}
    with torch.no_grad():
        x = network[0]((torch.from_numpy(frames).permute(0, 3, 1, 2).float() - 127) / 128)
        pooled = network[1](x)
    assert found["AveragePool"] == pytest.approx(4 * float(network[1](x.abs()).max()), rel=1e-4)
    assert found["InstanceNormalization"] == pytest.approx(float((pooled**2).sum((2, 3)).max()), rel=1e-4)
