"""A folder of labelled pictures, looked at before anything is trained: counts, sizes, and what will go wrong.

Reads names and headers, so that a picture whose end is missing is not noticed here but when the run decodes it. Of some
pictures the values are read too, to tell the bits of a camera.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.judging.planning import images_to_pass
from edgekiln.pipeline.data.budget import GOOD_DROP, LEAST_CHANCE, MOST_DROP, Budget, propose_budget
from edgekiln.pipeline.data.folders.values import (
    MeasuredValues,
    describe_levels,
    holds_camera_files,
    measure_some,
    propose_bits,
    read_camera_size,
)
from edgekiln.pipeline.data.labelled import LabelledImages, Sample, SplitName, split_samples
from edgekiln.pipeline.data.listing import read_source
from edgekiln.pipeline.data.table_finding import find_table
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.errors import DataError, ImageError
from edgekiln.runtime.pictures.encoded import CAMERA_FORMATS, FORMATS, read_encoded
from edgekiln.runtime.pictures.image import open_picture
from edgekiln.runtime.pictures.levels import white_of
from edgekiln.runtime.pictures.limits import MAX_PIXELS

__all__ = ["Survey", "survey_folder"]

_SKEW = 4  # times as many pictures in the largest class as in the smallest
_FEW = 10  # pictures of a class
_TINY_PIXELS = 32
_START_BYTES = 4096
_MIN_CALIBRATION = 32  # export.calibration wants as many


@dataclass(frozen=True)
class Survey:
    """What stands in a folder.

    Attributes:
        settings: the source that reads it: class folders, or a table.
        counts: of pictures, by split as it would be cut, then by class in the order of ``images.classes``.
        sizes: int64 (N, 2), widths and heights of the pictures whose headers could be read.
        unreadable: (key, reason) of the others.
        camera: whether TIFF, PGM and PPM are taken, as most of what is there.
        measured: what some of the pictures hold.
    """

    folder: Path
    settings: DataSettings
    images: LabelledImages
    counts: Mapping[SplitName, NDArray[np.int64]]
    sizes: NDArray[np.int64] = field(repr=False)
    unreadable: tuple[tuple[str, str], ...]
    camera: bool = False
    measured: tuple[MeasuredValues, ...] = field(default=(), repr=False)

    @property
    def total(self) -> int:
        """Pictures in class folders, readable or not."""
        return sum(int(part.sum()) for part in self.counts.values())

    @property
    def test_images(self) -> int:
        """Pictures that the gate will judge on."""
        return int(self.counts["test"].sum())

    @functools.cached_property
    def budget(self) -> Budget:
        """What the gate may allow with so many pictures."""
        return propose_budget(self.test_images, int(self.counts["val"].sum()))

    @property
    def can_calibrate(self) -> bool:
        """Whether train has pictures enough for INT8 ranges."""
        return int(self.counts["train"].sum()) >= _MIN_CALIBRATION

    @property
    def shorter_side(self) -> int:
        """Median of the pictures' shorter sides, pixels."""
        return int(np.median(self.sizes.min(axis=1)))

    @property
    def deep(self) -> tuple[MeasuredValues, ...]:
        """The measured pictures with 16 bits a sample."""
        return tuple(each for each in self.measured if each.bits == 16)

    @property
    def sensor_bits(self) -> int | None:
        """``data.sensor_bits`` for these pictures; ``None`` where they need none."""
        bits = propose_bits(self.deep)
        return bits if self.camera or (self.deep and bits < 16) else None

    @property
    def levels(self) -> tuple[int, int] | None:
        """The darkest and the brightest level that the measured pictures have with ``sensor_bits``."""
        scales = {8: 255, 16: white_of(self.sensor_bits or 16)}
        ends = [
            (each.low * 255 // scales[each.bits], each.high * 255 // scales[each.bits])
            for each in self.measured
        ]
        return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None

    @property
    def warnings(self) -> list[str]:
        """What will fail, mislead or prove little, each in a sentence that says what to do."""
        return [
            *_warn_of_layout(self),
            *_warn_of_pictures(self),
            *_warn_of_range(self),
            *_warn_of_counts(self),
        ]


def survey_folder(folder: Path, advance: Callable[[int, int], None] = lambda done, total: None) -> Survey:
    """Look at ``folder/CLASS/PICTURE``, ``folder/train/CLASS/PICTURE`` with val and test beside, or a table's pictures.

    Raises:
        DataError: it could not be trained on: no folder, one class, no pictures, a layout of two meanings.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is a file, wanted the folder that holds the pictures."
            if folder.exists()
            else f"There is no folder {folder}.",
            hint="Give the folder above the class folders; a relative path is taken from where you are.",
            path=folder,
        )
    camera = holds_camera_files(folder)
    settings, images = _read(folder, 16 if camera else None)
    parts = split_samples(images, validation=settings.validation, test=settings.test, seed=0)
    counts = {name: _count(part, len(images.classes)) for name, part in parts.items()}
    samples = [s for part in parts.values() for s in part]
    sizes, unreadable = _read_sizes(samples, advance)
    return Survey(
        folder,
        settings,
        images,
        counts,
        sizes,
        tuple(unreadable),
        camera,
        tuple(measure_some([Path(str(s.picture)) for s in samples])),
    )


def _read(folder: Path, sensor_bits: int | None) -> tuple[DataSettings, LabelledImages]:
    """The pictures of class folders; without such, those of the table that lists them, in the folder or beside it."""
    settings = DataSettings(source="imagefolder", path=folder, sensor_bits=sensor_bits)
    try:
        return settings, read_source(settings)
    except DataError:
        table = find_table(folder)
        if table is None:
            raise
        table = table.model_copy(update={"sensor_bits": sensor_bits})
        return table, read_source(table)


def _count(samples: Sequence[Sample], classes: int) -> NDArray[np.int64]:
    return np.bincount([s.label for s in samples], minlength=classes).astype(np.int64)


def _read_sizes(
    samples: Sequence[Sample], advance: Callable[[int, int], None]
) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
    sizes: list[tuple[int, int]] = []
    unreadable: list[tuple[str, str]] = []
    for number, sample in enumerate(samples, start=1):
        size = _read_size(Path(str(sample.picture)))
        if isinstance(size, str):
            unreadable.append((sample.key, size))
        else:
            sizes.append(size)
        advance(number, len(samples))
    if not sizes:
        key, reason = unreadable[0]
        raise DataError(
            f"None of {len(samples)} pictures can be read; the first is {key}: {reason}.",
            hint=f"Wanted {', '.join((*FORMATS, *CAMERA_FORMATS))}.",
        )
    return np.array(sizes, np.int64), unreadable


def _read_size(path: Path) -> tuple[int, int] | str:
    """(width, height) from the header, or why there is none."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # a decoder may raise anything on garbage
        try:  # as a run does, which reads the whole file
            width, height = read_camera_size(path) or open_picture(read_encoded(path), path, 16).size
        except ImageError as error:
            return " ".join(error.message.replace(str(path), "the picture").split())
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels, the limit is {MAX_PIXELS}"
    return width, height


# --------------------------------------------------------------------------------------------------------------
# Warnings


def _warn_of_layout(survey: Survey) -> list[str]:
    warnings = list(survey.images.notices)
    if shared := _shared_names(survey.images):
        warnings.append(
            f"{len(shared)} file names stand in train and in test of the same class, the first is {shared[0]}: if they "
            "show the same scene, the test proves too much. A run compares the pixels, and refuses equal ones."
        )
    if equal := _equal_files(survey.images):
        (one, other), count = equal[0], len(equal)
        warnings.append(
            f"{count} files stand byte for byte in two splits, the first is {one} = {other}: a run refuses them, and "
            "looks for equal pixels too. Take them out of one split, or set data.leaks = 'move'."
        )
    return warnings


def _equal_files(images: LabelledImages) -> list[tuple[str, str]]:
    """Keys of equal files in splits that the folders cut. A file is read whole only where its size and start repeat."""
    splits = [(i, s) for i, part in enumerate((images.test, images.val, images.train)) for s in part or ()]
    groups = [splits] if images.test or images.val else []
    for identify in (_file_size, _file_start, _file_digest):
        divided: dict[tuple[int, object], list[tuple[int, Sample]]] = {}
        for number, group in enumerate(groups):
            for split, sample in group:
                with contextlib.suppress(OSError):  # told as unreadable
                    key = number, identify(Path(str(sample.picture)))
                    divided.setdefault(key, []).append((split, sample))
        groups = [group for group in divided.values() if len({split for split, _ in group}) > 1]
    return [
        (group[0][1].key, sample.key) for group in groups for split, sample in group if split != group[0][0]
    ]


def _file_size(path: Path) -> int:
    return path.stat().st_size


def _file_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_START_BYTES)).digest()


