"""The study of a recipe's transfer: methods, training-set sizes and seeds, each trained and judged once.

A cell is one method at one size with one seed. Its stages lie in the recipe's own store, so a study that was killed
goes on where it stopped, and what a run or another cell made already is not made again. All cells are judged on the
same test images. The statistics are those of ``benchmarks/judging/transfer.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.run import check_folder, claim_folder, find_stages, run_stages
from edgekiln.pipeline.stages.planning import plan_training
from edgekiln.pipeline.study.methods import choose_methods, derive_recipe
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.pipeline.workspace.stage_files import BASELINE, read_logits
from edgekiln.pipeline.workspace.store import StageRecord, StageStore
from edgekiln.runtime.errors import DataError, EdgekilnError, GateError, UsageError

if TYPE_CHECKING:
    from edgekiln.pipeline.recipe import Recipe

__all__ = [
    "Cell",
    "CellResult",
    "JudgedImages",
    "StudyPlan",
    "estimate_seconds",
    "find_cells",
    "make_plan",
    "run_study",
]

_JUDGED = f"evaluate.{BASELINE}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one size with one seed. ``share`` is of the images that the recipe itself trains on."""

    method: str
    share: float
    seed: int

    @property
    def label(self) -> str:
        """How progress and tables call it."""
        return f"{self.method} {100 * self.share:g} % seed {self.seed}"


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study compares.

    Attributes:
        methods: in the order of ``METHODS``.
        shares: of the recipe's training images, rising.
        seeds: of the training, of which images a share takes, and of val; never of test.
    """

    recipe: Recipe
    methods: tuple[str, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Seed by seed, so that a study that is stopped holds whole ones; sizes rise, methods share a data stage."""
        return tuple(
            Cell(method, share, seed)
            for seed, share, method in itertools.product(self.seeds, self.shares, self.methods)
        )


@dataclass(frozen=True, slots=True, eq=False)
class JudgedImages:
    """What every cell is judged on: labels int64 (images,), and the digest of names, labels and contents."""

    labels: NDArray[np.int64]
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class CellResult:
    """What became of a cell.

    Attributes:
        error: why it failed; then nothing else is known.
        right: bool (images,), whether each test image was answered rightly.
        about: counts, digests and seconds, as JSON values.
        test: that it was judged on.
    """

    cell: Cell
    error: str | None = None
    right: NDArray[np.bool_] | None = None
    about: Mapping[str, Any] | None = None
    test: JudgedImages | None = None


