import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from edgekiln.benchmarks.judging.accuracy import PairedCounts
from edgekiln.benchmarks.judging.gate import (
    balanced_interval,
    images_to_decide,
    judge,
    judge_balanced,
    mcnemar_p,
    newcombe_interval,
    tango_interval,
    tango_limits,
)
from edgekiln.runtime.errors import DataError

Z95 = NormalDist().inv_cdf(0.975)


def counts(images, broken, mended):
    return PairedCounts(images=images, broken=broken, mended=mended, agreeing=images - broken - mended)


def score_by_brute_force(broken, mended, images, d):
    """Tango's statistic with the constrained maximum-likelihood estimate found numerically, not by formula."""

    def negative_log_likelihood(q):
        p = q + d  # probability of being broken
        rest = 1 - p - q
        terms = ((broken, p), (mended, q), (images - broken - mended, rest))
        return -sum(k * math.log(max(v, 1e-300)) for k, v in terms if k)

    low, high = max(0.0, -d), (1 - d) / 2
    q = minimize_scalar(
        negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
    ).x
    return (broken - mended - images * d) / math.sqrt(images * (2 * q + d * (1 - d)))


@pytest.mark.parametrize(
    ("broken", "mended", "images"), [(5, 2, 100), (1, 0, 297), (12, 30, 400), (150, 86, 1600)]
)
def test_bounds_are_where_the_score_reaches_z(broken, mended, images):
    low, high = tango_interval(broken, mended, images, 0.95)
    # 1e-3: the numerical maximum of a flat likelihood, not the interval, limits the agreement
    assert score_by_brute_force(broken, mended, images, low) == pytest.approx(Z95, rel=1e-3)
    assert score_by_brute_force(broken, mended, images, high) == pytest.approx(-Z95, rel=1e-3)


def test_large_samples_agree_with_wald():
    # Approval of the Prime Minister (Agresti, Categorical Data Analysis): 150 and 86 of 1,600 changed their mind.
    # Wald's interval is good at this size; the score interval differs from it in the fourth decimal.
    drop = (150 - 86) / 1600
    error = math.sqrt((150 + 86) - (150 - 86) ** 2 / 1600) / 1600
    low, high = tango_interval(150, 86, 1600, 0.95)
    assert (low, high) == pytest.approx((drop - Z95 * error, drop + Z95 * error), abs=5e-4)


def test_no_flip_still_has_a_width():
    # With b = c = 0 the statistic is -n d / sqrt(n d (1 - d)), so the bound is z^2 / (n + z^2) in closed form.
    low, high = tango_interval(0, 0, 297, 0.95)
    assert high == pytest.approx(Z95**2 / (297 + Z95**2), abs=1e-12)
    assert low == pytest.approx(-high, abs=1e-12)


def test_interval_mirrors_when_broken_and_mended_swap():
    low, high = tango_interval(7, 3, 120, 0.9)
    other_low, other_high = tango_interval(3, 7, 120, 0.9)
    assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-9)


def test_interval_stays_inside_minus_one_and_one_at_the_extremes():
    assert tango_interval(10, 0, 10, 0.95)[1] <= 1.0
    assert tango_interval(0, 10, 10, 0.95)[0] >= -1.0


