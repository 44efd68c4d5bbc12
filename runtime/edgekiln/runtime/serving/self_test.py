"""Asks a model that was just opened its variant's canaries: does it answer as where it was judged?"""

from __future__ import annotations

import logging

from edgekiln.runtime.bundles.canaries import check_canaries
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
    try:
        result = check_canaries(model.session, variant.canaries, thorough=thorough)
        if not result.ok:
            raise SelfTestError(
                f"Variant {variant.name!r} answers otherwise here than where it was judged: {result.problem}.",
                hint="Take another variant, or another version of its library; `edgekiln doctor BUNDLE` tells more. "
                "Do not use these answers: self_test=False only looks away.",
            )
    except BaseException:
        model.retire()
        raise
    model.self_test = result
    if result.unasked:
        _log.warning("variant %s was not checked: %s", variant.name, result.unasked)
        return
    _log.info(
        "variant %s answered %d canaries in %d calls as where it was judged, in %.1f ms; largest difference %.2g, "
        "%.0f %% of what is allowed",
        variant.name,
        result.pictures,
        result.calls,
        1000 * result.seconds,
        result.max_difference,
        100 * result.worst,
    )
