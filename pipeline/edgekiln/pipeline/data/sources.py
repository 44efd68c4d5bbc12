"""Labelled pictures that are not folders of classes: IDX files, tables, scikit-learn's digits.

Each function lists what is there and decodes nothing; ``listing.read_source`` calls them. None of them downloads.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.pipeline.data.labelled import LabelledImages, Sample, SplitName
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.extras import import_extra

__all__ = ["FASHION_MNIST_FOLDER", "read_digits", "read_fashion_mnist", "read_table"]

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four files."""
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_IMAGES_MAGIC, _LABELS_MAGIC = 0x00000803, 0x00000801  # unsigned bytes in three dimensions, and in one
_SPLITS: dict[str, SplitName] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------
# IDX


def read_fashion_mnist(folder: Path | None) -> LabelledImages:
    """The 60,000 and 10,000 grey pictures of Fashion-MNIST (arXiv:1708.07747), as its four IDX files, gzipped or not.

    Raises:
        DataError: a file is missing, cut short, or no IDX file.
    """
    root = FASHION_MNIST_FOLDER if folder is None else folder
    if not root.is_dir():
        raise DataError(
            f"There is no folder {root}.",
            hint="Install Debian's package dataset-fashion-mnist, or name a folder with the four files in data.path.",
            path=root,
        )
    train, test = (_read_idx_split(root, name) for name in ("train", "t10k"))
    return LabelledImages(FASHION_MNIST_CLASSES, train, test=test)


def _read_idx_split(root: Path, name: str) -> tuple[Sample, ...]:
    images_file, labels_file = (
        _find_idx(root, f"{name}-{part}-ubyte") for part in ("images-idx3", "labels-idx1")
    )
    images, labels = _read_idx(images_file, _IMAGES_MAGIC), _read_idx(labels_file, _LABELS_MAGIC)
    if len(images) != len(labels):
        raise DataError(
            f"{images_file} has {len(images)} pictures and {labels_file.name} {len(labels)} labels."
        )
    if len(labels) and labels.max() >= len(FASHION_MNIST_CLASSES):
        raise DataError(f"{labels_file} has label {labels.max()}, wanted 0 to 9.", path=labels_file)
    return tuple(
        Sample(f"{name}/{i}", int(label), _grey_to_rgb(image))
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    )


def _find_idx(root: Path, stem: str) -> Path:
    for path in (root / stem, root / f"{stem}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{root} has no {stem} and no {stem}.gz.", path=root / stem)


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """uint8 (N,) or (N, rows, columns): four bytes of magic, the sizes as big-endian uint32, then the bytes."""
    dimensions = magic & 0xFF
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is cut short or no gzip file: {error}.", path=path) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", path=path) from error
    header = 4 + 4 * dimensions
    got = struct.unpack(">I", data[:4])[0] if len(data) >= header else None
    if got != magic:
        raise DataError(
            f"{path} is no IDX file of {dimensions} dimensions: it begins with {data[:4].hex(' ') or 'nothing'}, "
            f"wanted {magic:08x}.",
            path=path,
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    wanted = int(np.prod(shape, dtype=np.int64))
    if len(data) - header != wanted:
        raise DataError(
            f"{path} is cut short or damaged: {len(data) - header} bytes of values, its header says {wanted}.",
            hint="Fetch it again.",
            path=path,
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _grey_to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) as (H, W, 3) without a copy: 70,000 pictures stay at one byte a pixel."""
    return np.broadcast_to(image[:, :, None], (*image.shape, 3))


# --------------------------------------------------------------------------------------------------------------
# scikit-learn


def read_digits() -> LabelledImages:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels of 0 to 16, scaled to 0 to 255."""
    digits = import_extra("sklearn.datasets", "digits").load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    samples = tuple(
        Sample(f"digits/{i}", int(label), _grey_to_rgb(image))
        for i, (image, label) in enumerate(zip(pixels, digits.target, strict=True))
    )
    return LabelledImages(tuple(map(str, range(10))), samples)


# --------------------------------------------------------------------------------------------------------------
# Tables


def read_table(path: Path, *, path_column: str = "path", label_column: str = "label") -> LabelledImages:
    """Pictures listed in a CSV file: a column of paths, relative to the file, and one of labels.

    A column ``split`` with train, val and test is honoured. The delimiter is the one of ``, ; TAB`` that the header
    uses; a byte order mark is skipped. Classes are the sorted labels.

    Raises:
        DataError: no such file or column, a row without a label, pictures that are not there; the line is named.
    """
    rows = list(_read_rows(path, (path_column, label_column)))
    if not rows:
        raise DataError(f"{path} lists no pictures.", path=path)
    classes = tuple(sorted({row[label_column] for _, row in rows}))
    places = {name: label for label, name in enumerate(classes)}
    parts: dict[SplitName, list[Sample]] = {"train": [], "val": [], "test": []}
    missing: list[str] = []
    for line, row in rows:
        picture = path.parent / row[path_column]
        if not picture.is_file():
            missing.append(f"{row[path_column]} (line {line})")
            continue
        split = _read_split(row.get("split"), path, line)
        parts[split].append(Sample(_make_key(row[path_column]), places[row[label_column]], picture))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} pictures of {path} are not there: {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}.",
            hint=f"Paths are taken from the file's own folder, {path.parent}.",
            path=path,
        )
    defined = {name: tuple(samples) for name, samples in parts.items() if samples}
    return LabelledImages(classes, defined.get("train", ()), defined.get("val"), defined.get("test"))


def _make_key(listed: str) -> str:
    """How a picture is named in reports: as listed, but never by an absolute path of this machine."""
    path = Path(listed)
    return path.name if path.is_absolute() else path.as_posix()


def _read_split(text: str | None, path: Path, line: int) -> SplitName:
    if not text:
        return "train"
    split = _SPLITS.get(text.strip().lower())
    if split is None:
        raise DataError(f"{path}, line {line}: split {text!r}, wanted train, val or test.", path=path)
    return split


def _read_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Line number and values of each row that is not empty."""
    text = _read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    _check_columns(reader.fieldnames or (), wanted, path)
    try:
        for row in reader:
            values: dict[str, Any] = row
            line = reader.line_num
            for column in wanted:
                if not (values[column] or "").strip():
                    raise DataError(f"{path}, line {line}: no {column}.", path=path)
            yield line, {key: (value or "").strip() for key, value in values.items() if isinstance(key, str)}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num}: {error}.", path=path) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.", path=path) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; the source 'csv' takes a file.", path=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8: {error}.", path=path) from error


def _check_columns(found: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    for column in wanted:
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            raise DataError(
                f"{path} has no column {column!r}; it has: {', '.join(found) or 'none'}.",
                hint=f"Did you mean {near[0]!r}? Set data.path_column or data.label_column." if near
                else "Name them in data.path_column and data.label_column.",
                path=path,
            )  # fmt: skip
