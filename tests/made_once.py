"""What takes many seconds to make and many test files read: made once in a run of the tests, not once per worker.

The first worker that asks makes it under a lock; others wait for that lock, and read. It knows nothing of what is made.
"""

import fcntl
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class MadeOnce:
    """``made_once("name", make)``: what ``make(folder)`` returned, pickled, to whoever asks; the folder is read-only.

    The folder is made in the place where it stays, since finished runs hold absolute paths. The pickle is written
    beside and renamed last: it stands for a whole folder.
    """

    def __init__(self, place: Path) -> None:
        self._place = place

    def __call__(self, name: str, make: Callable[[Path], Any]) -> Any:
        folder, done = self._place / f"once-{name}", self._place / f"once-{name}.pickle"
        with (self._place / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when its holder dies, however it dies
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed while it made it
                folder.mkdir()
                beside = done.with_suffix(".new")
                beside.write_bytes(pickle.dumps(make(folder)))
                beside.rename(done)
            return pickle.loads(done.read_bytes())


def shared_place(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all workers of this run have in common, and no other run."""
    place = factory.getbasetemp()
    return place.parent if hasattr(config, "workerinput") else place
