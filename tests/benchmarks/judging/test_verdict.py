"""What a row of the report says of an engine."""

import json

import numpy as np
import pytest

from edgekiln.benchmarks.judging.verdict import Reference, judge_answers
from edgekiln.runtime.errors import DataError

CLASSES = ("a", "b", "c")


def make_reference(images=600, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, images)
    logits = generator.normal(size=(images, 3)).astype(np.float32)
    logits[np.arange(images), labels] += 3
    return Reference(logits, labels, [f"{i}.png" for i in range(images)], CLASSES)


def judge(reference, logits, **changes):
    return judge_answers(reference, logits, **{"max_drop": 0.02, "confidence": 0.95, **changes})


def test_equal_engine_passes_and_nothing_differs():
    reference = make_reference()
    judged = judge(reference, reference.logits.copy())
    assert (judged["verdict"], judged["metric"], judged["warnings"]) == ("pass", "top1", [])
    assert (judged["agreement"], judged["mcnemar_p"], judged["kl_nats"]) == (1.0, 1.0, 0.0)
    assert judged["flips"] == []
    for key in ("drop", "balanced_drop"):
        assert judged[key]["value"] == 0.0
        assert judged[key]["low"] < 0 < judged[key]["high"]  # a width also without a flip


def test_row_is_plain_json_with_the_figures_that_are_promised():
    reference = make_reference()
    engine = reference.logits + np.random.default_rng(1).normal(size=(600, 3)).astype(np.float32)
    judged = judge(reference, engine)
    assert json.loads(json.dumps(judged, allow_nan=False)) == judged
    assert set(judged["accuracy"]) == {
        "images", "top1", "top5", "balanced", "recall", "confusion", "ece", "distinct_outputs"
    }  # fmt: skip
    assert judged["agreement"] == judged["counts"]["agreeing"] / 600
    assert len(judged["flips"]) == 600 - judged["counts"]["agreeing"] > 0
    assert 0 < judged["mean_logit_difference"] < judged["max_logit_difference"]
    assert judged["kl_nats"] > 0


def test_balanced_gate_sees_a_rare_class_that_top1_does_not():
    # 20 of 2,020 images are of class b; the engine loses all of them: one point of top-1, a third of balanced.
    labels = np.repeat([0, 1, 2], [1000, 20, 1000])
    before = np.eye(3, dtype=np.float32)[labels]
    now = np.eye(3, dtype=np.float32)[np.where(labels == 1, 0, labels)]
    reference = Reference(before, labels, [""] * 2020, CLASSES)
    top1 = judge(reference, now)
    balanced = judge(reference, now, metric="balanced")
    assert top1["verdict"] == "pass"
    assert balanced["verdict"] == "fail"
    assert "balanced accuracy drop +33.33 points, 95% interval" in balanced["reason"]
    assert top1["balanced_drop"] == balanced["balanced_drop"]
    assert top1["drop"] == balanced["drop"]


def test_collapsed_engine_is_named():
    reference = make_reference()
    judged = judge(reference, np.tile(reference.logits[:1], (600, 1)))
    assert judged["warnings"] == ["collapsed: 1 distinct outputs, where PyTorch has 600 for the same images"]


def test_failure_found_before_decides():
    reference = make_reference()
    judged = judge(reference, reference.logits, failure="12% ran in INT8")
    assert (judged["verdict"], judged["reason"]) == ("fail", "12% ran in INT8")


def test_unknown_metric_is_refused():
    reference = make_reference(10)
    with pytest.raises(DataError, match="Got the gate metric 'f1'; known: top1, balanced"):
        judge(reference, reference.logits, metric="f1")


def test_one_class_only_and_two_classes():
    labels = np.zeros(50, int)
    logits = np.eye(2, dtype=np.float32)[labels]
    judged = judge(Reference(logits, labels, [""] * 50, ("a", "b")), logits, metric="balanced")
    # MOVER with one class is Tango's interval; 1e-12: taken apart and put together in float64
    assert judged["balanced_drop"] == pytest.approx(judged["drop"], abs=1e-12)
    assert judged["accuracy"]["recall"] == [1.0, None]
