"""``bench BUNDLE --on DEVICE,...``: the same work on several devices at once, each with its own result or reason.

A folder gets a derived bundle for each device and ``fleet.json``. What is there already stays: the same command goes on
with the others. One device that fails stops no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.judging.stored_answers import read_answers
from edgekiln.pipeline.device.bench import BenchRequest, explain_full
from edgekiln.pipeline.device.pictures import match_pictures
from edgekiln.pipeline.device.remote.derived_check import check_derived
from edgekiln.pipeline.device.remote.fleet_file import FLEET_FILE, DeviceState, Fleet, read_fleet, write_fleet
from edgekiln.pipeline.device.remote.job import Job, is_emulated, run_job
from edgekiln.pipeline.device.remote.line import Line, open_line
from edgekiln.pipeline.device.remote.registry import Device
from edgekiln.pipeline.device.remote.sending import Sent
from edgekiln.pipeline.workspace.progress import Progress
from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.bundles.source import FolderSource
from edgekiln.runtime.errors import EdgekilnError, UsageError, as_printable

__all__ = ["FleetRequest", "FleetResult", "bench_on_devices"]

_MOST_WHY = 2000
_UNFINISHED = DeviceState("", False, False, "failed", "it has not ended yet", "interrupted")


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """What to measure on which devices.

    Attributes:
        bench: the bundle, the pictures, and a folder for the results; one of an earlier command for the same bundle is
            gone on with.
        checkpoint: the run's, to time PyTorch on devices that have it.
        ask: let ssh ask on the terminal.
    """

    bench: BenchRequest
    devices: Sequence[Device]
    checkpoint: Path | None = None
    ask: bool = False


@dataclass(frozen=True, slots=True)
class FleetResult:
    """How it went.

    Attributes:
        fleet: of all devices in the folder, those of earlier commands too.
        reports: of the derived bundles, by device; of this command's devices.
        errors: by device.
    """

    fleet: Fleet
    reports: Mapping[str, dict[str, Any]]
    errors: Mapping[str, Exception]


def bench_on_devices(request: FleetRequest, progress: Progress) -> FleetResult:
    """Measure a bundle on all devices; one that fails is told in the result.

    Raises:
        UsageError: ``out`` is another bundle's, or in use; there is no such folder of pictures.
        BundleError: the parent was altered.
        DataError: none of the pictures is one of the parent's test pictures.
    """
    parent = open_bundle(request.bench.bundle)
    with _fleet_folder(request, parent) as fleet:
        job = _prepare_job(request, parent, progress)
        fleet_run = _FleetRun(request, job, fleet, progress)
        fleet_run.run()
        names = [device.name for device in request.devices]
        reports = {name: fleet_run.reports[name] for name in names if name in fleet_run.reports}
        errors = {name: fleet_run.errors[name] for name in names if name in fleet_run.errors}
        return FleetResult(fleet_run.fleet, reports, errors)


def _prepare_job(request: FleetRequest, parent: Bundle, progress: Progress) -> Job:
    digests = read_answers(parent).digests
    found = match_pictures(digests, request.bench.data, progress)
    pictures = [
        Sent(digests[i], path.stat().st_size, path, path.relative_to(request.bench.data).parts)
        for i, path in sorted(found.items())
    ]
    checkpoint = (
        None if request.checkpoint is None else Sent.of_file(request.checkpoint, ("checkpoint.safetensors",))
    )
    return Job(parent, list(_bundle_files(parent)), pictures, checkpoint, request.bench.timed)


def _bundle_files(parent: Bundle) -> Iterator[Sent]:
    """Every file of the bundle, from its folder, or from the archive's memory."""
    on_disk = isinstance(parent.source, FolderSource)
    for name, data in parent.members():
        yield Sent(
            hashlib.sha256(data).hexdigest(), len(data), parent.path / name if on_disk else data, (name,)
        )


