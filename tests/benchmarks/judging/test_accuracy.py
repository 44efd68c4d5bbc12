import json
import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    max_error,
    mean_absolute_error,
    recall_score,
    top_k_accuracy_score,
)

from edgekiln.benchmarks.judging.accuracy import (
    compare_logits,
    find_flips,
    measure_accuracy,
    pair_answers,
    pair_by_class,
    warn_of_collapse,
)
from edgekiln.benchmarks.judging.verdict import Reference, judge_answers
from edgekiln.runtime.errors import DataError, NonFiniteError


def random_case(seed=0, images=200, classes=5):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(images, classes)).astype(np.float32),
        generator.integers(0, classes, images),
    )


def one_hot(answers, classes):
    return np.eye(classes, dtype=np.float32)[answers]


@pytest.mark.parametrize("classes", [2, 5, 6, 60])
def test_agrees_with_scikit_learn(classes):
    logits, labels = random_case(images=500, classes=classes)
    accuracy = measure_accuracy(logits, labels)
    answers = logits.argmax(axis=1)
    every = np.arange(classes)
    # 1e-12: all are ratios of small whole numbers in float64
    assert accuracy.top1 == pytest.approx(accuracy_score(labels, answers), abs=1e-12)
    assert accuracy.balanced == pytest.approx(balanced_accuracy_score(labels, answers), abs=1e-12)
    assert accuracy.recall == pytest.approx(tuple(recall_score(labels, answers, average=None)), abs=1e-12)
    assert accuracy.confusion.tolist() == confusion_matrix(labels, answers, labels=every).tolist()
    if classes > 5:
        expected = top_k_accuracy_score(labels, logits, k=5, labels=every)
        assert accuracy.top5 == pytest.approx(expected, abs=1e-12)


def test_calibration_error_agrees_with_scikit_learns_reliability_curve():
    logits, labels = random_case(images=3000, classes=7)
    logits *= 2  # confidences in every bin
    confidence, right = (
        softmax(logits.astype(np.float64), axis=1).max(axis=1),
        logits.argmax(axis=1) == labels,
    )
    shares, means = calibration_curve(right, confidence, n_bins=15)
    counts = np.unique(np.ceil(confidence * 15), return_counts=True)[1]
    expected = (counts * np.abs(shares - means)).sum() / len(labels)
    assert measure_accuracy(logits, labels).ece == pytest.approx(expected, abs=1e-12)


def test_differences_agree_with_scikit_learn():
    (first, labels), (second, _) = random_case(classes=7), random_case(seed=1, classes=7)
    found = compare_logits(first, second)
    one, other = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    assert found.max_logit_difference == pytest.approx(max_error(one, other), abs=1e-12)
    assert found.mean_logit_difference == pytest.approx(mean_absolute_error(one, other), abs=1e-12)
    # KL(p || q) = cross-entropy of q under p, less p's own; log_loss takes p as the weights of one label each.
    p, q = softmax(first.astype(np.float64), axis=1), softmax(second.astype(np.float64), axis=1)
    rows, classes = np.repeat(np.arange(len(p)), 7), np.tile(np.arange(7), len(p))
    kl = log_loss(classes, q[rows], sample_weight=p.ravel()) - log_loss(
        classes, p[rows], sample_weight=p.ravel()
    )
    assert found.kl_nats == pytest.approx(kl, rel=1e-9)
    counts = pair_answers(first, second, labels)
    assert counts.agreement == pytest.approx(accuracy_score(first.argmax(axis=1), second.argmax(axis=1)))


def test_top5_says_nothing_below_six_classes():
    assert measure_accuracy(*random_case(classes=5)).top5 is None


def test_equal_logits_go_to_the_first_class_in_top1_and_top5_alike():
    accuracy = measure_accuracy(np.zeros((7, 7), np.float32), np.arange(7))
    assert accuracy.top1 == pytest.approx(1 / 7)
    assert accuracy.top5 == pytest.approx(5 / 7)
    assert accuracy.confusion[:, 0].tolist() == [1] * 7


def test_class_without_images_has_no_recall_and_does_not_count():
    accuracy = measure_accuracy(one_hot([0, 1, 1], 3), np.array([0, 1, 0]))
    assert accuracy.recall == (0.5, 1.0, None)
    assert accuracy.balanced == 0.75
    assert accuracy.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_labels_of_one_class_only():
    accuracy = measure_accuracy(one_hot([0, 0, 1, 0], 2), np.zeros(4, int))
    assert (accuracy.top1, accuracy.balanced, accuracy.recall) == (0.75, 0.75, (0.75, None))


