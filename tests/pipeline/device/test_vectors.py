"""Test vectors, read as somebody would who has numpy, Pillow and onnxruntime, and not edgekiln."""

import ast
import hashlib
import json
import re
import shutil
import struct

import numpy as np
import onnxruntime
import pytest
from documents import fences
from PIL import Image, ImageOps
from tests_support import ROOT

from edgekiln.pipeline.device import made_pictures, vectors
from edgekiln.pipeline.device.made_pictures import make_pictures
from edgekiln.pipeline.device.vectors import write_vectors
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import EnvironmentProblem, SelfTestError, UsageError
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.pictures.limits import MAX_PIXELS

CANARIES = 16


@pytest.fixture(scope="module")
def bundle(tiny_run):
    return open_bundle(tiny_run[2].bundle)


@pytest.fixture(scope="module")
def written(bundle, tmp_path_factory):
    return write_vectors(bundle, tmp_path_factory.mktemp("vectors") / "v")


@pytest.fixture(scope="module")
def index(written):
    return json.loads((written.folder / "vectors.json").read_text("utf-8"))


def read_npy(path):
    """An array by the description of the format alone: magic, version, length of the header, header, values."""
    data = path.read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    (length,) = struct.unpack("<H", data[8:10])
    header = ast.literal_eval(data[10 : 10 + length].decode("latin1"))
    assert header["fortran_order"] is False
    return np.frombuffer(data, header["descr"], offset=10 + length).reshape(header["shape"])


def read_entry(folder, entry):
    """The array that an entry of the index names, held against all that it says of it."""
    array = read_npy(folder / entry["file"])
    assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert (array.dtype.name, list(array.shape)) == (entry["dtype"], entry["shape"])
    return array


def prepare_as_told(path, contract, **mistakes):
    """What ``contract_in_words`` says, by Pillow; and what comes of it where somebody gets one step wrong."""
    image = Image.open(path)
    image = image if mistakes.get("no_turn") else ImageOps.exif_transpose(image)
    if image.mode == "RGBA" and not mistakes.get("drop_alpha"):
        canvas = Image.new("RGBA", image.size, (*contract["background"], 255))
        image = Image.alpha_composite(canvas, image)
    if image.mode == "L" and mistakes.get("red_alone"):
        image = Image.merge("RGB", [image, Image.new("L", image.size), Image.new("L", image.size)])
    filter_ = Image.Resampling.NEAREST if mistakes.get("nearest") else Image.Resampling.BILINEAR
    pixels = np.asarray(image.convert("RGB").resize((contract["width"], contract["height"]), filter_))
    return pixels[..., ::-1] if mistakes.get("bgr") else pixels


def test_an_engine_that_is_handed_the_frames_answers_within_the_tolerances(bundle, written, index):
    frames = read_entry(written.folder, index["frames"])
    assert [variant["name"] for variant in index["variants"]] == [
        v.name for v in bundle.variants if v.deployable
    ]
    for variant in index["variants"]:
        logits = read_entry(written.folder, variant["logits"])
        tolerances = read_entry(written.folder, variant["tolerances"])
        [(file, digest)] = variant["files"].items()
        data = (bundle.path / file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        [got] = session.run([variant["output"]["name"]], {variant["input"]["name"]: frames})
        difference = np.abs(got - logits).max(axis=1)
        assert len(difference) == len(index["rows"]) == len(tolerances)
        assert (difference <= tolerances).all()
        assert (
            np.abs(got[:, ::-1] - logits).max(axis=1) > tolerances
        ).any()  # classes in another order are caught


def test_frames_are_what_the_words_say_of_each_picture(written, index):
    frames = read_entry(written.folder, index["frames"])
    pictures = [row for row in index["rows"] if row["picture"]]
    assert [row["row"] for row in index["rows"]] == list(range(len(frames)))
    assert len(pictures) == len(frames) - CANARIES
    for row in pictures:
        path = written.folder / row["picture"]["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["picture"]["sha256"]
        stored = read_entry(written.folder, row["picture"]["decoded"])
        np.testing.assert_array_equal(np.asarray(Image.open(path)), stored)
        np.testing.assert_array_equal(prepare_as_told(path, index["contract"]), frames[row["row"]])


@pytest.mark.parametrize(
    ("mistake", "caught_by"),
    [
        ("bgr", {"larger", "smaller", "stripes", "alpha", "turned"}),
        ("nearest", {"larger", "smaller", "alpha", "turned"}),  # grey is a soft gradient
        ("no_turn", {"turned"}),
        ("drop_alpha", {"alpha"}),
        ("red_alone", {"grey"}),
    ],
)
def test_each_mistake_of_a_preparation_shows_in_a_picture(written, index, mistake, caught_by):
    frames = read_entry(written.folder, index["frames"])
    wrong = set()
    for row in (row for row in index["rows"] if row["picture"]):
        path = written.folder / row["picture"]["file"]
        pixels = prepare_as_told(path, index["contract"], **{mistake: True})
        if np.abs(pixels.astype(int) - frames[row["row"]]).max() > 8:  # no difference between two decoders
            wrong.add(path.stem)
    assert wrong == caught_by


def test_the_words_name_the_contracts_own_figures(bundle, index):
    words = " ".join(index["contract_in_words"])
    contract = bundle.contract
    assert f"exactly {contract.height} rows of {contract.width} pixels" in words
    assert f"'{contract.interpolation}'" in words
    assert ", ".join(contract.classes) in words
    assert index["contract"] == contract.to_dict()
    other = Contract(
        height=8, width=9, resize="shorter-side", shorter_side=12, classes=("a", "b"), background=(1, 2, 3)
    )
    words = " ".join(vectors._tell_contract(other))
    assert "shorter side has 12 pixels" in words
    assert "Cut 8 rows of 9 pixels out of its centre" in words
    assert "RGB (1, 2, 3)" in words


def test_a_second_run_writes_the_same_bytes(bundle, written, tmp_path):
    write_vectors(bundle, tmp_path / "again")
    for path in sorted(p for p in written.folder.rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path.relative_to(written.folder)).read_bytes() == path.read_bytes()
    assert len([*(tmp_path / "again").rglob("*")]) == len([*written.folder.rglob("*")])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 300), (224, 224)])
