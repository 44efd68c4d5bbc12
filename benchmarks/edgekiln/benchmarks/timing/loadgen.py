"""MLPerf's own load generator drives an engine of a bundle, or of a run: a second opinion on our timing.

LoadGen is C++ with its own clock, its own order of samples and its own rules of what counts. It runs in a fresh
process, writes its logs to a temporary folder, and calls ``Session.run`` through a system under test that also times
each of these calls itself (boundary ``call``), so that both stopwatches are compared on the very same work. Its own
also holds the callbacks into Python and back, some tens of microseconds: on a network far below a millisecond the two
differ by that, on one of several milliseconds by a hundredth or so (1.0 and 1.5 % measured on a fully loaded
machine).

What this is not: a submission to MLPerf. That also needs the seeds of its round, an accuracy run on the same system
and a review; ``compliant`` speaks of durations and counts alone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import (
    DataError,
    DeviceError,
    EdgekilnError,
    EngineError,
    EnvironmentProblem,
    MissingExtraError,
    NonFiniteError,
    UsageError,
)
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.serving.loading import load
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames

__all__ = [
    "MIN_LIBRARY",
    "SCENARIOS",
    "EngineFiles",
    "Scenario",
    "Summary",
    "choose_frames",
    "drive_engine",
    "parse_summary",
    "run_loadgen",
]

Scenario = Literal["SingleStream", "Offline"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

COMPLIANT_SECONDS = 600  # these three: MLPerf inference rules, inference_rules.adoc
COMPLIANT_OFFLINE_SAMPLES = 24_576
COMPLIANT_LIBRARY = 1024
MIN_LIBRARY = 64
"""Fewer real pictures than this could stay in a cache and would not stand for varying input."""

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_OFFLINE_BATCH = 64  # where an engine names no largest batch of its own
_WARM_UP_SECONDS, _WARM_UP_CALLS = 0.5, 3
# An offline query has its size before it starts. LoadGen itself adds a tenth; where the engine runs still faster than
# in the warm-up, the query ends too early and the run is invalid.
_SLACK = 1.25
_SEEDS = {
    "qsl_rng_seed": 11,
    "sample_index_rng_seed": 12,
    "schedule_rng_seed": 13,
}  # any, but always the same
_ERRORS = {
    kind.code: kind
    for kind in (DeviceError, EngineError, EnvironmentProblem, MissingExtraError, NonFiniteError, UsageError)
}


@dataclass(frozen=True, slots=True)
class Summary:
    """What ``mlperf_log_summary.txt`` says; milliseconds.

    Attributes:
        result: ``VALID`` or ``INVALID``.
        reasons: what was not satisfied and what LoadGen recommends.
        percentiles_ms: 50, 90 and 99; offline they count from the start of the one query.
        early_stopping_p90_ms: the figure that MLPerf publishes for SingleStream: p90 with its own error on top.
        samples_per_second: with LoadGen's own overhead.
    """

    result: str
    reasons: tuple[str, ...]
    percentiles_ms: Mapping[str, float]
    early_stopping_p90_ms: float | None
    samples_per_second: float

    @property
    def valid(self) -> bool:
        """Whether LoadGen accepts its own run."""
        return self.result == "VALID"


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """An engine that lies in no bundle yet: its files, the runtime's backend for them, CPU threads or ``None``."""

    name: str
    paths: Sequence[Path]
    backend: str
    threads: int | None


def parse_summary(text: str) -> Summary:
    """Read LoadGen's summary; raises EngineError where it lacks what every release has written."""
    result = _find(r"Result is : (\w+)", text)
    rate = _find(r"(?:Samples per second|QPS w/ loadgen overhead)\s*: ([\d.e+]+)", text)
    percentiles = {
        q: _find(rf"^{q}\.00 percentile latency \(ns\)\s*: (\d+)", text) for q in ("50", "90", "99")
    }
    if result is None or rate is None or None in percentiles.values():
        raise EngineError(f"LoadGen's summary cannot be read: {text[:200]!r}.")
    early = _find(r"Early stopping 90\.0th percentile estimate: (\d+)", text)
    return Summary(
        result=result,
        reasons=tuple(_parse_reasons(text)),
        percentiles_ms={f"p{q}_ms": float(value or 0) / 1e6 for q, value in percentiles.items()},
        early_stopping_p90_ms=None if early is None else float(early) / 1e6,
        samples_per_second=float(rate),
    )


