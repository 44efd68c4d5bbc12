"""What decides an undecided verdict: each way does what it says, and no way is named that would not help."""

import numpy as np
import pytest

from edgekiln.benchmarks.judging.verdict import Pairs, Reference, judge_answers
from edgekiln.benchmarks.judging.ways_out import find_ways


def one_hot(answers, classes=3):
    return np.eye(classes, dtype=np.float32)[answers]


def answers(images, broken, mended):
    """Labels, PyTorch's answers and the engine's: so many right ones lost, so many wrong ones mended."""
    labels = np.arange(images) % 3
    before, now = labels.copy(), labels.copy()
    now[:broken] = (labels[:broken] + 1) % 3
    wrong = slice(images - max(mended, 3), images)
    before[wrong] = now[wrong] = (labels[wrong] + 1) % 3
    now[images - mended :] = labels[images - mended :]
    return Pairs(one_hot(before), one_hot(now), labels)


def make(images=297, broken=2, mended=1, *, val=177, max_drop=0.02, gate=(), wish=(), **row):
    pairs = answers(images, broken, mended)
    judged = judge_answers(
        Reference(pairs.baseline, pairs.labels, [str(i) for i in range(images)], ["a", "b", "c"]),
        pairs.engine, max_drop=max_drop, confidence=0.95, metric=dict(gate).get("metric", "top1"),
    )  # fmt: skip
    variant = {
        "name": "int8",
        "precision": "int8",
        "backend": "onnxruntime-cpu",
        "required": True,
        **judged,
        **row,
    }
    recipe = {
        "gate": {"max_drop": max_drop, "confidence": 0.95, "inconclusive": "fail", **dict(gate)},
        "variants": [{"name": "int8", "precision": "int8", "max_drop": None, "search": None, **dict(wish)}],
    }
    return {"recipe": recipe, "data": {"counts": {"test": images, "val": val}}, "variants": [variant]}


def settings(report):
    return [way.setting for way in find_ways(report, report["variants"][0])]


def rejudge(images, broken, mended, factor, max_drop):
    """The same rates on other images."""
    pairs = answers(round(images * factor), round(broken * factor), round(mended * factor))
    reference = Reference(pairs.baseline, pairs.labels, [""] * len(pairs.labels), ["a", "b", "c"])
    return judge_answers(reference, pairs.engine, max_drop=max_drop, confidence=0.95)["verdict"]


def test_the_three_cheapest_of_the_usual_case():
    report = make()
    val, more, budget = find_ways(report, report["variants"][0])
    needed = report["variants"][0]["images_to_decide"]
    assert val.setting == "gate.evidence=test+val"
    assert f"474 images in all: about {needed} decide" in val.why
    assert more.setting is None
    assert f"about {needed - 297} more test pictures: {needed} images decide" in more.why
    assert budget.setting.startswith("gate.max_drop=")


def test_the_budget_that_is_named_passes_the_same_answers_and_a_quarter_point_less_does_not():
    budget = float(next(s for s in settings(make()) if s and "max_drop" in s).partition("=")[2])
    assert rejudge(297, 2, 1, 1, budget) == "pass"
    assert rejudge(297, 2, 1, 1, budget - 0.0025) == "inconclusive"


def test_as_many_images_as_are_named_decide():
    report = make(300, 3, 3)
    needed = report["variants"][0]["images_to_decide"]
    assert rejudge(300, 3, 3, 2 * needed / 300, 0.02) == "pass"
    assert "gate.evidence=test+val" in settings(report)
    assert "gate.evidence=test+val" not in settings(make(300, 3, 3, val=needed - 301))


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": {"evidence": "test+val"}}, {"wish": {"search": True}}, {"wish": {"max_drop": 0.02}},
        {"wish": {"qat": {"epochs": 2}}}, {"val": 0},
    ],
)  # fmt: skip
def test_val_is_not_named_where_it_may_not_judge_or_cannot(changes):
    assert "gate.evidence=test+val" not in settings(make(**changes))


def test_images_copied_into_two_splits_never_judge_twice():
    report = make()
    report["recipe"]["data"] = {"leaks": "allow"}
    assert "gate.evidence=test+val" not in settings(report)


def test_an_engine_that_lost_too_much_is_to_be_changed_first():
    report = make(297, 9, 1)  # 2.7 points of 2
    assert settings(report)[0] == "variants.int8.search=true"
    assert not any("more test pictures" in way.why for way in find_ways(report, report["variants"][0]))
    report["variants"][0]["backend"] = "tensorrt-rtx"
    assert settings(report)[:2] == ["variants.int8.search=true", "variants.int8.qat={epochs=2}"]
    assert "variants.int8.search=true" not in settings(make(297, 9, 1, wish={"qat": {"epochs": 2}}))


def test_a_variants_own_budget_is_the_key_to_change():
    assert any(s and s.startswith("variants.int8.max_drop=") for s in settings(make(wish={"max_drop": 0.02})))


def test_an_engine_without_a_flip_is_not_to_be_changed():
    named = settings(make(150, 0, 0, val=0))
    assert not any("search" in str(setting) for setting in named)
    assert "gate.inconclusive=warn" in named
    assert "gate.inconclusive=warn" not in settings(make(150, 0, 0, val=0, required=False))


def test_balanced_accuracy_is_reckoned_by_its_own_interval():
    report = make(297, 2, 1, gate={"metric": "balanced"})
    high = report["variants"][0]["balanced_drop"]["high"]
    budget = float(next(s for s in settings(report) if s and "max_drop" in s).partition("=")[2])
    assert high < budget <= high + 0.0025


def test_what_is_decided_has_no_ways():
    assert settings(make(2000, 1, 1)) == []
