"""Whether all that a report's recipe requires may ship, and what may help where it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekiln.runtime.errors import GateError

__all__ = ["advise", "check_gate"]


def check_gate(report: Mapping[str, Any]) -> None:
    """Raise GateError when a required variant did not pass, as the recipe's gate says.

    Raises:
        GateError: names the variants and why.
    """
    undecided_fails = report["recipe"]["gate"]["inconclusive"] == "fail"
    failed = [
        f"{v['name']}: {v['verdict']} ({v['reason']})"
        for v in report["variants"]
        if v["required"]
        and (v["verdict"] in {"fail", "not-run"} or (v["verdict"] == "inconclusive" and undecided_fails))
    ]
    if failed:
        raise GateError(
            f"{len(failed)} required variant{'s' if len(failed) > 1 else ''} did not pass: {'; '.join(failed)}.",
            hint=" ".join(
                ["The bundle holds everything for a look; only what passed is deployable.", *advise(report)]
            ),
        )


def advise(report: Mapping[str, Any]) -> list[str]:
    """What may help INT8 engines that were judged and lost too much: the ways that their recipe has not tried yet."""
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
