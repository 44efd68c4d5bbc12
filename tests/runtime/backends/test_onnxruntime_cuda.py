"""Fixed buffers and buckets of the CUDA path, run on the CPU's own memory: the same API, the same arithmetic."""

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from fake_onnxruntime import HostCuda

from edgekiln.runtime.backends.onnxruntime_cuda import MAX_BUCKET, BoundRunner, cuda_options
from edgekiln.runtime.errors import DeviceError, DeviceLostError, ForkedError, ResourceError, UsageError


@pytest.fixture
def cuda():
    return HostCuda()


def make_runner(model, cuda, session=None):
    session = session or onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return BoundRunner(
        onnxruntime, session, cuda, names=("image", "logits"), frame_shape=(4, 8), classes=3, device="cpu"
    )


@pytest.fixture
def runner(mean_model, cuda):
    runner = make_runner(mean_model, cuda)
    yield runner
    runner.close()
    assert cuda.live == {}
    assert cuda.allocated == 0


class Session:
    """onnxruntime's session on the CPU, whose bound runs fail as told: the words of each failure, in order."""

    def __init__(self, model):
        self.real = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.io_binding = self.real.io_binding
        self.failures = []
        self.graphs = []
        self.callers = []

    def run_with_iobinding(self, binding, options):
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        self.callers.append((threading.get_ident(), gc.isenabled()))
        if self.failures:
            raise RuntimeError(self.failures.pop(0))
        self.real.run_with_iobinding(binding, options)


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


def test_a_call_allocates_nothing_and_copies_page_locked_memory_alone(runner, cuda, random_frames):
    for count in (1, 2, 4):
        runner.run(random_frames(count))
    calls, live = cuda.calls.copy(), set(cuda.live)
    for count in (1, 2, 3, 4):
        runner.run(random_frames(count))
    assert set(cuda.live) == live
    assert cuda.calls - calls == {"copy_to_device": 4, "copy_to_host": 4, "synchronize": 8}


@pytest.mark.parametrize("ordinal", [1, 2])
@pytest.mark.parametrize("name", ["allocate_pinned", "allocate_device"])
def test_memory_that_runs_out_leaves_nothing_and_is_asked_for_again(
    runner, cuda, random_frames, name, ordinal
):
    cuda.fail_at = {name: ordinal}
    with pytest.raises(DeviceError, match=f"fake {name} failed"):
        runner.run(random_frames(3))
    assert {type(resource).__name__ for resource in cuda.live} == {"Stream", "Event"}
    np.testing.assert_array_equal(runner.run(random_frames(3)), exact(random_frames(3)))


def test_a_capture_that_fails_runs_without_a_graph_and_says_so_once(mean_model, cuda, random_frames, caplog):
    session = Session(mean_model)
    runner = make_runner(mean_model, cuda, session)
    session.failures = ["CUDA failure 900: operation not permitted when stream is capturing"]
    for count in (2, 2, 1):
        np.testing.assert_array_equal(runner.run(random_frames(count)), exact(random_frames(count)))
    assert session.graphs == ["2", "-1", "-1", "1"]
    assert [record.getMessage()[:44] for record in caplog.records] == [
        "no CUDA graph for batch size 2, as onnxrunti"
    ]
    session.failures = ["capture, of a run that ran before"]
    with pytest.raises(RuntimeError, match="that ran before"):
        runner.run(random_frames(1))
    runner.close()


def test_one_thread_makes_all_calls_of_the_library_and_ends_with_the_runner(mean_model, cuda, random_frames):
    # onnxruntime keeps graphs and handles for each thread that calls it, and captures again in a new one.
    session, before = Session(mean_model), set(threading.enumerate())
    runner = make_runner(mean_model, cuda, session)
    assert set(threading.enumerate()) == before  # it starts with the first call
    for _ in range(3):
        caller = threading.Thread(target=runner.run, args=(random_frames(2),))
        caller.start()
        caller.join()
    runner.run(random_frames(2))
    (worker,) = {thread for thread, _ in session.callers}
    assert worker not in {thread.ident for thread in before}
    runner.close()
    assert set(threading.enumerate()) == before


def test_the_collector_is_held_off_while_a_size_first_runs(mean_model, cuda, random_frames):
    session = Session(mean_model)
    runner = make_runner(mean_model, cuda, session)
    for count in (2, 2, 1):
        runner.run(random_frames(count))
    assert [enabled for _, enabled in session.callers] == [False, True, False]
    runner.close()


