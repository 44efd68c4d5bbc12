"""An engine with a range of batch sizes, built and audited here, and its answers at sizes inside and at both ends."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.export.engines.tensorrt import library_version
from edgekiln.pipeline.device.building import EngineRequest, build_engines
from edgekiln.pipeline.gpu_suite.graphs import count_products
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell, state_after
from edgekiln.pipeline.gpu_suite.networks import MODELS, find_file, make_frames, onnx_name
from edgekiln.pipeline.gpu_suite.reference import POOL, compare_answers, find_answers
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Precision

__all__ = ["BATCHES", "MINIMUM_SHARE", "try_dynamic"]

BATCHES = {"min": 1, "opt": 8, "max": 32}
_SIZES = (1, 5, 8, 32)
"""Both ends, what the kernels were chosen for, and one that is none of them."""
MINIMUM_SHARE = 0.8
"""Of the MACs, as the recipes ask of engines by default: a library may keep what it finds faster."""
_PRECISIONS = (Precision.FP16, Precision.INT8)


def try_dynamic(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Build, audit, run and compare, for FP16 and INT8.

    Args:
        arguments: ``model``, ``flavour``, ``folders`` of files and ``work`` (folder).
        tell: told of each step before it is tried.

    Returns:
        For each precision ``state``, ``reason``, ``audit``, ``notices``, build times, and answers by batch size.

    Raises:
        MissingExtraError: the library is not here.
    """
    library_version(arguments["flavour"])
    rows: dict[str, Any] = {}
    for precision in _PRECISIONS:
        row: dict[str, Any] = {"state": "done", "reason": None}
        try:
            _build_and_run(arguments, precision, row, tell)
        except SkippedPart as error:
            row |= {"state": "skipped", "reason": str(error)}
        except EdgekilnError as error:
            row |= {"state": state_after(error), "reason": str(error)}
        rows[precision.value] = row
    return rows


def _build_and_run(
    arguments: Mapping[str, Any], precision: Precision, row: dict[str, Any], tell: Tell
) -> None:
    model, flavour, folders = arguments["model"], arguments["flavour"], arguments["folders"]
    source = find_file(onnx_name(model, precision.value), folders)
    if source is None:
        raise SkippedPart(f"there is no {onnx_name(model, precision.value)}; part 'graphs.{model}' says why")
    request = EngineRequest(
        name=f"{model}.{precision.value}.dynamic",
        model=source,
        flavour=flavour,
        precision=precision,
        settings={"batch": BATCHES},
        products=count_products(model, precision.value, folders),
        minimum_share=MINIMUM_SHARE,
    )
    work = Path(arguments["work"])
    tell({"precision": precision.value, "step": "build and audit"})
    built = build_engines(request, work, SilentProgress())
    row |= {key: built[key] for key in ("audit", "notices", "builds")}
    if built["failure"] is not None:
        row |= {"state": "failed", "reason": built["failure"]}
    tell({"precision": precision.value, "step": "load"})
    with contextlib.closing(open_session(flavour, (work / built["files"][0]).read_bytes())) as session:
        row["answers"] = _compare(session, arguments, precision, tell)
    wrong = [size for size, answer in row["answers"].items() if answer.get("right") is False]
    if wrong:
        row |= {"state": "failed", "reason": f"it answers wrongly at batch sizes {', '.join(wrong)}"}


def _compare(
    session: Session, arguments: Mapping[str, Any], precision: Precision, tell: Tell
) -> dict[str, dict[str, Any]]:
    """By batch size: whether the whole pool, cut into such batches, is answered rightly."""
    model = arguments["model"]
    pool, answers = make_frames(POOL, MODELS[model].size), find_answers(model, arguments["folders"])
    found: dict[str, dict[str, Any]] = {}
    for size in _SIZES:
        tell({"precision": precision.value, "step": f"run batches of {size}"})
        got = np.concatenate([session.run(pool[i : i + size]) for i in range(0, len(pool), size)])
        if answers.logits is None:
            found[str(size)] = {"right": None, "reason": f"what is right is not known: {answers.source}"}
        else:
            allowed = answers.allowed(precision.value)
            found[str(size)] = compare_answers(got, answers.logits, allowed).to_dict()
    return found
