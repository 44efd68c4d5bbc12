"""Jetson: which JetPack, which power mode, and whether this environment sees the system's TensorRT.

Read from files below ``root``, so that tests can lay out any board.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from edgekiln.pipeline.doctor.row import Row, fail, ok, warn
from edgekiln.runtime.bundles.machine import read_power_mode

__all__ = ["check_jetson", "read_jetpack"]

# L4T release to JetPack (table of the jetson_stats project; NVIDIA's release pages).
_JETPACKS = {
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
_RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")


def check_jetson(root: Path = Path("/")) -> list[Row]:
    """No rows on anything else."""
    release = read_jetpack(root)
    if release is None:
        return []
    return [_check_release(*release), _check_power_mode(root), _check_tensorrt_visible(root)]


def read_jetpack(root: Path) -> tuple[str, str | None] | None:
    """(L4T release, JetPack) of /etc/nv_tegra_release; JetPack ``None`` where the table lacks it."""
    text = _read(root / "etc/nv_tegra_release")
    if text is None:
        return None
    match = _RELEASE.search(text)
    if match is None:
        return "of unknown release", None
    l4t = f"{match[1]}.{match[2]}"
    return l4t, _JETPACKS.get(l4t) or _JETPACKS.get(".".join(l4t.split(".")[:2]))


def _check_release(l4t: str, jetpack: str | None) -> Row:
    if jetpack is None:
        return ok("jetpack", f"L4T {l4t}, not in edgekiln's table")
    return ok("jetpack", f"{jetpack} (L4T {l4t})")


def _check_power_mode(root: Path) -> Row:
    mode = read_power_mode(root)
    if mode is None:
        return warn("power mode", "not told by nvpmodel's files", "Run: sudo nvpmodel -q")
    number, name = mode
    found = f"{name or 'of unknown name'} (mode {number})"
    if (name or "").upper().startswith("MAXN"):
        return ok("power mode", found)
    return warn(
        "power mode",
        f"{found}: clocks are capped, and figures hold for this mode alone",
        "To measure the most that the board can: sudo nvpmodel -m MODE of MAXN, then sudo jetson_clocks",
    )


def _check_tensorrt_visible(root: Path) -> Row:
    """JetPack's TensorRT lies in the system's own Python; a virtual environment without its packages is blind to it."""
    name = "system tensorrt"
    if importlib.util.find_spec("tensorrt") is not None:
        return ok(name, "this Python sees it")
    installed = sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt"))
    if not installed:
        return fail(name, "JetPack's TensorRT is not installed", "Run: sudo apt install nvidia-jetpack")
    system, here = installed[0].parent.parent.name, f"python3.{sys.version_info.minor}"
    if system not in {here, "python3"}:
        remedy = f"Run: {system} -m venv --system-site-packages .venv"
        return fail(name, f"it is for {system} and this is {here}", remedy)
    return fail(
        name,
        "installed, and this virtual environment does not see it",
        f"Make the environment anew: {here} -m venv --system-site-packages .venv",
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
