"""The profiler of TensorRT's API on the fake library: what is asked, in which order, and what it adds up to."""

import gc

import fake_tensorrt
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import LAYER_TIMES, FakeTensorRT, make_engine
from inspector_support import layers_of
from test_fake_tensorrt import _sum_model

from edgekiln.export.audits.layers.profile import ToldLayers, make_rows
from edgekiln.export.audits.layers.tensorrt import join_times
from edgekiln.export.engines.layer_times import time_layers
from edgekiln.runtime.backends.tensorrt_library import LibraryLog
from edgekiln.runtime.errors import EngineError

ALL = ["10.3", "11.4", "rtx"]
FIRST, LAST = 4, 53
"""Runs of the profiled context that are counted: three warm it up."""


def time(flavour, batch=(1, 4), fail_at=None):
    cuda = FakeCuda()
    library = FakeTensorRT(cuda, flavour, fail_at)
    found = time_layers(
        library.module, LibraryLog(library.module), cuda, make_engine(_sum_model(), flavour, batch)
    )
    return found, library


@pytest.mark.parametrize("flavour", ALL)
def test_medians_of_the_counted_runs_in_the_order_of_the_layers(flavour):
    found, library = time(flavour)
    middle = (FIRST + LAST) / 2
    assert found["layers"] == [(name, ms * middle) for name, ms in LAYER_TIMES]
    assert (found["calls"], found["batch"]) == (50, 4)
    assert library.calls["execute_async_v3"] == 2 * LAST
    assert found["call_ms"] >= 0 <= found["profiled_ms"]


@pytest.mark.parametrize("flavour", ALL)
def test_all_that_it_made_is_gone_while_cuda_is_active(flavour):
    _, library = time(flavour)
    gc.collect()
    assert not +library.alive
    assert library.destroyed_unprotected == []


def test_a_static_engine_is_timed_at_its_own_batch():
    found, _ = time("11.4", (2, 2))
    assert found["batch"] == 2


@pytest.mark.parametrize(
    "method", ["deserialize_cuda_engine", "create_execution_context", "report_to_profiler"]
)
def test_what_the_library_refuses_is_an_error_with_its_words(method):
    with pytest.raises(EngineError, match="told to fail"):
        time("11.4", fail_at={method: 1})


def test_times_find_their_layers_by_name_and_the_rest_is_told():
    layers = layers_of("v10_fp16")
    times = {"layers": [(layers[1].name, 0.5), ("/new/Conv", 0.25)], "batch": 8, "calls": 50, "call_ms": 1.0,
             "profiled_ms": 1.5}  # fmt: skip
    told = join_times(ToldLayers(layers, "inspector", "10.3"), times)
    rows = make_rows(told.layers, told.milliseconds, {})
    assert [row.ms for row in rows] == [None, 0.5, *[None] * (len(layers) - 2), 0.25]
    assert rows[-1].layer.origins == ("/new/Conv",)
    assert told.notes == ("1 layers are told by the profiler alone.",)
    assert (told.batch, told.timing.profiled_ms) == (8, 1.5)


def test_the_fake_is_of_the_bindings():
    assert {name for name in dir(fake_tensorrt.IProfiler) if not name.startswith("_")} == {
        "report_layer_time"
    }
