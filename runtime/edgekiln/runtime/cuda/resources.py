"""Memory, streams, events and graphs of CUDA, and what every implementation of ``CudaApi`` shares.

An implementation gives the few primitives that ``CudaBase`` lists; lifetime, bounds, threads and forks are judged
here, once. It knows nothing of which package does the work.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.cuda.collector import collector_held_off
from edgekiln.runtime.cuda.driver import DeviceProperties
from edgekiln.runtime.cuda.unwinding import close_all, closed_on_failure
from edgekiln.runtime.errors import ForkedError, UsageError

__all__ = ["CudaBase", "DeviceMemory", "Event", "Graph", "PinnedMemory", "Stream", "Wait"]

Wait = Literal["spin", "blocking"]
Bytes: TypeAlias = NDArray[np.uint8]


class Resource:
    """Something of CUDA that is released once. Dropping it releases nothing: close it, or the API."""

    kind: ClassVar[str]

    def __init__(self, cuda: CudaBase, token: Any) -> None:
        self._cuda = cuda
        cuda.live[self] = token

    @property
    def token(self) -> Any:
        """What the implementation knows it by.

        Raises:
            UsageError: it is released.
        """
        try:
            return self._cuda.live[self]
        except KeyError:
            raise UsageError(f"This {self.kind} is closed.") from None

    def release(self) -> None:
        """What ``free`` and ``close`` do. Twice does nothing."""
        self._cuda.check_process()
        held = self._cuda.live.pop(self, None)  # atomic: of two threads, one gets it
        if held is not None:
            with self._cuda.activate():
                self._destroy(held)

    def _destroy(self, token: Any) -> None:
        raise NotImplementedError


class DeviceMemory(Resource):
    """Bytes on the device. The caller sees to it that no work uses them when they are freed."""

    kind = "device memory"

    def __init__(self, cuda: CudaBase, token: Any, address: int, nbytes: int) -> None:
        super().__init__(cuda, token)
        self._address = address
        self.nbytes = nbytes

    @property
    def address(self) -> int:
        """Device pointer. Raises UsageError once freed."""
        _ = self.token
        return self._address

    def free(self) -> None:
        """Give the memory back. Twice does nothing."""
        self.release()

    def _destroy(self, token: Any) -> None:
        self._cuda._free_device(token)


class PinnedMemory(Resource):
    """Page-locked bytes of the host. Arrays made of ``array`` must not be touched after ``free``."""

    kind = "pinned memory"

    def __init__(self, cuda: CudaBase, token: Any, array: Bytes, device_address: int | None) -> None:
        super().__init__(cuda, token)
        self.nbytes = array.nbytes
        self._array: Bytes | None = array
        self._address = int(array.ctypes.data)
        self._device_address = device_address

    @property
    def array(self) -> Bytes:
        """The memory itself, uint8 (nbytes,). Raises UsageError once freed."""
        _ = self.token
        assert self._array is not None  # dropped by free alone, after the token
        return self._array

    @property
    def address(self) -> int:
        """Host pointer. Raises UsageError once freed."""
        _ = self.token
        return self._address

    @property
    def device_address(self) -> int | None:
        """Device pointer to the same bytes; ``None`` unless mapped. Raises UsageError once freed."""
        _ = self.token
        return self._device_address

    def free(self) -> None:
        """Give the memory back. Twice does nothing."""
        self.release()

    def _destroy(self, token: Any) -> None:
        self._array = None
        self._cuda._free_pinned(token)


class Stream(Resource):
    """A queue of work in order, independent of the default stream."""

    kind = "stream"

    def __init__(self, cuda: CudaBase, token: Any, handle: int, done: Event) -> None:
        super().__init__(cuda, token)
        self._handle = handle
        self._done = done

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as an int. Raises UsageError once closed."""
        _ = self.token
        return self._handle

    def synchronize(self, wait: Wait = "spin") -> None:
        """Wait until all that was enqueued is done.

        ``spin`` has the lowest latency and keeps a core busy: by the driver's own wait where that spins, else by
        asking again and again, between which Python's other threads get a turn. ``blocking`` sleeps, which costs
        tens of microseconds and frees the core.

        Raises:
            DeviceError: some work before failed.
        """
        if wait == "blocking":
            self._done.record(self)
            self._done.synchronize()
            return
        with self._cuda.activate():
            if not self._cuda.polls:
                self._cuda._synchronize_stream(self.token)
                return
            while not self._cuda._is_done(self):
                pass

    def close(self) -> None:
        """Free the stream. Twice does nothing."""
        self.release()

    def _destroy(self, token: Any) -> None:
        close_all([self._done.close, partial(self._cuda._destroy_stream, token)])


