"""The calibration doctor: are these the right pictures to take INT8 ranges from, and are there enough of them?

Tells class coverage, repetitions, overlap with the splits that judge, brightness and contrast next to training's, and
how far the ranges still move when the number of pictures doubles. It looks at pictures and at the FP32 graph, whose
max |x| are the ranges here; what a quantizer makes of them is not its business.

Brightness and contrast are compared by the two-sample Kolmogorov-Smirnov distance: the largest difference between the
shares of the two sets at or below any value. Calibration images are mostly a subset of train, so they never lie outside
its range; too many dark ones among them do show here. A distance is told where it exceeds both

- what one in a thousand pairs of samples of the same distribution would show, for n and m images
  sqrt(-ln(0.001 / 2) / 2 * (n + m) / (n m)) (Smirnov 1948; conservative for a random subset, which is drawn without
  replacement, and for values with ties), and
- a tenth: many images make tiny differences certain, and they do not matter.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.calibration import hash_frames
from edgekiln.export.precision.ranges import measure_peaks
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.spec import Frames

__all__ = [
    "CalibrationReport",
    "RangeStability",
    "TrainingStatistics",
    "brightness_and_contrast",
    "describe_training",
    "examine_calibration",
    "measure_stability",
]

MAX_STILL_MOVING = 0.05
"""Ranges that 95 % of the tensors hold to within a twentieth cost less than a tenth of a bit: log2(1 / 0.95) = 0.07."""
_SCARCE = 0.1  # of the class's share in train
_BY_CHANCE = 0.001  # of random subsets, each figure, at most
_MIN_DISTANCE = 0.1
_MAX_TRAIN_IMAGES = (
    20_000  # spread evenly over train: the distances of more are no better, and a full read is slow
)
_CHUNK = 256  # images per step: bounds memory
_WORST = 5  # tensors that are named
_REC601 = np.array([0.299, 0.587, 0.114])
"""Luma weights of red, green and blue: Recommendation ITU-R BT.601."""

_Values = NDArray[np.float64]
_Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingStatistics:
    """What calibration is compared with.

    Attributes:
        classes: names of the classes.
        class_counts: training images of each.
        brightness: the images' mean luma, 0 to 255, float64 (M,).
        contrast: the images' standard deviation of luma, float64 (M,).
    """

    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    brightness: _Values
    contrast: _Values


@dataclass(frozen=True, slots=True)
class RangeStability:
    """How far activation ranges (max |x| per tensor of the float graph) move from half of the images to all of them.

    Attributes:
        half, images: numbers of images compared.
        tensors: how many tensors were measured.
        median, percentile95: of the relative change (all - half) / all over the tensors.
        worst: (node, relative change) of those that move most, the worst first.
    """

    half: int
    images: int
    tensors: int
    median: float
    percentile95: float
    worst: tuple[tuple[str, float], ...]

    @property
    def enough(self) -> bool:
        """Whether more images would hardly change the ranges."""
        return self.percentile95 <= MAX_STILL_MOVING


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was found about a calibration set; overlap with val and test is not among it, since that is refused.

    Attributes:
        images: how many.
        class_counts: of each class, by name.
        absent, scarce: classes without an image, and with less than a tenth of their share in train.
        duplicates: images whose pixels stand in the set before.
        left_out: images passed over when choosing, because the same pixels stand in val or test.
        brightness_distance, contrast_distance: two-sample Kolmogorov-Smirnov distance from train, 0 to 1.
        distance_allowed: by which a random subset of train may differ.
        brightness_median, contrast_median: (calibration, train), of luma's mean and standard deviation, 0 to 255.
        stability: of the ranges.
    """

    images: int
    class_counts: dict[str, int]
    absent: tuple[str, ...]
    scarce: tuple[str, ...]
    duplicates: int
    left_out: int
    brightness_distance: float
    contrast_distance: float
    distance_allowed: float
    brightness_median: tuple[float, float]
    contrast_median: tuple[float, float]
    stability: RangeStability

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know, a sentence each; empty for a healthy set."""
        found = []
        if self.absent:
            found.append(f"no calibration image of {_name_some(self.absent)}")
        if self.scarce:
            found.append(f"less than a tenth of their share in train: {_name_some(self.scarce)}")
        if self.duplicates:
            found.append(f"{self.duplicates} of {self.images} calibration images repeat others")
        if self.left_out:
            found.append(f"{self.left_out} training images left out: the same pixels stand in val or test")
        found += self._tell_differences()
        if not self.stability.enough:
            found.append(self._tell_movement())
        return tuple(found)

    def _tell_differences(self) -> list[str]:
        return [
            f"{what} is not distributed as in train: the shares of images below a value differ by up to "
            f"{distance:.0%}, a random choice by {self.distance_allowed:.0%} at most; median {ours:.0f}, "
            f"in train {trained:.0f} of 255"
            for what, distance, (ours, trained) in (
                ("brightness", self.brightness_distance, self.brightness_median),
                ("contrast", self.contrast_distance, self.contrast_median),
            )
            if distance > self.distance_allowed
        ]

    def _tell_movement(self) -> str:
        s = self.stability
        worst = ", ".join(f"{node} {change:.0%}" for node, change in s.worst[:3])
        return (
            f"{self.images} images are not enough: from {s.half} to {s.images} the ranges (max |x| in the float "
            f"graph, before any clipping by the calibration method) still grow by up to "
            f"{s.percentile95:.1%} (95th percentile of {s.tensors} tensors, wanted {MAX_STILL_MOVING:.0%}); "
            f"most: {worst}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "absent": list(self.absent),
            "scarce": list(self.scarce),
            "brightness_median": list(self.brightness_median),
            "contrast_median": list(self.contrast_median),
            "stability": {
                **asdict(self.stability),
                "worst": [{"node": node, "change": change} for node, change in self.stability.worst],
                "enough": self.stability.enough,
                "wanted": MAX_STILL_MOVING,
            },
            "warnings": list(self.warnings),
        }


def _name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def examine_calibration(
    frames: Frames,
    labels: _Labels,
    *,
    training: TrainingStatistics,
    judging: Container[str],
    source: bytes,
    left_out: int = 0,
) -> CalibrationReport:
    """Examine a calibration set before ranges are taken from it.

    Args:
        frames: uint8 (N, H, W, 3).
        labels: int64 (N,), indices into ``training.classes``.
        training: of the train split, see ``describe_training``.
        judging: sha256 of the frames of val and test, see ``hash_frames``.
        source: the FP32 ONNX file.
        left_out: images that the choice passed over because they stand in ``judging``.

    Raises:
        DataError: an image stands in a split that judges.
    """
    hashes = hash_frames(frames)
    _refuse_shared(hashes, judging)
    counts = np.bincount(labels, minlength=len(training.classes))
    absent, scarce = _find_uncovered(counts, training)
    brightness, contrast = brightness_and_contrast(frames)
    return CalibrationReport(
        images=len(frames),
        class_counts={name: int(n) for name, n in zip(training.classes, counts, strict=True)},
        absent=absent,
        scarce=scarce,
        duplicates=len(hashes) - len(set(hashes)),
        left_out=left_out,
        brightness_distance=_measure_distance(brightness, training.brightness),
        contrast_distance=_measure_distance(contrast, training.contrast),
        distance_allowed=_allow_distance(len(frames), len(training.brightness)),
        brightness_median=(float(np.median(brightness)), float(np.median(training.brightness))),
        contrast_median=(float(np.median(contrast)), float(np.median(training.contrast))),
        stability=measure_stability(source, frames),
    )


def _refuse_shared(hashes: Sequence[str], judging: Container[str]) -> None:
    shared = [i for i, digest in enumerate(hashes) if digest in judging]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(hashes)} calibration images stand in the val or test split; "
            f"the first is calibration image {shared[0]}.",
            hint="Calibrate on training pictures alone: what was calibrated on cannot judge.",
        )


def describe_training(frames: Frames, labels: _Labels, classes: Sequence[str]) -> TrainingStatistics:
    """Statistics of the train split: counts of all images, light of at most 20,000 spread evenly over it.

    Args:
        frames: uint8 (N, H, W, 3), may be memory-mapped.
        labels: int64 (N,).
        classes: their names.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MAX_TRAIN_IMAGES)).astype(np.int64))
    brightness, contrast = brightness_and_contrast(frames, chosen)
    counts = np.bincount(labels, minlength=len(classes))
    return TrainingStatistics(
        classes=tuple(classes),
        class_counts=tuple(int(n) for n in counts),
        brightness=brightness,
        contrast=contrast,
    )