def _file_digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _shared_names(images: LabelledImages) -> list[str]:
    names = {(s.label, PurePosixPath(s.key).name) for s in images.train}
    return [s.key for s in images.test or () if (s.label, PurePosixPath(s.key).name) in names]


def _warn_of_pictures(survey: Survey) -> list[str]:
    warnings = []
    if survey.unreadable:
        key, reason = survey.unreadable[0]
        stops = len(survey.unreadable) > DataSettings.model_fields["max_unreadable"].default * survey.total
        warnings.append(
            f"{len(survey.unreadable)} of {survey.total} pictures cannot be read, the first is {key} ({reason}): "
            + (
                "a run would stop; remove them, or raise data.max_unreadable."
                if stops
                else "they are left out."
            )
        )
    if survey.shorter_side < _TINY_PIXELS:
        warnings.append(
            f"Half of the pictures are under {_TINY_PIXELS} pixels (median shorter side {survey.shorter_side}): "
            "enlarging them adds nothing that a network could see."
        )
    return warnings


def _warn_of_range(survey: Survey) -> list[str]:
    bits = survey.sensor_bits
    if bits is None or bits == 16 or not survey.deep:
        return describe_levels(survey.levels)
    low, high = min(each.low for each in survey.deep), max(each.high for each in survey.deep)
    kept = (high + 128) // 257 - (low + 128) // 257 + 1
    return [
        f"{len(survey.deep)} of {len(survey.measured)} measured pictures hold 16 bits a sample and use {low} to {high} "
        f"of 0 to 65535, as a camera of {bits} bits does: the recipe says data.sensor_bits = {bits}. Without it "
        f"{kept} of 256 levels would be left.",
        *describe_levels(survey.levels),
    ]


