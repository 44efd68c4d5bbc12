"""Engines that are built, asked and audited: on the fakes of TensorRT and CUDA, with the tiny network's own graph."""

import json
from types import SimpleNamespace

import onnx
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT, make_engine

from edgekiln.pipeline.gpu_suite import dynamic, engines
from edgekiln.pipeline.gpu_suite.dynamic import try_dynamic
from edgekiln.pipeline.gpu_suite.engines import CAPABILITIES, ask_engine, build_all, list_engines
from edgekiln.pipeline.gpu_suite.graphs import count_products, export_models, macs_name, write_macs
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart
from edgekiln.pipeline.gpu_suite.networks import onnx_name
from edgekiln.pipeline.gpu_suite.reference import write_answers
from edgekiln.runtime.backends.tensorrt import TensorRTSession
from edgekiln.runtime.errors import BuildError, MissingExtraError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny network's FP32 graph under the names of all precisions, and its right answers."""
    folder = tmp_path_factory.mktemp("tiny")
    made = export_models({"models": ["tiny"], "work": str(folder)}, lambda event: None)
    assert made["tiny.onnx"]["state"] == "done"
    graph = (folder / "tiny.onnx").read_bytes()
    for precision in ("fp16", "int8"):
        (folder / onnx_name("tiny", precision)).write_bytes(graph)
    write_answers("tiny", [str(folder)], folder / "tiny.answers.npz")
    return folder


def fake_session(monkeypatch, data, flavour="rtx"):
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, flavour).module
    product = "tensorrt-rtx" if flavour == "rtx" else "tensorrt"
    return TensorRTSession([data], flavour=product, cuda=cuda, trt=trt)


def test_engines_of_all_precisions_are_listed_and_the_question_is_asked_with_one_model():
    names = [e.name for e in list_engines(("lite0",), (1, 64), "tensorrt-rtx", CAPABILITIES)]
    assert names == [
        *(f"lite0.{p}.b{b}.rtx-default.engine" for b in (1, 64) for p in ("fp16", "int8")),
        *(f"lite0.fp16.b1.rtx-sm{c}.engine" for c in (80, 86, 89, 120)),
    ]
    assert [e.precision for e in list_engines(("vit",), (1,), "tensorrt")] == ["fp16", "int8", "fp32"]


def test_what_cannot_be_built_is_a_row_for_each_file(tiny, tmp_path, monkeypatch):
    def build(model, options, cache):
        if options.precision.value == "int8":
            raise BuildError("the library refused")
        data = make_engine(model, "rtx", (options.batch.min, options.batch.max))
        return SimpleNamespace(data=data, version="1.7", seconds=1.0, cached=False, log=())

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(engines, "library_version", lambda flavour: "1.7")
    arguments = {"models": ["tiny"], "batches": [2], "flavour": "tensorrt-rtx", "capabilities": (80,)}
    built = build_all({**arguments, "given": str(tiny), "work": str(tmp_path)}, lambda event: None)
    assert {name: entry["state"] for name, entry in built.items()} == {
        "tiny.fp16.b2.rtx-default.engine": "done",
        "tiny.int8.b2.rtx-default.engine": "failed",
        "tiny.fp16.b2.rtx-sm80.engine": "done",
    }
    assert "the library refused" in built["tiny.int8.b2.rtx-default.engine"]["reason"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".engine", ".engine"]


@pytest.mark.parametrize("answers", [True, False])
def test_an_engine_is_asked_whether_it_loads_runs_and_is_right(tiny, tmp_path, monkeypatch, answers):
    cuda = FakeCuda()
    fake = FakeTensorRT(cuda, "rtx")
    monkeypatch.setattr("edgekiln.runtime.cuda.open_cuda", lambda: cuda)
    monkeypatch.setattr(
        "edgekiln.runtime.backends.tensorrt_library.import_tensorrt", lambda flavour, to_build: fake.module
    )
    graph = (tiny / "tiny.onnx").read_bytes()
    if not answers:
        graph = shift_logits(graph)
    path = tmp_path / "tiny.fp16.b4.rtx-default.engine"
    path.write_bytes(make_engine(graph, "rtx", (4, 4)))
    arguments = {"path": str(path), "model": "tiny", "precision": "fp16", "batch": 4}
    steps = []
    found = ask_engine({**arguments, "flavour": "tensorrt-rtx", "folders": [str(tiny)]}, steps.append)
    assert [step["step"] for step in steps] == ["load", "run", "compare"]
    assert (found["loads"], found["runs"], found["right"]) == (True, True, answers)
    json.dumps(found)


