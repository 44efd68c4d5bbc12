"""A loaded engine plus its contract: any picture in, a typed answer out."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Literal, cast

import numpy as np

from edgekiln.runtime.arguments import check_several, check_whole_number
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError, UsageError
from edgekiln.runtime.pictures.image import ColorOrder, Picture
from edgekiln.runtime.processes import HomeProcess, NotPicklable
from edgekiln.runtime.serving.loaded import LoadedModel
from edgekiln.runtime.serving.prediction import Prediction, Selection
from edgekiln.runtime.serving.selecting import LoadOptions, load_model
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import DLPackArray, is_foreign_array

__all__ = ["Classifier", "serve_model"]

_log = logging.getLogger("edgekiln.runtime")


class Classifier(NotPicklable):
    """Predicts from paths, bytes, PIL images and uint8 arrays. Safe to share between threads.

    Usually made by ``edgekiln.runtime.load``. Use it as a context manager, or call ``close``. It belongs to the
    process that made it: in a fork every call but ``close`` raises ForkedError, and pickling it UsageError.
    """

    def __init__(
        self, session: Session, contract: Contract, variant: Selection, *, fast_decode: bool = False
    ) -> None:
        self._serve(LoadedModel(session, contract, variant, fast_decode=fast_decode), LoadOptions())

    def _serve(self, model: LoadedModel, options: LoadOptions) -> None:
        self._model, self._options = model, options
        self._home = HomeProcess()
        self._closed = False

    @property
    def contract(self) -> Contract:
        """How pictures are prepared, and the class names."""
        return self._model.contract

    @property
    def session(self) -> Session:
        """The engine, for callers that prepare their own frames. A reload closes it."""
        return self._model.session

    @property
    def fast_decode(self) -> bool:
        """Whether large JPEGs are decoded at a fraction of their size; see ``load``."""
        return self._model.fast_decode

    @property
    def variant(self) -> Selection:
        """Which variant runs, and why."""
        return self._model.variant

    def hold(self) -> LoadedModel:
        """The model that serves now, open until the caller calls its ``release`` or leaves its ``with``.

        Raises:
            UsageError: the classifier is closed.
            ForkedError: this is a fork of the process that loaded it.
        """
        self._home.check()
        while not (model := self._model).try_acquire():
            # Retired: either a reload has already put another one there, or there is none to come.
            if self._closed:
                raise UsageError("This classifier's session is closed.", hint="Load the bundle again.")
        return model

    def predict(self, picture: Picture, *, color_order: ColorOrder = "rgb") -> Prediction:
        """Classify one picture.

        Args:
            picture: path, encoded bytes, PIL image, or uint8 array (H, W, 3).
            color_order: ``bgr`` for arrays as OpenCV and camera drivers give them.

        Raises:
            ImageError: the picture cannot be read.
            NonFiniteError: the engine gave NaN or infinity.
        """
        with self.hold() as model:
            return model.predict_frames([model.prepare(picture, color_order)])[0]

    def predict_batch(
        self, pictures: Iterable[Picture] | DLPackArray, *, color_order: ColorOrder = "rgb"
    ) -> list[Prediction]:
        """Classify several pictures in one call of the engine, in their order; see ``predict``.

        Args:
            pictures: or one array of another library with frames that are prepared already, uint8 (N, height, width,
                3) in RGB, by DLPack or ``__cuda_array_interface__``: nothing is resized or copied; see ``Session.run``.
            color_order: as for ``predict``; frames that are prepared are in RGB.

        Raises:
            InputError: an array of another kind, shape, layout or device, or one that is not in RGB.
        """
        if is_foreign_array(pictures):
            with self.hold() as model:
                return model.predict_array(pictures, color_order)
        check_several(pictures, "predict_batch")
        with self.hold() as model:
            several = cast("Iterable[Picture]", pictures)  # no array, as asked above
            frames = [model.prepare(picture, color_order) for picture in several]
            return model.predict_frames(frames) if frames else []

    def predict_stream(
        self,
        pictures: Iterable[Picture],
        *,
        workers: int = 2,
        max_batch: int = 1,
        on_error: Literal["yield", "raise"] = "yield",
        color_order: ColorOrder = "rgb",
    ) -> Generator[Prediction | ImageError, None, None]:
        """Answers in the order of ``pictures``, which may be endless; decoding goes on while the engine runs.

        Args:
            pictures: read by a thread of its own, at most ``2 * workers + max_batch`` pictures ahead of the answers.
            workers: threads that decode.
            max_batch: pictures that are ready at the same time run together, up to so many; none is waited for.
            on_error: an ImageError takes the place of its picture's answer (``yield``) or ends the stream (``raise``).
            color_order: as for ``predict``.

        Closing the iterator (``close()``, or letting go of it) stops its threads.
        """
        from edgekiln.runtime.serving.streaming import stream_predictions

        return stream_predictions(
            self, pictures, workers=workers, max_batch=max_batch, on_error=on_error, color_order=color_order
        )

    def reload(self, path: str | os.PathLike[str], *, allow_new_classes: bool = False) -> None:
        """Serve another bundle from now on, loaded with the options that ``load`` was given. Calls go on meanwhile.

        Each answer comes wholly from the old model or wholly from the new one; the old engine is closed when its
        last call has ended. Until then both are in memory. Where this raises, the old one goes on serving. The new
        engine is asked all of the bundle's made pictures first, alone and in batches, unless ``load`` was told
        ``self_test=False``.

        Args:
            path: the new bundle.
            allow_new_classes: also take a bundle whose classes, or their order, are others.

        Raises:
            UsageError: other classes, or this classifier is closed.
            EdgekilnError: whatever ``load`` raises, and what the new engine raises on a first run.
        """
        self._home.check()
        other = serve_model(load_model(path, self._options, thorough=True), self._options)
        self.adopt(other, allow_new_classes=allow_new_classes)

    def adopt(self, other: Classifier, *, allow_new_classes: bool = False) -> None:
        """Serve with what ``other`` has loaded, which is closed thereby; also where this raises. See ``reload``."""
        self._home.check()
        if not isinstance(other, Classifier) or other is self:
            raise UsageError(f"A classifier adopts another Classifier, got {type(other).__name__}.")
        try:
            if not allow_new_classes:
                _check_classes(self.contract, other.contract)
            other.warm_up(1)  # an engine that loads and does not run must not replace one that does
            self._swap(other)
        except BaseException:
            other.close()
            raise

    def _swap(self, other: Classifier) -> None:
        with _swapping:
            if self._closed:
                raise UsageError("This classifier is closed and cannot serve another bundle.")
            if other._closed:  # or adopted by a third one meanwhile
                raise UsageError(
                    "The other classifier is closed: it has nothing to serve.", hint="Load it again."
                )
            old, self._model = self._model, other._model
            other._model, other._closed = old, True
        if old.fast_decode and not self._model.fast_decode:
            _log.warning("fast decoding is off: it was shown for the model before, and not for this one")
        # As a user's own last call would: what closing the old engine raises must not look like a failed reload.
        if old.try_acquire():
            old.retire()
            old.release()

    def warm_up(self, runs: int = 3) -> None:
        """Run grey frames so that the first real picture does not pay for lazy initialization."""
        check_whole_number("runs", runs, at_least=0)
        with self.hold() as model:
            frames = np.full((1, model.contract.height, model.contract.width, 3), 127, np.uint8)
            for _ in range(runs):
                model.session.run(frames)

    def close(self) -> None:
        """Refuse further calls, and free the engine when the last one under way has ended.

        Closing twice does nothing, and neither does closing in a fork: the engine is the parent's.
        """
        if not self._home.is_here:
            return
        with _swapping:
            self._closed, model = True, self._model
        model.retire()

    def __repr__(self) -> str:
        variant, state = self.variant, ", closed" if self._closed else ""
        return f"Classifier({variant.name}, {variant.backend}, {len(self.contract.classes)} classes{state})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what runs, why, and what it takes and answers."""
        from edgekiln.runtime.bundles.notebook import show_table

        contract, variant = self.contract, self.variant
        rows = [
            ("variant", f"{variant.name}: {variant.precision} with {variant.backend}"),
            ("why", variant.reason),
            ("notice", variant.notice),
            ("takes", f"any picture; prepared to {contract.width} x {contract.height} pixels"),
            (f"{len(contract.classes)} classes", ", ".join(contract.classes)),
        ]
        title = f"Classifier{' (closed)' if self._closed else ''}"
        return show_table(title, (), [row for row in rows if row[1]])

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_model(model: LoadedModel, options: LoadOptions) -> Classifier:
    """A classifier around a model that was loaded with ``options``; its reloads use them again."""
    classifier = Classifier.__new__(Classifier)
    classifier._serve(model, options)
    return classifier


_swapping = threading.Lock()
"""Held for a few assignments only: a close and a swap at the same time must not leave an open engine behind."""


def _check_classes(old: Contract, new: Contract) -> None:
    if old.classes != new.classes:
        raise UsageError(
            f"The new bundle's classes are {list(new.classes)}, those served are {list(old.classes)}.",
            hint="Callers may rely on them. Where they do not: allow_new_classes=True.",
        )
