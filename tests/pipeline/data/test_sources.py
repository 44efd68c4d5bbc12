"""Data sets in files of their own: what is read is what stands there, and what is damaged is said to be."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image
from tests_support import write_pictures

from edgekiln.pipeline.data import load_split, prepare_splits, read_source, split_samples
from edgekiln.pipeline.data.sources import FASHION_MNIST_FOLDER
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.errors import DataError, ExitCode

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def encode_idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=["plain", "gzipped"])
def fashion(tmp_path, request):
    """A folder in Fashion-MNIST's own format: 40 and 20 pictures of 5 x 4 pixels, and the arrays in it."""
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(0, 256, (40, 5, 4), np.uint8), np.arange(40, dtype=np.uint8) % 10,
        generator.integers(0, 256, (20, 5, 4), np.uint8), np.arange(20, dtype=np.uint8) % 10,
    ]  # fmt: skip
    for name, array in zip(NAMES, arrays, strict=True):
        data = encode_idx(array)
        if request.param == "gzipped":
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (tmp_path / name).write_bytes(data)
    return tmp_path, arrays


def read(source, path=None, **settings):
    return read_source(DataSettings(source=source, path=path, size=8, **settings))


def test_idx_files_become_labelled_grey_pictures(fashion):
    folder, (pixels, labels, test_pixels, _) = fashion
    images = read("fashion-mnist", folder)
    assert images.classes[0] == "T-shirt/top"
    assert len(images.classes) == 10
    assert (len(images.train), images.val, len(images.test)) == (40, None, 20)
    assert [sample.label for sample in images.train] == labels.tolist()
    assert images.test[3].key == "t10k/3"
    for channel in range(3):
        np.testing.assert_array_equal(images.train[7].picture[..., channel], pixels[7])
        np.testing.assert_array_equal(images.test[7].picture[..., channel], test_pixels[7])


def test_idx_pictures_go_through_the_same_door_as_all_others(fashion, tmp_path):
    folder, _ = fashion
    out = tmp_path / "out"
    out.mkdir()
    prepare_splits(DataSettings(source="fashion-mnist", path=folder, size=8), seed=0, folder=out)
    assert load_split(out, "test").frames.shape == (20, 8, 8, 3)


@pytest.mark.skipif(
    not FASHION_MNIST_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist():
    images = read("fashion-mnist")
    assert (len(images.train), len(images.test)) == (60_000, 10_000)
    assert np.bincount([sample.label for sample in images.test]).tolist() == [1000] * 10


def damage(folder, name, change):
    path = next(folder.glob(f"{name}*"))
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    data = change(data)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAMES[0], lambda data: data[:-1], r"cut short or damaged: 799 bytes .* header says 800"),
        (NAMES[0], lambda data: data[:10], "no IDX file of 3 dimensions"),
        (NAMES[1], lambda data: b"", "no IDX file of 1 dimensions: it begins with nothing"),
        (NAMES[1], lambda data: data[:-1] + b"\x0a", "has label 10, wanted 0 to 9"),
        (NAMES[3], lambda data: encode_idx(np.zeros(19, np.uint8)), "has 20 pictures and .* 19 labels"),
        (NAMES[2], lambda data: encode_idx(np.zeros(20, np.uint8)), "no IDX file of 3 dimensions"),
    ],
)  # fmt: skip
def test_damaged_idx_files_are_told(fashion, name, change, message):
    folder, _ = fashion
    damage(folder, name, change)
    with pytest.raises(DataError, match=message) as caught:
        read("fashion-mnist", folder)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_gzip_file_cut_short_is_told(fashion):
    folder, _ = fashion
    path = folder / f"{NAMES[0]}.gz"
    if not path.exists():
        path, whole = folder / f"{NAMES[0]}.gz", folder / NAMES[0]
        path.write_bytes(gzip.compress(whole.read_bytes()))
        whole.unlink()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cut short or no gzip file"):
        read("fashion-mnist", folder)


def test_a_missing_idx_file_is_named(fashion):
    folder, _ = fashion
    next(folder.glob(f"{NAMES[1]}*")).unlink()
    with pytest.raises(DataError, match=f"has no {NAMES[1]} and no {NAMES[1]}.gz"):
        read("fashion-mnist", folder)