def make_plan(
    recipe: Recipe, *, methods: Sequence[str] = (), shares: Sequence[float], seeds: int
) -> tuple[StudyPlan, list[str]]:
    """What to compare, and sentences on methods that the recipe does not allow.

    Args:
        recipe: whose transfer is studied.
        methods: names; none means every method that the recipe allows.
        shares: of the images that the recipe trains on.
        seeds: how many, from the recipe's own upwards.

    Raises:
        UsageError: a share or a method that cannot be.
        RecipeError: the recipe has nothing to transfer, or not what a wanted method needs.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise UsageError(
                f"A share of {share:g} cannot be trained on.",
                hint="Shares are above 0 and at most 1: 0.05, 1.",
            )
    if not shares:
        raise UsageError("There is no share to train on.", hint="Name some: 0.05,0.1,0.25,0.5,1.")
    if seeds < 1 or recipe.seed + seeds > 2**32:
        raise UsageError(f"{seeds} seeds from {recipe.seed} upwards cannot be.", hint="Take 3 or more.")
    chosen, left_out = choose_methods(recipe, methods)
    numbers = tuple(range(recipe.seed, recipe.seed + seeds))
    return StudyPlan(recipe, chosen, tuple(sorted(set(shares))), numbers), left_out


def find_cells(plan: StudyPlan, runs: Path) -> dict[Cell, CellResult | None]:
    """What is known of each cell; ``None`` where it was not finished. Trains nothing, writes nothing."""
    store, seen = StageStore(runs / plan.recipe.name), dict[str, str]()
    check_folder(runs / plan.recipe.name, plan_training(plan.recipe, seen))
    found: dict[Cell, CellResult | None] = {}
    for cell in plan.cells:
        recipe = derive_recipe(plan.recipe, cell.method, cell.share, cell.seed)
        records = find_stages(plan_training(recipe, seen), store)
        found[cell] = None if records is None else _judge_cell(cell, recipe, records)
    return found


def estimate_seconds(found: Mapping[Cell, CellResult | None]) -> dict[Cell, float | None]:
    """About how long each unfinished cell will take; ``None`` for a method of which no cell was finished.

    Of one method time is taken as a fixed part (judging) and one that grows with the images, fitted by least squares
    to the finished cells; as proportional to the images where those are of one size.
    """
    estimates: dict[Cell, float | None] = {}
    for cell in (cell for cell, result in found.items() if result is None):
        points = [
            (other.share, float(result.about["seconds"]))
            for other, result in found.items()
            if other.method == cell.method and result is not None and result.about is not None
        ]
        estimates[cell] = _extrapolate(points, cell.share) if points else None
    return estimates


def _extrapolate(points: Sequence[tuple[float, float]], share: float) -> float:
    shares, seconds = np.array(points).T
    if len(set(shares)) == 1:
        return float(seconds.mean() * share / shares[0])
    # Neither part can be negative, though a fit to a few times of a busy machine may say so.
    slope = max(0.0, float(np.polyfit(shares, seconds, 1)[0]))
    fixed = float(seconds.mean() - slope * shares.mean())
    return slope * share + fixed if fixed > 0 else float(seconds.sum() * share / shares.sum())


def run_study(plan: StudyPlan, runs: Path, progress: Progress) -> list[CellResult]:
    """Train and judge what is not finished yet; the results in the cells' order.

    A cell that fails on its own (a loss that became NaN, too few images of a class) is recorded with its message, and
    the others go on; it is tried again next time.

    Raises:
        DataError: the cells were not all judged on the same test images.
        UsageError: the run's folder belongs to another data set.
        EdgekilnError: what would stop every other cell as well: a full disk, a missing package, a wrong recipe.
    """
    store, seen = StageStore(runs / plan.recipe.name), dict[str, str]()
    with store.lock(progress):  # no method and no share has other pictures than the recipe itself
        claim_folder(runs / plan.recipe.name, store, plan_training(plan.recipe, seen))
    results: list[CellResult] = []
    for number, cell in enumerate(plan.cells, start=1):
        recipe = derive_recipe(plan.recipe, cell.method, cell.share, cell.seed)
        stages = plan_training(recipe, seen)
        records = find_stages(stages, store)
        try:
            if records is None:
                label = f"[{number}/{len(plan.cells)}] {cell.label}:"
                records = run_stages(recipe, stages, store, progress, label)
            results.append(_judge_cell(cell, recipe, records))
        except (GateError, DataError) as error:
            results.append(CellResult(cell, error=_without_folders(error)))
        if results[-1].error:
            progress.message(f"{cell.label} failed: {results[-1].error}")
    _check_same_images(results)
    return results


def _without_folders(error: EdgekilnError) -> str:
    """The message, without the folder of this machine that it may name."""
    text = error.message
    return text.replace(str(Path(error.path).parent) + "/", "") if error.path else text


def _judge_cell(cell: Cell, recipe: Recipe, records: Mapping[str, StageRecord]) -> CellResult:
    """What a finished cell came to; failed where its answers are no numbers."""
    try:
        return _read_cell(cell, recipe, records)
    except GateError as error:
        return CellResult(cell, error=error.message)


def _read_cell(cell: Cell, recipe: Recipe, records: Mapping[str, StageRecord]) -> CellResult:
    from edgekiln.benchmarks.judging.accuracy import measure_accuracy

    test = load_split(records["data"].folder, "test")
    logits = read_logits(records[_JUDGED].folder)
    accuracy = measure_accuracy(logits, test.labels)
    identity = json.dumps([test.keys, test.labels.tolist(), test.sha256]).encode()
    return CellResult(
        cell,
        right=logits.argmax(axis=1) == test.labels,
        about={
            "top1": accuracy.top1,
            "balanced": accuracy.balanced,
            "train_images": len(load_split(records["data"].folder, "train")),
            "val_images": len(load_split(records["data"].folder, "val")),
            **_count_work(recipe, records),
            "seconds": records["finetune"].seconds + records[_JUDGED].seconds,
            "digests": {name: record.digest for name, record in records.items()},
        },
        test=JudgedImages(test.labels, hashlib.sha256(identity).hexdigest()),
    )


def _count_work(recipe: Recipe, records: Mapping[str, StageRecord]) -> dict[str, int]:
    """Steps, and images that went through the network in them, each as often as it did."""
    from edgekiln.pipeline.training.batches import Batches
    from edgekiln.pipeline.training.log import LOG_NAME

    log = (records["finetune"].folder / LOG_NAME).read_text("utf-8").splitlines()
    events = [json.loads(line) for line in log]
    steps = sum(event["event"] == "step" for event in events)
    best = next((event["best_step"] for event in events if event["event"] == "done"), 0)
    images = 0
    for name in ("data", "data.source"):
        if name in records:
            count = len(load_split(records[name].folder, "train"))
            images += _count_images(Batches(count, recipe.finetune.batch_size, recipe.seed), steps)
    return {"steps": steps, "best_step": best, "images_seen": images}


def _count_images(batches: Any, steps: int) -> int:
    """Images in the first ``steps`` batches; the last batch of an epoch takes what is left."""
    epochs, rest = divmod(steps, batches.per_epoch)
    return int(epochs * batches.pictures + rest * batches.size)


def _check_same_images(results: Sequence[CellResult]) -> None:
    """Raise DataError where two cells were judged on other images: their difference would not be paired."""
    judged = [(result.cell, result.test.digest) for result in results if result.test is not None]
    for cell, digest in judged[1:]:
        if digest != judged[0][1]:
            raise DataError(
                f"{cell.label} and {judged[0][0].label} were judged on different test images.",
                hint="The source gives other pictures each time it is read; it must give the same ones.",
            )
