"""Engines in a child process: what a library's crash ends is that process, and the variant; not the run.

A stage has one child for all that it loads. Which library crashes on which graph is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from edgekiln.export.child import Child
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["IsolatedSession"]

_T = TypeVar("_T")


class _Runs(Protocol):
    def run(self, frames: Frames) -> Logits: ...

    def close(self) -> None: ...


class IsolatedSession:
    """What ``open_engine`` opens, in a child: uint8 (N, H, W, 3) in, float32 (N, C) out. One at a time in each child.

    Args:
        child: where it is opened.
        open_engine: a function of a module, ``open_session`` above all; called there with ``arguments``.

    Raises:
        BuildError, ResourceError: the library crashed, was killed or hangs; see ``Child.call``. All else is what the
            engine raises.
    """

    def __init__(self, child: Child, open_engine: Callable[..., _Runs], *arguments: Any) -> None:
        self._child = child
        child.call(_open, open_engine, *arguments)

    def run(self, frames: Frames) -> Logits:
        """As the engine's own; for one thread."""
        return self._child.call(_run, np.ascontiguousarray(frames))

    def ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What ``function(engine, *arguments)`` returns there; it is a function of a module."""
        return self._child.call(_ask, function, *arguments)

    def close(self) -> None:
        """Free the engine; the child lives on. One that died has freed it."""
        if self._child.is_running:
            self._child.call(_close)


_opened: list[_Runs] = []  # of the child: one at most


def _open(open_engine: Callable[..., _Runs], *arguments: Any) -> None:
    _close()
    _opened.append(open_engine(*arguments))


def _run(frames: Frames) -> Logits:
    return _opened[-1].run(frames)


def _ask(function: Callable[..., _T], *arguments: Any) -> _T:
    return function(_opened[-1], *arguments)


def _close() -> None:
    while _opened:
        _opened.pop().close()
