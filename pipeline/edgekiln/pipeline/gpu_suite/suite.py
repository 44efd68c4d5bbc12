"""All parts in order, each isolated from the others, and one document about them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgekiln.pipeline.gpu_suite.engines import EngineFile, find_file, list_engines
from edgekiln.pipeline.gpu_suite.goals import judge_goals
from edgekiln.pipeline.gpu_suite.isolation import Outcome, run_isolated, skip
from edgekiln.pipeline.gpu_suite.machine import report_machine
from edgekiln.pipeline.shipping.privacy import remove_private
from edgekiln.runtime.cuda import DriverState, probe_driver
from edgekiln.runtime.errors import ExitCode

__all__ = ["FAMILIES", "SuiteOptions", "bench_with_reruns", "prepare", "run_suite", "write_document"]

FAMILIES = ("tests", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx")
SCHEMA = "edgekiln.gpu-suite/1"
BATCHES = (1, 64)
_PACKAGE = "edgekiln.pipeline.gpu_suite"
_NOT_WANTED = "left out by --only"
_RERUNS = 4
"""Contenders that may crash or hang before a measurement is given up."""


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What to run.

    Attributes:
        models: names in ``models.MODELS``.
        given: folder of files made elsewhere, or ``None``.
        quick: fewer rounds, and torch.compile's default mode.
        families: parts and contenders wanted, of ``FAMILIES``.
        limits_s: seconds that a part may take, by the first word of its name.
    """

    models: tuple[str, ...] = ("lite0", "resnet50")
    batches: tuple[int, ...] = BATCHES
    given: Path | None = None
    quick: bool = False
    families: tuple[str, ...] = FAMILIES
    limits_s: Mapping[str, float] = field(
        default_factory=lambda: {
            "tests": 900,
            "models": 1200,
            "engines": 3600,
            "rtx-engines": 300,
            "bench": 1800,
            "step": 600,
        }
    )


@dataclass(slots=True)
class _Run:
    """A run that is going on: options, folder of files that are made, what is said, and parts that are over."""

    options: SuiteOptions
    work: Path
    say: Callable[[str], None]
    parts: dict[str, Outcome] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome) -> None:
        """Keep what became of a part."""
        self.parts[name] = outcome
        reason = "" if outcome.reason is None else f": {outcome.reason.splitlines()[0][:200]}"
        self.say(f"{name}: {outcome.state}{reason} ({outcome.seconds:.0f} s)")

    def common(self) -> dict[str, Any]:
        """Arguments that several parts take."""
        given = None if self.options.given is None else str(self.options.given.resolve())
        return {
            "models": self.options.models,
            "given": given,
            "work": str(self.work),
            "folders": [given, str(self.work)],
        }

    def wants(self, *families: str) -> bool:
        """Whether any of these families was asked for."""
        return any(family in self.options.families for family in families)


def run_suite(
    options: SuiteOptions, *, say: Callable[[str], None], driver: DriverState | None = None
) -> tuple[dict[str, Any], ExitCode]:
    """Run everything.

    Args:
        options: what.
        say: told one line at a time how far it is.
        driver: what the driver says; asked where ``None``.

    Returns:
        The document, and 0 where nothing failed, 3 where something did, 5 where there is no GPU.
    """
    driver = probe_driver() if driver is None else driver
    started, began = datetime.now(timezone.utc), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgekiln-gpu-") as folder:
        run = _Run(options, Path(folder), say)
        if driver.problem is not None:
            _skip_everything(run, driver)
        else:
            _run_parts(run, driver)
    parts = {name: outcome.to_dict() for name, outcome in run.parts.items()}
    code = ExitCode.ENVIRONMENT if driver.problem else _judge(parts)
    document = {
        "schema": SCHEMA,
        "edgekiln": _own_version(),
        "started_utc": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "exit_code": int(code),
        "problem": driver.problem,
        "options": {
            "quick": options.quick,
            "families": list(options.families),
            "models": list(options.models),
        },
        "goals": judge_goals(parts),
        "parts": parts,
    }
    return remove_private(document), code


def _own_version() -> str | None:
    try:
        return version("edgekiln")
    except PackageNotFoundError:  # it runs from a checkout
        return None


def _part_names(options: SuiteOptions) -> list[str]:
    names = ["machine", "tests", "models", "engines.tensorrt", "engines.tensorrt-rtx", "rtx-engines"]
    return names + [f"bench.{model}.b{batch}" for model in options.models for batch in options.batches]


