"""Room on disks: asked for before work that is known to need it, and told in numbers where it ran out."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekiln.runtime.errors import ResourceError

__all__ = ["explain_writing", "require_room"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's, which has no errno


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise ResourceError where the file system of ``folder`` has less than ``needed_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ResourceError(
            f"{what} need {_megabytes(needed_bytes)}, and {folder} has {_megabytes(free)} free.",
            hint="Free some, or choose another place with --runs.",
            path=folder,
        )


@contextlib.contextmanager
def explain_writing(root: Path, usual_bytes: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Say which place below ``root`` cannot be written, why, how much was free and wanted, and what to do.

    The system's own error names no file when writing fails, only when opening does. Errors about files that are only
    read pass through, and so does every other one.

    Args:
        usual_bytes: how much the work wrote when it was last done; ``None`` where that is unknown.
    """
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else root
        if error.errno in _FULL or _SHORT_WRITE.search(str(error)):
            raise _explain_full(path, error, usual_bytes()) from error
        if error.errno == errno.EFBIG:
            raise ResourceError(
                f"{path} may not grow as it would have to: {error.strerror}.",
                hint="Raise the limit of file sizes (ulimit -f), and run the same command again: finished stages are "
                "kept.",
                path=path,
            ) from error
        if error.errno in _REFUSED and path.is_relative_to(root):
            raise ResourceError(
                f"{path} cannot be written: {error.strerror}.",
                hint="Check who owns it and its permissions, or choose another place with --runs.",
                path=path,
            ) from error
        raise


def _explain_full(path: Path, error: OSError, usual_bytes: int | None) -> ResourceError:
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = _megabytes(shutil.disk_usage(existing).free)
    usual = "" if usual_bytes is None else f", and this took {_megabytes(usual_bytes)} when it was last done"
    return ResourceError(
        f"No space is left for {path}: {error.strerror or error}; {free} are free there{usual}.",
        hint="Free some, or choose another place with --runs, and run the same command again: finished stages are "
        "kept.",
        path=path,
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