def shift_logits(graph):
    """The same network with its first logit moved: what a wrongly built engine gives."""
    model = onnx.load_from_string(graph)
    bias = next(t for t in model.graph.initializer if list(t.dims) == [1000])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 50
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    return model.SerializeToString()


def try_it(tiny, tmp_path, monkeypatch, graph=None, failure=None):
    requests = []

    def build_engines(request, folder, progress):
        requests.append(request)
        name = f"{request.name}.engine"
        settings = request.settings["batch"]
        data = make_engine(graph or request.model.read_bytes(), "rtx", (settings["min"], settings["max"]))
        (folder / name).write_bytes(data)
        audit = {"evidence": "rtx-plan", "share": 1.0}
        return {"files": [name], "builds": {}, "audit": audit, "notices": [], "failure": failure}

    monkeypatch.setattr(dynamic, "library_version", lambda flavour: "1.7")
    monkeypatch.setattr(dynamic, "build_engines", build_engines)
    monkeypatch.setattr(dynamic, "open_session", lambda flavour, data: fake_session(monkeypatch, data))
    arguments = {"model": "tiny", "flavour": "tensorrt-rtx", "folders": [str(tiny)], "work": str(tmp_path)}
    return try_dynamic(arguments, lambda event: None), requests


def test_a_dynamic_engine_is_audited_and_answers_at_every_size(tiny, tmp_path, monkeypatch):
    rows, requests = try_it(tiny, tmp_path, monkeypatch)
    assert {name: (row["state"], row["reason"]) for name, row in rows.items()} == {
        "fp16": ("done", None),
        "int8": ("done", None),
    }
    for row in rows.values():
        assert {size: answer["right"] for size, answer in row["answers"].items()} == dict.fromkeys(
            ("1", "5", "8", "32"), True
        )
        assert row["audit"]["evidence"] == "rtx-plan"
    # MACs of three convolutions and a linear layer, counted in the graph.
    assert (
        sum(requests[0].products.values()) == 16 * 16 * 16 * 27 + 8 * 8 * 32 * 144 + 4 * 4 * 32 * 288 + 32_000
    )
    assert requests[0].minimum_share == 0.8


def test_a_dynamic_engine_that_is_wrong_or_of_another_precision_fails(tiny, tmp_path, monkeypatch):
    wrong = shift_logits((tiny / "tiny.onnx").read_bytes())
    rows, _ = try_it(tiny, tmp_path, monkeypatch, graph=wrong)
    assert rows["fp16"]["state"] == "failed"
    assert rows["fp16"]["reason"] == "it answers wrongly at batch sizes 1, 5, 8, 32"
    rows, _ = try_it(tiny, tmp_path, monkeypatch, failure="only 10 % of it computes in FP16")
    assert (rows["fp16"]["state"], rows["fp16"]["reason"]) == ("failed", "only 10 % of it computes in FP16")
    assert rows["fp16"]["answers"]["8"]["right"]


def test_a_dynamic_engine_needs_a_graph_and_the_library(tmp_path, monkeypatch):
    arguments = {"model": "tiny", "flavour": "tensorrt", "folders": [str(tmp_path)], "work": str(tmp_path)}
    with pytest.raises(MissingExtraError):
        try_dynamic(arguments, lambda event: None)
    monkeypatch.setattr(dynamic, "library_version", lambda flavour: "10.3")
    rows = try_dynamic(arguments, lambda event: None)
    assert rows["fp16"]["reason"] == "there is no tiny.fp16.onnx; part 'graphs.tiny' says why"


def test_counts_for_the_audit_are_prepared_for_machines_without_onnx(tiny, tmp_path, monkeypatch):
    write_macs("tiny", [str(tiny)], tmp_path / macs_name("tiny"))
    counted = count_products("tiny", "fp16", [str(tiny)])
    monkeypatch.setattr("edgekiln.pipeline.gpu_suite.graphs.is_installed", lambda module: False)
    assert count_products("tiny", "fp16", [str(tmp_path)]) == counted
    with pytest.raises(SkippedPart, match="onnx is not installed, and no counts were prepared"):
        count_products("tiny", "fp16", [str(tiny)])
    with pytest.raises(SkippedPart, match="there is no graph to count in"):
        write_macs("tiny", [], tmp_path / "none.json")
