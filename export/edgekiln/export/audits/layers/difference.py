"""Two engines of one network side by side, aligned by the ONNX nodes that their layers compute. Runs nothing.

Layers of the two that share a node belong together, and so do those that share a node with one of these: such a part of
the network is a ``Piece``. What only moves or converts tensors has no node, and is counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgekiln.export.audits.layers.profile import EngineProfile, LayerRow

__all__ = ["EngineDifference", "Piece", "compare_engines"]

_MUCH_LONGER = 0.25
"""Share that a profiler adds to a call from which on its times are said to be doubtful."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The layers of both engines that compute the same ONNX nodes.

    Attributes:
        nodes: that both engines compute.
        before: layers of the first engine.
        after: layers of the second.
        fused: groups of nodes that are one layer in the second engine and were several in the first.
        unfused: the opposite: groups that were one layer, and no longer are.
    """

    nodes: tuple[str, ...]
    before: tuple[LayerRow, ...]
    after: tuple[LayerRow, ...]
    fused: tuple[tuple[str, ...], ...]
    unfused: tuple[tuple[str, ...], ...]

    @property
    def gained_ms(self) -> float | None:
        """By how much the second engine is faster here; ``None`` where one was not timed."""
        first, second = _milliseconds(self.before), _milliseconds(self.after)
        return None if first is None or second is None else first - second

    @property
    def is_changed(self) -> bool:
        """Whether precision, kernels or what is fused differ."""
        return bool(self.fused or self.unfused) or _work(self.before) != _work(self.after)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "nodes": list(self.nodes),
            "before": _describe_rows(self.before),
            "after": _describe_rows(self.after),
            "gained_ms": self.gained_ms,
            "changed": self.is_changed,
            "fused": [list(group) for group in self.fused],
            "unfused": [list(group) for group in self.unfused],
        }


@dataclass(frozen=True, slots=True)
class EngineDifference:
    """What differs between two engines.

    Attributes:
        before: the first.
        after: the second.
        pieces: the largest difference in time first; without times, in the order of the network.
        notes: why the times of the two may not be compared as they stand.
    """

    before: EngineProfile
    after: EngineProfile
    pieces: tuple[Piece, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: ``before`` and ``after`` in sums, and every piece."""
        shared = [id(row) for piece in self.pieces for row in (*piece.before, *piece.after)]
        return {
            "before": _describe_engine(self.before, set(shared)),
            "after": _describe_engine(self.after, set(shared)),
            "pieces": [piece.to_dict() for piece in self.pieces],
            "notes": list(self.notes),
        }


def compare_engines(before: EngineProfile, after: EngineProfile) -> EngineDifference:
    """Align two engines that were made of one network, in whatever precision, library or version."""
    pieces = [_make_piece(*sides) for sides in _align(before.rows, after.rows)]
    if before.timing is not None and after.timing is not None:
        pieces.sort(key=lambda piece: -abs(piece.gained_ms or 0.0))
    return EngineDifference(before, after, tuple(pieces), tuple(_notes(before, after, pieces)))


def _align(
    before: Sequence[LayerRow], after: Sequence[LayerRow]
) -> Iterator[tuple[tuple[LayerRow, ...], tuple[LayerRow, ...]]]:
    """Layers of both that hang together by shared nodes, in the order of the first engine."""
    makers: dict[str, tuple[list[LayerRow], list[LayerRow]]] = {}
    for side, rows in enumerate((before, after)):
        for row in rows:
            for name in () if row.is_reformat else row.layer.origins:
                makers.setdefault(name, ([], []))[side].append(row)
    shared = {name: sides for name, sides in makers.items() if all(sides)}
    seen: set[str] = set()
    for start in shared:
        if start in seen:
            continue
        found: tuple[dict[int, LayerRow], dict[int, LayerRow]] = ({}, {})
        waiting = [start]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in shared:
                continue
            seen.add(name)
            for side in (0, 1):
                for row in shared[name][side]:
                    found[side][id(row)] = row
                    waiting.extend(row.layer.origins)
        yield _in_order(found[0], before), _in_order(found[1], after)


