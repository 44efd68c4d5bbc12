"""Layers and their times as onnxruntime and OpenVINO tell of them, run here: names, precisions, MACs, sums."""

from statistics import median

import onnx
import pytest
from export_support import export_network, make_calibration, make_residual

from edgekiln.export.audits.layers.profiling import ProfiledEngine, profile_engine
from edgekiln.export.audits.macs import count_macs
from edgekiln.export.precision.int8_cpu import quantize_for_cpu
from edgekiln.runtime.errors import EngineError, UsageError

BACKENDS = ["onnxruntime-cpu", "openvino"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """FP32 and INT8 files of one residual network, wide enough that its layers take longer than the profiler."""
    folder = tmp_path_factory.mktemp("layers")
    source = export_network(make_residual(64), folder / "fp32.onnx", size=64)
    quantize_for_cpu(source, folder / "int8.onnx", make_calibration(size=64), "minmax")
    return {name: (folder / f"{name}.onnx").read_bytes() for name in ("fp32", "int8")}


@pytest.fixture(scope="module")
def profiles(graphs):
    found = {}
    for backend in BACKENDS:
        if backend == "openvino":
            pytest.importorskip("importlib.metadata").version("openvino")
        for name, data in graphs.items():
            engine = ProfiledEngine(name, backend, data, threads=1)
            found[backend, name] = profile_engine(engine, timed=True, machine="this one")
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_every_product_has_one_layer_with_its_macs_and_precision(profiles, graphs, backend, name):
    profile, counts = profiles[backend, name], count_macs(onnx.load_from_string(graphs[name]))
    products = {row.layer.origins: row for row in profile.rows if row.macs}
    found = {node: row.macs for nodes, row in products.items() for node in nodes if node in counts}
    assert found == counts
    precisions = [row.precision for row in products.values()]
    if name == "fp32":
        assert set(precisions) == {"fp32"}
    elif backend == "openvino":  # it folds the pixel's scale into floats before the first product
        assert precisions == ["fp32", "int8", "int8", "int8"]
    else:
        assert set(precisions) == {"int8"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_fused_is_told_by_onnx_nodes(profiles, graphs, backend):
    kinds = {node.name: node.op_type for node in onnx.load_from_string(graphs["fp32"]).graph.node}
    fused = [
        [kinds[node] for node in row.layer.origins] for row in profiles[backend, "fp32"].rows if row.macs
    ]
    assert sorted(fused, key=len) == [["Gemm"], ["Conv", "Relu"], ["Conv", "Relu"], ["Conv", "Add", "Relu"]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_sum_up_to_the_call_that_the_profiler_slowed(profiles, backend):
    """No sum can be longer than the calls that hold it; how much less it is, is the library's work between layers.

    The least share is low because the machine may be busy with other tests between two layers.
    """
    profile = profiles[backend, "fp32"]
    timing, total = profile.timing, profile.sum_ms
    assert timing.calls >= 10
    assert 0.3 * timing.profiled_ms < total <= timing.profiled_ms
    slowest = profile.slowest_first()
    assert [row.ms for row in slowest] == sorted((row.ms for row in profile.rows), reverse=True)
    assert slowest[0].macs  # two convolutions of 64 channels do nearly all the work
    assert slowest[0].ms > median(row.ms for row in profile.rows)


def test_layers_without_times_are_the_same_ones(profiles, graphs):
    for backend in BACKENDS:
        plain = profile_engine(
            ProfiledEngine("int8", backend, graphs["int8"], threads=1), timed=False, machine=""
        )
        timed = profiles[backend, "int8"]
        assert plain.timing is None
        assert plain.sum_ms is None
        assert [row.layer.origins for row in plain.rows] == [row.layer.origins for row in timed.rows]


def test_what_a_library_refuses_is_an_error_and_not_the_end(graphs):
    for backend in BACKENDS:
        with pytest.raises(EngineError):
            profile_engine(ProfiledEngine("x", backend, graphs["fp32"][:-200]), timed=False, machine="")


def test_a_backend_whose_profiler_tells_launches_alone_is_refused(graphs):
    with pytest.raises(UsageError, match="knows when kernels are launched"):
        profile_engine(ProfiledEngine("x", "onnxruntime-cuda", graphs["fp32"]), timed=True, machine="")
