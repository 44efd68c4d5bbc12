"""How many slots an engine is opened with for so many callers; rates themselves are measured in the bench's tests."""

from edgekiln.benchmarks.timing.contender import engine_contender
from edgekiln.benchmarks.timing.throughput import _Row, _slotted


class Recorder:
    """Stands for a worker process: keeps what it is asked."""

    def __init__(self):
        self.asked = []

    def open(self, config):
        self.asked.append(config)

    def rate(self, seconds, *, batch, callers):
        self.asked.append((batch, callers))
        return 100.0 * callers, 10.0


def slotted(backend):
    contender = engine_contender("x", ["x.engine"], backend, None)
    return _slotted(contender, {"threads": None})


def test_on_a_gpu_each_caller_has_a_stream():
    worker, row = Recorder(), _Row({"batch": 1, "callers": 4})
    for _ in range(3):
        row.time(worker, 0.1, slotted("tensorrt"))
    assert worker.asked == [{"threads": None, "slots": 4}, (1, 4)] * 3
    assert row.to_dict()["streams"] == 4
    assert row.to_dict()["p50_ms"] == 10


def test_on_a_cpu_and_with_one_caller_the_engine_stays_as_it_is():
    for backend, callers in (("onnxruntime-cpu", 4), ("openvino", 4), ("tensorrt-rtx", 1)):
        worker, row = Recorder(), _Row({"batch": 2, "callers": callers})
        row.time(worker, 0.1, slotted(backend))
        assert worker.asked == [(2, callers)]
        assert "streams" not in row.to_dict()
