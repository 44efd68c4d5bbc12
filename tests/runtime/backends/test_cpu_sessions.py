"""What every session on the CPU promises: the right logits for any batch, from any thread, and clear refusals.

A new CPU backend adds its name to ``CPU_BACKENDS`` and its ``MAX_CHUNK`` here. GPU backends have their own suites.
"""

import importlib.util
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from edgekiln.pipeline.data import load_split
from edgekiln.runtime.backends import CPU_BACKENDS, onnxruntime, open_session, openvino
from edgekiln.runtime.errors import EngineError, ExitCode, InputError, NonFiniteError, UsageError
from edgekiln.runtime.spec import as_frames

MAX_CHUNKS = {"onnxruntime-cpu": onnxruntime.MAX_CHUNK, "openvino": openvino.MAX_CHUNK}


@pytest.fixture(params=sorted(CPU_BACKENDS))
def backend(request):
    if request.param == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    return request.param


@pytest.fixture
def session(backend, mean_model):
    session = open_session(backend, mean_model)
    yield session
    session.close()


def exact(frames):
    return frames.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


def test_properties_tell_what_runs(session, backend):
    assert (session.backend, session.device, session.threads) == (backend, "cpu", None)
    assert (session.frame_shape, session.num_classes) == ((4, 8), 3)


def test_any_batch_size_gives_exact_logits_in_order(session, backend, random_frames):
    chunk = MAX_CHUNKS[backend]
    assert chunk < 300
    for count in (0, 1, 3, 7, 300, 1, chunk, chunk + 1, 2 * chunk, 2):
        frames = random_frames(count)
        before = frames.copy()
        logits = session.run(frames)
        assert (logits.dtype, logits.shape) == (np.float32, (count, 3))
        np.testing.assert_array_equal(logits, exact(frames))
        np.testing.assert_array_equal(frames, before)


def test_read_only_frames_work(session, random_frames):
    for count in (1, 7):
        frames = random_frames(count)
        frames.flags.writeable = False
        np.testing.assert_array_equal(session.run(frames), exact(frames))


@pytest.mark.parametrize("count", [2, 14])
def test_non_contiguous_frames_work(session, random_frames, count):
    frames = random_frames(count)
    mixed = np.ascontiguousarray(frames.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)
    for view in (frames[::2, ::-1], frames[::-1], frames[..., ::-1], frames[:, ::-1], mixed):
        assert not view.flags.c_contiguous
        np.testing.assert_array_equal(session.run(view), exact(view))


def test_tensors_of_another_library_are_read_by_dlpack(session, random_frames):
    for count in (0, 1, 7):
        frames = random_frames(count)
        channels_first = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        for tensor in (torch.from_numpy(frames.copy()), channels_first.permute(0, 2, 3, 1)):
            logits = session.run(tensor)
            assert type(logits) is np.ndarray
            np.testing.assert_array_equal(logits, exact(frames))


def test_a_tensor_is_not_copied_where_its_layout_allows(random_frames):
    tensor = torch.from_numpy(random_frames(3))
    assert as_frames(tensor).ctypes.data == tensor.data_ptr()
    assert np.shares_memory(as_frames(tensor.permute(0, 2, 1, 3)), tensor.numpy())


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (torch.zeros(1, 4, 8, 3), r"Got float32 \(1, 4, 8, 3\), wanted uint8 \(N, 4, 8, 3\)"),
        (torch.zeros(1, 3, 4, 8, dtype=torch.uint8), r"Got uint8 \(1, 3, 4, 8\), wanted uint8"),
        (torch.zeros(1, 4, 8, 3, dtype=torch.bfloat16), "Tensor cannot be read by DLPack"),
        (torch.zeros(1, 4, 8, 3, requires_grad=True), "cannot be read by DLPack: .*detach them"),
        (SimpleNamespace(__cuda_array_interface__={}), r"in the memory of a device, .*\.cpu\(\)"),
        (SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=None), "in the memory of a device"),
    ],
)
def test_arrays_that_cannot_be_frames_are_refused(session, array, told):
    with pytest.raises(InputError, match=told):
        session.run(array)


def test_results_of_two_runs_share_nothing(session, random_frames):
    for count in (1, 2):
        frames = random_frames(count)
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


def test_a_closed_session_says_so_and_closing_twice_does_nothing(backend, mean_model, random_frames):
    session = open_session(backend, mean_model)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="session is closed"):
        session.run(random_frames(1))
    assert (session.frame_shape, session.num_classes) == ((4, 8), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input_type": TensorProto.FLOAT},
            r"image: (tensor\(float\)|f32) .*wanted one (tensor\(uint8\)|u8) \[N",
        ),
        ({"input_type": TensorProto.INT8}, r"image: (tensor\(int8\)|i8) "),
        ({"outputs": 2}, r"logits1: (tensor\(float\)|f32) .*wanted one (tensor\(float\)|f32) \[.*classes\]"),
        ({"output_type": TensorProto.DOUBLE}, r"logits: (tensor\(double\)|f64) "),
    ],
)
def test_a_model_with_other_ends_is_refused(backend, build_model, changes, message):
    with pytest.raises(EngineError, match=message) as caught:
        open_session(backend, build_model(**changes))
    assert caught.value.exit_code == ExitCode.UNTRUSTED == 4


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_model_of_no_fixed_frame_size_is_refused(backend, mean_model, axis):
    proto = onnx.load_from_string(mean_model)
    proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "X"
    shape = ["?", "4", "8", "3"]
    shape[axis] = "?"
    listed = ",".join(shape)
    theirs = {"onnxruntime-cpu": r"tensor\(uint8\) .*'X'.*", "openvino": "u8 " + re.escape(f"[{listed}]")}
    with pytest.raises(EngineError, match=rf"inputs are \[image: {theirs[backend]}\], wanted"):
        open_session(backend, proto.SerializeToString())


