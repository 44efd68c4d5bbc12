"""Building and inspecting through real child processes, in which a fake stands in for TensorRT."""

from dataclasses import replace

import pytest
from onnx import TensorProto, helper
from tests_support import ROOT

from edgekiln.export.engines import tensorrt, worker_process
from edgekiln.export.engines.cache import EngineCache
from edgekiln.export.engines.options import BatchProfile, BuildOptions
from edgekiln.export.engines.tensorrt import build_engine, inspect_engine
from edgekiln.runtime.backends.cuda_words import OLD_DRIVER
from edgekiln.runtime.cuda.driver import DeviceProperties
from edgekiln.runtime.errors import BuildError, DeviceError, EnvironmentProblem, ResourceError
from edgekiln.runtime.spec import Precision

ORIN = DeviceProperties("Orin", (8, 7), 8, 8 << 30, integrated=True, can_map_host_memory=True)
OPTIONS = BuildOptions("tensorrt", Precision.FP16, BatchProfile(1, 8, 32))
# What the child imports as tensorrt; its driver's free memory is told too.
MODULE = """
import os
from fake_tensorrt_builder import *
from fake_tensorrt_builder import __version__
from edgekiln.export.engines import build_worker
from edgekiln.runtime.cuda import driver
def free_memory():
    if os.environ["FREE_BYTES"] == "none":
        raise driver.cuda_failure("cuMemGetInfo", "CUDA_ERROR_OUT_OF_MEMORY", "error 2", out_of_memory=True)
    return int(os.environ["FREE_BYTES"])
driver.free_memory = free_memory
"""


def make_model():
    """A graph that may be shown to a library; the fake does not look at it."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """TensorRT and an Orin, as far as builder and children see; takes what shall fail."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "tensorrt.py").write_text(MODULE)
    monkeypatch.syspath_prepend(ROOT / "tests")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(tensorrt, "require_device", lambda: ORIN)
    monkeypatch.setattr(tensorrt, "library_version", lambda flavour: "10.16.1.11")
    monkeypatch.setenv("FREE_BYTES", str(4 << 30))

    def fail(*what):
        monkeypatch.setenv("FAKE_TENSORRT_FAULTS", " ".join(what))

    fail()
    return fail


def build(cache, **more):
    return build_engine(make_model(), OPTIONS, cache, **more)


@pytest.mark.parametrize(
    ("fault", "kind", "hint"),
    [
        ("Builder", DeviceError, OLD_DRIVER),
        ("OnnxParser", DeviceError, OLD_DRIVER),
        (
            "Builder:type-error",
            EnvironmentProblem,
            "`edgekiln doctor` tells whether driver and library fit",
        ),
    ],
)
def test_library_that_does_not_start_names_the_driver(fake, cache, fault, kind, hint):
    fake(fault)
    with pytest.raises(EnvironmentProblem, match=r"tensorrt 10\.16\.1\.11 does not start") as caught:
        build(cache)
    assert not isinstance(caught.value, BuildError)  # no other graph would do: nothing falls back
    assert type(caught.value) is kind
    assert caught.value.hint.startswith(hint)
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("Runtime", "does not start: createInfer: Error Code 6"),
        ("Runtime:crash", "the process that inspects was ended by SIGSEGV"),
        ("engine", "the library does not load its own engine: the plan is of another device"),
    ],
)
def test_inspection_that_fails_costs_the_engine_nothing_and_is_not_kept(fake, cache, fault, note):
    fake(fault)
    built = build(cache)
    failed = inspect_engine(built, cache)
    assert failed.layers is None
    assert note in failed.note
    fake()
    again = build(cache)
    assert again.cached
    found = inspect_engine(again, cache)
    assert (found.note, '"Layers"' in found.layers) == (None, True)


def test_knobs_reach_the_library_and_no_others_are_touched(fake, cache):
    told = dict(build(cache).log)["INFO"]
    for name in ("max_aux_streams", "avg_timing_iterations", "tiling_optimization_level", "SPARSE_WEIGHTS"):
        assert name not in told
    options = replace(OPTIONS, max_aux_streams=0, avg_timing_iterations=4, sparsity=True, tiling="fast")
    built = build_engine(make_model(), options, cache)
    told = " ".join(text for _, text in built.log)
    for setting in (
        "'max_aux_streams': 0",
        "'avg_timing_iterations': 4",
        "'tiling_optimization_level': 'FAST'",
    ):
        assert setting in told
    assert "SPARSE_WEIGHTS" in told
    assert built.notes[-1] == "(Sparsity) Found 2 layer(s) eligible, chose 1."
    assert built.to_dict()["options"]["tiling"] == "fast"
    fake("dense")
    dense = build_engine(make_model(), replace(options, tiling="full"), cache)
    assert dense.notes[-1] == "sparsity: the library told of no weights that are 2:4 sparse"


