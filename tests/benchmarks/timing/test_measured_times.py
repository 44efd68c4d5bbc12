"""What a bundle keeps of a benchmark: a median with its interval, for this kind of machine."""

from dataclasses import replace

import numpy as np
import pytest

from edgekiln.benchmarks.timing.measured_times import find_median, measured_times
from edgekiln.benchmarks.timing.measurement import Block, Measurement, Ratio, Validity
from edgekiln.benchmarks.timing.result import BenchmarkResult
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.bundles.times import parse_times


def measured(name, medians, *, boundary="engine", config=None):
    """Blocks whose medians are known, by process."""
    blocks = [Block(p, i, 0, np.array([m, m])) for p, own in enumerate(medians) for i, m in enumerate(own)]
    return Measurement(name, boundary, 1, {"threads": 2} if config is None else config, [], blocks, "cpu")


def result_of(state, *sides):
    validity = Validity(state, () if state == "valid" else ("a reason",), Ratio(1.0, 0.99, 1.01))
    return BenchmarkResult((), {}, sides, {}, {}, {}, {}, validity, [], {})


@pytest.mark.parametrize("state", ["valid", "noisy"])
def test_each_engines_call_becomes_an_entry_that_a_bundle_reads(state):
    sides = [
        measured("int8", [[2.0, 2.0], [2.1, 2.1]]),
        measured("int8", [[9.0], [9.0]], boundary="image"),
        measured("baseline", [[9.0], [9.0]]),
    ]
    found = measured_times(result_of(state, *sides), {"int8": "onnxruntime-cpu", "absent": "openvino"})
    assert found.keys() == {"int8"}
    (time,) = parse_times([found["int8"]])
    assert (time.kind, time.threads, time.validity) == (read_kind("onnxruntime-cpu"), 2, state)
    assert time.low_ms < time.p50_ms == 2.05 < time.high_ms
    assert time.when.endswith("+00:00")


def test_an_invalid_benchmark_leaves_no_time():
    assert (
        measured_times(result_of("invalid", measured("int8", [[2.0], [2.0]])), {"int8": "onnxruntime-cpu"})
        == {}
    )


def test_an_engine_of_a_gpu_has_no_threads():
    side = replace(measured("gpu", [[0.5], [0.5]], config={}), device="cuda:0")
    assert measured_times(result_of("valid", side), {"gpu": "onnxruntime-cuda"})["gpu"]["threads"] is None


def test_interval_covers_the_true_median_as_often_as_it_says():
    """Processes differ by 5 %, blocks within them by 2 %; 400 benchmarks of 5 processes."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        medians = 3.0 * generator.lognormal(0, 0.05, (5, 1)) * generator.lognormal(0, 0.02, (5, 8))
        low, _, high = find_median(measured("a", medians))
        covered += low <= 3.0 <= high
    # 95 % +- 2.2 % by the binomial; the median over all blocks wanders a little more than the mean over processes.
    assert 0.90 <= covered / 400 <= 0.985


def test_one_process_is_judged_by_its_blocks_and_one_block_has_no_width():
    low, middle, high = find_median(measured("a", [[1.0, 1.1, 1.2]]))
    assert low < middle == 1.1 < high
    assert find_median(measured("a", [[1.5]])) == (1.5, 1.5, 1.5)
