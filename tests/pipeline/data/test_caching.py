"""``data.cache``: whichever is taken, the same pictures give the same frames, weights and answers."""

import errno
import json
import os
import resource
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from tests_support import write_pictures

from edgekiln.pipeline.data import (
    LabelledImages,
    Sample,
    arrays,
    caching,
    hold_in_memory,
    identity_file,
    load_split,
    prepare_splits,
    prepared,
    read_source,
)
from edgekiln.pipeline.data.picture_frames import PictureFrames
from edgekiln.pipeline.recipe import DataSettings, load_recipe
from edgekiln.pipeline.run import plan_run, run_recipe
from edgekiln.pipeline.variants.variants import make_variant
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.stage_files import StageContext
from edgekiln.runtime.errors import DataError, ExitCode, ImageError, ResourceError

SPLITS = ("train", "val", "test")


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "pictures", per_class=20)


def prepare_all(path, out, told=None, **changes):
    out.mkdir(parents=True)
    settings = DataSettings(**{"source": "imagefolder", "path": path, "size": 16, **changes})
    message = (lambda text: None) if told is None else told.append
    return prepare_splits(settings, seed=1, folder=out, message=message)


@pytest.fixture
def both(folder, tmp_path):
    """Splits of the same pictures as arrays and on files, and the folder of pictures."""
    for cache in ("disk", "none"):
        prepare_all(folder, tmp_path / cache, cache=cache)
    return tmp_path / "disk", tmp_path / "none", folder


# -- the same frames


def test_files_give_the_frames_that_arrays_hold(both):
    disk, none, _ = both
    assert (disk / "index.json").read_bytes() == (none / "index.json").read_bytes()
    for name in SPLITS:
        expected, got = load_split(disk, name), load_split(none, name)
        assert isinstance(got.frames, PictureFrames)
        assert not (none / f"{name}.npy").exists()
        np.testing.assert_array_equal(np.array(got.frames), np.array(expected.frames))
        np.testing.assert_array_equal(got.labels, expected.labels)
        assert (got.keys, got.sha256) == (expected.keys, expected.sha256)


@pytest.mark.parametrize(
    "key",
    [
        3, -1, np.int64(5), slice(2, 9, 3), slice(None, None, -1), slice(7, 7), [4, 0, 4], np.array([-2, 1]),
        np.arange(42) % 3 == 1,
    ],
    ids=lambda key: str(key)[:20],
)  # fmt: skip
def test_files_are_indexed_as_an_array_is(both, key):
    disk, none, _ = both
    expected, got = (load_split(place, "train").frames for place in (disk, none))
    assert got.shape == expected.shape == (42, 16, 16, 3)
    assert (got.ndim, got.dtype, len(got), got.nbytes) == (4, np.uint8, 42, expected.nbytes)
    assert got[key].dtype == np.uint8
    np.testing.assert_array_equal(got[key], expected[key])


def test_files_are_iterated_as_an_array_is(both, monkeypatch):
    monkeypatch.setattr("edgekiln.pipeline.data.picture_frames._READ_AHEAD", 4)
    expected, got = (list(load_split(place, "val").frames) for place in both[:2])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("key", [42, -43, [0, 42], (slice(None), 0), np.array([[0]]), 1.5, "0"], ids=repr)
def test_what_is_no_index_of_pictures_is_refused(both, key):
    with pytest.raises(IndexError):
        load_split(both[1], "train").frames[key]


def test_an_array_of_files_is_a_copy_of_any_type(both):
    frames = load_split(both[1], "val").frames
    assert np.asarray(frames, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="by decoding, which is a copy"):
        np.array(frames, copy=False)


