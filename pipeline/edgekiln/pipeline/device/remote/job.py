"""One device's part of ``bench --on``: send what is missing, let it bench there, fetch the derived bundle, check it.

The same job has the same folder on the device, so that what was finished before a cut is gone on with. Nothing gets
its name here before every byte of it was checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.pipeline.device.bench import explain_full
from edgekiln.pipeline.device.remote.agent_machine import describe_edgekiln
from edgekiln.pipeline.device.remote.derived_check import check_derived
from edgekiln.pipeline.device.remote.line import Line
from edgekiln.pipeline.device.remote.sending import Sent, send
from edgekiln.pipeline.device.remote.upkeep import check_same_edgekiln, edgekiln_command
from edgekiln.runtime.bundles.archive import MAX_MEMBERS, MAX_TOTAL_BYTES
from edgekiln.runtime.bundles.beside import remove
from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileRecord, parse_manifest
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.errors import (
    BundleError,
    DataError,
    EdgekilnError,
    EnvironmentProblem,
    ExitCode,
    GateError,
    ResourceError,
    UsageError,
    as_printable,
)

__all__ = ["Job", "is_emulated", "run_job"]

_BUNDLE, _DATA, _MODEL, _RESULT = "bundle", "data", "model", "here"
_CHECKPOINT = "checkpoint.safetensors"
_MOST_S = 7 * 86400
_MOST_TEXT = 1000
_ERRORS = {
    kind.code: kind
    for kind in (UsageError, DataError, GateError, BundleError, EnvironmentProblem, ResourceError)
}


@dataclass(frozen=True, slots=True)
class Job:
    """What every device of a fleet is to do.

    Attributes:
        parent: the bundle, opened.
        bundle: its files.
        pictures: those of its test pictures that are here, under the names that they have here.
        checkpoint: to time PyTorch, where the device has it; or none.
        timed: ``False`` builds and judges only.
    """

    parent: Bundle
    bundle: Sequence[Sent]
    pictures: Sequence[Sent]
    checkpoint: Sent | None
    timed: bool

    def key(self, command: Sequence[str]) -> str:
        """The same for the same work by the same environment: the name of its folder on a device."""
        files = [[one.sha256, list(one.names)] for one in (*self.bundle, *self.pictures)]
        parts = [describe_edgekiln()["digest"], self.parent.digest, sorted(files), list(command)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def is_emulated(line: Line) -> bool:
    """Whether the device's processor is emulated: its kernel says so, or ``devices.toml``."""
    return line.device.emulated or line.machine.get("emulated") is True


