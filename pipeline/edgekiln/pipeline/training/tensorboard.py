"""The training log as TensorBoard's event files, for whoever watches many runs there.

``log.jsonl`` is the truth and is always written; event files repeat its numbers. They are written anew from the log
whenever a run begins or goes on, so that after a kill no step stands twice and none that was undone remains, whatever
a reader makes of such. They lie in ``runs/NAME/tensorboard/KEY``, outside the stage: they hold times, and a stage that
is run again must have the same digest. No host stands in their names, as TensorBoard's own writers would have it.

Of the extra ``tensorboard`` only the record format and the protocol buffers of tensorboardX are used: no thread, no
queue, nothing of TensorBoard itself, which is what reads them and is ten times as large.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekiln.runtime.extras import import_extra

__all__ = ["EventFiles", "complete_events", "event_folder", "require_tensorboard"]

FILE_NAME = "events.out.tfevents.0.edgekiln"  # TensorBoard takes every file whose name holds "tfevents"
_EXTRA = "tensorboard"
_FLUSH_SECONDS = 5.0
_NO_CURVES = frozenset({"start", "weights", "done"})
_POSITION = frozenset({"event", "step", "epoch"})  # where a value stands, and no values themselves


def require_tensorboard() -> None:
    """Find out before anything is trained.

    Raises:
        MissingExtraError: the extra is not installed.
    """
    import_extra("tensorboardX", _EXTRA)


def event_folder(stage: Path) -> Path:
    """Where the events of a fine-tuning stage belong: ``runs/NAME/tensorboard/KEY``.

    Args:
        stage: ``runs/NAME/stages/finetune/.partial-KEY`` while it works, or ``.../KEY/out`` when it is done.
    """
    key = stage.parent if stage.name == "out" else stage
    return key.parents[2] / "tensorboard" / key.name.removeprefix(".partial-")


class EventFiles:
    """Takes the log's events as they come. ``close`` it, or use it in a ``with``; a kill loses some seconds at most."""

    def __init__(self, log: Path, folder: Path) -> None:
        """Replace what ``folder`` holds by the events of ``log``, which may be absent, and go on from there.

        Raises:
            MissingExtraError: the extra is not installed.
        """
        self._protocol = import_extra("tensorboardX.proto.event_pb2", _EXTRA)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*tfevents*"):
            old.unlink()
        path = str(
            (folder / FILE_NAME).absolute()
        )  # of a relative one a part before a colon would be a scheme
        self._writer = import_extra("tensorboardX.record_writer", _EXTRA).RecordWriter(path)
        self._write(file_version="brain.Event:2")
        for line in _read_lines(log):
            self._add(line)
        self._flush()

    def event(self, line: Mapping[str, Any]) -> None:
        """Add one event of the log: each of its numbers is a curve ``EVENT/KEY`` over the steps."""
        self._add(line)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def close(self) -> None:
        """Write everything out."""
        self._flush()
        self._writer.close()

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, line: Mapping[str, Any]) -> None:
        values = [{"tag": tag, "simple_value": value} for tag, value in _curves(line)]
        if values:
            self._write(step=line["step"], summary={"value": values})

    def _write(self, **fields: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()


def _curves(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value): ``step/loss``, ``epoch/val_top1``, ``source/after/val_top1``."""
    if line["event"] in _NO_CURVES:
        return
    place = f"{line['event']}/{line['when']}" if "when" in line else line["event"]
    for key, value in line.items():
        if key not in _POSITION and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{place}/{key}", float(value)


def _read_lines(log: Path) -> Iterator[dict[str, Any]]:
    """Whole lines: the last may have been cut off by a kill."""
    for line in log.read_text("utf-8").splitlines() if log.exists() else ():
        if line.endswith("}"):
            yield json.loads(line)


def complete_events(log: Path, folder: Path) -> bool:
    """Write the events of a finished log unless they are there: the stage may have run before they were asked for.

    Returns:
        Whether they were written now.
    """
    if (folder / FILE_NAME).exists():
        return False
    EventFiles(log, folder).close()
    return True
