"""Judges and times every variant of a bundle on the machine that will run it. The result is a derived bundle.

Engines that have to be built here are built as ``edgekiln build`` does (``target.py``); each variant that runs is
judged on the parent's test pictures (``judging.py``) and timed (``timing.py``); ``report.py`` puts it together.

Work lies beside the place of the derived bundle until it is whole. Finished parts of the timing stay there when it is
interrupted, and the same command goes on with them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.pipeline.device.canary_records import CanaryReference, read_reference
from edgekiln.pipeline.device.derived_bundle import check_place, publish, write_derived
from edgekiln.pipeline.device.judging import JudgedBy, judge_engines
from edgekiln.pipeline.device.pictures import KnownPictures, find_pictures
from edgekiln.pipeline.device.report import add_timings, device_report
from edgekiln.pipeline.device.request import TargetRequest, graph_facts, read_gate
from edgekiln.pipeline.device.target import describe_unbuilt, make_variant
from edgekiln.pipeline.device.timing import BaselineMaker, TimingSetup, read_plan, time_engines
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.bundles.beside import remove
from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.bundles.machine import read_emulation
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.cuda.driver import probe_driver
from edgekiln.runtime.errors import EngineError, EnvironmentProblem, GateError, ResourceError, UsageError

__all__ = ["BenchRequest", "bench_on_device", "explain_full"]

_MAX_STEM_BYTES = 200
_NO_CHECKPOINT = "no checkpoint was given, and the bundle holds none"


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure where.

    Attributes:
        data: folder with (some of) the parent's test pictures, in any layout.
        timed: ``False`` builds and judges only.
        plan: processes, blocks and seconds; ``None`` is what the parent's recipe says.
        find_baseline: makes PyTorch's contender for an opened parent, or says why there is none.
    """

    bundle: Path
    out: Path
    data: Path
    timed: bool = True
    plan: BenchmarkPlan | None = None
    find_baseline: Callable[[Bundle], BaselineMaker | str] = lambda parent: _NO_CHECKPOINT


def bench_on_device(request: BenchRequest, progress: Progress) -> dict[str, Any]:
    """Build, judge and time; write the derived bundle to ``request.out``. Returns its report.

    Raises:
        UsageError: ``out`` is in use, or lies inside the bundle; there is no such folder of pictures.
        BundleError: the parent was altered, or its manifest makes no sense.
        DataError: none of the pictures is one of the parent's test pictures.
        EnvironmentProblem: no variant runs here.
        ResourceError: the disk is full.
    """
    out = check_place(request.out, request.bundle)
    parent = open_bundle(request.bundle)
    plan = request.plan or read_plan(parent)
    baseline = request.find_baseline(parent) if request.timed else ""
    with _work_folder(out, progress) as work:
        pictures = find_pictures(parent, request.data, progress, work)
        engines = work / "bundle"
        engines.mkdir()
        rows = []
        for variant in parent.variants:
            row = _make_row(parent, variant, request, pictures, engines, progress)
            row["figures"] |= _describe_files(row, engines)
            rows.append(row)
        if not any(row.get("logits") is not None for row in rows):
            raise _nothing_ran(parent, rows)
        benchmark, problem = None, None
        if request.timed and (kernel := read_emulation()):
            problem = f"Nothing was timed: this processor is emulated on {kernel}, and times would be the emulator's."
            progress.message(problem)
        elif request.timed:
            setup = TimingSetup(parent, pictures, engines, work, plan, baseline)
            try:
                benchmark = time_engines(rows, setup, progress)
            except GateError as error:
                problem = str(error)
                progress.message(problem)
        report = device_report(parent, rows, pictures, benchmark, problem)
        add_timings(rows, report)
        write_derived(parent, rows, engines, report=report)
        publish(engines, out)
    return report


