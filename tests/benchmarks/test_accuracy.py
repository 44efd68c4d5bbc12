import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from edgekiln.benchmarks.accuracy import (
    balanced_drop_interval,
    find_flips,
    measure_accuracy,
    pair_answers,
)
from edgekiln.runtime.errors import DataError, NonFiniteError


def random_case(seed=0, images=200, classes=5):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(images, classes)).astype(np.float32),
        generator.integers(0, classes, images),
    )


def test_agrees_with_scikit_learn():
    logits, labels = random_case()
    accuracy = measure_accuracy(logits, labels)
    answers = logits.argmax(axis=1)
    # 1e-12: both are ratios of small whole numbers in float64
    assert accuracy.top1 == pytest.approx(accuracy_score(labels, answers), abs=1e-12)
    assert accuracy.balanced == pytest.approx(balanced_accuracy_score(labels, answers), abs=1e-12)
    assert accuracy.recall == pytest.approx(tuple(recall_score(labels, answers, average=None)), abs=1e-12)


def test_class_without_images_has_no_recall_and_does_not_count():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    accuracy = measure_accuracy(logits, np.array([0, 1, 0]))
    assert accuracy.recall == (0.5, 1.0, None)
    assert accuracy.balanced == 0.75


def test_collapsed_engine_has_one_distinct_output():
    assert measure_accuracy(np.zeros((9, 3), np.float32), np.zeros(9, int)).distinct_outputs == 1


def test_pairs_count_both_directions():
    labels = np.array([0, 0, 0, 1, 1])
    before = np.eye(2, dtype=np.float32)[[0, 0, 1, 1, 0]]
    now = np.eye(2, dtype=np.float32)[[0, 1, 0, 0, 0]]
    pair = pair_answers(before, now, labels)
    assert (pair.images, pair.broken, pair.mended, pair.agreeing) == (5, 2, 1, 2)
    assert pair.drop == pytest.approx(0.2)


def test_flips_name_the_most_confident_first():
    before = np.array([[3.0, 0.0], [9.0, 0.0], [0.0, 1.0]], np.float32)
    now = before[:, ::-1].copy()
    now[2] = before[2]
    flips = find_flips(before, now, np.array([0, 0, 1]), keys=["a", "b", "c"], classes=["no", "yes"])
    assert [f.key for f in flips] == ["b", "a"]
    assert (flips[0].label, flips[0].before, flips[0].now) == ("no", "no", "yes")


def test_bootstrap_interval_holds_the_drop_and_is_empty_without_flips():
    logits, labels = random_case()
    worse = logits.copy()
    worse[::7] = -worse[::7]
    low, high = balanced_drop_interval(logits, worse, labels, 0.95)
    drop = measure_accuracy(logits, labels).balanced - measure_accuracy(worse, labels).balanced
    assert low < drop < high
    assert balanced_drop_interval(logits, logits, labels, 0.95) == (0.0, 0.0)


def test_nothing_to_judge_and_mismatches_are_refused():
    with pytest.raises(DataError, match="evaluation split is empty"):
        measure_accuracy(np.zeros((0, 3), np.float32), np.zeros(0, int))
    with pytest.raises(DataError, match=r"logits \(4, 3\) for 5 labels"):
        measure_accuracy(np.zeros((4, 3), np.float32), np.zeros(5, int))


def test_nan_is_never_judged():
    logits = np.zeros((3, 2), np.float32)
    logits[1, 0] = np.nan
    with pytest.raises(NonFiniteError, match="first is image 1"):
        measure_accuracy(logits, np.zeros(3, int))
