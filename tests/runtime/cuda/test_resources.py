"""What is opened in steps is closed in reverse, whatever fails, and the first error is told; on the fake driver."""

import gc
import logging

import pytest

from edgekiln.runtime.errors import DeviceError


def record(cuda, stream):
    memory, pinned = cuda.allocate_device(8), cuda.allocate_pinned(8)
    return lambda: cuda.copy_to_device(memory, pinned, 8, stream)


@pytest.mark.parametrize(
    ("failing", "told", "logged"),
    [
        ({"cuStreamEndCapture"}, "cuStreamEndCapture", []),
        ({"cuGraphInstantiateWithFlags"}, "cuGraphInstantiateWithFlags", []),
        ({"cuGraphUpload"}, "cuGraphUpload", []),
        ({"cuGraphDestroy"}, "cuGraphDestroy", []),
        (
            {"cuGraphInstantiateWithFlags", "cuGraphDestroy"},
            "cuGraphInstantiateWithFlags",
            ["cuGraphDestroy"],
        ),
        ({"cuGraphUpload", "cuGraphExecDestroy"}, "cuGraphUpload", ["cuGraphExecDestroy"]),
        ({"cuGraphDestroy", "cuGraphExecDestroy"}, "cuGraphDestroy", ["cuGraphExecDestroy"]),
    ],
)
def test_a_graph_that_fails_half_way_leaves_nothing(libcuda, watched_driver, caplog, failing, told, logged):
    stream = libcuda.create_stream()
    enqueue = record(libcuda, stream)
    before = watched_driver.left_over()
    watched_driver.failing |= failing
    with pytest.raises(DeviceError, match=f"^{told} failed"), caplog.at_level(logging.WARNING):
        libcuda.capture(stream, enqueue)
    after = watched_driver.left_over()
    for kind, make in (("graph", "cuStreamEndCapture"), ("executable", "cuGraphInstantiateWithFlags")):
        assert after.get(kind, 0) == before.get(kind, 0) + (make in failing)  # what failed made nothing
    assert [line.message.split()[0] for line in caplog.records] == logged


def test_a_capture_that_cannot_be_given_up_tells_why_it_was_given_up(libcuda, watched_driver, caplog):
    stream = libcuda.create_stream()

    def enqueue():
        watched_driver.failing.add("cuGraphDestroy")
        raise ValueError("the engine said no")

    with pytest.raises(ValueError, match="the engine said no"):
        libcuda.capture(stream, enqueue)
    assert "cuGraphDestroy failed" in caplog.text
    watched_driver.failing.clear()
    stream.synchronize()


def test_a_stream_is_destroyed_where_its_event_is_not(libcuda, watched_driver):
    stream = libcuda.create_stream()
    watched_driver.failing.add("cuEventDestroy_v2")
    with pytest.raises(DeviceError, match="cuEventDestroy_v2 failed"):
        stream.close()
    assert watched_driver.left_over() == {}
    assert not libcuda.live


def test_an_event_is_destroyed_where_its_stream_is_not(libcuda, watched_driver, caplog):
    stream = libcuda.create_stream()
    watched_driver.failing |= {"cuStreamDestroy_v2", "cuEventDestroy_v2"}
    with pytest.raises(DeviceError, match="cuStreamDestroy_v2 failed"):
        stream.close()
    assert "cuEventDestroy_v2 failed" in caplog.text
    assert watched_driver.left_over() == {}


def test_a_stream_that_is_not_made_leaves_no_event(libcuda, watched_driver, caplog):
    watched_driver.failing |= {"cuStreamCreate", "cuEventDestroy_v2"}
    with pytest.raises(DeviceError, match="cuStreamCreate failed"):
        libcuda.create_stream()
    assert "cuEventDestroy_v2" in watched_driver.calls
    assert "cuEventDestroy_v2 failed" in caplog.text


def test_a_context_that_cannot_be_left_does_not_hide_what_failed_in_it(libcuda, watched_driver, caplog):
    watched_driver.failing.add("cuCtxPopCurrent_v2")
    with pytest.raises(KeyError, match="of the caller"), libcuda.activate():
        raise KeyError("of the caller")
    assert "cuCtxPopCurrent_v2 failed" in caplog.text
    with pytest.raises(DeviceError, match="cuCtxPopCurrent_v2 failed"), libcuda.activate():
        pass


def test_closing_goes_through_all_and_tells_the_first_failure(libcuda, watched_driver, caplog):
    libcuda.create_stream()
    libcuda.allocate_pinned(8)
    watched_driver.failing |= {"cuMemFreeHost", "cuStreamDestroy_v2"}
    with pytest.raises(DeviceError, match="cuMemFreeHost failed"):
        libcuda.close()
    assert "cuStreamDestroy_v2 failed" in caplog.text
    assert watched_driver.left_over() == {}
    libcuda.close()


@pytest.mark.parametrize("fails", [False, True])
def test_the_garbage_collector_is_held_off_during_a_capture(libcuda, fails):
    stream, seen = libcuda.create_stream(), []

    def enqueue():
        seen.append(gc.isenabled())
        if fails:
            raise ValueError("the engine said no")

    assert gc.isenabled()
    if fails:
        with pytest.raises(ValueError, match="the engine said no"):
            libcuda.capture(stream, enqueue)
    else:
        libcuda.capture(stream, enqueue)
    assert seen == [False]
    assert gc.isenabled()


def test_the_collector_is_on_again_where_a_capture_does_not_begin(libcuda, watched_driver):
    stream = libcuda.create_stream()
    watched_driver.failing.add("cuStreamBeginCapture_v2")
    with pytest.raises(DeviceError, match="cuStreamBeginCapture_v2 failed"):
        libcuda.capture(stream, lambda: None)
    assert gc.isenabled()
