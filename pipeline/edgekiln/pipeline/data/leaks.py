"""Which pictures are kept where one stands in two splits: equal pixels, whatever the file, and near copies.

Equal pixels are moved, refused or allowed; near copies, by a perceptual hash, are told and stay where they are.
Works on frames that the preparation has decoded anyway, and reads no file. Of each picture some 300 bytes are kept.

The perceptual hash is the usual one of the discrete cosine transform (Zauner 2010, "Implementation and benchmarking of
perceptual image hash functions", section 3.2): a few lines of numpy. The package imagehash computes the same, brings
PyWavelets for its other hashes, and compares two hashes at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.pipeline.data.labelled import SPLITS, LabelledImages, Sample, SplitName
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.errors import DataError, ImageError
from edgekiln.runtime.pictures.image import Frame

__all__ = [
    "FramePrint",
    "LeakPolicy",
    "Looked",
    "NearCopies",
    "Sorter",
    "check_leaks",
    "describe_near_copies",
    "find_near_copies",
    "print_frame",
]

_SIDE, _LOW = (
    32,
    8,
)  # pixels of the grey picture that is transformed, and frequencies of each axis that are kept
_MOST_BITS = 6  # of 64 that differ between copies; unrelated pictures differ in 32 on average
_MOST_LEVELS = 4.0  # of 255, by which the small pictures of copies differ on average: a hash knows no colour
_BLOCK = 2**18  # comparisons at a time: 2 MB of differences
_MOST_COMPARISONS = (
    5 * 10**9
)  # about ten seconds of one core; beyond that a part of the pictures is looked at
_NAMED_PAIRS = 3
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW), np.arange(_SIDE) + 0.5)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FramePrint:
    """What tells a frame from others.

    Attributes:
        pixels: of equal frames alike, of others not.
        bits: 64 signs of its low frequencies, as 8 bytes.
        small: 8 x 8 pixels in colour, as 192 bytes.
    """

    pixels: bytes
    bits: bytes = field(repr=False)
    small: bytes = field(repr=False)


def print_frame(frame: Frame) -> FramePrint:
    """Of uint8 (H, W, 3)."""
    from PIL import Image

    pixels = hashlib.sha256(np.ascontiguousarray(frame).data).digest()
    image = Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(image.convert("L"), np.float32)
    low = np.rint(_COSINES @ grey @ _COSINES.T).ravel()  # a flat picture has exact zeros
    bits = np.packbits(low > np.median(low)).tobytes()
    small = np.asarray(image.reduce(_SIDE // _LOW)).tobytes()
    return FramePrint(pixels, bits, small)


# --------------------------------------------------------------------------------------------------------------
# Equal pixels


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look at a picture gave: its sha256, its frame where it was decoded, or why it cannot be used.

    ``levels`` are the frame's darkest and brightest one, of 0 to 255.
    """

    sample: Sample
    sha256: str = ""
    frame: Frame | None = field(default=None, repr=False)
    failure: ImageError | None = None
    print: FramePrint | None = field(default=None, repr=False)
    levels: tuple[int, int] | None = None

    @property
    def identity(self) -> bytes:
        """What pictures of equal pixels share; of bytes that were not decoded, what equal bytes share."""
        return bytes.fromhex(self.sha256) if self.print is None else self.print.pixels


@dataclass(frozen=True, slots=True)
class LeakPolicy:
    """What is done with equal pixels in two splits.

    Attributes:
        wish: ``data.leaks``; ``None`` moves between splits that are cut here, and refuses between the user's own.
        cut: the splits that are cut here, from one listing.
    """

    wish: str | None
    cut: frozenset[SplitName]

    @classmethod
    def of(cls, settings: DataSettings, images: LabelledImages) -> LeakPolicy:
        """The policy of a recipe for what its source gave; the splits of a published data set are nobody's own."""
        defined = {"val": images.val, "test": images.test}
        by_hand = settings.source in {"imagefolder", "csv"} or ":" in settings.source
        cut = [name for name in SPLITS if not by_hand or defined.get(name) is None]
        return cls(settings.leaks, frozenset(cut))

    def choose(self, one: SplitName, other: SplitName) -> str:
        """``move``, ``refuse`` or ``allow``."""
        return self.wish or ("move" if {one, other} <= self.cut else "refuse")


