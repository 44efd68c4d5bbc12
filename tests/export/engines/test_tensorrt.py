import hashlib
import importlib.util
import json
import os
import sys
import time

import numpy as np
import onnx
import pytest
from export_support import FAMILIES, FAMILY_SIZE, export_residual, make_calibration

from edgekiln.export.audits.engine_layers.rtx_plan import parse_rtx_plan
from edgekiln.export.audits.macs import count_macs
from edgekiln.export.audits.tensorrt import audit_declared, audit_rtx_plan
from edgekiln.export.engines import tensorrt, worker_process
from edgekiln.export.engines.cache import EngineCache
from edgekiln.export.engines.options import BatchProfile, BuildOptions
from edgekiln.export.engines.tensorrt import build_engine, inspect_engine, library_version
from edgekiln.export.precision.fp16 import convert_to_bf16, convert_to_fp16
from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
from edgekiln.export.precision.simulation import simulate
from edgekiln.runtime.backends.engine_header import read_engine_header
from edgekiln.runtime.cuda.driver import DeviceProperties, probe_driver
from edgekiln.runtime.errors import (
    BuildError,
    DeviceError,
    EngineError,
    EnvironmentProblem,
    MissingExtraError,
    PrecisionError,
    ResourceError,
)
from edgekiln.runtime.spec import Precision

rtx = pytest.importorskip("tensorrt_rtx", reason="builds real TensorRT-RTX engines; needs no GPU")
pytest.importorskip("modelopt", reason="converts with nvidia-modelopt")

DEFAULT_CAPABILITIES = (80, 86, 89, 120, 121)  # all that TensorRT-RTX 1.7 builds for but Turing
DYNAMIC = BatchProfile(1, 4, 8)


