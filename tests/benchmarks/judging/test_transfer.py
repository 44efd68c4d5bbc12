"""The statistics of a transfer study against figures worked out by hand, and against scipy's Student t."""

import math

import numpy as np
import pytest
import scipy.stats

from edgekiln.benchmarks.judging.transfer import (
    Estimate,
    choose_method,
    compare_paired,
    estimate_mean,
    measure_metric,
    student_quantile,
)
from edgekiln.runtime.errors import DataError


def answers(*wrong, images=1000):
    """Right answers bool (seeds, images) with so many wrong ones a seed, at the front."""
    right = np.ones((len(wrong), images), bool)
    for row, count in zip(right, wrong, strict=True):
        row[:count] = False
    return right


def zeros(images=1000):
    return np.zeros(images, np.int64)


# -- Student's t


@pytest.mark.parametrize("freedom", [1, 2, 4, 30])
def test_whole_degrees_of_freedom_are_the_tables(freedom):
    assert student_quantile(freedom) == pytest.approx(
        scipy.stats.t.ppf(0.975, freedom), abs=5e-4
    )  # 3 decimals


def test_between_them_the_quantile_errs_on_the_wide_side():
    for freedom in (*np.linspace(1.05, 60, 200), 1e3, 1e6):
        exact = scipy.stats.t.ppf(0.975, freedom)
        assert student_quantile(freedom) >= exact - 5e-4, freedom  # the table's rounding
        if freedom >= 2:
            assert student_quantile(freedom) <= 1.02 * exact, freedom


@pytest.mark.parametrize("freedom", [0.5, -1, math.nan])
def test_too_few_degrees_of_freedom_are_refused(freedom):
    with pytest.raises(DataError, match="wanted at least 1"):
        student_quantile(freedom)


# -- means


def test_the_interval_of_three_seeds_is_the_textbooks():
    # mean 0.9, deviation 0.01, t(2) = 4.303: 0.9 +- 4.303 * 0.01 / sqrt(3)
    estimate = estimate_mean([0.89, 0.90, 0.91])
    assert estimate.mean == pytest.approx(0.9)
    assert estimate.low == pytest.approx(0.9 - 0.024843, abs=1e-6)
    assert estimate.high == pytest.approx(0.9 + 0.024843, abs=1e-6)
    assert (estimate.seeds, estimate.freedom) == (3, 2)


def test_an_interval_of_shares_ends_at_one():
    assert estimate_mean([0.96, 1.0]).high == 1.0
    assert estimate_mean([0.0, 0.04]).low == 0.0


def test_one_seed_has_no_interval():
    assert estimate_mean([0.9]) == Estimate(0.9, None, None, 1)
    assert compare_paired(answers(1), answers(2), zeros(), "top1").low is None


def test_balanced_accuracy_counts_classes_alike():
    labels = np.array([0, 0, 0, 2])  # class 1 does not occur
    right = np.array([[True, True, True, False], [True, False, False, True]])
    np.testing.assert_allclose(measure_metric(right, labels, "top1"), [0.75, 0.5])
    np.testing.assert_allclose(measure_metric(right, labels, "balanced"), [0.5, (1 / 3 + 1) / 2])


# -- paired differences


def test_a_difference_by_hand():
    # Seeds: 0.01, 0.02, 0.03; variance of their mean 0.0001 / 3.
    # Images: 10 change in every seed, 10 in two of three, 10 in one of three; the rest in none.
    first, second = answers(0, 0, 0), answers(10, 20, 30)
    of_seeds = 1e-4 / 3
    squares, total, images = 10 * (1 + 4 / 9 + 1 / 9), 20.0, 1002
    of_images = (squares + 1 - total**2 / images) / images**2
    freedom = (of_seeds + of_images) ** 2 / (of_seeds**2 / 2 + of_images**2 / 999)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(of_seeds + of_images)
    found = compare_paired(first, second, zeros(), "top1")
    assert found.mean == pytest.approx(0.02)
    assert found.freedom == pytest.approx(freedom)
    assert found.high - found.mean == pytest.approx(half, rel=0.01)  # the quantile is read from a table
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_the_other_way_round_is_the_mirror_image():
    ours, theirs = answers(5, 9, 2), answers(20, 11, 30)
    there, back = compare_paired(ours, theirs, zeros(), "top1"), compare_paired(theirs, ours, zeros(), "top1")
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))


def test_pairing_by_image_takes_out_what_is_hard_for_both():
    """Methods that fail on the same 300 images and differ in 10 are told apart; on other images each they are not."""
    same, better = answers(300, 300, 300), answers(290, 290, 290)
    shuffled = np.stack([np.random.default_rng(i).permutation(row) for i, row in enumerate(better)])
    assert compare_paired(better, same, zeros(), "top1").low > 0
    unpaired = compare_paired(shuffled, same, zeros(), "top1")
    assert unpaired.mean == pytest.approx(0.01)
    assert unpaired.low < 0