def _in_order(found: dict[int, LayerRow], rows: Sequence[LayerRow]) -> tuple[LayerRow, ...]:
    return tuple(row for row in rows if id(row) in found)


def _make_piece(before: tuple[LayerRow, ...], after: tuple[LayerRow, ...]) -> Piece:
    both = set(_nodes(before)) & set(_nodes(after))
    nodes = tuple(name for name in _nodes(before) if name in both)
    return Piece(nodes, before, after, _merged(before, after, both), _merged(after, before, both))


def _nodes(rows: Iterable[LayerRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.layer.origins))


def _merged(
    apart: Sequence[LayerRow], together: Sequence[LayerRow], both: set[str]
) -> tuple[tuple[str, ...], ...]:
    """The nodes of each layer of ``together`` that no single layer of ``apart`` computes."""
    groups = [tuple(name for name in row.layer.origins if name in both) for row in together]
    wholes = [set(row.layer.origins) for row in apart]
    return tuple(group for group in groups if group and not any(whole.issuperset(group) for whole in wholes))


def _work(rows: Iterable[LayerRow]) -> list[tuple[str, str]]:
    """Precisions and kernels. Where there is a kernel its layer's kind says nothing: versions spell that otherwise."""
    return sorted((row.precision, row.layer.tactic or row.layer.kind) for row in rows)


def _milliseconds(rows: Iterable[LayerRow]) -> float | None:
    known = [row.ms for row in rows if row.ms is not None]
    return sum(known) if known else None


def _describe_rows(rows: Sequence[LayerRow]) -> dict[str, Any]:
    """Sums of the layers of one side; precisions of its products where it has any."""
    working = [row for row in rows if row.macs] or rows
    return {
        "layers": [row.layer.name for row in rows],
        "precisions": sorted({row.precision for row in working}),
        "kernels": [row.layer.tactic or row.layer.kind for row in rows],
        "macs": sum(row.macs for row in rows),
        "ms": _milliseconds(rows),
    }


def _describe_engine(profile: EngineProfile, shared: set[int]) -> dict[str, Any]:
    """An engine in sums. What is in no piece is its ``reformats`` and its ``others``."""
    apart = [row for row in profile.rows if id(row) not in shared]
    reformats = [row for row in apart if row.is_reformat]
    others = [row for row in apart if not row.is_reformat]
    timing = profile.timing
    return {
        "engine": profile.engine,
        "backend": profile.backend,
        "version": profile.version,
        "machine": profile.machine,
        "threads": profile.threads,
        "batch": profile.batch,
        "layers": len(profile.rows),
        "call_ms": None if timing is None else timing.call_ms,
        "profiled_ms": None if timing is None else timing.profiled_ms,
        "sum_ms": profile.sum_ms,
        "reformats": _describe_rows(reformats),
        "others": _describe_rows(others),
    }


def _notes(before: EngineProfile, after: EngineProfile, pieces: Sequence[Piece]) -> Iterator[str]:
    if not pieces:
        yield "No ONNX node is named by both: these are engines of two networks, or one of them names no nodes."
    if before.timing is None or after.timing is None:
        return
    for what, first, second in (
        ("on two machines", before.machine, after.machine),
        ("at two batch sizes", before.batch, after.batch),
        ("with two numbers of threads", before.threads, after.threads),
    ):
        if first != second:
            yield f"They were timed {what}: {first} and {second}."
    for profile in (before, after):
        assert profile.timing is not None
        added = profile.timing.profiled_ms / profile.timing.call_ms - 1
        if added > _MUCH_LONGER:
            yield (
                f"The profiler makes a call of {profile.engine} {added:.0%} longer: the times of its short layers "
                "are the profiler's for a good part."
            )
