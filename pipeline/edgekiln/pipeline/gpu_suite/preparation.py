"""Makes beforehand, on a machine without a GPU, all that ``--models`` takes on one with a GPU and little else.

Per network: weights, graphs, right answers, counts for the audit, TensorRT-RTX engines. TensorRT's engines are not
portable and are built where they run. What is made stays in ``files/``, so a run that was ended goes on where it was;
at the end all of it, and wheels that the caller downloaded, is packed into parts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.environment import tool_versions
from edgekiln.pipeline.gpu_suite.context import SuiteOptions
from edgekiln.pipeline.gpu_suite.document import is_bad, without_nan, write_document
from edgekiln.pipeline.gpu_suite.engines import CAPABILITIES, EngineFile, build_file, list_engines
from edgekiln.pipeline.gpu_suite.graphs import PRECISIONS, macs_name, make_graph, write_macs
from edgekiln.pipeline.gpu_suite.isolation import Outcome, SkippedPart, Tell, run_isolated
from edgekiln.pipeline.gpu_suite.networks import (
    make_network,
    name_weights,
    onnx_name,
    save_weights,
    weights_name,
)
from edgekiln.pipeline.gpu_suite.packing import PART_BYTES, Packed, hash_file, pack_parts
from edgekiln.pipeline.gpu_suite.reference import answers_name, write_answers
from edgekiln.pipeline.shipping.privacy import remove_private
from edgekiln.runtime.errors import ExitCode

__all__ = ["make_model", "prepare"]

SCHEMA = "edgekiln.gpu-prepared/1"
_PACKAGE = "edgekiln.pipeline.gpu_suite"
_MADE = "made.json"
MOST_ENGINE_BYTES = PART_BYTES // 2
"""TensorRT-RTX needs no GPU to build, and seconds: it wrote 500 MB for an INT8 graph of 10 MB at batch 64."""
_LIMIT_S = 7200.0
_TOOLS = ("edgekiln", "torch", "timm", "onnx", "onnxruntime", "nvidia-modelopt", "tensorrt-rtx", "numpy")


def prepare(
    options: SuiteOptions,
    folder: Path,
    *,
    say: Callable[[str], None],
    wheels: Path | None = None,
    part_bytes: int = PART_BYTES,
) -> tuple[dict[str, Any], ExitCode]:
    """Make everything into ``folder/files`` and pack it into ``folder/part-1``, ``part-2`` and so on.

    Args:
        options: which models and batch sizes.
        folder: may hold what an earlier run made.
        say: told one line at a time how far it is.
        wheels: folder of ``*.whl`` to bring along, for the Python over there.
        part_bytes: most that a part may hold.

    Returns:
        The document, which is also written to ``folder/prepared.json``, and 0, or 3 where something failed.
    """
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {}
    for model in options.models:
        outcome = _make(model, options, files, say)
        parts[f"make.{model}"] = outcome.to_dict()
        reason = f": {outcome.reason.splitlines()[0][:200]}" if outcome.reason else ""
        say(f"make.{model}: {outcome.state}{reason} ({outcome.seconds:.0f} s)")
    packed = _choose_packed(options.models, files, parts, wheels)
    manifest = pack_parts(packed, folder, {"tools": tool_versions(_TOOLS)}, part_bytes)
    for name, entry in ((n, e) for part in parts.values() for n, e in (part["result"] or {}).items()):
        if "stays_here" in entry:
            say(f"{name} stays here: {entry['stays_here']}")
    for number, held in enumerate(manifest["part_bytes"], 1):
        say(f"part-{number}: {held / 2**20:.1f} MiB")
    code = ExitCode.GATE_FAILED if any(map(is_bad, parts.values())) else ExitCode.OK
    about = {"parts": manifest["parts"], "part_bytes": manifest["part_bytes"], "files": manifest["files"]}
    document = {"schema": SCHEMA, "exit_code": int(code), "packed": about, "parts": parts}
    document = without_nan(remove_private(document))
    write_document(document, folder / "prepared.json")
    return document, code


def _make(model: str, options: SuiteOptions, files: Path, say: Callable[[str], None]) -> Outcome:
    return run_isolated(
        f"{_PACKAGE}.preparation:make_model",
        {
            "model": model,
            "files": str(files.resolve()),
            "batches": options.batches,
            "capabilities": CAPABILITIES if model == options.models[0] else (),
        },
        limit_s=_LIMIT_S,
        tell=lambda event: say(f"  {event['file']}"),
    )


# --------------------------------------------------------------------------------------------------------------
# In the child


@dataclass(frozen=True, slots=True)
class _Workshop:
    """Makes files that are not there yet, and records what was made, by whom and with which tools."""

    folder: Path
    tools: str
    tell: Tell

    def provide(self, name: str, make: Callable[[Path], str]) -> dict[str, Any]:
        """Make one file, or keep it where these tools made it and its bytes are still the same."""
        record = _read_made(self.folder)
        known, path = record.get(name), self.folder / name
        if known and known["tools"] == self.tools and path.is_file() and hash_file(path) == known["sha256"]:
            return {"state": "done", "reason": None, "kept": True, **known}
        self.tell({"file": name})
        partial, began = self.folder / f".{name}.partial", time.monotonic()
        try:
            maker = make(partial)
        except SkippedPart as error:
            return {"state": "skipped", "reason": str(error)}
        except Exception as error:  # exporters and libraries raise anything; the other files may do
            return {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}
        partial.replace(path)
        entry = {
            "made_by": maker,
            "bytes": path.stat().st_size,
            "sha256": hash_file(path),
            "seconds": round(time.monotonic() - began, 1),
            "tools": self.tools,
        }
        write_document({**record, name: entry}, self.folder / _MADE)
        return {"state": "done", "reason": None, "kept": False, **entry}


def _read_made(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _MADE).read_text("utf-8")))
    except (FileNotFoundError, ValueError):  # nothing was made yet, or nobody knows what
        return {}


def make_model(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Everything of one model: ``state``, ``reason`` and ``made_by`` by file name.

    Args:
        arguments: ``model``, ``files`` (folder), ``batches`` and ``capabilities``.
        tell: told of each file that is made.
    """
    folder, model = Path(arguments["files"]), arguments["model"]
    tools = hashlib.sha256(json.dumps(tool_versions(_TOOLS), sort_keys=True).encode()).hexdigest()
    workshop, made = _Workshop(folder, tools, tell), {}
    for name, make in _recipes(model, folder, arguments).items():
        made[name] = workshop.provide(name, make)
    return made


