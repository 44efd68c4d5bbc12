"""Which batch sizes are prepared, by which engine, and which of them runs a batch."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from edgekiln.runtime.backends.tensorrt_buckets import (
    ProfileUse,
    choose_bucket,
    list_profiles,
    plan_buckets,
    tell_profiles,
)


@dataclass(frozen=True)
class Range:
    min_batch: int
    max_batch: int
    opt_batch: int = 1


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [((1, 1), [1]), ((4, 4), [4]), ((1, 6), [1, 2, 4, 6]), ((3, 6), [3, 4, 6]), ((2, 3), [2, 3])],
)
def test_a_range_gives_its_powers_of_two_and_its_ends(batch, sizes):
    assert sorted(plan_buckets([Range(*batch)])) == sizes


def test_the_narrower_range_serves_a_size_that_both_have():
    wide, narrow = Range(1, 8, 4), Range(4, 4, 4)
    for engines in ([wide, narrow], [narrow, wide]):
        assert plan_buckets(engines) == {1: wide, 2: wide, 4: narrow, 8: wide}


def test_the_profile_with_the_nearest_opt_serves_a_size_that_several_have():
    one, few, many = Range(1, 1, 1), Range(1, 8, 4), Range(2, 32, 16)
    for profiles in ([one, few, many], [many, few, one]):
        assert plan_buckets(profiles) == {1: one, 2: few, 4: few, 8: few, 16: many, 32: many}


def test_sizes_that_no_profile_holds_are_filled_up_to_the_next_bucket():
    assert plan_buckets([low := Range(1, 1), high := Range(6, 8, 8)]) == {1: low, 6: high, 8: high}
    assert choose_bucket([1, 6, 8], 2) == 6


def test_profiles_are_told_with_their_memory_where_that_is_known():
    profiles = [{"min": 1, "opt": 1, "max": 1, "workspace_bytes": 3 << 19}, {"min": 2, "opt": 16, "max": 32}]
    assert tell_profiles(profiles) == "1 (1.5 MiB); 2 to 32, best at 16"
    assert list_profiles(object()) == []
    use = SimpleNamespace(profiles=(ProfileUse(1, 1, 2, (1, 2), 512),))
    assert list_profiles(use) == [{"min": 1, "opt": 1, "max": 2, "buckets": [1, 2], "workspace_bytes": 512}]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 4), (4, 4), (5, 6), (6, 6)])
def test_a_batch_takes_the_smallest_size_that_holds_it(count, size):
    assert choose_bucket([1, 4, 6], count) == size