def _skip_everything(run: _Run, driver: DriverState) -> None:
    for name in _part_names(run.options):
        result = report_machine(driver) if name == "machine" else None
        run.add(name, skip(f"no GPU: {driver.problem}", result))


def _run_parts(run: _Run, driver: DriverState) -> None:
    options, limits = run.options, run.options.limits_s
    began = time.monotonic()
    machine = Outcome("done", None, report_machine(driver))
    run.add("machine", replace(machine, seconds=time.monotonic() - began))
    for name, outcome in (("tests", _run_tests), ("models", _run_models)):
        run.add(name, outcome(run))
    for flavour in ("tensorrt", "tensorrt-rtx"):
        run.add(f"engines.{flavour}", _run_engines(run, flavour))
    run.add("rtx-engines", _ask_rtx_engines(run))
    exclude = _refused_by_rtx(run.parts["rtx-engines"])
    for model in options.models:
        for batch in options.batches:
            run.add(f"bench.{model}.b{batch}", _run_bench(run, model, batch, exclude, limits))


def _judge(parts: Mapping[str, Mapping[str, Any]]) -> ExitCode:
    """Whether any part, or anything in a part, failed; goals that are missed do not fail, they are told."""
    failed = any(part["state"] == "failed" or any(_failures(part["result"])) for part in parts.values())
    return ExitCode.GATE_FAILED if failed else ExitCode.OK


def _failures(result: Any) -> Iterable[bool]:
    """For a part's result: whether each of its files, contenders or tests failed."""
    if not isinstance(result, Mapping):
        return
    yield bool(result.get("failures"))
    for entry in [*result.values(), *(result.get("contenders") or {}).values()]:
        if isinstance(entry, Mapping):
            yield entry.get("state") == "failed"


# --------------------------------------------------------------------------------------------------------------
# Parts


def _run_tests(run: _Run) -> Outcome:
    if not run.wants("tests"):
        return skip(_NOT_WANTED)
    return run_isolated(f"{_PACKAGE}.gpu_tests:run_gpu_tests", {}, limit_s=run.options.limits_s["tests"])


def _run_models(run: _Run) -> Outcome:
    if not run.wants("onnxruntime", "tensorrt", "tensorrt-rtx"):
        return skip(_NOT_WANTED)
    return run_isolated(
        f"{_PACKAGE}.models:export_models",
        run.common(),
        limit_s=run.options.limits_s["models"],
        tell=lambda event: run.say(f"  {event['model']}"),
    )


def _run_engines(run: _Run, flavour: str) -> Outcome:
    if not run.wants(flavour):
        return skip(_NOT_WANTED)
    return run_isolated(
        f"{_PACKAGE}.engines:build_all",
        {**run.common(), "batches": run.options.batches, "flavour": flavour},
        limit_s=run.options.limits_s["engines"],
        tell=lambda event: run.say(f"  {event['engine']}"),
    )


def _ask_rtx_engines(run: _Run) -> Outcome:
    """Whether TensorRT-RTX runs on this GPU: each engine of batch 1 in a process of its own."""
    if not run.wants("tensorrt-rtx"):
        return skip(_NOT_WANTED)
    began, smallest = time.monotonic(), min(run.options.batches)
    answers, reasons = {}, []
    for engine in list_engines(run.options.models, run.options.batches, "tensorrt-rtx"):
        if engine.batch != smallest:
            continue
        outcome = _ask(run, engine)
        answers[engine.name] = {**(outcome.last or {}), **(outcome.result or {})}
        answers[engine.name] |= {"state": outcome.state, "reason": outcome.reason}
        if outcome.state == "skipped":
            reasons.append(outcome.reason or "")
        run.say(f"  {engine.name}: {_say_answer(answers[engine.name])}")
    seconds = time.monotonic() - began
    if len(reasons) == len(answers):
        return Outcome("skipped", "; ".join(dict.fromkeys(reasons)), answers, seconds)
    # A crash is an answer to this question, and no failure of the suite; its text is kept with its engine.
    answers = {
        name: {**answer, "state": "done", "crashed": True} if answer["state"] == "failed" else answer
        for name, answer in answers.items()
    }
    return Outcome("done", None, answers, seconds)


def _ask(run: _Run, engine: EngineFile) -> Outcome:
    path = find_file(engine.name, run.common()["folders"])
    if path is None:
        return skip("there is no such file; part 'engines.tensorrt-rtx' says why")
    arguments = {"path": str(path), "model": engine.model, "batch": engine.batch, "flavour": engine.flavour}
    return run_isolated(
        f"{_PACKAGE}.engines:ask_engine", arguments, limit_s=run.options.limits_s["rtx-engines"]
    )


