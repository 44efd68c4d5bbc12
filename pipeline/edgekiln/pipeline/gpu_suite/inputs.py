"""What was brought along, made ready: parts are joined and checked, wheels are unpacked for this Python.

Nothing is installed: the unpacked wheels lie in a temporary folder that the suite's processes see after all others.
"""

from __future__ import annotations

import platform
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgekiln.pipeline.gpu_suite.isolation import Tell
from edgekiln.pipeline.gpu_suite.packing import join_parts, read_manifest

__all__ = ["explain_unfit", "gather_inputs", "unpack_wheel"]


def gather_inputs(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Join the parts of a folder and unpack its wheels.

    Args:
        arguments: ``given``: a folder of parts, or of plain files; ``target`` and ``site``: folders to write.
        tell: told of each step.

    Returns:
        ``folder``: where the files lie now; ``files`` and ``wheels``: what became of each; ``failures``.
    """
    given, target, site = (Path(arguments[key]) for key in ("given", "target", "site"))
    tell({"step": "join"})
    manifest = read_manifest(given)
    files: dict[str, Any] = {}
    if manifest is None:  # plain files, which nobody packed
        target = given
        wheels = sorted(given.glob("*.whl"))
    else:
        files = join_parts(given, manifest, target)
        wheels = [
            target / name for name, file in files.items() if file["state"] == "done" and name.endswith(".whl")
        ]
    unpacked: dict[str, Any] = {}
    for wheel in wheels:
        tell({"step": f"unpack {wheel.name}"})
        unpacked[wheel.name] = _unpack(wheel, site)
    damaged = [
        {"test": name, "reason": file["reason"]} for name, file in files.items() if file["state"] == "failed"
    ]
    counts = {
        state: sum(f["state"] == state for f in files.values()) for state in ("done", "skipped", "failed")
    }
    return {
        "folder": str(target),
        "parts": None if manifest is None else manifest["parts"],
        "counts": counts,
        "files": files,
        "wheels": unpacked,
        "failures": damaged,
    }


def _unpack(wheel: Path, site: Path) -> dict[str, Any]:
    unfit = explain_unfit(wheel.name)
    if unfit is not None:
        return {"state": "skipped", "reason": unfit}
    try:
        unpack_wheel(wheel, site)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {"state": "done", "reason": None, "bytes": wheel.stat().st_size}


def explain_unfit(name: str) -> str | None:
    """Why a wheel of that name is not for this Python or machine (PEP 425); ``None`` where it is."""
    tags = name.removesuffix(".whl").split("-")[-3:]
    if len(tags) < 3 or not name.endswith(".whl"):
        return f"{name} is not named as wheels are"
    pythons, abis, platforms = (tag.split(".") for tag in tags)
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    plain = {"py3", f"py{sys.version_info.major}{sys.version_info.minor}", here}
    stable = "abi3" in abis and any(_is_older(python) for python in pythons)
    if not (plain & {*pythons} or stable):
        return f"{name} is for {tags[0]}, and this is {here}"
    if platforms != ["any"] and not any(p.endswith(f"_{platform.machine()}") for p in platforms):
        return f"{name} is for {tags[2]}, and this is {sys.platform} on {platform.machine()}"
    return None


def _is_older(python: str) -> bool:
    minor = python.removeprefix("cp3")
    return python.startswith("cp3") and minor.isdigit() and int(minor) <= sys.version_info.minor


def unpack_wheel(wheel: Path, site: Path) -> None:
    """Unpack a wheel's packages and metadata into ``site``; its scripts and headers are left out.

    Raises:
        ValueError: it holds a path that leads out of ``site``.
    """
    site.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{wheel.name} holds {member.filename!r}, which leads out of its folder")
            parts = path.parts
            if parts and parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in {"purelib", "platlib"}:
                    continue
                member.filename = "/".join(parts[2:]) + ("/" if member.is_dir() else "")
            archive.extract(member, site)
