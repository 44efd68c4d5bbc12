import numpy as np
import pytest

from edgekiln.benchmarks.latency import BenchmarkPlan
from edgekiln.benchmarks.measurement import (
    Block,
    Measurement,
    assess,
    compare_speed,
    interval_width,
    is_narrow,
)


def measurement(name, medians, *, second_turn=None, calls=20, jitter=0.0):
    """Blocks whose medians are given, milliseconds (processes, blocks)."""
    generator = np.random.default_rng(0)
    blocks = []
    for turn, grid in ((0, medians), (1, second_turn)):
        if grid is None:
            continue
        for p, row in enumerate(np.asarray(grid, float)):
            for i, value in enumerate(row):
                times = value * (1 + jitter * generator.standard_normal(calls))
                blocks.append(Block(p, i, turn, times))
    return Measurement(name, "call", 1, {"threads": 1}, (), blocks)


def grid(value, spread=0.0, seed=1, shape=(5, 20)):
    return value * np.exp(spread * np.random.default_rng(seed).standard_normal(shape))


def test_ratio_of_exact_times_is_exact():
    ratio = compare_speed(measurement("a", grid(10.0)), measurement("b", grid(2.5)))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((4.0, 4.0, 4.0))


def test_drift_that_hits_both_alike_cancels():
    drift = grid(1.0, 0.5)
    ratio = compare_speed(measurement("a", 10 * drift), measurement("b", 2 * drift))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((5.0, 5.0, 5.0))


def test_interval_covers_the_truth_when_processes_differ():
    # Processes differ by 5 %, blocks by 2 %; resampling calls alone would miss the first. With five processes a
    # bootstrap over them covers somewhat less than its nominal 95 %; two thirds would already be a defect.
    hits, trials = 0, 60
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        process = np.exp(0.05 * generator.standard_normal((5, 1)))
        contender = 2.0 * process * np.exp(0.02 * generator.standard_normal((5, 20)))
        ratio = compare_speed(measurement("a", grid(10.0)), measurement("b", contender))
        hits += ratio.low <= 5.0 <= ratio.high
    assert hits / trials > 0.75


def test_percentiles_wait_for_enough_calls():
    few = measurement("a", grid(1.0, shape=(2, 2)), calls=10)
    many = measurement("a", grid(1.0, shape=(2, 2)), calls=250)
    assert few.p99_ms is None
    assert many.p99_ms == pytest.approx(1.0)


def test_quiet_run_is_valid():
    base = measurement("a", grid(10.0, 0.01, 1), second_turn=grid(10.0, 0.01, 2))
    verdict = assess([base], steal=0.0, foreign_load=0.0)
    assert (verdict.state, verdict.reasons) == ("valid", ())


def test_baseline_that_differs_from_itself_invalidates():
    base = measurement("a", grid(10.0, 0.01, 1), second_turn=grid(11.0, 0.01, 2))
    verdict = assess([base], steal=0.0, foreign_load=0.0)
    assert verdict.state == "invalid"
    assert "differs from itself" in verdict.reasons[0]


def test_too_wide_a_self_interval_invalidates():
    base = measurement("a", grid(10.0, 0.6, 1), second_turn=grid(10.0, 0.6, 2))
    verdict = assess([base], steal=0.0, foreign_load=0.0)
    assert verdict.state == "invalid"
    assert "known only to" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("steal", "load", "text"), [(0.1, 0.0, "hypervisor took 10%"), (0.0, 1.4, "other processes kept 1.4")]
)
def test_noise_is_named(steal, load, text):
    base = measurement("a", grid(10.0, 0.01, 1), second_turn=grid(10.0, 0.01, 2))
    verdict = assess([base], steal=steal, foreign_load=load)
    assert verdict.state == "noisy"
    assert text in verdict.reasons[0]


def test_document_keeps_every_raw_time():
    document = measurement("a", grid(1.5, shape=(2, 3)), calls=4).to_dict()
    assert document["calls"] == 2 * 3 * 4
    assert all(times == [1500] * 4 for times in (b["times_us"] for b in document["blocks"]))
