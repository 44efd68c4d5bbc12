"""The suite's parts, in the order of their value: what each runs, how long it may take, and when it is not tried.

What one GPU answers first comes first: whether the CUDA layers keep their promises, then everything about one network,
then the other networks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from edgekiln.pipeline.gpu_suite.context import NOT_WANTED, Run
from edgekiln.pipeline.gpu_suite.engines import CAPABILITIES, EngineFile, list_engines
from edgekiln.pipeline.gpu_suite.graphs import PRECISIONS
from edgekiln.pipeline.gpu_suite.isolation import Outcome, run_isolated, skip
from edgekiln.pipeline.gpu_suite.layers import list_layers
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.pipeline.gpu_suite.networks import find_file, onnx_name
from edgekiln.pipeline.gpu_suite.plan import Part
from edgekiln.pipeline.gpu_suite.reruns import bench_with_reruns
from edgekiln.pipeline.gpu_suite.soak import SECONDS as SOAK_SECONDS
from edgekiln.runtime.backends.engine_header import Flavour

__all__ = ["list_parts"]

_PACKAGE = "edgekiln.pipeline.gpu_suite"
_LIBRARIES: dict[Flavour, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
# Estimates in seconds, made without a GPU: they order and limit, and nothing is concluded from them.
_LAYER_S, _EXPORT_S, _GIVEN_S = 12.0, 30.0, 2.0
_BUILD_S: dict[Flavour, float] = {"tensorrt-rtx": 6.0, "tensorrt": 30.0}
_QUESTION_S, _TESTS_S = 8.0, 120.0
_OPEN_S, _COMPILE_S, _LONG_COMPILE_S = 5.0, 45.0, 300.0
_TORCH_WAYS = 5
_ROUNDS, _QUICK_ROUNDS, _BLOCK_S = 12, 5, 0.25
_QUICK_STEP_S = 150.0
"""A contender that hangs must not cost a short run all of its budget."""


def list_parts(run: Run) -> list[Part]:
    """All parts of a run, the most valuable first."""
    return list(_list_parts(run))


def _list_parts(run: Run) -> Iterator[Part]:
    for layer in list_layers():
        yield _layer_part(run, layer)
    first, *others = run.options.models
    small, *larger = run.options.batches
    yield _graphs_part(run, first)
    yield _engines_part(run, "tensorrt-rtx", first)
    yield _question_part(run, first)
    yield _engines_part(run, "tensorrt", first)
    yield _bench_part(run, first, small)
    for flavour in _LIBRARIES:
        yield _dynamic_part(run, flavour, first)
    for batch in larger:
        yield _bench_part(run, first, batch)
    yield _soak_part(run, first)
    for model in others:
        yield _graphs_part(run, model)
        yield _engines_part(run, "tensorrt-rtx", model)
        yield _engines_part(run, "tensorrt", model)
        for batch in run.options.batches:
            yield _bench_part(run, model, batch)
    yield _tests_part(run)


def _part(
    run: Run, name: str, expected_s: float, unwanted: str | None, function: str, arguments: Any
) -> Part:
    """A part that is one function in one process; ``arguments`` are asked for when it begins."""

    def start(limit_s: float) -> Outcome:
        return run_isolated(
            f"{_PACKAGE}.{function}",
            arguments(),
            limit_s=limit_s,
            tell=lambda event: run.say("  " + ", ".join(str(value) for value in list(event.values())[:2])),
        )

    return Part(name, expected_s, run.options.limits_s[name.partition(".")[0]], unwanted, start)


def _unwanted(run: Run, *families: str) -> str | None:
    return None if run.wants(*families) else NOT_WANTED


# --------------------------------------------------------------------------------------------------------------
# Each kind of part


def _layer_part(run: Run, layer: str) -> Part:
    unwanted = _unwanted(run, "layers")
    return _part(run, f"layers.{layer}", _LAYER_S, unwanted, "layers:check_layer", lambda: {"layer": layer})


def _graphs_part(run: Run, model: str) -> Part:
    absent = sum(find_file(onnx_name(model, p), run.folders) is None for p in PRECISIONS)
    return _part(
        run,
        f"graphs.{model}",
        _GIVEN_S + absent * _EXPORT_S,
        _unwanted(run, "onnxruntime", "tensorrt", "tensorrt-rtx", "dynamic", "soak"),
        "graphs:export_models",
        lambda: run.common((model,)),
    )


def _engines_part(run: Run, flavour: Flavour, model: str) -> Part:
    capabilities = _asked(run, flavour, model)
    engines = list_engines((model,), run.options.batches, flavour, capabilities)
    absent = sum(find_file(engine.name, run.folders) is None for engine in engines)
    unwanted = _unwanted(run, flavour)
    if unwanted is None and absent == len(engines):
        unwanted = _explain_absent(flavour)
    return _part(
        run,
        f"engines.{flavour}.{model}",
        _GIVEN_S + absent * _BUILD_S[flavour],
        unwanted,
        "engines:build_all",
        lambda: {
            **run.common((model,)),
            "batches": run.options.batches,
            "flavour": flavour,
            "capabilities": capabilities,
        },
    )


def _asked(run: Run, flavour: Flavour, model: str) -> tuple[int, ...]:
    return CAPABILITIES if flavour == "tensorrt-rtx" and model == run.options.models[0] else ()


def _explain_absent(flavour: Flavour) -> str | None:
    library = _LIBRARIES[flavour]
    return None if is_installed(library) else f"{library} is not installed"


def _dynamic_part(run: Run, flavour: Flavour, model: str) -> Part:
    return _part(
        run,
        f"dynamic.{flavour}",
        2 * _BUILD_S[flavour] + 4 * _OPEN_S,
        _unwanted(run, "dynamic") or _unwanted(run, flavour) or _explain_absent(flavour),
        "dynamic:try_dynamic",
        lambda: {**run.common((model,)), "model": model, "flavour": flavour},
    )


def _soak_part(run: Run, model: str) -> Part:
    return _part(
        run,
        "soak",
        SOAK_SECONDS + 2 * _OPEN_S,
        _unwanted(run, "soak"),
        "soak:soak",
        lambda: {
            **run.common((model,)),
            "model": model,
            "batch": min(run.options.batches),
            "device": "cuda",
            "families": run.options.families,
            "seconds": SOAK_SECONDS,
        },
    )


def _tests_part(run: Run) -> Part:
    missing = None if is_installed("pytest") else "pytest is not installed"
    unwanted = _unwanted(run, "tests") or missing
    return _part(run, "tests", _TESTS_S, unwanted, "gpu_tests:run_gpu_tests", dict)


# --------------------------------------------------------------------------------------------------------------
# Whether TensorRT-RTX runs on this GPU


def _question_part(run: Run, model: str) -> Part:
    engines = [
        engine
        for engine in list_engines(
            (model,), run.options.batches, "tensorrt-rtx", _asked(run, "tensorrt-rtx", model)
        )
        if engine.batch == min(run.options.batches)
    ]
    unwanted = _unwanted(run, "tensorrt-rtx") or _explain_absent("tensorrt-rtx")
    limit = run.options.limits_s["rtx-engines"]
    expected = _QUESTION_S * len(engines)
    return Part("rtx-engines", expected, limit, unwanted, lambda limit_s: _ask_all(run, engines, limit_s))


def _ask_all(run: Run, engines: list[EngineFile], limit_s: float) -> Outcome:
    """Each engine in a process of its own."""
    began = time.monotonic()
    answers: dict[str, dict[str, Any]] = {}
    for engine in engines:
        outcome = _ask(run, engine, limit_s - (time.monotonic() - began))
        answers[engine.name] = {**(outcome.last or {}), **(outcome.result or {})}
        answers[engine.name] |= {"state": outcome.state, "reason": outcome.reason}
        run.say(f"  {engine.name}: {_say_answer(answers[engine.name])}")
    seconds = time.monotonic() - began
    if all(answer["state"] == "skipped" for answer in answers.values()):
        reasons = dict.fromkeys(str(answer["reason"]) for answer in answers.values())
        return Outcome("skipped", "; ".join(reasons), answers, seconds)
    # A crash is an answer to this question, and no failure of the suite; its text is kept with its engine.
    answers = {
        name: {**answer, "state": "done", "crashed": True} if answer["state"] == "failed" else answer
        for name, answer in answers.items()
    }
    return Outcome("done", None, answers, seconds)


def _ask(run: Run, engine: EngineFile, limit_s: float) -> Outcome:
    path = find_file(engine.name, run.folders)
    if path is None:
        return skip(f"there is no such file; part 'engines.tensorrt-rtx.{engine.model}' says why")
    if limit_s <= 0:
        return skip("no time was left for it")
    arguments = {
        "path": str(path),
        "model": engine.model,
        "precision": engine.precision,
        "batch": engine.batch,
        "flavour": engine.flavour,
        "folders": run.folders,
    }
    return run_isolated(f"{_PACKAGE}.engines:ask_engine", arguments, limit_s=limit_s)


def _say_answer(answer: Mapping[str, Any]) -> str:
    if answer.get("right"):
        return "loads, runs, and answers rightly"
    return str(answer.get("message") or answer.get("reason") or "answers wrongly")


def _refused_by_rtx(question: Outcome | None) -> dict[str, dict[str, str]]:
    """Reasons by contender, where the default engine of a precision was tried and did not run."""
    refused: dict[str, dict[str, str]] = {}
    for name, answer in ((question.result if question else None) or {}).items():
        if "rtx-default" in name and answer["state"] == "done" and not answer.get("runs"):
            reason = f"it does not run here: {_say_answer(answer)}"
            refused[f"tensorrt-rtx-{name.split('.')[1]}"] = {"state": "skipped", "reason": reason}
    return refused


# --------------------------------------------------------------------------------------------------------------
# Measurements


def _bench_part(run: Run, model: str, batch: int) -> Part:
    families = [
        family for family in run.options.families if family not in ("tests", "layers", "dynamic", "soak")
    ]
    quick = run.options.is_quick
    rounds = _QUICK_ROUNDS if quick else _ROUNDS

    def start(limit_s: float) -> Outcome:
        arguments = {
            **run.common((model,)),
            "model": model,
            "batch": batch,
            "device": "cuda",
            "families": families,
            "exclude": _refused_by_rtx(run.parts.get("rtx-engines")),
            "rounds": rounds,
            "block_seconds": _BLOCK_S,
            "compile_mode": "default" if quick else "max-autotune-no-cudagraphs",
        }
        step_s = min(limit_s, _QUICK_STEP_S if quick else run.options.limits_s["step"])
        return bench_with_reruns(
            f"{_PACKAGE}.bench:bench", arguments, limit_s=limit_s, step_limit_s=step_s, say=run.say
        )

    unwanted = None if families else NOT_WANTED
    expected = _expect_bench(run, rounds)
    return Part(f"bench.{model}.b{batch}", expected, run.options.limits_s["bench"], unwanted, start)


def _expect_bench(run: Run, rounds: int) -> float:
    torch_here, wanted = is_installed("torch"), run.wants("torch")
    contenders = (_TORCH_WAYS if wanted else 2) if torch_here else 0
    engines = {"tensorrt": 3, "tensorrt-rtx": 2}
    contenders += sum(engines[f] for f, m in _LIBRARIES.items() if run.wants(f) and is_installed(m))
    compiling = (_COMPILE_S if run.options.is_quick else _LONG_COMPILE_S) if torch_here and wanted else 0.0
    return _OPEN_S * (contenders + 1) + compiling + (contenders + 1) * rounds * (_BLOCK_S + 0.1)
