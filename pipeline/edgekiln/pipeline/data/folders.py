"""Pictures in folders that are named after their classes. Lists names; opens no picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgekiln.pipeline.data.labelled import LabelledImages, Sample
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.pictures.encoded import SUFFIXES

__all__ = ["PICTURE_SUFFIXES", "read_class_folders", "read_imagefolder"]

PICTURE_SUFFIXES = SUFFIXES
_SPLIT_FOLDERS = {"train": None, "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_WORDS = frozenset({*_SPLIT_FOLDERS, "training", "testing", "dev", "eval"})


def read_imagefolder(folder: Path) -> LabelledImages:
    """Pictures of ``folder/CLASS/``, or of ``folder/train/CLASS/`` with val and test beside it.

    Raises:
        DataError: no such folder, no pictures, splits with different classes, classes at another depth.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file, data.path wants a folder."
            if folder.exists()
            else f"There is no folder {folder}.",
            hint="A relative data.path is taken from the recipe's own folder.",
            path=folder,
        )
    if not (folder / "train").is_dir():
        classes, samples, ignored = read_class_folders(folder, folder, None)
        _check_layout(folder, classes)
        return LabelledImages(classes, samples, ignored=ignored)
    classes, train, ignored = read_class_folders(folder, folder / "train", None)
    parts: dict[str, tuple[Sample, ...] | None] = {"val": None, "test": None}
    for entry in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        split = _SPLIT_FOLDERS.get(entry.name, "")
        if split == "":
            ignored += (f"{_readable(entry.name)}/",)
        elif split is not None:
            _, samples, more = read_class_folders(folder, entry, classes)
            parts[split], ignored = (parts[split] or ()) + samples, ignored + more
    return LabelledImages(classes, train, parts["val"], parts["test"], ignored)


def read_class_folders(
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
        prefix = class_folder.relative_to(root).as_posix()
        for name in _list_files(class_folder):
            base, key = name.rpartition("/")[2], _readable(f"{prefix}/{name}")
            if base.startswith("."):
                continue
            if f".{base.rpartition('.')[2]}".lower() in PICTURE_SUFFIXES:
                samples.append(Sample(key, label, f"{class_folder}/{name}"))
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


def _list_files(folder: Path) -> list[str]:
    """Every file below a folder, relative to it, sorted by its parts. Texts: 100,000 Paths take seconds to sort.

    A folder that cannot be read is an error: its pictures would vanish.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable_folder(Path(error.filename or folder), error) from error

    found: list[str] = []
    for at, _, names in os.walk(folder, onerror=refuse):
        below = os.path.relpath(at, folder)
        found += names if below == "." else [f"{below}/{name}" for name in names]
    return sorted(found, key=lambda name: name.split("/"))


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
