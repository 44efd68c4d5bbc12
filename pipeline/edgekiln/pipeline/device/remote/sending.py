"""Sends files to a device: those only whose content is not there, told by its sha256."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from edgekiln.pipeline.capacity import describe_bytes
from edgekiln.pipeline.device.remote.agent_machine import PIECE_BYTES
from edgekiln.pipeline.device.remote.line import Line
from edgekiln.pipeline.workspace.progress import Pace, format_seconds
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import DataError, ResourceError, UntrustedError

__all__ = ["Sent", "send"]

_TELL_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that is to be on the device.

    Attributes:
        content: the file here, or its bytes.
        names: of folders and file, where it is to lie there.
    """

    sha256: str
    size: int
    content: Path | bytes
    names: tuple[str, ...]

    @classmethod
    def of_file(cls, path: Path, names: Sequence[str]) -> Sent:
        """Read a file, and know it again."""
        digest, size = hash_file(path)
        return cls(digest, size, path, tuple(names))

    def pieces(self) -> Iterator[bytes]:
        """Its content; raises DataError where the file was changed, or cannot be read any more."""
        left = self.size
        if isinstance(self.content, bytes):
            yield from (self.content[at : at + PIECE_BYTES] for at in range(0, left, PIECE_BYTES))
            return
        try:
            with self.content.open("rb") as file:
                while left and (piece := file.read(min(PIECE_BYTES, left))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise DataError(f"{self.content} cannot be read: {error.strerror}.", path=self.content) from error
        if left:
            raise DataError(
                f"{self.content} was changed while it was sent.", hint="Run it again.", path=self.content
            )


def send(line: Line, files: Sequence[Sent], tell: Callable[[str], None]) -> None:
    """See to it that the content of all files is on the device.

    Raises:
        ResourceError: they do not fit there.
        DataError: one was changed while it was sent.
    """
    unique = list({one.sha256: one for one in files}.values())
    answer = line.ask("missing", files=[[one.sha256, one.size] for one in unique])
    numbers, free = answer.get("missing"), answer.get("free")
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < len(unique) for n in numbers):
        raise UntrustedError(f"The device {line.device.name!r} does not say what it lacks.")
    missing = [unique[number] for number in dict.fromkeys(numbers)]
    if not missing:
        return
    total = sum(one.size for one in missing)
    if isinstance(free, int) and free < total:
        raise ResourceError(
            f"The device {line.device.name!r} has {describe_bytes(free)} free and lacks {describe_bytes(total)}.",
            hint="Free some there, or give it another folder in devices.toml. Then run the same command again.",
        )
    told = _Teller(total, tell)
    tell(f"sends {len(missing)} of {len(unique)} files, {describe_bytes(total)}")
    pieces = (piece for one in missing for piece in one.pieces())
    line.put([(one.sha256, one.size) for one in missing], pieces, told.advance)


class _Teller:
    """A line with the time left, every few seconds."""

    def __init__(self, total: int, tell: Callable[[str], None]) -> None:
        self._total, self._tell, self._done = total, tell, 0
        self._pace, self._next = Pace(), monotonic() + _TELL_EVERY_S
        self._pace.add(0, monotonic())

    def advance(self, size: int) -> None:
        self._done += size
        now = monotonic()
        if now >= self._next:
            self._next = now + _TELL_EVERY_S
            self._pace.add(self._done, now)
            left = self._pace.seconds_for(self._total - self._done, now)
            timing = "" if left is None else f", about {format_seconds(left)} left"
            self._tell(f"sent {describe_bytes(self._done)} of {describe_bytes(self._total)}{timing}")
