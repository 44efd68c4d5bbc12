"""OpenVINO, beyond what every session promises (test_cpu_sessions.py): silence, precision, what it is shown."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from export_support import export_residual
from onnx import numpy_helper

from edgekiln.runtime.backends import kernel_cache, open_session
from edgekiln.runtime.backends import openvino as backend
from edgekiln.runtime.bundles.canary_inputs import make_canaries
from edgekiln.runtime.errors import DeviceError, EngineError, ExitCode, MissingExtraError
from edgekiln.runtime.onnx_files.metadata import PRECISION_KEY, STATIC_BATCHES_KEY
from edgekiln.runtime.serving.loading import load
from edgekiln.runtime.telemetry import hide_package


def has_bf16():
    """Native, or emulated by AVX-512; as Linux tells it, which is not what is tested."""
    return "avx512bw" in Path("/proc/cpuinfo").read_text()


pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def installed():
    """Through edgekiln's own door: a plain import would report to Intel."""
    try:
        return backend.import_openvino()
    except MissingExtraError as error:
        pytest.skip(error.message)


# -- BF16

BF16 = """
import sys
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EdgekilnError
with open(sys.argv[1], "rb") as file:
    try:
        print(open_session("openvino", file.read(), threads=1).layers()[-2].precision)
    except EdgekilnError as error:
        print(error.exit_code, type(error).__name__, error)
"""


def asking(model, precision="bf16"):
    asked = onnx.load_from_string(model)
    onnx.helper.set_model_props(asked, {PRECISION_KEY: precision})
    return asked.SerializeToString()


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    return export_residual(tmp_path_factory.mktemp("bf16") / "residual.onnx").read_bytes()


def test_a_file_that_asks_for_bf16_is_computed_in_it_or_refused(tmp_path, residual):
    """Without AVX-512 there is no BF16: never FP32 in its place."""
    (tmp_path / "model.onnx").write_bytes(asking(residual))
    told = {}
    for mask in ("ALL", "AVX2"):
        done = subprocess.run(
            [sys.executable, "-c", BF16, tmp_path / "model.onnx"],
            capture_output=True, text=True, check=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": mask},
        )  # fmt: skip
        told[mask] = done.stdout.strip()
    assert re.match(r"5 DeviceError .*BF16.* on this CPU.*Take the FP32 or INT8 variant", told["AVX2"])
    assert told["ALL"] == ("bf16" if has_bf16() else told["AVX2"])


def test_what_computes_nothing_in_bf16_is_refused(monkeypatch, residual):
    monkeypatch.setattr(backend._Engine, "layers", lambda self, batch: ())
    with pytest.raises(DeviceError, match="computes none of it in BF16 on this CPU"):
        open_session("openvino", asking(residual))
    open_session("openvino", residual).close()


def test_a_file_may_ask_for_nothing_else(residual):
    with pytest.raises(EngineError, match="asks for 'fp8', which OpenVINO is not asked for"):
        open_session("openvino", asking(residual, "fp8"))


@pytest.mark.skipif(not has_bf16(), reason="this CPU has no BF16")
def test_bf16_rounds_and_leaves_other_files_in_fp32(residual):
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    files = (residual, asking(residual), residual)
    exact, rounded, again = (open_session("openvino", file).run(frames) for file in files)
    np.testing.assert_array_equal(exact, again)
    assert 0 < np.abs(rounded - exact).max() < 12 * 2**-8 * np.ptp(exact)  # 8 bits in each of some 12 results


# -- nothing is sent, nothing is written

GUARD = """
import socket, subprocess, sys

def refuse(*arguments, **options):
    raise SystemExit(f"a connection or process was attempted: {arguments}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
subprocess.Popen = refuse
"""
RUN = """
import numpy as np
from edgekiln.runtime.backends import open_session
with open(sys.argv[1], "rb") as file:
    session = open_session("openvino", file.read())
for count in (1, 3):
    assert session.run(np.zeros((count, 4, 8, 3), np.uint8)).shape == (count, 3)
telemetry = sorted(name for name in sys.modules if name.startswith("openvino_telemetry"))
assert telemetry == [], telemetry
import openvino
assert not [name for name in sys.modules if name.startswith("openvino.tools")]  # half of the import
from openvino import convert_model  # it is there for who asks, with its own stub for the telemetry
assert convert_model is openvino.convert_model is openvino.tools.ovc.convert_model
assert not hasattr(openvino, "convert_models")
print("ran", sorted(name for name in sys.modules if "telemetry_stub" in name))
"""


