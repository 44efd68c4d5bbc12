"""How long a batch waits for more requests, with times given by hand."""

import pytest

from edgekiln.runtime.serving.batching import wait as batching_wait
from edgekiln.runtime.serving.batching.wait import BatchWait


def test_the_wait_ends_early_by_what_waking_costs():
    wait = BatchWait(0.002)
    early = batching_wait._FIRST_LATENESS_S + batching_wait._HANDOVER_S
    assert wait.end_for(10.0) == pytest.approx(10.002 - early, abs=1e-9)  # a float of 10 has 2e-15


def test_a_short_wait_keeps_half_of_its_time():
    assert BatchWait(20e-6).end_for(0.0) == pytest.approx(10e-6, abs=1e-12)


def test_lateness_is_learned_up_to_its_limit():
    wait = BatchWait(0.002)
    for _ in range(100):
        wait.learn(0.01)
    assert 0.99 * batching_wait._MOST_LATENESS_S < wait.lateness_s <= batching_wait._MOST_LATENESS_S
    for _ in range(100):
        wait.learn(0.0)
    assert wait.lateness_s < 0.01 * batching_wait._MOST_LATENESS_S
