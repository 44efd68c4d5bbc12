"""What the sessions of all libraries have in common: what they tell of themselves, and when they refuse a call.

Knows no library and runs nothing. What a session promises is ``edgekiln.runtime.session.Session``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.processes import HomeProcess, NotPicklable
from edgekiln.runtime.spec import DLPackArray, Frames, as_frames, check_frames

__all__ = ["DescribedSession", "HomeSession", "SessionFacts", "closed_error"]

_Engine = TypeVar("_Engine")


def closed_error() -> UsageError:
    """The error of a call to a session that is closed."""
    return UsageError("This session is closed.", hint="Load the bundle again.")


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What a session tells of itself, also when it is closed. The fields are the properties of ``Session``."""

    backend: str
    device: str
    threads: int | None
    frame_shape: tuple[int, int]
    num_classes: int


class DescribedSession(NotPicklable):
    """The properties of ``Session``, from facts that stay as they were when the engine was opened."""

    _facts: SessionFacts

    @property
    def backend(self) -> str:
        return self._facts.backend

    @property
    def device(self) -> str:
        return self._facts.device

    @property
    def threads(self) -> int | None:
        return self._facts.threads

    @property
    def frame_shape(self) -> tuple[int, int]:
        return self._facts.frame_shape

    @property
    def num_classes(self) -> int:
        return self._facts.num_classes


class HomeSession(DescribedSession):
    """A session whose engine works in the process that opened it, and in no fork of that."""

    def __init__(self, facts: SessionFacts) -> None:
        self._facts = facts
        self._home = HomeProcess()

    def _admit(self, engine: _Engine | None, frames: Frames | DLPackArray) -> tuple[_Engine, Frames]:
        """The engine, for a call with these frames, and the frames as numpy's, without a copy.

        It is handed in, and so read once: ``close`` in another thread cannot pull it away midway.

        Args:
            engine: ``None`` where the session is closed.
            frames: of the call.

        Raises:
            ForkedError: this is a fork.
            UsageError: the session is closed.
            InputError: these are no frames of its shape.
        """
        self._home.check()
        if engine is None:
            raise closed_error()
        shared = as_frames(frames)
        check_frames(shared, *self._facts.frame_shape)
        return engine, shared
