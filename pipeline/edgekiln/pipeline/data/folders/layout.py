"""How a tree of folders is meant: which are splits, which are classes, and what is neither.

Splits have any usual name and lie at any depth; one folder alone in another is gone into. What could be read in two
ways is refused, with the tree drawn and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgekiln.pipeline.data.folders.tree import Folder, Tree, draw_tree, same_name
from edgekiln.pipeline.data.labelled import SplitName
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.pictures.encoded import SUFFIXES
from edgekiln.runtime.pictures.finding import LeftOut, printable_name

__all__ = ["Layout", "find_layout"]

_PLAIN: Mapping[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names that win over other usual ones of the same split."""
_WORDS: Mapping[str, SplitName] = {
    "train": "train", "training": "train", "trn": "train", "learn": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val",
    "test": "test", "testing": "test", "tst": "test", "eval": "test", "evaluation": "test", "holdout": "test",
}  # fmt: skip
_FILLERS = frozenset({
    "set", "sets", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "split", "folder",
    "samples", "files",
})  # fmt: skip
_GLUED = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})({'|'.join(sorted(_FILLERS))})")
_FIX = "Wanted FOLDER/CLASS/PICTURE, or FOLDER/train/CLASS/PICTURE with val and test beside it."


@dataclass(slots=True)
class Layout:
    """Where the classes of each split lie.

    Attributes:
        splits: the class folders of each split; without a train of its own, all of them under ``train``.
        split: whether the folders say which pictures are which split's.
        passed: (key, what it is) of folders that hold pictures and are no part of it.
        loose: keys of pictures that lie in no class folder.
        notices: what a person should know of how it was read.
    """

    splits: dict[SplitName, list[Folder]]
    split: bool = False
    passed: list[tuple[str, str]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def find_layout(tree: Tree) -> Layout:
    """Read a tree as a person would.

    Raises:
        DataError: no pictures, one class alone, or what could be read in two ways.
    """
    if not tree.root.total:
        raise _no_pictures(tree)
    place, passed = tree.root, list[tuple[str, str]]()
    while True:
        named = _name_splits(place)
        if any(_holds_classes(folder) for folder in named.get("train", ())):
            layout = _read_splits(tree, place, named)
            break
        inner = _only_inner(place)
        if inner is None:
            layout = _read_classes(tree, place, named)
            break
        passed += [(f.key, "no pictures in it") for f in place.folders if f is not inner]
        place = inner
    layout.passed[:0] = passed
    if place is not tree.root:
        layout.notices.insert(0, f"The class folders lie deeper: they are taken from {place.key}.")
    return layout


# --------------------------------------------------------------------------------------------------------------
# Names and shapes


def _name_splits(place: Folder) -> dict[SplitName, list[Folder]]:
    """Folders with pictures whose names are splits'; ``seg_train`` is one where ``seg_test`` stands beside it."""
    found: dict[str, list[tuple[SplitName, Folder]]] = {}
    for folder in place.filled:
        words = _words(same_name(folder.name))
        named = [word for word in words if word in _WORDS]
        if len(named) == 1:
            rest = " ".join(word for word in words if word not in _FILLERS and word not in _WORDS)
            found.setdefault(rest, []).append((_WORDS[named[0]], folder))
    splits: dict[SplitName, list[Folder]] = {}
    for rest, entries in found.items():
        if not rest or len({split for split, _ in entries}) > 1:
            for split, folder in entries:
                splits.setdefault(split, []).append(folder)
    return splits


def _words(name: str) -> list[str]:
    """``training``, ``set`` of trainingSet, training_set and TRAININGSET 2."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    glued = [(word, _GLUED.fullmatch(word)) for word in words]
    return [part for word, match in glued for part in (match.groups() if match else (word,))]


def _only_inner(place: Folder) -> Folder | None:
    """The one folder with pictures, where none lies beside it and these lie in folders of their own."""
    if place.pictures or len(place.filled) != 1:
        return None
    inner = place.filled[0]
    return inner if inner.filled and not inner.pictures else None


def _go_in(folder: Folder) -> Folder:
    """Through folders that hold nothing but one folder of folders: ``training_set/training_set``."""
    while (inner := _only_inner(folder)) is not None:
        folder = inner
    return folder


def _holds_classes(folder: Folder) -> bool:
    """Whether most of its pictures lie in folders of their own."""
    inside = _go_in(folder)
    return sum(inner.total for inner in inside.folders) > len(inside.pictures)


# --------------------------------------------------------------------------------------------------------------
# Splits


def _read_splits(tree: Tree, place: Folder, named: Mapping[SplitName, Sequence[Folder]]) -> Layout:
    layout = Layout({}, split=True)
    chosen: list[Folder] = []
    for split in ("train", "val", "test"):
        candidates = _choose_candidates(tree, split, named)
        folders = [_go_in(folder) for folder in candidates]
        if split != "train" and folders:
            folders = [f for f in folders if not _is_unlabelled(f, layout.splits["train"])]
        if folders:
            layout.splits[split] = [inner for folder in folders for inner in folder.folders]
            layout.loose += [_join(folder.key, name) for folder in folders for name in folder.pictures]
            chosen += folders
            layout.notices += [
                f"The {split} split's class folders lie deeper: they are taken from {inner.key}."
                for inner in folders
                if not any(inner is folder for folder in candidates)
            ]
    _pass_over_others(tree, place, named, layout, chosen)
    return layout


def _choose_candidates(
    tree: Tree, split: SplitName, named: Mapping[SplitName, Sequence[Folder]]
) -> list[Folder]:
    """The folders of a split: those of its plain names, else the one of another usual name."""
    candidates = [folder for folder in named.get(split, ()) if _holds_classes(folder)]
    plain = [folder for folder in candidates if _PLAIN.get(folder.name) == split]
    if len(candidates) > 1 and not plain:
        names = " and ".join(folder.key for folder in candidates)
        raise DataError(
            f"Two folders could be the {split} split: {names}. The tree: {draw_tree(tree)}.",
            hint=f"Call one of them {split}, or move the other one out of {tree.place}.",
            path=tree.place,
        )
    return plain or candidates


def _is_unlabelled(folder: Folder, train: Sequence[Folder]) -> bool:
    """A test folder whose one folder, ``test/images``, is no class."""
    names = {same_name(inner.name) for inner in train}
    return len(folder.filled) == 1 and same_name(folder.filled[0].name) not in names


def _pass_over_others(
    tree: Tree,
    place: Folder,
    named: Mapping[SplitName, Sequence[Folder]],
    layout: Layout,
    chosen: Sequence[Folder],
) -> None:
    """Tell of the folders beside the splits; refuse where they may be classes beside one called like a split."""
    unlabelled = {id(f): split for split, folders in named.items() for f in folders}
    train = {same_name(folder.name) for folder in layout.splits["train"]}
    taken = {id(folder) for folder in chosen}
    for folder in place.folders:
        if id(_go_in(folder)) in taken:
            continue
        if not folder.total and same_name(folder.name).casefold() in _PLAIN:
            raise DataError(
                f"{tree.place / folder.path} holds no pictures in class folders. The tree: {draw_tree(tree)}.",
                hint="Put pictures into it, or remove it: the split is then cut from train.",
                path=tree.place / folder.path,
            )
        split = unlabelled.get(id(folder))
        if split is not None and split not in layout.splits:
            what = f"{folder.total} pictures without class folders: no labels, so that nothing can be judged on them"
            layout.notices.append(f"{folder.key} holds {what}. {_say_cut(split)}")
        elif (
            folder.total
            and len(layout.splits) == 1
            and len(named) == 1
            and not train & _names(_go_in(folder))
        ):
            raise _collision(tree, layout, folder)
        layout.passed.append((folder.key, "no split"))
    layout.loose += [_join(place.key, name) for name in place.pictures]


def _say_cut(split: SplitName) -> str:
    return f"A {split} split is cut from train instead."


def _names(folder: Folder) -> set[str]:
    return {same_name(inner.name) for inner in folder.folders}


def _collision(tree: Tree, layout: Layout, other: Folder) -> DataError:
    train = PurePosixPath(layout.splits["train"][0].path).parent.as_posix()
    return DataError(
        f"{printable_name(train)} looks like a split, for it holds folders, and {other.key} beside it like a class. "
        f"The tree: {draw_tree(tree)}.",
        hint=f"If {printable_name(train)} is a class, give it another name; if it is a split, move {other.key} into it "
        "or away.",
        path=tree.place,
    )


# --------------------------------------------------------------------------------------------------------------
# Classes


def _read_classes(tree: Tree, place: Folder, named: Mapping[SplitName, Sequence[Folder]]) -> Layout:
    within = _splits_within_classes(place)
    if within:
        return Layout(within, split=True, loose=[_join(place.key, name) for name in place.pictures])
    if not place.filled:
        raise _no_pictures(tree)
    splits = {id(folder) for folders in named.values() for folder in folders}
    if all(id(folder) in splits for folder in place.filled) or any(
        _holds_classes(folder) for folders in named.values() for folder in folders
    ):
        names = ", ".join(printable_name(folder.name) for folder in place.filled)
        raise DataError(
            f"The folders of {tree.place} look like splits, not like classes: {names}, and no train folder holds a "
            f"folder for each class. The tree: {draw_tree(tree)}.{_tell_tables(tree)}",
            hint=_table_hint(tree) or _FIX,
            path=tree.place,
        )
    if len(place.folders) == 1:
        only = place.folders[0]
        raise DataError(
            f"Found 1 class ({printable_name(only.name)}), wanted at least 2, in {tree.place}. "
            f"The tree: {draw_tree(tree)}.{_tell_tables(tree)}",
            hint=_table_hint(tree) or "Each class is a folder of its own below data.path.",
            path=tree.place,
        )
    return Layout({"train": list(place.folders)}, loose=[_join(place.key, name) for name in place.pictures])


def _splits_within_classes(place: Folder) -> dict[SplitName, list[Folder]]:
    """``cat/train``, ``cat/test``, ``dog/train``: where every class folder holds splits and nothing else."""
    splits: dict[SplitName, list[Folder]] = {}
    for folder in place.filled:
        named = _name_splits(folder)
        if folder.pictures or "train" not in named or sum(map(len, named.values())) != len(folder.filled):
            return {}
        if any(inner.filled for folders in named.values() for inner in folders):
            return {}
        for split, folders in named.items():
            # The class is called like the folder above.
            splits.setdefault(split, []).extend(
                Folder(folder.name, inner.path, inner.pictures, total=inner.total) for inner in folders
            )
    return splits


# --------------------------------------------------------------------------------------------------------------
# Refusals


def _no_pictures(tree: Tree) -> DataError:
    """Says what the folder holds instead: loose pictures, other files, or nothing."""
    wanted = f"Wanted {tree.place}/CLASS/PICTURE.jpg with endings {', '.join(sorted(SUFFIXES))}."
    loose = list(_loose(tree.root))
    others = [key for key, why in tree.left_out if why in {LeftOut.NO_PICTURE, LeftOut.CAMERA}]
    if any(why is LeftOut.CAMERA for _, why in tree.left_out):
        wanted = f"TIFF, PGM and PPM of a camera are taken with data.sensor_bits, its bits. {wanted}"
    if loose:
        lie = "picture lies" if len(loose) == 1 else "pictures lie"
        holds = f"{len(loose)} {lie} in no class folder, the first is {loose[0]}"
        wanted = f"Put each picture into a folder that is named after its class. {wanted}"
    elif others:
        endings = sorted({PurePosixPath(key).suffix or "no ending" for key in others})
        holds = (
            f"it holds {len(others)} other file{'' if len(others) == 1 else 's'} ({', '.join(endings[:5])})"
        )
    else:
        holds = "it holds no files" if not tree.left_out else f"it holds nothing but {tree.left_out[0][0]}"
    message = f"{tree.place} holds no pictures in class folders: {holds}.{_tell_tables(tree)}"
    return DataError(message, hint=_table_hint(tree) or wanted, path=tree.place)


def _loose(folder: Folder) -> Iterator[str]:
    yield from (_join(folder.key, name) for name in folder.pictures)


def _tables(tree: Tree) -> list[str]:
    return [key for key, _ in tree.left_out if key.lower().endswith((".csv", ".tsv"))]


def _tell_tables(tree: Tree) -> str:
    tables = _tables(tree)
    return f" There is a table, {tables[0]}." if tables else ""


def _table_hint(tree: Tree) -> str:
    """Where the labels stand in a table, the source that reads it."""
    if not (tables := _tables(tree)):
        return ""
    return (
        f"If it lists pictures and labels, set data.source = 'csv' and data.path = '{tree.place / tables[0]}', and "
        f"name its columns in data.path_column and data.label_column. {_FIX}"
    )


def _join(folder: str, name: str) -> str:
    return printable_name(f"{folder}/{name}".lstrip("/"))
