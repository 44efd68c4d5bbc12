from edgekiln.benchmarks.timing.configurations import best_configuration


def entry(median_ms, **config):
    return {"config": config, "median_ms": median_ms}


def test_more_threads_are_taken_only_where_they_gain_a_fifth():
    assert best_configuration([entry(6.5, threads=1), entry(5.5, threads=2)]) == {"threads": 1}
    assert best_configuration([entry(6.5, threads=1), entry(5.1, threads=2)]) == {"threads": 2}
    layouts = [
        entry(8.0, threads=1, last=False),
        entry(6.5, threads=1, last=True),
        entry(5.5, threads=2, last=True),
    ]
    assert best_configuration(layouts) == {"threads": 1, "last": True}
    assert best_configuration([entry(1.0, threads=None), entry(1.1, threads=1)]) == {"threads": 1}
    assert best_configuration([entry(2.0, search=True), entry(1.9, search=False)]) == {"search": False}
