"""Builds the TensorRT and TensorRT-RTX engines to be measured, and asks each RTX engine whether it runs here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.export.engines.cache import EngineCache
from edgekiln.export.engines.options import BatchProfile, BuildOptions
from edgekiln.export.engines.tensorrt import build_engine, library_version
from edgekiln.pipeline.gpu_suite.isolation import Tell, state_after
from edgekiln.pipeline.gpu_suite.networks import MODELS, find_file, make_frames, onnx_name
from edgekiln.pipeline.gpu_suite.reference import POOL, compare_answers, find_answers
from edgekiln.runtime.backends.engine_header import HEADER_BYTES, Flavour, read_engine_header
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.spec import Logits, Precision

__all__ = ["CAPABILITIES", "EngineFile", "ask_engine", "build_all", "build_file", "list_engines"]

CAPABILITIES = (80, 86, 89, 120)
"""Of GPUs that TensorRT-RTX builds for by name and that are likely where somebody measures."""


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine to be built: static, for one batch size.

    Attributes:
        capabilities: compute capabilities of a TensorRT-RTX engine; empty is the library's default set.
    """

    model: str
    precision: str
    batch: int
    flavour: Flavour
    capabilities: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """File name; tells all of the fields."""
        kind = "trt"
        if self.flavour == "tensorrt-rtx":
            kind = "rtx-" + (
                "default" if not self.capabilities else "-".join(f"sm{c}" for c in self.capabilities)
            )
        return f"{self.model}.{self.precision}.b{self.batch}.{kind}.engine"


def list_engines(
    models: Sequence[str], batches: Sequence[int], flavour: Flavour, capabilities: Sequence[int] = ()
) -> list[EngineFile]:
    """Engines of one library: all that are timed and, for RTX, one of the first model for each of ``capabilities``.

    Those answer what the library runs on this GPU, which is no question about networks: one of them is enough.
    """
    if flavour == "tensorrt":
        return [
            EngineFile(m, p, b, flavour) for m in models for b in batches for p in ("fp16", "int8", "fp32")
        ]
    default = [EngineFile(m, p, b, flavour) for m in models for b in batches for p in ("fp16", "int8")]
    return default + [EngineFile(models[0], "fp16", min(batches), flavour, (c,)) for c in capabilities]


def build_all(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Build what is not there.

    Args:
        arguments: ``models``, ``batches``, ``flavour``, ``capabilities`` (of RTX engines besides the default set),
            ``given`` (folder or ``None``) and ``work`` (folder).
        tell: told of each engine.

    Returns:
        For each file name: ``state``, ``reason`` and how it was made.

    Raises:
        MissingExtraError, DeviceError: nothing can be built here, and something would have to be.
    """
    folders = (arguments.get("given"), arguments["work"])
    wanted = list_engines(
        arguments["models"], arguments["batches"], arguments["flavour"], arguments.get("capabilities", ())
    )
    absent = [engine for engine in wanted if find_file(engine.name, folders) is None]
    if len(absent) == len(wanted):
        library_version(arguments["flavour"])  # says once, and not for each file, that it is not here
    built: dict[str, Any] = {}
    for engine in wanted:
        tell({"engine": engine.name})
        if engine in absent:
            built[engine.name] = build_file(engine, folders, Path(arguments["work"]))
        else:
            built[engine.name] = {"state": "done", "reason": None, "made_by": "given"}
    return built


def build_file(file: EngineFile, folders: Sequence[str | None], work: Path) -> dict[str, Any]:
    """Build one engine into ``work``; ``state``, ``reason`` and how it was made."""
    source = find_file(onnx_name(file.model, file.precision), folders)
    if source is None:
        return {"state": "skipped", "reason": f"there is no {onnx_name(file.model, file.precision)}"}
    options = BuildOptions(
        flavour=file.flavour,
        precision=Precision(file.precision),
        batch=BatchProfile(file.batch, file.batch, file.batch),
        capabilities=file.capabilities,
    )
    try:
        built = build_engine(source.read_bytes(), options, EngineCache())
    except EdgekilnError as error:
        return {"state": state_after(error), "reason": str(error)}
    data = built.data
    partial = work / f"{file.name}.partial"
    partial.write_bytes(data)
    partial.replace(work / file.name)
    return {
        "state": "done",
        "reason": None,
        "made_by": f"{file.flavour} {built.version}",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "seconds": round(built.seconds, 2),
        "cached": built.cached,
        "warnings": [text for severity, text in built.log if severity == "WARNING"][:20],
    }


# --------------------------------------------------------------------------------------------------------------
# Does it run here?


def ask_engine(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Load one engine, run it, compare its answers with PyTorch's; what the library says, word for word.

    Args:
        arguments: ``path``, ``model``, ``precision``, ``batch``, ``flavour`` and ``folders`` of files.
        tell: told of each step before it is tried, so that a crash is known by its step.

    Raises:
        MissingExtraError, DeviceError: the library or a GPU is not here, or the engine is of another version.
    """
    from edgekiln.runtime.backends.tensorrt import TensorRTSession
    from edgekiln.runtime.backends.tensorrt_library import import_tensorrt, library_log
    from edgekiln.runtime.cuda import open_cuda

    data, batch = Path(arguments["path"]).read_bytes(), arguments["batch"]
    header = read_engine_header(data[:HEADER_BYTES])
    cuda = open_cuda()  # before the library, whose objects crash where there is no driver
    trt = import_tensorrt(arguments["flavour"], to_build=False)
    log = library_log(trt)
    found: dict[str, Any] = {
        "library": f"{trt.__name__} {trt.__version__}",
        "built_by": header.version_text,
        "built_for_sm": list(header.capabilities or ()),
        "loads": False,
        "runs": None,
        "right": None,
        "message": None,
        "max_difference_of_logit_range": None,
    }
    try:
        tell({"step": "load", **found})
        session = TensorRTSession([data], flavour=arguments["flavour"], slots=1, cuda=cuda, trt=trt)
        found |= {"loads": True, "runs": False}
        tell({"step": "run", **found})
        frames = make_frames(POOL, MODELS[arguments["model"]].size)
        logits = np.concatenate([session.run(frames[i : i + batch]) for i in range(0, len(frames), batch)])
        found["runs"] = True
        tell({"step": "compare", **found})
        found |= _compare(logits, arguments)
    except EdgekilnError as error:
        found["message"] = str(error)
    found["library_log"] = [list(line) for line in log.since(0)][-60:]
    return found


def _compare(logits: Logits, arguments: Mapping[str, Any]) -> dict[str, Any]:
    answers = find_answers(arguments["model"], arguments["folders"])
    if answers.logits is None:
        return {"message": f"what is right is not known: {answers.source}"}
    return compare_answers(logits, answers.logits, answers.allowed(arguments["precision"])).to_dict()