def _recipes(model: str, folder: Path, arguments: Mapping[str, Any]) -> dict[str, Callable[[Path], str]]:
    """Who makes each file, in an order in which later ones find what they need."""
    folders = (str(folder),)

    def graph(precision: str) -> Callable[[Path], str]:
        return lambda path: make_graph(model, precision, folders, path)

    def engine(file: EngineFile) -> Callable[[Path], str]:
        return lambda path: _build_engine(file, folder, path)

    def weights(path: Path) -> str:
        save_weights(make_network(model), path)
        return name_weights(model)

    def answers(path: Path) -> str:
        write_answers(model, folders, path)
        return "PyTorch on a CPU"

    def macs(path: Path) -> str:
        write_macs(model, folders, path)
        return "edgekiln.export.audits.macs"

    engines = list_engines((model,), arguments["batches"], "tensorrt-rtx", arguments["capabilities"])
    return {
        weights_name(model): weights,
        **{onnx_name(model, precision): graph(precision) for precision in PRECISIONS},
        answers_name(model): answers,
        macs_name(model): macs,
        **{file.name: engine(file) for file in engines},
    }


def _build_engine(file: EngineFile, folder: Path, path: Path) -> str:
    """``build_file`` in the terms of a workshop."""
    work = path.with_name(f"{path.name}.folder")
    work.mkdir(exist_ok=True)
    try:
        built = build_file(file, (str(folder),), work)
        if built["state"] == "skipped":
            raise SkippedPart(built["reason"])
        if built["state"] == "failed":
            raise RuntimeError(built["reason"])
        (work / file.name).replace(path)
    finally:
        for left in work.iterdir():
            left.unlink()
        work.rmdir()
    return str(built["made_by"])


# --------------------------------------------------------------------------------------------------------------
# What is packed, in the order of its value


def _choose_packed(
    models: Sequence[str], files: Path, parts: Mapping[str, Any], wheels: Path | None
) -> list[Packed]:
    """The first model, the wheels, the other models: the first parts are enough to measure the first model."""
    first, others = models[:1], models[1:]
    return [*_list_files(first, files, parts), *_list_wheels(wheels), *_list_files(others, files, parts)]


def _list_files(models: Sequence[str], files: Path, parts: Mapping[str, Any]) -> list[Packed]:
    """The files that were made, model by model; what stays here is marked so in ``parts``."""
    made = [parts[f"make.{model}"]["result"] or {} for model in models]
    packed = []
    for name, entry in (item for entries in made for item in entries.items()):
        if entry["state"] != "done":
            continue
        if name.endswith(".engine") and entry["bytes"] > MOST_ENGINE_BYTES:
            entry["stays_here"] = (
                f"{entry['bytes'] / 2**20:.0f} MiB: it is built over there in less time than it takes"
            )
        else:
            packed.append(Packed(files / name, {"kind": "file", "made_by": entry["made_by"]}))
    return packed


def _list_wheels(folder: Path | None) -> list[Packed]:
    paths = [] if folder is None else sorted(folder.glob("*.whl"), key=lambda path: path.stat().st_size)
    return [Packed(path, {"kind": "wheel"}) for path in paths]