def test_a_missing_folder_tells_where_the_files_come_from(tmp_path):
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        read("fashion-mnist", tmp_path / "absent")


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    images, digits = read("digits"), load_digits()
    assert images.classes == tuple("0123456789")
    assert [sample.label for sample in images.train] == digits.target.tolist()
    np.testing.assert_allclose(images.train[5].picture[..., 1], digits.images[5] * 255 / 16, atol=0.5)
    assert images.train[0].picture.dtype == np.uint8


# -- tables


@pytest.fixture
def table(tmp_path):
    """A function that writes a CSV file beside four pictures of each of three colours."""
    write_pictures(tmp_path / "pictures", per_class=4)
    paths = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "pictures").rglob("*.png"))

    def write(text=None, *, encoding="utf-8"):
        rows = "".join(f"{path},{path.split('/')[1]}\n" for path in paths)
        (tmp_path / "labels.csv").write_text("path,label\n" + rows if text is None else text, encoding)
        return tmp_path / "labels.csv"

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_gives_paths_and_labels(table, encoding):
    images = read("csv", table(encoding=encoding))
    assert images.classes == ("blue", "green", "red")
    assert [sample.label for sample in images.train] == [0] * 4 + [1] * 4 + [2] * 4
    assert images.train[0].key == "pictures/blue/000.png"
    assert (images.val, images.test) == (None, None)
    Image.open(images.train[-1].picture).load()


def test_splits_delimiters_quotes_and_named_columns(table):
    text = (
        "id;file;what;split\n"
        '1;"pictures/blue/000.png";"sky; blue";train\n'
        "2;pictures/red/000.png;red;Training\n"
        "\n"
        "3;pictures/blue/001.png;sky; blue\n"
    )
    with pytest.raises(DataError, match=r"line 5: split 'blue', wanted train, val or test"):
        read("csv", table(text), path_column="file", label_column="what")
    text = text.replace("sky; blue\n", '"sky; blue";TEST\n') + "4;pictures/red/001.png;red;validation\n"
    images = read("csv", table(text), path_column="file", label_column="what")
    assert images.classes == ("red", "sky; blue")
    assert [len(part) for part in (images.train, images.val, images.test)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path'; it has: none"),
        ("paths,label\n", "has no column 'path'; it has: paths, label.*Did you mean 'paths'"),
        ("path,label\n", "lists no pictures"),
        ("path,label\npictures/red/000.png,\n", "line 2: no label"),
        ("path,label\npictures/red/000.png\n", "line 2: no label"),
        ("path,label\n,red\n", "line 2: no path"),
        ("path,label\nabsent.png,red\npictures/red/000.png,red\nnone/x.png,blue\n",
         r"2 of 3 pictures of .* are not there: absent\.png \(line 2\), none/x\.png \(line 4\)"),
        ("path,label\npictures/red/000.png,red\n", r"Found 1 class \(red\)"),
        ('path,label\n"pictures/red/000.png,red\n', "line 2: unexpected end of data"),
        ("path,label,split\npictures/red/000.png,red,test\npictures/blue/000.png,blue,train\n",
         "Class 'red' has no picture in train"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_table_is_told_with_its_line(table, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read("csv", table(text))
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_table_that_is_not_there_not_text_or_a_folder(table, tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read("csv", tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a folder; the source 'csv' takes a file"):
        read("csv", tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read("csv", tmp_path / "binary.csv")
    with pytest.raises(DataError, match=r"needs data\.path"):
        read("csv")


def test_absolute_paths_stay_out_of_reports(table, tmp_path):
    rows = "".join(f"{tmp_path}/pictures/{name}/000.png,{name}\n" for name in ("red", "blue"))
    images = read("csv", table("path,label\n" + rows))
    assert [sample.key for sample in images.train] == ["000.png", "000.png"]


# -- a share of train


def test_a_share_of_train_is_stratified_and_leaves_test_whole(tmp_path):
    folder = write_pictures(tmp_path / "pictures", per_class=20)
    images = read("imagefolder", folder)
    whole = split_samples(images, validation=0.2, test=0.25, seed=1)
    part = split_samples(images, validation=0.2, test=0.25, seed=1, share=0.4)
    assert part["test"] == whole["test"]
    for name, count in (("train", 5), ("val", 1)):
        assert np.bincount([sample.label for sample in part[name]]).tolist() == [count] * 3
    assert {s.key for s in part["train"]} <= {s.key for s in (*whole["train"], *whole["val"])}