def test_pictures_of_every_size_of_input_can_be_prepared(height, width):
    contract = Contract(height=height, width=width, classes=("a", "b"))
    for made in make_pictures(height, width):
        assert prepare(made.data, contract).shape == (height, width, 3)


def test_the_largest_input_has_pictures_within_the_limits(monkeypatch):
    monkeypatch.setattr(
        made_pictures, "make_canaries", lambda h, w, _: np.broadcast_to(np.uint8(0), (1, h, w, 3))
    )
    monkeypatch.setattr(
        made_pictures, "_encode", lambda file, shows, pixels, **_: pixels.shape[0] * pixels.shape[1]
    )
    assert max(make_pictures(8192, 8192)) <= MAX_PIXELS


# -- bundles of which not everything is known


def former(bundle, folder):
    """The same bundle, as it was made before engines were asked for canaries."""
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    manifest.pop("canary_reference", None)
    for variant in manifest["variants"]:
        variant.pop("canaries", None)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest), "utf-8")
    return open_bundle(folder)


def test_answers_are_computed_where_the_bundle_records_none(bundle, written, tmp_path):
    found = write_vectors(former(bundle, tmp_path / "b"), tmp_path / "v")
    for variant, known in zip(found.index["variants"], written.index["variants"], strict=True):
        assert variant["canaries"].startswith("answered here")
        logits = read_entry(tmp_path / "v", variant["logits"])
        expected = read_entry(written.folder, known["logits"])
        allowed = read_entry(written.folder, known["tolerances"])
        assert (np.abs(logits - expected).max(axis=1) <= allowed).all()
        np.testing.assert_allclose(read_entry(tmp_path / "v", variant["tolerances"]), allowed, rtol=0.5)


class _Elsewhere:
    """``open_session`` of a machine that lacks a library."""

    def __init__(self, monkeypatch, refused):
        self._open, self._refused = vectors.open_session, refused
        monkeypatch.setattr(vectors, "open_session", self)

    def __call__(self, backend, engines, **options):
        if len(engines[0]) in self._refused:
            raise EnvironmentProblem("there is no such library here")
        return self._open(backend, engines, **options)


def test_what_cannot_run_here_keeps_the_answers_of_where_it_was_judged(bundle, tmp_path, monkeypatch):
    _Elsewhere(monkeypatch, {bundle.files["int8.onnx"].size})
    found = write_vectors(bundle, tmp_path / "v")
    assert found.answered["int8"] == CANARIES
    assert found.answered["fp32"] == found.rows > CANARIES
    [entry] = [variant for variant in found.index["variants"] if variant["name"] == "int8"]
    assert entry["rows_missing"] == "it does not run here: there is no such library here"
    answers = read_entry(found.folder, entry["logits"])
    np.testing.assert_array_equal(answers, bundle.variant("int8").canaries.answers)