def run_job(line: Line, job: Job, place: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Bench a bundle on the device at the other end; returns the report of the derived bundle at ``place``.

    Raises:
        EnvironmentProblem: the line is cut; the device has another edgekiln; nothing of the bundle runs there.
        ResourceError: another job runs there; a disk is full, there or here; it was killed there.
        UntrustedError: what it sent is not a derived bundle of this one.
    """
    line.lock()
    opened = line.ask("open", folder=line.device.folder, make=True)
    if not line.device.is_here:
        check_same_edgekiln(line, line.ask("facts", environment=line.device.environment))
    options = [] if job.timed and not is_emulated(line) else ["--no-bench"]
    parts = {_BUNDLE: job.bundle, _DATA: job.pictures}
    if job.checkpoint is not None:
        parts[_MODEL] = [job.checkpoint]
        options += ["--checkpoint", f"{_MODEL}/{_CHECKPOINT}"]
    work = ["jobs", job.key([*edgekiln_command(line), *options])]
    send(line, [one for files in parts.values() for one in files], tell)
    for name, files in parts.items():
        line.ask("lay", place=[*work, name], files=[[one.sha256, list(one.names)] for one in files])
    if line.ask("exists", place=[*work, _RESULT, MANIFEST_NAME]).get("exists") is not True:
        _bench(line, work, options, str(opened.get("folder")), tell)
    report = _fetch(line, [*work, _RESULT], job, place, tell)
    line.ask("discard", place=work)
    return report


def _bench(
    line: Line, work: Sequence[str], options: Sequence[str], folder: str, tell: Callable[[str], None]
) -> None:
    argv = [*edgekiln_command(line), "bench", _BUNDLE, "--data", _DATA, "--out", _RESULT, "--json", *options]
    # Engines that are built there belong to what `device remove` removes.
    environment = {} if line.device.is_here else {"EDGEKILN_CACHE": f"{folder}/cache"}
    tell("benches")
    done = line.ask("run", argv=argv, cwd=list(work), environment=environment, most_seconds=_MOST_S)
    code, name = done.get("code"), line.device.name
    if code in (ExitCode.OK, ExitCode.GATE_FAILED) and (
        line.ask("exists", place=[*work, _RESULT, MANIFEST_NAME]).get("exists") is True
    ):
        return
    if isinstance(code, int) and code < 0:
        raise ResourceError(
            f"The bench on the device {name!r} was ended by signal {-code}: by a person, or for lack of memory.",
            hint="What was timed is kept there: the same command goes on with it.",
        )
    raise _their_error(name, code, str(done.get("stdout", "")))


def _their_error(name: str, code: object, document: str) -> EdgekilnError:
    """The error that edgekiln told there, as one that is told here."""
    try:
        told = json.loads(document)["error"]
        kind = _ERRORS.get(told["code"], EnvironmentProblem)
        text, hint = str(told["message"])[:_MOST_TEXT], told.get("hint")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return EnvironmentProblem(
            f"edgekiln ended with {code!r} on the device {name!r} and did not say why.",
            hint="`edgekiln device check NAME` looks at it.",
        )
    shown = None if hint is None else as_printable(str(hint)[:_MOST_TEXT])
    return kind(f"On the device {name!r}: {as_printable(text)}", hint=shown)


# --------------------------------------------------------------------------------------------------------------
# Fetching


def _fetch(
    line: Line, there: Sequence[str], job: Job, place: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Fetch a bundle into a folder beside ``place``, check it, and give it its name."""
    raw = b"".join(line.get([*there, MANIFEST_NAME], MAX_MANIFEST_BYTES + 1))
    part = place.with_name(f".{place.name}.part")
    manifest = parse_manifest(raw, part / MANIFEST_NAME)
    total = sum(record.size for record in manifest.files.values())
    if len(manifest.files) > MAX_MEMBERS or total > MAX_TOTAL_BYTES:
        raise BundleError(
            f"The device {line.device.name!r} sent a manifest that lists more than a bundle may hold."
        )
    with explain_full(place):
        part.mkdir(exist_ok=True)
        for entry in part.iterdir():
            if entry.name not in manifest.files:
                remove(entry)
        tell("fetches the result")
        for name, record in manifest.files.items():
            _fetch_file(line, [*there, name], record, part / name, job.parent)
        (part / MANIFEST_NAME).write_bytes(raw)
        report = check_derived(open_bundle(part), job.parent, len(job.pictures))
        part.rename(place)
    return report


def _fetch_file(line: Line, there: Sequence[str], record: FileRecord, path: Path, parent: Bundle) -> None:
    """One file, unless an earlier attempt fetched it or the parent has it; raises BundleError where it is another."""
    wanted = (record.sha256, record.size)
    if path.is_symlink() or path.exists():
        if not path.is_symlink() and hash_file(path, limit=record.size) == wanted:
            return
        remove(path)
    if parent.files.get(path.name) == record:
        path.write_bytes(parent.read(path.name))
        return
    with path.open("xb") as file:
        for piece in line.get(there, record.size):
            file.write(piece)
    if hash_file(path) != wanted:
        remove(path)
        raise BundleError(
            f"The device {line.device.name!r} sent {path.name} otherwise than its manifest says.",
            hint="Run the same command again; if it stays so, look at that device.",
            path=path,
        )
