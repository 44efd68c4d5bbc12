"""Industrial cameras, from the folder to the answer: what ``init`` proposes, what a run trains on, what predicts."""

import hashlib
import json

import numpy as np
import pytest
from camera_support import make_pgm, make_png, make_tiff
from PIL import Image
from tests_support import TINY_RECIPE

from edgekiln.benchmarks.timing.loadgen.pictures import read_frames
from edgekiln.pipeline.data import load_split, make_contract, prepare_splits
from edgekiln.pipeline.device.vectors import write_vectors
from edgekiln.pipeline.proof.public_recipe import public_recipe
from edgekiln.pipeline.recipe import DataSettings, load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.stages.settings import _without_unset
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime import load
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.errors import DataError, RecipeError
from edgekiln.runtime.pictures.finding import LeftOut, list_pictures
from edgekiln.runtime.pictures.image import prepare

SIDE = 32
WRITERS = {
    "png": lambda v: make_png(np.dstack([v, v, v])),
    "tif": lambda v: make_tiff(v, compression=8),
    "tiff": lambda v: make_tiff(v, order=">", compression=5, predictor=2),
    "pgm": lambda v: make_pgm(v, 4095),
}
RECIPE = (
    TINY_RECIPE.replace('name = "tiny"', 'name = "camera"')
    .replace('[[variants]]\nname = "int8"\nprecision = "int8"\ncalibration_images = 48\n', "")
    .replace("epochs = 2", "epochs = 8")
    .replace("size = 32", "size = 32\nsensor_bits = 12")
)


def made(label, number):
    """uint16 (SIDE, SIDE), 12 bits: noise, and for label 1 a faint scratch that four grey levels do not show."""
    generator = np.random.default_rng((label, number))
    values = generator.normal(2000, 60, (SIDE, SIDE))
    if label:
        row = generator.integers(4, SIDE - 6)
        values[row : row + 2] += 350
    return np.clip(values, 0, 4095).astype(np.uint16)


