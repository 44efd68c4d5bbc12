"""Built engines on disk, found again by everything that determines them.

One folder per key, complete or absent; a lock per key, which the system frees when its holder dies, so that one
process builds and the others wait and find it. An engine is code: the cache belongs to its user alone, and what is
taken out of it has the digest that was written when it was put in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import BundleError, EnvironmentProblem, ResourceError, UntrustedError

__all__ = ["CacheEntry", "EngineCache", "default_cache_folder", "engine_key"]

_ABOUT = "about.json"


def default_cache_folder() -> Path:
    """``$EDGEKILN_CACHE``, or ``edgekiln/engines`` below ``$XDG_CACHE_HOME`` (``~/.cache``).

    Raises:
        EnvironmentProblem: it would lie below a home directory, and there is none.
    """
    chosen = os.environ.get("EDGEKILN_CACHE")
    base = chosen or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(base).expanduser()
        return folder if chosen else folder / "edgekiln" / "engines"
    except RuntimeError as error:  # no HOME, and a user whom the system does not know
        raise EnvironmentProblem(
            f"There is no home directory for the engine cache {base}.",
            hint="Set EDGEKILN_CACHE to a folder of your own.",
        ) from error


def engine_key(**parts: Any) -> str:
    """sha256 of everything that determines an engine; ``parts`` are JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One cached build: its key, folder, size in bytes, time of last use (epoch seconds), and what it is."""

    key: str
    folder: Path
    size: int
    used: float
    about: Mapping[str, Any]


class EngineCache:
    """The engines below ``root``, which is made on first use and readable by its owner alone."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_cache_folder()

    def fetch(
        self,
        key: str,
        build: Callable[[Path], Mapping[str, Any]],
        tell: Callable[[str], None],
        use: Callable[[Path], None] = lambda folder: None,
    ) -> tuple[Path, bool]:
        """The folder of ``key``, built by ``build`` where it is not there; and whether it was there.

        Args:
            key: of ``engine_key``.
            build: writes files into the empty folder that it is given, and returns JSON values about them.
            tell: is told once where an entry was damaged, and where another process is building.
            use: reads what it needs from the entry's folder, before anybody may remove it.

        Raises:
            UntrustedError: the cache's folder belongs to, or can be written by, somebody else.
            ResourceError: it cannot be written.
        """
        self._prepare()
        try:
            with self._lock(key, tell):
                found = self._find(key, tell) or self._add(key, build)
                use(found[0])
                return found
        except (BlockingIOError, ConnectionError):
            raise  # of who builds or listens, not of the disk
        except OSError as error:
            raise self._unwritable(error) from error

    def _find(self, key: str, tell: Callable[[str], None]) -> tuple[Path, bool] | None:
        """The entry of ``key``, checked; a damaged one is removed."""
        folder = self.root / key
        if not folder.exists():
            return None
        problem = self._check(folder, key)
        if problem is None:
            os.utime(folder)  # for `prune`
            return folder, True
        tell(f"the cached engine {key[:12]} {problem}: it is built again")
        _remove(folder)
        return None

    def _add(self, key: str, build: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, bool]:
        folder, beside = self.root / key, self.root / f".{key}"
        _remove(beside)  # of a builder that was killed
        beside.mkdir(mode=0o700)
        try:
            about = build(beside)
            files = {entry.name: hash_file(entry)[0] for entry in sorted(beside.iterdir())}
            document = {"key": key, "files": files, "about": about, "built": time.time()}
            (beside / _ABOUT).write_text(json.dumps(document, sort_keys=True), "utf-8")
            beside.rename(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        return folder, False

    def supplement(
        self, key: str, name: str, make: Callable[[], str | None], tell: Callable[[str], None]
    ) -> str | None:
        """The text of file ``name`` in the entry of ``key``; where it is not there, what ``make`` gives, kept there.

        Args:
            key: of an entry. One that was pruned or damaged meanwhile keeps nothing.
            name: of the file.
            make: gives the text, or ``None``, which is not kept: the next one who asks tries again.
            tell: as for ``fetch``.

        Raises:
            UntrustedError, ResourceError: as ``fetch``.
        """
        self._prepare()
        try:
            with self._lock(key, tell):
                folder = self.root / key
                whole = self._check(folder, key) is None
                if whole and (folder / name).exists():
                    return (folder / name).read_text("utf-8")
                text = make()
                if whole and text is not None:
                    self._add_file(folder, name, text)
                return text
        except (BlockingIOError, ConnectionError):
            raise  # of who listens, not of the disk
        except OSError as error:
            raise self._unwritable(error) from error

    def _add_file(self, folder: Path, name: str, text: str) -> None:
        """Add a file to a whole entry. Who dies between the two steps leaves a damaged one, which is built again."""
        (folder / name).write_text(text, "utf-8")
        document = json.loads((folder / _ABOUT).read_text("utf-8"))
        document["files"][name] = hash_file(folder / name)[0]
        beside = self.root / f".{folder.name}"
        _remove(beside)
        beside.mkdir(mode=0o700)
        (beside / _ABOUT).write_text(json.dumps(document, sort_keys=True), "utf-8")
        (beside / _ABOUT).replace(folder / _ABOUT)
        beside.rmdir()

    def about(self, key: str) -> Mapping[str, Any]:
        """What ``build`` returned when the entry was made."""
        return self.read_about(self.root / key)

    @staticmethod
    def read_about(folder: Path) -> Mapping[str, Any]:
        """The same, by the entry's folder."""
        values: Mapping[str, Any] = json.loads((folder / _ABOUT).read_text("utf-8"))["about"]
        return values

    def entries(self) -> list[CacheEntry]:
        """All complete entries, the last used first."""
        found = []
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            if folder.name.startswith("."):
                continue  # being built
            try:
                document = json.loads((folder / _ABOUT).read_text("utf-8"))
                size = sum(entry.stat().st_size for entry in folder.iterdir())
                found.append(CacheEntry(folder.name, folder, size, folder.stat().st_mtime, document["about"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a lock, a timing cache, or a damaged entry that `fetch` will tell of
        return sorted(found, key=lambda entry: -entry.used)

    def prune(self, *, older_than_seconds: float = 0.0) -> list[CacheEntry]:
        """Remove entries last used longer ago than that, and what killed builders left. Returns the entries.

        What another process is building or taking out is left, and so are locks: they are empty, and removing one
        while somebody waits for it would let two in.
        """
        now, removed = time.time(), []
        for entry in self.entries():
            if now - entry.used < older_than_seconds:
                continue
            with contextlib.suppress(BlockingIOError), self._try_lock(entry.key):
                shutil.rmtree(entry.folder)
                removed.append(entry)
        for folder in self.root.glob(".*/"):
            with contextlib.suppress(BlockingIOError), self._try_lock(folder.name[1:]):
                shutil.rmtree(folder)
        return removed

    def _prepare(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.root.stat()
        except OSError as error:
            raise self._unwritable(error) from error
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UntrustedError(
                f"The engine cache {self.root} belongs to, or can be written by, somebody else: an engine is code.",
                hint=f"Run: chmod 700 {self.root} - or set EDGEKILN_CACHE to a folder of your own.",
                path=self.root,
            )

    def _unwritable(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"The engine cache {self.root} cannot be written: {error.strerror or error}.",
            hint="Set EDGEKILN_CACHE to a folder of your own, on a disk with room.",
            path=self.root,
        )

    def _check(self, folder: Path, key: str) -> str | None:
        """What is wrong with an entry, or ``None``."""
        try:
            document = json.loads((folder / _ABOUT).read_text("utf-8"))
            if document["key"] != key:
                return "is of another key"
            present = {entry.name for entry in folder.iterdir()} - {_ABOUT}
            if present != set(document["files"]):
                return "lacks a file or has one too many"
            changed = [
                name for name, digest in document["files"].items() if hash_file(folder / name)[0] != digest
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BundleError):
            return "cannot be read"
        return f"was changed ({', '.join(changed)})" if changed else None

    @contextlib.contextmanager
    def _lock(self, key: str, tell: Callable[[str], None]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._try_lock(key))
            except BlockingIOError:
                tell("another process is building this engine: waiting for it")
                stack.enter_context(self._try_lock(key, wait=True))
            yield

    @contextlib.contextmanager
    def _try_lock(self, key: str, *, wait: bool = False) -> Iterator[None]:
        descriptor = os.open(self.root / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
