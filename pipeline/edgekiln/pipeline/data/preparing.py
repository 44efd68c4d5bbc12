"""The work of the stage ``data``: prepares every split, and tells what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.pipeline.data.folders.values import describe_levels
from edgekiln.pipeline.data.leaks import describe_near_copies
from edgekiln.pipeline.data.prepared import describe_unjudged, prepare_splits
from edgekiln.pipeline.data.scaled_frames import keep_scaled_frames
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.pipeline.workspace.stage_files import StageContext

__all__ = ["prepare_data"]

_LEFT_OUT = (
    ("unreadable", "unreadable pictures left out"),
    ("duplicates", "pictures left out, because equal pixels stand in a split that judges"),
    ("conflicts", "pictures whose pixels also stand under another label"),
    ("allowed", "pictures whose pixels stand in another split too, which data.leaks = 'allow' leaves there"),
)
"""Lists of the index, and what their entries are."""
_NAMED = 5


def prepare_data(context: StageContext, settings: DataSettings) -> None:
    """Make the pictures of one source ready, those of the target or of the source task."""
    index = prepare_splits(
        settings,
        seed=context.recipe.seed,
        folder=context.folder,
        advance=lambda done, total: context.progress.advance(done, total, "pictures"),
        message=context.progress.message,
    )
    scaled = keep_scaled_frames(settings, context.folder)
    counts = ", ".join(f"{name} {len(part['keys'])}" for name, part in index["splits"].items())
    context.progress.message(f"  {len(index['classes'])} classes; {counts}")
    if scaled:
        context.progress.message(
            f"  {scaled} test pictures are JPEGs that can also be decoded at a fraction of their size"
        )
    for notice in index["notices"]:
        context.progress.message(f"  {notice}")
    _tell_left_out(index, context.progress)
    _tell_near_copies(index, context.progress)
    for notice in (*describe_levels(index["levels"]), *describe_unjudged(index["unjudged"])):
        context.progress.message(f"  {notice}")


def _tell_left_out(index: Mapping[str, Any], progress: Progress) -> None:
    for kind, text in _LEFT_OUT:
        entries = [e if isinstance(e, str) else e["key"] for e in index[kind]]
        if entries:
            more = f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
            progress.message(f"  {len(entries)} {text}: {', '.join(entries[:_NAMED])}{more}")


def _tell_near_copies(index: Mapping[str, Any], progress: Progress) -> None:
    for notice in describe_near_copies(
        index["near_copies"], lambda split, i: index["splits"][split]["keys"][i]
    ):
        progress.message(f"  {notice}")
