"""Writes the training log, one JSON object a line, and TensorBoard's event files beside it. It knows no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.tensorboard import EventFiles, event_folder

__all__ = ["LogWriter"]


class Counted(Protocol):
    """The state of a training, as far as a log knows it."""

    step: int


class LogWriter:
    """The log of one training. Without a folder, as in every process but the leader, nothing is written."""

    def __init__(self, folder: Path | None, state: Counted, *, tensorboard: bool = False) -> None:
        self._folder, self._state, self._tensorboard = folder, state, tensorboard
        self._events: EventFiles | None = None

    def begin(self) -> None:
        """Start an empty log."""
        if self._folder is not None:
            (self._folder / LOG_NAME).write_text("")
            self._open_events(self._folder)

    def go_on(self) -> None:
        """Go on with the log of an interrupted training, from the step of its last save on."""
        if self._folder is not None:
            _forget_lines_after(self._state.step, self._folder / LOG_NAME)
            self._open_events(self._folder)

    def _open_events(self, folder: Path) -> None:
        """TensorBoard's event files follow the log, where the recipe asks for them."""
        if self._tensorboard:
            self._events = EventFiles(folder / LOG_NAME, event_folder(folder))

    def write(self, event: str, step: int | None = None, **values: object) -> None:
        """One line: the event, its step (the steps done so far where none is given) and JSON values."""
        if self._folder is None:
            return
        line = {"event": event, "step": self._state.step if step is None else step, **values}
        with (self._folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            self._events.event(line)

    def close(self) -> None:
        """Flush TensorBoard's files."""
        if self._events is not None:
            self._events.close()


def _forget_lines_after(step: int, log: Path) -> None:
    """Steps after the last save are trained again; their lines would stand twice."""
    lines = log.read_text("utf-8").splitlines()
    events = [(line, json.loads(line)) for line in lines if line.endswith("}")]
    kept = [line for line, event in events if event["step"] <= step and not _tells_of_the_end(event)]
    log.write_text("".join(f"{line}\n" for line in kept), "utf-8")


def _tells_of_the_end(event: Mapping[str, Any]) -> bool:
    return event["event"] in {"stopped", "done"} or event.get("when") == "after"
