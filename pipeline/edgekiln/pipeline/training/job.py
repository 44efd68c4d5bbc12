"""What is to be trained: a job, from a recipe and finished data stages, the same in every process that takes part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekiln.pipeline.data import PreparedSplit, SplitName, load_split, make_contract, read_classes
from edgekiln.pipeline.recipe import BackboneSettings, FinetuneSettings, Recipe, TeacherSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.heads import find_head
from edgekiln.pipeline.training.source_task import SourceData, check_labels, read_source_head
from edgekiln.pipeline.training.weight_files import read_weights
from edgekiln.pipeline.training.world import ALONE, World
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import RecipeError

__all__ = ["FinetuneJob", "make_job"]

_SOURCE_STAGE = "data.source"
_TRAINED_ON: tuple[SplitName, ...] = ("train", "val")


Advance = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """Everything that determines the weights.

    Attributes:
        advance: told of progress as ``advance(done, total, note)``.
        tell: told what people should read, in sentences.
        source: the source task of the combined loss, if any.
        beta: weight of the target's loss.
        teacher: a larger network to learn from, if any.
    """

    backbone: BackboneSettings
    settings: FinetuneSettings
    contract: Contract
    train: PreparedSplit
    val: PreparedSplit
    seed: int
    advance: Advance = lambda done, total, note: None
    tell: Callable[[str], None] = lambda text: None
    source: SourceData | None = None
    beta: float = 1.0
    teacher: TeacherSettings | None = None

    def batch_bytes(self, world: World = ALONE) -> int:
        """Of the pixels of a batch, uint8, in one process of ``world``."""
        pictures = -(-self.settings.batch_size // world.size)
        return pictures * self.contract.height * self.contract.width * 3


def make_job(
    recipe: Recipe,
    inputs: Mapping[str, Path],
    advance: Advance = lambda done, total, note: None,
    tell: Callable[[str], None] = lambda text: None,
) -> FinetuneJob:
    """What is to be trained.

    Args:
        recipe: the wish.
        inputs: folder of the stage ``data``, and of ``data.source`` where the source task counts.
        advance: told of progress.
        tell: told what people should read.

    Raises:
        DataError: source and target have a class of the same name.
        RecipeError: weights that do not fit.
    """
    data = inputs["data"]
    classes = read_classes(data)
    _check_kept_head(recipe, classes)
    normalization = build_backbone(
        recipe.backbone, len(classes), recipe.data.size, load_weights=False
    ).normalization
    return FinetuneJob(
        backbone=recipe.backbone,
        settings=recipe.finetune,
        contract=make_contract(recipe.data, classes, normalization),
        train=load_split(data, "train", in_memory=recipe.data.cache == "memory"),
        val=load_split(data, "val", in_memory=recipe.data.cache == "memory"),
        seed=recipe.seed,
        advance=advance,
        tell=tell,
        source=_load_source(recipe, inputs, classes),
        beta=recipe.source_task.beta if recipe.source_task and recipe.source_task.alpha else 1.0,
        teacher=recipe.teacher,
    )


def _check_kept_head(recipe: Recipe, classes: tuple[str, ...]) -> None:
    """A head of as many other classes fits by its shape, and would start by telling them apart."""
    if not recipe.backbone.keeps_head:
        return
    path = Path(recipe.backbone.weights)
    stored = read_weights(path).contract
    if stored is not None and len(stored.classes) == len(classes) and stored.classes != classes:
        theirs, ours = (", ".join(names[:5]) for names in (stored.classes, classes))
        raise RecipeError(
            f"The head in {path.name} knows other classes, or in another order, than the data: {theirs}; and {ours}.",
            hint="backbone.head = 'replace' starts a fresh one.",
            path=path,
        )


def _load_source(recipe: Recipe, inputs: Mapping[str, Path], target: tuple[str, ...]) -> SourceData | None:
    """The pictures of the source task, and its head where a checkpoint's is kept."""
    task = recipe.source_task
    if task is None or _SOURCE_STAGE not in inputs:
        return None
    folder = inputs[_SOURCE_STAGE]
    classes, head = read_classes(folder), None
    check_labels(classes, target)
    if task.head == "keep":
        network = build_backbone(recipe.backbone, len(target), recipe.data.size, load_weights=False).network
        stored = read_weights(Path(recipe.backbone.weights))
        head = read_source_head(stored, find_head(network, len(target))[0], classes)
    in_memory = task.data.cache == "memory"
    train, val = (load_split(folder, name, in_memory=in_memory) for name in _TRAINED_ON)
    return SourceData(train, val, classes, task.alpha, head)