def _say_answer(answer: Mapping[str, Any]) -> str:
    if answer.get("right"):
        return "loads, runs, and answers rightly"
    return str(answer.get("message") or answer.get("reason") or "answers wrongly")


def _refused_by_rtx(question: Outcome) -> dict[str, dict[str, str]]:
    """Reasons by contender, where the default engines were tried and none of them ran."""
    tried = [a for n, a in (question.result or {}).items() if "rtx-default" in n and a["state"] == "done"]
    if not tried or any(answer.get("runs") for answer in tried):
        return {}
    return {
        "tensorrt-rtx-fp16": {"state": "skipped", "reason": f"it does not run here: {_say_answer(tried[0])}"}
    }


def _run_bench(
    run: _Run, model: str, batch: int, exclude: Mapping[str, Any], limits: Mapping[str, float]
) -> Outcome:
    families = [family for family in run.options.families if family != "tests"]
    if not families:
        return skip(_NOT_WANTED)
    quick = run.options.quick
    arguments = {
        **run.common(),
        "model": model,
        "batch": batch,
        "device": "cuda",
        "families": families,
        "exclude": dict(exclude),
        "rounds": 5 if quick else 12,
        "block_seconds": 0.25,
        "compile_mode": "default" if quick else "max-autotune-no-cudagraphs",
    }
    function = f"{_PACKAGE}.bench:bench"
    return bench_with_reruns(
        function, arguments, limit_s=limits["bench"], step_limit_s=limits["step"], say=run.say
    )


def bench_with_reruns(
    function: str,
    arguments: dict[str, Any],
    *,
    limit_s: float,
    step_limit_s: float,
    say: Callable[[str], None],
) -> Outcome:
    """Measure; where the process dies or hangs at one contender, measure the others without it.

    torch.compile's long search is first tried again with its short one.
    """
    from edgekiln.pipeline.gpu_suite.bench import BASELINE, COMPILED

    arguments = {**arguments, "exclude": dict(arguments["exclude"])}
    began = time.monotonic()
    outcome = skip("not begun")
    for _ in range(_RERUNS):
        outcome = run_isolated(
            function,
            arguments,
            limit_s=limit_s,
            step_limit_s=step_limit_s,
            tell=lambda event: _say_step(event, say),
        )
        culprit = (outcome.last or {}).get("contender")
        if outcome.state != "failed" or culprit in (None, BASELINE) or not _died(outcome):
            break
        doing = (outcome.last or {}).get("doing")
        say(f"  {culprit} ({doing}): {(outcome.reason or '').splitlines()[0][:200]}; again without it")
        if culprit == COMPILED and arguments.get("compile_mode", "default") != "default":
            arguments["compile_mode"] = "default"
            continue
        arguments["exclude"][culprit] = {"state": "failed", "reason": f"during {doing}: {outcome.reason}"}
    return replace(outcome, seconds=time.monotonic() - began)


def _died(outcome: Outcome) -> bool:
    """Whether the process gave no answer, as against one that raised."""
    return (outcome.reason or "").startswith(("the process", "it took longer"))


def _say_step(event: Mapping[str, Any], say: Callable[[str], None]) -> None:
    if event.get("doing") == "open":
        say(f"  {event['contender']}")


# --------------------------------------------------------------------------------------------------------------
# For machines that lack exporters


def prepare(
    options: SuiteOptions, folder: Path, *, say: Callable[[str], None]
) -> tuple[dict[str, Any], ExitCode]:
    """Write graphs and TensorRT-RTX engines into ``folder``, for ``--models`` on another machine.

    RTX engines are built without a GPU; TensorRT's are not portable and are built where they run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(replace(options, given=None), folder.resolve(), say)
    run.add("models", _run_models(run))
    run.add("engines.tensorrt-rtx", _run_engines(run, "tensorrt-rtx"))
    parts = {name: outcome.to_dict() for name, outcome in run.parts.items()}
    code = _judge(parts)
    document = remove_private({"schema": SCHEMA, "exit_code": int(code), "parts": parts})
    write_document(document, folder / "prepared.json")
    return document, code


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write JSON so that a reader sees the whole of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
    partial.replace(path)


def names_of(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Comma-separated names, each of which has to be known.

    Raises:
        ValueError: one is not.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"got {', '.join(unknown) or 'nothing'}, known: {', '.join(known)}")
    return names
