import pytest

from edgekiln.benchmarks.timing.loadgen.rules import find_shortfalls
from edgekiln.benchmarks.timing.loadgen.summary import Summary
from edgekiln.benchmarks.timing.loadgen.verdict import judge_run

OURS = {"samples": 30_000, "samples_per_second": 500.0, "p50_ms": 1.98, "p90_ms": 2.4}


def summary(result):
    return Summary(result, (), {"p50_ms": 2.0, "p90_ms": 2.5, "p99_ms": 3.0}, 2.6, samples_per_second=480.0)


def test_stopwatches_are_compared_by_percentile_or_by_rate():
    found = judge_run(summary("VALID"), {"ours": OURS}, "SingleStream", 600, 1024)
    assert (found["ours_over_loadgen_p50"], found["ours_over_loadgen_p90"]) == (0.99, 0.96)
    assert (found["compliant"], found["shortfalls"]) == (True, [])
    found = judge_run(summary("VALID"), {"ours": OURS}, "Offline", 600, 1024)
    assert found["ours_over_loadgen_samples_per_second"] == pytest.approx(500 / 480, abs=1e-4)


def test_an_invalid_run_is_never_compliant():
    found = judge_run(summary("INVALID"), {"ours": OURS}, "SingleStream", 600, 1024)
    assert (found["valid"], found["compliant"], found["shortfalls"]) == (False, False, [])


def test_every_length_below_mlperfs_is_named():
    assert find_shortfalls("Offline", 10, 600, 64) == [
        "10 s, MLPerf asks for 600",
        "600 samples, MLPerf asks for 24576",
        "64 different images, MLPerf asks for 1024",
    ]
    assert find_shortfalls("SingleStream", 600, 600, 1024) == []
