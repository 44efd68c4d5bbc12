"""Where the bytes of a bundle come from: a folder, or an archive that was read into memory.

A source knows names and bytes; what should be there, and whether the bytes are right, is the manifest's matter
(bundle.py) and the signature's (signature.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from edgekiln.runtime.errors import BundleError, EdgekilnError, ResourceError

__all__ = [
    "FRESH_COPY",
    "BundleSource",
    "FolderSource",
    "MemorySource",
    "explain_unreadable",
    "hash_chunks",
    "hash_file",
]

_TOO_MANY_OPEN = frozenset({errno.EMFILE, errno.ENFILE})
_NOT_THE_BUNDLES = _TOO_MANY_OPEN | {
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_CHECK_THE_DISK = "Check the disk, who owns the file, and its permissions."
FRESH_COPY = "Take a fresh copy of the bundle, or make it again."


class BundleSource(Protocol):
    """A flat set of named files."""

    @property
    def path(self) -> Path:
        """The folder or archive, for messages."""

    def names(self) -> frozenset[str]:
        """The names of everything in it, whatever it is; raises as ``read`` does."""

    def read(self, name: str, limit: int) -> Iterator[bytes]:
        """One file in pieces, up to one byte past ``limit``, which shows that it is too long.

        Raises:
            BundleError: it is no regular file, or is gone.
            ResourceError: it may not be read, or the disk fails.
        """


class FolderSource:
    """The files of a folder. Links, devices and pipes have names but cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> frozenset[str]:
        """See BundleSource."""
        try:
            with os.scandir(self.path) as entries:
                return frozenset(entry.name for entry in entries)
        except OSError as error:
            raise explain_unreadable(self.path, error) from error

    def read(self, name: str, limit: int) -> Iterator[bytes]:
        """See BundleSource."""
        return _read_chunks(self.path / name, limit)


class MemorySource:
    """Files that are in memory already."""

    def __init__(self, path: Path, members: Mapping[str, bytes]) -> None:
        self.path = path
        self._members = members

    def names(self) -> frozenset[str]:
        """See BundleSource."""
        return frozenset(self._members)

    def read(self, name: str, limit: int) -> Iterator[bytes]:
        """See BundleSource."""
        if name not in self._members:
            raise BundleError(f"{self.path} has no member {name}.", hint=FRESH_COPY, path=self.path)
        data = self._members[name]
        yield data if len(data) <= limit else data[: limit + 1]


def hash_chunks(chunks: Iterable[bytes]) -> tuple[str, int]:
    """sha256 as hex and size in bytes of what the pieces make together."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def hash_file(path: Path, *, limit: int | None = None) -> tuple[str, int]:
    """sha256 as hex and size in bytes of a regular file, never of a link.

    ``limit`` stops the reading of a file that is larger than it should be.
    """
    return hash_chunks(_read_chunks(path, limit))


def _read_chunks(path: Path, limit: int | None) -> Iterator[bytes]:
    """The file in pieces, one byte past ``limit`` at most; refuses links, devices and pipes."""
    try:
        # O_NONBLOCK: opening a pipe must not hang before it can be refused.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(
                f"{path} is a link; a bundle holds its files themselves.",
                hint="Copy it with its links followed: cp -rL BUNDLE COPY",
                path=path,
            ) from error
        raise explain_unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is not a regular file.", hint=FRESH_COPY, path=path)
    with os.fdopen(descriptor, "rb") as file:
        left = -1 if limit is None else limit + 1
        while chunk := _read(file, 2**20 if left < 0 else min(left, 2**20), path):
            left -= len(chunk) if limit is not None else 0
            yield chunk


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except OSError as error:  # a failing disk
        raise explain_unreadable(path, error) from error


def explain_unreadable(path: Path, error: OSError) -> EdgekilnError:
    """The error for a file that cannot be read. What the bundle is not to blame for is no mark against it."""
    said = f"{path} cannot be read: {error.strerror}."
    if error.errno in _NOT_THE_BUNDLES:
        too_many = error.errno in _TOO_MANY_OPEN
        hint = "Close some files, or allow more (ulimit -n)." if too_many else _CHECK_THE_DISK
        return ResourceError(said, hint=hint, path=path)
    return BundleError(said, hint=FRESH_COPY, path=path)  # gone meanwhile