class Event(Resource):
    """A mark in a stream that can be waited for and, with ``timing``, subtracted from another."""

    kind = "event"

    def record(self, stream: Stream) -> None:
        """Put the mark behind all that ``stream`` holds now. A later call moves it."""
        with self._cuda.activate():
            self._cuda._record(self.token, stream.token)

    def synchronize(self) -> None:
        """Wait until the mark is reached. An event that was never recorded does not wait."""
        with self._cuda.activate():
            self._cuda._synchronize_event(self.token)

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds from ``since`` to this one, both reached and made with ``timing=True``."""
        with self._cuda.activate():
            return self._cuda._elapsed_ms(since.token, self.token)

    def close(self) -> None:
        """Free the event. Twice does nothing."""
        self.release()

    def _destroy(self, token: Any) -> None:
        self._cuda._destroy_event(token)


class Graph(Resource):
    """Recorded work that is launched as one. It holds addresses: what they point at must outlive it."""

    kind = "graph"

    def launch(self, stream: Stream) -> None:
        """Enqueue it all on ``stream``."""
        with self._cuda.activate():
            self._cuda._launch(self.token, stream)

    def close(self) -> None:
        """Free the graph. Twice does nothing."""
        self.release()

    def _destroy(self, token: Any) -> None:
        self._cuda._destroy_graph(token)


class _Depth(threading.local):
    """How many activations this thread is in."""

    value = 0


class _Activation(AbstractContextManager[None]):
    """One object serves all threads. Only a thread's outermost activation asks CUDA."""

    def __init__(self, cuda: CudaBase) -> None:
        self._cuda = cuda
        self._depth = _Depth()

    def __enter__(self) -> None:
        self._cuda.check_open()
        if self._depth.value == 0:
            self._cuda._push()
        self._depth.value += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth.value -= 1
        if self._depth.value == 0:
            if error is None:
                self._cuda._pop()
            else:
                close_all([self._cuda._pop], error)