class Sorter:
    """Decides which of the pictures that were looked at are kept, over all splits, and why the others are not."""

    def __init__(self, total: int, advance: Callable[[int, int], None], policy: LeakPolicy) -> None:
        self.total, self._done, self._advance, self._policy = total, 0, advance, policy
        self.unreadable: list[dict[str, str]] = []
        self.duplicates: list[dict[str, str]] = []
        self.conflicts: list[dict[str, str]] = []
        self.refused: list[dict[str, str]] = []
        self.allowed: list[dict[str, str]] = []
        self.prints: dict[SplitName, list[FramePrint]] = {name: [] for name in SPLITS}
        self.without_pixels = 0
        self.levels: tuple[int, int] | None = None  # of all frames together
        self._seen: dict[bytes, tuple[str, SplitName]] = {}  # key and split by what tells the pixels
        self._labels: dict[bytes, int] = {}

    def sort(
        self, name: SplitName, found: Iterator[Looked], keep: Callable[[Sample, Frame | None], None]
    ) -> dict[str, list[Any]]:
        """The index's entry of a split; ``keep`` is called with what is in it, in order."""
        entry: dict[str, list[Any]] = {"keys": [], "labels": [], "sha256": []}
        here: dict[bytes, str] = {}
        for looked in found:
            self._done += 1
            self._advance(self._done, self.total)
            sample = looked.sample
            if looked.failure is not None:
                why = {"reason": looked.failure.reason, "message": looked.failure.message}
                self.unreadable.append({"key": sample.key, **why})
                continue
            if self._labels.setdefault(looked.identity, sample.label) != sample.label:
                self.conflicts.append({"key": sample.key, "split": name})
            if self._is_left_out(name, looked, here):
                continue
            here.setdefault(self._repeats_by(looked), sample.key)
            self._seen.setdefault(looked.identity, (sample.key, name))
            self.without_pixels += looked.print is None
            if looked.levels is not None:
                low, high = self.levels or looked.levels
                self.levels = min(low, looked.levels[0]), max(high, looked.levels[1])
            if looked.print is not None:
                self.prints[name].append(looked.print)
            keep(sample, looked.frame)
            for key, value in (("keys", sample.key), ("labels", sample.label), ("sha256", looked.sha256)):
                entry[key].append(value)
        return entry

    def _is_left_out(self, name: SplitName, looked: Looked, here: Mapping[bytes, str]) -> bool:
        """Whether the same pixels are kept elsewhere; tells of it."""
        about = {"key": looked.sample.key, "split": name}
        if self._repeats_by(looked) in here:
            # In a split that judges a repeated picture would count twice; in train it may, as the source says.
            if name != "train":
                self.duplicates.append({**about, "same_as": here[self._repeats_by(looked)]})
            return name != "train"
        if looked.identity not in self._seen:
            return False
        same_as, split = self._seen[looked.identity]
        action = self._policy.choose(name, split)
        if action == "move":
            self.duplicates.append({**about, "same_as": same_as})
        else:
            told = self.refused if action == "refuse" else self.allowed
            told.append({**about, "same_as": same_as, "same_split": split})
        return action != "allow"

    def _repeats_by(self, looked: Looked) -> bytes:
        """What a repeated picture of one split shares: where copies are allowed, only equal bytes are one picture."""
        return bytes.fromhex(looked.sha256) if self._policy.wish == "allow" else looked.identity

    def left_out(self) -> dict[str, list[dict[str, str]]]:
        """The index's entries of what is in no split, and of what has two labels."""
        return {
            "unreadable": self.unreadable,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
        }


def check_leaks(refused: Sequence[dict[str, str]], settings: DataSettings) -> None:
    """Raise the DataError that lists pairs of equal pixels in two splits, where there are any."""
    if not refused:
        return
    pairs = "; ".join(f"{each['key']} = {each['same_as']}" for each in refused[:_NAMED_PAIRS])
    more = f"; and {len(refused) - _NAMED_PAIRS} more" if len(refused) > _NAMED_PAIRS else ""
    are = "picture has" if len(refused) == 1 else "pictures have"
    raise DataError(
        f"{len(refused)} {are} the same pixels in two splits, so that the test would prove too much: {pairs}{more}.",
        hint="Take them out of one of the two; or set data.leaks = 'move', which keeps each once, in test before val "
        "before train, or 'allow'.",
        path=settings.path,
    )


