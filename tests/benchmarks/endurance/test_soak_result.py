"""What a soak calls a problem."""

import pytest

from edgekiln.benchmarks.endurance.soak_result import Minute, SoakResult


def minute(number, *, p99=2.0, rss=100.0, descriptors=9):
    return Minute(number, 100, 50, 1.0, p99, rss, descriptors)


def result(*minutes, **changes):
    return SoakResult("fp32", minutes, **changes)


def test_minutes_alike_are_no_problem():
    assert result(*(minute(i) for i in range(1, 6))).problems == []


@pytest.mark.parametrize(("growth", "fails"), [(10.0, False), (10.1, True), (-50.0, False)])
def test_memory_may_grow_by_ten_megabytes_after_the_warm_up(growth, fails):
    problems = result(minute(1), minute(2), minute(3, rss=100.0 + growth)).problems
    assert problems == (["memory grew by 10.1 MB after the warm-up"] if fails else [])


def test_one_more_descriptor_is_a_problem():
    [problem] = result(minute(1), minute(2), minute(3, descriptors=10)).problems
    assert problem == "1 more file descriptors are open than after the warm-up"


@pytest.mark.parametrize(("last", "fails"), [(2.4, False), (2.41, True), (0.5, False)])
def test_p99_may_drift_by_a_fifth_from_the_first_minute_after_the_warm_up(last, fails):
    problems = result(minute(1, p99=90.0), minute(2), minute(3, p99=last)).problems
    assert problems == (["p99 drifted by +21%"] if fails else [])


def test_p99_is_compared_by_thirds_so_that_one_bad_minute_decides_nothing():
    p99 = [9, 2, 2, 2, 9, 2, 2, 2, 9, 2]
    assert result(*(minute(i, p99=value) for i, value in enumerate(p99, 1))).problems == []
    drifting = [9, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert result(*(minute(i, p99=value) for i, value in enumerate(drifting, 1))).p99_drift == 1.0


def test_a_minute_without_answers_is_a_problem():
    found = result(minute(1), minute(2, p99=0.0), minute(3)).problems
    assert found == ["no good picture was answered by predict in minute 2"]


def test_faults_are_a_problem():
    found = result(minute(1), minute(2), minute(3), faults=("x", "y"), fault_count=7).problems
    assert found == ["7 calls went wrong, the first: x"]
