"""Asks the library what an engine's layers are, in a process of its own: a crash here costs the inspection alone.

``python -m edgekiln.export.engines.inspect_worker FOLDER`` reads ``request.json`` and ``engine`` in FOLDER, and writes
``result.json``: ``layers`` (the inspector's JSON, or ``None``), ``problem`` (why there are none, or no times) and
``note`` (what they lack); where the request is ``timed`` also ``times``, of ``layer_times.py``. It needs a GPU that
loads the engine, and judges nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekiln.export.engines.layer_times import time_layers
from edgekiln.runtime.backends.tensorrt_library import (
    LibraryLog,
    import_tensorrt,
    library_log,
    refuse_hollow,
    start_library,
)
from edgekiln.runtime.cuda import open_cuda
from edgekiln.runtime.errors import EdgekilnError, EngineError

__all__ = ["inspect_plan", "main"]

_PROFILE = re.compile(r" \[profile (\d+)\]$")


def main(arguments: list[str]) -> int:
    """Entry point of the process; returns 0 when ``result.json`` has layers, 1 when it has a problem."""
    folder = Path(arguments[0])
    request = json.loads((folder / "request.json").read_text("utf-8"))
    result: dict[str, Any] = {"layers": None, "problem": None, "note": None, "times": None}
    try:
        trt = import_tensorrt(request["flavour"], to_build=True)
        plan = (folder / "engine").read_bytes()
        result |= inspect_plan(trt, library_log(trt), plan)
        if request["timed"]:
            with contextlib.closing(open_cuda()) as cuda:
                result["times"] = time_layers(trt, library_log(trt), cuda, plan)
    except EdgekilnError as error:
        result["problem"] = str(error)
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    return 0 if result["layers"] is not None else 1


def inspect_plan(trt: ModuleType, log: LibraryLog, plan: bytes) -> dict[str, Any]:
    """The engine inspector's JSON as ``layers``, and what it lacks as ``note``.

    Raises:
        EnvironmentProblem: the library does not start; ResourceError where that is for lack of memory.
        EngineError: it does not load the engine, or tells nothing of it.
    """
    runtime = start_library(trt, log, lambda: trt.Runtime(log.logger))
    mark = log.mark()
    engine = refuse_hollow(runtime.deserialize_cuda_engine(plan))
    if engine is None:
        raise EngineError(f"the library does not load its own engine: {log.errors_since(mark)}")
    count = engine.num_optimization_profiles
    if count < 2:
        text, note = _tell_layers(trt, log, engine, 0)
        return {"layers": text, "note": note}
    told = [_tell_layers(trt, log, engine, index) for index in range(count)]
    document = json.loads(told[0][0])
    document["Layers"] = [
        entry for index, (text, _) in enumerate(told) for entry in _layers_of_profile(json.loads(text), index)
    ]
    notes = (note for _, note in told if note)
    return {"layers": json.dumps(document), "note": next(notes, None)}


def _tell_layers(trt: ModuleType, log: LibraryLog, engine: Any, index: int) -> tuple[str, str | None]:
    """The inspector's JSON, with the formats of one profile, and what it lacks."""
    mark = log.mark()
    context, note = _shaped_context(trt, log, engine, index)
    inspector = refuse_hollow(engine.create_engine_inspector())
    if inspector is None:
        raise EngineError(f"the engine gives no inspector: {log.errors_since(mark)}")
    if context is not None:
        inspector.execution_context = context
    text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    if not _lists_layers(text):
        raise EngineError(f"the inspector lists no layers: {log.errors_since(mark)}")
    return text, note


def _layers_of_profile(document: dict[str, Any], index: int) -> list[Any]:
    """The layers of one profile, marked with its index. Names of all but the first end with ``[profile 1]``; a list
    without such names is of the profile that was asked for.
    """
    named = [(_PROFILE.search(_name_of(entry)), entry) for entry in document["Layers"]]
    several = any(match for match, _ in named)
    own = [entry for match, entry in named if not several or int(match[1] if match else 0) == index]
    if not own:
        raise EngineError(f"the inspector lists no layers of profile {index}")
    return [{**(entry if isinstance(entry, dict) else {"Name": entry}), "Profile": index} for entry in own]


def _name_of(entry: Any) -> str:
    return str(entry.get("Name", "")) if isinstance(entry, dict) else str(entry)


def _shaped_context(trt: ModuleType, log: LibraryLog, engine: Any, index: int) -> tuple[Any, str | None]:
    """A context with the input shapes that the kernels of a profile were chosen for: without one an engine of several
    batch sizes tells no formats. ``None`` and why, where it cannot be made, for lack of memory above all.
    """
    mark = log.mark()
    context = refuse_hollow(engine.create_execution_context())
    if context is None:
        return None, f"no execution context could be made ({log.errors_since(mark)})"
    # Nothing runs here, so the choice needs no stream of its own: 0 is the default one.
    if index and not context.set_optimization_profile_async(index, 0):
        return None, f"the context refused profile {index} ({log.errors_since(mark)})"
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        dynamic = -1 in tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT or not dynamic:
            continue
        best = tuple(engine.get_tensor_profile_shape(name, index)[1])
        if not context.set_input_shape(name, best):
            return None, f"the context refused the shape {best} ({log.errors_since(mark)})"
    return context, None


def _lists_layers(text: object) -> bool:
    try:
        document = json.loads(str(text))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("Layers"), list)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
