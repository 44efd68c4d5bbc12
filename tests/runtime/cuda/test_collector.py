"""Holding Python's garbage collector off."""

import gc
import threading

from edgekiln.runtime.cuda.collector import collector_held_off


def test_no_cycle_is_collected_inside_and_nesting_counts():
    with collector_held_off:
        with collector_held_off:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_held_off:
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_is_off_until_the_last_thread_leaves():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with collector_held_off:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    with collector_held_off:
        thread.start()
        assert inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
