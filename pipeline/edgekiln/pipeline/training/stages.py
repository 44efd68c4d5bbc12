"""The work of the stages ``finetune`` and ``evaluate.baseline``: train the network, keep its answers to the test."""

from __future__ import annotations

from collections.abc import Callable

from edgekiln.pipeline.data import load_split, read_classes
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
from edgekiln.pipeline.training.finetune import begin_training, finetune
from edgekiln.pipeline.training.job import make_job
from edgekiln.pipeline.training.parallel import has_followers, train_together
from edgekiln.pipeline.training.probe import evaluate_model
from edgekiln.pipeline.training.trial import try_backbone
from edgekiln.pipeline.workspace.stage_files import StageContext, save_logits

__all__ = ["evaluate_baseline", "train_network"]


def train_network(context: StageContext) -> None:
    """Fine-tune, alone or together with the processes that ``torchrun`` started."""
    recipe = context.recipe
    if ":" in recipe.backbone.model:  # a library's was tried before the pictures were read
        try_backbone(recipe.backbone, recipe.data.size, len(read_classes(context.inputs["data"])))
    job = make_job(recipe, context.inputs, context.progress.advance, _say(context))
    if has_followers():  # what fails before the first step fails before anybody waits for it
        begin_training(job, context.folder)
    with train_together(recipe, context.inputs) as world:
        finetune(job, context.folder, world)


def _say(context: StageContext) -> Callable[[str], None]:
    return lambda text: context.progress.message(f"  {text}")


def evaluate_baseline(context: StageContext) -> None:
    """Keep PyTorch's logits of the test split, float32 (N, classes)."""
    model, _ = load_checkpoint(context.inputs["finetune"] / CHECKPOINT_NAME, context.recipe.backbone)
    test = load_split(context.inputs["data"], "test")
    save_logits(context.folder, evaluate_model(model, test.frames).numpy())
