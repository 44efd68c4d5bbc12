"""What every implementation of ``CudaApi`` promises. The fake one runs everywhere; the real ones need a GPU."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import FAKE_DEVICE, FakeCuda

from edgekiln.runtime.cuda import open_cuda, probe_driver, require_device
from edgekiln.runtime.cuda.driver import load_driver
from edgekiln.runtime.cuda.libcuda import LibcudaApi
from edgekiln.runtime.errors import DeviceError, EdgekilnError, MissingExtraError, ResourceError, UsageError

NBYTES = 4096
REAL = [pytest.param(name, marks=pytest.mark.gpu) for name in ("pycuda", "libcuda")]


def open_or_skip(name):
    problem = probe_driver().problem
    if problem is not None:
        pytest.skip(problem)
    try:
        return open_cuda(name)
    except MissingExtraError as error:
        pytest.skip(error.message)


def open_on_fake_driver(library):
    return LibcudaApi(0, require_device(0, library), load_driver(library))


@pytest.fixture(params=["fake", "libcuda-on-fake-driver", *REAL])
def cuda(request):
    if request.param == "libcuda-on-fake-driver":
        api = open_on_fake_driver(request.getfixturevalue("fake_libcuda")())
    else:
        api = FakeCuda() if request.param == "fake" else open_or_skip(request.param)
    yield api
    api.close()


@pytest.fixture(params=REAL)
def real_cuda(request):
    api = open_or_skip(request.param)
    yield api
    api.close()


@pytest.fixture
def stream(cuda):
    return cuda.create_stream()


def bytes_of(seed, nbytes=NBYTES):
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def buffers(cuda):
    nbytes = np.prod([NBYTES])  # as a caller has it from a shape
    return cuda.allocate_pinned(nbytes), cuda.allocate_device(nbytes), cuda.allocate_pinned(nbytes)


def test_properties_are_those_of_the_driver(cuda):
    expected = FAKE_DEVICE if cuda.name == "fake" else cuda._driver.properties(0)
    assert cuda.properties == expected
    assert cuda.device == 0
    free, total = cuda.memory()
    assert 0 < free <= total
    # The context may keep a part of what the driver counts to itself.
    assert 0.5 * expected.total_memory < total <= 1.01 * expected.total_memory


def test_bytes_are_copied_on_the_device(cuda, stream):
    source, device, target = buffers(cuda)
    other = cuda.allocate_device(NBYTES)
    source.array[:] = bytes_of(4)
    cuda.copy_to_device(device, source, NBYTES, stream)
    cuda.copy_on_device(other.address + 16, device.address + 8, NBYTES - 16, stream)
    cuda.copy_to_host(target, other, NBYTES, stream)
    stream.synchronize()
    np.testing.assert_array_equal(target.array[16:], bytes_of(4)[8 : NBYTES - 8])
    with pytest.raises(UsageError, match="at least 1 byte, got 0"):
        cuda.copy_on_device(other.address, device.address, 0, stream)


def test_a_stream_waits_for_what_another_one_holds(cuda, stream):
    """By its handle alone, as a foreign library hands it over."""
    source, device, target = buffers(cuda)
    filling = cuda.create_stream()
    for seed in range(8):
        source.array[:] = bytes_of(seed)
        cuda.copy_to_device(device, source, NBYTES, filling)
        cuda.wait_for(stream, filling.handle)
        cuda.copy_to_host(target, device, NBYTES, stream)
        stream.synchronize()
        np.testing.assert_array_equal(target.array, bytes_of(seed))
    filling.close()


def test_an_address_tells_its_device(cuda):
    memory = cuda.allocate_device(NBYTES)
    assert cuda.device_of(memory.address + NBYTES - 1) == cuda.device
    with pytest.raises(DeviceError):
        cuda.device_of(16)


@pytest.mark.parametrize("wait", ["spin", "blocking"])
def test_bytes_come_back_as_they_went(cuda, stream, wait):
    source, device, target = buffers(cuda)
    assert source.array.dtype == np.uint8
    assert source.array.shape == (NBYTES,)
    assert source.device_address is None
    source.array[:] = bytes_of(1)
    target.array[:] = 0
    cuda.copy_to_device(device, source, NBYTES, stream)
    cuda.copy_to_host(target, device, NBYTES, stream)
    stream.synchronize(wait)
    np.testing.assert_array_equal(target.array, bytes_of(1))


def test_a_part_is_copied_and_the_rest_stays(cuda, stream):
    source, device, target = buffers(cuda)
    source.array[:] = bytes_of(2)
    target.array[:] = 9
    cuda.copy_to_device(device, source, 100, stream)
    cuda.copy_to_host(target, device, 100, stream)
    stream.synchronize()
    np.testing.assert_array_equal(target.array[:100], bytes_of(2)[:100])
    assert (target.array[100:] == 9).all()


@pytest.mark.parametrize("nbytes", [-1, 0, NBYTES + 1])
def test_a_copy_beyond_the_memory_is_refused(cuda, stream, nbytes):
    source, device, target = buffers(cuda)
    with pytest.raises(UsageError, match=f"Cannot copy {nbytes} bytes: the source holds 4096"):
        cuda.copy_to_device(device, source, nbytes, stream)
    with pytest.raises(UsageError, match=f"Cannot copy {nbytes} bytes"):
        cuda.copy_to_host(target, device, nbytes, stream)


def test_an_empty_allocation_is_refused(cuda):
    with pytest.raises(UsageError, match="at least 1 byte, got 0"):
        cuda.allocate_device(0)
    with pytest.raises(UsageError, match="at least 1 byte, got 0"):
        cuda.allocate_pinned(0)


def test_the_device_reads_and_writes_mapped_memory(cuda, stream):
    if not cuda.properties.can_map_host_memory:
        pytest.skip("This device cannot map host memory.")
    mapped = cuda.allocate_pinned(NBYTES, mapped=True)
    source, _, target = buffers(cuda)
    device = SimpleNamespace(address=mapped.device_address, nbytes=NBYTES)
    mapped.array[:] = bytes_of(3)
    cuda.copy_to_host(target, device, NBYTES, stream)
    stream.synchronize()
    np.testing.assert_array_equal(target.array, bytes_of(3))
    source.array[:] = bytes_of(4)
    cuda.copy_to_device(device, source, NBYTES, stream)
    stream.synchronize()
    np.testing.assert_array_equal(mapped.array, bytes_of(4))


@pytest.mark.parametrize("blocking", [False, True])
def test_events_measure_time(cuda, stream, blocking):
    source, device, _ = buffers(cuda)
    before, after = (cuda.create_event(timing=True, blocking=blocking) for _ in range(2))
    before.record(stream)
    cuda.copy_to_device(device, source, NBYTES, stream)
    after.record(stream)
    after.synchronize()
    assert after.elapsed_ms(before) >= 0
    assert after.elapsed_ms(after) >= 0


def test_handles_are_distinct_ints(cuda, stream):
    other = cuda.create_stream()
    assert isinstance(stream.handle, int)
    assert isinstance(cuda.allocate_device(1).address, int)
    assert 0 != stream.handle != other.handle != 0


def test_a_graph_replays_with_what_the_input_holds_then(cuda, stream):
    source, device, target = buffers(cuda)
    target.array[:] = 0

    def enqueue():
        cuda.copy_to_device(device, source, NBYTES, stream)
        cuda.copy_to_host(target, device, NBYTES, stream)

    source.array[:] = bytes_of(5)
    graph = cuda.capture(stream, enqueue)
    stream.synchronize()
    assert not target.array.any()  # recorded, not done
    for seed in (6, 7):
        source.array[:] = bytes_of(seed)
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(target.array, bytes_of(seed))
    graph.close()
    graph.close()
    with pytest.raises(UsageError, match="This graph is closed"):
        graph.launch(stream)


def test_another_thread_allocates_during_a_capture(cuda, stream):
    source, device, target = buffers(cuda)
    failed = []

    def allocate():
        try:
            with cuda.activate():
                cuda.allocate_device(1 << 20).free()
                cuda.allocate_pinned(1 << 16).free()
                cuda.create_stream().synchronize("blocking")
        except EdgekilnError as error:
            failed.append(error)

    def enqueue():
        cuda.copy_to_device(device, source, NBYTES, stream)
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        cuda.copy_to_host(target, device, NBYTES, stream)

    graph = cuda.capture(stream, enqueue)
    assert not failed
    source.array[:] = bytes_of(8)
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(target.array, bytes_of(8))


def test_an_exception_during_a_capture_goes_on_and_leaves_the_stream_usable(cuda, stream):
    source, device, target = buffers(cuda)

    def enqueue():
        cuda.copy_to_device(device, source, NBYTES, stream)
        raise ValueError("the engine said no")

    with pytest.raises(ValueError, match="the engine said no"):
        cuda.capture(stream, enqueue)
    source.array[:] = bytes_of(9)
    cuda.copy_to_device(device, source, NBYTES, stream)
    cuda.copy_to_host(target, device, NBYTES, stream)
    stream.synchronize()
    np.testing.assert_array_equal(target.array, bytes_of(9))
    cuda.capture(stream, lambda: cuda.copy_to_device(device, source, NBYTES, stream)).launch(stream)
    stream.synchronize()


def test_a_wait_during_a_capture_fails_and_leaves_the_stream_usable(cuda, stream):
    with pytest.raises(DeviceError, match="failed:"):
        cuda.capture(stream, stream.synchronize)
    stream.synchronize()


def test_four_threads_work_side_by_side(cuda):
    wrong, barrier = [], threading.Barrier(4)

    def work(seed):
        barrier.wait()
        try:
            with cuda.activate(), cuda.activate():
                stream = cuda.create_stream()
                source, device, target = buffers(cuda)
                for step in range(20):
                    source.array[:] = bytes_of((seed, step))
                    cuda.copy_to_device(device, source, NBYTES, stream)
                    cuda.copy_to_host(target, device, NBYTES, stream)
                    stream.synchronize()
                    if not np.array_equal(target.array, bytes_of((seed, step))):
                        wrong.append((seed, step))
        except EdgekilnError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_thread_frees_what_another_allocated(cuda):
    made = []
    thread = threading.Thread(target=lambda: made.extend([*buffers(cuda), cuda.create_stream()]))
    thread.start()
    thread.join()
    *memory, stream = made
    for block in memory:
        block.free()
    stream.close()
    assert not cuda.live


def test_a_failure_inside_nested_activations_ends_them(cuda, stream):
    with pytest.raises(KeyError), cuda.activate(), cuda.activate():
        raise KeyError("of the caller")
    with cuda.activate():
        stream.synchronize()
    assert cuda.memory()[0] > 0


def test_memory_that_is_not_there_is_a_resource_error(cuda):
    _, total = cuda.memory()
    with pytest.raises(ResourceError, match=r"failed: .*memory") as caught:
        cuda.allocate_device(4 * total)
    assert caught.value.exit_code == 6
    cuda.allocate_device(NBYTES).free()


def test_freeing_twice_does_nothing_and_freed_memory_is_unusable(cuda, stream):
    source, device, target = buffers(cuda)
    event = cuda.create_event()
    for release in (source.free, device.free, event.close):
        release()
        release()
    with pytest.raises(UsageError, match="This device memory is closed"):
        _ = device.address
    for read in ("array", "address", "device_address"):
        with pytest.raises(UsageError, match="This pinned memory is closed"):
            getattr(source, read)
    with pytest.raises(UsageError, match="This event is closed"):
        event.record(stream)
    with pytest.raises(UsageError, match="This device memory is closed"):
        cuda.copy_to_host(target, device, 1, stream)
    stream.close()
    stream.close()
    for use in (stream.synchronize, lambda: stream.handle):
        with pytest.raises(UsageError, match="This stream is closed"):
            use()


def test_closing_frees_all_and_ends_all_use(cuda, stream):
    source, device, _ = buffers(cuda)
    cuda.capture(stream, lambda: cuda.copy_to_device(device, source, NBYTES, stream))
    cuda.close()
    cuda.close()
    assert not cuda.live
    device.free()
    with pytest.raises(UsageError, match="This device memory is closed"):
        _ = device.address
    for use in (cuda.memory, cuda.create_stream, lambda: cuda.allocate_device(1), cuda.activate().__enter__):
        with pytest.raises(UsageError, match="This CUDA API is closed"):
            use()


def test_another_can_be_opened_beside_it_and_after_it(real_cuda):
    other = open_cuda(real_cuda.name)
    other.allocate_device(NBYTES)
    other.close()
    real_cuda.allocate_device(NBYTES).free()
    again = open_cuda(real_cuda.name)
    again.allocate_device(NBYTES)
    again.close()


def test_torch_goes_on_working_in_the_same_context(real_cuda):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device.")
    ones = torch.ones(1000, device="cuda")
    with real_cuda.activate():
        assert ones.sum().item() == 1000
        memory = real_cuda.allocate_device(NBYTES)
    stream = real_cuda.create_stream()
    target = real_cuda.allocate_pinned(ones.nbytes)
    torch.cuda.synchronize()
    tensor = SimpleNamespace(address=ones.data_ptr(), nbytes=ones.nbytes)
    real_cuda.copy_to_host(target, tensor, ones.nbytes, stream)
    stream.synchronize()
    assert (target.array.view(np.float32) == 1).all()
    memory.free()
    real_cuda.close()
    assert (ones + 1).sum().item() == 2000
