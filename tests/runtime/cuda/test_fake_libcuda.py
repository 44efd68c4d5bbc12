"""What the driver without a device promises; see the head of ``fake_libcuda.c``."""

import ctypes
import os
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p

import numpy as np
import pytest

OK, INVALID_VALUE, NOT_INITIALIZED, INVALID_CONTEXT, INVALID_HANDLE = 0, 1, 3, 201, 400
NOT_FOUND, NOT_READY, ILLEGAL_ADDRESS, NOT_SUPPORTED, CAPTURE_INVALIDATED = 500, 600, 700, 801, 901
NBYTES = 64
HOST_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p)


class Raw:
    """The library with its functions as they are: handles are ints, every call gives its status."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.fake_failed.restype = self.library.fake_complaint.restype = c_char_p
        self.library.fake_reach.restype = c_void_p

    def __call__(self, name, *arguments):
        return getattr(self.library, name)(
            *(c_void_p(a) if isinstance(a, int) and a > 1 << 15 else a for a in arguments)
        )

    def make(self, name, *arguments):
        """What a successful call creates: a handle or an address."""
        made = c_void_p()
        assert self(name, byref(made), *arguments) == OK, name
        return made.value

    def live(self, kind):
        return self.library.fake_live(kind.encode())

    def memory(self):
        return self.make("cuMemAlloc_v2", c_size_t(NBYTES))

    def pinned(self, flags=0):
        address = self.make("cuMemHostAlloc", c_size_t(NBYTES), flags)
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * NBYTES).from_address(address))

    def copy_in(self, device, host, stream):
        return self("cuMemcpyHtoDAsync_v2", device, host, c_size_t(NBYTES), stream)

    def copy_out(self, host, device, stream):
        return self("cuMemcpyDtoHAsync_v2", host, device, c_size_t(NBYTES), stream)


@pytest.fixture
def raw(fake_libcuda):
    driver = Raw(fake_libcuda())
    assert driver("cuInit", 0) == OK
    driver("cuCtxPushCurrent_v2", driver.make("cuDevicePrimaryCtxRetain", 0))
    return driver


@pytest.fixture
def stream(raw):
    return raw.make("cuStreamCreate", 1)


def test_nothing_works_before_it_is_started_and_without_a_context(fake_libcuda):
    driver, made = Raw(fake_libcuda()), c_void_p()
    assert driver("cuStreamCreate", byref(made), 1) == NOT_INITIALIZED
    assert driver("cuInit", 0) == OK
    assert driver("cuStreamCreate", byref(made), 1) == INVALID_CONTEXT


def test_a_fork_cannot_use_it(raw):
    child = os.fork()
    if child == 0:
        os._exit(raw("cuStreamCreate", byref(c_void_p()), 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == NOT_INITIALIZED


def test_settings_are_read_when_they_matter(raw, monkeypatch):
    value = c_int()
    monkeypatch.setenv("FAKE_DRIVER", "12080")
    assert raw("cuDriverGetVersion", byref(value)) == OK
    assert value.value == 12080
    monkeypatch.setenv("FAKE_INTEGRATED", "0")
    assert raw("cuDeviceGetAttribute", byref(value), 18, 0) == OK
    assert value.value == 0


def test_work_is_done_when_it_is_waited_for(raw, stream):
    memory, (source, content), (target, answer) = raw.memory(), raw.pinned(), raw.pinned()
    content[:] = 7
    assert raw.copy_in(memory, source, stream) == raw.copy_out(target, memory, stream) == OK
    assert (answer == 0xCD).all()
    content[:] = 8  # too early, as on a real device
    assert raw("cuStreamSynchronize", stream) == OK
    assert (answer == 8).all()


def test_a_question_finds_one_more_piece_of_work_done(raw, stream):
    memory, (host, _) = raw.memory(), raw.pinned()
    for _ in range(2):
        raw.copy_in(memory, host, stream)
    assert [raw("cuStreamQuery", stream) for _ in range(4)] == [NOT_READY, NOT_READY, OK, OK]


def test_an_eager_device_does_not_wait(raw, stream, monkeypatch):
    monkeypatch.setenv("FAKE_EAGER", "1")
    memory, (source, content), (target, answer) = raw.memory(), raw.pinned(), raw.pinned()
    content[:] = 7
    assert raw.copy_in(memory, source, stream) == raw.copy_out(target, memory, stream) == OK
    assert (answer == 7).all()
    assert raw("cuStreamQuery", stream) == OK


def test_an_event_waits_for_what_is_before_it_and_streams_wait_for_events(raw, stream):
    other, begin, end = (
        raw.make("cuStreamCreate", 1),
        raw.make("cuEventCreate", 0),
        raw.make("cuEventCreate", 0),
    )
    memory, (source, content), (target, answer) = raw.memory(), raw.pinned(), raw.pinned()
    content[:] = 7
    raw("cuEventRecord", begin, stream)
    raw.copy_in(memory, source, stream)
    raw("cuEventRecord", end, stream)
    ms = c_float(-1)
    assert raw("cuEventElapsedTime", byref(ms), begin, end) == NOT_READY
    assert raw("cuEventQuery", end) == NOT_READY
    raw("cuStreamWaitEvent", other, end, 0)
    raw.copy_out(target, memory, other)
    assert raw("cuStreamSynchronize", other) == OK
    assert (answer == 7).all()
    assert raw("cuEventElapsedTime", byref(ms), begin, end) == OK
    assert ms.value >= 0


def test_functions_of_the_host_run_in_order_and_may_not_call_cuda(raw, stream):
    seen = []
    functions = [
        HOST_FUNCTION(lambda _: seen.append(1)),
        HOST_FUNCTION(lambda _: seen.append(raw("cuCtxGetCurrent", 0))),
    ]
    for function in functions:
        assert raw("cuLaunchHostFunc", stream, function, None) == OK
    assert seen == []
    assert raw("cuStreamSynchronize", stream) == OK
    assert seen == [1, 800]
    assert b"a host function calls CUDA" in raw.library.fake_complaint()


def test_a_graph_replays_and_a_wait_spoils_a_capture(raw, stream):
    memory, (source, content), (target, answer) = raw.memory(), raw.pinned(), raw.pinned()
    assert raw("cuStreamBeginCapture_v2", stream, 1) == OK
    raw.copy_in(memory, source, stream)
    raw.copy_out(target, memory, stream)
    graph = c_void_p()
    assert raw("cuStreamEndCapture", stream, byref(graph)) == OK
    executable = raw.make("cuGraphInstantiateWithFlags", graph, 0)
    assert raw("cuGraphDestroy", graph) == OK
    for value in (7, 8):
        content[:] = value
        assert raw("cuGraphLaunch", executable, stream) == raw("cuStreamSynchronize", stream) == OK
        assert (answer == value).all()
    raw("cuStreamBeginCapture_v2", stream, 1)
    assert raw("cuStreamSynchronize", stream) == 900
    assert raw("cuStreamEndCapture", stream, byref(graph)) == CAPTURE_INVALIDATED
    assert raw.live("graph") == 0
    assert raw.live("executable") == 1


def test_memory_has_an_address_for_the_device_and_another_for_the_host(raw):
    memory, (host, content) = raw.memory(), raw.pinned(flags=2)
    mapped = raw.make("cuMemHostGetDevicePointer_v2", host, 0)
    content[:] = 7
    reached = raw("fake_reach", mapped + 8, c_size_t(8))
    assert ctypes.string_at(reached, 8) == bytes([7] * 8)
    assert raw("fake_reach", memory, c_size_t(NBYTES)) is not None
    for address, size in ((memory, NBYTES + 1), (memory - 1, 1), (host, 1), (mapped + 60, 8)):
        assert raw("fake_reach", address, c_size_t(size)) is None
    assert raw("cuMemHostGetDevicePointer_v2", byref(c_void_p()), raw.pinned()[0], 0) == INVALID_VALUE


def test_a_copy_has_to_go_between_live_memory_of_the_right_kind(raw, stream):
    memory, (host, _) = raw.memory(), raw.pinned()
    assert raw.copy_in(host, host, stream) == INVALID_VALUE
    assert raw.copy_out(memory, memory, stream) == INVALID_VALUE
    assert raw("cuMemcpyAsync", memory, host, c_size_t(NBYTES + 1), stream) == INVALID_VALUE
    assert raw("cuMemFree_v2", memory + 8) == INVALID_VALUE
    assert raw("cuMemFree_v2", memory) == OK
    assert raw("cuMemFree_v2", memory) == INVALID_HANDLE
    assert raw.copy_in(memory, host, stream) == INVALID_VALUE
    assert raw.memory() != memory


def test_work_that_finds_its_memory_freed_breaks_the_device(raw, stream):
    memory, (host, _) = raw.memory(), raw.pinned()
    raw.copy_in(memory, host, stream)
    raw("cuMemFree_v2", memory)
    assert raw("cuStreamSynchronize", stream) == ILLEGAL_ADDRESS
    assert raw("cuMemAlloc_v2", byref(c_void_p()), c_size_t(8)) == ILLEGAL_ADDRESS
    assert raw("cuCtxPopCurrent_v2", None) == OK


@pytest.mark.parametrize(
    ("create", "arguments", "destroy"),
    [("cuStreamCreate", (1,), "cuStreamDestroy_v2"), ("cuEventCreate", (0,), "cuEventDestroy_v2")],
)
def test_a_handle_ends_and_is_not_given_again(raw, create, arguments, destroy):
    first = raw.make(create, *arguments)
    assert raw(destroy, first) == OK
    assert raw(destroy, first) == INVALID_HANDLE
    assert raw(destroy, first + 8) == raw(destroy, 1 << 40) == INVALID_HANDLE
    assert raw.make(create, *arguments) != first


def test_a_call_fails_once_by_its_name_or_its_number(raw, stream):
    raw("fake_fail", b"cuEventCreate", 2, 2)
    made = c_void_p()
    assert [raw("cuEventCreate", byref(made), 0) for _ in range(3)] == [OK, 2, OK]
    assert raw.library.fake_failed() == b"cuEventCreate"
    raw("fake_fail", None, 2, 999)
    assert [raw("cuStreamSynchronize", stream), raw("cuStreamQuery", stream)] == [OK, 999]
    assert raw.library.fake_failed() == b"cuStreamQuery"
    assert raw("fake_calls", b"cuEventCreate") == 3


def test_a_call_fails_by_the_environment(fake_libcuda, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "cuDeviceGetCount:2:999")
    driver, count = Raw(fake_libcuda()), c_int()
    driver("cuInit", 0)
    assert [driver("cuDeviceGetCount", byref(count)) for _ in range(3)] == [OK, 999, OK]
    monkeypatch.setenv("FAKE_FAIL", ":2:2")
    driver = Raw(fake_libcuda())
    assert [driver("cuInit", 0) for _ in range(3)] == [OK, 2, OK]


def test_a_gpu_that_falls_off_the_bus_stays_away(raw, stream):
    raw("fake_fail", b"cuStreamSynchronize", 1, 719)
    assert raw("cuStreamSynchronize", stream) == 719
    assert raw("cuStreamDestroy_v2", stream) == raw("cuMemAlloc_v2", byref(c_void_p()), c_size_t(8)) == 719
    raw("fake_fail", None, 0, 0)
    assert raw("cuStreamQuery", stream) == OK


def test_what_is_not_given_back_is_counted(raw, stream):
    raw.pinned(), raw.memory()
    event = raw.make("cuEventCreate", 0)
    kinds = ("stream", "event", "graph", "executable", "device memory", "pinned memory")
    assert [raw.live(kind) for kind in kinds] == [1, 1, 0, 0, 1, 1]
    raw("fake_fail", b"cuEventDestroy_v2", 1, 2)
    assert raw("cuEventDestroy_v2", event) == 2
    assert raw.live("event") == 0  # all was done that could be done


def test_wrong_calls_are_counted_and_told(raw):
    before = raw("fake_complaints")
    assert raw("cuCtxSynchronize") == NOT_SUPPORTED
    assert raw("fake_complaints") == before + 1
    assert b"cuCtxSynchronize: " in raw.library.fake_complaint()


def test_a_status_that_nobody_knows_has_no_text(raw):
    text = c_char_p()
    assert raw("cuGetErrorName", 54321, byref(text)) == INVALID_VALUE
    assert text.value is None


def test_libraries_find_its_functions_and_no_answer_to_nvidias_own_check(raw):
    function, table = c_void_p(), c_void_p(1)
    assert raw("cuGetProcAddress_v2", b"cuMemAlloc", byref(function), 12080, 0, None) == OK
    assert function.value == ctypes.cast(raw.library.cuMemAlloc_v2, c_void_p).value
    assert raw("cuGetProcAddress_v2", b"cuFromTheFuture", byref(function), 12080, 0, None) == NOT_FOUND
    assert raw("cuGetExportTable", byref(table), None) == NOT_FOUND
    assert table.value is None
