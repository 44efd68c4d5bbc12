"""What leaves the machine holds nothing of it and nothing that pictures' files say beside their pixels.

The proof is a search: every place where somebody's secret could stand gets a mark, a whole run is made, and every byte
that it leaves behind is looked through, packed, compressed and encoded ones included.
"""

import base64
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import socket
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from tests_support import COLORS, TINY_RECIPE

from edgekiln.benchmarks.report import render_page
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.shipping.privacy import machine_folders, name_places, strip_folders, withhold_names
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.bundles.archive_writer import write_zip
from edgekiln.runtime.bundles.bundle import open_bundle

MARK = "XYZZY"  # every secret begins with it
INSIDE, FOLDER, NAME = f"{MARK}inside", f"{MARK}folder", f"{MARK}name"
LONG_BASE64 = re.compile(rb"[A-Za-z0-9+/]{160,}={0,2}")


def save_telling_jpeg(pixels, path):
    """A JPEG that says who took it, where, with what, and more, in every way that the format has."""
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = f"{INSIDE} description", f"{INSIDE} artist"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + f"{INSIDE} comment".encode()
    place = exif.get_ifd(0x8825)
    place[1], place[2] = "N", (52.0, 31.0, 12.25)
    place[3], place[4] = "E", (13.0, 24.0, 17.5)
    place[28] = f"{INSIDE} area".encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(
        path,
        quality=95,
        exif=exif,
        xmp=f"<x:xmpmeta>{INSIDE} xmp</x:xmpmeta>".encode(),
        comment=f"{INSIDE} comment".encode(),
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + INSIDE.encode(),
    )
    with path.open("ab") as file:
        file.write(f"{INSIDE} behind the end".encode())  # as motion photos have their film


