"""What the runtime costs: the overhead is what a call takes besides the library's own call, and no clock's."""

import numpy as np
import pytest

from edgekiln.benchmarks.costs import runtime_cost
from edgekiln.runtime.backends import open_session


class Clock:
    """Nanoseconds that pass only where ``sleep`` is called."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1  # reading it takes one
        return self.now

    def sleep(self, ns):
        self.now += ns


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(runtime_cost, "perf_counter_ns", clock)
    monkeypatch.setattr(runtime_cost, "_CALLS", 5)
    return clock


class Library:
    """Answers after ever other times, as a real network does."""

    def __init__(self, clock):
        self.clock, self.calls = clock, 0

    def infer(self):
        self.calls += 1
        self.clock.sleep(1_000_000 * self.calls)


def test_the_overhead_is_what_comes_before_and_behind_the_librarys_call(clock):
    library = Library(clock)
    timed = runtime_cost._Timed(library, "infer")

    def call(frame):
        clock.sleep(7_000)
        timed.infer()
        clock.sleep(5_000)

    told = runtime_cost._overhead(call, timed.infer, timed, [np.zeros(1)])
    assert told == "12.0 (quartiles 12.0 to 12.0, n = 5)"
    assert library.calls == 2 * 5  # real calls, each beside a bare one


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_the_clock_stands_around_the_librarys_own_call(backend, tiny_run):
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    session = open_session(backend, (tiny_run[2].bundle / "fp32.onnx").read_bytes(), threads=1)
    frames = np.random.default_rng(0).integers(0, 256, (1, *session.frame_shape, 3), np.uint8)
    wanted = session.run(frames)
    timed = runtime_cost._time_the_library(session, frames)
    for call in (lambda: session.run(frames), session.bare_call(frames)):
        timed.ns = 0
        call()
        assert timed.ns > 0
    np.testing.assert_array_equal(session.run(frames), wanted)
