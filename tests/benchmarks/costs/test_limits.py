import contextlib
from dataclasses import replace

import numpy as np
import pytest

from edgekiln.benchmarks.costs import memory
from edgekiln.benchmarks.costs.energy import contender as energy_of_contender
from edgekiln.benchmarks.costs.energy import sources
from edgekiln.benchmarks.costs.energy.meters import CounterMeter, OpenedMeter
from edgekiln.benchmarks.costs.energy.per_image import EnergyPerImage
from edgekiln.benchmarks.costs.limits import add_limits
from edgekiln.benchmarks.costs.memory import MemoryUse
from edgekiln.benchmarks.timing import roofline, worker_process
from edgekiln.benchmarks.timing.contender import Contender
from edgekiln.benchmarks.timing.roofline import Ceilings
from edgekiln.runtime.errors import EngineError

COSTS = {"macs": 50_000_000, "weight_bytes": 10, "input_bytes": 0, "output_bytes": 0}


def contender(name):
    return Contender(name, "module:open", {"path": name}, [{}], np.zeros((1, 3), np.float32))


def timed(name, threads):
    device = "cuda:0" if name == "gpu" else "cpu"
    return {"name": name, "config": {"threads": threads}, "device": device, "p50_ms": 4.0}


@pytest.fixture
def measured(monkeypatch):
    """What was asked of the machine: thread counts and memory requests."""
    asked = []

    def ceilings(threads):
        asked.append(threads)
        return Ceilings(fp32_gflops=100.0 * threads, int8_gops=None, copy_gb_per_s=10, threads=threads)

    def use(factory, arguments, frames_file, *, on_gpu=False):
        if arguments["path"] == "broken":
            raise EngineError("it broke")
        asked.append((arguments, on_gpu))
        return MemoryUse(80.0, 30.0, None)

    monkeypatch.setattr(roofline, "measure_ceilings", ceilings)
    monkeypatch.setattr(roofline, "measure_gpu_ceilings", lambda: None)
    monkeypatch.setattr(memory, "measure_memory", use)
    monkeypatch.setattr(
        sources, "open_meter", lambda device, *, gpu_uuid: OpenedMeter(None, f"no meter of {device}")
    )
    return asked


def test_each_engine_gets_the_floor_of_its_threads(measured, tmp_path):
    values = {"measurements": [timed("baseline", 1), timed("a", 2), timed("int8", 2), timed("gpu", None)]}
    products = {
        "baseline": (COSTS, "fp32"),
        "a": (COSTS, "fp32"),
        "int8": (COSTS, "int8"),
        "gpu": (COSTS, "fp16"),
    }
    add_limits(values, [contender(m["name"]) for m in values["measurements"]], products, tmp_path)
    assert [m["floor_ms"] for m in values["measurements"]] == [1.0, 0.5, None, None]
    assert [m["share_of_floor"] for m in values["measurements"]] == [0.25, 0.125, None, None]
    assert [m["peak_rss_mb"] for m in values["measurements"]] == [80.0] * 4
    assert [entry["threads"] for entry in values["ceilings"]] == [1, 2]
    assert values["limits_problems"] == []
    assert [entry for entry in measured if isinstance(entry, int)] == [1, 2]
    assert ({"path": "gpu", "threads": None}, True) in measured


def test_threads_left_to_a_library_are_all_cores_and_no_gpu(measured, monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    values = {"measurements": [timed("onnxruntime:a", None)]}
    add_limits(values, [contender("onnxruntime:a"), contender("left out")], {}, tmp_path)
    assert measured == [3, ({"path": "onnxruntime:a", "threads": None}, False)]


def test_energy_that_cannot_be_read_is_null_with_its_reason(measured, tmp_path):
    values = {"measurements": [timed("baseline", 1), timed("gpu", None)]}
    add_limits(values, [contender("baseline"), contender("gpu")], {}, tmp_path)
    found = [(m["energy"], m["energy_reason"]) for m in values["measurements"]]
    assert found == [(None, "no meter of cpu"), (None, "no meter of cuda")]


def test_energy_of_each_contender_at_its_best_configuration(measured, monkeypatch, tmp_path):
    looked, driven = [], []

    def look(device, *, gpu_uuid):
        looked.append(device)
        return OpenedMeter(CounterMeter([], "made up"), "")

    def measure(factory, arguments, frames_file, *, device):
        driven.append((arguments["path"], arguments["threads"], device))
        if arguments["path"] == "b":
            raise EngineError("the sensor went away")
        return EnergyPerImage(0.04, 5.0, 9.0, 200, 2.0, 40, "made up")

    monkeypatch.setattr(sources, "open_meter", look)
    monkeypatch.setattr(energy_of_contender, "measure_contender", measure)
    values = {"measurements": [timed("a", 2), timed("b", 1), timed("gpu", None)]}
    add_limits(values, [contender(m["name"]) for m in values["measurements"]], {}, tmp_path)
    assert looked == ["cpu", "cuda"]
    assert driven == [("a", 2, "cpu"), ("b", 1, "cpu"), ("gpu", None, "cuda")]
    assert values["measurements"][0]["energy"]["mj_per_image"] == pytest.approx(40)
    assert values["measurements"][0]["energy_reason"] is None
    assert values["measurements"][1]["energy"] is None
    assert values["measurements"][1]["energy_reason"] == "the sensor went away"
    assert values["limits_problems"] == []


def test_phases_of_an_engine_with_slots_are_medians_and_others_have_none(measured, monkeypatch, tmp_path):
    told = [{"device_ms": ms, "copy_in_ms": None} for ms in (3.0, 1.0, 2.0)]

    class Worker:
        def open(self, config):
            assert config == {"threads": None}

        def phases(self, calls):
            return told

    monkeypatch.setattr(worker_process, "open_worker", lambda inputs, of: contextlib.nullcontext(Worker()))
    values = {"measurements": [timed("baseline", None), timed("trt", None)]}
    trt = replace(contender("trt"), arguments={"path": "trt", "backend": "tensorrt"})
    add_limits(values, [contender("baseline"), trt], {}, tmp_path)
    found = [m["phases"] for m in values["measurements"]]
    assert found == [None, {"device_ms": 2.0, "copy_in_ms": None}]


def test_finished_timings_are_kept_where_limits_cannot_be_measured(measured, monkeypatch, tmp_path):
    def fail(threads):
        raise EngineError("no ceilings")

    monkeypatch.setattr(roofline, "measure_ceilings", fail)
    values = {"measurements": [timed("broken", 1)]}
    add_limits(values, [contender("broken")], {"broken": (COSTS, "fp32")}, tmp_path)
    assert values["measurements"][0]["p50_ms"] == 4.0
    assert values["measurements"][0]["floor_ms"] is values["measurements"][0]["peak_rss_mb"] is None
    assert values["limits_problems"] == ["no ceilings", "broken: it broke"]
