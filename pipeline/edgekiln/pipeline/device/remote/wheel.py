"""edgekiln's own wheel, of the files that run here, and the wheels that another platform needs of its dependencies.

The same way in a checkout and where it was installed: the package's files and the distribution's metadata make a wheel
(PEP 427), whose bytes depend on nothing else. So a device gets exactly the code that asks it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import edgekiln
from edgekiln.runtime.errors import EnvironmentProblem, as_printable
from edgekiln.runtime.processes import child_environment, module_command
from edgekiln.runtime.version import __version__

__all__ = ["download_wheels", "make_wheel", "platform_tags"]

_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_WHEEL = "Wheel-Version: 1.0\nGenerator: edgekiln\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_OLDEST_GLIBC, _OLDEST_MUSL = 17, 1  # of manylinux2014, and of musllinux
_LEFT_OUT = frozenset({".pyc", ".pyo"})


def make_wheel() -> tuple[str, bytes]:
    """File name and content of edgekiln's wheel; raises EnvironmentProblem where its metadata is nowhere."""
    try:
        found = distribution("edgekiln")
    except PackageNotFoundError as error:
        raise EnvironmentProblem(
            "edgekiln's own metadata is not installed here, so no wheel can be made of it.",
            hint="Install it, in a checkout with: pip install -e .",
        ) from error
    info = f"edgekiln-{__version__}.dist-info"
    members = dict(_package_files())
    members |= {f"{info}/METADATA": _metadata(found), f"{info}/WHEEL": _WHEEL.encode()}
    if entry_points := found.read_text("entry_points.txt"):
        members[f"{info}/entry_points.txt"] = entry_points.encode()
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_record_digest(data)},{len(data)}\n" for name, data in members.items()]
    members[record] = ("".join(lines) + f"{record},,\n").encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, _NO_TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(entry, data)
    return f"edgekiln-{__version__}-py3-none-any.whl", content.getvalue()


def _package_files() -> Iterator[tuple[str, bytes]]:
    """Names in a wheel and contents of all files of the package, wherever its parts lie."""
    files: dict[str, Path] = {}
    for root in map(Path, edgekiln.__path__):
        for path in root.rglob("*"):
            if path.is_file() and path.suffix not in _LEFT_OUT:
                files.setdefault(f"edgekiln/{path.relative_to(root).as_posix()}", path)
    for name in sorted(files):
        yield name, files[name].read_bytes()


def _metadata(found: Distribution) -> bytes:
    """METADATA with the version of the files, which an editable installation's may be older than."""
    text = found.read_text("METADATA") or ""
    return re.sub(r"^Version: .*$", f"Version: {__version__}", text, count=1, flags=re.MULTILINE).encode()


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def platform_tags(machine: Mapping[str, Any]) -> list[str]:
    """The platforms of wheels that a machine takes, the newest first, from what its agent says of itself."""
    processor = str(machine.get("machine"))
    library, version = [*(machine.get("libc") or ()), "", ""][:2]
    if library == "glibc":
        newest = _minor(version, _OLDEST_GLIBC)
        tags = [f"manylinux_2_{minor}_{processor}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
        return [*tags, f"manylinux2014_{processor}"]
    return [f"musllinux_1_{minor}_{processor}" for minor in range(2, _OLDEST_MUSL - 1, -1)]


def _minor(version: object, otherwise: int) -> int:
    part = str(version).partition(".")[2]
    return int(part) if part.isdigit() and len(part) < 4 else otherwise


def download_wheels(
    wheel: Path, extras: Sequence[str], machine: Mapping[str, Any], python: Sequence[int], folder: Path
) -> list[Path]:
    """Fetch here, with pip, all wheels that a machine without a network needs; returns their files.

    Args:
        wheel: edgekiln's own.
        extras: of edgekiln.
        machine: what the agent says of itself.
        python: version there, as (3, 10, 12).
        folder: an empty one.

    Raises:
        EnvironmentProblem: one has no wheel for that platform, or the index cannot be reached.
    """
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    tags = platform_tags(machine)
    done = subprocess.run(
        module_command(
            "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet", "--only-binary=:all:",
            "--implementation=cp", f"--python-version={python[0]}.{python[1]}", f"--abi=cp{python[0]}{python[1]}",
            "--abi=abi3", "--abi=none", *(f"--platform={tag}" for tag in tags), "--dest", str(folder), wanted,
        ),
        capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
        env=child_environment(),
    )  # fmt: skip
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if "ERROR" in line]
        why = as_printable(" ".join(lines)[:1000]) or f"pip ended with {done.returncode}"
        raise EnvironmentProblem(
            f"The wheels for Python {python[0]}.{python[1]} on {tags[0]} could not be fetched here: {why}",
            hint="Without a wheel for its platform, install that package on the device itself, or leave its extra out.",
        )
    return sorted(folder.glob("*.whl"))