def save_telling_png(pixels, path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", f"{INSIDE} text")
    texts.add_itxt("Comment", f"{INSIDE} international", zip=True)
    Image.fromarray(pixels).save(path, pnginfo=texts)


def write_telling_pictures(folder, name="", per_class=40):
    generator = np.random.default_rng(7)
    for color, value in COLORS.items():
        for i in range(per_class):
            noise = generator.integers(-40, 41, (28, 28 + i % 5, 3))
            pixels = np.clip(np.array(value) + noise, 0, 255).astype(np.uint8)
            save_telling_jpeg(pixels, folder / color / f"{name}{i:03}.jpg")
            if i == 0:
                save_telling_png(255 - pixels, folder / color / f"{name}png.png")


def unpack(data, name):
    """(name, bytes) of a file and of all that is in it: members of archives, compressed parts, base64."""
    yield name, data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield f"{name}:{member}", member.encode()
                yield from unpack(archive.read(member), f"{name}:{member}")
    if data[:2] == b"\x1f\x8b":
        yield from unpack(gzip.decompress(data), f"{name}:gz")
    if data[:4] == b"\x89PNG":
        for start in re.finditer(
            rb"\x78[\x01\x5e\x9c\xda]", data
        ):  # how a zlib stream begins, most of the time
            with contextlib.suppress(zlib.error):
                yield f"{name}:zlib-{start.start()}", zlib.decompressobj().decompress(data[start.start() :])
    for number, blob in enumerate(LONG_BASE64.findall(data)):
        yield from unpack(base64.b64decode(blob + b"=" * (-len(blob) % 4)), f"{name}:base64-{number}")


def find(marks, paths):
    """Where any of the texts stands in any file below ``paths``, names of files included."""
    wanted = [
        text.encode(code) for text in marks for code in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")
    ]
    found = []
    for path in (p for top in paths for p in (sorted(top.rglob("*")) if top.is_dir() else [top])):
        parts = [(path.name, path.name.encode())]
        if path.is_file():
            parts += unpack(path.read_bytes(), path.name)
        found += [f"{name}: {text!r}" for name, data in parts for text in wanted if text in data]
    return found


@pytest.fixture(scope="module")
def telling_run(tmp_path_factory):
    """A whole run, timed, on pictures and in folders that are full of marks: (folder, runs, RunResult)."""
    folder = tmp_path_factory.mktemp(FOLDER)
    home, runs = folder / f"{MARK}home", folder / f"{MARK}runs"
    home.mkdir()
    write_telling_pictures(folder / f"{MARK}data" / "pictures")
    text = TINY_RECIPE.replace('path = "pictures"', f'path = "{folder}/{MARK}data/pictures"')
    text = text.replace(
        "enabled = false", "processes = 2\nblocks = 2\nmin_blocks = 2\nblock_seconds = 0.002\nimages = 8"
    )
    extra = '[[variants]]\nname = "gpu"\nprecision = "fp32"\nbackend = "onnxruntime-cuda"\nrequired = false\n[gate]'
    (folder / "tiny.toml").write_text(text.replace("[gate]", extra))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for variable in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(variable, f"{MARK}user")
        patch.setattr(socket, "gethostname", lambda: f"{MARK}host")
        patch.chdir(home)
        recipe = load_recipe(folder / "tiny.toml", ["gate.max_drop=0.9", "gate.inconclusive=warn"])
        result = run_recipe(recipe, runs, SilentProgress())
    return folder, runs, result


def shipped(result, folder):
    """Everything that is made to be passed on: bundle, archive, checkpoint, and the figures of the stages."""
    write_zip(open_bundle(result.bundle), folder / "bundle.zip")
    stages = {name: record.folder for name, record in result.stages.items()}
    return [
        result.bundle,
        folder / "bundle.zip",
        stages["finetune"],
        stages["export"],
        stages["benchmark"],
        *(stages[name] for name in stages if name.startswith(("variant.", "evaluate."))),
    ]


def test_the_search_finds_what_is_there(tmp_path):
    write_telling_pictures(tmp_path / "p", per_class=1)
    [jpeg] = (tmp_path / "p" / "red").glob("*.jpg")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(jpeg, "x")
    (tmp_path / "a.html").write_bytes(b"<img src='" + base64.b64encode(jpeg.read_bytes()) + b"'>")
    for name in ("a.zip", "a.html"):
        assert find([MARK], [tmp_path / name]), name
    assert len(find([f"{INSIDE} international"], [tmp_path / "p"])) == 3  # in a compressed part of a PNG
    for said in ("description", "artist", "comment", "area", "xmp", "behind"):
        assert find([f"{INSIDE} {said}"], [jpeg]), said


@pytest.mark.slow
def test_what_files_say_beside_their_pixels_is_nowhere(telling_run):
    folder, runs, result = telling_run
    assert find([INSIDE], [runs, *shipped(result, folder)]) == []
    flips = [flip for variant in result.report["variants"] for flip in variant["flips"]]
    thumbnails = [base64.b64decode(flip["thumbnail"]) for flip in flips if "thumbnail" in flip]
    assert all(b"Exif" not in data and b"ICC_PROFILE" not in data for data in thumbnails)


@pytest.mark.slow
def test_nothing_that_is_passed_on_names_the_machine(telling_run):
    folder, _, result = telling_run
    host = socket.gethostname()
    marks = [MARK, str(folder), *([host] if len(host) > 5 and host != "localhost" else [])]
    assert find(marks, shipped(result, folder)) == []
    assert result.report["recipe"]["data"]["path"] == "pictures"


def test_engines_built_here_do_not_name_the_machine(tensorrt_run, tmp_path):
    path, runs, result = tensorrt_run
    assert list(result.bundle.glob("*.engine"))
    assert find([str(path.parent), str(runs)], [result.bundle]) == []


def refuse(*arguments, **options):
    """An audit; of this module, since it is called in a child process."""
    from edgekiln.runtime.errors import PrecisionError

    raise PrecisionError(f"Load model from {os.environ['TOLD']}/runs/x/model.onnx failed at /conv1/Conv.")


def test_a_librarys_words_lose_their_folders_and_keep_their_file(tiny_run, tmp_path, monkeypatch):
    from edgekiln.export.audits import onnxruntime as audit_onnxruntime

    monkeypatch.setenv("TOLD", str(tmp_path))
    monkeypatch.setattr(audit_onnxruntime, "audit_int8", refuse)
    shutil.copytree(tiny_run[1], tmp_path / "runs", symlinks=True)
    result = run_recipe(load_recipe(tiny_run[0]), tmp_path / "runs", SilentProgress(), force=["variant.int8"])
    assert result.report["variants"][1]["reason"] == ("Load model from .../model.onnx failed at /conv1/Conv.")
    assert find([str(tmp_path)], [result.bundle]) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/ann/data/red.png is torn.", ".../red.png is torn."),
        (
            "see '/home/ann/data/a b.txt'",
            "see '.../a b.txt'",
        ),  # what follows a space cannot be known to belong
        ("/home/ann", ".../ann"),
        ("In /home/ann/data/x/y/z.onnx.", "In .../z.onnx."),
        ("/home/annabel/x and /layer1/home/ann", "/home/annabel/x and /layer1/home/ann"),
        ("(/home/ann/data/x:12)", "(.../x:12)"),
        ("/conv1/Conv", "/conv1/Conv"),
        ("no path", "no path"),
    ],
)
def test_folders_become_dots(text, told):
    assert strip_folders(text, ["/home/ann/data", "/home/ann"]) == told


def test_folders_are_taken_out_at_any_depth_and_numbers_stay():
    value = {"/data/p/a": [1, None, True, ["/data/p/b"]], "x": {"y": 0.5}}
    assert strip_folders(value, ["/data/p"]) == {".../a": [1, None, True, [".../b"]], "x": {"y": 0.5}}
    assert strip_folders(value, []) == value


