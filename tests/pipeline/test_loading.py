"""Reading ahead: what comes out is what a loop would give, in its order, and no more is under way than was allowed."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from tests_support import write_pictures

from edgekiln.pipeline.data import Prefetcher, load_split, prepare_splits
from edgekiln.pipeline.loading import map_ahead
from edgekiln.pipeline.loading_cost import main, measure_loading, write_jpegs
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.runtime.errors import EngineError, ImageError


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


# -- Prefetcher


@pytest.fixture
def splits(tmp_path):
    """The same train split as an array and on files, and the folder of its pictures."""
    folder = write_pictures(tmp_path / "pictures", per_class=20)
    found = []
    for cache in ("disk", "none"):
        (tmp_path / cache).mkdir()
        settings = DataSettings(source="imagefolder", path=folder, size=16, cache=cache)
        prepare_splits(settings, seed=1, folder=tmp_path / cache)
        found.append(load_split(tmp_path / cache, "train"))
    return *found, folder


def batches(count, size=11, pictures=39):
    generator = np.random.default_rng(0)
    return [np.sort(generator.permutation(pictures)[: size - (i % 4)]) for i in range(count)]


@pytest.mark.parametrize("place", [0, 1], ids=["array", "files"])
@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_batches_are_those_of_a_plain_loop(splits, place, ahead):
    chosen = batches(12)
    with Prefetcher(splits[place].frames, iter(chosen), ahead=ahead, threads=3) as ready:
        got = list(ready)
    assert len(got) == 12
    for frames, indices in zip(got, chosen, strict=True):
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, splits[0].frames[indices])
    assert not threads_named("edgekiln-prefetch")


def test_no_more_batches_are_read_than_allowed(splits):
    drawn = []
    ready = Prefetcher(splits[1].frames, (drawn.append(1) or b for b in batches(30)), ahead=3)
    assert len(drawn) == 3  # begun before the first is asked for
    for taken in range(1, 10):
        next(ready)
        assert len(drawn) == taken + 3
    ready.close()
    ready.close()
    assert list(ready) == []
    assert not threads_named("edgekiln-prefetch")


def test_batches_lie_where_the_caller_wants_them(splits):
    made = []

    def allocate(shape):
        made.append(np.full(shape, 7, np.uint8))
        return made[-1]

    with Prefetcher(splits[1].frames, batches(4), allocate=allocate) as ready:
        for number, frames in enumerate(ready):
            assert frames is made[number]


def test_a_broken_picture_fails_its_own_batch_and_ends_the_threads(splits):
    disk, none, folder = splits
    path = folder / none.keys[20]
    path.write_bytes(path.read_bytes()[:50])
    chosen = [np.arange(start, start + 5) for start in range(0, 35, 5)]
    ready = Prefetcher(none.frames, chosen, ahead=7)
    got = np.concatenate([next(ready) for _ in range(4)])
    np.testing.assert_array_equal(got, disk.frames[:20])
    with pytest.raises(ImageError, match="is no longer the picture that was listed"):
        next(ready)
    assert list(ready) == []
    assert not threads_named("edgekiln-prefetch")


def test_batches_that_cannot_be_drawn_fail_in_their_turn(splits):
    def draw():
        yield from batches(2)
        raise RuntimeError("no more")

    ready = Prefetcher(splits[1].frames, draw(), ahead=5)
    assert [len(next(ready)), len(next(ready))] == [11, 10]
    with pytest.raises(RuntimeError, match="no more"):
        next(ready)
    assert list(ready) == []


def test_indices_beyond_the_split_are_an_error(splits):
    for split in splits[:2]:
        with Prefetcher(split.frames, [np.array([0, 42])]) as ready, pytest.raises(IndexError):
            next(ready)


def test_none_ahead_is_no_prefetcher(splits):
    with pytest.raises(ValueError, match="ahead = 0, wanted at least 1"):
        Prefetcher(splits[0].frames, [], ahead=0)


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
