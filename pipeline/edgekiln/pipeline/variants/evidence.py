"""The answers to val of PyTorch and of each engine that answered the test split: more evidence for the gate.

Asked for by ``gate.evidence``, which the recipe refuses where val chose anything of a variant.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.benchmarks.judging.verdict import Pairs
from edgekiln.export.child import Child
from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
from edgekiln.pipeline.training.probe import evaluate_model
from edgekiln.pipeline.variants.engines import answer_split, built_files, is_judged
from edgekiln.pipeline.variants.isolated import IsolatedSession
from edgekiln.pipeline.workspace.stage_files import (
    EVIDENCE,
    FAILURE_NAME,
    LOGITS_NAME,
    NOT_RUN_NAME,
    RETRY_NAME,
    StageContext,
    read_json,
    read_logits,
    save_logits,
    write_json,
)
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EngineError, EnvironmentProblem, NonFiniteError, ResourceError

__all__ = ["ValAnswers", "answer_val", "read_val_answers"]


def answer_val(context: StageContext, variant: VariantSettings | None = None) -> None:
    """Keep the logits of val, float32 (N, C), of PyTorch or of an engine; or why there are none."""
    if variant is None:
        model, _ = load_checkpoint(context.inputs["finetune"] / CHECKPOINT_NAME, context.recipe.backbone)
        val = load_split(context.inputs["data"], "val")
        save_logits(context.folder, evaluate_model(model, val.frames).numpy())
    elif is_judged(context, variant):
        _answer(context, variant)
    else:
        write_json(context.folder / NOT_RUN_NAME, {"reason": "it did not answer the test split"})


def _answer(context: StageContext, variant: VariantSettings) -> None:
    """What an engine that ran on test does on val: it answers, fails, or lacks something that it had before."""
    engines = [path.read_bytes() for path in built_files(context, variant)]
    with Child(variant.backend) as child:
        try:
            session = IsolatedSession(child, open_session, variant.backend, engines)
            try:
                save_logits(context.folder, answer_split(context, session, "val"))
            finally:
                session.close()
        except (NonFiniteError, EngineError) as error:
            write_json(context.folder / FAILURE_NAME, {"failure": f"failed while running on val: {error}"})
        except (EnvironmentProblem, ResourceError) as problem:
            write_json(context.folder / NOT_RUN_NAME, {"reason": str(problem)})
            (context.folder / RETRY_NAME).write_text(str(problem), "utf-8")


@dataclass(frozen=True, slots=True)
class ValAnswers:
    """What an engine did on val.

    Attributes:
        pairs: its answers beside PyTorch's; ``None`` where it gave none.
        failure: what was wrong with it, if anything.
        notice: why test alone judges although val was asked for.
    """

    pairs: Pairs | None = None
    failure: str | None = None
    notice: str | None = None


def read_val_answers(context: StageContext, variant: VariantSettings) -> ValAnswers:
    """What the stages of this kind kept; nothing at all where the recipe has none of them."""
    if EVIDENCE not in context.inputs:
        return ValAnswers()
    folder = context.inputs[f"{EVIDENCE}.{variant.name}"]
    if (folder / FAILURE_NAME).exists():
        return ValAnswers(failure=read_json(folder / FAILURE_NAME)["failure"])
    if not (folder / LOGITS_NAME).exists():
        why = read_json(folder / NOT_RUN_NAME)["reason"]
        return ValAnswers(
            notice=f"{variant.name} is judged on test alone: it did not answer val, because: {why}"
        )
    labels = load_split(context.inputs["data"], "val").labels
    return ValAnswers(Pairs(read_logits(context.inputs[EVIDENCE]), read_logits(folder), labels))
