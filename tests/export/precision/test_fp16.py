import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_support import (
    assert_same_interface,
    edit_weights,
    export_network,
    export_residual,
    make_calibration,
    node_of_weight,
    tensors_of,
)
from onnx import TensorProto
from torch import nn

from edgekiln.export.precision import fp16
from edgekiln.export.precision.fp16 import convert_to_bf16, convert_to_fp16
from edgekiln.export.precision.modelopt import finish_model, import_modelopt
from edgekiln.export.precision.ranges import measure_peaks
from edgekiln.export.precision.simulation import check_simulated_parity, emulate_bf16, simulate
from edgekiln.runtime.errors import MissingExtraError, PrecisionError

pytest.importorskip("modelopt", reason="converts with nvidia-modelopt")

# Each of some five layers rounds to 11 bits: 5 * 2**-11 of the activations' range, of which the logits' is a part.
TOLERANCE = 5e-3

# Converts in a process of its own; what is printed to either stream is the test's to see.
CONVERT = """
import sys
from pathlib import Path
from export_support import make_calibration
from edgekiln.export.precision.fp16 import convert_to_fp16
from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
convert_to_fp16(source, folder / "fp16.onnx", make_calibration())
quantize_for_tensorrt(source, folder / "max.onnx", make_calibration())
quantize_for_tensorrt(source, folder / "entropy.onnx", make_calibration(), "entropy")
"""


