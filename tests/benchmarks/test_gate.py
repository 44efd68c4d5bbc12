import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from edgekiln.benchmarks.accuracy import PairedCounts
from edgekiln.benchmarks.gate import images_to_decide, judge, tango_interval
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


@pytest.mark.parametrize("images", [297, 1000, 10_000])
@pytest.mark.parametrize("extra", [0.0, 0.02])
def test_an_engine_exactly_at_the_limit_rarely_passes(images, extra):
    # True drop = budget; `extra` is how often images also flip the other way. 2,000 simulated test sets each.
    budget, trials = 0.02, 2000
    generator = np.random.default_rng(images)
    draws = generator.multinomial(images, [budget + extra, extra, 1 - budget - 2 * extra], size=trials)
    unique, repeats = np.unique(draws[:, :2], axis=0, return_counts=True)
    passed = sum(
        n
        for (b, c), n in zip(unique, repeats, strict=True)
        if judge(counts(images, int(b), int(c)), max_drop=budget, confidence=0.95).verdict == "pass"
    )
    assert passed / trials <= 0.05
