"""Answers for a stream of pictures, in order, with decoding beside inference and bounded memory.

Three kinds of threads: one reads the source, a few decode, and the consumer's own runs the engine when it asks for
the next answer. The queue between them is short, so that a slow consumer stops the reading of an endless source.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from edgekiln.runtime.arguments import MAX_THREADS, check_choice, check_several, check_whole_number
from edgekiln.runtime.errors import ImageError, NonFiniteError
from edgekiln.runtime.limits import explain_no_thread, start_thread
from edgekiln.runtime.pictures.image import ColorOrder, Frame, Picture
from edgekiln.runtime.processes import HomeProcess, NotPicklable
from edgekiln.runtime.serving.loaded import LoadedModel, ModelHolder
from edgekiln.runtime.serving.prediction import Prediction

__all__ = ["OnError", "stream_predictions"]

OnError = Literal["yield", "raise"]

_SOURCE_PATIENCE_S = 1.0
_log = logging.getLogger("edgekiln.runtime")


def stream_predictions(
    classifier: ModelHolder,
    pictures: Iterable[Picture],
    *,
    workers: int = 2,
    max_batch: int = 1,
    on_error: OnError = "yield",
    color_order: ColorOrder = "rgb",
) -> Generator[Prediction | ImageError, None, None]:
    """See ``Classifier.predict_stream``. Nothing starts before the first answer is asked for.

    Raises:
        UsageError: a wrong argument, at once; a closed classifier, in its turn.
        ResourceError: no thread can be started.
        ImageError: with ``on_error="raise"``, in the picture's turn.
        Exception: what ``pictures`` raises, after the answers to what it gave before.
    """
    check_whole_number("workers", workers, at_most=MAX_THREADS)
    check_whole_number("max_batch", max_batch)
    check_choice("on_error", on_error, OnError)
    check_choice("color_order", color_order, ColorOrder)
    check_several(pictures, "predict_stream")
    reader = _Reader(classifier, pictures, workers, color_order)
    return _answer_all(reader, max_batch, raises=on_error == "raise")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A picture whose decoding has begun, and the model that it is decoded for."""

    model: LoadedModel
    frame: Future[Frame]


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing comes any more; ``error`` is what stopped the source, or ``None``."""

    error: BaseException | None


class _Reader(NotPicklable):
    """Reads the source and has its pictures decoded, a few ahead of the consumer."""

    def __init__(
        self, classifier: ModelHolder, pictures: Iterable[Picture], workers: int, color_order: ColorOrder
    ) -> None:
        self._classifier, self._pictures, self._color_order = classifier, pictures, color_order
        self._workers = workers
        self._home = HomeProcess()
        # Queues of C: Ctrl-C can come while one of Python is locked, which it then stays. So the bound is a second
        # queue, of places. One more picture is in the reader's hands, and up to max_batch are in the consumer's.
        self._ready: queue.SimpleQueue[_Prepared | _End] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._next: _Prepared | _End | None = None  # taken out to be looked at
        self._give_places(2 * workers - 1)
        self._stopped = threading.Event()

    def start(self) -> None:
        self._pool = ThreadPoolExecutor(self._workers, "edgekiln-decode")
        # A daemon: a source that blocks for good must not keep the interpreter from ending.
        self._thread = start_thread(self._read, "edgekiln-stream", daemon=True)

    def _read(self) -> None:
        try:
            for picture in self._pictures:
                if self._stopped.is_set():
                    return
                self._ready.put(self._begin(picture))
                self._places.get()
                if self._stopped.is_set():
                    return
        except BaseException as error:  # the source's own, told to the consumer in its turn
            self._ready.put(_End(error))
        else:
            self._ready.put(_End(None))

    def _begin(self, picture: Picture) -> _Prepared:
        model = self._classifier.hold()
        try:
            return _Prepared(model, self._pool.submit(model.prepare, picture, self._color_order))
        except RuntimeError as error:  # no thread, or the pool has been shut down and nobody asks any more
            model.release()
            raise explain_no_thread("edgekiln-decode", error) from error
        except BaseException:
            model.release()
            raise

    def get(self) -> _Prepared | _End:
        """The next one, waited for."""
        self._home.check()  # a fork has no thread that would ever put one there
        return self._take(wait=True)

    def _take(self, *, wait: bool) -> _Prepared | _End:
        """Raises queue.Empty where nothing is there and ``wait`` is not set."""
        first, self._next = self._next, None
        if first is None:
            first = self._ready.get(block=wait)
        self._give_places(1)
        return first

    def _give_places(self, count: int) -> None:
        for _ in range(count):
            self._places.put(None)

    def get_if_ready(self, model: LoadedModel) -> _Prepared | None:
        """The next one if it is decoded, for ``model``; only the one consumer takes any, so looking is safe."""
        if self._next is None:
            try:
                self._next = self._ready.get_nowait()
            except queue.Empty:
                return None
        first = self._next
        if not isinstance(first, _Prepared) or first.model is not model or not first.frame.done():
            return None
        self._take(wait=False)
        return first

    def stop(self) -> None:
        """End the threads, and let go of what nobody will ask for."""
        if not self._home.is_here:
            return
        self._stopped.set()
        self._release_ready()
        self._give_places(1)  # the reader may be waiting for one, and an interrupt may have lost it
        self._thread.join(_SOURCE_PATIENCE_S)
        if self._thread.is_alive():
            _log.warning("the source of a closed stream is blocked; its thread ends when it gives a picture")
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._release_ready()

    def _release_ready(self) -> None:
        while True:
            try:
                prepared = self._take(wait=False)
            except queue.Empty:
                return
            if isinstance(prepared, _Prepared):
                prepared.frame.cancel()
                prepared.model.release()


def _answer_all(
    reader: _Reader, max_batch: int, *, raises: bool
) -> Generator[Prediction | ImageError, None, None]:
    reader.start()
    answered = 0
    try:
        while not isinstance(first := reader.get(), _End):
            for answer in _answer_group(_gather(reader, first, max_batch), answered):
                answered += 1
                if raises and isinstance(answer, ImageError):
                    raise answer
                yield answer
        if first.error is not None:
            raise first.error
    finally:
        reader.stop()


def _gather(reader: _Reader, first: _Prepared, max_batch: int) -> list[_Prepared]:
    """``first``, and those after it that are ready for the same model."""
    group = [first]
    while len(group) < max_batch and (following := reader.get_if_ready(first.model)) is not None:
        group.append(following)
    return group


def _answer_group(group: Sequence[_Prepared], answered: int) -> list[Prediction | ImageError]:
    """One call of the engine for those that could be read; ``answered`` pictures of the stream came before."""
    try:
        frames = [_frame_or_error(prepared) for prepared in group]
        readable = [frame for frame in frames if not isinstance(frame, ImageError)]
        predictions = deque(group[0].model.predict_frames(readable) if readable else [])
    except NonFiniteError as error:
        places = [answered + i for i, frame in enumerate(frames) if not isinstance(frame, ImageError)]
        images = tuple(places[i] for i in error.images)
        named = ", ".join(map(str, images)) or "unknown"
        raise NonFiniteError(
            f"{error.message} In the stream: image {named}.", hint=error.hint, images=images
        ) from error
    finally:
        for prepared in group:
            prepared.model.release()
    return [frame if isinstance(frame, ImageError) else predictions.popleft() for frame in frames]


def _frame_or_error(prepared: _Prepared) -> Frame | ImageError:
    try:
        return prepared.frame.result()
    except ImageError as error:
        return error
