"""MLPerf's scenarios and the lengths that its rules ask of a run. What LoadGen said of a run is not known here."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = [
    "COMPLIANT_LIBRARY",
    "COMPLIANT_OFFLINE_SAMPLES",
    "COMPLIANT_SECONDS",
    "SCENARIOS",
    "Scenario",
    "find_shortfalls",
]

Scenario: TypeAlias = Literal["SingleStream", "Offline"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

COMPLIANT_SECONDS = 600  # these three: MLPerf inference rules, inference_rules.adoc
COMPLIANT_OFFLINE_SAMPLES = 24_576
COMPLIANT_LIBRARY = 1024


def find_shortfalls(scenario: Scenario, min_seconds: float, samples: int, library: int) -> list[str]:
    """What separates the run from the lengths that MLPerf's rules ask for."""
    found = []
    if min_seconds < COMPLIANT_SECONDS:
        found.append(f"{min_seconds:g} s, MLPerf asks for {COMPLIANT_SECONDS}")
    if scenario == "Offline" and samples < COMPLIANT_OFFLINE_SAMPLES:
        found.append(f"{samples} samples, MLPerf asks for {COMPLIANT_OFFLINE_SAMPLES}")
    if library < COMPLIANT_LIBRARY:
        found.append(f"{library} different images, MLPerf asks for {COMPLIANT_LIBRARY}")
    return found