def test_folders_of_the_machine_are_known_with_links_resolved(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir("/")  # everything lies below it: it must not be one of them
    folders = machine_folders(tmp_path / "link", None)
    assert {str(tmp_path / "link"), str(tmp_path / "real"), str(Path.home())} <= set(folders)
    assert "" not in folders
    assert "/" not in folders
    assert list(folders) == sorted(folders, key=lambda path: (-len(path), path))


# -- report.images = false


@pytest.fixture(scope="module")
def withheld_run(tmp_path_factory):
    """A run whose recipe withholds pictures, on files whose names tell; some left out for every reason there is."""
    folder = tmp_path_factory.mktemp("withheld")
    write_telling_pictures(folder / "pictures", name=NAME)
    red = folder / "pictures" / "red"
    shutil.copy(red / f"{NAME}000.jpg", red / f"{NAME}again.jpg")
    shutil.copy(red / f"{NAME}001.jpg", folder / "pictures" / "blue" / f"{NAME}conflict.jpg")
    (red / f"{NAME}broken.jpg").write_bytes(b"no picture")
    (red / f"{NAME}notes.txt").write_text("x")
    text = TINY_RECIPE.replace("[gate]", "[report]\nimages = false\n[gate]")
    (folder / "tiny.toml").write_text(text)
    # An untrained network answers by chance, so that rounding to INT8 flips some of its answers.
    recipe = load_recipe(
        folder / "tiny.toml",
        ["finetune.epochs=0", "finetune.probe=false", "gate.max_drop=0.9", "gate.inconclusive=warn",
         "variants.int8.required=false"],
    )  # fmt: skip
    return folder, run_recipe(recipe, folder / "runs", SilentProgress())


def test_a_bundle_without_pictures_has_none_and_no_name_of_one(withheld_run, tmp_path):
    _, result = withheld_run
    write_zip(open_bundle(result.bundle), tmp_path / "bundle.zip")
    assert find([NAME], [result.bundle, tmp_path / "bundle.zip"]) == []
    page = (result.bundle / "report.html").read_text("utf-8")
    assert "<img" not in page
    assert "names of their files are withheld" in page
    data = result.report["data"]
    assert data["unreadable"] == [{"key": "withheld", "reason": "format", "message": "withheld"}]
    assert data["ignored"] == ["withheld"]
    assert len(data["duplicates"]) >= 1
    assert {entry["split"] for entry in data["conflicts"]} <= {"train", "val", "test"}


def test_numbers_lead_the_owner_to_the_pictures(withheld_run):
    _, result = withheld_run
    index = json.loads((result.stages["data"].folder / "index.json").read_text())
    split, _, position = result.report["parity"]["worst_image"].partition(" picture ")
    parity = json.loads((result.stages["export"].folder / "parity.json").read_text())
    assert index["splits"][split]["keys"][int(position)] == parity["worst_image"]


def test_pictures_are_shown_where_nobody_withholds_them_and_named_in_both_ways(
    tiny_run, tmp_path, monkeypatch
):
    """Flips are made by answers that are turned round, so that there are some."""
    from edgekiln.pipeline.proof import packing, variant_rows

    real = packing.read_logits

    def read(folder, *names):
        logits = real(folder, *names)
        return np.roll(logits, 1, axis=1) if "evaluate.int8" in str(folder) else logits

    for module in (packing, variant_rows):
        monkeypatch.setattr(module, "read_logits", read)
    seen = {}
    for images in (True, False):
        runs = shutil.copytree(tiny_run[1], tmp_path / str(images), symlinks=True)
        recipe = load_recipe(tiny_run[0], [f"report.images={str(images).lower()}"])
        result = run_recipe(recipe, runs, SilentProgress(), force=["bundle"])
        flips = result.report["variants"][1]["flips"]
        index = json.loads((result.stages["data"].folder / "index.json").read_text())
        seen[images] = flips
        assert len(flips) == len(index["splits"]["test"]["keys"])
        assert ("<img" in render_page(result.report)) is images
    assert all("thumbnail" in flip for flip in seen[True][:24])
    assert not any("thumbnail" in flip for flip in seen[False])
    keys = index["splits"]["test"]["keys"]
    positions = [int(flip["key"].removeprefix("test picture ")) for flip in seen[False]]
    assert [keys[i] for i in positions] == [flip["key"] for flip in seen[True]]
    assert {"finetune", "data", "export"} <= {n for n, r in result.stages.items() if r.cached}


def test_names_are_withheld_and_reasons_stay():
    splits = {"train": {"keys": ["x", "y"]}, "test": {"keys": ["z"]}}
    data = {
        "unreadable": [{"key": "u", "reason": "format", "message": "starts with b'x'"}],
        "duplicates": [{"key": "d", "split": "train", "same_as": "z"}],
        "conflicts": [{"key": "y", "split": "train"}],
        "ignored": ["a.txt"],
    }
    assert withhold_names(data, name_places(splits)) == {
        "unreadable": [{"key": "withheld", "reason": "format", "message": "withheld"}],
        "duplicates": [{"key": "withheld", "split": "train", "same_as": "test picture 0"}],
        "conflicts": [{"key": "train picture 1", "split": "train"}],
        "ignored": ["withheld"],
    }