def _find(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def _parse_reasons(text: str) -> Iterator[str]:
    for name in re.findall(r"^\s+(.+?)\s*: NO$", text, re.MULTILINE):
        yield f"{name}: no"
    advice = re.search(r"^Recommendations:\n((?: .*\n)+)", text, re.MULTILINE)
    for item in re.split(r"^ \* ", advice[1], flags=re.MULTILINE)[1:] if advice else ():
        yield " ".join(item.split())


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
    frames = _read_frames(images, opened.contract)
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
        answer = _read_answer(folder)
        text = (folder / "mlperf_log_summary.txt").read_text()
    scenario, min_seconds = job["scenario"], job["min_seconds"]
    return {
        "tool": f"mlcommons-loadgen {version('mlcommons-loadgen')}",
        "scenario": scenario,
        "min_seconds": min_seconds,
        "library": len(frames),
        **_judge(parse_summary(text), answer, scenario, min_seconds, len(frames)),
        "foreign_load_cores": round(foreign, 2),
        "summary": text,
    }


def _judge(
    summary: Summary, answer: dict[str, Any], scenario: Scenario, min_seconds: float, library: int
) -> dict[str, Any]:
    """Both stopwatches side by side, and what the run may be called."""
    ours = answer["ours"]
    shortfalls = _find_shortfalls(scenario, min_seconds, ours["samples"], library)
    theirs = {
        **summary.percentiles_ms,
        "early_stopping_p90_ms": summary.early_stopping_p90_ms,
        "samples_per_second": summary.samples_per_second,
    }
    compared = ("samples_per_second",) if scenario == "Offline" else ("p50", "p90")
    ratios = {
        f"ours_over_loadgen_{key}": _ratio(ours, theirs, key if key in ours else f"{key}_ms")
        for key in compared
    }
    return {
        **answer,
        "result": summary.result,
        "valid": summary.valid,
        "reasons": list(summary.reasons),
        "compliant": summary.valid and not shortfalls,
        "shortfalls": shortfalls,
        "loadgen": theirs,
        **ratios,
    }


def _ratio(ours: Mapping[str, float], theirs: Mapping[str, float | None], key: str) -> float:
    return round(ours[key] / (theirs[key] or float("nan")), 4)


def _find_shortfalls(scenario: Scenario, min_seconds: float, samples: int, library: int) -> list[str]:
    """What separates the run from the lengths that MLPerf's rules ask for."""
    found = []
    if min_seconds < COMPLIANT_SECONDS:
        found.append(f"{min_seconds:g} s, MLPerf asks for {COMPLIANT_SECONDS}")
    if scenario == "Offline" and samples < COMPLIANT_OFFLINE_SAMPLES:
        found.append(f"{samples} samples, MLPerf asks for {COMPLIANT_OFFLINE_SAMPLES}")
    if library < COMPLIANT_LIBRARY:
        found.append(f"{library} different images, MLPerf asks for {COMPLIANT_LIBRARY}")
    return found


def _read_frames(images: Path | None, contract: Contract) -> Frames:
    """uint8 (N, H, W, 3) of real pictures, prepared as the product prepares them."""
    if images is None:
        raise UsageError(
            "LoadGen needs real pictures, and a bundle holds none.", hint="Name their folder with --images."
        )
    if images.suffix == ".npz" and images.is_file():
        with np.load(images, allow_pickle=False) as arrays:
            frames: Frames = arrays["frames"]
        if frames.dtype != np.uint8 or frames.shape[1:] != (contract.height, contract.width, 3):
            raise DataError(
                f"{images} holds {frames.dtype} {frames.shape}, "
                f"wanted uint8 (N, {contract.height}, {contract.width}, 3).",
                path=images,
            )
        _check_count(len(frames), images)
        return frames[choose_frames(len(frames))]
    if not images.is_dir():
        raise DataError(f"There is no folder {images}.", path=images)
    paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    _check_count(len(paths), images)
    return np.stack([prepare(paths[i], contract) for i in choose_frames(len(paths))])


def _check_count(count: int, images: Path) -> None:
    if count < MIN_LIBRARY:
        raise DataError(
            f"{images} holds {count} pictures, at least {MIN_LIBRARY} are needed.",
            hint="Few pictures stay in caches, and a speed on them would not hold for others.",
            path=images,
        )


def choose_frames(count: int) -> NDArray[np.int64]:
    """Up to 1,024 indices, evenly spaced, so that pictures sorted by class give all classes."""
    return np.linspace(0, count - 1, min(count, COMPLIANT_LIBRARY)).round().astype(np.int64)


def _run_child(folder: Path) -> None:
    """Run this module on ``folder``; Ctrl-C here ends it."""
    environment = {
        k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"
    }  # as in contender.open_worker
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekiln.benchmarks.timing.loadgen", str(folder)],
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


def _read_answer(folder: Path) -> dict[str, Any]:
    path = folder / "answer.json"
    if not path.exists():
        tail = " ".join((folder / "output.txt").read_text(errors="replace").split())[-300:]
        raise EngineError(f"LoadGen's process ended without an answer: {tail}")
    answer: dict[str, Any] = json.loads(path.read_text())
    if "error" in answer:
        error = answer["error"]
        raise _ERRORS.get(error["code"], EngineError)(error["message"], hint=error["hint"])
    return answer


# -- what follows runs in the child


class _System:
    """The system under test: LoadGen's queries in, answers out, each call of ``Session.run`` timed here too."""

    def __init__(self, loadgen: Any, session: Session, frames: Frames, batch: int, folder: Path) -> None:
        self._loadgen, self._session, self._all, self._folder = loadgen, session, frames, folder
        self._loaded: dict[int, Frames] = {}
        self._batch = batch
        self.times_ns, self.samples = array("q"), 0

    def load(self, indices: Sequence[int]) -> None:
        """Into memory, before LoadGen's clock starts; separate arrays, as slicing is not what is timed."""
        self._loaded = {i: np.ascontiguousarray(self._all[i : i + 1]) for i in indices}

    def unload(self, indices: Sequence[int]) -> None:
        """Called after the last answer."""
        self._loaded = {}

    def issue(self, queries: Sequence[Any]) -> None:
        """Answer all samples of a query, in batches."""
        try:
            for start in range(0, len(queries), self._batch):
                self._answer(queries[start : start + self._batch])
        except Exception as error:
            # An exception cannot pass through LoadGen's threads, and it would wait for the answers forever.
            _write_error(self._folder, error)
            os._exit(1)

    def flush(self) -> None:
        """Nothing is held back."""

    def _answer(self, queries: Sequence[Any]) -> None:
        parts = [self._loaded[query.index] for query in queries]
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
        start = perf_counter_ns()
        logits = self._session.run(frames)
        self.times_ns.append(perf_counter_ns() - start)
        self.samples += len(queries)
        # LoadGen copies the bytes of an answer, or drops them, before this returns: ``logits`` lives long enough.
        response = self._loadgen.QuerySampleResponse
        address, size = logits.ctypes.data, logits.strides[0]
        self._loadgen.QuerySamplesComplete(
            [response(query.id, address + i * size, size) for i, query in enumerate(queries)]
        )


def _settings(loadgen: Any, job: Mapping[str, Any], per_second: float) -> Any:
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


def _log_settings(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    settings = loadgen.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


def _warm_up(session: Session, frames: Frames, batch: int) -> float:
    """Samples per second of the last calls, which find everything warm."""
    times: list[float] = []
    end = perf_counter() + _WARM_UP_SECONDS
    while len(times) < _WARM_UP_CALLS or perf_counter() < end:
        first = len(times) * batch % max(1, len(frames) - batch)
        start = perf_counter()
        session.run(np.ascontiguousarray(frames[first : first + batch]))
        times.append(perf_counter() - start)
    return min(batch, len(frames)) / float(np.median(times[len(times) // 2 :]))


def _drive(folder: Path) -> dict[str, Any]:
    """Run the test that ``job.json`` describes; what this side saw of it."""
    loadgen = import_extra("mlperf_loadgen", "mlperf")
    job = json.loads((folder / "job.json").read_text())
    frames: Frames = np.load(folder / "frames.npy", mmap_mode="r", allow_pickle=False)
    with _open(job) as (variant, session):
        largest = getattr(session, "buckets", (_OFFLINE_BATCH,))[-1]
        batch = largest if job["scenario"] == "Offline" else 1
        settings = _settings(loadgen, job, _warm_up(session, frames, batch))
        system = _System(loadgen, session, frames, batch, folder)
        sut = loadgen.ConstructSUT(system.issue, system.flush)
        library = loadgen.ConstructQSL(len(frames), len(frames), system.load, system.unload)
        gc.disable()
        try:
            # Without a name of its own LoadGen would read an audit.config of the folder we are in.
            audit = str(folder / "audit.config")
            loadgen.StartTestWithLogSettings(sut, library, settings, _log_settings(loadgen, folder), audit)
        finally:
            gc.enable()
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(sut)
        return {
            "variant": variant,
            "backend": session.backend,
            "device": session.device,
            "threads": session.threads,
            "batch": batch,
            "ours": _describe_times(system),
        }


@contextlib.contextmanager
def _open(job: Mapping[str, Any]) -> Iterator[tuple[str, Session]]:
    """The engine that the job names, of a bundle or by its files, with its variant's name."""
    if "bundle" in job:
        with load(job["bundle"], variant=job["variant"], threads=job["threads"]) as classifier:
            yield classifier.variant.name, classifier.session
        return
    files = [Path(path).read_bytes() for path in job["paths"]]
    with contextlib.closing(open_session(job["backend"], files, threads=job["threads"])) as session:
        yield job["variant"], session


def _describe_times(system: _System) -> dict[str, Any]:
    times_ms = np.frombuffer(system.times_ns, np.int64) / 1e6
    # LoadGen takes a value that occurred, as does this; between neighbours of few calls lies more than 5 %.
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99], method="higher").tolist()
    return {
        "calls": len(times_ms),
        "samples": system.samples,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "samples_per_second": 1000 * system.samples / float(times_ms.sum()),
    }


def _write_answer(folder: Path, answer: Mapping[str, Any]) -> None:
    (folder / "answer.json").write_text(json.dumps(answer))


def _write_error(folder: Path, error: Exception) -> None:
    if isinstance(error, EdgekilnError):
        told = {"code": error.code, "message": error.message, "hint": error.hint}
    else:
        told = {"code": "engine", "message": f"{type(error).__name__}: {error}", "hint": None}
    _write_answer(folder, {"error": told})


def _leave_with_parent() -> None:
    """Wait in a read that ends when the parent is gone, however it went; uses no CPU."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Entry point: ``python -m`` this module, with a folder that holds ``job.json`` and ``frames.npy``."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        answer = _drive(folder)
    except EdgekilnError as error:
        _write_error(folder, error)
        return
    _write_answer(folder, answer)


if __name__ == "__main__":
    main()
    # A daemon thread blocked in a read of stdin holds its lock, which a regular end would wait for.
    sys.stdout.flush()
    os._exit(0)
