"""Asks the library what an engine's layers are, in a process of its own: a crash here costs the inspection alone.

``python -m edgekiln.export.engines.inspect_worker FOLDER`` reads ``request.json`` and ``engine`` in FOLDER, and writes
``result.json``: ``layers`` (the inspector's JSON, or ``None``), ``problem`` (why there are none, or no times) and
``note`` (what they lack); where the request is ``timed`` also ``times``, of ``layer_times.py``. It needs a GPU that
loads the engine, and judges nothing.
"""

from __future__ import annotations

import contextlib
import json
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
    context, note = _shaped_context(trt, log, engine)
    inspector = refuse_hollow(engine.create_engine_inspector())
    if inspector is None:
        raise EngineError(f"the engine gives no inspector: {log.errors_since(mark)}")
    if context is not None:
        inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    if not _lists_layers(text):
        raise EngineError(f"the inspector lists no layers: {log.errors_since(mark)}")
    return {"layers": text, "note": note}


def _shaped_context(trt: ModuleType, log: LibraryLog, engine: Any) -> tuple[Any, str | None]:
    """A context with the input shapes that the kernels were chosen for: without one an engine of several batch sizes
    tells no formats. ``None`` and why, where it cannot be made, for lack of memory above all.
    """
    mark = log.mark()
    context = refuse_hollow(engine.create_execution_context())
    if context is None:
        return None, f"no execution context could be made ({log.errors_since(mark)})"
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dynamic = -1 in tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT or not dynamic:
            continue
        best = tuple(engine.get_tensor_profile_shape(name, 0)[1])
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
