"""The process that builds (``build_worker.py``), seen from its parent: started, listened to, stopped, never outlived.

What it is told and what it tells are files in a folder, and lines of JSON for the progress. Knows no cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekiln.export.engines.failures import explain_death, explain_failure
from edgekiln.export.engines.options import BuildOptions
from edgekiln.runtime.cuda.driver import DeviceProperties

__all__ = ["ENGINE_NAME", "LAYERS_NAME", "RESULT_NAME", "Advance", "run_worker"]

Advance = Callable[[int, int, str], None]
"""Told of (steps done, steps in all, phase)."""

ENGINE_NAME, LAYERS_NAME, RESULT_NAME = "engine", "layers.json", "result.json"
_STOP_SECONDS = 10.0
_WORKER = "edgekiln.export.engines.build_worker"


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
        device: the GPU that is here; ``None`` leaves the engine uninspected.
        target: folder for ``ENGINE_NAME``, and for ``LAYERS_NAME`` where the engine was inspected.
        timing_cache: file that the library keeps the times of kernels in; ``None`` for none.
        advance: told of the progress. What it raises stops the child.

    Raises:
        BuildError: the library refused or crashed.
        ResourceError: the child was killed, which is what the system does when memory runs out.
        EnvironmentProblem: the child could not start.
        OSError: a file could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="edgekiln-build-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "request.json").write_text(json.dumps(_request(options, device, timing_cache)), "utf-8")
        exit_code, complaints = _watch(folder, advance)
        result_file = folder / RESULT_NAME
        if not result_file.exists():
            raise explain_death(exit_code, complaints)
        result: dict[str, Any] = json.loads(result_file.read_text("utf-8"))
        if not result["engine"]:
            raise explain_failure(result, options, device)
        layers = result.pop("layers")
        if layers is not None:
            (target / LAYERS_NAME).write_text(layers, "utf-8")
        (target / ENGINE_NAME).write_bytes((folder / ENGINE_NAME).read_bytes())
        return result


def _request(
    options: BuildOptions, device: DeviceProperties | None, timing_cache: str | None
) -> dict[str, Any]:
    return {
        **asdict(options),
        "precision": options.precision.value,
        "timing_cache": timing_cache,
        "inspect": device is not None,
    }


def _watch(folder: Path, advance: Advance) -> tuple[int, str]:
    """Run the child to its end; returns its exit code and the end of what it wrote to stderr."""
    paths = [str(Path(path).absolute()) for path in sys.path]  # the child works elsewhere; "" means here
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", _WORKER, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            cwd=folder,
        )
    assert child.stdout is not None
    with child.stdout:
        try:
            for line in child.stdout:
                _pass_on(line, advance)
            code = child.wait()
        except BaseException:  # Ctrl-C above all: the child must not go on building for nobody
            _stop(child)
            raise
    return code, (folder / "stderr").read_text("utf-8", errors="replace")[-4000:]


def _pass_on(line: bytes, advance: Advance) -> None:
    try:
        values = json.loads(line)
        done, total, phase = int(values["step"]), max(1, int(values["steps"])), str(values["phase"])
    except (ValueError, KeyError, TypeError):
        return  # a library that prints
    advance(done, total, phase)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()  # its progress monitor then tells the builder to stop
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where a second Ctrl-C ends the waiting
        child.kill()
        child.wait()
