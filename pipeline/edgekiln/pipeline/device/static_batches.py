"""Whether the models that an engine has for single batch sizes answer pictures as its model for all sizes does.

The gate judges the answers of the latter. What the others answer may differ from them by rounding, no more: how much
that is, the engine's canaries tell. Opens no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["ask_static_batches", "list_static_batches"]


def list_static_batches(session: object) -> tuple[int, ...]:
    """The batch sizes above 1 for which a session has a model of its own; OpenVINO's sessions alone may have such."""
    return tuple(getattr(session, "static_batches", ()))


def ask_static_batches(
    run: Callable[[Frames], Logits],
    sizes: Iterable[int],
    frames: Sequence[Frames] | Frames,
    answers: Logits,
    allowed: float,
) -> list[dict[str, Any]]:
    """For each size the number of pictures asked, how many got another class, and the largest difference of a logit.

    Args:
        run: the engine: uint8 (N, H, W, 3) to float32 (N, C).
        sizes: batch sizes.
        frames: uint8 (N, H, W, 3); the last batch is filled up from the first pictures.
        answers: float32 (N, C), which the gate judges.
        allowed: the largest difference of a logit that is rounding.

    Raises:
        EngineError: a difference is larger.
    """
    rows = []
    for size in sizes:
        furthest, flips = 0.0, 0
        for start in range(0, len(frames), size):
            places = [place % len(frames) for place in range(start, start + size)]
            kept = min(size, len(frames) - start)
            logits = run(np.array([frames[place] for place in places]))[:kept]
            wanted = answers[start : start + kept]
            furthest = max(furthest, float(np.abs(logits.astype(np.float64) - wanted).max()))
            flips += int((logits.argmax(axis=1) != wanted.argmax(axis=1)).sum())
        if furthest > allowed:
            raise EngineError(
                f"its model for batches of {size} answers otherwise than its model for all sizes: by up to "
                f"{furthest:.2g} in a logit, where {allowed:.2g} is rounding; {flips} of {len(frames)} pictures get "
                "another class",
                hint="Take that size out of build.static_batches.",
            )
        rows.append({"batch": size, "images": len(frames), "flips": flips, "max_difference": furthest})
    return rows