def options_for(precision, batch=DYNAMIC, **more):
    return BuildOptions("tensorrt-rtx", Precision(precision), batch, **more)


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Bytes of the residual network in each precision."""
    folder = tmp_path_factory.mktemp("models")
    source = export_residual(folder / "fp32.onnx")
    convert_to_fp16(source, folder / "fp16.onnx", make_calibration())
    convert_to_bf16(source, folder / "bf16.onnx", make_calibration())
    quantize_for_tensorrt(source, folder / "int8.onnx", make_calibration())
    return {name: (folder / f"{name}.onnx").read_bytes() for name in ("fp32", "fp16", "bf16", "int8")}


# -- families of networks


# For each family the least share of its MACs that INT8 must reach: all but the products of one row per picture
# (heads, squeeze and excitation, the first linear layer of the tiny CNN), which ModelOpt leaves in FP16.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "int8_share"),
    [
        ("tiny-cnn", 0.83),
        ("resnet18", 0.999),
        ("mobilenet_v3_small", 0.89),
        ("efficientnet_lite0", 0.999),
        ("vit_tiny", 0.98),  # attention stays in FP16
    ],
    ids=FAMILIES,
)
def test_family_is_exported_converted_and_built(tmp_path, cache, converted, family, int8_share):
    made = converted(family)
    files = {"fp32": made.fp32, "fp16": tmp_path / "fp16.onnx", "int8": made.int8}
    calibration = make_calibration(32, FAMILY_SIZE)
    fp16, int8 = convert_to_fp16(files["fp32"], files["fp16"], calibration), made.report
    assert (fp16.kept_fp32, int8.rest, int8.raised_scales) == ((), "fp16", 0)
    reference = simulate(files["fp32"].read_bytes(), calibration.frames)
    # FP16 rounds to 11 bits in each of up to 50 layers: 50 * 2**-11. INT8 of untrained networks is far from exact.
    for name, tolerance in (("fp16", 0.025), ("int8", 0.5)):
        got = simulate(files[name].read_bytes(), calibration.frames)
        assert np.abs(got - reference).max() < tolerance * np.ptp(reference)
    for name, share in (("fp32", 1.0), ("fp16", 1.0), ("int8", int8_share)):
        model = files[name].read_bytes()
        products = count_macs(onnx.load_from_string(model))
        assert products.unknown == ()
        built = build_engine(model, options_for(name), cache)
        audit = audit_rtx_plan(built.path.read_bytes(), products, Precision(name), share)
        assert (audit.evidence, audit.unattributed) == ("rtx-plan", ())
        audit_declared(built.declared, products, Precision(name), share)
        assert read_engine_header(built.path.read_bytes()).capabilities == DEFAULT_CAPABILITIES
    turing = build_engine(files["fp16"].read_bytes(), options_for("fp16", capabilities=(75,)), cache)
    assert read_engine_header(turing.path.read_bytes()).capabilities == (75,)
    assert len(cache.entries()) == 4


# -- one engine


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("batch", [DYNAMIC, BatchProfile(4, 4, 4)], ids=["dynamic", "static"])
def test_engine_says_what_it_is(models, cache, precision, batch):
    built = build_engine(models[precision], options_for(precision, batch), cache)
    engine = built.path.read_bytes()
    header = read_engine_header(engine)
    assert (header.flavour, header.capabilities) == ("tensorrt-rtx", DEFAULT_CAPABILITIES)
    assert built.version.startswith(".".join(map(str, header.version[:3])))
    assert (built.version, built.cached) == (library_version("tensorrt-rtx"), False)
    assert built.sha256 == hashlib.sha256(engine).hexdigest()
    products = count_macs(onnx.load_from_string(models[precision]))
    audit = audit_rtx_plan(engine, products, Precision(precision), 0.99)
    assert (audit.share, audit.evidence) == (pytest.approx(1, abs=0.01), "rtx-plan")
    declared = {built.declared[name] for name in products}
    assert declared == ({"int8", "fp16"} if precision == "int8" else {precision})
    first = {"fp32": "node__to_copy", "bf16": "_to_copy_cast_to_bf16"}.get(precision, "_to_copy_cast_to_fp16")
    assert built.declared[first] == "uint8"
    assert json.loads(json.dumps(built.to_dict()))["options"]["batch"] == {
        "min": batch.min,
        "opt": batch.opt,
        "max": batch.max,
    }


def test_an_engine_has_a_profile_for_each_range(models, cache):
    one, many = BatchProfile(1, 1, 1), BatchProfile(2, 16, 32)
    built = build_engine(models["fp16"], options_for("fp16", (one, many)), cache)
    kernels = parse_rtx_plan(built.data).kernels
    products = count_macs(onnx.load_from_string(models["fp16"]))
    found = {index: {o for k in kernels if k.profile == index for o in k.origins} for index in (0, 1)}
    assert found[0] >= set(products)
    assert found[1] >= set(products)
    audit = audit_rtx_plan(built.data, products, Precision.FP16, 0.99)
    assert (audit.share, audit.unattributed) == (1, ())
    assert built.to_dict()["options"]["batch"] == (
        {"min": 1, "opt": 1, "max": 1},
        {"min": 2, "opt": 16, "max": 32},
    )
    alone = build_engine(models["fp16"], options_for("fp16", many), cache)
    assert (alone.cached, {kernel.profile for kernel in parse_rtx_plan(alone.data).kernels}) == (False, {0})


def test_turing_takes_fp16(models, cache):
    built = build_engine(models["fp16"], options_for("fp16", capabilities=(75,)), cache)
    assert read_engine_header(built.path.read_bytes()).capabilities == (75,)


def test_second_build_comes_from_the_cache(models, cache, monkeypatch):
    first = build_engine(models["fp16"], options_for("fp16"), cache)

    def refuse(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(worker_process, "_watch", refuse)
    steps = []
    second = build_engine(
        models["fp16"], options_for("fp16"), cache, advance=lambda *step: steps.append(step)
    )
    assert (first.cached, second.cached, steps) == (False, True, [])
    for field in ("path", "sha256", "version", "gpu", "declared", "log", "notes", "seconds"):
        assert getattr(first, field) == getattr(second, field), field
    with pytest.raises(AssertionError, match="a worker was started"):
        build_engine(models["fp16"], options_for("fp16", capabilities=(86,)), cache)


def test_changed_engine_is_built_again_and_told(models, cache):
    first = build_engine(models["fp16"], options_for("fp16"), cache)
    first.path.write_bytes(b"vtrt")
    told = []
    second = build_engine(models["fp16"], options_for("fp16"), cache, tell=told.append)
    # The library does not promise the same bytes twice, and does not always give them.
    assert (second.cached, len(second.data) > 0, len(told)) == (False, True, 1)
    assert "was changed (engine): it is built again" in told[0]


def test_every_option_is_part_of_the_key(models):
    fields = {
        "precision": Precision.INT8,
        "batch": BatchProfile(1, 4, 9),
        "workspace_bytes": 1 << 20,
        "optimization_level": 2,
        "tf32": True,
        "capabilities": (86,),
    }
    options = [options_for("fp16"), *(options_for("fp16") for _ in fields)]
    for (name, value), entry in zip(fields.items(), options[1:], strict=True):
        object.__setattr__(entry, name, value)
    identities = [json.dumps(tensorrt._identity(entry, "1.7", None), sort_keys=True) for entry in options]
    identities.append(json.dumps(tensorrt._identity(options[0], "1.8", None), sort_keys=True))
    assert len(set(identities)) == len(identities) == 8


def test_progress_is_told_and_the_log_kept(models, cache):
    steps = []
    built = build_engine(models["fp32"], options_for("fp32"), cache, advance=lambda *step: steps.append(step))
    assert steps
    for done, total, phase in steps:
        assert 0 <= done <= total
        assert phase
    assert {severity for severity, _ in built.log} <= {
        "INTERNAL_ERROR",
        "ERROR",
        "WARNING",
        "INFO",
        "VERBOSE",
    }
    assert any("Building an engine" in text or "engine" in text.lower() for _, text in built.log)
    warnings = [text for severity, text in built.log if severity == "WARNING"]
    assert built.to_dict()["warnings"] == warnings


@pytest.mark.skipif(bool(probe_driver().devices), reason="this machine has a GPU")
def test_without_a_gpu_there_are_no_layers(models, cache):
    built = build_engine(models["fp16"], options_for("fp16"), cache)
    inspection = inspect_engine(built, cache)
    assert (built.gpu, inspection.layers, inspection.note) == (None, None, None)


# -- refusals


def test_fp32_for_turing_names_the_node(models, cache):
    with pytest.raises(
        BuildError, match=r"\(type unsupported on this SM, node node_linear\): .*SM75"
    ) as caught:
        build_engine(models["fp32"], options_for("fp32", capabilities=(75,)), cache)
    assert caught.value.node == "node_linear"
    assert any(severity == "ERROR" and "SM75" in text for severity, text in caught.value.log)
    assert "build an FP16 variant" in caught.value.hint
    assert cache.entries() == []


def test_bf16_is_refused_on_a_gpu_before_ampere(models, cache, monkeypatch):
    turing = DeviceProperties("T4", (7, 5), 40, 16 << 30, integrated=False, can_map_host_memory=True)
    monkeypatch.setattr(tensorrt, "require_device", lambda: turing)
    monkeypatch.setattr(tensorrt, "library_version", lambda flavour: "10.16.1.11")
    with pytest.raises(
        DeviceError, match=r"T4 has compute capability 7\.5 and no BF16, .* Take an FP16 variant"
    ):
        build_engine(models["bf16"], BuildOptions("tensorrt", Precision.BF16), cache)


def test_unknown_capability_is_refused(models, cache):
    with pytest.raises(BuildError, match="cannot build for those compute capabilities") as caught:
        build_engine(models["fp16"], options_for("fp16", capabilities=(87,)), cache)
    assert caught.value.hint is None  # the words are not the library's


def test_file_that_is_no_model_is_refused_before_the_library_sees_it(cache):
    with pytest.raises(EngineError, match="This is no ONNX model") as caught:
        build_engine(b"no model", options_for("fp32"), cache)
    assert caught.value.exit_code == 4
    assert cache.entries() == []


def test_model_that_the_library_cannot_read_is_refused_with_its_words(cache):
    graph = onnx.helper.make_graph([onnx.helper.make_node("Nothing", [], ["x"])], "g", [], [])
    with pytest.raises(BuildError, match="While parsing node number 0") as caught:
        build_engine(onnx.helper.make_model(graph).SerializeToString(), options_for("fp32"), cache)
    assert caught.value.exit_code == 5
    assert cache.entries() == []


def test_fp32_graph_handed_in_as_fp16_is_found_out(models, cache):
    products = count_macs(onnx.load_from_string(models["fp32"]))
    built = build_engine(models["fp32"], options_for("fp16"), cache)
    with pytest.raises(
        PrecisionError, match=r"Only 0\.0% of the MACs run in fp16 \(fp32 100\.0%; rtx-plan\)"
    ):
        audit_rtx_plan(built.path.read_bytes(), products, Precision.FP16, 0.95)
    with pytest.raises(PrecisionError, match="declared"):
        audit_declared(built.declared, products, Precision.FP16, 0.95)


@pytest.mark.skipif(bool(probe_driver().devices), reason="this machine has a GPU")
def test_tensorrt_without_a_driver_is_refused_before_anything_runs(models, cache, monkeypatch):
    monkeypatch.setattr(tensorrt, "library_version", lambda flavour: "10.3.0")
    with pytest.raises(DeviceError) as caught:
        build_engine(models["fp32"], BuildOptions("tensorrt", Precision.FP32), cache)
    assert caught.value.exit_code == 5
    assert not cache.root.exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_tensorrt_that_is_not_installed_is_told(models, cache):
    with pytest.raises(MissingExtraError, match=r"tensorrt is not installed.*edgekiln\[tensorrt\]"):
        build_engine(models["fp32"], BuildOptions("tensorrt", Precision.FP32), cache)


# -- the process that builds

KILLED = "import os, signal\nprint('begun', flush=True)\nos.kill(os.getpid(), signal.{})"
GARBAGE = """
import sys
from edgekiln.export.engines.build_worker import main
sys.stdout.buffer.write(b"garbage\\n[1]\\n{}\\n\\xff\\xfe\\n3\\n" + b'{"step": "x", "steps": 1, "phase": ""}\\n')
sys.stdout.flush()
sys.exit(main(sys.argv[1:]))
"""
SLEEPS = """
import json, os, signal, time
signal.signal(signal.SIGTERM, signal.{})
print(json.dumps({{"step": os.getpid(), "steps": 1, "phase": "sleeping"}}), flush=True)
time.sleep(60)
"""
SAYS_CANCELLED = """
import json, sys
from pathlib import Path
result = {"engine": False, "failure": "cancelled", "node": None, "log": []}
(Path(sys.argv[1]) / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def use_worker(tmp_path, monkeypatch):
    """Put a module of the given source in the worker's place."""

    def use(source):
        (tmp_path / "fake_worker.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(worker_process, "_WORKER", "fake_worker")

    return use


def build(cache, models, **more):
    return build_engine(models["fp16"], options_for("fp16"), cache, **more)


def assert_gone(pid):
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_killed_worker_is_a_matter_of_memory(use_worker, cache, models):
    use_worker(KILLED.format("SIGKILL"))
    with pytest.raises(
        ResourceError, match=r"was killed.*when memory runs out.*Lower build.workspace_mib"
    ) as caught:
        build(cache, models)
    assert caught.value.exit_code == 6
    assert cache.entries() == []


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGRTMIN"])
def test_crashed_worker_names_its_signal(use_worker, cache, models, name):
    use_worker(KILLED.format(name))
    with pytest.raises(BuildError, match=rf"The engine library crashed while building \({name}\)"):
        build(cache, models)
    assert cache.entries() == []


def test_worker_that_cannot_start_gives_its_last_words(use_worker, cache, models):
    use_worker("raise SystemExit('the library is broken')")
    with pytest.raises(EnvironmentProblem, match="ended with exit code 1: the library is broken"):
        build(cache, models)


def test_worker_that_prints_is_no_problem(use_worker, cache, models):
    use_worker(GARBAGE)
    phases = []
    built = build(cache, models, advance=lambda done, total, phase: phases.append(phase))
    assert read_engine_header(built.path.read_bytes()).flavour == "tensorrt-rtx"
    assert "" not in phases


@pytest.mark.parametrize("on_sigterm", ["SIG_DFL", "SIG_IGN"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_who_stops_listening_stops_the_worker(use_worker, cache, models, monkeypatch, on_sigterm, error):
    use_worker(SLEEPS.format(on_sigterm))
    monkeypatch.setattr(worker_process, "_STOP_SECONDS", 0.3)
    pids = []

    def interrupt(done, total, phase):
        pids.append(done)
        raise error

    started = time.monotonic()
    with pytest.raises(error):
        build(cache, models, advance=interrupt)
    assert time.monotonic() - started < 20  # the worker would sleep for a minute
    assert_gone(pids[0])
    assert [path.suffix for path in cache.root.iterdir()] == [".lock"]


def test_second_interrupt_does_not_leave_the_worker_behind(use_worker, cache, models, monkeypatch):
    use_worker(SLEEPS.format("SIG_IGN"))
    pids = []
    wait = worker_process.subprocess.Popen.wait

    def interrupted_wait(child, timeout=None):
        if timeout == worker_process._STOP_SECONDS:
            raise KeyboardInterrupt
        return wait(child, timeout)

    def interrupt(done, total, phase):
        pids.append(done)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker_process.subprocess.Popen, "wait", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        build(cache, models, advance=interrupt)
    assert_gone(pids[0])


def test_interrupted_build_of_the_real_library_leaves_nothing(cache, models):
    def interrupt(done, total, phase):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(cache, models, advance=interrupt)
    assert cache.entries() == []
    assert build(cache, models).cached is False


def test_cancelled_worker_is_an_interrupt(use_worker, cache, models):
    use_worker(SAYS_CANCELLED)
    with pytest.raises(KeyboardInterrupt):
        build(cache, models)


def test_worker_is_not_sought_in_the_working_folder_but_where_pythonpath_names_it(
    use_worker, cache, models, monkeypatch, tmp_path
):
    use_worker("raise SystemExit('found')")
    monkeypatch.setattr("sys.path", ["", *(path for path in sys.path if path != str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentProblem, match="No module named fake_worker"):
        build(cache, models)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EnvironmentProblem, match="exit code 1: found"):
        build(cache, models)