def test_a_call_whose_turn_comes_after_the_end_is_told(runner, random_frames):
    runner.run(random_frames(2))
    runner._close()
    with pytest.raises(UsageError, match="This session is closed"):
        runner.run(random_frames(2))
    runner.close()
    with pytest.raises(UsageError, match="This session is closed"):
        runner.run(random_frames(2))


def test_close_waits_for_the_calls_that_came_before(mean_model, cuda, random_frames, monkeypatch):
    session, entered, gate = Session(mean_model), threading.Event(), threading.Event()
    runner = make_runner(mean_model, cuda, session)
    run = session.run_with_iobinding

    def wait_and_run(*arguments):
        entered.set()
        assert gate.wait(20)
        run(*arguments)

    monkeypatch.setattr(session, "run_with_iobinding", wait_and_run)
    frames = [random_frames(2), random_frames(3)]
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(runner.run, frames[0])]
        assert entered.wait(20)
        calls.append(pool.submit(runner.run, frames[1]))
        end = time.monotonic() + 20
        while runner._worker._work_queue.qsize() < 1:
            assert time.monotonic() < end
            time.sleep(0.001)
        closing = pool.submit(runner.close)
        gate.set()
        for call, batch in zip(calls, frames, strict=True):
            np.testing.assert_array_equal(call.result(20), exact(batch))
        closing.result(20)
    assert cuda.live == {}


def test_a_thread_that_cannot_start_is_told_and_nothing_stays(mean_model, cuda, random_frames, monkeypatch):
    runner = make_runner(mean_model, cuda)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(
        ResourceError, match="edgekiln-onnxruntime-cuda cannot be started: can't start new thread"
    ):
        runner.run(random_frames(1))
    runner.close()
    assert cuda.live == {}


# Python 3.12 and later warn of any fork where threads are; the child here only raises and leaves.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_at_once(runner, random_frames):
    frames = random_frames(1)
    runner.run(frames)
    child = os.fork()
    if child == 0:
        try:
            runner.run(frames)
        except ForkedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_buffers_that_cannot_be_bound_leave_nothing(mean_model, cuda, random_frames, monkeypatch):
    session = Session(mean_model)
    runner = make_runner(mean_model, cuda, session)

    def refuse():
        raise RuntimeError("no binding")

    with monkeypatch.context() as patch:
        patch.setattr(session, "io_binding", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no binding"):
                runner.run(random_frames(3))
            assert {type(resource).__name__ for resource in cuda.live} == {"Stream", "Event"}
    np.testing.assert_array_equal(runner.run(random_frames(3)), exact(random_frames(3)))
    runner.close()


def test_a_lost_gpu_is_told_at_once_by_every_later_call(mean_model, cuda, random_frames, monkeypatch):
    session = Session(mean_model)
    runner = make_runner(mean_model, cuda, session)
    runner.run(random_frames(2))
    session.failures = ["CUDA failure 719: unspecified launch failure"]

    def refuse(token):
        raise DeviceError("cuStreamSynchronize failed: CUDA_ERROR_LAUNCH_FAILED (error 719).")

    monkeypatch.setattr(cuda, "_synchronize_stream", refuse)
    monkeypatch.setattr(cuda, "_free_device", refuse)
    monkeypatch.setattr(cuda, "_copy_to_device", lambda *_: None)
    messages = set()
    for _ in range(3):
        with pytest.raises(DeviceLostError, match="The GPU is lost to this process: ") as caught:
            runner.run(random_frames(2))
        messages.add(caught.value.message)
        monkeypatch.setattr(cuda, "_copy_to_device", lambda *_: pytest.fail("the GPU was asked again"))
    assert len(messages) == 1
    runner.close()
    assert cuda.live == {}


def test_the_gpu_of_that_number_is_asked_for():
    assert cuda_options(graphs=True)["device_id"] == "0"
    assert cuda_options(graphs=False, device=1)["device_id"] == "1"


def test_tf32_is_off():
    assert cuda_options(graphs=True)["use_tf32"] == "0"
    assert cuda_options(graphs=True)["enable_cuda_graph"] == "1"
    assert cuda_options(graphs=False)["enable_cuda_graph"] == "0"
