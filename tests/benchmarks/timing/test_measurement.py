import numpy as np
import pytest

from edgekiln.benchmarks.timing.measurement import (
    Block,
    Measurement,
    Ratio,
    assess,
    compare_speed,
    interval_width,
    is_narrow,
    widen_ratio,
)
from edgekiln.benchmarks.timing.plan import BenchmarkPlan


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
    # Processes differ by 5 %, blocks by 2 %; resampling calls alone would miss the first, and a plain bootstrap over
    # five processes covers 85 %. Of 200 trials at 95 % fewer than 182 come true in one case of a hundred.
    hits, trials = 0, 200
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        process = np.exp(0.05 * generator.standard_normal((5, 1)))
        contender = 2.0 * process * np.exp(0.02 * generator.standard_normal((5, 20)))
        ratio = compare_speed(measurement("a", grid(10.0)), measurement("b", contender))
        hits += ratio.low <= 5.0 <= ratio.high
    assert hits / trials >= 0.91


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


def test_baseline_that_misses_itself_a_little_is_noisy_and_widens_every_ratio():
    base = measurement("baseline", grid(10.0, 0.01, 1), second_turn=grid(10.4, 0.01, 2))
    verdict = assess([base], steal=0.0, foreign_load=0.0)
    assert verdict.state == "noisy"
    assert "the baseline differs from itself" in verdict.reasons[0]
    plain = compare_speed(base, measurement("b", grid(2.5, 0.01, 3)))
    widened, own = widen_ratio(plain, verdict.self_ratio), verdict.self_ratio
    assert own.high < 1  # the second turn was slower by 4 %
    assert widened.value == plain.value
    assert widened.low == pytest.approx(plain.low * own.low)
    assert widened.high == pytest.approx(plain.high / own.low)


@pytest.mark.parametrize(
    ("low", "high", "state"),
    [
        (0.96, 1.05, "valid"), (0.95, 1.06, "noisy"), (1.001, 1.02, "noisy"), (0.90, 1.05, "invalid"),
        (1.0, 1.11, "invalid"),
    ],
)  # fmt: skip
def test_how_far_the_baseline_may_miss_itself(monkeypatch, low, high, state):
    own = Ratio((low + high) / 2, low, high)
    monkeypatch.setattr(
        "edgekiln.benchmarks.timing.measurement._paired_ratio", lambda *arguments, **seed: own
    )
    quiet = measurement("baseline", grid(10.0, 0.01, 1), second_turn=grid(10.0, 0.01, 2))
    assert assess([quiet], steal=0.0, foreign_load=0.0).state == state
    assert (widen_ratio(Ratio(2, 1.9, 2.1), own) == Ratio(2, 1.9, 2.1)) == (state == "valid")


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


def rounds(generator, *, process, block, width, plan):
    """Log ratios of one benchmark, each round stopped by the rule; true log ratio 0."""
    found = []
    for _ in range(plan.processes):
        row = process * generator.standard_normal() + block * generator.standard_normal(plan.blocks)
        looks = range(plan.min_blocks, plan.blocks, 4)
        stop = next((n for n in looks if interval_width(row[:n]) <= width), plan.blocks)
        found.append(row[:stop])
    return found


