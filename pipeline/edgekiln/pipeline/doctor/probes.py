"""The child's side of ``child.py``: one question, answered as one JSON document on stdout.

What a library prints, wherever it prints it, goes to stderr. A library's own refusal is an answer (``problem``), not
an error of this process; a crash is seen by the parent.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TASKS", "main"]

_REASON_CHARACTERS = 300


def main(arguments: list[str]) -> None:
    """Answer ``TASK ARGUMENT...``."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task, *rest = arguments
    try:
        values = TASKS[task](*rest)
    except Exception as error:  # whatever a library raises is what the parent wants to know
        values = {"problem": _shorten(f"{type(error).__name__}: {error}")}
    json.dump(values, answer)
    answer.close()


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _REASON_CHARACTERS else f"{line[:_REASON_CHARACTERS]}..."


def _probe_driver() -> dict[str, Any]:
    from edgekiln.runtime.cuda.driver import probe_driver

    return {"driver": dataclasses.asdict(probe_driver())}


def _import_module(name: str) -> dict[str, Any]:
    return {"version": str(getattr(importlib.import_module(name), "__version__", "of unknown version"))}


def _list_providers() -> dict[str, Any]:
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": list(onnxruntime.get_available_providers())}


def _create_provider(name: str) -> dict[str, Any]:
    """A session on the tiny model, run once. onnxruntime falls back to the CPU by itself: what it gives is asked."""
    import numpy as np
    import onnxruntime

    from edgekiln.pipeline.doctor.tiny_model import SIDE, make_tiny_model

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # as the runtime does: CUDA and cuDNN from their Python packages
    session = onnxruntime.InferenceSession(make_tiny_model(), providers=[name])
    frames = np.full((1, SIDE, SIDE, 3), (10, 20, 30), np.uint8)
    logits = session.run(None, {"image": frames})[0]
    return {"given": session.get_providers()[0], "right": np.allclose(logits, [[10, 20, 30]])}


def _open_session(backend: Any) -> dict[str, Any]:
    """A session of edgekiln's own on the tiny model."""
    import numpy as np

    from edgekiln.pipeline.doctor.tiny_model import SIDE, make_tiny_model
    from edgekiln.runtime.backends import open_session

    if backend == "openvino":
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # absent to import; it would send
    session = open_session(backend, make_tiny_model())
    logits = session.run(np.full((1, SIDE, SIDE, 3), (10, 20, 30), np.uint8))
    session.close()
    return {"right": np.allclose(logits, [[10, 20, 30]])}


def _load_variant(bundle: str, name: str) -> dict[str, Any]:
    """Load one engine of a bundle, whatever its verdict, ask it all its canaries, and hand it one black frame."""
    import numpy as np

    from edgekiln.runtime.backends.tensorrt_buckets import list_profiles
    from edgekiln.runtime.errors import EdgekilnError
    from edgekiln.runtime.serving.selecting import LoadOptions, load_model

    try:
        model = load_model(bundle, LoadOptions(name, allow_unverified=True), thorough=True)
        model.predict_frames([np.zeros((model.contract.height, model.contract.width, 3), np.uint8)])
        model.retire()
    except EdgekilnError as error:
        return {"problem": _shorten(str(error)), "code": error.code}
    result = model.self_test
    return {
        "code": None,
        "notice": model.variant.notice,
        "profiles": list_profiles(model.session),
        "canaries": None if result is None else dataclasses.asdict(result),
    }


TASKS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "driver": _probe_driver,
    "import": _import_module,
    "providers": _list_providers,
    "provider": _create_provider,
    "session": _open_session,
    "variant": _load_variant,
}

if __name__ == "__main__":
    main(sys.argv[1:])
