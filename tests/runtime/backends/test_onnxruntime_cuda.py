"""Fixed buffers and buckets of the CUDA path, run on the CPU's own memory: the same API, the same arithmetic."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from edgekiln.runtime.backends.onnxruntime_cuda import MAX_BUCKET, BoundRunner, cuda_options


@pytest.fixture
def runner(mean_model):
    session = onnxruntime.InferenceSession(mean_model, providers=["CPUExecutionProvider"])
    names = session.get_inputs()[0].name, session.get_outputs()[0].name
    return BoundRunner(onnxruntime, session, names=names, frame_shape=(4, 8), classes=3, device="cpu")


def exact(frames):
    return frames.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 5, MAX_BUCKET, MAX_BUCKET + 1, 3 * MAX_BUCKET + 2])
def test_any_batch_size_in_order(runner, random_frames, count):
    frames = random_frames(count)
    np.testing.assert_array_equal(runner.run(frames), exact(frames))


def test_an_older_batch_never_leaks(runner, random_frames):
    runner.run(random_frames(8))
    frames = random_frames(5)
    np.testing.assert_array_equal(runner.run(frames), exact(frames))


def test_answers_are_the_callers_own(runner, random_frames):
    first, second = random_frames(4), 255 - random_frames(4)
    answer = runner.run(first)
    runner.run(second)
    np.testing.assert_array_equal(answer, exact(first))


def test_buffers_are_made_once_for_each_power_of_two(runner, random_frames, monkeypatch):
    for count in (1, 2, 3, 4, 64):
        runner.run(random_frames(count))
    monkeypatch.setattr(runner, "_make_bucket", lambda size: pytest.fail(f"a new bucket of {size}"))
    for count in (1, 2, 3, 4, 33, 64, 192):
        runner.run(random_frames(count))


def test_threads_take_turns(runner, random_frames):
    batches = [random_frames(n % 7 + 1) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for frames, logits in zip(batches, pool.map(runner.run, batches), strict=True):
            np.testing.assert_array_equal(logits, exact(frames))


def test_tf32_is_off():
    assert cuda_options(graphs=True)["use_tf32"] == "0"
    assert cuda_options(graphs=True)["enable_cuda_graph"] == "1"
    assert cuda_options(graphs=False)["enable_cuda_graph"] == "0"
