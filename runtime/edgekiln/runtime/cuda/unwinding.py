"""Closes what was opened in steps, last first, whatever fails. It knows nothing of CUDA.

The first error is the one that is raised, since the others are mostly its consequences; those are logged.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeAlias

from edgekiln.runtime.errors import EdgekilnError

__all__ = ["Close", "close_all", "closed_at_last", "closed_on_failure"]

Close: TypeAlias = Callable[[], object]
_log = logging.getLogger(__name__)


def close_all(closes: list[Close], first: BaseException | None = None) -> None:
    """Call all of ``closes``, the last one first.

    Args:
        closes: in the order in which what they close was opened.
        first: what failed before. The caller raises it; what fails here is then only logged.

    Raises:
        EdgekilnError: the first that a call raised, where nothing failed before.
    """
    failed: EdgekilnError | None = None
    for close in reversed(closes):
        try:
            close()
        except EdgekilnError as error:
            if first is None and failed is None:
                failed = error
            else:
                _log.warning("%s; while closing after: %s", error, first or failed)
    if failed is not None:
        raise failed


@contextlib.contextmanager
def closed_at_last(close: Close) -> Iterator[None]:
    """Calls ``close`` at the end, after success and after failure."""
    try:
        yield
    except BaseException as error:
        close_all([close], error)
        raise
    close_all([close])


@contextlib.contextmanager
def closed_on_failure() -> Iterator[list[Close]]:
    """A list of closes to append to: all are called where the body fails, none where it succeeds."""
    closes: list[Close] = []
    try:
        yield closes
    except BaseException as error:
        close_all(closes, error)
        raise
