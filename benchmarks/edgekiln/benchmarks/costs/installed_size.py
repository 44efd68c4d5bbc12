"""How much disk an installation takes: the files that its packages list as theirs (``RECORD``), dependencies included.

Counted from the metadata of what is installed here, so that no second environment has to be made: a virtual environment
with exactly these packages holds these files, and besides Python's own links and pip. Compiled bytecode is left out on
both sides: whether it is there depends on what has been imported.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import stat
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from edgekiln.runtime.extras import import_extra

__all__ = ["RUNTIME_EXTRAS", "closure", "compare_installations", "installed_mb"]

RUNTIME_EXTRAS = ("onnx",)
BUILD_EXTRAS = ("build", "onnx", "modelopt", "rtx")
_PROJECT = "edgekiln"
_NAME = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")


def compare_installations() -> dict[str, Any]:
    """Megabytes of what a product installs and of what a build machine does, and their ratio.

    ``None`` stands for what cannot be told here: a package of it is not installed. Then ``missing`` names it.
    """
    runtime, lacking = closure(RUNTIME_EXTRAS)
    build, lacking_build = closure(BUILD_EXTRAS)
    runtime_mb = None if lacking else installed_mb(runtime)
    build_mb = None if lacking_build else installed_mb(build)
    return {
        "runtime_installed_mb": runtime_mb,
        "runtime_packages": sorted(runtime),
        "build_installed_mb": build_mb,
        "build_packages": len(build),
        "runtime_share_of_build": round(runtime_mb / build_mb, 3) if runtime_mb and build_mb else None,
        "installed_size_lacks": sorted(lacking | lacking_build),
    }


def closure(extras: Iterable[str]) -> tuple[dict[str, Distribution], set[str]]:
    """Installed packages that edgekiln with these extras needs, by normal name, itself included; and those missing."""
    found: dict[str, Distribution] = {}
    missing: set[str] = set()
    waiting = [(_PROJECT, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        name, chosen = wanted
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        waiting += _needs(found[name], chosen)
    return found, missing


def _needs(package: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """What it asks for here, with the extras of that."""
    for requirement in package.requires or ():
        specification, _, marker = requirement.partition(";")
        if not _applies(marker.strip(), extras):
            continue
        match = _NAME.match(specification)
        if match:
            name = re.sub(r"[-_.]+", "-", match[1]).lower()
            inner = frozenset(part.strip() for part in (match[2] or "").split(",") if part.strip())
            yield name, inner


def _applies(marker: str, extras: frozenset[str]) -> bool:
    """Whether an environment marker holds here, for one of the chosen extras."""
    if not marker:
        return True
    markers = import_extra("packaging.markers", "onnx")  # onnxruntime brings it
    return any(markers.Marker(marker).evaluate({"extra": extra}) for extra in extras or {""})


def installed_mb(packages: dict[str, Distribution]) -> float:
    """Megabytes (10^6 bytes) of the files on disk, each counted once."""
    sizes: dict[str, int] = {}
    for package in packages.values():
        for file in package.files or ():
            _note(Path(str(package.locate_file(file))), sizes)
    if _PROJECT in packages:  # of an editable installation the metadata lists a pointer only
        for folder in importlib.import_module(_PROJECT).__path__:
            for path in Path(folder).rglob("*"):
                _note(path, sizes)
    return round(sum(sizes.values()) / 1e6, 1)


def _note(path: Path, sizes: dict[str, int]) -> None:
    if path.suffix == ".pyc":
        return
    with contextlib.suppress(FileNotFoundError):  # listed, and removed since
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            sizes[str(path.resolve())] = status.st_size
