"""The closed loop of a variant stage: an INT8 graph that loses too much on val keeps its worst blocks in float.

Judged on val, next to the FP32 graph (whose parity with PyTorch the export stage has proven); test is not opened here.
Every candidate is kept on disk as it comes, so that an interrupted stage goes on where it was. Where time ran out they
stay in the finished stage, and an attempt with other settings (more ``search_seconds``, another budget) takes them up:
what identifies a candidate are graphs, images, judge and tools, not how long or for what was searched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.benchmarks.environment import tool_versions
from edgekiln.benchmarks.judging.gate import tango_interval
from edgekiln.pipeline.data import PreparedSplit, hold_in_memory, load_split
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.variants.isolated import IsolatedSession
from edgekiln.pipeline.workspace.stage_files import MODEL_NAME, StageContext
from edgekiln.pipeline.workspace.store import earlier_files
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import BuildError, EngineError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames, Logits

if TYPE_CHECKING:
    from edgekiln.export.precision.sensitivity import Candidate, SearchProblem

__all__ = ["CANDIDATES_NAME", "Loop", "allowed_drop", "answer", "hold_budget", "make_rule"]

CANDIDATES_NAME = "candidates.json"
"""In the stage's folder while it works; in the finished one where time ran out: else about.json's curve is enough."""

_BATCH = 64
_TOOLS = ("edgekiln", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nvidia-modelopt")


@dataclass(frozen=True, slots=True)
class Loop:
    """What the search works with.

    Attributes:
        plain: the graph with everything quantized.
        make: a graph's bytes with these products left in float.
        evaluate: its logits for uint8 (N, H, W, 3).
        judged_by: what ``evaluate`` is, for the report.
        rest: precision of what is not quantized, for the report.
    """

    plain: bytes
    make: Callable[[Collection[str]], bytes]
    evaluate: Callable[[bytes, Frames], Logits]
    judged_by: str
    rest: str


def allowed_drop(context: StageContext, variant: VariantSettings) -> float:
    """The variant's own budget, or the gate's."""
    return context.recipe.gate.max_drop if variant.max_drop is None else variant.max_drop


def make_rule(max_drop: float, confidence: float, images: int) -> tuple[Callable[[int, int, int], bool], str]:
    """Whether (broken, mended, images) hold the budget, and the rule by name: ``interval`` or ``estimate``.

    Where val is so large that an engine without a flip would need half of the budget at most, the whole of Tango's
    interval must lie inside, as the gate will ask on test; on a smaller val that would refuse sound engines, and
    the estimate of the drop decides.
    """
    by_interval = tango_interval(0, 0, images, confidence)[1] <= max_drop / 2

    def accepts(broken: int, mended: int, judged: int) -> bool:
        if by_interval:
            return tango_interval(broken, mended, judged, confidence)[1] < max_drop
        return (broken - mended) / judged <= max_drop

    return accepts, "interval" if by_interval else "estimate"


def _open_here(model: bytes) -> Session:
    return open_session("onnxruntime-cpu", model)


def answer(
    model: bytes,
    frames: Frames,
    open_graph: Callable[[bytes], Session | IsolatedSession] = _open_here,
) -> Logits:
    """float32 (N, C) logits of a graph as what ``open_graph`` opens runs it; frames may be memory-mapped."""
    session = open_graph(model)
    try:
        return np.concatenate(
            [session.run(np.array(frames[i : i + _BATCH])) for i in range(0, len(frames), _BATCH)]
        )
    finally:
        session.close()


def hold_budget(
    context: StageContext, variant: VariantSettings, loop: Loop, about: dict[str, Any]
) -> tuple[str, ...]:
    """Names of the products that must stay in float for the budget to hold on val; empty where none need to.

    Writes ``search`` into ``about``, with ``kept_share`` and ``notices`` where something was kept, and ``failure``
    where INT8 cannot hold the budget: the plain graph then stands as evidence.
    """
    from edgekiln.export.precision.sensitivity import search_precision

    source = (context.inputs["export"] / MODEL_NAME).read_bytes()
    val = hold_in_memory(load_split(context.inputs["data"], "val"), context.progress.message)
    accepts, rule = make_rule(allowed_drop(context, variant), context.recipe.gate.confidence, len(val))
    problem = _pose_problem(source, loop, val, accepts, variant.search_seconds)
    calibration = about.get("calibration", {}).get("digest", "")
    notebook = _Notebook(
        context.folder / CANDIDATES_NAME, _identify(source, loop, val, calibration), context.progress.message
    )
    result = search_precision(
        problem, known=notebook.read(len(val)), remember=notebook.write, advance=context.progress.advance
    )
    if result.fewest:  # else an attempt with more time goes on from them
        notebook.path.unlink(missing_ok=True)
    about["search"] = {
        **result.to_dict(),
        "max_drop": allowed_drop(context, variant),
        "rule": rule,
        "split": "val",
        "images": len(val),
        "judged_by": loop.judged_by,
        "reference": "the FP32 graph in onnxruntime on the CPU",
        "share_quantized": problem.share_quantized(result.keep_float),
        "seconds_allowed": variant.search_seconds,
    }
    kept = sum(problem.macs.get(name, 0) for name in result.keep_float)
    about["kept_share"] = kept / max(1, sum(problem.macs.values()))
    _tell(context, variant, loop, about)
    return result.keep_float


def _pose_problem(
    source: bytes,
    loop: Loop,
    val: PreparedSplit,
    accepts: Callable[[int, int, int], bool],
    seconds: float,
) -> SearchProblem:
    """What is searched: the blocks of the plain graph, judged on val next to the FP32 graph ``source``."""
    import onnx

    from edgekiln.export.audits.macs import count_macs
    from edgekiln.export.precision.blocks import group_products, quantized_products
    from edgekiln.export.precision.sensitivity import SearchProblem

    graph = onnx.load_from_string(source)
    macs = count_macs(graph)
    return SearchProblem(
        blocks=group_products(graph.graph, quantized_products(onnx.load_from_string(loop.plain).graph), macs),
        macs=macs,
        make=lambda keep_float: loop.make(keep_float) if keep_float else loop.plain,
        evaluate=lambda model: _evaluate(loop, model, val.frames),
        baseline=answer(source, val.frames),
        labels=val.labels,
        accepts=accepts,
        seconds=seconds,
    )


def _evaluate(loop: Loop, model: bytes, frames: Frames) -> Logits:
    """Its answers; a graph that crashes the library is a bad candidate, and others are tried."""
    try:
        return loop.evaluate(model, frames)
    except BuildError as error:
        raise EngineError(error.message, hint=error.hint) from error


def _tell(context: StageContext, variant: VariantSettings, loop: Loop, about: dict[str, Any]) -> None:
    """The result in a sentence: a notice where it was found, the variant's failure where it was not."""
    search = about["search"]
    match search["verdict"]:
        case "found":
            sentence = _tell_found(variant, loop, search)
            about.setdefault("notices", []).append(sentence)
            context.progress.message(f"  {sentence}")
        case "impossible" | "stopped":
            about["failure"] = _tell_failure(variant, search)
            context.progress.message(f"  {variant.name}: {about['failure']}")