def write_folder(folder, writers=None, each=40, of=made):
    """Two classes; the kinds of files take turns."""
    kinds = list((writers or WRITERS).items())
    for label, name in enumerate(("good", "scratch")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            ending, write = kinds[number % len(kinds)]
            (folder / name / f"{number:03}.{ending}").write_bytes(write(of(label, number)))
    return folder


def png(values):
    return WRITERS["png"](values)


@pytest.fixture(scope="module")
def camera_run(tmp_path_factory):
    """(folder of pictures, runs folder, RunResult) of a recipe with ``sensor_bits = 12``."""
    folder = tmp_path_factory.mktemp("camera")
    write_folder(folder / "pictures")
    (folder / "camera.toml").write_text(RECIPE)
    result = run_recipe(load_recipe(folder / "camera.toml"), folder / "runs", SilentProgress())
    return folder / "pictures", folder / "runs", result


# -- the whole way


@pytest.mark.slow
def test_a_scratch_of_twelve_bits_is_learnt_and_found_again(camera_run):
    pictures, runs, result = camera_run
    bundle = open_bundle(result.bundle)
    assert bundle.contract.sensor_bits == 12
    report = json.loads(bundle.read("report.json"))
    assert report["baseline"]["accuracy"]["top1"] == 1.0
    [data] = (runs / "camera/stages/data").glob("*/out")
    test = load_split(data, "test")
    with load(result.bundle, threads=1) as classifier:
        for key, label, frame in zip(test.keys, test.labels, test.frames, strict=True):
            path = pictures / key
            # The product prepares the very pixels that were trained and judged on.
            np.testing.assert_array_equal(prepare(path, classifier.contract), frame)
            answers = [classifier.predict(path), classifier.predict(path.read_bytes())]
            assert {answer.label for answer in answers} == {classifier.contract.classes[label]}
        values = made(1, 1000)
        assert classifier.predict(values).label == "scratch"


@pytest.mark.slow
def test_predict_takes_the_files_of_a_folder_that_the_model_is_for(camera_run, tiny_run, edgekiln):
    pictures, _, result = camera_run
    code, out, _ = edgekiln("predict", result.bundle, pictures, "--json")
    document = json.loads(out)
    assert (code, len(document["predictions"]), document["passed_over"]) == (0, 80, {})
    code, out, err = edgekiln("predict", tiny_run[2].bundle, pictures)
    assert code == 0
    assert len(out.splitlines()) == 20  # the PNGs
    assert "60 of them TIFF, PGM or PPM: for models whose recipe has data.sensor_bits" in err
    code, _, err = edgekiln("predict", tiny_run[2].bundle, pictures / "good/001.tif")
    assert code == 2
    assert "data.sensor_bits" in err


@pytest.mark.slow
def test_vectors_show_another_implementation_the_formula(camera_run, tmp_path):
    written = write_vectors(open_bundle(camera_run[2].bundle), tmp_path / "v")
    assert "value * 255 / 4095, rounded" in written.index["contract_in_words"][0]
    frames = np.load(tmp_path / "v/frames.npy")
    rows = {row["picture"]["file"]: row for row in written.index["rows"] if row["picture"]}
    for file in ("pictures/sensor.png", "pictures/sensor-tiff.tif"):
        image = np.asarray(Image.open(tmp_path / "v" / file))
        stored = np.load(tmp_path / "v" / rows[file]["picture"]["decoded"]["file"])
        np.testing.assert_array_equal(image, stored)
        assert (stored.min(), stored.max()) == (0, 4095)
        levels = Image.fromarray(np.rint(stored * (255 / 4095)).astype(np.uint8)).convert("RGB")
        resized = levels.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(np.asarray(resized), frames[rows[file]["row"]])


# -- twelve bits against eight


def frames_of(folder, path, **keys):
    """(all frames in the order of their keys, the index) of a stage's work."""
    settings = DataSettings(source="imagefolder", path=path, size=SIDE, **keys)
    folder.mkdir()
    index = prepare_splits(settings, seed=0, folder=folder)
    parts = [load_split(folder, name) for name in ("train", "val", "test")]
    found = {key: frame for part in parts for key, frame in zip(part.keys, part.frames, strict=True)}
    return np.stack([found[key] for key in sorted(found)]), index


def test_twelve_bits_are_what_eight_bits_of_the_same_camera_are(tmp_path):
    twelve = write_folder(tmp_path / "twelve", {"png": png}, each=12)
    eight = write_folder(tmp_path / "eight", {"png": png}, each=12, of=lambda *n: made(*n) >> 4 << 8)
    with_key, index = frames_of(tmp_path / "a", twelve, sensor_bits=12)
    of_eight, _ = frames_of(tmp_path / "b", eight)
    # value * 255 / 4095, rounded, against value / 16, cut off.
    assert np.abs(with_key.astype(int) - of_eight).max() <= 1
    assert index["levels"][1] - index["levels"][0] >= 32
    without, index = frames_of(tmp_path / "c", twelve)
    assert len(np.unique(without)) <= 4
    assert index["levels"][1] - index["levels"][0] < 4


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_files_that_are_decoded_when_they_are_used_give_the_same(tmp_path, cache):
    folder = write_folder(tmp_path / "pictures", each=12)
    frames, index = frames_of(tmp_path / "kept", folder, sensor_bits=12, cache=cache)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    wanted = [expected_frame(folder / file) for file in files]
    np.testing.assert_array_equal(frames, wanted)
    assert index["unreadable"] == []


def expected_frame(path):
    levels = np.rint(made(int(path.parent.name == "scratch"), int(path.stem)) * (255 / 4095)).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


def test_a_run_tells_that_most_of_the_range_is_empty(tmp_path, edgekiln, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pictures", {"png": png}, each=12)
    (tmp_path / "camera.toml").write_text(RECIPE)
    _, _, err = edgekiln("run", "camera.toml", "--until", "data", "--set", "data.sensor_bits=16")
    assert "use the levels 7 to 1" in err
    assert "less than an eighth" in err
    assert "data.sensor_bits" in err
    _, _, err = edgekiln("run", "camera.toml", "--until", "data")
    assert "2 classes" in err
    assert "eighth" not in err


def test_values_above_the_range_are_unreadable_pictures(tmp_path):
    folder = write_folder(tmp_path / "pictures", {"tif": make_tiff}, each=12)
    with pytest.raises(
        DataError, match=r"24 of 24 pictures are unreadable.*a sensor of 10 bits gives 0 to 1023"
    ):
        frames_of(tmp_path / "kept", folder, sensor_bits=10)


# -- init


def look(edgekiln, folder):
    code, out, _ = edgekiln("init", folder, "--out", folder.parent / "recipe.toml", "--json", "--force")
    assert code == 0, out
    document = json.loads(out)
    recipe = load_recipe(folder.parent / "recipe.toml")
    assert recipe.data.sensor_bits == document["proposal"]["sensor_bits"]
    return document, (folder.parent / "recipe.toml").read_text()


def test_init_measures_the_bits_and_writes_the_key_with_its_reason(edgekiln, tmp_path):
    folder = write_folder(tmp_path / "pictures", {"png": png}, each=12)
    seen, recipe = look(edgekiln, folder)
    assert seen["proposal"]["sensor_bits"] == 12
    [warning] = [text for text in seen["warnings"] if "sensor_bits" in text]
    highest = max(int(made(label, number).max()) for label in (0, 1) for number in range(12))
    assert "24 of 24 measured pictures hold 16 bits a sample and use 17" in warning
    assert f" to {highest} of 0 to 65535, as a camera of 12 bits does" in warning
    assert "of 256 levels would be left" in warning
    assert f"24 hold 16 bits a sample, values up to {highest}. Above 4095" in recipe


@pytest.mark.parametrize("bits", [8, 10, 14])
def test_init_takes_the_fewest_bits_that_hold_the_values(edgekiln, tmp_path, bits):
    def of(label, number):
        values = np.random.default_rng((label, number)).integers(0, 2**bits, (SIDE, SIDE), np.uint16)
        values[0, 0] = 2**bits - 1
        return values

    seen, _ = look(edgekiln, write_folder(tmp_path / "pictures", {"png": png}, each=8, of=of))
    assert seen["proposal"]["sensor_bits"] == bits
    (tmp_path / "16").mkdir()
    full = write_folder(tmp_path / "16/pictures", {"png": png}, each=8, of=lambda *n: of(*n) << (16 - bits))
    seen, recipe = look(edgekiln, full)
    assert seen["proposal"]["sensor_bits"] is None
    assert "sensor" not in recipe
    assert not [text for text in seen["warnings"] if "sensor_bits" in text]


def test_init_goes_by_what_a_pgm_states(edgekiln, tmp_path):
    dark = write_folder(tmp_path / "pictures", {"pgm": lambda v: make_pgm(v // 8, 4095)}, each=8)
    assert look(edgekiln, dark)[0]["proposal"]["sensor_bits"] == 12


def test_init_takes_tiffs_where_most_pictures_are_such(edgekiln, tmp_path):
    eight = {"tif": lambda v: make_tiff((v >> 4).astype(np.uint8))}
    seen, recipe = look(edgekiln, write_folder(tmp_path / "pictures", eight, each=8))
    assert (seen["images"], seen["proposal"]["sensor_bits"]) == (16, 8)
    assert "0 hold 16 bits a sample" in recipe
    assert (seen["width"]["median"], seen["height"]["median"]) == (SIDE, SIDE)


def test_a_few_tiffs_beside_others_are_left_out_and_told(edgekiln, tmp_path):
    kinds = {"jpg": png, "png": png, "webp": png, "tif": make_tiff}
    seen, recipe = look(
        edgekiln, write_folder(tmp_path / "pictures", kinds, each=8, of=lambda *n: made(*n) << 4)
    )
    assert (seen["images"], seen["proposal"]["sensor_bits"]) == (12, None)
    assert any("Left out: 4 pictures of a camera (TIFF, PGM or PPM)" in text for text in seen["warnings"])
    assert "sensor" not in recipe


def test_init_warns_of_dark_pictures_of_eight_bits(edgekiln, tmp_path):
    for label in ("a", "b"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            values = made(0, number) >> 8
            Image.fromarray(values.astype(np.uint8)).save(
                tmp_path / "pictures" / label / f"{label}{number}.png"
            )
    seen, _ = look(edgekiln, tmp_path / "pictures")
    assert seen["proposal"]["sensor_bits"] is None
    assert any("less than an eighth" in text for text in seen["warnings"])


def test_a_folder_of_tiffs_alone_names_the_key(tmp_path):
    folder = write_folder(tmp_path / "pictures", {"tif": make_tiff}, each=2)
    with pytest.raises(DataError, match=r"it holds 4 other files \(\.tif\)") as caught:
        frames_of(tmp_path / "kept", folder)
    assert "data.sensor_bits" in caught.value.hint


# -- which files


def test_which_files_are_pictures_of_a_camera(tmp_path):
    for name, data in {
        "a.tif": make_tiff(made(0, 0)), "b.TIFF": b"", "c.pgm": b"", "d.ppm": b"", "e": make_pgm(made(0, 0), 4095),
        "raw.dng": make_tiff(made(0, 0)), "notes": b"P5 is a kind", "f.png": b"", "g.pbm": b"P4\n1 1\n\0",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    names = [path.name for path in list_pictures(tmp_path, camera=True)]
    assert names == ["a.tif", "b.TIFF", "c.pgm", "d.ppm", "e", "f.png"]
    assert [path.name for path in list_pictures(tmp_path)] == ["f.png"]
    assert "data.sensor_bits" in LeftOut.CAMERA.value


def test_loadgen_draws_from_the_same_files(tmp_path):
    folder = write_folder(tmp_path / "pictures", {"tif": make_tiff}, each=32)
    settings = DataSettings(source="imagefolder", path=folder, size=SIDE, sensor_bits=12)
    contract = make_contract(settings, ("good", "scratch"))
    assert read_frames(folder, contract).shape == (64, SIDE, SIDE, 3)


# -- the recipe


@pytest.mark.parametrize("value", [7, 17, 12.5, "twelve"])
def test_bits_that_no_camera_has_are_refused(tmp_path, value):
    (tmp_path / "r.toml").write_text(RECIPE.replace("sensor_bits = 12", f"sensor_bits = {json.dumps(value)}"))
    with pytest.raises(RecipeError, match="sensor_bits"):
        load_recipe(tmp_path / "r.toml")


def test_sources_without_files_of_a_camera_have_no_such_key():
    with pytest.raises(ValueError, match="sensor_bits is for source = imagefolder, csv"):
        DataSettings(source="digits", sensor_bits=12)


def test_without_the_key_every_stage_keeps_the_digest_that_it_had(tmp_path):
    """A changed digest means that finished stages are made again. As computed before there was the key."""
    values = _without_unset(DataSettings(source="digits"))
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    assert digest == "55eb42549889d3183b021e3fa25d3e572c23aad7f6c56912de9509f4d64e566e"
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.toml")
    assert public_recipe(recipe)["data"]["sensor_bits"] == 12
    plain = load_recipe(tmp_path / "r.toml", ["data.path=other"])
    plain = plain.model_copy(update={"data": plain.data.model_copy(update={"sensor_bits": None})})
    assert "sensor_bits" not in public_recipe(plain)["data"]
    assert "sensor_bits" not in _without_unset(plain.data)
    assert _without_unset(recipe.data)["sensor_bits"] == 12