def test_pairing_by_seed_takes_out_what_a_seed_does_to_both():
    worse, better = answers(100, 200, 300), answers(80, 180, 280)
    assert compare_paired(better, worse, zeros(), "top1").low > 0
    mixed = compare_paired(better, worse[[2, 0, 1]], zeros(), "top1")
    assert mixed.mean == pytest.approx(0.02)
    assert mixed.low < 0


def test_methods_without_a_changed_answer_still_have_an_interval():
    same = compare_paired(answers(0, 0, 0, images=298), answers(0, 0, 0, images=298), zeros(298), "top1")
    # sqrt(1) / 300 * 1.97: what 298 images cannot tell, about two of them
    assert same.mean == 0
    assert same.high == pytest.approx(scipy.stats.t.ppf(0.975, 297) / 300, rel=0.01)


def test_balanced_differences_weigh_a_rare_class_by_class():
    labels = np.array([0] * 990 + [1] * 10)
    before, now = np.ones((3, 1000), bool), np.ones((3, 1000), bool)
    before[:, -5:] = False  # half of the rare class
    top1, balanced = (compare_paired(now, before, labels, metric) for metric in ("top1", "balanced"))
    assert top1.mean == pytest.approx(0.005)
    assert balanced.mean == pytest.approx(0.25)
    assert balanced.high - balanced.low > 10 * (top1.high - top1.low)  # ten images say little on a class


def test_answers_to_other_images_are_refused():
    with pytest.raises(DataError, match=r"Got answers \(2, 10\) to compare with \(2, 11\)"):
        compare_paired(np.ones((2, 10), bool), np.ones((2, 11), bool), zeros(10), "top1")


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Seeds and images both vary: 400 studies of 3 seeds and 200 images, whose true difference is 4 points."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        hard = generator.normal(0, 0.1, 200)
        rates = [
            np.clip(mean + hard + generator.normal(0, 0.02, (3, 1)), 0, 1) for mean in (0.64, 0.6)
        ]  # far enough from 0 and 1 that clipping moves no mean
        ours, theirs = (generator.random((3, 200)) < rate for rate in rates)
        found = compare_paired(ours, theirs, zeros(200), "top1")
        held += found.low <= 0.04 <= found.high
    assert 0.93 <= held / 400 <= 1.0  # the variance errs on the wide side, so more than 95 % is right


# -- which method to take


def choose(margin=0.01, **right):
    return choose_method(right, zeros(), "top1", margin)


def test_the_best_is_taken_where_it_is_shown_to_be_better():
    choice = choose(probe=answers(100, 100, 100), full=answers(50, 50, 50), scratch=answers(400, 400, 400))
    assert (choice.method, choice.best) == ("full", "full")
    assert "+5.00 points against probe [+3." in choice.reason
    assert choice.reason.endswith("shown to be better than all that is cheaper.")


def test_a_cheaper_one_is_taken_that_is_not_shown_to_be_worse():
    choice = choose(0.005, probe=answers(52, 56, 51), full=answers(50, 50, 53))
    assert (choice.method, choice.best) == ("probe", "full")
    assert "probe: -0.20 points against full [" in choice.reason
    assert "not shown to be worse; it is cheaper" in choice.reason


def test_a_cheaper_one_is_taken_that_is_worse_within_the_margin():
    worse, best = answers(80, 80, 80), answers(50, 50, 50)
    assert choose(0.01, probe=worse, full=best).method == "full"
    choice = choose(0.06, probe=worse, full=best)
    assert choice.method == "probe"
    assert "shown to be no further below than 6 points" in choice.reason


def test_a_wide_interval_alone_is_no_reason_for_the_cheap_one():
    probe, full = answers(20, 150, 400), answers(50, 50, 50)
    assert choose(probe=probe, full=full).method == "full"
    assert "not shown to be better than probe: more seeds would tell" in choose(probe=probe, full=full).reason


def test_of_equal_means_the_cheapest_is_best():
    same = answers(50, 50, 50)
    choice = choose(scratch=same, combined=same, full=same, probe=same)
    assert (choice.method, choice.best) == ("probe", "probe")
    assert "nothing is cheaper" in choice.reason
    assert choose(scratch=same, combined=same).method == "combined"


def test_from_scratch_stands_last():
    best = answers(10, 10, 10)
    assert choose(scratch=best, full=answers(100, 100, 100)).method == "scratch"
    assert choose(scratch=best, full=answers(12, 9, 13)).method == "full"


def test_without_intervals_nothing_is_recommended():
    one = choose(probe=answers(5), full=answers(3))
    assert (one.method, one.best) == (None, "full")
    assert "One seed gives no interval" in one.reason
    assert choose().method is None
    assert "No method finished" in choose().reason


def test_a_method_alone_is_taken_and_that_is_said():
    assert choose(full=answers(1, 2)).reason == "full is the only method that can be compared."
