"""Kills `edgekiln run` at random moments, starts it again, and looks at what was there: a study of interruptions.

    PYTHONPATH=tests python -m kill_study --kills 50

A run is killed in a stage, a random share of that stage's usual time after its first line; then the same command is
started, and killed in the next stage, and so on until one start is left alone and finishes. After every kill each file
under a final name must have the digest that stands beside it. After the last start weights, graphs and logits must be
those of a run that nobody disturbed, byte for byte, and nothing temporary may be left. Moments come from a seed; what
they meet depends on the machine's speed, so the result counts the stages that were really hit.

SIGKILL ends a process and keeps what it wrote: a loss of power, which may also take that, is not studied.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["KillStudy", "Running", "StudyResult", "find_leftovers", "find_partial", "hash_results"]

RECIPE = """
name = "study"
[data]
source = "digits"
size = 16
train_share = 0.2
[backbone]
model = "edgekiln/tiny-cnn"
weights = "none"
[finetune]
epochs = 3
threads = 1
checkpoint_seconds = 0.2
[[variants]]
name = "fp32"
precision = "fp32"
[[variants]]
name = "int8"
precision = "int8"
calibration_images = 64
[gate]
max_drop = 0.5
inconclusive = "warn"
[benchmark]
processes = 2
blocks = 2
block_seconds = 0.01
side_blocks = 1
images = 4
peers = []
"""

_STAGE_BEGINS = re.compile(r"^\[\d+/\d+\] (\S+) \.\.\.$", re.MULTILINE)
_STAGE_ENDS = re.compile(r"^\[\d+/\d+\] (\S+): ([\d.]+) s$", re.MULTILINE)
_BEFORE, _AFTER = "(before the first stage)", "(after the last stage)"
_RESULTS = ("checkpoint.safetensors", "model.onnx", "fallback.onnx", "logits.npz", "simulated.npz")
_TEMPORARY = (".partial-", ".done-", ".old-", ".new-")
_POLL_SECONDS = 0.002
_TRIES = 4  # each aims at half the time of the last one


class Running(Protocol):
    """A command that was started in a process group of its own."""

    log: Path

    @property
    def pid(self) -> int:
        """Its number, which is also its group's."""

    def poll(self) -> int | None:
        """Its exit status once it ended; negative is the signal that ended it."""


@dataclass
class StudyResult:
    """What became of all kills.

    Attributes:
        hits: kills by the stage that was at work.
        problems: everything that should not be; empty is success.
        finished: how many runs went on to their end after their kills.
    """

    hits: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    finished: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "kills": self.hits.total(),
            "hits": dict(sorted(self.hits.items())),
            "finished": self.finished,
            "problems": self.problems,
            "ok": not self.problems,
        }


# --------------------------------------------------------------------------------------------------------------
# what lies on disk


def find_partial(root: Path) -> Iterator[str]:
    """What stands under a final name in ``RUNS/NAME`` and is not whole: a sentence for each."""
    for folder in sorted(root.glob("stages/*/[!.]*")):
        try:
            record = json.loads((folder / "stage.json").read_text("utf-8"))
            there = {entry.name for entry in (folder / "out").iterdir()}
            digests = {name: hash_file(folder / "out" / name)[0] for name in there}
        except (OSError, ValueError, EdgekilnError) as error:
            yield f"{folder.relative_to(root)} is not whole: {error}"
            continue
        if digests != {name: entry["sha256"] for name, entry in record["files"].items()}:
            yield f"{folder.relative_to(root)} does not hold what its record says"
    bundle = root / "bundle"
    if bundle.exists():
        try:
            open_bundle(bundle)  # hashes every file
        except EdgekilnError as error:
            yield f"the bundle is not whole: {error}"


def find_leftovers(root: Path) -> list[str]:
    """Temporary files and folders in ``RUNS/NAME``."""
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*"))
        if path.name.startswith(_TEMPORARY) or path.suffix == ".part"
    ]