def test_rounds_that_stop_when_narrow_are_as_right_as_those_that_do_not():
    """Stopped or not, the mean stays unbiased and the interval covers the truth as often."""
    plan, trials = BenchmarkPlan(), 150
    results = {}
    for width in (0.03, 0.0):  # 0 never stops
        generator = np.random.default_rng(11)
        ratios, lengths = [], []
        for _ in range(trials):
            logs = rounds(generator, process=0.02, block=0.04, width=width, plan=plan)
            lengths += [len(row) for row in logs]
            base = [np.ones(len(row)) for row in logs]
            blocks = [
                Block(p, i, 0, np.exp(-value)[None])
                for p, row in enumerate(logs)
                for i, value in enumerate(row)
            ]
            ones = [Block(p, i, 0, v[None]) for p, row in enumerate(base) for i, v in enumerate(row)]
            ratios.append(
                compare_speed(
                    Measurement("a", "call", 1, {}, (), ones), Measurement("b", "call", 1, {}, (), blocks)
                )
            )
        covered = np.mean([ratio.low <= 1 <= ratio.high for ratio in ratios])
        bias = np.mean([np.log(ratio.value) for ratio in ratios])
        results[width] = covered, bias, np.mean(lengths)
    assert results[0.03][2] < 0.7 * results[0.0][2] == 0.7 * 60
    # Standard error of the mean over 150 benchmarks: 0.02 / sqrt(5 * 150) is 0.0007; of coverages near 0.95, 0.02.
    assert abs(results[0.03][1]) < 0.003
    assert results[0.03][0] > results[0.0][0] - 0.08
    assert results[0.03][0] > 0.89


def test_width_is_that_of_a_normal_sample_and_one_stall_does_not_change_it():
    logs = 0.02 * np.random.default_rng(0).standard_normal(1000)
    assert interval_width(logs) == pytest.approx(2 * 1.96 * 0.02 / np.sqrt(1000), rel=0.1)
    stalled = np.append(logs[:-1], 5.0)
    assert interval_width(stalled) == pytest.approx(interval_width(logs), rel=0.02)


def blocks_of(medians, turn=0, calls=250):
    return [Block(0, i, turn, np.full(calls, value)) for i, value in enumerate(medians)]


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_narrow_looks_at_widths_and_not_at_which_is_faster(factor):
    drift = grid(1.0, 0.3, shape=(20,))
    base = blocks_of(drift) + blocks_of(drift, turn=1)
    assert is_narrow([base, blocks_of(factor * drift)], 0.01)
    noisy = factor * drift * grid(1.0, 0.1, seed=2, shape=(20,))
    assert not is_narrow([base, blocks_of(noisy)], 0.01)
    other = blocks_of(drift) + blocks_of(drift * grid(1.0, 0.1, seed=3, shape=(20,)), turn=1)
    assert not is_narrow([other, blocks_of(factor * drift)], 0.01)  # the baseline against itself


def test_round_stops_at_its_least_blocks_and_calls_only():
    plan = BenchmarkPlan(processes=5, min_blocks=20)

    def measured(count, calls):
        steady = np.ones(count)
        return [
            blocks_of(steady, calls=calls) + blocks_of(steady, turn=1, calls=calls),
            blocks_of(steady, calls=calls),
        ]

    assert plan.is_enough(measured(20, 10))  # 200 calls of the slower, a fifth of what a p99 needs
    assert not plan.is_enough(measured(16, 100))
    assert not plan.is_enough(measured(22, 100))  # not every contender was first as often as last
    assert not plan.is_enough(measured(20, 9))


def test_processes_count_alike_however_many_blocks_they_have():
    def uneven(values):
        return Measurement(
            "m", "call", 1, {}, (), [
                Block(p, i, 0, np.array([value])) for p, value in enumerate(values) for i in range(4 + 40 * p)
            ]
        )  # fmt: skip

    ratio = compare_speed(uneven([1.0, 1.0]), uneven([0.5, 2.0]))
    assert ratio.value == pytest.approx(1.0)
    # The bootstrap's ends are the two processes themselves; Student's t with one degree of freedom stretches them.
    stretch = 12.706 / 1.96 * np.sqrt(2)
    assert (ratio.low, ratio.high) == pytest.approx((0.5**stretch, 2.0**stretch))


def test_contender_that_remembers_an_image_is_called_noisy():
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    assert assess([steady], steal=0, foreign_load=0, repeated={"a": 0.95}).state == "valid"
    found = assess([steady], steal=0, foreign_load=0, repeated={"a": 0.5})
    assert found.state == "noisy"
    assert "a is 50% faster on one repeated image" in found.reasons[0]
