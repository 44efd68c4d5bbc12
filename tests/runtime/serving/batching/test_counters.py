"""The counts of a batcher, summarized."""

from edgekiln.runtime.serving.batching.counters import BatcherCounters, Tally


def test_nothing_was_counted_yet():
    assert Tally().summarize(2) == BatcherCounters(2, 0, 0, 0, 0, 0, {}, {})


def test_a_copy_stays_as_it_was():
    tally = Tally()
    tally.ended["answered"] += 1
    tally.batches[4] += 2
    tally.batches[1] += 1
    tally.latencies_ms.extend([1.0, 3.0])
    copy = tally.copy()
    tally.ended["failed"] += 1
    tally.latencies_ms.append(100.0)
    counters = copy.summarize(0)
    assert (counters.answered, counters.failed) == (1, 0)
    assert list(counters.batches.items()) == [(1, 1), (4, 2)]
    assert counters.latency_ms["p50"] == 2.0