def brightness_and_contrast(frames: Frames, chosen: _Labels | None = None) -> tuple[_Values, _Values]:
    """Mean and standard deviation of luma, Y = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), per image.

    Args:
        frames: uint8 (N, H, W, 3).
        chosen: indices of the images to look at; all of them where absent.
    """
    indices = np.arange(len(frames)) if chosen is None else chosen
    means, deviations = [np.empty(0)], [np.empty(0)]
    for start in range(0, len(indices), _CHUNK):
        luma = np.asarray(frames[indices[start : start + _CHUNK]]) @ _REC601
        means.append(luma.mean(axis=(1, 2)))
        deviations.append(luma.std(axis=(1, 2)))
    return np.concatenate(means), np.concatenate(deviations)


def _measure_distance(values: _Values, others: _Values) -> float:
    """max |F(x) - G(x)| over all x, F and G the shares of either sample at or below x."""
    # The mean of the same pixels may differ in its last bits with its place in a chunk: that is no difference.
    first, second = (np.sort(np.round(sample, 6)) for sample in (values, others))
    points = np.concatenate([first, second])
    shares = [np.searchsorted(sample, points, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def _allow_distance(images: int, trained: int) -> float:
    """The larger of both bounds in the module's docstring."""
    by_chance = np.sqrt(-np.log(_BY_CHANCE / 2) / 2 * (images + trained) / (images * trained))
    return max(_MIN_DISTANCE, float(by_chance))


def _find_uncovered(
    counts: NDArray[np.int64], training: TrainingStatistics
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes that are absent, and of those that are there below a tenth of their share in train."""
    total, trained = int(counts.sum()), sum(training.class_counts)
    absent, scarce = [], []
    for name, count, known in zip(training.classes, counts, training.class_counts, strict=True):
        if count == 0 and known:
            absent.append(name)
        elif count / total < _SCARCE * known / trained:
            scarce.append(name)
    return tuple(absent), tuple(scarce)


def measure_stability(source: bytes, frames: Frames) -> RangeStability:
    """Compare the ranges that every other image gives with those of all images; one pass over each image.

    Every other one, since sets are often sorted by class: both halves then hold all classes. The range is max |x|,
    the outer end of what any calibration method starts from; methods that clip (entropy, percentile) settle sooner.

    Args:
        source: the FP32 ONNX file.
        frames: uint8 (N, H, W, 3), N at least 2.
    """
    first = {peak.tensor: peak for peak in measure_peaks(source, frames[::2])}
    second = {peak.tensor: peak.value for peak in measure_peaks(source, frames[1::2])}
    moved = {peak.node: _relative_change(peak.value, second[name]) for name, peak in first.items()}
    changes = np.array(list(moved.values()))
    worst = sorted(moved.items(), key=lambda entry: (-entry[1], entry[0]))[:_WORST]
    return RangeStability(
        half=len(frames[::2]),
        images=len(frames),
        tensors=len(changes),
        median=float(np.median(changes)),
        percentile95=float(np.percentile(changes, 95)),
        worst=tuple(worst),
    )


def _relative_change(half: float, other: float) -> float:
    """(all - half) / all, where all is the larger of the two halves' peaks; 1 where only ``all`` is infinite."""
    whole = max(half, other)
    if whole == half:  # also both zero, both infinite
        return 0.0
    return 1.0 if np.isinf(whole) else (whole - half) / whole
