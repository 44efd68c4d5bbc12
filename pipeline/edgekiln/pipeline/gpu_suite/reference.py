"""What the right answers are, float32 PyTorch on the CPU, and how far others may be from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekiln.pipeline.gpu_suite.models import make_network
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["MAX_DIFFERENCE", "Agreement", "compare_answers", "reference_logits"]

MAX_DIFFERENCE = 5e-2
"""Of the logits' range. FP16 and TF32 keep 11 bits; over fifty layers of a random network that is about 1e-2."""
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class Agreement:
    """Greatest difference of a logit over the range of all right logits, and the share of equal first classes."""

    max_difference: float
    same_class_share: float

    @property
    def right(self) -> bool:
        """Whether the difference is that of a number format and not of another computation."""
        return self.max_difference <= MAX_DIFFERENCE

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a NaN, which JSON has not, becomes ``None``."""
        finite = bool(np.isfinite(self.max_difference))
        return {
            "right": self.right,
            "max_difference_of_logit_range": self.max_difference if finite else None,
            "same_class_share": self.same_class_share,
        }


def compare_answers(got: Logits, right: Logits) -> Agreement:
    """Compare float32 (N, C) logits with the right ones."""
    difference = np.abs(got.astype(np.float64) - right).max() / np.ptp(right)
    return Agreement(float(difference), float((got.argmax(1) == right.argmax(1)).mean()))


def reference_logits(model: str, frames: Frames, network: Any = None) -> Logits:
    """float32 (N, C) of the FP32 network on the CPU; it is made where none is given."""
    import torch

    network = make_network(model) if network is None else network
    parts = []
    with torch.inference_mode():
        for start in range(0, len(frames), _CHUNK):
            pixels = torch.from_numpy(frames[start : start + _CHUNK]).float().permute(0, 3, 1, 2)
            parts.append(network((pixels - 127) / 128).numpy())
    logits: Logits = np.concatenate(parts)
    return logits
