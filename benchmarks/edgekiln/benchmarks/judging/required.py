"""Whether all that a report's recipe requires may ship, and what may help where it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.benchmarks.judging.floor import judge_floor
from edgekiln.runtime.errors import GateError

__all__ = ["advise", "check_gate"]


def check_gate(report: Mapping[str, Any]) -> None:
    """Raise GateError when a required variant did not pass, as the recipe's gate says, or PyTorch is below its floor.

    Raises:
        GateError: names the variants and their verdicts; why stands in the report.
    """
    undecided_fails = report["recipe"]["gate"]["inconclusive"] == "fail"
    failed = [
        f"{v['name']}: {v['verdict']}"
        for v in report["variants"]
        if v["required"]
        and (v["verdict"] in {"fail", "not-run"} or (v["verdict"] == "inconclusive" and undecided_fails))
    ]
    if not failed and (reason := _below_floor(report)):
        raise GateError(f"PyTorch itself did not pass: {reason}.", hint=_MEND_NETWORK)
    if failed:
        raise GateError(
            f"{len(failed)} required variant{'s' if len(failed) > 1 else ''} did not pass: {'; '.join(failed)}.",
            hint=" ".join(
                ["The bundle holds everything for a look; only what passed is deployable.", *advise(report)]
            ),
        )


_MEND_NETWORK = (
    "The network is not good enough, whatever its engines are: check the labels, train longer or on more pictures, or "
    "lower gate.min_top1."
)


def _below_floor(report: Mapping[str, Any]) -> str | None:
    """Why PyTorch's own answers are below ``gate.min_top1``; ``None`` where they are not, or nothing is asked."""
    gate = report["recipe"]["gate"]
    accuracy = report.get("baseline", {}).get("accuracy")
    if gate.get("min_top1") is None or not accuracy:
        return None
    verdict, reason = judge_floor(accuracy, gate["min_top1"], gate["confidence"])
    allowed = {"pass"} if gate["inconclusive"] == "fail" else {"pass", "inconclusive"}
    return None if verdict in allowed else reason


def advise(report: Mapping[str, Any]) -> list[str]:
    """What may help required engines that were judged: the ways that their recipe has not tried yet."""
    if _below_floor(report):
        return [_MEND_NETWORK]
    undecided = any(v["required"] and v["verdict"] == "inconclusive" for v in report["variants"])
    about = "Inconclusive is no failure of an engine: docs/errors.md says what CI does with it."
    return [*([about] if undecided else []), *_advise_training(report)]


def _advise_training(report: Mapping[str, Any]) -> list[str]:
    """For INT8 engines that lost too much."""
    lost = [
        v
        for v in report["variants"]
        if v["precision"] == "int8" and v["verdict"] == "fail" and v["required"] and not v.get("qat")
    ]
    trainable = [v["name"] for v in lost if v["backend"] in {"tensorrt", "tensorrt-rtx"}]
    if not trainable:
        return []
    return [
        f"Quantization-aware training may mend {', '.join(trainable)}: set qat = {{epochs = 2}} (docs/qat.md)."
    ]
