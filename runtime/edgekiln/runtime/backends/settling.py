"""What is left behind a failure on a GPU: nothing under way, and the word that the GPU is lost where it is.

Knows streams, and no engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgekiln.runtime.cuda import Stream, Wait
from edgekiln.runtime.errors import DeviceLostError, EdgekilnError

__all__ = ["again", "settled"]


@contextlib.contextmanager
def settled(stream: Stream, wait: Wait = "spin") -> Iterator[None]:
    """Wait for ``stream`` after a failure: work under way may still use what is overwritten or freed next.

    An error of CUDA that stays is seen here: then the wait fails as well, as all calls of that context will.

    Raises:
        DeviceLostError: in place of the failure, where the wait fails too.
    """
    try:
        yield
    except BaseException as error:
        try:
            stream.synchronize(wait)
        except EdgekilnError as more:
            if isinstance(error, Exception):
                told = error.message if isinstance(error, EdgekilnError) else str(error)
                raise DeviceLostError(
                    f"The GPU is lost to this process: {told} Afterwards: {more.message}",
                    hint="Start the process again. Where that does not help, `dmesg | grep -i xid` tells what the "
                    "driver saw.",
                ) from error
        raise


def again(lost: DeviceLostError) -> DeviceLostError:
    """The same error for a later call: one that is raised twice collects the tracebacks of both."""
    return DeviceLostError(lost.message, hint=lost.hint)
