"""Which batch sizes are prepared, by which engine, and which of them runs a batch."""

from dataclasses import dataclass

import pytest

from edgekiln.runtime.backends.tensorrt_buckets import choose_bucket, plan_buckets


@dataclass(frozen=True)
class Range:
    min_batch: int
    max_batch: int


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [((1, 1), [1]), ((4, 4), [4]), ((1, 6), [1, 2, 4, 6]), ((3, 6), [3, 4, 6]), ((2, 3), [2, 3])],
)
def test_a_range_gives_its_powers_of_two_and_its_ends(batch, sizes):
    assert sorted(plan_buckets([Range(*batch)])) == sizes


def test_the_narrower_range_serves_a_size_that_both_have():
    wide, narrow = Range(1, 8), Range(4, 4)
    for engines in ([wide, narrow], [narrow, wide]):
        assert plan_buckets(engines) == {1: wide, 2: wide, 4: narrow, 8: wide}


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 4), (4, 4), (5, 6), (6, 6)])
def test_a_batch_takes_the_smallest_size_that_holds_it(count, size):
    assert choose_bucket([1, 4, 6], count) == size
