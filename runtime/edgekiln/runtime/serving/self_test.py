"""Asks a model that was just opened its variant's canaries: does it answer as where it was judged?

A library that compiles a second model for batches is asked its batch before the first one that comes: a product that
asks one picture at a time, or only sizes that have a model of their own, would wait for that model, and give it memory,
for nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from edgekiln.runtime.backends import LATE_BATCH_BACKENDS
from edgekiln.runtime.bundles.canaries import (
    BATCH,
    Call,
    CanaryRecord,
    CanaryResult,
    check_calls,
    plan_calls,
    plan_few_calls,
)
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.errors import SelfTestError
from edgekiln.runtime.serving.loaded import LoadedModel

__all__ = ["ask_canaries"]

_log = logging.getLogger("edgekiln.runtime")


def ask_canaries(model: LoadedModel, variant: VariantRecord, *, thorough: bool) -> None:
    """Keep the result in ``model.self_test``; a model that answers wrongly is closed. The time goes to the log.

    Raises:
        SelfTestError: an answer is wrong.
        EdgekilnError: the engine cannot be asked: memory or the device is lost.
    """
    if variant.canaries is None:
        _log.info("variant %s has no canaries: its answers were not checked", variant.name)
        return
    late = variant.backend in LATE_BATCH_BACKENDS and not thorough
    calls = tuple(plan_calls(model.session)) if thorough else plan_few_calls(model.session, batch=not late)
    try:
        model.self_test = _ask(model, variant.name, variant.canaries, calls)
    except BaseException:
        model.retire()
        raise
    if late:
        model.before_batch = _FirstBatch(model, variant.name, variant.canaries)


def _ask(model: LoadedModel, name: str, record: CanaryRecord, calls: Sequence[Call]) -> CanaryResult:
    result = check_calls(model.session, record, calls)
    if not result.ok:
        raise SelfTestError(
            f"Variant {name!r} answers otherwise here than where it was judged: {result.problem}.",
            hint="Take another variant, or another version of its library; `edgekiln doctor BUNDLE` tells more. "
            "self_test=False would only look away.",
        )
    if result.unasked:
        _log.warning("variant %s was not checked: %s", name, result.unasked)
    else:
        _log.info(
            "variant %s answered %d canaries in %d calls as where it was judged, in %.1f ms; largest difference "
            "%.2g, %.0f %% of what is allowed",
            name,
            result.pictures,
            result.calls,
            1000 * result.seconds,
            result.max_difference,
            100 * result.worst,
        )
    return result


class _FirstBatch:
    """Asks the batch of canaries once, whichever thread comes first; others wait for what it finds."""

    def __init__(self, model: LoadedModel, name: str, record: CanaryRecord) -> None:
        self._model, self._name, self._record = model, name, record
        self._asked: Sequence[int] = getattr(model.session, "static_batches", ())
        self._lock = threading.Lock()

    def __call__(self, size: int) -> None:
        if size in self._asked:  # when the model was loaded
            return
        with self._lock:
            if self._model.before_batch is not None:
                _ask(self._model, self._name, self._record, (BATCH,))
                self._model.before_batch = None
