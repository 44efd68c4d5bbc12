"""What the right answers are, float32 PyTorch on the CPU, and how far others may be from them.

They are prepared elsewhere or computed here; without PyTorch, and without a prepared file, nothing can be said of an
answer but that it is finite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.pipeline.gpu_suite.isolation import SkippedPart
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.pipeline.gpu_suite.networks import MODELS, find_file, make_frames, make_network, onnx_name
from edgekiln.runtime.spec import Frames, Logits

__all__ = [
    "MAX_DIFFERENCE",
    "POOL",
    "Agreement",
    "RightAnswers",
    "answers_name",
    "compare_answers",
    "find_answers",
    "reference_logits",
    "write_answers",
]

MAX_DIFFERENCE = 5e-2
"""Of the logits' range. FP16 and TF32 keep 11 bits; over fifty layers of a random network that is about 1e-2."""
MAX_INT8_DIFFERENCE = 0.3
"""Where no simulation of the graph was prepared: twice the most that one of these networks showed there, 0.153."""
POOL = 32
"""Pictures that answers are compared on."""
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class Agreement:
    """Greatest difference of a logit over the range of all right logits, and the share of equal first classes.

    Attributes:
        allowed: the greatest difference that a number format explains.
    """

    max_difference: float
    same_class_share: float
    allowed: float = MAX_DIFFERENCE

    @property
    def right(self) -> bool:
        """Whether the difference is that of a number format and not of another computation."""
        return self.max_difference <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a NaN, which JSON has not, becomes ``None``."""
        finite = bool(np.isfinite(self.max_difference))
        return {
            "right": self.right,
            "max_difference_of_logit_range": self.max_difference if finite else None,
            "allowed_difference": self.allowed,
            "same_class_share": self.same_class_share,
        }


def compare_answers(got: Logits, right: Logits, allowed: float = MAX_DIFFERENCE) -> Agreement:
    """Compare float32 (N, C) logits with the right ones."""
    difference = np.abs(got.astype(np.float64) - right).max() / np.ptp(right)
    return Agreement(float(difference), float((got.argmax(1) == right.argmax(1)).mean()), allowed)


@dataclass(frozen=True, slots=True)
class RightAnswers:
    """float32 (POOL, C) logits of the pool's pictures, or ``None``, and where they are from.

    Attributes:
        int8_difference: of the INT8 graph, simulated on a CPU, from these; ``None`` where that was not prepared.
    """

    logits: Logits | None
    source: str
    int8_difference: float | None = None

    def allowed(self, precision: str) -> float:
        """Greatest difference for an engine of that precision.

        Rounding to 8 bits is part of an INT8 graph: what it alone costs is known from the simulation, and the engine
        may add to it what an FP16 engine may.
        """
        if precision != "int8":
            return MAX_DIFFERENCE
        return MAX_INT8_DIFFERENCE if self.int8_difference is None else self.int8_difference + MAX_DIFFERENCE


def answers_name(model: str) -> str:
    """File name of a model's right answers."""
    return f"{model}.answers.npz"


def write_answers(model: str, folders: Sequence[str | None], target: Path) -> None:
    """Write PyTorch's answers, and how far the INT8 graph's are from them where there is one.

    Raises:
        SkippedPart: torch or timm is not installed.
    """
    pool = make_frames(POOL, MODELS[model].size)
    right = reference_logits(model, pool, folders)
    arrays: dict[str, Any] = {"logits": right, "frames_sha256": _digest(pool)}
    graph = find_file(onnx_name(model, "int8"), folders)
    if graph is not None and is_installed("onnxruntime"):
        from edgekiln.export.precision.simulation import simulate

        arrays["int8_difference"] = compare_answers(simulate(graph.read_bytes(), pool), right).max_difference
    with target.open("wb") as file:
        np.savez(file, **arrays)


def find_answers(model: str, folders: Sequence[str | None]) -> RightAnswers:
    """The right answers for ``make_frames(POOL, size)``: prepared ones, or else PyTorch's."""
    pool = make_frames(POOL, MODELS[model].size)
    prepared = find_file(answers_name(model), folders)
    if prepared is not None:
        with np.load(prepared, allow_pickle=False) as arrays:
            if str(arrays["frames_sha256"]) == _digest(pool):
                simulated = arrays.get("int8_difference")
                return RightAnswers(
                    arrays["logits"], "prepared file", None if simulated is None else float(simulated)
                )
    try:
        return RightAnswers(reference_logits(model, pool, folders), "PyTorch on this machine's CPU")
    except SkippedPart as error:
        other = "the prepared file is of other pictures" if prepared is not None else "none were prepared"
        return RightAnswers(None, f"{error}, and {other}")


def _digest(frames: Frames) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def reference_logits(model: str, frames: Frames, folders: Sequence[str | None] = ()) -> Logits:
    """float32 (N, C) of the FP32 network on the CPU.

    Raises:
        SkippedPart: torch or timm is not installed.
    """
    network = make_network(model, folders)
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(frames), _CHUNK):
            pixels = torch.from_numpy(frames[start : start + _CHUNK]).float().permute(0, 3, 1, 2)
            parts.append(network((pixels - 127) / 128).numpy())
    logits: Logits = np.concatenate(parts)
    return logits
