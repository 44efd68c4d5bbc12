"""How a picture that cannot be used is told of: one error for whatever a decoder raises, and advice.

Knows no format and no limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekiln.runtime.errors import ImageError

__all__ = ["COPY_AGAIN", "SCALE_DOWN", "name_picture", "told_as_image_errors"]

SCALE_DOWN = "Scale it down: models see a few hundred pixels of a side."
COPY_AGAIN = "Copy or export it again."


def name_picture(path: Path | None) -> str:
    """What a message calls a picture: its file, where it comes from one."""
    return "The picture" if path is None else str(path)


@contextmanager
def told_as_image_errors(path: Path | None) -> Iterator[None]:
    """Whatever goes wrong inside becomes an ImageError that names the file: a decoder may raise anything on garbage."""
    try:
        yield
    except ImageError as error:
        if path is not None and error.path is None:
            error.path = os.fspath(path)
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name_picture(path)} cannot be decoded: memory ran out.",
            reason="memory",
            hint=SCALE_DOWN,
            path=path,
        ) from error
    except Exception as error:
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise ImageError(
            f"{name_picture(path)} cannot be decoded: {error}.", reason=reason, hint=COPY_AGAIN, path=path
        ) from error
