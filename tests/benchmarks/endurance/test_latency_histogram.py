import numpy as np

from edgekiln.benchmarks.endurance.latency_histogram import LatencyHistogram


def test_the_histogram_is_within_a_hundredth_of_the_sorted_values():
    values = np.random.default_rng(0).lognormal(-6, 1, 5000)
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    for percent in (1, 50, 99):
        wanted = 1000 * np.percentile(values, percent, method="inverted_cdf")
        assert wanted <= histogram.percentile_ms(percent) <= 1.0101 * wanted


def test_the_histogram_takes_any_time():
    histogram = LatencyHistogram()
    assert histogram.percentile_ms(99) == 0.0
    for seconds in (0.0, 1e9):
        histogram.add(seconds)
    assert histogram.percentile_ms(50) < 0.0011
    assert histogram.percentile_ms(99) > 400_000
