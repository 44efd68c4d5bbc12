"""Which batch sizes (buckets) a session prepares, which profile runs each, and which of them runs a batch.

Also what a report and a person are told of profiles. Knows the batch ranges of engines and no library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

__all__ = [
    "BatchRange",
    "ProfileUse",
    "choose_bucket",
    "list_profiles",
    "plan_buckets",
    "tell_profiles",
]


class BatchRange(Protocol):
    """An engine's profile, as far as its batch sizes go. A static one has one size, which is all three."""

    @property
    def min_batch(self) -> int:
        """The smallest batch that it runs."""

    @property
    def opt_batch(self) -> int:
        """The batch that its kernels were chosen for."""

    @property
    def max_batch(self) -> int:
        """The largest batch that it runs."""


_Profile = TypeVar("_Profile", bound=BatchRange)


def plan_buckets(profiles: Iterable[_Profile]) -> dict[int, _Profile]:
    """Batch sizes to prepare, each with the profile that runs it.

    A static profile gives its one size, a range the powers of two in it and its ends. Of several that hold a size the
    one with the nearest ``opt_batch`` runs it: its kernels were chosen for about that many. Of equally near ones the
    narrower range is faster.
    """
    found = list(profiles)
    sizes: set[int] = set()
    for profile in found:
        powers = (2**k for k in range(profile.max_batch.bit_length()))
        sizes |= {profile.min_batch, profile.max_batch, *(p for p in powers if p > profile.min_batch)}
    return {size: _choose_profile(found, size) for size in sizes}


def _choose_profile(profiles: Iterable[_Profile], size: int) -> _Profile:
    holding = (p for p in profiles if p.min_batch <= size <= p.max_batch)
    return min(holding, key=lambda p: (abs(size - p.opt_batch), p.max_batch - p.min_batch))


def choose_bucket(sizes: Sequence[int], count: int) -> int:
    """The smallest of the ascending ``sizes`` that holds ``count`` frames, which are at most the largest."""
    return next(size for size in sizes if size >= count)


@dataclass(frozen=True, slots=True)
class ProfileUse:
    """One optimization profile of an engine, and what a session runs on it.

    Attributes:
        min, opt, max: batch sizes that it takes; its kernels were chosen for ``opt``.
        buckets: batch sizes that the session runs on it.
        workspace_bytes: GPU memory that it works in. The profiles of a slot share the largest of these.
    """

    min: int
    opt: int
    max: int
    buckets: tuple[int, ...]
    workspace_bytes: int


def list_profiles(session: object) -> list[dict[str, Any]]:
    """The profiles of a session's engines as JSON values; empty for a backend that has none."""
    uses: Sequence[ProfileUse] = getattr(session, "profiles", ())
    return [{**asdict(use), "buckets": list(use.buckets)} for use in uses]


def tell_profiles(profiles: Iterable[Mapping[str, Any]]) -> str:
    """``1 (2.0 MiB); 2 to 32, best at 16 (9.5 MiB)``: batch sizes and working memory, where that is known."""
    return "; ".join(_tell_profile(profile) for profile in profiles)


def _tell_profile(profile: Mapping[str, Any]) -> str:
    low, best, high, needed = (profile.get(key) for key in ("min", "opt", "max", "workspace_bytes"))
    sizes = f"{low}" if low == high else f"{low} to {high}, best at {best}"
    return sizes if needed is None else f"{sizes} ({needed / 2**20:.1f} MiB)"