def test_calibration_error_in_closed_form():
    # Logits (a, 0) have the confidence 1 / (1 + exp(-a)). 0.7 and 0.9 lie in two bins, one image in two right at
    # 0.7 and all right at 0.9: ECE = |0.5 - 0.7| / 2 + |1 - 0.9| / 2.
    def row(confidence):
        return [math.log(confidence / (1 - confidence)), 0.0]

    logits = np.array([row(0.7), row(0.7), row(0.9), row(0.9)], np.float32)
    # 1e-6: the logits are float32
    assert measure_accuracy(logits, np.array([0, 1, 0, 0])).ece == pytest.approx(0.15, abs=1e-6)


def test_calibration_error_by_bins_one_after_the_other():
    logits, labels = random_case(images=3000, classes=4)
    scores = softmax(logits.astype(np.float64), axis=1)
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    # 1e-12: sums of 3,000 float64 numbers in another order
    assert measure_accuracy(logits, labels).ece == pytest.approx(expected, abs=1e-12)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not():
    logits = 1e30 * one_hot([0, 1, 0, 1], 2)  # the softmax is 1 and 0 to float64 precision
    assert measure_accuracy(logits, np.array([0, 1, 0, 1])).ece == 0.0
    assert measure_accuracy(logits, np.array([1, 0, 1, 0])).ece == 1.0


def test_confusion_is_sparse_above_fifty_classes_and_nothing_is_lost():
    for classes, kind in ((50, list), (51, dict)):
        logits, labels = random_case(images=400, classes=classes)
        accuracy = measure_accuracy(logits, labels)
        stored = json.loads(json.dumps(accuracy.to_dict()))["confusion"]
        assert isinstance(stored, kind)
    rebuilt = np.diag(stored["diagonal"])
    for label, answer, count in stored["off_diagonal"]:
        assert count > 0
        rebuilt[label, answer] = count
    assert rebuilt.tolist() == accuracy.confusion.tolist()


def test_distinct_outputs_are_rows_that_differ_in_value():
    assert measure_accuracy(np.zeros((9, 3), np.float32), np.zeros(9, int)).distinct_outputs == 1
    signed = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]], np.float32)
    assert measure_accuracy(signed, np.zeros(3, int)).distinct_outputs == 2
    logits, labels = random_case(images=64)
    logits[:32] = logits[0]
    assert measure_accuracy(logits, labels).distinct_outputs == len(np.unique(logits, axis=0)) == 33


@pytest.mark.parametrize(("distinct", "warns"), [(1, True), (14, True), (15, False), (30, False)])
def test_collapse_is_fewer_than_half_of_the_baselines_outputs(distinct, warns):
    warning = warn_of_collapse(distinct, 30)
    assert (warning is not None) is warns
    if warning:
        assert f"collapsed: {distinct} distinct outputs, where PyTorch has 30" in warning


def test_pairs_count_both_directions():
    labels = np.array([0, 0, 0, 1, 1])
    before, now = one_hot([0, 0, 1, 1, 0], 2), one_hot([0, 1, 0, 0, 0], 2)
    pair = pair_answers(before, now, labels)
    assert (pair.images, pair.broken, pair.mended, pair.agreeing) == (5, 2, 1, 2)
    assert pair.drop == pytest.approx(0.2)
    assert pair.agreement == pytest.approx(0.4)


def test_pairs_by_class_add_up_and_their_mean_drop_is_the_balanced_one():
    baseline, labels = random_case(images=300, classes=4)
    engine = baseline + random_case(seed=1, images=300, classes=4)[0]
    labels[labels == 2] = 3  # a class never seen
    strata = pair_by_class(baseline, engine, labels)
    whole = pair_answers(baseline, engine, labels)
    assert [s.images for s in strata] == [int((labels == c).sum()) for c in (0, 1, 3)]
    for name in ("images", "broken", "mended", "agreeing"):
        assert sum(getattr(s, name) for s in strata) == getattr(whole, name)
    drop = measure_accuracy(baseline, labels).balanced - measure_accuracy(engine, labels).balanced
    assert np.mean([s.drop for s in strata]) == pytest.approx(drop, abs=1e-12)


def test_divergence_agrees_with_scipy():
    # 2,500 images: more than two of the blocks in which they are taken
    baseline = 5 * random_case(images=2500, classes=7)[0]
    engine = baseline + random_case(seed=1, images=2500, classes=7)[0]
    p, q = (softmax(x.astype(np.float64), axis=1) for x in (baseline, engine))
    found = compare_logits(baseline, engine)
    distance = np.abs(baseline.astype(np.float64) - engine)
    # 1e-12: sums of float64 in another order
    assert found.kl_nats == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=1e-12)
    assert found.mean_logit_difference == pytest.approx(distance.mean(), rel=1e-12)
    assert found.max_logit_difference == distance.max()


