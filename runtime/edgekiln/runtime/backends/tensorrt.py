"""TensorRT, TensorRT-lean and TensorRT-RTX engines behind ``Session``: no allocation and no address change per call.

An engine is shared; each of the session's slots has everything that one call needs (``tensorrt_slot.py``). With
TensorRT a call is one launch of a graph [copy in, run, copy out]; TensorRT-RTX captures graphs by itself. This module
opens and closes engines and slots, and gives each call a slot of its own; it knows nothing of what a slot is made of.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from edgekiln.runtime.backends.engine_header import HEADER_BYTES, EngineHeader, Flavour, read_engine_header
from edgekiln.runtime.backends.kernel_cache import KernelCache
from edgekiln.runtime.backends.session_base import DescribedSession, SessionFacts, closed_error
from edgekiln.runtime.backends.settling import again
from edgekiln.runtime.backends.tensorrt_buckets import ProfileUse, plan_buckets
from edgekiln.runtime.backends.tensorrt_engine import EngineProfile, LoadedEngine, create_runtime
from edgekiln.runtime.backends.tensorrt_errors import refuse_foreign
from edgekiln.runtime.backends.tensorrt_library import import_tensorrt, library_log
from edgekiln.runtime.backends.tensorrt_slot import CallPhases, Slot
from edgekiln.runtime.cuda import CudaApi, Wait, open_cuda
from edgekiln.runtime.cuda.arrays import DeviceArray, is_device_array
from edgekiln.runtime.errors import DeviceError, DeviceLostError, EdgekilnError, EngineError, UsageError
from edgekiln.runtime.processes import keep_in_forks
from edgekiln.runtime.spec import DLPackArray, Frames, Logits, as_frames, check_finite, check_frames

__all__ = ["GraphUse", "TensorRTSession"]

_log = logging.getLogger("edgekiln.runtime")

DEFAULT_SLOTS = 2
"""One call copies on the host while another runs on the GPU; more only cost memory."""


@dataclass(frozen=True, slots=True)
class GraphUse:
    """Which batch sizes run as a CUDA graph.

    Attributes:
        captured: those that do, captured by the session.
        by_library: the library captures graphs by itself, and does not tell of which.
        refused: the others, each with the reason why its capture failed. They run call by call: slower, not wrong.
    """

    captured: tuple[int, ...]
    by_library: bool
    refused: Mapping[int, str]


class TensorRTSession(DescribedSession):
    """Engines of one model, for one or several batch sizes. See ``Session``; safe from any number of threads."""

    _runtime: Any = None
    _closed = _released = False  # closed: calls are refused; released: nothing is left to free
    _lost: DeviceLostError | None = None  # what a call told; every later one tells the same at once

    def __init__(
        self,
        engines: Sequence[bytes],
        *,
        flavour: Flavour,
        slots: int = DEFAULT_SLOTS,
        wait: Wait = "spin",
        device: int = 0,
        cuda: CudaApi | None = None,
        trt: ModuleType | None = None,
    ) -> None:
        """Load engines, whose digests the caller has checked, and warm all their batch sizes up.

        Args:
            engines: one engine with a batch range, or one per batch size.
            flavour: the library that built them.
            slots: calls that may run at once.
            wait: ``spin`` for the lowest latency, ``blocking`` to leave the core to others.
            device: number of the GPU, where ``cuda`` is ``None``.
            cuda: CUDA to use, which the caller closes after the session; the session's own where ``None``.
            trt: the library; found where ``None``.

        Raises:
            DeviceError: no driver or GPU, a driver older than the library, or an engine of another library or GPU.
            MissingExtraError: the library is not installed.
            EngineError: the library refused the engine, or it is no classifier of edgekiln's.
            ResourceError: GPU memory ran out.
            UsageError: no engine, or no slot.
        """
        headers = _read_headers(engines, slots)
        self._owns_cuda = cuda is None
        # The driver is asked first: without one, the library's own objects wrap null pointers and crash.
        self._cuda = open_cuda(device=device) if cuda is None else cuda
        self._idle: queue.LifoQueue[Slot | None] = queue.LifoQueue()  # None: the session is closed
        self._all_slots: list[Slot] = []
        self._models: list[LoadedEngine] = []
        self._flavour, self._closing = flavour, threading.Lock()
        keep_in_forks(self)  # and with it all objects of the library, whose destructors would ask CUDA there
        try:
            self._trt = import_tensorrt(flavour, to_build=False) if trt is None else trt
            self._open(engines, headers, slots, wait)
        except BaseException as error:
            with contextlib.suppress(EdgekilnError):  # the first failure is the one to tell
                self._release(error)
            raise

    def _refuse_foreign(self, headers: Sequence[EngineHeader]) -> None:
        here, capability = str(self._trt.__version__), self._cuda.properties.compute_capability
        for header in headers:
            refuse_foreign(header, self._flavour, here, capability)

    def _open(
        self, engines: Sequence[bytes], headers: Sequence[EngineHeader], slots: int, wait: Wait
    ) -> None:
        self._refuse_foreign(headers)
        log = library_log(self._trt)
        log.tell_warnings()
        with self._cuda.activate():
            self._runtime = create_runtime(self._trt, log)
            for data in engines:
                self._models.append(LoadedEngine(self._trt, log, self._runtime, data))
            interface = self._models[0].interface
            if any(other.interface != interface for other in self._models):
                raise EngineError(
                    "These engines differ in their input or output: they are not of one model.",
                    hint="Give the engines of one variant of one bundle.",
                )
            self._facts = SessionFacts(
                backend=self._flavour,
                device=f"cuda:{self._cuda.device}",
                threads=None,
                frame_shape=(interface.height, interface.width),
                num_classes=interface.classes,
            )
            self._by_library = any(loaded.captures_graphs for loaded in self._models)
            profiles = [served for loaded in self._models for served in loaded.read_profiles()]
            plan = plan_buckets(profiles)
            self._buckets = tuple(sorted(plan))
            self._profiles = tuple(_describe_profile(served, plan) for served in profiles)
            caches = [
                KernelCache(data, self._cuda.properties.name).attach(loaded.runtime_config)
                for data, loaded in zip(engines, self._models, strict=True)
                if loaded.captures_graphs
            ]
            for _ in range(slots):
                slot = Slot(self._cuda, interface, plan, wait)
                self._all_slots.append(slot)
                slot.open()
                self._idle.put(slot)
            for cache in caches:
                cache.save()
        self._graphs = self._read_graphs()
        refused = self._graphs.refused
        if refused:
            sizes, reason = ", ".join(map(str, refused)), next(iter(refused.values()))
            _log.warning("no CUDA graph for batch size %s, which runs call by call: %s", sizes, reason)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that are run as they are; others are padded up or split."""
        return self._buckets

    @property
    def profiles(self) -> tuple[ProfileUse, ...]:
        """The optimization profiles of its engines: which batch sizes each runs, and the memory that each works in."""
        return self._profiles

    @property
    def graphs(self) -> GraphUse:
        """Which batch sizes run as a CUDA graph, and why the others do not."""
        return self._graphs

    def _read_graphs(self) -> GraphUse:
        if self._by_library:
            return GraphUse((), True, MappingProxyType({}))
        refused: dict[int, str] = {}
        for slot in reversed(self._all_slots):
            refused |= slot.ungraphed
        captured = tuple(size for size in self._buckets if size not in refused)
        return GraphUse(captured, False, MappingProxyType(dict(sorted(refused.items()))))

    def run(self, frames: Frames | DLPackArray) -> Logits:
        return self._answer(frames, None)[0]

    def run_on_device(self, frames: Frames | DLPackArray) -> DeviceArray:
        """As ``run``, with the answers on the GPU: float32 (N, num_classes), ready when this returns.

        Allocates their memory in each call, which takes longer than the copy of a few logits to the host: it is for
        what goes on on the GPU. They are looked at on the host too, so NaN and infinity are refused as by ``run``.

        Raises:
            ResourceError: GPU memory ran out.
        """
        _, array = self._answer(frames, DeviceArray)
        assert array is not None
        return array

    def _answer(
        self, frames: Frames | DLPackArray, kept_in: type[DeviceArray] | None
    ) -> tuple[Logits, DeviceArray | None]:
        """The logits on the host and, where asked for, on the GPU."""
        on_device = is_device_array(frames)
        host: Any = None if on_device else as_frames(frames)
        if not on_device:
            check_frames(host, *self.frame_shape)
        with self._borrow() as slot:
            given = slot.read(frames) if on_device else None
            count = len(host) if given is None else given.count
            logits = np.empty((count, self.num_classes), np.float32)
            row_bytes = self.num_classes * 4
            memory = self._cuda.allocate_device(max(1, count) * row_bytes) if kept_in else None
            array = DeviceArray(memory, logits.shape, self._cuda.device) if memory else None
            for start in range(0, count, slot.max_batch):
                part = logits[start : start + slot.max_batch]
                if given is None:
                    slot.run(host[start : start + len(part)], part)
                else:
                    slot.run_array(given, start, part)
                if memory is not None:
                    slot.keep_answers(memory.address + start * row_bytes, len(part))
        check_finite(logits, self.backend)
        return logits, array

    def measure_device_ms(self, frames: Frames, calls: int) -> list[float]:
        """Milliseconds of GPU time of ``calls`` runs of one batch, copies included, between CUDA events.

        Raises:
            UsageError: no frames, or more than the largest batch size.
        """
        self._check_one_batch(frames)
        with self._borrow() as slot:
            return [slot.measure_ms(frames) for _ in range(calls)]

    def measure_phases(self, frames: Frames, calls: int) -> list[CallPhases]:
        """Host, enqueue, copies and device apart, of ``calls`` runs of one batch.

        Raises:
            UsageError: no frames, or more than the largest batch size.
        """
        self._check_one_batch(frames)
        with self._borrow() as slot:
            return [slot.measure_phases(frames) for _ in range(calls)]

    def _check_one_batch(self, frames: Frames) -> None:
        check_frames(frames, *self.frame_shape)
        if not 1 <= len(frames) <= self._buckets[-1]:
            raise UsageError(
                f"One batch has 1 to {self._buckets[-1]} frames, got {len(frames)}.",
                hint="Time more of them batch by batch.",
            )

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[Slot]:
        """A slot that no other call has, with CUDA active."""
        self._refuse_closed()
        self._refuse_lost()
        # Activated first: a forked child is told so before it touches memory of its parent's, or waits for threads
        # that it does not have.
        with self._cuda.activate():
            slot = self._idle.get()
            if slot is None:
                self._idle.put(None)  # wakes the next one that waits
                self._refuse_closed()
            assert slot is not None
            try:
                self._refuse_lost()
                yield slot
            except DeviceLostError as error:
                self._lost = again(error)  # without its frames, and all that they hold
                raise
            finally:
                self._idle.put(slot)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise closed_error()

    def _refuse_lost(self) -> None:
        if self._lost is not None and not self._closed:
            raise again(self._lost)

    def close(self) -> None:
        """Wait for the calls under way, refuse later ones, free everything. Closing twice does nothing.

        Where the GPU is lost, which a call has told, nothing can be freed on it and nothing more is told.
        """
        with self._closing:
            if self._released:
                return
            try:
                if not self._closed:
                    self._take_slots()
                self._release()
            except DeviceError:
                if self._lost is None:
                    raise
                self._closed = self._released = True
            finally:
                if self._closed:
                    self._idle.put(None)  # wakes who waits for a slot

    def _take_slots(self) -> None:
        """Take all slots as their calls end, and refuse new calls; where that is interrupted, all is as before."""
        taken: list[Slot | None] = []
        try:
            with self._cuda.activate():  # as in `_borrow`
                self._closed = True
                for _ in self._all_slots:
                    taken.append(self._idle.get())
        except BaseException:
            self._closed = False
            for slot in taken:
                self._idle.put(slot)
            raise

    def _release(self, error: BaseException | None = None) -> None:
        """Free the slots, then the engines, then what they ran on; a failure stops none of it.

        Args:
            error: why it could not be opened. Objects of the library that its frames hold go while CUDA is active,
                and not whenever the caller lets go of the error.
        """
        with contextlib.ExitStack() as last_first:
            last_first.callback(setattr, self, "_released", True)
            if self._owns_cuda:
                last_first.callback(self._cuda.close)
            last_first.enter_context(self._cuda.activate())
            last_first.callback(self._drop_engines)
            for slot in self._all_slots:
                last_first.callback(slot.close)
            last_first.callback(_clear_frames, error)

    def _drop_engines(self) -> None:
        self._all_slots.clear()
        while self._models:
            self._models.pop().close()
        self._runtime = None


def _describe_profile(served: EngineProfile, chosen: Mapping[int, EngineProfile]) -> ProfileUse:
    buckets = tuple(sorted(size for size, runs_on in chosen.items() if runs_on is served))
    sizes = (served.min_batch, served.opt_batch, served.max_batch)
    return ProfileUse(*sizes, buckets, served.workspace_bytes)


def _clear_frames(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _read_headers(engines: Sequence[bytes], slots: int) -> list[EngineHeader]:
    """The header of each engine; refuses a session without an engine or without a slot."""
    headers = [read_engine_header(data[:HEADER_BYTES]) for data in engines]
    if not headers:
        raise UsageError(
            "A session needs at least one engine, got none.", hint="Give the engines of a variant."
        )
    if slots < 1:
        raise UsageError(
            f"slots must be at least 1, got {slots}.", hint="One slot serves one call at a time."
        )
    return headers
