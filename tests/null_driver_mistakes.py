"""Mistakes in edgekiln's own code, one each, which the driver without a device has to notice.

Each function is a context manager that makes its mistake in this process, for a session that is opened inside.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any, TypeAlias
from unittest.mock import patch

from edgekiln.runtime.backends.tensorrt_engine import LoadedEngine
from edgekiln.runtime.backends.tensorrt_slot import Slot
from edgekiln.runtime.cuda import graphs, resources
from edgekiln.runtime.cuda.driver import Driver
from edgekiln.runtime.cuda.resources import CudaBase, PinnedMemory

__all__ = ["MISTAKES"]

Mistake: TypeAlias = contextlib.AbstractContextManager[Any]


def _nothing(*_: Any, **__: Any) -> None:
    pass


def no_wait_before_the_answer_is_read() -> Mistake:
    return patch.object(resources.Stream, "synchronize", _nothing)


def no_copy_of_the_answer() -> Mistake:
    return patch.object(CudaBase, "copy_to_host", _nothing)


def a_copy_that_is_too_short() -> Mistake:
    right = CudaBase.copy_to_device

    def half(self: Any, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        right(self, target, source, nbytes // 2, stream)

    return patch.object(CudaBase, "copy_to_device", half)


def a_copy_that_is_too_long() -> Mistake:
    """It goes round edgekiln's own check of the size."""
    right = CudaBase.copy_to_host

    def more(self: Any, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        right(self, target, source, nbytes, stream)
        with self.activate():
            self._copy_to_host(target, source.address + 8, source.nbytes, stream.token)

    return patch.object(CudaBase, "copy_to_host", more)


def a_copy_on_another_stream() -> Mistake:
    right = CudaBase.copy_to_device

    def elsewhere(self: Any, target: Any, source: Any, nbytes: int, stream: Any) -> None:
        if not hasattr(self, "other_stream"):
            self.other_stream = self.create_stream()
        right(self, target, source, nbytes, self.other_stream)

    return patch.object(CudaBase, "copy_to_device", elsewhere)


def memory_that_is_freed_before_its_last_use() -> Mistake:
    right = Slot.open

    def open_and_free(self: Any) -> None:
        right(self)
        self._device_in.free()

    return patch.object(Slot, "open", open_and_free)


def memory_that_is_freed_twice() -> Mistake:
    right = resources.DeviceMemory._destroy

    def twice(self: Any, token: Any) -> None:
        copy = list(token) if isinstance(token, list) else token
        right(self, token)
        right(self, copy)

    return patch.object(resources.DeviceMemory, "_destroy", twice)


def a_host_that_reads_memory_of_the_device() -> Mistake:
    right = Slot.run

    def read(self: Any, frames: Any, logits: Any) -> None:
        right(self, frames, logits)
        ctypes.string_at(self._device_out.address, 4)

    return patch.object(Slot, "run", read)


def a_host_that_reads_pinned_memory_after_its_end() -> Mistake:
    right = Slot.close

    def close(self: Any) -> None:
        address = self._host_out.address
        right(self)
        ctypes.string_at(address, 4)

    return patch.object(Slot, "close", close)


def a_device_that_is_given_an_address_of_the_host() -> Mistake:
    def addresses(self: Any) -> tuple[int, int]:
        return self._host_in.address, self._host_out.address

    return patch.object(Slot, "_addresses", addresses)


def streams_that_stay() -> Mistake:
    return patch.object(resources.Stream, "_destroy", lambda self, _: self._done.close())


def events_that_stay() -> Mistake:
    return patch.object(resources.Event, "_destroy", _nothing)


def graphs_that_stay() -> Mistake:
    return patch.object(resources.Graph, "_destroy", _nothing)


def pinned_memory_that_stays() -> Mistake:
    return patch.object(PinnedMemory, "_destroy", _nothing)


def recorded_graphs_that_stay() -> Mistake:
    return patch.object(Driver, "destroy_graph", _nothing)


def engine_contexts_that_stay() -> Mistake:
    kept: list[Any] = []
    right = LoadedEngine.create_context

    def create(self: Any, *arguments: Any) -> Any:
        kept.append(right(self, *arguments))
        return kept[-1]

    return patch.object(LoadedEngine, "create_context", create)


def no_context_that_is_current() -> Mistake:
    return patch.object(CudaBase, "activate", lambda self: contextlib.nullcontext())


def a_context_that_stays_current() -> Mistake:
    return patch.object(resources._Activation, "__exit__", lambda self, *_: setattr(self._depth, "value", 0))


def a_wait_while_a_stream_records() -> Mistake:
    right = Slot._enqueue

    def enqueue(self: Any, *arguments: Any) -> None:
        right(self, *arguments)
        self._stream.synchronize()

    return patch.object(Slot, "_enqueue", enqueue)


def memory_that_is_allocated_while_a_stream_records() -> Mistake:
    right = Slot._enqueue

    def enqueue(self: Any, *arguments: Any) -> None:
        self._cuda.allocate_device(8).free()
        right(self, *arguments)

    return patch.object(Slot, "_enqueue", enqueue)


def the_default_stream() -> Mistake:
    right = LoadedEngine.enqueue
    return patch.object(LoadedEngine, "enqueue", lambda self, context, stream: right(self, context, 0))


def events_without_time() -> Mistake:
    right = CudaBase.create_event
    return patch.object(CudaBase, "create_event", lambda self, **_: right(self))


def nothing_that_is_closed_on_failure() -> Mistake:
    """Shows where a call fails after others succeeded."""
    return patch.object(graphs, "closed_on_failure", lambda: contextlib.nullcontext([]))


MISTAKES: dict[str, Callable[[], Mistake]] = {
    name: made
    for name, made in list(globals().items())
    if callable(made) and getattr(made, "__module__", "") == __name__ and not name.startswith("_")
}
