"""The file in which the process that LoadGen runs in tells the one that started it how it went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.runtime.errors import (
    DeviceError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    MissingExtraError,
    NonFiniteError,
    UsageError,
)

__all__ = ["read_answer", "write_answer", "write_error"]

_ERRORS = {
    kind.code: kind
    for kind in (DeviceError, EngineError, EnvironmentProblem, MissingExtraError, NonFiniteError, UsageError)
}


def read_answer(folder: Path) -> dict[str, Any]:
    """What the process wrote.

    Raises:
        EngineError: it ended without an answer; what it printed last is in the message.
        EdgekilnError: the one that it told of.
    """
    path = folder / "answer.json"
    if not path.exists():
        tail = " ".join((folder / "output.txt").read_text(errors="replace").split())[-300:]
        raise EngineError(f"LoadGen's process ended without an answer: {tail}")
    answer: dict[str, Any] = json.loads(path.read_text())
    if "error" in answer:
        error = answer["error"]
        raise _ERRORS.get(error["code"], EngineError)(error["message"], hint=error["hint"])
    return answer


def write_answer(folder: Path, answer: Mapping[str, Any]) -> None:
    """Tell how it went; JSON values."""
    (folder / "answer.json").write_text(json.dumps(answer))


def write_error(folder: Path, error: Exception) -> None:
    """Tell why it did not go, so that ``read_answer`` raises the same kind of error."""
    if isinstance(error, EdgekilnError):
        told = {"code": error.code, "message": error.message, "hint": error.hint}
    else:
        told = {"code": "engine", "message": f"{type(error).__name__}: {error}", "hint": None}
    write_answer(folder, {"error": told})
