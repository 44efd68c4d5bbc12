"""The stages of a run, from the table of their kinds: what each reads, makes and calls."""

from __future__ import annotations

from collections.abc import Iterable

from edgekiln.pipeline.stages.stage import EVERYTHING, StageKind
from reference.markdown import code, table

__all__ = ["describe_stages"]


def describe_stages(kinds: Iterable[StageKind]) -> str:
    """One row for each kind, in the order in which they run."""
    rows = [(code(k.name), k.purpose, _reads(k), _codes(k.makes), code(_short(k.calls))) for k in kinds]
    return table(("stage", "what it does", "reads", "makes", "calls"), rows)


def _reads(kind: StageKind) -> str:
    if kind.reads == EVERYTHING:
        return "all before"
    return _codes(kind.reads) or "the user's pictures"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(code, names))


def _short(calls: str) -> str:
    return calls.removeprefix("edgekiln.pipeline.").replace(":", ".")
