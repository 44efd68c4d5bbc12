"""Reading ahead: what comes out is what a loop would give, in its order, and no more is under way than was allowed."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from edgekiln.pipeline.data.loading import map_ahead
from edgekiln.pipeline.data.loading_cost import main, measure_loading, write_jpegs
from edgekiln.runtime.errors import EngineError


def threads_named(name):
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


# -- map_ahead


def test_results_come_in_order_whatever_takes_longer():
    def work(number):
        time.sleep(0.002 * (number % 3 == 0))
        return number * number

    assert list(map_ahead(work, range(50), ahead=7, threads=4)) == [n * n for n in range(50)]
    assert list(map_ahead(work, [], ahead=3)) == []


def test_items_are_drawn_no_further_ahead_than_allowed():
    drawn = []
    results = map_ahead(lambda n: n, (drawn.append(n) or n for n in range(100)), ahead=5, threads=2)
    for number in range(20):
        assert next(results) == number
        assert len(drawn) == number + 6
    results.close()
    assert not threads_named("edgekiln-load")


def test_a_failure_comes_after_the_results_before_it():
    def work(number):
        if number == 0:
            time.sleep(0.02)  # the failure is there first
        if number == 3:
            raise ValueError("three")
        return number

    results = map_ahead(work, range(10), ahead=10, threads=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert not threads_named("edgekiln-load")


# -- the benchmark


def test_the_benchmark_of_loading_measures_every_cache_and_leaves_nothing(tmp_path, capsys):
    main(["--files", "120", "--side", "32", "--size", "16", "--folder", str(tmp_path)])
    about, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (about["files"], about["side"], about["size"]) == (120, 32, 16)
    caches = [("none", "header"), ("none", "whole"), ("disk", None), ("memory", None)]
    assert [(line["cache"], line["check"]) for line in lines] == caches
    for line in lines:
        assert 0 < line["listed_s"] <= line["prepared_s"] <= line["first_batch_s"]
        assert line["images_per_s"] > 0
        assert line["imports_rss_mb"] <= line["peak_rss_mb"]
    assert list(tmp_path.iterdir()) == []


def test_its_pictures_are_distinct_files_of_few_scenes(tmp_path):
    written = write_jpegs(tmp_path, 120, 32)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len({path.read_bytes() for path in files}) == len(files) == 120
    assert sum(path.stat().st_size for path in files) == written
    pixels = {np.asarray(Image.open(path)).tobytes() for path in files}
    assert len(pixels) == 50


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(
        EngineError, match=r"ended with 1: edgekiln\.runtime\.errors\.DataError: There is no folder"
    ):
        measure_loading(tmp_path / "absent", tmp_path, cache="disk", check="whole", size=16)
