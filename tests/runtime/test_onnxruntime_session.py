"""ONNX Runtime: the right logits for any batch, from any thread; and a clear refusal of everything else."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.runtime.backends import onnxruntime as backend
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.backends.onnxruntime import MAX_CHUNK
from edgekiln.runtime.errors import (
    DeviceError,
    EngineError,
    EnvironmentProblem,
    ExitCode,
    InputError,
    NonFiniteError,
    UsageError,
)

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def session(mean_model):
    session = open_session("onnxruntime-cpu", mean_model)
    yield session
    session.close()


def exact(frames):
    return frames.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def test_properties_tell_what_runs(session):
    assert (session.backend, session.device, session.threads) == ("onnxruntime-cpu", "cpu", None)
    assert (session.frame_shape, session.num_classes) == ((4, 8), 3)


@pytest.mark.parametrize("count", [0, 1, 7, 300, MAX_CHUNK, MAX_CHUNK + 1, 2 * MAX_CHUNK])
def test_any_batch_size_gives_exact_logits_in_order(session, random_frames, count):
    assert MAX_CHUNK < 300
    frames = random_frames(count)
    before = frames.copy()
    logits = session.run(frames)
    assert (logits.dtype, logits.shape) == (np.float32, (count, 3))
    np.testing.assert_array_equal(logits, exact(frames))
    np.testing.assert_array_equal(frames, before)


def test_read_only_frames_work(session, random_frames):
    frames = random_frames(7)
    frames.flags.writeable = False
    np.testing.assert_array_equal(session.run(frames), exact(frames))


def test_non_contiguous_frames_work(session, random_frames):
    frames = random_frames(14)
    mixed = np.ascontiguousarray(frames.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)
    for view in (frames[::2], frames[::-1], frames[..., ::-1], frames[:, ::-1], mixed):
        assert not view.flags.c_contiguous
        np.testing.assert_array_equal(session.run(view), exact(view))


def test_results_of_two_runs_share_nothing(session, random_frames):
    frames = random_frames(2)
    first = session.run(frames)
    session.run(255 - frames)[:] = 0
    np.testing.assert_array_equal(first, exact(frames))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 4, 8, 3), np.float32),
        np.zeros((4, 8, 3), np.uint8),
        np.zeros((1, 8, 4, 3), np.uint8),
        np.zeros((0, 8, 4, 3), np.uint8),
        [[0]],
    ],
)
def test_wrong_frames_are_refused(session, frames):
    with pytest.raises(InputError, match=r"wanted uint8 \(N, 4, 8, 3\)") as caught:
        session.run(frames)
    assert caught.value.exit_code == ExitCode.USAGE == 2


def test_a_closed_session_says_so_and_closing_twice_does_nothing(mean_model, random_frames):
    session = open_session("onnxruntime-cpu", mean_model)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="session is closed"):
        session.run(random_frames(1))
    assert (session.frame_shape, session.num_classes) == ((4, 8), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_type": TensorProto.FLOAT}, r"image: tensor\(float\).*wanted one tensor\(uint8\)"),
        ({"input_type": TensorProto.INT8}, r"image: tensor\(int8\)"),
        ({"outputs": 2}, r"logits1: tensor\(float\).*wanted one tensor\(float\) \[N, classes\]"),
        ({"output_type": TensorProto.DOUBLE}, r"logits: tensor\(double\)"),
    ],
)
def test_a_model_with_other_ends_is_refused(build_model, changes, message):
    with pytest.raises(EngineError, match=message) as caught:
        open_session("onnxruntime-cpu", build_model(**changes))
    assert caught.value.exit_code == ExitCode.UNTRUSTED == 4


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_model_of_no_fixed_frame_size_is_refused(mean_model, axis):
    proto = onnx.load_from_string(mean_model)
    proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "X"
    with pytest.raises(EngineError, match=r"inputs are \[image: tensor\(uint8\) .*'X'.* wanted"):
        open_session("onnxruntime-cpu", proto.SerializeToString())


@pytest.mark.parametrize("location", ["weights.bin", "../weights/weights.bin", "{folder}/weights.bin"])
def test_weights_in_another_file_are_refused_even_when_they_are_there(tmp_path, monkeypatch, location):
    # The model's digest says nothing about them.
    folder = tmp_path / "weights"
    folder.mkdir()
    weights = np.eye(3, dtype=np.float32)
    (folder / "weights.bin").write_bytes(weights.tobytes())
    monkeypatch.chdir(folder)

    def model(external):
        tensor = numpy_helper.from_array(weights, "weights")
        if external:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location.format(folder=folder))
        nodes = [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 4, 8, 3])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
        axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
        graph = helper.make_graph(nodes, "external", [image], [logits], [axes, tensor])
        opset = helper.make_opsetid("", 18)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()

    open_session("onnxruntime-cpu", model(external=False)).close()
    with pytest.raises(EngineError, match=r"cannot load this model: .*[Ee]xternal data"):
        open_session("onnxruntime-cpu", model(external=True))


@pytest.mark.parametrize("model", [b"garbage", b"", bytes(1000)], ids=["garbage", "empty", "zeros"])
def test_garbage_is_refused_and_the_library_prints_nothing(model, capfd):
    with pytest.raises(EngineError, match=r"onnxruntime [\d.]+ cannot load this model") as caught:
        open_session("onnxruntime-cpu", model)
    assert caught.value.exit_code == 4
    assert capfd.readouterr() == ("", "")


def test_a_cut_model_is_refused(mean_model):
    with pytest.raises(EngineError, match="cannot load this model"):
        open_session("onnxruntime-cpu", mean_model[: len(mean_model) // 2])


def test_nan_is_refused_and_its_image_named(build_model):
    # sqrt(mean - 128): NaN for dark pictures only.
    session = open_session("onnxruntime-cpu", build_model(shift=-128.0, tail="Sqrt"))
    frames = np.full((300, 4, 8, 3), 255, np.uint8)
    assert session.run(frames).shape == (300, 3)
    frames[270, ..., 1] = 0
    with pytest.raises(
        NonFiniteError, match=r"onnxruntime-cpu gave NaN .* image 270 of the batch \(1 in all\)"
    ) as e:
        session.run(frames)
    assert e.value.exit_code == ExitCode.GATE_FAILED == 3


def test_infinity_is_refused(build_model):
    session = open_session("onnxruntime-cpu", build_model(tail="Log"))
    with pytest.raises(NonFiniteError, match="image 0 of the batch"):
        session.run(np.zeros((1, 4, 8, 3), np.uint8))


@pytest.mark.parametrize("name", ["tensorflow", "onnxruntime", "onnxruntime-tpu", None])
def test_an_unknown_backend_is_refused(mean_model, name):
    with pytest.raises(
        UsageError, match=f"Unknown backend {name!r}; known: onnxruntime-cpu, onnxruntime-cuda"
    ):
        open_session(name, mean_model)


def test_an_unknown_device_is_refused(mean_model):
    with pytest.raises(UsageError, match="Unknown device 'tpu'; known: cpu, cuda"):
        backend.OnnxRuntimeSession(mean_model, device="tpu")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_where_there_is_none_is_an_environment_problem(mean_model, capfd):
    with pytest.raises(DeviceError, match=r"has no CUDAExecutionProvider here.*edgekiln\[gpu\]") as caught:
        open_session("onnxruntime-cuda", mean_model)
    assert isinstance(caught.value, EnvironmentProblem)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    assert capfd.readouterr() == ("", "")


def test_both_distributions_together_are_refused_with_the_remedy(mean_model, monkeypatch):
    monkeypatch.setattr(backend, "_is_installed", lambda name: True)
    with pytest.raises(EnvironmentProblem, match="both installed") as caught:
        open_session("onnxruntime-cpu", mean_model)
    assert caught.value.exit_code == 5
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint
    assert "edgekiln[onnx]" in caught.value.hint


def test_installed_distributions_are_found_by_their_metadata():
    assert backend._is_installed("numpy")
    assert not backend._is_installed("edgekiln-no-such-distribution")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_told_to_the_library_and_change_no_answer(mean_model, random_frames, threads):
    session = open_session("onnxruntime-cpu", mean_model, threads=threads)
    assert session.threads == threads
    assert session._session.get_session_options().intra_op_num_threads == threads
    np.testing.assert_array_equal(session.run(random_frames(7)), exact(random_frames(7)))


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_under_one_are_refused(mean_model, threads):
    with pytest.raises(UsageError, match=f"threads must be at least 1, got {threads}"):
        open_session("onnxruntime-cpu", mean_model, threads=threads)


def test_each_of_eight_threads_gets_its_own_answers(mean_model):
    session = open_session("onnxruntime-cpu", mean_model, threads=1)
    barrier = threading.Barrier(8)

    def work(seed):
        generator = np.random.default_rng(seed)
        barrier.wait(timeout=30)
        for _ in range(50):
            frames = generator.integers(0, 256, (int(generator.integers(1, 5)), 4, 8, 3), np.uint8)
            np.testing.assert_array_equal(session.run(frames), exact(frames))
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_a_model_with_a_fixed_batch_is_refused_when_it_is_loaded(mean_model):
    model = onnx.load_from_string(mean_model)
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    dimension.Clear()
    dimension.dim_value = 1
    with pytest.raises(EngineError, match=r"wanted one .* with a dynamic N"):
        open_session("onnxruntime-cpu", model.SerializeToString())