# --------------------------------------------------------------------------------------------------------------
# Near copies


@dataclass(frozen=True, slots=True)
class NearCopies:
    """Pictures of val and test that have a near copy in a split before them.

    Attributes:
        pairs: the nearest copy of each, the closest first: split and position of both, and how many of 64 bits differ.
        looked_at: how many pictures of val and test were compared, of how many there are.
    """

    pairs: tuple[tuple[SplitName, int, SplitName, int, int], ...]
    looked_at: tuple[int, int]


def find_near_copies(prints: Mapping[SplitName, Sequence[FramePrint]]) -> NearCopies:
    """The nearest near copy of each picture of test in val and train, and of each of val in train."""
    tasks: list[tuple[SplitName, tuple[SplitName, ...]]] = [("test", ("val", "train")), ("val", ("train",))]
    total = sum(len(prints[name]) * sum(len(prints[other]) for other in others) for name, others in tasks)
    step = max(1, -(-total // _MOST_COMPARISONS))
    pairs, looked_at = [], 0
    for name, others in tasks:
        places = [(other, i) for other in others for i in range(len(prints[other]))]
        rows = range(0, len(prints[name]), step)
        looked_at += len(rows)
        mine = [prints[name][i] for i in rows]
        theirs = [prints[other][i] for other, i in places]
        for row, column, bits in _match(mine, theirs):
            pairs.append((name, rows[row], *places[column], bits))
    pairs.sort(key=lambda pair: pair[4])
    return NearCopies(tuple(pairs), (looked_at, len(prints["test"]) + len(prints["val"])))


def _match(mine: Sequence[FramePrint], theirs: Sequence[FramePrint]) -> Iterator[tuple[int, int, int]]:
    """(row, column, bits that differ) of the nearest of ``theirs``, where it is near and no equal."""
    if not theirs:
        return
    hashes = _stack_hashes(theirs)
    block = max(1, _BLOCK // len(theirs))
    for start in range(0, len(mine), block):
        part = mine[start : start + block]
        different = _count_bits(_stack_hashes(part)[:, None] ^ hashes[None, :])
        nearest = different.argmin(axis=1)
        for row, column in enumerate(nearest):
            bits = int(different[row, column])
            one, other = part[row], theirs[column]
            if bits <= _MOST_BITS and one.pixels != other.pixels and _levels(one, other) <= _MOST_LEVELS:
                yield start + row, int(column), bits


def _stack_hashes(prints: Sequence[FramePrint]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(each.bits for each in prints), np.uint64)


def _count_bits(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    count: Any = getattr(np, "bitwise_count", None)  # since numpy 2
    if count is not None:
        counted: NDArray[np.uint8] = count(values)
        return counted
    parts: NDArray[np.uint8] = _BITS[values.view(np.uint16).reshape(*values.shape, 4)]
    summed: NDArray[np.uint8] = parts.sum(axis=-1, dtype=np.uint8)
    return summed


_BITS = np.array([bin(value).count("1") for value in range(2**16)], np.uint8)


def _levels(one: FramePrint, other: FramePrint) -> float:
    """By how much their small pictures differ on average, of 255."""
    first, second = (np.frombuffer(each.small, np.uint8).astype(np.int16) for each in (one, other))
    return float(np.abs(first - second).mean())


def describe_near_copies(found: Mapping[str, Any] | None, name: Callable[[str, int], str]) -> list[str]:
    """Sentences for people.

    Args:
        found: ``near_copies`` as ``prepare_splits`` gives them; ``None`` where no picture was decoded.
        name: of a picture, by its split and position.
    """
    if found is None:
        return ["Copies were looked for by their bytes alone, since data.check = 'header' decodes nothing."]
    looked_at, there = found["looked_at"]
    told = []
    if looked_at < there:
        told.append(f"Near copies were looked for among {looked_at} of {there} pictures of val and test.")
    if found["count"]:
        pairs = [
            f"{name(p['split'], p['position'])} and {name(p['same_split'], p['same_position'])}"
            for p in found["pairs"][:_NAMED_PAIRS]
        ]
        told.append(
            f"{found['count']} pictures of val and test look nearly like one of a split that is trained or chosen on, "
            f"and stay where they are: {'; '.join(pairs)}. If they show the same scene, the test proves too much."
        )
    return told
