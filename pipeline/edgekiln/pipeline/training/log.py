"""What the training log says in short: losses and accuracy by epoch, for the report. The log stays in the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["LOG_NAME", "summarize_training"]

LOG_NAME = "log.jsonl"

_LOSSES = ("loss", "target_loss", "source_loss", "teacher_loss")


def summarize_training(log: Path) -> dict[str, Any]:
    """JSON values: ``epochs`` (mean training losses, val top-1 and loss), ``best_epoch``, ``stopped``, ``source``.

    An epoch has the ``learning_rate`` of its last step where the log's steps tell it. Epoch 0 is the linear probe,
    before any step: it has no training loss. ``source`` is the accuracy on the source task's val split before and
    after, where there was one. ``weights``, where a weight file's names were changed, says how, in sentences.
    """
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    epochs, since = [], 0
    for line in (line for line in lines if line["event"] == "epoch"):
        steps = [s for s in lines if s["event"] == "step" and since < s["step"] <= line["step"]]
        epochs.append(
            {"epoch": line["epoch"], **_mean_losses(steps), **_last_rate(steps)}
            | {key: line[key] for key in ("val_top1", "val_loss")}
        )
        since = line["step"]
    done = next((line for line in lines if line["event"] == "done"), {"best_step": 0})
    ends = [line["step"] for line in lines if line["event"] == "epoch"]
    source = {line["when"]: line["val_top1"] for line in lines if line["event"] == "source"}
    weights = next((line for line in lines if line["event"] == "weights"), None)
    return {
        **({"weights": weights["told"]} if weights else {}),
        "epochs": epochs,
        "best_epoch": epochs[ends.index(done["best_step"])]["epoch"] if done["best_step"] in ends else None,
        "stopped": next((line["reason"] for line in lines if line["event"] == "stopped"), None),
        "source": source or None,
    }


def _mean_losses(steps: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found = list(steps)
    return {
        name: round(sum(s[name] for s in found) / len(found), 6)
        for name in _LOSSES
        if found and name in found[0]
    }


def _last_rate(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The rate that an epoch ended with: a mean would belong to no step."""
    return {"learning_rate": steps[-1]["learning_rate"]} if steps and "learning_rate" in steps[-1] else {}