@pytest.mark.parametrize(
    ("changes", "fault", "words", "remedy"),
    [
        ({"tiling": "full"}, "tiling", "has no tiling", "TensorRT 10.13 or newer"),
        (
            {"hardware_compatibility": "same-compute-capability"},
            "level",
            "has no hardware compatibility of that level",
            "TensorRT 10.13 or newer",
        ),
    ],
)
def test_an_option_that_a_version_lacks_names_the_version(fake, cache, changes, fault, words, remedy):
    fake(fault)
    with pytest.raises(BuildError, match=rf"tensorrt 10\.16\.1\.11 {words}") as caught:
        build_engine(make_model(), replace(OPTIONS, **changes), cache)
    assert remedy in caught.value.hint
    assert cache.entries() == []


def test_inspection_is_kept_with_its_engine(fake, cache):
    built = build(cache)
    found = inspect_engine(built, cache)
    fake("Runtime:crash")
    again = build(cache)
    assert again.cached  # the entry is whole with its new file
    assert inspect_engine(again, cache) == found
    assert len(cache.entries()) == 1


def test_inspection_without_a_context_is_not_kept(fake, cache):
    fake("context")
    built = build(cache)
    weak = inspect_engine(built, cache)
    assert "N/A due to dynamic shapes" in weak.layers
    assert "no execution context could be made" in weak.note
    fake()
    strong = inspect_engine(built, cache)
    assert (strong.note, "N/A due to dynamic shapes" in strong.layers) == (None, False)


def test_engine_that_was_pruned_meanwhile_is_inspected_and_nothing_kept(fake, cache):
    built = build(cache)
    cache.prune()
    assert inspect_engine(built, cache).layers is not None
    assert cache.entries() == []


def test_full_temporary_folder_is_a_note(fake, cache, monkeypatch, tmp_path):
    built = build(cache)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    found = inspect_engine(built, cache)
    assert found.layers is None
    assert "No such file or directory" in found.note


def test_little_memory_is_told_by_a_build_and_by_its_failure(fake, cache, monkeypatch):
    monkeypatch.setattr(
        tensorrt, "require_device", lambda: DeviceProperties("A card", (8, 6), 8, 1 << 30, False, False)
    )
    monkeypatch.setenv("FREE_BYTES", str(256 << 20))
    told = []
    built = build(cache, tell=told.append)
    assert told == list(built.notes)
    assert told[0].startswith("Only 205 MiB of memory are left for the kernels' workspace")
    fake("build")
    with pytest.raises(BuildError, match=r"\(memory, node /a/Conv\.?\): .* Only 205 MiB of memory are left"):
        build_engine(make_model(), BuildOptions("tensorrt", Precision.FP32), cache)


def test_memory_that_is_gone_before_the_build_is_a_resource_error(fake, cache, monkeypatch):
    monkeypatch.setenv("FREE_BYTES", "none")
    with pytest.raises(ResourceError, match=r"cuMemGetInfo failed: .*free memory of the device") as caught:
        build(cache)
    assert caught.value.hint


@pytest.mark.parametrize("left", ["", '{"engine": tr', "[\udcff"])
def test_a_result_that_ends_in_the_middle_is_the_end_of_its_process(tmp_path, monkeypatch, left):
    def end(module, folder, advance):
        (folder / worker_process.RESULT_NAME).write_bytes(left.encode("utf-8", "surrogateescape"))
        return 1, "OSError: [Errno 28] No space left on device"

    monkeypatch.setattr(worker_process, "_watch", end)
    with pytest.raises(EnvironmentProblem, match=r"exit code 1: OSError: .*No space left"):
        worker_process.run_worker(b"", OPTIONS, ORIN, tmp_path, None, lambda *_: None)
    found = worker_process.inspect_in_child(b"", "tensorrt")
    assert found.layers is None
    assert found.note.startswith("the process that inspects ended with exit code 1: OSError: ")


def test_timings_and_engines_of_one_power_mode_are_not_used_in_another(monkeypatch, tmp_path):
    def files(mode):
        monkeypatch.setattr(tensorrt, "read_power_mode", lambda: mode)
        monkeypatch.setattr(tensorrt, "library_version", lambda flavour: "10.3.0")
        identity = tensorrt._identity(OPTIONS, "10.3.0", ORIN)
        return tensorrt._timing_cache(OPTIONS, ORIN, tmp_path), str(identity["gpu"])

    maxn, low, desktop = files(("0", "MAXN")), files(("2", "15W")), files(None)
    assert maxn[0].endswith("timing-Orin-mode-0-MAXN-10-3-0.cache")
    assert low[0].endswith("timing-Orin-mode-2-15W-10-3-0.cache")
    assert desktop[0].endswith("timing-Orin-10-3-0.cache")
    assert len({maxn[1], low[1], desktop[1]}) == 3
