"""Labelled pictures of a folder: its tree, read as a layout, as samples."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekiln.pipeline.data.folders.layout import Layout, find_layout
from edgekiln.pipeline.data.folders.tree import Folder, Tree, draw_tree, read_tree, same_name
from edgekiln.pipeline.data.labelled import SPLITS, LabelledImages, Sample, SplitName
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.pictures.encoded import SUFFIXES
from edgekiln.runtime.pictures.finding import LeftOut, list_pictures, printable_name

__all__ = ["PICTURE_SUFFIXES", "read_imagefolder"]

PICTURE_SUFFIXES = SUFFIXES
_NAMED = 3  # examples in a sentence


def read_imagefolder(folder: Path, *, camera: bool = False) -> LabelledImages:
    """Pictures of ``folder/CLASS/``, or of ``folder/train/CLASS/`` with val and test beside it; see ``find_layout``.

    ``camera`` says whether TIFF, PGM and PPM are pictures.

    Raises:
        DataError: no such folder, no pictures, splits with different classes, a layout that can be read in two ways.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file, data.path wants a folder."
            if folder.exists()
            else f"There is no folder {folder}.",
            hint="A relative data.path is taken from the recipe's own folder.",
            path=folder,
        )
    tree = read_tree(folder, camera=camera)
    layout = find_layout(tree)
    classes = _name_classes(tree, layout)
    parts = {split: _list_samples(tree, folders, classes) for split, folders in layout.splits.items()}
    ignored = [key for key, _ in tree.left_out] + [f"{key}/" for key, _ in layout.passed] + layout.loose
    notices = [
        *layout.notices,
        *_describe_names(layout),
        *_describe_nested(layout),
        *_describe_left_out(tree, layout),
    ]
    return LabelledImages(
        tuple(sorted(classes)),
        parts["train"],
        parts.get("val"),
        parts.get("test"),
        tuple(sorted(ignored)),
        tuple(notices),
    )


def _name_classes(tree: Tree, layout: Layout) -> dict[str, int]:
    """Label by class. One class is what a person reads as one name, in every split."""
    train = {same_name(folder.name) for folder in layout.splits["train"]}
    _check_names(tree, layout.splits["train"])
    for split in SPLITS[1:]:
        if split in layout.splits:
            there = {same_name(folder.name) for folder in layout.splits[split]}
            if there != train:
                raise _unlike_classes(tree, layout, split, there, train)
    return {printable_name(name): label for label, name in enumerate(sorted(train))}


def _check_names(tree: Tree, folders: Sequence[Folder]) -> None:
    """Refuse names that no report or terminal could show, or tell apart."""
    shown: dict[str, str] = {}
    for folder in folders:
        name = same_name(folder.name)
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise DataError(
                f"The folder '{folder.key}' would be a class, and its name holds a control character.",
                hint="Give it another name.",
                path=tree.place / folder.path,
            )
        if shown.setdefault(printable_name(name), name) != name:
            raise DataError(
                f"Two class folders are shown as {printable_name(name)!r}: their names hold bytes that are no UTF-8.",
                hint="Give them other names: convmv -f latin1 -t utf8 mends names of old archives.",
                path=tree.place / folder.path,
            )


def _list_samples(tree: Tree, folders: Iterable[Folder], classes: dict[str, int]) -> tuple[Sample, ...]:
    """Sorted by class, then by name, so that runs agree."""
    ordered = sorted(folders, key=lambda f: (same_name(f.name), f.path.split("/")))
    return tuple(
        Sample(
            printable_name(f"{folder.path}/{name}"),
            classes[printable_name(same_name(folder.name))],
            f"{tree.place}/{folder.path}/{name}",
        )
        for folder in ordered
        for name in folder.list_pictures()
    )


def _unlike_classes(
    tree: Tree, layout: Layout, split: SplitName, there: set[str], train: set[str]
) -> DataError:
    place, home = (tree.place / _above(layout.splits[name]) for name in (split, "train"))
    added, missing = (sorted(map(printable_name, names)) for names in (there - train, train - there))
    parts = [f"{', '.join(added)} only in {place}"] if added else []
    parts += [f"{', '.join(missing)} only in {home}"] if missing else []
    return DataError(
        f"{place} and {home} have different classes: {', '.join(sorted([*added, *missing]))} ({'; '.join(parts)}). "
        f"The tree: {draw_tree(tree)}.",
        hint="Every split wants a folder for each class, of the same name.",
        path=place,
    )