@pytest.mark.parametrize("location", ["weights.bin", "../weights/weights.bin", "{folder}/weights.bin"])
def test_weights_in_another_file_are_refused_even_when_they_are_there(
    backend, model_with_external_weights, location
):
    # The model's digest says nothing about them.
    open_session(backend, model_with_external_weights(None)).close()
    with pytest.raises(EngineError, match=r"'weights' of the model is kept in another file") as caught:
        open_session(backend, model_with_external_weights(location))
    assert caught.value.exit_code == ExitCode.UNTRUSTED


@pytest.mark.parametrize(
    "model",
    [b"garbage", b"", bytes(1000), b'<?xml version="1.0"?><net name="x" version="11"><layers/></net>'],
    ids=["garbage", "empty", "zeros", "openvino-xml"],
)
def test_what_is_no_onnx_model_is_refused_and_the_library_prints_nothing(backend, model, capfd):
    with pytest.raises(EngineError, match="This is no ONNX model: ") as caught:
        open_session(backend, model)
    assert caught.value.exit_code == 4
    assert capfd.readouterr() == ("", "")


def test_a_cut_model_is_refused(backend, mean_model):
    for length in (len(mean_model) // 2, len(mean_model) - 1):
        with pytest.raises(
            EngineError, match=r"no ONNX model: it (ends in the middle|has no IR version or no graph)"
        ):
            open_session(backend, mean_model[:length])


def test_a_model_that_the_library_cannot_run_is_refused(backend, mean_model, capfd):
    proto = onnx.load_from_string(mean_model)
    proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match=r"[\d.]+ cannot load this model: .*NoSuchOperator") as caught:
        open_session(backend, proto.SerializeToString())
    assert "\n" not in str(caught.value).rstrip() or backend == "onnxruntime-cpu"
    assert capfd.readouterr() == ("", "")


def test_nan_is_refused_and_its_image_named(backend, build_model):
    # sqrt(mean - 128): NaN for dark pictures only.
    session = open_session(backend, build_model(shift=-128.0, tail="Sqrt"))
    frames = np.full((300, 4, 8, 3), 255, np.uint8)
    assert session.run(frames).shape == (300, 3)
    frames[270, ..., 1] = 0
    with pytest.raises(
        NonFiniteError, match=rf"{backend} gave NaN .* image 270 of the batch \(1 in all\)"
    ) as e:
        session.run(frames)
    assert e.value.exit_code == ExitCode.GATE_FAILED == 3


def test_infinity_is_refused(backend, build_model):
    session = open_session(backend, build_model(tail="Log"))
    with pytest.raises(NonFiniteError, match="image 0 of the batch"):
        session.run(np.zeros((1, 4, 8, 3), np.uint8))


@pytest.mark.parametrize("name", ["tensorflow", "onnxruntime", "onnxruntime-tpu", None])
def test_an_unknown_backend_is_refused(mean_model, name):
    with pytest.raises(
        UsageError, match=f"Unknown backend {name!r}; known: onnxruntime-cpu, openvino, onnxruntime-cuda"
    ):
        open_session(name, mean_model)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_answer(backend, mean_model, random_frames, threads):
    session = open_session(backend, mean_model, threads=threads)
    assert session.threads == threads
    np.testing.assert_array_equal(session.run(random_frames(7)), exact(random_frames(7)))


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_under_one_are_refused(backend, mean_model, threads):
    with pytest.raises(UsageError, match=f"threads must be at least 1, got {threads}"):
        open_session(backend, mean_model, threads=threads)


def test_each_of_eight_threads_gets_its_own_answers(backend, mean_model):
    session = open_session(backend, mean_model, threads=1)
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


def test_a_model_with_a_fixed_batch_is_refused_when_it_is_loaded(backend, mean_model):
    model = onnx.load_from_string(mean_model)
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    dimension.Clear()
    dimension.dim_value = 1
    with pytest.raises(EngineError, match=r"wanted one .* with a dynamic N"):
        open_session(backend, model.SerializeToString())


def test_two_models_for_one_session_are_refused(backend, mean_model):
    with pytest.raises(UsageError, match="wanted one, got 2"):
        open_session(backend, [mean_model, mean_model])


def test_the_bare_call_answers_as_run_does(session, random_frames):
    for frames in (random_frames(1), 255 - random_frames(1)):
        answer = session.bare_call(frames)()
        np.testing.assert_array_equal(np.asarray(answer[0]), exact(frames))


# FP32: only the order of sums differs. INT8: each library rounds between its own fused layers, and OpenVINO computes
# the first convolution in FP32, so logits differ by some of the 256 steps; answers only where they were near a tie.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance", "same"), [("fp32", 1e-5, 1.0), ("int8", 0.1, 0.98)])
def test_all_backends_answer_alike_on_a_real_network(lite0_run, backend, name, tolerance, same):
    model = (lite0_run.bundle / f"{name}.onnx").read_bytes()
    frames = np.array(load_split(lite0_run.stages["data"].folder, "test").frames)
    wanted = open_session("onnxruntime-cpu", model, threads=1).run(frames)
    for threads in (1, 2):
        session = open_session(backend, model, threads=threads)
        got = session.run(frames)
        single = np.concatenate([session.run(frames[i : i + 1]) for i in range(20)])
        assert np.abs(got - wanted).max() <= tolerance * np.ptp(wanted)
        assert np.mean(got.argmax(1) == wanted.argmax(1)) >= same
        # One image or many: what the accuracy run saw is what is timed.
        assert np.abs(single - got[:20]).max() <= 1e-5 * np.ptp(wanted)
