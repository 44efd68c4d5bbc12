"""Which epoch is kept, and when a training has stalled; on a learner whose answers are set by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetune_support import job

from edgekiln.pipeline.training import validation
from edgekiln.pipeline.training.divergence import Divergence
from edgekiln.pipeline.training.state import Schedule, TrainingState
from edgekiln.pipeline.training.validation import Validation
from edgekiln.pipeline.training.world import ALONE
from edgekiln.runtime.errors import GateError


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """``judge(step, right, margin)``: val is judged after a step, ``right`` of its pictures right, by that margin."""
    work = job(patience=2)
    state, told = TrainingState(), []
    learner = SimpleNamespace(
        job=work,
        settings=work.settings,
        device=torch.device("cpu"),
        judged=None,
        source=None,
        optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]),
        copy_judged=lambda: ({"weight": torch.tensor(state.step)}, {}),
    )
    log = SimpleNamespace(write=lambda event, **values: told.append((event, values)))
    schedule = Schedule(2, 20)
    parts = Validation(learner, state, schedule, Divergence(work, tmp_path, state, schedule), log)

    def use(step, right, margin=1.0):
        answers = np.array(work.val.labels)
        answers[right:] = 1 - answers[right:]
        logits = torch.zeros(len(answers), 2)
        logits[torch.arange(len(answers)), torch.from_numpy(answers)] = margin
        monkeypatch.setattr(validation, "evaluate_model", lambda *arguments: logits)
        state.step = step
        parts.judge(ALONE)
        return state

    use.parts, use.told, use.count = parts, told, len(work.val)
    return use


def test_the_best_epoch_is_kept_and_of_equal_ones_that_with_the_smaller_loss(judge):
    judge(2, judge.count - 1)
    assert judge(4, judge.count).best_step == 4
    assert judge(6, judge.count - 1).best_step == 4
    assert judge(8, judge.count, margin=2.0).best_step == 8  # as many right, and surer
    assert judge(10, judge.count, margin=2.0).best_step == 8  # the same: the earlier one stays
    assert int(judge.parts.state.best["weight"]) == 8
    assert [values["epoch"] for _, values in judge.told] == [1, 2, 3, 4, 5]


def test_it_has_stalled_after_as_many_epochs_without_a_better_one_as_patience_says(judge):
    judge(2, judge.count)
    assert not judge.parts.has_stalled()
    judge(4, judge.count - 1)
    assert not judge.parts.has_stalled()
    judge(6, judge.count - 1)
    assert judge.parts.has_stalled()


def test_a_loss_on_val_that_is_no_number_ends_the_training(judge):
    judge(2, judge.count)
    with pytest.raises(GateError, match="The loss on val became nan at step 4 of 20"):
        judge(4, judge.count, margin=math.nan)
