"""The process in which LoadGen drives one engine: ``job.json`` and ``frames.npy`` in, ``answer.json`` and logs out."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgekiln.benchmarks.timing.loadgen.answer import write_answer, write_error
from edgekiln.benchmarks.timing.loadgen.settings import make_log_settings, make_settings
from edgekiln.benchmarks.timing.loadgen.system import SystemUnderTest
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import EdgekilnError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.serving.loading import load
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames

_OFFLINE_BATCH = 64  # where an engine names no largest batch of its own
_WARM_UP_SECONDS, _WARM_UP_CALLS = 0.5, 3


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
        settings = make_settings(loadgen, job, _warm_up(session, frames, batch))
        system = SystemUnderTest(loadgen, session, frames, batch, folder)
        sut = loadgen.ConstructSUT(system.issue, system.flush)
        library = loadgen.ConstructQSL(len(frames), len(frames), system.load, system.unload)
        gc.disable()
        try:
            # Without a name of its own LoadGen would read an audit.config of the folder we are in.
            audit = str(folder / "audit.config")
            loadgen.StartTestWithLogSettings(
                sut, library, settings, make_log_settings(loadgen, folder), audit
            )
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
            "ours": system.describe_times(),
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
        write_error(folder, error)
        return
    write_answer(folder, answer)


if __name__ == "__main__":
    main()
    # A daemon thread blocked in a read of stdin holds its lock, which a regular end would wait for.
    sys.stdout.flush()
    os._exit(0)
