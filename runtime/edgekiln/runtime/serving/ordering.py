"""In which order ``load`` tries the variants of a bundle: by what was measured here, else as documented."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgekiln.runtime.backends import CPU_BACKENDS
from edgekiln.runtime.bundles.machine_kind import read_host_kind, read_kind
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.bundles.times import MeasuredTime

__all__ = ["Choice", "find_time", "order_by_speed"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant that may be loaded, why it stands at its place, and with how many threads it was measured here."""

    variant: VariantRecord
    reason: str
    threads: int | None = None


def order_by_speed(variants: Iterable[VariantRecord], device: int = 0) -> list[Choice]:
    """The order in which variants are to be tried.

    Those that were measured on this kind of machine come first, the fastest of them at the head; then the others. Of
    variants whose intervals overlap the fastest one's, the one that comes first in ``variants`` goes first.

    Args:
        variants: in the documented order.
        device: number of the GPU that would be used.
    """
    waiting = list(variants)
    here = {v.name: time for v in waiting if (time := find_time(v, device)) is not None}
    measured = [v for v in waiting if v.name in here]
    others = [v for v in waiting if v.name not in here]
    choices = []
    while measured:
        fastest = min(measured, key=lambda v: here[v.name].p50_ms)
        first = next(v for v in measured if here[v.name].low_ms <= here[fastest.name].high_ms)
        measured.remove(first)
        choices.append(Choice(first, _explain(first, fastest, here, others), here[first.name].threads))
    lacking = f"{'it was not' if here else 'nothing was'} measured on this kind of machine"
    reason = f"first in the order of preference that passed and runs here ({lacking})"
    return [*choices, *(Choice(variant, reason) for variant in others)]


def _explain(
    first: VariantRecord,
    fastest: VariantRecord,
    here: Mapping[str, MeasuredTime],
    others: Sequence[VariantRecord],
) -> str:
    time = here[first.name]
    told = f"measured on this kind of machine: {time}"
    if first is fastest:
        reason = f"fastest as {told}"
    else:
        reason = f"first in the order of preference of those that are the fastest within their intervals, as {told}"
    names = ", ".join(variant.name for variant in others)
    return f"{reason} (not measured here: {names})" if names else reason


def find_time(variant: VariantRecord, device: int = 0) -> MeasuredTime | None:
    """What it took on this kind of machine. A driver is asked only where all else is the same."""
    if not variant.times:
        return None
    host = read_host_kind(variant.backend)
    near = [time for time in variant.times if replace(time.kind, sm="", gpu="") == host]
    if not near or variant.backend in CPU_BACKENDS:
        return near[0] if near else None
    kind = read_kind(variant.backend, device)
    return next((time for time in near if time.kind == kind), None)