def test_what_neither_runs_nor_recorded_is_left_out_and_named(bundle, tmp_path, monkeypatch):
    old = former(bundle, tmp_path / "b")
    refused = {bundle.files["int8.onnx"].size}
    _Elsewhere(monkeypatch, refused)
    found = write_vectors(old, tmp_path / "v")
    assert found.left_out.keys() == {"int8"}
    assert "its bundle records no answers" in found.left_out["int8"]
    refused.update(record.size for record in bundle.files.values())
    with pytest.raises(
        EnvironmentProblem, match=r"No variant of .* has answers to write: fp32: it cannot run"
    ):
        write_vectors(old, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_engine_that_answers_otherwise_than_it_was_judged_writes_nothing(bundle, tmp_path, monkeypatch):
    class Wrong:
        def __init__(self, session):
            self._session = session

        def run(self, frames):
            return self._session.run(frames)[:, ::-1].copy()

        def __getattr__(self, name):
            return getattr(self._session, name)

    original = vectors.open_session
    monkeypatch.setattr(vectors, "open_session", lambda *given, **options: Wrong(original(*given, **options)))
    with pytest.raises(SelfTestError, match="answers otherwise here than where it was judged"):
        write_vectors(bundle, tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


# -- the command


def test_the_command_writes_them_and_says_how_many(edgekiln, bundle, written, tmp_path):
    code, out, _ = edgekiln("pack", bundle.path, "--vectors", tmp_path / "deep" / "v")
    assert code == 0
    assert f"{tmp_path / 'deep' / 'v' / 'vectors.json'}  22 frames\n" in out
    assert "int8: answers to 22 of 22 frames\n" in out
    code, out, _ = edgekiln("pack", bundle.path, "--vectors", tmp_path / "w", "--variant", "int8", "--json")
    document = json.loads(out)
    assert (code, [variant["name"] for variant in document["variants"]]) == (0, ["int8"])
    assert document["frames"] == written.index["frames"]


def test_a_folder_in_use_is_left_as_it_is(edgekiln, bundle, tmp_path):
    (tmp_path / "v").mkdir()
    code, _, err = edgekiln("pack", bundle.path, "--vectors", tmp_path / "v")
    assert (code, f"{tmp_path / 'v'} exists." in err) == (2, True)
    assert list((tmp_path / "v").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "exit", "says"),
    [
        (["--variant", "int9"], 2, "int9"),
        (["--allow-unverified"], 2, "goes with a variant's name"),
        (["--trusted-key", "k.pub"], 2, "k.pub"),
    ],
)
def test_mistakes_are_told(edgekiln, bundle, tmp_path, arguments, exit, says):
    code, _, err = edgekiln("pack", bundle.path, "--vectors", tmp_path / "v", *arguments)
    assert (code, says in err) == (exit, True)
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_did_not_pass_needs_the_word(bundle, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    for variant in manifest["variants"]:
        variant["verdict"] = "fail"
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest), "utf-8")
    failed = open_bundle(folder)
    with pytest.raises(UsageError, match="no variant that passed its gate"):
        write_vectors(failed, tmp_path / "v")
    with pytest.raises(UsageError, match=r"'int8' is not deployable \(verdict fail\)"):
        write_vectors(failed, tmp_path / "v", variant="int8")
    found = write_vectors(failed, tmp_path / "v", variant="int8", allow_unverified=True)
    assert found.index["variants"][0]["verdict"] == "fail"


def test_a_place_that_cannot_be_written_is_named(edgekiln, bundle, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, _ = edgekiln("pack", bundle.path, "--vectors", tmp_path / "file" / "v", "--json")
    error = json.loads(out)["error"]
    assert (code, error["code"]) == (6, "resources")
    assert str(tmp_path / "file") in error["path"]


def test_the_example_in_cpp_reads_what_is_written(written, index):
    """No Python package holds the headers that it needs, so it is not compiled here."""
    [example] = fences(ROOT / "docs" / "vectors.md", "cpp")
    assert len(example.body.splitlines()) <= 50
    names = set(re.findall(r'"([^"\\ ]+)"', example.body))
    assert {"frames.npy", "logits.", "tolerances.", ".npy"} <= names
    assert {
        (written.folder / name).is_file() for name in ("frames.npy", "logits.int8.npy", "tolerances.int8.npy")
    } == {True}
    for variant in index["variants"]:
        assert {variant["input"]["name"], variant["output"]["name"]} <= names
    assert "10 + header" in example.body  # as read_npy above reads it
