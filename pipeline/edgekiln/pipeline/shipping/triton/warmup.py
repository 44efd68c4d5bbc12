"""The pictures that warm a model up when Triton loads it: real ones where there are any and may be, else random values.

A warm-up with random values costs the same time and meets the same kernels; real pictures also show, in the server's
log, that the model takes what it will be sent. They lie in the repository as raw pixels for everybody who can read it,
so a recipe that keeps its pictures out of reports (``[report] images = false``) keeps them out of here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from edgekiln.runtime.bundles.bundle import Bundle
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.spec import Frames

__all__ = ["WarmupWish", "choose_frames"]

WarmupWish = Literal["auto", "real", "random", "none"]


def choose_frames(
    bundle: Bundle, wish: WarmupWish, pictures: Sequence[Path], wanted: int
) -> tuple[Frames, str]:
    """Frames to warm up with, uint8 (at most ``wanted``, H, W, 3), and a sentence that says where they are from.

    None of them where random values are to be taken.

    Args:
        bundle: names the contract, the recipe, and the run that it may still lie in.
        wish: ``auto`` takes real pictures where there are any, and says where there are none.
        pictures: files to take; empty looks for the val split of the run that made the bundle.
        wanted: how many are enough.

    Raises:
        UsageError: real pictures are asked for, and the recipe forbids them or there are none.
        ImageError: one of ``pictures`` cannot be read.
    """
    if pictures and wish in {"random", "none"}:
        raise UsageError(
            f"--warmup {wish} takes no pictures.", hint="Leave --picture out, or ask for --warmup real."
        )
    if wish == "none":
        return _no_frames(bundle), "no warm-up: the first requests are slow"
    if wish == "random":
        return _no_frames(bundle), "warm-up with random values"
    if _may_show(bundle):
        return _real_frames(bundle, wish, pictures, wanted)
    if wish == "real" or pictures:
        raise UsageError(
            "The recipe of this bundle keeps its pictures to itself ([report] images = false): none is put into "
            "a model repository.",
            hint="Take --warmup random.",
            path=bundle.path,
        )
    return _no_frames(bundle), "warm-up with random values: the recipe keeps its pictures to itself"


def _no_frames(bundle: Bundle) -> Frames:
    return np.empty((0, bundle.contract.height, bundle.contract.width, 3), np.uint8)


def _real_frames(
    bundle: Bundle, wish: WarmupWish, pictures: Sequence[Path], wanted: int
) -> tuple[Frames, str]:
    """The pictures that were given, else those of the run's val split; see ``choose_frames``."""
    if pictures:
        frames = np.stack([prepare(path, bundle.contract) for path in pictures[:wanted]])
        return frames, f"warm-up with {len(frames)} of the pictures that were given"
    found = _read_val_split(bundle, wanted)
    if found is not None:
        return found, f"warm-up with {len(found)} pictures of the run's val split"
    if wish == "real":
        raise UsageError(
            f"There are no pictures to warm up with: {bundle.path} does not lie in the run that made it.",
            hint="Give some with --picture FILE.",
            path=bundle.path,
        )
    return (
        _no_frames(bundle),
        "warm-up with random values: no pictures were given, and the run that made the bundle is not here",
    )


def _may_show(bundle: Bundle) -> bool:
    """Whether the recipe lets pictures into what is handed on."""
    recipe = (bundle.manifest.get("provenance") or {}).get("recipe") or {}
    report = recipe.get("report")
    # What says neither yes nor no is no leave to hand pictures on.
    return report is None or (isinstance(report, dict) and report.get("images", True) is True)


def _read_val_split(bundle: Bundle, wanted: int) -> Frames | None:
    """The first frames of the val split in ``RUNS/NAME``, where the bundle is ``RUNS/NAME/bundle``; else ``None``."""
    key = ((bundle.manifest.get("provenance") or {}).get("parents") or {}).get("data", "")
    if not (isinstance(key, str) and re.fullmatch(r"[0-9a-f]{16}", key)):  # it becomes a part of a path
        return None
    path = bundle.path.resolve().parent / "stages" / "data" / key / "out" / "val.npy"
    if not path.is_file():
        return None
    frames = np.load(path, mmap_mode="r", allow_pickle=False)[:wanted]
    shape = (bundle.contract.height, bundle.contract.width, 3)
    if frames.dtype != np.uint8 or frames.shape[1:] != shape or not len(frames):
        return None
    return np.array(frames)