class Chain(nn.Module):
    """Two convolutions without an activation between: the first can be scaled up and the second down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.conv3(self.conv2(torch.relu(self.conv1(x)))))
        return self.head(torch.relu(self.conv4(x)).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def calibration():
    return make_calibration()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    torch.manual_seed(0)
    return export_network(Chain(), tmp_path_factory.mktemp("chain") / "chain.onnx")


def make_hostile(chain, path, factor):
    """The same function, with the activation between conv2 and conv3 ``factor`` times larger."""
    path.write_bytes(chain.read_bytes())
    return edit_weights(
        path,
        conv2_weight=lambda w: (w * factor).astype(np.float32),
        conv2_bias=lambda w: (w * factor).astype(np.float32),
        conv3_weight=lambda w: (w / factor).astype(np.float32),
    )


def test_file_is_used_as_before_and_half_as_wide(tmp_path, calibration):
    source = export_residual(tmp_path / "m.onnx")
    report = convert_to_fp16(source, tmp_path / "h.onnx", calibration)
    assert_same_interface(source, tmp_path / "h.onnx")
    converted = onnx.load(tmp_path / "h.onnx")
    weights = {name: value for name, value in tensors_of(converted).items() if name.startswith("network.")}
    assert len(weights) == 8
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    assert [node.op_type for node in converted.graph.node].count("Cast") == 2  # at the entrance, at the exit
    parity = check_simulated_parity(
        source.read_bytes(), (tmp_path / "h.onnx").read_bytes(), calibration.frames, TOLERANCE
    )
    assert parity.max_difference > 0  # it is not the FP32 file again
    assert (report.kept_fp32, report.near_overflow, report.vanishing) == ((), (), {})
    assert (report.peak.node, report.peak.value) == ("node__to_copy", 255.0)  # the pixels themselves


@pytest.mark.parametrize("factor", [1e4, 1e6])
def test_large_activation_stays_in_fp32_and_nothing_else_does(tmp_path, chain, calibration, factor):
    source = make_hostile(chain, tmp_path / "m.onnx", factor)
    report = convert_to_fp16(source, tmp_path / "h.onnx", calibration)
    maker, reader = (node_of_weight(source, f"conv{i}.weight") for i in (2, 3))
    assert report.kept_fp32 == (maker, reader)  # who reads the tensor must read it in float32
    assert report.peak.node == maker
    assert [peak.node for peak in report.near_overflow] == ([maker] if factor == 1e6 else [])
    weights = tensors_of(onnx.load(tmp_path / "h.onnx"))
    assert {name for name, value in weights.items() if "weight" in name and value.dtype == np.float32} == {
        "network.conv2.weight",
        "network.conv3.weight",
    }
    expected = simulate(chain.read_bytes(), calibration.frames)
    assert simulate(source.read_bytes(), calibration.frames) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    check_simulated_parity(
        chain.read_bytes(), (tmp_path / "h.onnx").read_bytes(), calibration.frames, TOLERANCE
    )


def test_picture_that_autocast_does_not_see_still_counts(tmp_path, chain, calibration, monkeypatch):
    conv2 = node_of_weight(chain, "conv2.weight")
    peaks = measure_peaks(chain.read_bytes(), calibration.frames)
    (peak,) = (peak for peak in peaks if peak.node == conv2)
    # Only this one picture goes over the limit, and AutoCast is shown another.
    source = make_hostile(chain, tmp_path / "m.onnx", 1.001 * fp16.MAX_MAGNITUDE / peak.value)
    monkeypatch.setattr(fp16, "_extreme_images", lambda peaks: [(peak.image + 1) % 32])
    report = convert_to_fp16(source, tmp_path / "h.onnx", calibration)
    assert report.kept_fp32 == (conv2, node_of_weight(chain, "conv3.weight"))


def test_reference_pictures_are_those_of_most_peaks():
    class Peak:
        def __init__(self, image):
            self.image = image

    peaks = tuple(Peak(image) for image in [7] * 3 + [2] * 2 + [30, 31, 4, 9, 11, 12, 13, 14])
    assert fp16._extreme_images(peaks) == [2, 4, 7, 9, 11, 12, 13, 14]


def test_vanishing_weights_are_told(tmp_path, calibration):
    def thin(weight):
        weight = weight.copy()
        weight[:, 0] = 1e-9
        return weight

    source = edit_weights(export_residual(tmp_path / "m.onnx"), head_weight=thin)
    report = convert_to_fp16(source, tmp_path / "h.onnx", calibration)
    assert report.vanishing == {"network.head.weight": 3 / 48}


def test_report_is_json_of_bounded_length(tmp_path, chain, calibration):
    source = make_hostile(chain, tmp_path / "m.onnx", 1e6)
    report = convert_to_fp16(source, tmp_path / "h.onnx", calibration)
    values = json.loads(json.dumps(report.to_dict()))
    assert (values["kept_fp32_count"], len(values["kept_fp32"]), values["near_overflow_count"]) == (2, 2, 1)
    assert values["peak"]["value"] == report.peak.value
    many = fp16.Fp16Report(report.peak, (report.peak,) * 30, (report.peak,) * 30, ("n",) * 30, {})
    assert (many.to_dict()["kept_fp32_count"], len(many.to_dict()["kept_fp32"])) == (30, 20)


def test_model_that_gives_no_number_is_refused(tmp_path, calibration):
    source = edit_weights(export_residual(tmp_path / "m.onnx"), conv1_bias=lambda bias: bias * np.nan)
    conv1 = node_of_weight(source, "conv1.weight")
    with pytest.raises(PrecisionError, match=f"FP32 model gives NaN or infinity at {conv1} for calibration"):
        convert_to_fp16(source, tmp_path / "h.onnx", calibration)
    assert not (tmp_path / "h.onnx").exists()


def test_nothing_is_printed(tmp_path, calibration, capfd):
    convert_to_fp16(export_residual(tmp_path / "m.onnx"), tmp_path / "h.onnx", calibration)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_another_process_prints_nothing_and_writes_the_same_bytes(tmp_path, calibration):
    from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt

    source = export_residual(tmp_path / "m.onnx")
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    convert_to_fp16(source, tmp_path / "here" / "fp16.onnx", calibration)
    for method in ("max", "entropy"):
        quantize_for_tensorrt(source, tmp_path / "here" / f"{method}.onnx", calibration, method)
    tests = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, *sys.path]), "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(source), str(tmp_path / "there")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    for name in ("fp16.onnx", "max.onnx", "entropy.onnx"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


# -- the library itself


def test_missing_library_is_told_with_the_install_line(tmp_path, calibration, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(
        MissingExtraError, match=r"'modelopt' is needed.*Run: pip install 'edgekiln\[modelopt\]'"
    ):
        convert_to_fp16(export_residual(tmp_path / "m.onnx"), tmp_path / "h.onnx", calibration)


def test_library_without_its_own_parts_is_told_likewise(tmp_path, monkeypatch):
    (tmp_path / "part_of_modelopt.py").write_text("import absent_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"'absent_package', which part_of.*'edgekiln\[modelopt\]'"):
        import_modelopt("part_of_modelopt")


def test_conversion_that_changes_the_interface_is_refused(tmp_path):
    original = onnx.load(export_residual(tmp_path / "m.onnx"))
    for spoil, words in (
        (lambda graph: graph.output.add(name="more"), "which is now image, logits, more"),
        (lambda graph: setattr(graph.output[0], "name", "scores"), "logits became scores"),
    ):
        changed = onnx.ModelProto()
        changed.CopyFrom(original)
        spoil(changed.graph)
        with pytest.raises(PrecisionError, match=words):
            finish_model(changed, original)


@pytest.mark.parametrize("field", ["opset", "ir"])
def test_file_too_new_for_tensorrt_10_3_is_refused(tmp_path, field):
    original = onnx.load(export_residual(tmp_path / "m.onnx"))
    changed = onnx.ModelProto()
    changed.CopyFrom(original)
    if field == "opset":
        changed.opset_import[0].version = 21
    else:
        changed.ir_version = 11
    with pytest.raises(PrecisionError, match=r"TensorRT 10\.3 reads opset 20 and IR 10 at most"):
        finish_model(changed, original)


def test_sizes_that_the_library_does_not_know_are_not_called_the_same(tmp_path):
    original = onnx.load(export_residual(tmp_path / "m.onnx"))
    changed = onnx.ModelProto()
    changed.CopyFrom(original)
    renamed = 0
    for value in changed.graph.value_info:  # as AutoCast leaves EdgeNeXt's, which onnxruntime then cannot run
        for dim in value.type.tensor_type.shape.dim[1:]:
            dim.dim_param, renamed = "unk", renamed + 1
    assert renamed > 4
    finished = onnx.load_from_string(finish_model(changed, original))
    names = {d.dim_param for v in finished.graph.value_info for d in v.type.tensor_type.shape.dim}
    assert names - {""} == {original.graph.input[0].type.tensor_type.shape.dim[0].dim_param}
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    got, wanted = (simulate(model.SerializeToString(), frames) for model in (finished, original))
    assert np.array_equal(got, wanted)


# -- BF16


@pytest.mark.parametrize("factor", [1.0, 1e6], ids=["plain", "beyond FP16"])
def test_bf16_leaves_nothing_in_fp32_and_keeps_the_interface(tmp_path, chain, calibration, factor):
    source, target = make_hostile(chain, tmp_path / "m.onnx", factor), tmp_path / "b.onnx"
    assert convert_to_bf16(source, target, calibration) == ()
    assert_same_interface(source, target, newest=22)
    assert TensorProto.FLOAT not in {t.data_type for t in onnx.load(target).graph.initializer}
    exact, rounded = (simulate(path.read_bytes(), calibration.frames) for path in (source, target))
    # 8 bits in each of some 12 results; what exceeds FP16's range is no matter.
    assert 0 < np.abs(rounded - exact).max() < 12 * 2**-8 * np.ptp(exact)
    assert not (rounded.view(np.uint32) & 0xFFFF).any()  # an answer of BF16, widened


def test_the_emulation_rounds_every_result_as_bf16_does(tmp_path, calibration):
    source, target = export_residual(tmp_path / "m.onnx"), tmp_path / "b.onnx"
    convert_to_bf16(source, target, calibration)
    emulated = onnx.load_from_string(emulate_bf16(target.read_bytes()))
    made = [node.output[0] for node in emulated.graph.node]
    names = [name for name in made if not name.endswith(("/exact", "/bf16")) and name != "logits"]
    values = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    emulated.graph.output.extend(values)
    session = onnxruntime.InferenceSession(emulated.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": np.array(calibration.frames[:2])})
    assert len(found) == len(names) + 1 > 10
    for value in found:
        assert not (value.view(np.uint32) & 0xFFFF).any()
    assert emulate_bf16(source.read_bytes()) == source.read_bytes()
