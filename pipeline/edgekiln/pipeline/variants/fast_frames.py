"""An engine's answers to the test pictures as fast decoding makes them: the evidence that its bundle records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgekiln.pipeline.data.scaled_frames import read_scaled_frames
from edgekiln.pipeline.workspace.stage_files import write_json
from edgekiln.runtime.serving.agreement import judge_agreement
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["FAST_RECORD_NAME", "record_agreement"]

FAST_RECORD_NAME = "fast_decode.json"  # of an evaluate stage: what the bundle records of its engine
_BATCH = 64


def record_agreement(data: Path, folder: Path, plain: Logits, run: Callable[[Frames], Logits]) -> None:
    """Write what an engine's bundle will say about fast decoding.

    Args:
        data: folder of the data stage.
        folder: of the evaluate stage.
        plain: float32 (N, classes), the engine's answers to the test split.
        run: the engine.
    """
    kept = read_scaled_frames(data)
    scaled = np.concatenate([plain[:0], *(run(batch) for batch in kept.batches(_BATCH))])
    record = judge_agreement(len(plain), plain[kept.places], scaled, kept.differences)
    write_json(folder / FAST_RECORD_NAME, asdict(record))
