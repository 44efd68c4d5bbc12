"""What is told before anything is judged: against drawn test sets, and against the gate itself."""

import numpy as np
import pytest

from edgekiln.benchmarks.judging.accuracy import PairedCounts
from edgekiln.benchmarks.judging.gate import judge, tango_limits
from edgekiln.benchmarks.judging.planning import chance_to_pass, images_to_pass, most_broken

TRIALS = 4000


@pytest.mark.parametrize(
    ("images", "max_drop", "broken", "mended"),
    [
        (297, 0.02, 0.005, 0.003),
        (474, 0.02, 0.005, 0.003),
        (1000, 0.01, 0.004, 0.004),
        (200, 0.05, 0.03, 0.01),
    ],
)
def test_the_chance_is_that_of_drawn_test_sets(images, max_drop, broken, mended):
    draws = np.random.default_rng(images).multinomial(images, [broken, mended, 1 - broken - mended], TRIALS)
    passed = tango_limits(draws[:, 0], draws[:, 1], images, 0.95)[1] < max_drop
    # Four standard errors of the share that was drawn.
    assert abs(chance_to_pass(images, max_drop, broken=broken, mended=mended) - passed.mean()) <= 4 * np.sqrt(
        0.25 / TRIALS
    )


def test_the_chance_is_between_none_and_all():
    assert chance_to_pass(50, 0.001) < 1e-4
    assert chance_to_pass(20_000, 0.1) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("max_drop", [0.01, 0.02])
def test_so_many_images_do_and_half_of_them_do_not(max_drop):
    needed = images_to_pass(max_drop, 0.8)
    assert chance_to_pass(needed, max_drop) >= 0.8
    assert chance_to_pass(needed // 2, max_drop) < 0.8


@pytest.mark.parametrize("images", [189, 297, 474, 500, 1000])
def test_most_broken_is_where_the_gate_turns(images):
    most = most_broken(images, 0.02)
    for broken, verdict in ((most, "pass"), (most + 1, "inconclusive")):
        counts = PairedCounts(images, broken, 0, images - broken)
        assert judge(counts, max_drop=0.02, confidence=0.95).verdict == verdict


def test_too_few_images_pass_nothing_without_a_flip():
    assert most_broken(188, 0.02) is None  # one image fewer than the least that prove two points
