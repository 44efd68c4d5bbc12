"""One model at one batch size: opens every contender, checks its answers, and times those that answer rightly.

Ratios are to PyTorch. Where PyTorch is not here, the absolute figures are measured all the same, and the result says
so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekiln.pipeline.gpu_suite.contenders import BASELINE, GRAPHED, explain_no_torch, list_contenders
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell, state_after
from edgekiln.pipeline.gpu_suite.machine import is_installed, query_smi
from edgekiln.pipeline.gpu_suite.networks import MODELS, make_frames, name_weights
from edgekiln.pipeline.gpu_suite.reference import POOL, RightAnswers, compare_answers, find_answers
from edgekiln.pipeline.gpu_suite.timing import (
    Caller,
    Contender,
    TimingPlan,
    measure_load,
    summarize,
    time_in_turns,
)
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["BOUNDARY", "bench"]

BOUNDARY = (
    "call: from uint8 (N, H, W, 3) in host memory to float32 logits in host memory; both copies and the wait for "
    "the GPU included"
)
_BATCHES = 16


def bench(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Open, check and time all contenders of one model at one batch size.

    Args:
        arguments: ``model``, ``batch``, ``device`` (``cuda``; ``cpu`` is for tests), ``folders`` of files,
            ``families`` of contenders, ``exclude`` (reasons by name: known to crash), ``rounds``,
            ``block_seconds`` and ``compile_mode``.
        tell: told which contender is being opened or timed, so that a crash is known by its contender.

    Raises:
        SkippedPart: no contender could be opened.
    """
    model, batch = arguments["model"], arguments["batch"]
    pool = make_frames(POOL, MODELS[model].size)
    answers = find_answers(model, arguments["folders"])
    entries: dict[str, dict[str, Any]] = {}
    callers: dict[str, Caller] = {}
    for contender in list_contenders(arguments):
        name = contender.name
        entries[name] = {"family": contender.family, "config": dict(contender.config)}
        if name in arguments["exclude"]:
            entries[name] |= arguments["exclude"][name]
            continue
        tell({"contender": name, "doing": "open"})
        entry, caller = _open(contender, pool, answers, batch)
        entries[name] |= entry
        if caller is not None:
            callers[name] = caller
    if not callers:
        _refuse_nothing(entries)
    result = _measure(arguments, entries, callers, pool, tell)
    return {**result, "right_answers": answers.source}


def _refuse_nothing(entries: Mapping[str, Mapping[str, Any]]) -> None:
    reasons = "; ".join(dict.fromkeys(f"{name}: {entry['reason']}" for name, entry in entries.items()))
    if any(entry["state"] == "failed" for entry in entries.values()):
        raise RuntimeError(f"no contender could be measured: {reasons}")
    raise SkippedPart(f"no contender is here: {reasons}")


def _open(
    contender: Contender, pool: Frames, answers: RightAnswers, batch: int
) -> tuple[dict[str, Any], Caller | None]:
    """What is known of a contender before it is timed, and the contender where it does not answer wrongly."""
    try:
        began = time.perf_counter()
        caller = contender.open()
        entry: dict[str, Any] = {"seconds_to_open": round(time.perf_counter() - began, 3)}
        caller.begin()
        got = np.concatenate([caller.run(frames)[: len(pool) - i] for i, frames in _whole_pool(pool, batch)])
    except Exception as error:  # libraries raise anything; the other contenders go on
        if isinstance(error, UsageError) or state_after(error) == "skipped":
            return {"state": "skipped", "reason": str(error)}, None
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}, None
    wrong = _explain_wrong(contender, got, answers, entry)
    if wrong is not None:
        caller.close()
        return {
            **entry,
            "state": "failed",
            "reason": f"it answers wrongly, so it is not timed: {wrong}",
        }, None
    return {**entry, "state": "done", "reason": None}, caller


def _explain_wrong(
    contender: Contender, got: Logits, answers: RightAnswers, entry: dict[str, Any]
) -> str | None:
    """What is wrong with the answers, or ``None``; what was compared goes into ``entry``."""
    if answers.logits is None:
        entry["answers"] = None
        return None if np.isfinite(got).all() else "a logit is not finite"
    allowed = answers.allowed(contender.config.get("precision", ""))
    agreement = compare_answers(got, answers.logits, allowed)
    entry["answers"] = agreement.to_dict()
    told = f"a logit differs by {agreement.max_difference:.3g} of the logits' range, allowed {allowed:.3g}"
    return None if agreement.right else told


def _whole_pool(pool: Frames, batch: int) -> list[tuple[int, Frames]]:
    """Batches that hold each picture once, in order; the last one is filled up from the beginning."""
    indices = np.arange(len(pool))
    return [(i, pool[np.arange(i, i + batch) % len(pool)]) for i in indices[::batch]]


def _measure(
    arguments: Mapping[str, Any],
    entries: dict[str, dict[str, Any]],
    callers: Mapping[str, Caller],
    pool: Frames,
    tell: Tell,
) -> dict[str, Any]:
    batch = arguments["batch"]
    batches = [pool[(np.arange(batch) + 2 * i) % len(pool)] for i in range(_BATCHES)]
    plan = TimingPlan(arguments["rounds"], arguments["block_seconds"])
    under_load: list[dict[str, Any]] = []
    read_load = measure_load()
    measured = time_in_turns(
        callers,
        batches,
        plan,
        tell=lambda name, index: tell({"contender": name, "doing": f"round {index + 1} of {plan.rounds}"}),
        midway=lambda: under_load.append(query_smi()),
    )
    foreign, steal = read_load()
    summary = summarize(measured, (BASELINE, GRAPHED), foreign_load=foreign, steal=steal)
    for name, figures in summary["contenders"].items():
        entries[name] |= figures
    return {
        "model": arguments["model"],
        "batch": batch,
        "size_px": MODELS[arguments["model"]].size,
        "boundary": BOUNDARY,
        "baseline": BASELINE if BASELINE in callers else None,
        "baseline_problem": None if BASELINE in callers else _explain_no_baseline(arguments, entries),
        "compared_with_itself": next(iter(callers)),
        "weights": name_weights(arguments["model"], arguments["folders"]),
        "inputs": f"{_BATCHES} batches of {POOL} distinct pictures, in rotation",
        "rounds": plan.rounds,
        "block_seconds": plan.block_seconds,
        "foreign_load_cores": foreign,
        "steal_share": steal,
        "libraries": _torch_libraries(),
        "nvidia_smi_midway": under_load[0] if under_load else None,
        "validity": summary["validity"],
        "contenders": entries,
        "fastest_edgekiln": _fastest(entries),
    }


def _explain_no_baseline(arguments: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> str:
    why = explain_no_torch(arguments["device"]) or entries[BASELINE]["reason"]
    return f"{BASELINE} was not measured, so the figures are absolute and there is no ratio to PyTorch: {why}"


def _torch_libraries() -> dict[str, Any]:
    if not is_installed("torch"):
        return {}
    import torch

    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call] # torch's own
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


def _fastest(entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The fastest of edgekiln's own backends, by the median call."""
    ours: Sequence[tuple[float, str]] = [
        (entry["p50_ms"], name)
        for name, entry in entries.items()
        if entry["family"] != "torch" and entry["state"] == "done"
    ]
    return min(ours)[1] if ours else None
