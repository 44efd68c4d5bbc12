"""The TensorRT session on a real GPU, with real engines, against onnxruntime on the CPU. Skips with its reason."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from gpu_support import is_for_another_gpu
from onnx import TensorProto, helper, numpy_helper

from edgekiln.export.engines.cache import EngineCache
from edgekiln.export.engines.options import BatchProfile, BuildOptions
from edgekiln.export.engines.tensorrt import build_engine
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.backends.tensorrt import TensorRTSession
from edgekiln.runtime.cuda import open_cuda, probe_driver
from edgekiln.runtime.errors import DeviceError, MissingExtraError, UsageError
from edgekiln.runtime.spec import Precision

pytestmark = pytest.mark.gpu

HEIGHT, WIDTH, CLASSES = 32, 32, 5
LARGEST = 8
RANGE = BatchProfile(1, 4, LARGEST)
PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# Logits are below 1. In FP32 the sums are taken in another order; in FP16 a number
# has 11 bits, and the mean of 1024 of them may be summed in FP16 as well.
TOLERANCES = {Precision.FP32: 1e-3, Precision.FP16: 2e-2}


def make_model(precision):
    """A convolution, ReLU, the mean of each channel, and a matrix; in FP16 all of it is computed in half."""
    kind = np.float16 if precision is Precision.FP16 else np.float32
    number = TensorProto.FLOAT16 if precision is Precision.FP16 else TensorProto.FLOAT
    generator = np.random.default_rng(7)
    weights = {
        "scale": np.array(1 / 128, kind),
        "kernel": generator.normal(0, 0.3, (8, 3, 3, 3)).astype(kind),
        "matrix": generator.normal(0, 0.5, (8, CLASSES)).astype(kind),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=number),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("ReduceMean", ["active", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["product"]),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def frames_of(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def reference():
    """What onnxruntime answers on the CPU, in FP32."""
    session = open_session("onnxruntime-cpu", make_model(Precision.FP32))
    yield session.run
    session.close()


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    problem = probe_driver().problem
    if problem is not None:
        pytest.skip(problem)
    try:
        open_cuda().close()
    except MissingExtraError as error:
        pytest.skip(error.message)
    cache = EngineCache(tmp_path_factory.mktemp("engines"))

    def build_(flavour, precision, batch):
        if find_spec(PACKAGES[flavour]) is None:
            pytest.skip(f"{PACKAGES[flavour]} is not installed.")
        return build_engine(
            make_model(precision), BuildOptions(flavour, precision, batch), cache
        ).path.read_bytes()

    return build_


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path))
    return tmp_path / "kernels"


@pytest.fixture
def open_real(build):
    opened = []

    def open_(flavour, precision=Precision.FP32, batches=(RANGE,), **options):
        engines = [build(flavour, precision, batch) for batch in batches]
        try:
            opened.append(TensorRTSession(engines, flavour=flavour, **options))
        except DeviceError as error:  # TensorRT-RTX runs on some GPUs only
            if flavour != "tensorrt-rtx" or not is_for_another_gpu(error):
                raise
            pytest.skip(error.message)
        return opened[-1]

    yield open_
    for session in opened:
        session.close()


@pytest.mark.parametrize("wait", ["spin", "blocking"])
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("flavour", PACKAGES)
def test_any_batch_size_gives_the_answers_of_onnxruntime(open_real, reference, flavour, precision, wait):
    session = open_real(flavour, precision, wait=wait)
    assert (session.backend, session.frame_shape, session.num_classes) == (flavour, (HEIGHT, WIDTH), CLASSES)
    assert session.buckets == (1, 2, 4, 8)
    assert session.run(frames_of(0, 0)).shape == (0, CLASSES)
    for count in range(1, LARGEST + 4):
        frames = frames_of(count, count)
        np.testing.assert_allclose(session.run(frames), reference(frames), rtol=0, atol=TOLERANCES[precision])


@pytest.mark.parametrize("flavour", PACKAGES)
def test_static_engines_make_one_session(open_real, reference, flavour):
    session = open_real(flavour, batches=(BatchProfile(1, 1, 1), BatchProfile(4, 4, 4)))
    assert session.buckets == (1, 4)
    for count in range(1, 10):
        frames = frames_of(count, count)
        np.testing.assert_allclose(session.run(frames), reference(frames), rtol=0, atol=1e-3)


@pytest.mark.parametrize("flavour", PACKAGES)
def test_each_of_eight_threads_gets_its_own_answers(open_real, reference, flavour):
    session = open_real(flavour, slots=2)
    expected = {seed: reference(frames_of(seed, seed + 1)) for seed in range(8)}

    def work(seed):
        frames = frames_of(seed, seed + 1)
        for _ in range(30):
            np.testing.assert_allclose(session.run(frames), expected[seed], rtol=0, atol=1e-3)
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8), timeout=60)) == list(range(8))


@pytest.mark.parametrize("flavour", PACKAGES)
def test_device_time_is_measured(open_real, flavour):
    times = open_real(flavour).measure_device_ms(frames_of(0, LARGEST), 20)
    assert len(times) == 20
    assert all(0 <= ms < 1000 for ms in times)


@pytest.mark.parametrize("flavour", PACKAGES)
def test_a_second_session_works_and_a_closed_one_says_so(open_real, reference, cache_folder, flavour):
    first = open_real(flavour)
    first.close()
    first.close()
    with pytest.raises(UsageError, match="session is closed"):
        first.run(frames_of(0, 1))
    assert cache_folder.is_dir() == (flavour == "tensorrt-rtx")
    frames = frames_of(3, 3)
    np.testing.assert_allclose(open_real(flavour).run(frames), reference(frames), rtol=0, atol=1e-3)