def run_guarded(folder, code, *arguments):
    home = folder / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(folder)}
    environment |= {name: str(home / name) for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GUARD + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    return done, home


def test_import_and_use_send_nothing_and_write_nothing(tmp_path, mean_model):
    (tmp_path / "model.onnx").write_bytes(mean_model)
    done, home = run_guarded(tmp_path, RUN, tmp_path / "model.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ran ['openvino.tools.ovc.telemetry_stub']\n"
    assert list(home.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "model.onnx"}


def test_the_guard_of_this_test_sees_connections_and_processes(tmp_path):
    for number, code in enumerate(
        ("socket.create_connection(('127.0.0.1', 9))", "subprocess.Popen(['true'])")
    ):
        (tmp_path / str(number)).mkdir()
        done, _ = run_guarded(tmp_path / str(number), code)
        assert "a connection or process was attempted" in done.stderr
        assert done.returncode == 1


def test_a_package_that_is_hidden_comes_back_as_it_was(monkeypatch):
    with hide_package("json"), pytest.raises(ModuleNotFoundError):
        __import__("json")
    import json

    assert sys.modules["json"] is json
    with hide_package("edgekiln_absent"):
        pass
    assert "edgekiln_absent" not in sys.modules
    monkeypatch.setitem(sys.modules, "edgekiln_absent", None)  # hidden by somebody else already
    with hide_package("edgekiln_absent"):
        pass
    assert sys.modules["edgekiln_absent"] is None


def test_a_missing_package_is_told_with_its_extra(mean_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="'openvino' is needed here and is not installed") as caught:
        open_session("openvino", mean_model)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    assert caught.value.hint == "Run: pip install 'edgekiln[openvino]'"


# -- what it is shown


def test_without_the_scan_the_library_would_answer_with_another_files_weights(
    installed, model_with_external_weights, monkeypatch
):
    model = model_with_external_weights("{folder}/weights.bin")
    monkeypatch.setattr(backend, "check_onnx", lambda model, **_: None)
    frames = np.full((1, 4, 8, 3), 3, np.uint8)
    np.testing.assert_array_equal(open_session("openvino", model).run(frames), [[6, 6, 6]])


def test_its_own_xml_is_refused_even_without_the_scan(monkeypatch):
    monkeypatch.setattr(backend, "check_onnx", lambda model, **_: None)
    xml = b'<?xml version="1.0"?><net name="x" version="11"><layers/><edges/></net>'
    with pytest.raises(EngineError, match="no ONNX model"):
        open_session("openvino", xml)


# -- what runs


def test_threads_and_precision_are_told_to_the_library(mean_model):
    session = open_session("openvino", mean_model, threads=2)
    compiled = session._engine._static[1].compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("NUM_STREAMS") == 1


def test_a_model_of_dynamic_shape_is_compiled_for_the_first_batch_only(mean_model, random_frames):
    session = open_session("openvino", mean_model)
    session.run(random_frames(1))
    assert session._engine._dynamic is None
    session.run(random_frames(2))
    compiled = session._engine._dynamic
    session.run(random_frames(5))
    assert session._engine._dynamic is compiled


@pytest.fixture(scope="module")
def int8_model(tiny_run):
    return (tiny_run[2].bundle / "int8.onnx").read_bytes()


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_int8_on_arm_answers_batches_by_the_static_model(monkeypatch, int8_model, machine):
    frames = make_canaries(32, 32)
    expected = open_session("openvino", int8_model).run(frames)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    session = open_session("openvino", int8_model)
    np.testing.assert_allclose(session.run(frames), expected, atol=1e-3)
    assert session._engine._dynamic is None
    assert len(session._engine._static[1]._free) == 1


def test_fp32_on_arm_and_int8_elsewhere_keep_the_model_for_batches(
    monkeypatch, int8_model, mean_model, random_frames
):
    session = open_session("openvino", int8_model)
    session.run(make_canaries(32, 32, [0, 1]))
    assert session._engine._dynamic is not None
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    session = open_session("openvino", mean_model)
    session.run(random_frames(2))
    assert session._engine._dynamic is not None


# -- batch sizes with a model of their own


def with_static(model, sizes):
    asking = onnx.load_from_string(model)
    onnx.helper.set_model_props(asking, {STATIC_BATCHES_KEY: sizes})
    return asking.SerializeToString()


def test_a_size_that_the_file_names_has_a_model_and_others_share_one(mean_model, random_frames):
    plain, static = (
        open_session("openvino", mean_model),
        open_session("openvino", with_static(mean_model, "3,2")),
    )
    assert (plain.static_batches, static.static_batches) == ((), (2, 3))
    for count in (1, 2, 3, 2):
        np.testing.assert_array_equal(static.run(random_frames(count)), plain.run(random_frames(count)))
    engine = static._engine
    assert engine._dynamic is None
    assert {size: len(model._free) for size, model in engine._static.items()} == {1: 1, 2: 1, 3: 1}
    assert list(engine._static[3].compiled.inputs[0].shape) == [3, 4, 8, 3]
    for count in (0, 4, 67):  # 67 is 64, which has none, and 3
        np.testing.assert_array_equal(static.run(random_frames(count)), plain.run(random_frames(count)))
    assert engine._dynamic is not None


@pytest.mark.parametrize(
    "sizes", ["", "1,8", "65", "8,", "a", "-8", "8;9", "٨", "2,3,4,5,6,7,8,9,10", "8" * 5000]
)
def test_what_is_no_size_is_refused(mean_model, sizes):
    with pytest.raises(EngineError, match="wanted at most 8 sizes from 2 to 64") as caught:
        open_session("openvino", with_static(mean_model, sizes))
    assert len(caught.value.message) < 200


def test_int8_on_arm_has_no_batches_of_its_own_and_says_so(monkeypatch, int8_model, caplog):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    session = open_session("openvino", with_static(int8_model, "8"))
    assert session.static_batches == ()
    assert "picture by picture: no static batches" in caplog.text


@pytest.fixture
def class_token_model():
    """Tokens of a quantized convolution with a bias, behind a class token that is expanded to the batch, as a ViT's."""
    random = np.random.default_rng(0)
    constants = {
        "step": np.float32(0.04),
        "middle": np.uint8(128),
        "weight": random.normal(0, 0.02, (8, 3, 4, 4)).astype(np.float32),
        "bias": random.normal(0, 1, 8).astype(np.float32),
        "token": random.normal(0, 1, (1, 1, 8)).astype(np.float32),
        "flat": np.array([0, 8, -1]),
        "each": np.array([1, 1]),
        "one": np.array([1]),
    }
    graph = onnx.parser.parse_graph("""
    tokens (uint8[batch, 8, 8, 3] image) => (float[batch, 8] logits) {
        size = Shape <start = 0, end = 1> (image)
        wanted = Concat <axis = 0> (size, each)
        first = Expand (token, wanted)
        planes = Transpose <perm = [0, 3, 1, 2]> (image)
        pixels = Cast <to = 1> (planes)
        patches = Conv <kernel_shape = [4, 4], strides = [4, 4]> (pixels, weight, bias)
        rounded = QuantizeLinear (patches, step, middle)
        restored = DequantizeLinear (rounded, step, middle)
        rows = Reshape (restored, flat)
        turned = Transpose <perm = [0, 2, 1]> (rows)
        all = Concat <axis = 1> (first, turned)
        logits = ReduceSum <keepdims = 0> (all, one)
    }""")
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def test_a_convolution_keeps_its_bias_where_the_network_reads_the_size_of_the_batch(class_token_model):
    frames = make_canaries(8, 8)
    session = open_session("openvino", class_token_model)
    alone = np.concatenate([session.run(frame[None]) for frame in frames])
    together = session.run(frames)
    assert session._engine._dynamic is not None
    # Up to one quantized step, 0.04, is rounding. Without the bias it is up to 2.6.
    np.testing.assert_allclose(together, alone, atol=0.05)
    static = open_session("openvino", with_static(class_token_model, "16"))
    np.testing.assert_allclose(static.run(frames), alone, atol=0.05)
    assert static._engine._dynamic is None


def test_requests_are_kept_and_used_again(mean_model, random_frames):
    session = open_session("openvino", mean_model)
    for count in (1, 1, 1, 2, 3, 4):
        session.run(random_frames(count))
    assert (len(session._engine._static[1]._free), len(session._engine._free_dynamic)) == (1, 1)


def test_a_failure_while_running_is_an_engine_error(mean_model, random_frames, monkeypatch):
    session = open_session("openvino", mean_model)
    session.run(random_frames(1))
    [slot] = session._engine._static[1]._free

    class Broken:
        def infer(self):
            raise RuntimeError("out of\n luck")

    session._engine._static[1]._free[:] = [backend._Slot(Broken(), slot.frames, slot.logits)]
    with pytest.raises(EngineError, match=r"OpenVINO [\d.]+ failed while running: out of luck"):
        session.run(random_frames(1))
    assert session._engine._static[1]._free == []  # a request that failed is not used again
    session.run(random_frames(1))


def test_layers_tell_kind_precision_and_origin(mean_model):
    [layers] = backend.read_layers(mean_model).values()
    assert {"Input", "Output"} <= {layer.kind for layer in layers}
    assert {layer.precision for layer in layers if layer.kind == "Reduce"} == {"f32"}
    assert any(layer.kind == "Reduce" and "logits" in layer.origins for layer in layers)


# -- bundles


@pytest.mark.parametrize(
    ("backends", "taken"),
    [
        ([("openvino", "fp32"), ("onnxruntime-cpu", "fp32")], "onnxruntime-cpu"),
        ([("onnxruntime-cpu", "fp32"), ("openvino", "int8")], "openvino"),
        ([("openvino", "int8"), ("onnxruntime-cpu", "int8")], "onnxruntime-cpu"),
    ],
)
def test_load_prefers_int8_and_then_what_loads_faster(make_bundle, variant, backends, taken):
    folder = make_bundle(*(variant(b, p, backend=b) for b, p in backends))
    for device in ("cpu", None):
        with load(folder, device=device) as classifier:
            assert classifier.variant.backend == classifier.session.backend == taken


def test_load_passes_over_it_where_it_is_not_installed(make_bundle, variant, monkeypatch):
    folder = make_bundle(variant("fp32", "fp32"), variant("ov", "int8", backend="openvino"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with load(folder) as classifier:
        assert classifier.variant.name == "fp32"
        assert "ov cannot run here (The package 'openvino'" in classifier.variant.reason


SIGNALS = """
import os, signal, sys, threading
from edgekiln.runtime.backends import open_session

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(len(heard)))
with open(sys.argv[1], "rb") as file:
    model = file.read()

def closed_in_another_thread():
    session = open_session("openvino", model)
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join()

def replaced():
    first = open_session("openvino", model)
    second = open_session("openvino", model)
    first.close()
    second.close()

for once in (closed_in_another_thread, replaced):
    once()
    os.kill(os.getpid(), signal.SIGUSR1)
print(heard)
"""


def test_signals_find_a_stack_after_an_engine_was_replaced_or_closed_elsewhere(tmp_path, mean_model):
    (tmp_path / "model.onnx").write_bytes(mean_model)
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, tmp_path / "model.onnx"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[0, 1]\n")


# -- what it compiled is kept


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of compiled models."""
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def open_kept(model, **options):
    return open_session("openvino", model, keep_compiled=True, **options)


def refuse_to_compile(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("it compiles")

    monkeypatch.setattr(backend._Engine, "_compile_static", refuse)


def test_a_model_is_compiled_once_and_answers_the_same(mean_model, kept, random_frames, monkeypatch):
    frames = random_frames(3)
    first = open_kept(mean_model)
    [file] = kept.iterdir()
    assert (file.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o600, 0o700)
    with monkeypatch.context() as patch:
        refuse_to_compile(patch)
        second = open_kept(mean_model)
    assert (second.frame_shape, second.num_classes) == (first.frame_shape, first.num_classes) == ((4, 8), 3)
    for part in (frames[:1], frames):  # alone, and as a batch, whose model is not kept
        np.testing.assert_array_equal(second.run(part), first.run(part))
    assert list(kept.iterdir()) == [file]


def test_a_file_is_looked_at_before_it_is_compiled_and_not_where_that_is_kept(
    mean_model, kept, random_frames, monkeypatch
):
    looked = []
    true_check = backend.check_onnx
    monkeypatch.setattr(
        backend, "check_onnx", lambda model, **_: (looked.append(len(model)), true_check(model, **_))
    )
    open_kept(mean_model)
    assert len(looked) == 1
    session = open_kept(mean_model)
    session.run(random_frames(1))
    assert len(looked) == 1
    session.run(random_frames(2))  # the model for batches is compiled from the file
    assert len(looked) == 2
    open_kept(mean_model, allow_operators=("x::Y",))  # what another look let pass
    assert len(looked) == 3
    monkeypatch.setattr(kernel_cache, "__version__", "0.0.1")
    open_kept(mean_model)
    assert len(looked) == 4
    assert len(list(kept.iterdir())) == 3


def test_each_static_batch_is_kept_in_a_file_of_its_own(mean_model, kept, random_frames, monkeypatch):
    frames = random_frames(3)
    wanted = open_kept(with_static(mean_model, "2,3")).run(frames)
    assert len(list(kept.iterdir())) == 3
    refuse_to_compile(monkeypatch)
    np.testing.assert_array_equal(open_kept(with_static(mean_model, "2,3")).run(frames), wanted)


def test_another_model_and_other_threads_have_files_of_their_own(
    mean_model, build_model, kept, random_frames
):
    open_kept(mean_model)
    open_kept(mean_model, threads=1)
    doubled = open_kept(build_model(scale=2.0))
    assert len(list(kept.iterdir())) == 3
    frames = random_frames(1)
    np.testing.assert_array_equal(doubled.run(frames), 2 * open_kept(mean_model).run(frames))


@pytest.mark.parametrize("place", [0, 40, -1], ids=["digest", "head", "end"])
def test_a_changed_byte_is_compiled_anew(mean_model, kept, random_frames, caplog, place):
    wanted = open_kept(mean_model).run(random_frames(1))
    [file] = kept.iterdir()
    broken = bytearray(file.read_bytes())
    broken[place] ^= 1
    file.write_bytes(broken)
    np.testing.assert_array_equal(open_kept(mean_model).run(random_frames(1)), wanted)
    assert "damaged: the model is compiled again" in caplog.text
    written = file.read_bytes()  # anew; OpenVINO does not write the same bytes each time
    assert written[:32] == hashlib.sha256(written[32:]).digest()


def test_what_the_library_refuses_is_compiled_anew(mean_model, kept, random_frames, caplog):
    open_kept(mean_model)
    [file] = kept.iterdir()
    other = b"of another build"
    file.write_bytes(hashlib.sha256(other).digest() + other)
    assert open_kept(mean_model).run(random_frames(1)).shape == (1, 3)
    assert "OpenVINO refuses what it had compiled" in caplog.text


def test_a_file_that_others_may_write_is_not_read(mean_model, kept, caplog, monkeypatch):
    open_kept(mean_model)
    [file] = kept.iterdir()
    file.chmod(0o666)
    open_kept(mean_model)
    assert "can be written by others and was not read" in caplog.text
    assert file.stat().st_mode & 0o777 == 0o600  # written anew, under its name


def test_where_nothing_can_be_kept_it_compiles_each_time(mean_model, monkeypatch, random_frames, caplog):
    monkeypatch.setenv("EDGEKILN_CACHE", "/dev/null/cache")
    for _ in range(2):
        assert open_kept(mean_model).run(random_frames(1)).shape == (1, 3)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_load_keeps_what_it_compiled_beside_no_bundle(make_bundle, variant, kept, monkeypatch):
    bundle = make_bundle(variant("fp32", "fp32", backend="openvino"))
    before = sorted(bundle.iterdir())
    load(bundle).close()
    assert len(list(kept.iterdir())) == 1
    refuse_to_compile(monkeypatch)
    load(bundle).close()
    assert sorted(bundle.iterdir()) == before
