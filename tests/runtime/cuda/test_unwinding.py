"""Closing what was opened in steps."""

import pytest

from edgekiln.runtime.cuda.unwinding import close_all, closed_at_last, closed_on_failure
from edgekiln.runtime.errors import DeviceError


@pytest.fixture
def closing():
    """``closing(name)`` closes well, ``closing(name, True)`` fails; ``closing.done`` has the order."""

    def make(name, fails=False):
        def close():
            make.done.append(name)
            if fails:
                raise DeviceError(f"{name} failed")

        return close

    make.done = []
    return make


def test_all_are_closed_last_first_and_the_first_error_is_raised(closing, caplog):
    with pytest.raises(DeviceError, match="third failed"):
        close_all([closing("first", True), closing("second"), closing("third", True)])
    assert closing.done == ["third", "second", "first"]
    assert [record.getMessage() for record in caplog.records] == [
        "first failed; while closing after: third failed"
    ]


def test_after_a_failure_closing_only_logs(closing, caplog):
    close_all([closing("first", True)], ValueError("before"))
    assert "first failed; while closing after: before" in caplog.text


def test_closed_at_last_closes_after_success_and_after_failure(closing, caplog):
    with closed_at_last(closing("one")):
        pass
    with pytest.raises(DeviceError, match="two failed"), closed_at_last(closing("two", True)):
        pass
    with pytest.raises(KeyError), closed_at_last(closing("three", True)):
        raise KeyError
    assert closing.done == ["one", "two", "three"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["three"]


def test_closed_on_failure_closes_nothing_after_success(closing, caplog):
    def open_both(fails):
        with closed_on_failure() as closes:
            closes.extend([closing("one"), closing("two", True)])
            if fails:
                raise KeyError

    open_both(False)
    assert closing.done == []
    with pytest.raises(KeyError):
        open_both(True)
    assert closing.done == ["two", "one"]
    assert "two failed" in caplog.text