def _tell_found(variant: VariantSettings, loop: Loop, search: Mapping[str, Any]) -> str:
    names = [block["name"] for block in search["kept"]]
    more = "" if search["fewest"] else "; the search ran out of time, fewer may do"
    return (
        f"{variant.name} keeps {len(names)} of {search['blocks']} blocks in {loop.rest} to hold its budget: "
        f"{', '.join(names)}. {search['share_quantized']:.0%} of the MACs stay in INT8; top-1 drop on val "
        f"{_points(search['chosen']['drop'])} instead of {_points(search['curve'][0]['drop'])} points, allowed "
        f"{100 * search['max_drop']:.2f}; judged by {loop.judged_by}{more}"
    )


def _tell_failure(variant: VariantSettings, search: Mapping[str, Any]) -> str:
    plain, budget = search["curve"][0], 100 * search["max_drop"]
    lost = f"plain INT8 loses {_points(plain['drop'])} points on val, allowed {budget:.2f}"
    if search["verdict"] == "stopped":
        return (
            f"The search for blocks to keep in float stopped for time after {search['evaluations']} evaluations "
            f"(search_seconds = {variant.search_seconds:g}): {lost}. It is neither possible nor impossible yet."
        )
    instead = "FP16 instead, or train it for INT8 (qat)" if variant.builds_engine else "FP32 instead"
    best = min((p for p in search["curve"] if p["drop"] is not None), key=lambda p: p["drop"], default=plain)
    return (
        f"INT8 cannot hold its budget: {lost}; the best of {len(search['curve'])} sets, with {len(best['kept'])} of "
        f"{search['blocks']} blocks in float and {best['share_quantized']:.0%} of the MACs in INT8, loses "
        f"{_points(best['drop'])}. At least half of the MACs must be in INT8; take {instead}."
    )


