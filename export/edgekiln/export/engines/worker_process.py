"""The processes that build and inspect, seen from their parent: started, listened to, stopped, never outlived.

They are ``build_worker.py`` and ``inspect_worker.py``. What they are told and what they tell are files in a folder, and
lines of JSON for the progress. Knows no cache.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.export.child import describe_end, start_module, stop_process
from edgekiln.export.engines.failures import explain_death, explain_failure
from edgekiln.export.engines.options import BuildOptions
from edgekiln.runtime.backends.engine_header import Flavour
from edgekiln.runtime.cuda.driver import DeviceProperties

__all__ = ["ENGINE_NAME", "RESULT_NAME", "Advance", "Inspection", "inspect_in_child", "run_worker"]

Advance = Callable[[int, int, str], None]
"""Told of (steps done, steps in all, phase)."""

ENGINE_NAME, RESULT_NAME = "engine", "result.json"
_STOP_SECONDS = 10.0
_WORKER = "edgekiln.export.engines.build_worker"
_INSPECTOR = "edgekiln.export.engines.inspect_worker"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the library's inspector told of an engine.

    Attributes:
        layers: its JSON; ``None`` where it told nothing.
        note: why it told nothing or less than it could; ``None`` where all is told.
        times: of ``layer_times.time_layers``; ``None`` where they were not asked for, or failed.
    """

    layers: str | None
    note: str | None
    times: Mapping[str, Any] | None = None


def run_worker(
    model: bytes,
    options: BuildOptions,
    device: DeviceProperties | None,
    target: Path,
    timing_cache: str | None,
    advance: Advance,
) -> dict[str, Any]:
    """Build in a child; its files move to ``target``. Returns the child's result.

    Args:
        model: bytes of an ONNX file.
        options: how.
        device: the GPU that is here.
        target: folder for ``ENGINE_NAME``.
        timing_cache: file that the library keeps the times of kernels in; ``None`` for none.
        advance: told of the progress. What it raises stops the child.

    Raises:
        BuildError: the library refused or crashed.
        ResourceError: the child was killed, which is what the system does when memory runs out.
        EnvironmentProblem: the child could not start, or its library did not.
        OSError: a file could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="edgekiln-build-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "request.json").write_text(json.dumps(_request(options, timing_cache)), "utf-8")
        exit_code, complaints = _watch(_WORKER, folder, advance)
        result = _read_result(folder)
        if result is None:
            raise explain_death(exit_code, complaints)
        if not result["engine"]:
            raise explain_failure(result, options, device)
        (target / ENGINE_NAME).write_bytes((folder / ENGINE_NAME).read_bytes())
        return result


def _request(options: BuildOptions, timing_cache: str | None) -> dict[str, Any]:
    return {**options.to_dict(), "timing_cache": timing_cache}


def inspect_in_child(engine: bytes, flavour: Flavour, *, timed: bool = False) -> Inspection:
    """Ask the library of an engine's layers, and with ``timed`` how long each takes, in a child.

    Needs a GPU that loads the engine; whatever fails is in the note.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgekiln-inspect-") as name:
            folder = Path(name)
            (folder / ENGINE_NAME).write_bytes(engine)
            (folder / "request.json").write_text(json.dumps({"flavour": flavour, "timed": timed}), "utf-8")
            exit_code, complaints = _watch(_INSPECTOR, folder, lambda done, total, phase: None)
            result = _read_result(folder)
            if result is None:
                return Inspection(None, f"the process that inspects {describe_end(exit_code, complaints)}")
    except OSError as error:
        return Inspection(None, f"{error.filename or tempfile.gettempdir()}: {error.strerror}")
    return Inspection(result["layers"], result["problem"] or result["note"], result["times"])


def _read_result(folder: Path) -> dict[str, Any] | None:
    """What a child told; ``None`` where it ended before it had, or in the middle of it."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # ValueError: no JSON, or no UTF-8
        return None
    return result


def _watch(module: str, folder: Path, advance: Advance) -> tuple[int, str]:
    """Run the child to its end; returns its exit code and the end of what it wrote to stderr."""
    with (folder / "stderr").open("wb") as stderr:
        child = start_module(module, str(folder), stdout=subprocess.PIPE, stderr=stderr, cwd=folder)
    assert child.stdout is not None
    with child.stdout:
        try:
            for line in child.stdout:
                _pass_on(line, advance)
            code = child.wait()
        except BaseException:  # Ctrl-C above all: the child must not go on building for nobody
            stop_process(child, _STOP_SECONDS)  # its progress monitor then tells the builder to stop
            raise
    return code, (folder / "stderr").read_text("utf-8", errors="replace")[-4000:]


def _pass_on(line: bytes, advance: Advance) -> None:
    try:
        values = json.loads(line)
        done, total, phase = int(values["step"]), max(1, int(values["steps"])), str(values["phase"])
    except (ValueError, KeyError, TypeError):
        return  # a library that prints
    advance(done, total, phase)
