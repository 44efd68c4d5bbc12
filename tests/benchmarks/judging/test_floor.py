"""A network that guesses is told, and one below its floor is refused, whatever its engines are."""

import numpy as np
import pytest
from scipy.stats import binomtest

from edgekiln.benchmarks.judging.accuracy import measure_accuracy
from edgekiln.benchmarks.judging.floor import apply_floor, judge_floor, warn_of_guessing
from edgekiln.benchmarks.judging.required import check_gate
from edgekiln.runtime.errors import GateError


def accuracy(right: int, labels, classes: int = 3):
    """Of answers of which the first ``right`` are the label, and the others the next class."""
    labels = np.asarray(labels)
    answers = np.where(np.arange(len(labels)) < right, labels, (labels + 1) % classes)
    return measure_accuracy(np.eye(classes, dtype=np.float32)[answers], labels).to_dict()


def row(name, *arguments, **named):
    return {"name": name, "accuracy": accuracy(*arguments, **named)}


EVEN = np.tile([0, 1, 2], 100)
UNEVEN = np.repeat([0, 1, 2], [270, 20, 10])


@pytest.mark.parametrize(
    ("labels", "right", "told"),
    [
        (EVEN, 100, True),  # a third of three even classes
        (EVEN, 116, True),  # more than a third, and its interval reaches below it
        (EVEN, 118, False),
        (UNEVEN, 270, True),  # 90 % looks good, and is what always answering the first class gives
        (UNEVEN, 280, True),
        (UNEVEN, 281, False),
    ],
)
def test_the_interval_decides_whether_a_network_guesses(labels, right, told):
    low = binomtest(right, 300).proportion_ci(0.95, method="wilson").low
    assert bool(low <= np.bincount(labels).max() / 300) == told  # scipy agrees that this is where it turns
    found = warn_of_guessing([row("baseline", right, labels)], ["red", "green", "blue"], 0.95)
    assert len(found) == told


def test_the_notice_names_engines_figures_and_the_class():
    rows = [
        row("baseline", 280, UNEVEN),
        row("int8", 270, UNEVEN),
        row("good", 300, UNEVEN),
        {"name": "unrun"},
    ]
    [notice] = warn_of_guessing(rows, ["red", "green", "blue"], 0.95)
    assert notice.startswith(
        "NO BETTER THAN GUESSING: top-1 of PyTorch 93.33 % (89.93 to 95.64), int8 90.00 % (86.08 to 92.91), "
        "with its 95% interval, is not shown to be above 90.00 %, the share of 'red' among the 300 test pictures."
    )
    assert "gate.min_top1" in notice


def test_classes_are_counted_in_a_confusion_of_many_classes_too():
    labels = np.concatenate([np.full(600, 7), np.arange(60)])
    [notice] = warn_of_guessing(
        [row("baseline", 600, labels, classes=60)], [f"class{i}" for i in range(60)], 0.95
    )
    assert "91.06 %, the share of 'class7' among the 660" in notice


@pytest.mark.parametrize(
    ("min_top1", "verdict", "words"),
    [
        (0.88, "pass", "top-1 93.33 %, 95% interval 89.93 to 95.64, wanted at least 88.00 (gate.min_top1): the whole"),
        (0.96, "fail", "wanted at least 96.00 (gate.min_top1): the whole interval is below"),
        (0.92, "inconclusive", "about 1591 test images would decide at this share, there are 300"),
        (280 / 300, "inconclusive", "no number of images would decide"),
    ],
)  # fmt: skip
def test_floor(min_top1, verdict, words):
    found, reason = judge_floor(accuracy(280, UNEVEN), min_top1, 0.95)
    assert found == verdict
    assert words in reason


def test_as_many_images_as_are_told_decide():
    """At 14 of 15 right, 1,590 images are too few for a floor of 92 %, and 1,605 are enough."""
    assert judge_floor({"top1": 14 / 15, "images": 1590}, 0.92, 0.95)[0] == "inconclusive"
    assert judge_floor({"top1": 14 / 15, "images": 1605}, 0.92, 0.95)[0] == "pass"


@pytest.mark.parametrize(
    ("of_drop", "engine", "torch", "verdict", "says"),
    [
        ("pass", 290, 290, "pass", "wanted at least 90.00"),
        ("pass", 200, 290, "fail", "top-1 66.67 %"),
        ("pass", 290, 200, "fail", "PyTorch itself: top-1 66.67 %"),  # an engine equal to what is worthless
        ("inconclusive", 290, 290, "inconclusive", "the drop"),
        ("fail", 290, 290, "fail", "the drop"),
    ],
)
def test_the_worst_of_drop_engine_and_pytorch_is_the_verdict(of_drop, engine, torch, verdict, says):
    judged = {
        "verdict": of_drop,
        "reason": "the drop",
        "accuracy": accuracy(engine, EVEN),
        "confidence": 0.95,
    }
    got = apply_floor(judged, accuracy(torch, EVEN), 0.9)
    assert got["verdict"] == verdict
    assert says in got["reason"]
    assert apply_floor(judged, accuracy(torch, EVEN), None) == judged


def test_a_floor_that_pytorch_misses_refuses_without_a_required_engine():
    report = {
        "recipe": {"gate": {"inconclusive": "warn", "confidence": 0.95, "min_top1": 0.9}},
        "baseline": row("baseline", 200, EVEN),
        "variants": [],
    }
    with pytest.raises(GateError, match=r"PyTorch itself did not pass: top-1 66\.67 %.*train longer"):
        check_gate(report)
    report["recipe"]["gate"]["min_top1"] = 0.65  # undecided
    check_gate(report)
    report["recipe"]["gate"]["inconclusive"] = "fail"
    with pytest.raises(GateError, match="would decide at this share"):
        check_gate(report)