def _points(drop: float | None) -> str:
    return "everything in" if drop is None else f"{100 * drop:+.2f}"


def _identify(source: bytes, loop: Loop, val: PreparedSplit, calibration: str) -> str:
    """sha256 over everything that a candidate's answers depend on."""
    about = [loop.judged_by, loop.rest, calibration, tool_versions(_TOOLS), list(val.frames.shape)]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for model in (source, loop.plain):
        digest.update(hashlib.sha256(model).digest())
    digest.update(np.ascontiguousarray(val.labels).tobytes())
    for start in range(0, len(val), _BATCH):
        digest.update(np.ascontiguousarray(val.frames[start : start + _BATCH]).tobytes())
    return digest.hexdigest()


class _Notebook:
    """Candidates on disk, of one problem: those of another are not read."""

    def __init__(self, path: Path, identity: str, message: Callable[[str], None]) -> None:
        self.path = path
        self._identity, self._message = identity, message

    def read(self, images: int) -> dict[str, Candidate]:
        """What this attempt and others judged of the same problem, each on so many images."""
        known: dict[str, Candidate] = {}
        for path in [*reversed(earlier_files(self.path.parent, self.path.name)), self.path]:
            try:
                known |= self._read_file(path, images)
            except FileNotFoundError:
                pass  # none yet
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._message(
                    f"  Candidates of an earlier search are damaged, judged again: {path} ({error!r})"
                )
        return known

    def _read_file(self, path: Path, images: int) -> dict[str, Candidate]:
        values = json.loads(path.read_text("utf-8"))
        if values["identity"] != self._identity:
            return {}
        return {key: _read_candidate(entry, images) for key, entry in values["candidates"].items()}

    def write(self, known: Mapping[str, Candidate]) -> None:
        values = {"identity": self._identity, "candidates": {key: asdict(c) for key, c in known.items()}}
        beside = self.path.with_name(f"{self.path.name}.part")
        beside.write_text(json.dumps(values), "utf-8")
        beside.replace(self.path)


def _read_candidate(entry: Mapping[str, Any], images: int) -> Candidate:
    from edgekiln.export.precision.sensitivity import Candidate

    if set(entry) != {field.name for field in fields(Candidate)}:
        raise ValueError(f"a candidate of {sorted(entry)}")
    counts = [entry["broken"], entry["mended"], entry["images"]]
    whole = all(isinstance(count, int) and 0 <= count <= images for count in counts)
    if not whole or entry["images"] != images or not isinstance(entry["divergence"], float):
        raise ValueError(f"a candidate of {counts} images, wanted {images}")
    return Candidate(**entry)