@pytest.mark.parametrize("bad", [(0, 0, 0), (-1, 0, 5), (4, 4, 5)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(DataError, match="broken"):
        tango_interval(*bad, 0.95)


def test_verdicts():
    assert judge(counts(297, 0, 0), max_drop=0.02, confidence=0.95).verdict == "pass"
    assert judge(counts(297, 60, 0), max_drop=0.02, confidence=0.95).verdict == "fail"
    undecided = judge(counts(297, 4, 0), max_drop=0.02, confidence=0.95)
    assert undecided.verdict == "inconclusive"
    assert f"about {undecided.images_to_decide} test images" in undecided.reason


def test_images_to_decide_is_the_smallest_that_does():
    seen = counts(297, 2, 0)
    needed = images_to_decide(seen, max_drop=0.02, confidence=0.95)
    assert needed is not None

    def decides(images):
        low, high = tango_interval(2 * images / 297, 0, images, 0.95)
        return high < 0.02 or low > 0.02

    assert decides(needed)
    assert not decides(needed - 1)


def test_no_number_decides_when_the_drop_is_the_limit():
    result = judge(counts(100, 2, 0), max_drop=0.02, confidence=0.95)
    assert result.images_to_decide is None
    assert "no number of images" in result.reason


def test_limits_of_many_are_the_intervals_of_each():
    broken, mended = np.array([[0, 5], [3, 60]]), np.array([[0, 2], [9, 1]])
    low, high = tango_limits(broken, mended, 297, 0.9)
    for i in np.ndindex(2, 2):
        assert (low[i], high[i]) == tango_interval(broken[i], mended[i], 297, 0.9)
    with pytest.raises(DataError, match="Got 4 broken and 4 mended of 5 images"):
        tango_limits([1, 4], [1, 4], 5, 0.95)


def test_confidence_stands_in_the_reason():
    assert "95% interval" in judge(counts(297, 0, 0), max_drop=0.02, confidence=0.95).reason
    assert "97.5% interval" in judge(counts(297, 0, 0), max_drop=0.02, confidence=0.975).reason


# ---------------------------------------------------------------------------------------------- McNemar's test


@pytest.mark.parametrize(
    ("broken", "mended"), [(0, 0), (1, 0), (0, 7), (5, 5), (4, 13), (12, 30), (150, 86), (900, 1024)]
)
def test_mcnemar_agrees_with_scipy(broken, mended):
    expected = binomtest(broken, broken + mended, 0.5).pvalue if broken + mended else 1.0
    # 1e-9: scipy sums floats, this sums whole numbers
    assert mcnemar_p(broken, mended) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_in_closed_form():
    assert mcnemar_p(6, 0) == 2 / 2**6
    assert mcnemar_p(1, 4) == 2 * (1 + 5) / 2**5
    assert mcnemar_p(3000, 0) == 0.0  # 2**-2999 is below the smallest float, and no error


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(DataError, match="Got -1 broken"):
        mcnemar_p(-1, 4)


# ------------------------------------------------------------------------------------------- balanced accuracy


def test_balanced_interval_of_one_class_is_tangos():
    # 1e-12: the bound is taken apart and put together again in float64
    expected = tango_interval(5, 2, 100, 0.95)
    assert balanced_interval([counts(100, 5, 2)], 0.95) == pytest.approx(expected, abs=1e-12)


def test_balanced_interval_by_the_formula():
    strata = [counts(100, 5, 2), counts(50, 0, 0), counts(50, 0, 0), counts(9, 0, 1)]
    limits = [tango_interval(s.broken, s.mended, s.images, 0.9) for s in strata]
    mean = sum(s.drop for s in strata) / 4
    below = math.sqrt(sum((s.drop - low) ** 2 for s, (low, _) in zip(strata, limits, strict=True))) / 4
    above = math.sqrt(sum((high - s.drop) ** 2 for s, (_, high) in zip(strata, limits, strict=True))) / 4
    assert balanced_interval(strata, 0.9) == pytest.approx((mean - below, mean + above), abs=1e-12)


def test_large_classes_agree_with_wald():
    # The variance of a mean of independent differences, by the textbook; both are good at this size.
    strata = [counts(4000, 200, 100), counts(6000, 300, 60), counts(5000, 50, 150)]
    mean = sum(s.drop for s in strata) / 3
    variance = sum(((s.broken + s.mended) / s.images - s.drop**2) / s.images for s in strata) / 9
    expected = (mean - Z95 * math.sqrt(variance), mean + Z95 * math.sqrt(variance))
    assert balanced_interval(strata, 0.95) == pytest.approx(expected, abs=2e-4)


def test_no_flip_still_has_a_width_that_the_rarest_class_decides():
    strata = [counts(150, 0, 0), counts(138, 0, 0), counts(9, 0, 0)]
    widths = [Z95**2 / (s.images + Z95**2) for s in strata]  # Tango's bound without flips
    high = math.sqrt(sum(w**2 for w in widths)) / 3
    assert balanced_interval(strata, 0.95) == pytest.approx((-high, high), abs=1e-12)
    assert high > 0.099


def test_no_class_is_refused():
    with pytest.raises(DataError, match="no class"):
        balanced_interval([], 0.95)


def test_balanced_verdicts():
    good = [counts(1000, 0, 0)] * 3
    assert judge_balanced(good, max_drop=0.02, confidence=0.95).verdict == "pass"
    bad = [counts(1000, 0, 0), counts(1000, 0, 0), counts(50, 30, 0)]
    assert judge_balanced(bad, max_drop=0.02, confidence=0.95).verdict == "fail"
    small = [counts(150, 0, 0), counts(138, 0, 0), counts(9, 0, 0)]
    undecided = judge_balanced(small, max_drop=0.02, confidence=0.95)
    assert (undecided.verdict, undecided.metric) == ("inconclusive", "balanced")
    needed = undecided.images_to_decide
    assert f"about {needed} test images would decide, there are 297" in undecided.reason
    assert balanced_interval(small, 0.95, factor=needed / 297)[1] < 0.02
    assert balanced_interval(small, 0.95, factor=(needed - 1) / 297)[1] >= 0.02


# ------------------------------------------------------------------------------------------------- Error rates
#
# Engines whose true drop is exactly the budget must not pass. A two-sided 95 % interval lets 2.5 % of them through
# in the long run; 5 % is the most that is promised. 2,000 simulated test sets have a standard error of
# sqrt(0.025 * 0.975 / 2000) = 0.35 points, so three of them above 2.5 % is 3.55 %.

TRIALS = 2000
EXPECTED = 0.025
ALLOWED = EXPECTED + 3 * math.sqrt(EXPECTED * (1 - EXPECTED) / TRIALS)
DROPS = [(0.01, 0.012), (0.01, 0.03), (0.01, 0.1), (0.02, 0.02), (0.02, 0.022), (0.02, 0.06)]


def simulate(images, drop, discordance):
    """Broken and mended of 2,000 test sets: distinct pairs (K, 2) and how often each came up."""
    generator = np.random.default_rng([images, round(1e6 * drop), round(1e6 * discordance)])
    broken, mended = (discordance + drop) / 2, (discordance - drop) / 2
    draws = generator.multinomial(images, [broken, mended, 1 - discordance], size=TRIALS)
    return np.unique(draws[:, :2], axis=0, return_counts=True)


@pytest.mark.parametrize("images", [297, 1000, 10_000])
@pytest.mark.parametrize(("drop", "discordance"), DROPS)
def test_an_engine_exactly_at_the_budget_rarely_passes(images, drop, discordance):
    pairs, repeats = simulate(images, drop, discordance)
    low, high = tango_limits(pairs[:, 0], pairs[:, 1], images, 0.95)
    assert repeats[high < drop].sum() / TRIALS <= ALLOWED
    assert repeats[low > drop].sum() / TRIALS <= 0.05  # nor is it called bad more often than that


def test_simulation_decides_as_judge_does():
    pairs, _ = simulate(297, 0.02, 0.022)
    _, high = tango_limits(pairs[:, 0], pairs[:, 1], 297, 0.95)
    for (broken, mended), bound in zip(pairs, high, strict=True):
        result = judge(counts(297, int(broken), int(mended)), max_drop=0.02, confidence=0.95)
        assert (result.verdict == "pass") == (bound < 0.02)


def bootstrap_passes(broken, mended, images, budget, generator):
    """Whether the upper end of a percentile bootstrap's 95 % interval of the drop is below the budget."""
    shares = [broken / images, mended / images, 1 - (broken + mended) / images]
    draws = generator.multinomial(images, shares, size=1000)
    return np.quantile((draws[:, 0] - draws[:, 1]) / images, 0.975) < budget


def test_a_bootstrap_would_let_far_more_through():
    # Half a point on 297 images: a fifth of all test sets show no lost answer, and a bootstrap has no width there.
    images, drop = 297, 0.005
    pairs, repeats = simulate(images, drop, 0.006)
    generator = np.random.default_rng(0)
    passed = np.array([bootstrap_passes(b, c, images, drop, generator) for b, c in pairs])
    assert repeats[passed].sum() / TRIALS > 0.10
    _, high = tango_limits(pairs[:, 0], pairs[:, 1], images, 0.95)
    assert repeats[high < drop].sum() / TRIALS <= ALLOWED


def simulate_classes(sizes, drops, mended):
    """Counts (2000, K, 3) of broken, mended and images; ``mended`` is the share that each class gains."""
    generator = np.random.default_rng([*sizes, *(round(1e6 * drop) for drop in drops)])
    draws = [
        generator.multinomial(n, [d + mended, mended, 1 - d - 2 * mended], size=TRIALS)
        for n, d in zip(sizes, drops, strict=True)
    ]
    result = np.stack(draws, axis=1)
    result[:, :, 2] = sizes
    return result


def balanced_bounds(draws):
    """What ``balanced_interval`` gives for each test set, all at once."""
    triples, inverse = np.unique(draws.reshape(-1, 3), axis=0, return_inverse=True)
    low, high = (part[inverse.ravel()].reshape(draws.shape[:2]) for part in tango_limits(*triples.T, 0.95))
    drops = (draws[..., 0] - draws[..., 1]) / draws[..., 2]
    below, above = (np.sqrt((part**2).sum(axis=1)) / draws.shape[1] for part in (drops - low, high - drops))
    return drops.mean(axis=1) - below, drops.mean(axis=1) + above


LIGHTS = (150, 138, 9)  # three classes of 297 images, one of them rare
MIXED = (500, 300, 200, 100, 50, 50, 30, 20, 20, 10)


@pytest.mark.parametrize(
    ("sizes", "drops", "mended"),
    [
        (LIGHTS, (0.02, 0.02, 0.02), 0.01),
        (LIGHTS, (0, 0, 0.06), 0),
        ((333, 333, 333), (0.02, 0.02, 0.02), 0.02),
        ((333, 333, 333), (0.06, 0, 0), 0),
        ((500, 500), (0.01, 0.01), 0.001),
        ((950, 50), (0, 0.2), 0.05),
        ((1000,) * 10, (0.01,) * 10, 0.001),
        ((1000,) * 10, (0.01,) * 10, 0.04),
        ((1000,) * 10, (0.1, *(0,) * 9), 0),
        (MIXED, (0.02,) * 10, 0.05),
        (MIXED, (*(0,) * 9, 0.5), 0),
        ((20,) * 100, (0.02,) * 100, 0.02),
    ],
)
def test_balanced_gate_rarely_passes_an_engine_exactly_at_the_budget(sizes, drops, mended):
    draws = simulate_classes(sizes, drops, mended)
    low, high = balanced_bounds(draws)
    budget = np.mean(drops)
    assert (high < budget).mean() <= ALLOWED
    assert (low > budget).mean() <= 0.05
    strata = [counts(int(n), int(b), int(c)) for b, c, n in draws[0]]
    assert balanced_interval(strata, 0.95) == pytest.approx((low[0], high[0]), abs=1e-12)


def test_a_stratified_bootstrap_would_pass_what_a_rare_class_hides():
    # All of the drop is in nine images: three test sets in four show none of it.
    drops, budget = (0, 0, 0.03), 0.01
    draws = simulate_classes(LIGHTS, drops, 0)
    unflipped = (draws[:, :, :2] == 0).all(axis=(1, 2))  # a bootstrap's interval is 0 to 0 here, which passes
    assert unflipped.mean() > 0.7
    assert (balanced_bounds(draws)[1] < budget).mean() == 0


@pytest.mark.parametrize(
    ("counts", "published"), [((9, 3, 10), (0.1705, 0.8090)), ((6, 2, 7), (0.0582, 0.8062))]
)
def test_newcombe_agrees_with_his_own_examples(counts, published):
    """Newcombe (1998), table II, method 10, contrasts (b) and (c)."""
    assert newcombe_interval(*counts, 0.95) == pytest.approx(published, abs=5e-5)


def test_newcombe_has_width_where_every_answer_is_right():
    low, high = newcombe_interval(30, 30, 30, 0.95)
    assert low == pytest.approx(-high)
    assert high > 0.1