@contextlib.contextmanager
def _fleet_folder(request: FleetRequest, parent: Bundle) -> Iterator[Fleet]:
    """The folder of the results, held alone, and what it says so far."""
    out = request.bench.out.resolve()
    if parent.path.resolve() in (out, *out.parents):
        raise UsageError(f"{out} lies inside the bundle.", hint="Give --out another place.", path=out)
    if out.exists() and not _is_ours(out):
        raise UsageError(f"{out} is in use.", hint="Give --out a folder that does not exist.", path=out)
    with explain_full(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"Another bench is writing {out}.",
                    hint="Wait for it, or give --out another place.",
                    path=out,
                ) from error
            yield _earlier(request, out, parent)
        finally:
            os.close(descriptor)


def _is_ours(out: Path) -> bool:
    """Whether an earlier command made the folder, or it is as good as new."""
    return out.is_dir() and (
        (out / FLEET_FILE).exists() or {entry.name for entry in out.iterdir()} <= {".lock"}
    )


def _earlier(request: FleetRequest, out: Path, parent: Bundle) -> Fleet:
    if not (out / FLEET_FILE).exists():
        return Fleet(parent.name, parent.digest, request.bench.timed, ())
    fleet = read_fleet(out)
    if fleet.bundle_digest != parent.digest or fleet.timed != request.bench.timed:
        what = "another bundle" if fleet.bundle_digest != parent.digest else "a bench with another --no-bench"
        raise UsageError(
            f"{out} holds the results of {what}.", hint="Give --out a folder that does not exist.", path=out
        )
    return fleet


@dataclass
class _FleetRun:
    """All devices at work, a thread for each."""

    request: FleetRequest
    job: Job
    fleet: Fleet
    progress: Progress
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    _lines: list[Line] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        for device in self.request.devices:
            self._note(device, _UNFINISHED)
        threads = [
            threading.Thread(target=self._work, args=(device,), name=f"device {device.name}", daemon=True)
            for device in self.request.devices
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)  # so that Ctrl-C comes through
        finally:
            for line in list(
                self._lines
            ):  # of threads that are still at work: then this command was interrupted
                line.close()

    def _work(self, device: Device) -> None:
        def tell(text: str) -> None:
            self.progress.message(f"{device.name}: {text}")

        try:
            report, emulated = self._bench(device, tell)
        except Exception as error:  # told for each device; the others go on
            self.errors[device.name] = error
            code = error.code if isinstance(error, EdgekilnError) else "internal"
            tell(f"failed: {error}")
            why = as_printable(str(error))[:_MOST_WHY]
            self._note(device, replace(_UNFINISHED, why=why, code=code))
        else:
            self.reports[device.name] = report
            tell("done")
            self._note(device, DeviceState(device.name, device.required, emulated, "done"))

    def _bench(self, device: Device, tell: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
        place = self.request.bench.out.resolve() / device.name
        if place.exists() or place.is_symlink():
            tell("measured before: kept as it is")
            before = {one.name: one for one in self.fleet.devices}.get(device.name, _UNFINISHED)
            derived = open_bundle(place)
            report = check_derived(derived, self.job.parent, len(self.job.pictures))
            emulated = before.emulated or (self.request.bench.timed and report["benchmark"] is None)
            return report, emulated
        with contextlib.ExitStack() as stack:
            with self._asking if self.request.ask else contextlib.nullcontext():
                line = stack.enter_context(open_line(device, tell, ask=self.request.ask))
            self._lines.append(line)
            stack.callback(self._lines.remove, line)
            report = run_job(line, self.job, place, tell)
            # Its own edgekiln may know of an emulator that its kernel does not tell of.
            return report, is_emulated(line) or bool(report["machine"].get("emulated_on"))

    def _note(self, device: Device, state: DeviceState) -> None:
        """Keep how far a device is in ``fleet.json``."""
        with self._lock:
            new = replace(state, name=device.name, required=device.required)
            devices = {one.name: one for one in self.fleet.devices}
            if state is _UNFINISHED and (old := devices.get(device.name)) is not None and old.state == "done":
                return
            devices[device.name] = new
            self.fleet = replace(self.fleet, devices=tuple(devices.values()))
            write_fleet(self.request.bench.out.resolve(), self.fleet)
