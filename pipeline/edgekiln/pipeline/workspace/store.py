"""Finished stages on disk, found again by key. A folder under its final name is always complete.

A stage works in ``.partial-KEY`` beside its place, is flushed, and is renamed in one step. Its key is the digest of
its inputs' digests, its settings and its tools' versions, so nothing is run twice and nothing stale is used.
This module knows nothing of what stages do.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.pipeline.capacity import explain_writing
from edgekiln.pipeline.workspace.placing import put_in_place, restore
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import ResourceError

__all__ = ["StageRecord", "StageStore", "earlier_files", "stage_key"]

_RECORD_NAME = "stage.json"
_OUTPUT_NAME = "out"
_PARTIAL, _FORCED, _DONE, _OLD = ".partial-", ".forced-", ".done-", ".old-"
_LOCAL = ".local.json"
"""Ending of a file that says where something lies on this machine: kept and checked as others, and no part of what a
stage made. Its digest leaves it out, so that pictures may move without anything being trained again."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One finished stage.

    Attributes:
        folder: holds its output files, flat.
        digest: sha256 over names and contents of the files, local ones left out; what later stages depend on.
        seconds: how long it took when it ran.
        cached: whether it had been run before.
    """

    name: str
    key: str
    folder: Path
    digest: str
    seconds: float
    cached: bool


def stage_key(name: str, **parts: Any) -> str:
    """sha256 of everything that determines a stage's output; ``parts`` are JSON values."""
    canonical = json.dumps({"stage": name, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def earlier_files(folder: Path, name: str) -> list[Path]:
    """Files of that name that other attempts at a stage left, finished or not, under whatever key; the newest first.

    What is in them was made with other settings, inputs or tools: it is for the reader to tell whether it fits.
    None where the attempt is forced, which is to find nothing out from an earlier one.

    Args:
        folder: the working folder of the attempt that asks.
        name: of a file.
    """
    stage = folder.parent
    key = folder.name.removeprefix(_PARTIAL)
    if key == folder.name or (stage / f"{_FORCED}{key}").exists():
        return []
    paths = [*stage.glob(f"*/{_OUTPUT_NAME}/{name}"), *stage.glob(f"{_PARTIAL}*/{name}")]
    return sorted((p for p in paths if p.parent != folder), key=lambda p: p.stat().st_mtime_ns, reverse=True)


class StageStore:
    """The stages of one recipe below ``root``. One process at a time works in it; others wait."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.contextmanager
    def lock(self, progress: Progress) -> Iterator[None]:
        """Hold the store alone. The system frees it when the holder dies, however it dies."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ResourceError(
                f"{self._root} cannot be written: {error.strerror}.",
                hint="Choose another place with --runs.",
                path=self._root,
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.message(f"waiting for another run in {self._root}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def explain_writing(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Around everything that writes a stage: which place cannot be written, and how much room it takes."""
        return explain_writing(self._root, lambda: self.last_bytes(name))

    def sweep(self, kept: Iterable[str], others: Iterable[str]) -> None:
        """Remove what killed attempts left; ``lock`` must be held.

        Args:
            kept: stages whose interrupted attempts are continued, by this recipe or by an earlier setting of it.
            others: stages that start anew.
        """
        for name in (*kept, *others):
            for staging in self._stage(name).glob(f"{_DONE}*"):
                key = staging.name.removeprefix(_DONE)
                partial = self._partial(name, key)
                # Killed between its last file and its final name: finished work, of which nothing need be done twice.
                if name in kept and (staging / _OUTPUT_NAME).is_dir() and not partial.exists():
                    (staging / _OUTPUT_NAME).rename(partial)
                shutil.rmtree(staging)
        for name in others:
            for partial in self._stage(name).glob(f"{_PARTIAL}*"):
                shutil.rmtree(partial)
        for place in self._root.glob(f"stages/*/{_OLD}*"):
            restore(place.with_name(place.name.removeprefix(_OLD)))

    def find(self, name: str, key: str) -> StageRecord | None:
        """The finished stage of that key, or ``None`` where it is absent, incomplete or unreadable."""
        folder = self._folder(name, key)
        try:
            record = json.loads((folder / _RECORD_NAME).read_text("utf-8"))
            sizes = {entry.name: entry.stat().st_size for entry in (folder / _OUTPUT_NAME).iterdir()}
            if sizes != {file: entry["size"] for file, entry in record["files"].items()}:
                return None
            return StageRecord(name, key, folder / _OUTPUT_NAME, record["digest"], record["seconds"], True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # never made, or somebody changed it by hand: it is made again

    def last_seconds(self, name: str) -> float | None:
        """How long the stage took when it last ran, under whatever key; ``None`` where it never finished."""
        times: list[tuple[int, float]] = []
        for path in self._stage(name).glob(f"*/{_RECORD_NAME}"):
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError
            ):  # changed by hand: it says nothing
                times.append((path.stat().st_mtime_ns, float(json.loads(path.read_text("utf-8"))["seconds"])))
        return max(times)[1] if times else None

    def last_bytes(self, name: str) -> int | None:
        """How much the stage wrote when it last ran, under whatever key; ``None`` where it never finished."""
        sizes: list[tuple[int, int]] = []
        for path in self._stage(name).glob(f"*/{_RECORD_NAME}"):
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError, AttributeError
            ):  # changed by hand
                files = json.loads(path.read_text("utf-8"))["files"].values()
                sizes.append((path.stat().st_mtime_ns, sum(int(entry["size"]) for entry in files)))
        return max(sizes)[1] if sizes else None

    def is_begun(self, name: str, key: str) -> bool:
        """Whether an interrupted attempt left files."""
        return self._partial(name, key).is_dir()

    def begin(self, name: str, key: str, *, resume: bool, forced: bool = False) -> Path:
        """The folder to work in; what an interrupted attempt left is kept only where ``resume``.

        A forced attempt starts anew, unless the interrupted one was forced too: the same command goes on.
        """
        partial, mark = self._partial(name, key), self._forced_mark(name, key)
        if not resume or (forced and not mark.exists()):
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        if forced:
            mark.touch()
        return partial

    def finish(self, name: str, key: str, seconds: float, about: Mapping[str, Any]) -> StageRecord:
        """Flush the files of the working folder and give it its final name."""
        partial, folder = self._partial(name, key), self._folder(name, key)
        files = {}
        for leftover in partial.glob("*.part"):  # of an attempt that was killed while writing
            leftover.unlink()
        for entry in sorted(partial.iterdir()):
            digest, size = hash_file(entry)
            files[entry.name] = {"sha256": digest, "size": size}
            _flush(entry)
        made = {file: entry for file, entry in files.items() if not file.endswith(_LOCAL)}
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        staging = partial.with_name(f"{_DONE}{key[:16]}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        partial.rename(staging / _OUTPUT_NAME)
        record = {**about, "stage": name, "key": key, "files": files, "digest": digest, "seconds": seconds}
        (staging / _RECORD_NAME).write_text(json.dumps(record, indent=1, sort_keys=True), "utf-8")
        _flush(staging / _RECORD_NAME)
        put_in_place(staging, folder)  # where a forced stage's earlier output is until then
        self._forced_mark(name, key).unlink(missing_ok=True)
        return StageRecord(name, key, folder / _OUTPUT_NAME, digest, seconds, False)

    def _stage(self, name: str) -> Path:
        return self._root / "stages" / name

    def _folder(self, name: str, key: str) -> Path:
        return self._stage(name) / key[:16]

    def _forced_mark(self, name: str, key: str) -> Path:
        return self._stage(name) / f"{_FORCED}{key[:16]}"

    def _partial(self, name: str, key: str) -> Path:
        return self._stage(name) / f"{_PARTIAL}{key[:16]}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
