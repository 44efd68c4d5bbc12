"""What the server takes at most, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.runtime.pictures.limits import MAX_BYTES

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on requests. Sizes are bytes, times are seconds.

    Attributes:
        body_bytes: of one request, as of one picture everywhere in edgekiln.
        held_bytes: of all bodies that are in memory at the same time.
        pictures: of one request.
        header_bytes: of a request line with its headers.
        header_seconds: until those are complete, after the connection was made or the first byte of a next request.
        body_seconds: until the body is complete.
        idle_seconds: a connection stays open between two requests.
        connections: open at the same time.
        rate: requests a second from one address, in the long run; bursts of two seconds' worth pass. 0: any number.
        deadline_ms: within which a picture's batch has to begin.
        grace_seconds: for requests under way when the server is told to stop.
        look_seconds: between two looks at the bundle's files.
    """

    body_bytes: int = MAX_BYTES
    held_bytes: int = 4 * MAX_BYTES
    pictures: int = 64
    header_bytes: int = 16 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: int = 15
    connections: int = 256
    rate: float = 200.0
    deadline_ms: float = 30_000.0
    grace_seconds: int = 20
    look_seconds: float = 2.0
