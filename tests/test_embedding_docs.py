"""The examples of docs/embedding.md run as they are printed, in a folder that holds what they name."""

import io
import itertools
import json
import re
import shutil
import sys
import types
from dataclasses import replace
from wsgiref.util import setup_testing_defaults

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tests_support import ROOT

from edgekiln.pipeline.cli import cli
from edgekiln.pipeline.device.canary_records import CanaryReference, record_canaries
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.bundles.canaries import CanaryRecord
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.pictures.image import MAX_BYTES
from edgekiln.runtime.spec import Precision

DOCUMENT = ROOT / "docs/embedding.md"
TEXT = DOCUMENT.read_text("utf-8")
EXAMPLES = dict(
    zip(
        (
            "first",
            "canaries",
            "camera",
            "stream",
            "threads",
            "batcher",
            "asyncio",
            "server",
            "reload",
            "jpegs",
        ),
        re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL),
        strict=True,
    )
)
SIZE = 16
COLORS = {"red": (250, 10, 20), "green": (20, 240, 30), "blue": (0, 30, 250)}


def mean_color_model():
    """Logits are the mean of red, green and blue."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def write_bundle(folder, **about):
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(mean_color_model())
    variant = {
        "name": "fp32", "backend": "onnxruntime-cpu", "precision": "fp32", "file": "model.onnx",
        "verdict": "pass", "reason": "made by hand", "required": True, "figures": {}, **about,
    }  # fmt: skip
    contract = Contract(height=SIZE, width=SIZE, classes=tuple(COLORS))
    write_manifest(folder, {"name": "colors", "contract": contract.to_dict(), "variants": [variant]})


def flat(color, size=(64, 64)):
    return Image.new("RGB", size, COLORS[color])


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """A folder as the examples expect it."""
    folder = tmp_path_factory.mktemp("product")
    write_bundle(folder / "runs/traffic-lights/bundle")
    shutil.copytree(folder / "runs/traffic-lights", folder / "runs/traffic-lights-new")
    flat("green").save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    for name, color in (("1", "red"), ("2", "green"), ("4", "blue")):
        flat(color).save(folder / f"photos/{name}.jpg")
    (folder / "evaluation").mkdir()
    for i, color in zip(range(100), itertools.cycle(COLORS), strict=False):
        flat(color, (70 + i, 80)).save(folder / f"evaluation/{i}.jpg")
    return folder


@pytest.fixture
def run(product, monkeypatch, capsys):
    def run(name, folder=product):
        monkeypatch.chdir(folder)
        names = {"__name__": "__main__"}
        exec(compile(EXAMPLES[name], f"{DOCUMENT.name}: {name}", "exec"), names)
        return names, capsys.readouterr().out.splitlines()

    return run


class Camera:
    """Gives three frames, as OpenCV does, and then none."""

    def __init__(self, number):
        assert number == 0
        self.frames = [np.asarray(flat(color))[..., ::-1] for color in COLORS]
        self.released = False

    def read(self):
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self):
        self.released = True


def test_the_first_example(run):
    assert run("first")[1] == ["green"]


@pytest.mark.parametrize("answers", ["right", "wrong"])
def test_canaries(run, tmp_path, monkeypatch, answers):
    session = open_session("onnxruntime-cpu", mean_color_model())
    monkeypatch.setattr(session, "close", lambda: None)
    made = record_canaries(session, lambda threads: session, CanaryReference(None, Precision.FP32))
    record = CanaryRecord.from_dict(made, 3)
    if answers == "wrong":  # as if this machine mixed up the classes
        record = replace(record, answers=record.answers[:, ::-1])
    write_bundle(tmp_path / "runs/traffic-lights/bundle", canaries=record.to_dict())
    flat("green").save(tmp_path / "photo.jpg")
    lines = run("canaries", tmp_path)[1]
    assert len(lines) == 1
    assert lines[0].startswith(
        {"right": "green", "wrong": "Variant 'fp32' answers otherwise here than where it was judged: "}[
            answers
        ]
    )


def test_the_camera_loop(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Camera))
    names, lines = run("camera")
    assert lines == ["red 1.00", "green 1.00", "blue 1.00"]
    assert names["camera"].released


def test_the_stream(run, product):
    broken = product / "photos/3.jpg"
    broken.write_bytes(b"no picture")
    try:
        assert run("stream")[1] == ["1.jpg red", "2.jpg green", "3.jpg is unreadable: format", "4.jpg blue"]
    finally:
        broken.unlink()


def test_the_thread_pool(run):
    assert run("threads")[1] == ["1.jpg red", "2.jpg green", "4.jpg blue"]


def test_the_batcher(run):
    *lines, batches = run("batcher")[1]
    assert lines == ["1.jpg red", "2.jpg green", "4.jpg blue"]
    assert sum(int(size) * int(count) for size, count in re.findall(r"(\d+): (\d+)", batches)) == 3


def test_asyncio(run):
    assert run("asyncio")[1] == ["red", "green"]


def test_the_web_server(run):
    names, _ = run("server")

    def ask(body):
        environ = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        setup_testing_defaults(environ)
        told = []
        [answer] = names["app"](environ, lambda status, headers: told.append(status))
        return told[0], json.loads(answer)

    buffer = io.BytesIO()
    flat("blue").save(buffer, "PNG")
    try:
        assert ask(buffer.getvalue()) == ("200 OK", {"label": "blue"})
        assert ask(b"garbage") == ("400 Bad Request", {"error": "format"})
        assert ask(b"") == ("400 Bad Request", {"error": "format"})
        assert ask(bytes(MAX_BYTES + 7)) == ("400 Bad Request", {"error": "too_large"})
    finally:
        names["classifier"]().close()


def test_the_reload(run, product):
    assert run("reload")[1] == ["green"]
    new = product / "runs/traffic-lights-new"
    new.rename(new.with_name("gone"))
    try:
        told, label = run("reload")[1]
    finally:
        new.with_name("gone").rename(new)
    assert told.startswith("the old model goes on: There is no folder")
    assert label == "green"


def test_large_jpegs(run):
    told, label = run("jpegs")[1]
    assert told.startswith("100 pictures agree; largest mean difference 0.")
    assert label == "green"


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short(name):
    assert len([line for line in EXAMPLES[name].splitlines() if line.strip()]) <= 14


def test_lines_outside_of_tables_are_short():
    assert [line for line in TEXT.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_the_commands_exist():
    commands = re.findall(r"^edgekiln (\w+) (.*)$", TEXT, re.MULTILINE)
    assert commands
    for name, arguments in commands:
        command = cli.get_command(click.Context(cli), name)
        command.make_context(name, arguments.split())