def _make_row(
    parent: Bundle,
    variant: VariantRecord,
    request: BenchRequest,
    pictures: KnownPictures,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The variant's entry of the manifest as it is on this machine, with its ``flips`` and, if it ran, ``logits``."""
    for name in {*variant.files, variant.source, variant.fallback_source} - {None}:
        (folder / str(name)).write_bytes(parent.read(str(name)))
    if variant.source is not None and not _opens_here(variant, folder):
        target = TargetRequest(request.bundle, request.out, request.data)
        if problem := probe_driver().problem:
            return describe_unbuilt(variant, target, f"not built and not run here, because: {problem}")
        try:
            return make_variant(parent, variant, target, pictures, folder, progress)
        except (EnvironmentProblem, ResourceError) as error:
            progress.message(f"{variant.name} could not be built here: {error}")
            return describe_unbuilt(variant, target, f"could not be built here: {error}")
    return _judge_files(parent, variant, pictures, folder, progress)


def _describe_files(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Bytes of the largest file that runs, and sha256 of these and of the graphs."""
    names = {name: hash_file(folder / name) for name in row["files"]}
    graphs = {row["source"], row["fallback_source"]} - {None, *names}
    digests = {name: digest for name, (digest, _) in names.items()}
    digests |= {name: hash_file(folder / name)[0] for name in sorted(graphs)}
    return {"size": max((size for _, size in names.values()), default=None), "sha256": digests}


def _opens_here(variant: VariantRecord, folder: Path) -> bool:
    """Whether engines that an earlier build left are of this machine's library and GPU."""
    if not variant.files:
        return False
    try:
        open_session(variant.backend, [(folder / name).read_bytes() for name in variant.files]).close()
    except (EnvironmentProblem, ResourceError, EngineError):
        return False
    return True


def _judge_files(
    parent: Bundle, variant: VariantRecord, pictures: KnownPictures, folder: Path, progress: Progress
) -> dict[str, Any]:
    """The row of a variant whose files run as they are."""
    facts, logits = graph_facts(variant), None
    judged: dict[str, Any] = {"verdict": "not-run", "reason": variant.reason}  # it was never made
    if variant.files:
        paths = [folder / name for name in variant.files]
        reference = CanaryReference(read_reference(parent), variant.precision)
        judged_by = JudgedBy(
            read_gate(parent, variant.name), reference, variant.canaries, facts.get("failure")
        )
        with progress.stage(variant.name):
            judged, logits = judge_engines(variant.backend, paths, pictures, judged_by, progress)
        progress.message(f"{variant.name}: {judged['verdict']}. {judged['reason']}")
    apart = {"verdict", "reason", "flips", "canaries"}
    figures = {key: value for key, value in judged.items() if key not in apart}
    return {
        "name": variant.name,
        "backend": variant.backend,
        "precision": variant.precision.value,
        "required": variant.required,
        "source": variant.source,
        "fallback_source": variant.fallback_source,
        "file": variant.file,
        "files": list(variant.files),
        "verdict": judged["verdict"],
        "reason": judged["reason"],
        "canaries": judged.get("canaries", variant.canaries and variant.canaries.to_dict()),
        "figures": {**facts, **figures},
        "flips": judged.get("flips", []),
        "logits": logits,
    }


def _nothing_ran(parent: Bundle, rows: list[dict[str, Any]]) -> EnvironmentProblem:
    reasons = "; ".join(f"{row['name']}: {row['reason'].rstrip('.')}" for row in rows)
    return EnvironmentProblem(
        f"No variant of {parent.path} runs here: {reasons}.",
        hint="`edgekiln doctor BUNDLE` tells what each engine lacks.",
        path=parent.path,
    )


@contextlib.contextmanager
def _work_folder(out: Path, progress: Progress) -> Iterator[Path]:
    """A folder beside ``out`` that the same command finds again; finished timings stay in it where that fails."""
    stem = os.fsdecode(os.fsencode(out.name)[:_MAX_STEM_BYTES])
    work = out.with_name(f".{stem}.edgekiln-bench")
    with explain_full(out):
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(
                f"Another bench is writing {out}.", hint="Wait for it, or give --out another place.", path=out
            ) from error
        try:
            remove(work / "bundle")
            yield work
            remove(work)
        finally:
            if work.exists():
                _keep_timings(work, progress)
            os.close(descriptor)


def _keep_timings(work: Path, progress: Progress) -> None:
    """Keep what can be gone on with, and nothing else."""
    if not list(work.glob("bench-*.json")):
        remove(work)
        return
    for entry in work.iterdir():
        if not entry.name.startswith("bench-") and entry.name != ".lock":
            remove(entry)
    progress.message(f"what was timed so far is kept in {work}: the same command goes on with it")


@contextlib.contextmanager
def explain_full(out: Path) -> Iterator[None]:
    """Raise ResourceError where the disk of ``out`` is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise ResourceError(
            f"No space is left for {error.filename or out.parent}: {error.strerror}.",
            hint="Free some, or give --out a place on another disk. The same command goes on with what was timed.",
            path=out,
        ) from error