def test_broken_and_repeated_pictures_are_the_same_for_all(folder, tmp_path):
    photo = Image.effect_noise((90, 70), 60).convert("RGB")
    for number in range(4):
        photo.rotate(10 * number).save(folder / "red" / f"photo{number}.jpg")
    whole = (folder / "red" / "photo0.jpg").read_bytes()
    (folder / "red" / "photo1.jpg").write_bytes(whole[: len(whole) // 2])  # its header is in order
    (folder / "blue" / "empty.png").write_bytes(b"")
    shutil.copy(folder / "red" / "003.png", folder / "green" / "copy.png")
    texts = []
    for cache in ("disk", "none"):
        index = prepare_all(folder, tmp_path / cache, cache=cache, max_unreadable=0.1)
        assert {entry["key"]: entry["reason"] for entry in index["unreadable"]} == {
            "red/photo1.jpg": "truncated",
            "blue/empty.png": "format",
        }
        assert len(index["conflicts"]) == 1
        texts.append((tmp_path / cache / "index.json").read_text())
    assert texts[0] == texts[1]


def test_a_whole_run_on_files_gives_the_same_weights_and_answers(tiny_run, tmp_path):
    recipe, _, disk = tiny_run
    none = run_recipe(load_recipe(recipe, ["data.cache=none"]), tmp_path, SilentProgress())
    assert list(none.stages["data"].folder.glob("*.npy")) == []
    for stage, file in (
        ("finetune", "checkpoint.safetensors"),
        ("variant.int8", "model.onnx"),
        ("evaluate.baseline", "logits.npz"),
        ("evaluate.int8", "logits.npz"),
    ):
        expected, got = (run.stages[stage].folder / file for run in (disk, none))
        assert got.read_bytes() == expected.read_bytes(), stage
    for file in none.bundle.iterdir():
        assert str(recipe.parent).encode() not in file.read_bytes(), file


def test_memory_is_disk_read_whole(tiny_run, tmp_path, monkeypatch):
    recipe, _, disk = tiny_run
    kinds = []
    held = prepared.read_array

    def read(path):
        kinds.append(path.name)
        return held(path)

    monkeypatch.setattr(prepared, "read_array", read)
    overrides = ["data.cache=memory"]
    memory = run_recipe(load_recipe(recipe, overrides), tmp_path, SilentProgress(), until="finetune")
    assert sorted(kinds) == ["train.npy", "val.npy"]
    expected, got = (run.stages["finetune"].folder / "checkpoint.safetensors" for run in (disk, memory))
    assert got.read_bytes() == expected.read_bytes()
    frames = load_split(memory.stages["data"].folder, "train", in_memory=True).frames
    assert not isinstance(frames, np.memmap)
    np.testing.assert_array_equal(frames, load_split(disk.stages["data"].folder, "train").frames)
    # Neither trains again what the other has trained, whichever came first.
    for cache in ("disk", "memory"):
        plan = plan_run(load_recipe(recipe, [f"data.cache={cache}"]), tmp_path, until="finetune")
        assert [stage.action for stage in plan] == ["cached", "cached"]


def test_moved_pictures_are_listed_anew_and_nothing_is_trained_again(tiny_recipe, tmp_path):
    runs = tmp_path / "runs"
    overrides = ["data.cache=none", "finetune.epochs=1"]
    first = run_recipe(load_recipe(tiny_recipe, overrides), runs, SilentProgress(), until="finetune")
    (tmp_path / "pictures").rename(tmp_path / "moved")
    tiny_recipe.write_text(tiny_recipe.read_text().replace('"pictures"', '"moved"'))
    second = run_recipe(load_recipe(tiny_recipe, overrides), runs, SilentProgress(), until="finetune")
    assert not second.stages["data"].cached
    assert second.stages["finetune"].cached
    assert second.stages["data"].digest == first.stages["data"].digest
    np.array(load_split(second.stages["data"].folder, "test").frames)
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        np.array(load_split(first.stages["data"].folder, "test").frames)


def test_a_picture_that_goes_stops_the_run_and_is_no_failure_of_a_variant(tiny_recipe, tmp_path):
    """Kept as a variant's failure it would still stand there when the picture is back."""
    recipe, runs = load_recipe(tiny_recipe, ["data.cache=none", "finetune.epochs=0"]), tmp_path / "runs"
    data = run_recipe(recipe, runs, SilentProgress(), until="export").stages["data"].folder
    path = tmp_path / "pictures" / load_split(data, "train").keys[-1]
    hidden = path.rename(tmp_path / "hidden.png")
    found = load_split(data, "train")
    context = StageContext(
        recipe,
        tmp_path,
        {"data": data, "export": next((runs / "tiny/stages/export").glob("*/out"))},
        SilentProgress(),
    )
    int8 = next(variant for variant in recipe.variants if variant.name == "int8")
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        make_variant(context, int8.model_copy(update={"calibration_images": len(found)}))
    hidden.rename(path)


# -- which one is taken


def test_auto_takes_disk_where_arrays_fit_and_says_so(folder, tmp_path):
    told = []
    prepare_all(folder, tmp_path / "out", told)
    assert len(told) == 1
    assert told[0].startswith("  cache: disk (60 pictures as arrays are 46.1 kB, ")
    assert load_split(tmp_path / "out", "train").frames.flags.writeable is False


@pytest.mark.parametrize(("free", "taken"), [(10**9 + 60 * 768, "disk"), (10**9 + 60 * 768 - 1, "none")])
def test_auto_keeps_a_gigabyte_free(folder, tmp_path, monkeypatch, free, taken):
    monkeypatch.setattr(caching, "free_disk_bytes", lambda _: free)
    told = []
    prepare_all(folder, tmp_path / "out", told)
    assert len(told) == 1
    assert told[0].startswith(f"  cache: {taken}")
    assert (tmp_path / "out" / "train.npy").exists() == (taken == "disk")
    assert ("1 GB are to stay so" in told[0]) == (taken == "none")


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_arrays_that_cannot_fit_are_refused_before_anything_is_written(folder, tmp_path, monkeypatch, cache):
    monkeypatch.setattr(caching, "free_disk_bytes", lambda _: 60 * 768 - 1)
    with pytest.raises(ResourceError, match=r"60 pictures as arrays: they need 46\.1 kB") as caught:
        prepare_all(folder, tmp_path / "out", cache=cache)
    assert caught.value.exit_code == ExitCode.RESOURCES
    assert "--runs" in caught.value.hint
    assert "data.cache = 'none'" in caught.value.hint
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_without_files_are_always_arrays(tmp_path, monkeypatch):
    digits = {"source": "digits", "size": 8}
    with pytest.raises(DataError, match="digits gives pictures without files") as caught:
        prepare_all(None, tmp_path / "none", **digits, cache="none")
    assert "data.cache = 'auto' or 'disk'" in caught.value.hint
    monkeypatch.setattr(caching, "free_disk_bytes", lambda _: 10**9)  # crowded, and there is no other way
    prepare_all(None, tmp_path / "auto", **digits)
    assert load_split(tmp_path / "auto", "train").frames.shape[1:] == (8, 8, 3)
    monkeypatch.setattr(caching, "free_disk_bytes", lambda _: 1)
    with pytest.raises(ResourceError, match="No space is left for 1797 pictures") as caught:
        prepare_all(None, tmp_path / "full", **digits)
    assert "data.cache" not in caught.value.hint


def test_an_array_that_does_not_fit_memory_tells_need_and_free(both, monkeypatch):
    monkeypatch.setattr(arrays, "available_memory_bytes", lambda: 30_000)
    with pytest.raises(
        ResourceError, match=r"42 pictures of train need 32\.3 kB, 30 kB are free, of which 80%"
    ) as caught:
        load_split(both[0], "train", in_memory=True)
    assert caught.value.exit_code == ExitCode.RESOURCES
    assert "data.cache = 'disk'" in caught.value.hint
    assert load_split(both[0], "val", in_memory=True).frames.shape == (6, 16, 16, 3)


def test_frames_that_are_read_often_are_decoded_once_where_they_fit(both, monkeypatch):
    told = []
    val = load_split(both[1], "val")
    held = hold_in_memory(val, told.append)
    assert isinstance(held.frames, np.ndarray)
    np.testing.assert_array_equal(held.frames, np.array(val.frames))
    mapped = load_split(both[0], "val")
    assert hold_in_memory(mapped, told.append) is mapped
    assert told == []
    monkeypatch.setattr(arrays, "available_memory_bytes", lambda: 5_000)
    assert hold_in_memory(val, told.append) is val
    assert told == ["  4.61 kB of frames do not fit into memory: decoded at every use"]


def test_what_tells_contents_apart_is_there_for_both(both):
    assert identity_file(both[0], "test") == both[0] / "test.npy"
    assert identity_file(both[1], "test") == both[1] / "index.json"


# -- what goes wrong


def test_a_disk_that_fills_up_leaves_nothing_half(folder, tmp_path):
    """The system's own limit of a file's size: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # test and val fit, train does not
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            prepare_all(folder, tmp_path / "out", cache="disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        caught.value.errno == errno.EFBIG
    )  # told by whoever runs the stage, as a limit and not as a full disk
    assert list((tmp_path / "out").iterdir()) == []


def test_arrays_of_data_that_is_refused_are_taken_away(folder, tmp_path):
    (folder / "red" / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match="1 of 61 pictures is unreadable"):
        prepare_all(folder, tmp_path / "out", cache="disk")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_picture_broken_behind_its_header_stops_where_it_is_used(folder, tmp_path):
    path = folder / "red" / "007.png"
    path.write_bytes(path.read_bytes()[:-40])
    index = prepare_all(folder, tmp_path / "out", cache="none", check="header")
    assert index["unreadable"] == []
    name = next(name for name in SPLITS if "red/007.png" in index["splits"][name]["keys"])
    frames, place = (
        load_split(tmp_path / "out", name).frames,
        index["splits"][name]["keys"].index("red/007.png"),
    )
    with pytest.raises(ImageError, match=r"red/007\.png cannot be decoded") as caught:
        frames[:]
    assert caught.value.path == str(path)
    assert "data.check = 'whole' finds such pictures" in caught.value.hint
    assert len(frames[[i for i in range(len(frames)) if i != place]]) == len(frames) - 1


def test_the_header_alone_still_finds_what_is_no_picture(folder, tmp_path):
    (folder / "red" / "text.jpg").write_text("no picture")
    index = prepare_all(folder, tmp_path / "out", cache="none", check="header", max_unreadable=0.1)
    assert [entry["key"] for entry in index["unreadable"]] == ["red/text.jpg"]


def test_a_picture_that_changes_or_goes_while_it_is_used_is_refused(both):
    frames, folder = load_split(both[1], "val").frames, both[2]
    first, second = (folder / key for key in load_split(both[1], "val").keys[:2])
    Image.new("RGB", (9, 9)).save(first)
    second.unlink()
    with pytest.raises(ImageError, match="is no longer the picture that was listed") as caught:
        frames[:1]
    assert caught.value.path == str(first)
    assert caught.value.reason == "changed"
    assert caught.value.exit_code == ExitCode.USAGE
    assert "Run the same command again" in caught.value.hint
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        frames[1]


def test_a_picture_that_may_not_be_read_is_named_without_its_folder(folder, tmp_path):
    (folder / "red" / "007.png").unlink()
    (folder / "red" / "007.png").symlink_to(folder / "absent.png")
    index = prepare_all(folder, tmp_path / "out", cache="none", max_unreadable=0.1)
    assert index["unreadable"] == [
        {
            "key": "red/007.png",
            "reason": "missing",
            "message": "The picture is not there.",
        }
    ]


def test_a_class_with_one_picture_is_trained_and_its_absence_elsewhere_told(folder, tmp_path):
    for path in sorted((folder / "red").iterdir())[1:]:
        path.unlink()
    index = prepare_all(folder, tmp_path / "out", cache="none")
    assert index["unjudged"] == [{"class": "red", "splits": ["val", "test"]}]
    assert load_split(tmp_path / "out", "train").labels.tolist().count(2) == 1


# -- places


def test_only_the_local_file_names_a_folder(both):
    _, none, folder = both
    for name in ("index.json", "preparation.json"):
        assert str(folder) not in (none / name).read_text()
    places = json.loads((none / "pictures.local.json").read_text())
    assert places["root"] == str(folder)
    assert not any(file.startswith("/") for part in places["files"].values() for file in part)


def test_files_of_a_table_may_lie_anywhere(folder, tmp_path, monkeypatch):
    write_pictures(tmp_path / "elsewhere", per_class=5, size=19)
    rows = [f"pictures/{name}/{i:03}.png,{name}" for name in ("red", "blue") for i in range(20)]
    rows += [f"{tmp_path}/elsewhere/{name}/{i:03}.png,{name}" for name in ("red", "blue") for i in range(5)]
    (tmp_path / "table.csv").write_text("\ufeffpath,label\n" + "\n".join(rows))
    monkeypatch.chdir(tmp_path)  # a relative path of the table
    for cache in ("disk", "none"):
        prepare_all("table.csv", tmp_path / cache, source="csv", cache=cache)
    monkeypatch.chdir("/")
    expected, got = (np.array(load_split(tmp_path / c, "train").frames) for c in ("disk", "none"))
    np.testing.assert_array_equal(got, expected)


def test_names_that_are_no_utf8_are_found_again(folder, tmp_path):
    os.rename(os.fsencode(folder / "red" / "000.png"), os.fsencode(folder / "red") + b"/\xff\xfe.png")  # noqa: PTH104
    prepare_all(folder, tmp_path / "out", cache="none")
    assert sum(len(np.array(load_split(tmp_path / "out", name).frames)) for name in SPLITS) == 60


def test_folders_within_class_folders_keep_their_order(folder):
    for name in ("a", "a-b", "a.d"):
        (folder / "red" / name).mkdir()
        shutil.copy(folder / "red" / "000.png", folder / "red" / name / "x.PNG")
    keys = [s.key for s in read_source(DataSettings(source="imagefolder", path=folder)).train if s.label == 2]
    # By its parts, so that the pictures of one folder stand together: "/" sorts before no sign.
    assert [k for k in keys if k.endswith("PNG")] == ["red/a/x.PNG", "red/a-b/x.PNG", "red/a.d/x.PNG"]


# -- memory


def _small_source(count):
    """``count`` pictures of 64 x 64 pixels as files would be: encoded, and each with other bytes."""
    buffer = Image.effect_noise((16, 16), 50).convert("RGB")

    def encode(number):
        import io

        out = io.BytesIO()
        buffer.save(out, "BMP")
        return out.getvalue() + number.to_bytes(4, "big")  # what follows the pixels is not looked at

    return LabelledImages(("a", "b"), tuple(Sample(str(i), i % 2, encode(i)) for i in range(count)))


def test_memory_does_not_grow_with_the_pixels(tmp_path, monkeypatch):
    images = _small_source(3000)
    monkeypatch.setattr(prepared, "read_source", lambda settings: images)
    monkeypatch.setattr(prepared, "_AHEAD_PICTURES", 64)
    peaks = []
    for size in (8, 64):
        tracemalloc.start()
        prepare_all(None, tmp_path / str(size), source="digits", size=size, leaks="allow")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 3000 frames more of 12,096 bytes are 36 MB; 64 under way, and as many encoded, are below 2.
    assert peaks[1] - peaks[0] < 4e6
    assert peaks[0] / 3000 < 3000, "bytes of book-keeping for each picture"