def _above(folders: Sequence[Folder]) -> str:
    return folders[0].path.rpartition("/")[0]


# --------------------------------------------------------------------------------------------------------------
# What a person is told


def _describe_names(layout: Layout) -> list[str]:
    """Folders that are one class, names that begin or end with blanks, and names that differ by case alone."""
    told: list[str] = []
    for folders in layout.splits.values():
        alike: dict[str, list[Folder]] = {}
        for folder in folders:
            alike.setdefault(same_name(folder.name), []).append(folder)
        for name, group in sorted(alike.items()):
            spelled = sorted({folder.name for folder in group})
            if len(spelled) > 1:
                shown = " and ".join(f"{_spell(f.path)}/ ({f.total} pictures)" for f in group)
                told.append(f"One class {printable_name(name)!r} of folders whose names look alike: {shown}.")
            elif spelled[0].strip() != spelled[0]:
                told.append(
                    f"{_spell(group[0].path)}/ has blanks at an end of its name; the class is {name!r}."
                )
    names = Counter(same_name(folder.name).casefold() for folder in layout.splits["train"])
    by_case = {
        name: sorted(
            {same_name(f.name) for f in layout.splits["train"] if same_name(f.name).casefold() == name}
        )
        for name, count in names.items()
        if count > 1
    }
    told += [
        f"Classes that differ by capital letters alone are different ones: {', '.join(map(printable_name, group))}."
        for group in by_case.values()
        if len(group) > 1
    ]
    return told


def _describe_nested(layout: Layout) -> list[str]:
    """Classes without a picture of their own and with several folders of them."""
    return [
        f"All pictures of class {printable_name(same_name(folder.name))!r} lie one level deeper, in "
        f"{', '.join(printable_name(inner.name) for inner in folder.filled[:5])}: they are taken as one class. If "
        "these are the classes, move them up."
        for folder in layout.splits["train"]
        if not folder.pictures and len(folder.filled) > 1
    ]


def _spell(path: str) -> str:
    """A path with what the eye does not see: blanks at its end, and marks that stand apart from their letter."""
    return ascii(path) if unicodedata.normalize("NFC", path) != path else repr(path)


def _describe_left_out(tree: Tree, layout: Layout) -> list[str]:
    """A sentence for each reason why something below the folder is in no class, with examples by path."""
    told = []
    if layout.loose:
        lie = "1 picture lies" if len(layout.loose) == 1 else f"{len(layout.loose)} pictures lie"
        told.append(f"{lie} in no class folder: {_list_some(layout.loose)}. Move them into a class folder.")
    if layout.passed:
        told.append(
            f"Folders that are no split and no class: {_list_some([f'{key}/' for key, _ in layout.passed])}."
        )
    told += [f"{key}: {_dotted(tree, key)}" for key in _dotted_classes(tree, layout)]
    for why in LeftOut:
        keys = sorted(key for key, reason in tree.left_out if reason is why)
        if keys:
            told.append(f"Left out: {len(keys)} {why.value}: {_list_some(keys)}.")
    return told


def _dotted_classes(tree: Tree, layout: Layout) -> list[str]:
    """Hidden folders that hold pictures and lie where the classes lie: one may be a class, as ``.22LR`` is."""
    beside = {folder.path.rpartition("/")[0] for folders in layout.splits.values() for folder in folders}
    hidden = [key for key, why in tree.left_out if why is LeftOut.HIDDEN and key.endswith("/")]
    return [key for key in hidden if key.rstrip("/").rpartition("/")[0] in beside and _count(tree, key)]


def _dotted(tree: Tree, key: str) -> str:
    return (
        f"its {_count(tree, key)} pictures are left out, for the name begins with a dot. If it is a class, give it a "
        "name without the dot at its beginning."
    )


def _count(tree: Tree, key: str) -> int:
    place = tree.place / key
    # Not a folder where the name holds what cannot be shown.
    return len(list_pictures(place, camera=tree.camera)) if place.is_dir() else 0


def _list_some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{', '.join(keys[:_NAMED])}{more}"