def hash_results(root: Path) -> dict[str, str]:
    """sha256 of weights, graphs with their scales, and logits, by stage and name."""
    found = {}
    for path in sorted(root.glob("stages/*/[!.]*/out/*")):
        if path.name in _RESULTS:
            found[f"{path.parents[2].name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# --------------------------------------------------------------------------------------------------------------
# the study


class KillStudy:
    """Chains of kills over one recipe.

    Args:
        start: starts the command whose runs are killed; always the same one.
        root: ``RUNS/NAME`` of that command, which is emptied before each chain.
        seed: of the moments.
        message: told of each kill.
    """

    def __init__(
        self,
        start: Callable[[], Running],
        root: Path,
        *,
        seed: int = 0,
        message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._start, self._root, self._message = start, root, message
        self._random = random.Random(seed)
        self.result = StudyResult()
        self.seconds: Mapping[str, float] = {}
        self._wanted: Mapping[str, str] = {}
        self._late: Counter[str] = Counter()

    def run_undisturbed(self) -> None:
        """Learn how long each stage takes, and what comes out."""
        shutil.rmtree(self._root, ignore_errors=True)
        running = self._start()
        while running.poll() is None:
            time.sleep(_POLL_SECONDS)
        log = running.log.read_text("utf-8")
        if running.poll() != 0:
            raise RuntimeError(f"The undisturbed run ended with {running.poll()}: {log}")
        self.seconds = {name: float(seconds) for name, seconds in _STAGE_ENDS.findall(log)}
        self._wanted = hash_results(self._root)

    def run_chain(self, kills: int | None = None) -> None:
        """From an empty folder: one kill in each stage (or in the first ``kills`` of them), then a start to the end."""
        shutil.rmtree(self._root, ignore_errors=True)
        for stage in list(self.seconds)[:kills]:
            for _ in range(_TRIES):
                if self._kill_in(stage):
                    break
                # The kill came after the stage's end. Without its result the next start does the stage again.
                shutil.rmtree(self._root / "stages" / stage, ignore_errors=True)
        self._finish()

    def _kill_in(self, stage: str) -> bool:
        """Start, and kill while ``stage`` is at work; False where it had ended already."""
        known = len(self.result.problems)
        running = self._start()
        while (begun := _begun(running)) != stage and running.poll() is None:
            if begun is not None and self._is_later(begun, stage):
                break  # this stage had been finished before its kill came
            time.sleep(_POLL_SECONDS)
        # Reports of time are rounded: a stage of 0.0 s lasts some milliseconds. Where kills came too late, since the
        # machine was busier when the time was taken, the next ones come earlier.
        usual = max(self.seconds[stage], 0.05) * 0.5 ** self._late[stage]
        time.sleep(self._random.uniform(0, usual))
        hit = _begun(running)
        self._late[stage] += hit != stage
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        while (code := running.poll()) is None:
            time.sleep(_POLL_SECONDS)
        if code == -signal.SIGKILL:
            self.result.hits[hit or _BEFORE] += 1
            self._message(f"killed in {hit or _BEFORE}, aimed at {stage}")
        elif code:
            self.result.problems.append(
                f"aimed at {stage}: ended with {code}: {running.log.read_text('utf-8')}"
            )
        self.result.problems += [f"killed in {hit}: {text}" for text in find_partial(self._root)]
        for problem in self.result.problems[known:]:
            self._message(problem)
        return hit == stage or (hit is not None and self._is_later(stage, hit))

    def _is_later(self, begun: str, stage: str) -> bool:
        order = list(self.seconds)
        return begun in order and order.index(begun) > order.index(stage)

    def _finish(self) -> None:
        running = self._start()
        while running.poll() is None:
            time.sleep(_POLL_SECONDS)
        if running.poll() != 0:
            text = running.log.read_text("utf-8")
            self.result.problems.append(f"the last start ended with {running.poll()}: {text}")
            return
        self.result.finished += 1
        self.result.problems += find_partial(self._root)
        self.result.problems += [f"left over: {name}" for name in find_leftovers(self._root)]
        found = hash_results(self._root)
        for name in sorted(set(found) | set(self._wanted)):
            if found.get(name) != self._wanted.get(name):
                self.result.problems.append(f"{name} is not that of the undisturbed run")


def _begun(running: Running) -> str | None:
    """The stage that began last; ``None`` before the first."""
    log = running.log.read_text("utf-8")
    begun = _STAGE_BEGINS.findall(log)
    if not begun:
        return None
    return _AFTER if begun[-1] == "bundle" and "bundle" in dict(_STAGE_ENDS.findall(log)) else str(begun[-1])


@dataclass
class _Process:
    """``edgekiln run`` in a process group of its own; see ``Running``."""

    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()


def _starter(folder: Path) -> Callable[[], _Process]:
    command = [sys.executable, "-c", "from edgekiln.pipeline.cli import main; main()", "run"]
    command += [str(folder / "study.toml"), "--runs", str(folder / "runs")]

    def start() -> _Process:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        return _Process(folder / "log", process)

    return start


def main(arguments: list[str] | None = None) -> int:
    """Kill and count; prints one JSON document. Returns 0 where nothing was wrong, else 3."""
    parser = argparse.ArgumentParser(
        description="Kill `edgekiln run` at random moments and look at what is there."
    )
    parser.add_argument("--kills", type=int, default=50, help="at least so many; chains are not cut short")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgekiln-kills-") as name:
        folder = Path(name)
        (folder / "study.toml").write_text(RECIPE, "utf-8")
        study = KillStudy(
            _starter(folder),
            folder / "runs" / "study",
            seed=options.seed,
            message=lambda text: print(text, file=sys.stderr, flush=True),
        )
        study.run_undisturbed()
        while study.result.hits.total() < options.kills or set(study.seconds) - set(study.result.hits):
            study.run_chain()
    values = {**study.result.to_dict(), "stages": dict(study.seconds), "seed": options.seed}
    values["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(values))
    return 0 if values["ok"] else 3


if __name__ == "__main__":
    sys.exit(main())
