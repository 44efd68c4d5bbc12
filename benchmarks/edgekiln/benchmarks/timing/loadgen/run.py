"""Lets LoadGen drive one engine of a bundle, or of a run, in a fresh process, and judges what came back.

This is the side that asks: the job and the frames go into a temporary folder, the logs and the answer come out of it.
``__main__`` is the other side.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load
from edgekiln.benchmarks.timing.loadgen.answer import read_answer
from edgekiln.benchmarks.timing.loadgen.pictures import read_frames
from edgekiln.benchmarks.timing.loadgen.rules import SCENARIOS, Scenario
from edgekiln.benchmarks.timing.loadgen.summary import parse_summary
from edgekiln.benchmarks.timing.loadgen.verdict import judge_run
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.processes import child_environment, module_command
from edgekiln.runtime.spec import Frames

__all__ = ["EngineFiles", "drive_engine", "run_loadgen"]


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """An engine that lies in no bundle yet: its files, the runtime's backend for them, CPU threads or ``None``."""

    name: str
    paths: Sequence[Path]
    backend: str
    threads: int | None


def run_loadgen(  # one argument for each option of the command
    bundle: Path,
    variant: str | None,
    scenario: Scenario,
    *,
    images: Path | None,
    threads: int | None = None,
    min_seconds: float = 10,
    expected_per_second: float | None = None,
) -> dict[str, Any]:
    """Let LoadGen drive one engine in a fresh process; JSON values, units in the keys.

    Args:
        bundle: its folder.
        variant: by name; ``None`` takes the preferred one.
        scenario: ``SingleStream``, one image after the other; ``Offline``, all at once.
        images: a folder of pictures, or an ``.npz`` with prepared ``frames``; at least 64, of which 1,024 are taken.
        threads: CPU threads; ``None`` leaves it to the library.
        min_seconds: 10 is for a quick look, MLPerf's own is 600.
        expected_per_second: samples that size the offline query; ``None`` measures it during the warm-up.

    Raises:
        MissingExtraError: LoadGen is not installed.
        UsageError: no pictures, too few, or no such variant.
        ImageError: a picture cannot be read.
    """
    if scenario not in SCENARIOS:
        raise UsageError(f"Unknown scenario {scenario!r}; known: {', '.join(SCENARIOS)}.")
    import_extra("mlperf_loadgen", "mlperf")
    opened = open_bundle(bundle)
    if variant is not None:
        opened.variant(variant)
    frames = read_frames(images, opened.contract)
    job = {
        "bundle": str(bundle),
        "variant": variant,
        "scenario": scenario,
        "threads": threads,
        "min_seconds": min_seconds,
        "expected_per_second": expected_per_second,
    }
    return {**_run_job(job, frames), "machine": describe_machine()}


def drive_engine(
    engine: EngineFiles, frames: Frames, scenario: Scenario, *, min_seconds: float = 10
) -> dict[str, Any]:
    """Let LoadGen drive one engine of a run on prepared frames uint8 (N, H, W, 3); JSON values as ``run_loadgen``'s.

    The machine is left out: the run's own report tells it.

    Raises:
        MissingExtraError: LoadGen is not installed.
    """
    import_extra("mlperf_loadgen", "mlperf")
    job = {
        "paths": [str(path) for path in engine.paths],
        "backend": engine.backend,
        "variant": engine.name,
        "scenario": scenario,
        "threads": engine.threads,
        "min_seconds": min_seconds,
        "expected_per_second": None,
    }
    return _run_job(job, frames)


def _run_job(job: Mapping[str, Any], frames: Frames) -> dict[str, Any]:
    foreign = measure_foreign_load()
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as name:
        folder = Path(name)
        np.save(folder / "frames.npy", frames)
        (folder / "job.json").write_text(json.dumps(job))
        _run_child(folder)
        answer = read_answer(folder)
        text = (folder / "mlperf_log_summary.txt").read_text()
    scenario, min_seconds = job["scenario"], job["min_seconds"]
    return {
        "tool": f"mlcommons-loadgen {version('mlcommons-loadgen')}",
        "scenario": scenario,
        "min_seconds": min_seconds,
        "library": len(frames),
        **judge_run(parse_summary(text), answer, scenario, min_seconds, len(frames)),
        "foreign_load_cores": round(foreign, 2),
        "summary": text,
    }


def _run_child(folder: Path) -> None:
    """Run ``__main__`` on ``folder``; Ctrl-C here ends it."""
    environment = child_environment(without=["OMP_WAIT_POLICY"])  # as in worker_process.open_worker
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            module_command("edgekiln.benchmarks.timing.loadgen", str(folder)),
            stdin=subprocess.PIPE,  # the child ends when it closes, also where this process is killed
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child
        )
        try:
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