class CudaBase(ABC):
    """The common half of a ``CudaApi``. A token is whatever the implementation knows a resource by.

    Attributes:
        polls: whether ``spin`` asks for the stream's state, since the implementation's own wait may sleep.
    """

    name: str
    polls: bool = False

    def __init__(self, device: int, properties: DeviceProperties) -> None:
        self.device = device
        self.properties = properties
        self.live: dict[Resource, Any] = {}  # the token of every resource that is not released
        self._pid = os.getpid()
        self._closed = False
        self._activation = _Activation(self)

    def check_process(self) -> None:
        """Raise ForkedError in a process that was forked from the one that opened CUDA."""
        if os.getpid() != self._pid:
            raise ForkedError(
                f"CUDA was opened in process {self._pid} and cannot be used in its fork {os.getpid()}.",
                hint="Start workers with multiprocessing's 'spawn', or open CUDA in the worker.",
            )

    def check_open(self) -> None:
        """Raise UsageError after ``close`` or in a forked child."""
        self.check_process()
        if self._closed:
            raise UsageError("This CUDA API is closed.", hint="Call open_cuda() again.")

    def activate(self) -> AbstractContextManager[None]:
        """See ``CudaApi``."""
        return self._activation

    def memory(self) -> tuple[int, int]:
        """See ``CudaApi``."""
        with self.activate():
            return self._memory()

    def allocate_device(self, nbytes: int) -> DeviceMemory:
        """See ``CudaApi``."""
        nbytes = _check_size(nbytes)
        with self.activate():
            token, address = self._allocate_device(nbytes)
        return DeviceMemory(self, token, address, nbytes)

    def allocate_pinned(self, nbytes: int, *, mapped: bool = False) -> PinnedMemory:
        """See ``CudaApi``."""
        nbytes = _check_size(nbytes)
        with self.activate():
            token, array, device_address = self._allocate_pinned(nbytes, mapped)
        return PinnedMemory(self, token, array, device_address)

    def create_stream(self) -> Stream:
        """See ``CudaApi``."""
        done = self.create_event(blocking=True)
        with closed_on_failure() as closes:
            closes.append(done.close)
            with self.activate():
                token, handle = self._create_stream()
        return Stream(self, token, handle, done)

    def create_event(self, *, timing: bool = False, blocking: bool = False) -> Event:
        """See ``CudaApi``."""
        with self.activate():
            return Event(self, self._create_event(timing, blocking))

    def copy_to_device(self, target: DeviceMemory, source: PinnedMemory, nbytes: int, stream: Stream) -> None:
        """See ``CudaApi``."""
        _check_copy(nbytes, target.nbytes, source.nbytes)
        with self.activate():
            self._copy_to_device(target.address, source, nbytes, stream.token)

    def copy_to_host(self, target: PinnedMemory, source: DeviceMemory, nbytes: int, stream: Stream) -> None:
        """See ``CudaApi``."""
        _check_copy(nbytes, target.nbytes, source.nbytes)
        with self.activate():
            self._copy_to_host(target, source.address, nbytes, stream.token)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """See ``CudaApi``."""
        with self.activate():
            self._copy_on_device(target, source, _check_size(nbytes), stream)

    def wait_for(self, stream: Stream, other: int) -> None:
        """See ``CudaApi``."""
        with self.activate():
            self._wait_for(stream, other)

    def device_of(self, address: int) -> int:
        """See ``CudaApi``."""
        with self.activate():
            return self._device_of(address)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """See ``CudaApi``."""
        with self.activate(), collector_held_off:
            self._begin_capture(stream)
            with closed_on_failure() as closes:
                closes.append(partial(self._abandon_capture, stream))
                enqueue()
            return Graph(self, self._end_capture(stream))

    def close(self) -> None:
        """See ``CudaApi``."""
        self.check_process()
        try:  # from the last to the first, since what was made last may rest on what was made first
            close_all([resource.release for resource in self.live])
        finally:
            self._closed = True

    @abstractmethod
    def _push(self) -> None: ...
    @abstractmethod
    def _pop(self) -> None: ...
    @abstractmethod
    def _memory(self) -> tuple[int, int]: ...
    @abstractmethod
    def _allocate_device(self, nbytes: int) -> tuple[Any, int]: ...
    @abstractmethod
    def _free_device(self, token: Any) -> None: ...
    @abstractmethod
    def _allocate_pinned(self, nbytes: int, mapped: bool) -> tuple[Any, Bytes, int | None]: ...
    @abstractmethod
    def _free_pinned(self, token: Any) -> None: ...
    @abstractmethod
    def _create_stream(self) -> tuple[Any, int]: ...
    @abstractmethod
    def _destroy_stream(self, token: Any) -> None: ...
    @abstractmethod
    def _synchronize_stream(self, token: Any) -> None: ...
    @abstractmethod
    def _is_done(self, stream: Stream) -> bool: ...
    @abstractmethod
    def _create_event(self, timing: bool, blocking: bool) -> Any: ...
    @abstractmethod
    def _destroy_event(self, token: Any) -> None: ...
    @abstractmethod
    def _record(self, event: Any, stream: Any) -> None: ...
    @abstractmethod
    def _synchronize_event(self, token: Any) -> None: ...
    @abstractmethod
    def _elapsed_ms(self, since: Any, until: Any) -> float: ...
    @abstractmethod
    def _copy_to_device(self, target: int, source: PinnedMemory, nbytes: int, stream: Any) -> None: ...
    @abstractmethod
    def _copy_to_host(self, target: PinnedMemory, source: int, nbytes: int, stream: Any) -> None: ...
    @abstractmethod
    def _copy_on_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None: ...
    @abstractmethod
    def _wait_for(self, stream: Stream, other: int) -> None: ...
    @abstractmethod
    def _device_of(self, address: int) -> int: ...
    @abstractmethod
    def _begin_capture(self, stream: Stream) -> None: ...
    @abstractmethod
    def _end_capture(self, stream: Stream) -> Any: ...
    @abstractmethod
    def _abandon_capture(self, stream: Stream) -> None: ...
    @abstractmethod
    def _launch(self, graph: Any, stream: Stream) -> None: ...
    @abstractmethod
    def _destroy_graph(self, token: Any) -> None: ...


def _check_size(nbytes: int) -> int:
    if nbytes < 1:
        raise UsageError(f"An allocation takes at least 1 byte, got {nbytes}.")
    return int(nbytes)  # a product of shapes is numpy's, which ctypes refuses


def _check_copy(nbytes: int, target: int, source: int) -> None:
    if not 0 < nbytes <= min(target, source):
        raise UsageError(f"Cannot copy {nbytes} bytes: the source holds {source}, the target {target}.")
