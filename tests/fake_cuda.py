"""A fake CUDA on host memory, for tests on machines without a GPU. It is held to the real ones' conformance suite.

Like the real one it is lazy: what is enqueued on a stream is done when somebody waits for the stream, so a missing
``synchronize`` shows. A fake engine reads and writes the fake device through ``view`` and puts its work on a stream
through ``enqueue``; during a capture that work is recorded.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekiln.runtime.cuda import DeviceProperties, PinnedMemory, Stream
from edgekiln.runtime.cuda.driver import cuda_failure
from edgekiln.runtime.cuda.resources import Bytes, CudaBase
from edgekiln.runtime.errors import DeviceError

__all__ = ["FAKE_DEVICE", "FakeCuda"]

FAKE_DEVICE = DeviceProperties("Fake GPU", (8, 7), 14, 1 << 30, integrated=True, can_map_host_memory=True)
_ALIGNMENT = 256  # cudaMalloc's
_FIRST_ADDRESS = 0x7_0000_0000
Work = Callable[[], None]


@dataclass
class _FakeEvent:
    timing: bool
    stream: int | None = None
    reached: float | None = None


class FakeCuda(CudaBase):
    """``CudaApi`` without CUDA.

    Attributes:
        calls: how often each method of ``CudaApi`` and of its resources did its work, by its own name;
            ``launch``, ``record`` and ``synchronize`` (of a stream) among them.
        fail_at: name of such a method to the number, from 1, of the call that raises DeviceError.
        allocated: bytes of live device memory; past ``properties.total_memory`` ResourceError is raised.
    """

    name = "fake"

    def __init__(
        self,
        *,
        properties: DeviceProperties = FAKE_DEVICE,
        fail_at: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(0, properties)
        self.calls: Counter[str] = Counter()
        self.fail_at = dict(fail_at or {})
        self._arrays: dict[int, Bytes] = {}  # by address: device memory, pinned memory and its mappings
        self._device: set[int] = set()
        self._queues: dict[int, list[Work]] = {}
        self._recording: dict[int, list[Work]] = {}
        self._handle = 0
        self._next_address = _FIRST_ADDRESS
        self._current: defaultdict[int, int] = defaultdict(int)
        self._lock = threading.RLock()

    @property
    def allocated(self) -> int:
        """Bytes of live device memory."""
        return sum(self._arrays[address].nbytes for address in self._device)

    @property
    def active(self) -> bool:
        """Whether the context is current in this thread."""
        return self._current[threading.get_ident()] > 0

    def view(self, address: int, nbytes: int) -> Bytes:
        """The bytes at a fake device address, or at the address of pinned memory, to read and to write.

        Raises:
            DeviceError: no live memory holds all of them.
        """
        for start, array in list(self._arrays.items()):
            if start <= address and address + nbytes <= start + array.nbytes:
                return array[address - start : address - start + nbytes]
        raise _failure("view", "CUDA_ERROR_ILLEGAL_ADDRESS", f"{nbytes} bytes at {address:#x}")

    def enqueue(self, handle: int, work: Work) -> None:
        """Put ``work`` behind all that the stream holds; during a capture it is recorded and not done."""
        if not self.active:
            raise _failure("enqueue", "CUDA_ERROR_INVALID_CONTEXT", "no context is current in this thread")
        if handle not in self._queues:
            raise _failure("enqueue", "CUDA_ERROR_INVALID_HANDLE", f"there is no stream {handle:#x}")
        self._recording.get(handle, self._queues[handle]).append(work)

    def is_capturing(self, handle: int) -> bool:
        """Whether the stream records."""
        return handle in self._recording

    def pending(self, handle: int) -> int:
        """Number of works on the stream that nobody waited for yet."""
        return len(self._queues[handle])

    def _count(self, name: str) -> None:
        with self._lock:
            self.calls[name] += 1
            if self.fail_at.get(name) == self.calls[name]:
                raise _failure(name, "CUDA_ERROR_FAKE", f"call {self.calls[name]} was told to fail")

    def _drain(self, handle: int) -> None:
        if handle in self._recording:
            raise _failure("synchronize", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "the stream is capturing")
        with self._lock:
            queue = self._queues[handle]
            while queue:
                queue.pop(0)()

    def _new_handle(self) -> int:
        with self._lock:
            self._handle += 16
            return self._handle

    def _place(self, array: Bytes) -> int:
        with self._lock:
            address = self._next_address
            self._next_address += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
            self._arrays[address] = array
        return address

    def _push(self) -> None:
        self._current[threading.get_ident()] += 1

    def _pop(self) -> None:
        self._current[threading.get_ident()] -= 1

    def _memory(self) -> tuple[int, int]:
        total = self.properties.total_memory
        return total - self.allocated, total

    def _allocate_device(self, nbytes: int) -> tuple[int, int]:
        self._count("allocate_device")
        self._check_room("allocate_device", nbytes)
        address = self._place(np.full(nbytes, 0xCD, np.uint8))  # not zero, as the real memory is not
        self._device.add(address)
        return address, address

    def _check_room(self, name: str, nbytes: int) -> None:
        free, _ = self._memory()
        if nbytes > free:
            raise cuda_failure(name, "CUDA_ERROR_OUT_OF_MEMORY", f"{free} bytes free", out_of_memory=True)

    def _free_device(self, token: int) -> None:
        self._count("free_device")
        self._device.remove(token)
        del self._arrays[token]

    def _allocate_pinned(self, nbytes: int, mapped: bool) -> tuple[list[int], Bytes, int | None]:
        self._count("allocate_pinned")
        self._check_room("allocate_pinned", nbytes)
        array = np.full(nbytes, 0xCD, np.uint8)
        self._arrays[array.ctypes.data] = array
        mapping = self._place(array) if mapped else None
        return [array.ctypes.data, *([mapping] if mapping else [])], array, mapping

    def _free_pinned(self, token: list[int]) -> None:
        self._count("free_pinned")
        for address in token:
            del self._arrays[address]

    def _create_stream(self) -> tuple[int, int]:
        self._count("create_stream")
        handle = self._new_handle()
        self._queues[handle] = []
        return handle, handle

    def _destroy_stream(self, token: int) -> None:
        self._drain(token)
        del self._queues[token]

    def _synchronize_stream(self, token: int) -> None:
        self._count("synchronize")
        self._drain(token)

    def _is_done(self, stream: Stream) -> bool:
        raise AssertionError("the fake's own wait does not sleep, so nobody polls it")

    def _create_event(self, timing: bool, blocking: bool) -> _FakeEvent:
        self._count("create_event")
        return _FakeEvent(timing)

    def _destroy_event(self, token: _FakeEvent) -> None:
        token.stream = None

    def _record(self, event: _FakeEvent, stream: int) -> None:
        self._count("record")
        event.stream = stream
        self.enqueue(stream, lambda: setattr(event, "reached", time.perf_counter()))

    def _synchronize_event(self, token: _FakeEvent) -> None:
        self._count("synchronize_event")
        if token.stream is not None:
            self._drain(token.stream)

    def _elapsed_ms(self, since: _FakeEvent, until: _FakeEvent) -> float:
        if not (since.timing and until.timing) or since.reached is None or until.reached is None:
            raise _failure("elapsed_ms", "CUDA_ERROR_INVALID_HANDLE", "an event without time")
        return (until.reached - since.reached) * 1e3

    def _copy_to_device(self, target: int, source: PinnedMemory, nbytes: int, stream: int) -> None:
        self._count("copy_to_device")
        self._copy(target, source.address, nbytes, stream)

    def _copy_to_host(self, target: PinnedMemory, source: int, nbytes: int, stream: int) -> None:
        self._count("copy_to_host")
        self._copy(target.address, source, nbytes, stream)

    def _copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        def copy() -> None:
            self.view(target, nbytes)[:] = self.view(source, nbytes)

        self.enqueue(stream, copy)

    def _copy_on_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self._count("copy_on_device")
        self._copy(target, source, nbytes, stream.handle)

    def _wait_for(self, stream: Stream, other: int) -> None:
        self._count("wait_for")
        self.enqueue(stream.handle, lambda: self._drain(other))

    def _device_of(self, address: int) -> int:
        self._count("device_of")
        if not any(start <= address < start + self._arrays[start].nbytes for start in list(self._device)):
            raise _failure("device_of", "CUDA_ERROR_INVALID_VALUE", f"no device memory at {address:#x}")
        return self.device

    def _begin_capture(self, stream: Stream) -> None:
        self._count("capture")
        self._recording[stream.handle] = []

    def _end_capture(self, stream: Stream) -> tuple[Work, ...]:
        return tuple(self._recording.pop(stream.handle))

    def _abandon_capture(self, stream: Stream) -> None:
        self._recording.pop(stream.handle)

    def _launch(self, graph: tuple[Work, ...], stream: Stream) -> None:
        self._count("launch")
        for work in graph:
            self.enqueue(stream.handle, work)

    def _destroy_graph(self, token: Any) -> None:
        self._count("close_graph")


def _failure(call: str, name: str, description: str) -> DeviceError:
    error = cuda_failure(f"fake {call}", name, description)
    assert isinstance(error, DeviceError)
    return error