def _warn_of_counts(survey: Survey) -> list[str]:
    warnings = []
    totals: Counter[str] = Counter()
    for part in survey.counts.values():
        totals.update(dict(zip(survey.images.classes, map(int, part), strict=True)))
    ordered = totals.most_common()
    (large, most), (small, fewest) = ordered[0], ordered[-1]
    if most >= _SKEW * fewest:
        warnings.append(
            f"Classes are uneven: {most} pictures of {large!r}, {fewest} of {small!r}. Add pictures of the rare ones, "
            "or let the gate weigh classes alike: gate.metric = 'balanced'."
        )
    if few := [name for name, count in ordered if count < _FEW]:
        warnings.append(f"Under {_FEW} pictures: {', '.join(few)}. Add some; nothing is learnt from so few.")
    if not survey.can_calibrate:
        warnings.append(
            f"{int(survey.counts['train'].sum())} pictures are left to train on; INT8 needs {_MIN_CALIBRATION} to "
            "measure ranges, so the recipe has no int8 variant."
        )
    return [*warnings, *_describe_proof(survey.budget)]


def _describe_proof(budget: Budget) -> list[str]:
    """Nothing where the default budget can be proven."""
    if budget.is_provable and budget.max_drop <= GOOD_DROP:
        return []
    wanted = GOOD_DROP if budget.is_provable else budget.max_drop
    needed = images_to_pass(wanted, LEAST_CHANCE)
    told = f"about {needed} let an INT8 engine with usual flips pass with max_drop = {wanted:g}"
    if budget.is_provable:
        return [f"{budget.images} pictures judge: {told}."]
    chance = f"one passes in {100 * budget.chance:.0f} of 100 cases"
    if budget.may_break is None:
        chance = "not even one that changes no answer would pass"
    return [
        f"{budget.images} pictures are few to judge by: with max_drop = {budget.max_drop:g} {chance}; "
        f"{told}. More than {MOST_DROP} is yours to choose."
    ]