def test_divergence_in_closed_form():
    # p = (1/2, 1/2), q = (3/4, 1/4): KL = ln(2/3) / 2 + ln(2) / 2 = ln(4/3) / 2
    engine = np.array([[math.log(3), 0.0]], np.float32)
    # 1e-7: the logits are float32
    assert compare_logits(np.zeros((1, 2), np.float32), engine).kl_nats == pytest.approx(
        math.log(4 / 3) / 2, abs=1e-7
    )


def test_divergence_is_finite_where_a_probability_underflows():
    # By scipy's log-softmax: p = (1, 0), q = (0, 1) to float64 precision, and KL is the distance of the logits.
    baseline, engine = np.array([[2000.0, 0.0]], np.float32), np.array([[0.0, 2000.0]], np.float32)
    assert log_softmax([0.0, 2000.0])[0] == -2000.0
    assert compare_logits(baseline, engine).kl_nats == 2000.0
    same = compare_logits(baseline, baseline)
    assert (same.max_logit_difference, same.mean_logit_difference, same.kl_nats) == (0.0, 0.0, 0.0)


def test_flips_name_the_most_confident_first():
    before = np.array([[3.0, 0.0], [9.0, 0.0], [0.0, 1.0]], np.float32)
    now = before[:, ::-1].copy()
    now[2] = before[2]
    flips = find_flips(before, now, np.array([0, 0, 1]), keys=["a", "b", "c"], classes=["no", "yes"])
    assert [f.key for f in flips] == ["b", "a"]
    assert (flips[0].label, flips[0].before, flips[0].now) == ("no", "no", "yes")
    # the margin of logits (9, 0) is tanh(9 / 2); 1e-12: float64
    assert flips[0].margin == pytest.approx(math.tanh(4.5), abs=1e-12)


def test_lost_right_answers_come_before_wrong_ones_that_changed():
    before = np.array([[1.0, 0.0, 0.0], [9.0, 0.0, 0.0], [2.0, 0.0, 0.0]], np.float32)
    now = one_hot([1, 1, 1], 3)
    flips = find_flips(before, now, np.array([0, 1, 0]), keys=["weak", "mended", "strong"], classes="abc")
    assert [f.key for f in flips] == ["strong", "weak", "mended"]


def test_nothing_flips_in_an_equal_engine():
    logits, labels = random_case()
    assert find_flips(logits, logits, labels, keys=[""] * 200, classes="abcde") == []


def test_nothing_to_judge_and_mismatches_are_refused():
    with pytest.raises(DataError, match="evaluation split is empty") as caught:
        measure_accuracy(np.zeros((0, 3), np.float32), np.zeros(0, int))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"logits \(4, 3\) for 5 labels"):
        measure_accuracy(np.zeros((4, 3), np.float32), np.zeros(5, int))
    with pytest.raises(DataError, match="labels 0 to 3 for 3 classes"):
        measure_accuracy(np.zeros((4, 3), np.float32), np.arange(4))
    with pytest.raises(DataError, match=r"logits \(4, 2\) to compare with logits \(4, 3\)"):
        pair_answers(np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32), np.zeros(4, int))
    with pytest.raises(DataError, match=r"logits \(4, 2\) to compare with logits \(4, 3\)"):
        compare_logits(np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_never_judged(bad):
    logits = np.zeros((3, 2), np.float32)
    logits[1, 0] = bad
    with pytest.raises(NonFiniteError, match="first is image 1"):
        measure_accuracy(logits, np.zeros(3, int))
    with pytest.raises(NonFiniteError, match="first is image 1"):
        pair_by_class(np.zeros((3, 2), np.float32), logits, np.zeros(3, int))


@pytest.mark.slow
def test_ten_thousand_images_of_a_thousand_classes_in_seconds():
    images, classes = 10_000, 1000
    logits, labels = random_case(images=images, classes=classes)
    logits[np.arange(images), labels] += 4
    engine = logits + 0.1 * random_case(seed=1, images=images, classes=classes)[0]
    reference = Reference(logits, labels, [""] * images, [str(c) for c in range(classes)])
    tracemalloc.start()
    started = time.process_time()
    judged = judge_answers(reference, engine, max_drop=0.01, confidence=0.95, metric="balanced")
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 5  # of one core
    assert peak < 500e6  # bytes beside the two arrays of 40 MB; 1 GB is the limit with everything
    assert len(json.dumps(judged)) < 1e6
