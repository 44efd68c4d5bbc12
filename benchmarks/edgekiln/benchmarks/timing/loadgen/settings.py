"""LoadGen's settings for a job: scenario, duration, seeds, how many samples to expect, where its logs go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.timing.loadgen.rules import COMPLIANT_OFFLINE_SAMPLES, COMPLIANT_SECONDS

__all__ = ["make_log_settings", "make_settings"]

# An offline query has its size before it starts. LoadGen itself adds a tenth; where the engine runs still faster than
# in the warm-up, the query ends too early and the run is invalid.
_SLACK = 1.25
_SEEDS = {
    "qsl_rng_seed": 11,
    "sample_index_rng_seed": 12,
    "schedule_rng_seed": 13,
}  # any, but always the same


def make_settings(loadgen: Any, job: Mapping[str, Any], per_second: float) -> Any:
    """``TestSettings`` for a job; ``per_second`` samples were seen in the warm-up."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, job["scenario"])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * job["min_seconds"])
    for name, seed in _SEEDS.items():
        setattr(settings, name, seed)
    if job["scenario"] == "SingleStream":
        settings.single_stream_expected_latency_ns = int(1e9 / (_SLACK * per_second))
    else:
        settings.offline_expected_qps = job["expected_per_second"] or _SLACK * per_second
        compliant = job["min_seconds"] >= COMPLIANT_SECONDS
        settings.min_query_count = COMPLIANT_OFFLINE_SAMPLES if compliant else 1
    return settings


def make_log_settings(loadgen: Any, folder: Path) -> Any:
    """``LogSettings`` that leave LoadGen's logs in ``folder`` and stdout alone."""
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    settings = loadgen.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings
