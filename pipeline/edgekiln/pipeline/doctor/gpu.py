"""The NVIDIA side: driver and GPU, CUDA packages against the driver, TensorRT's flavours and their advisories."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.environment import tool_versions
from edgekiln.pipeline.doctor.advisories import find_exposure
from edgekiln.pipeline.doctor.child import ask_child
from edgekiln.pipeline.doctor.libraries import explain_import
from edgekiln.pipeline.doctor.row import Row, fail, ok, warn

__all__ = ["Gpus", "check_cuda_packages", "check_driver", "check_tensorrt", "probe_gpus"]

_NVIDIA_PCI_VENDOR = "0x10de"
_CUDA_PACKAGES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")
_FLAVOURS = {  # import name: distributions that tell its version, and the product that advisories name
    "tensorrt": (("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "TensorRT"),
    "tensorrt_lean": (("tensorrt-lean",), "TensorRT"),
    "tensorrt_dispatch": (("tensorrt-dispatch",), "TensorRT"),
    "tensorrt_rtx": (("tensorrt-rtx",), "TensorRT-RTX"),
}


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the driver says, as JSON values, or why it says nothing."""

    problem: str | None
    cuda: tuple[int, int] | None = None
    devices: tuple[Mapping[str, Any], ...] = ()


def probe_gpus() -> Gpus:
    """Ask the driver, in a child: it is process-wide, and a broken one may crash."""
    answer = ask_child("driver")
    if answer.problem:
        return Gpus(f"asking the NVIDIA driver failed: {answer.problem}")
    state = answer.values["driver"]
    version = state["version"]
    return Gpus(state["problem"], tuple(version) if version else None, tuple(state["devices"]))


def check_driver(gpus: Gpus, root: Path = Path("/")) -> list[Row]:
    """Driver and each GPU. No driver is a fault only where there is something for it to drive."""
    release = _driver_release(root)
    if gpus.problem is None:
        cuda = ".".join(map(str, gpus.cuda)) if gpus.cuda else "unknown"
        return [
            ok("nvidia driver", f"{release or 'of unknown release'}, CUDA up to {cuda}"),
            *(_describe_device(n, device) for n, device in enumerate(gpus.devices)),
        ]
    if release or _sees_hardware(root):
        return [
            fail(
                "nvidia driver",
                f"{f'release {release}; ' if release else 'an NVIDIA device is here; '}{gpus.problem}",
                "Install or restart the driver until `nvidia-smi` works; in a container, give it the GPU "
                "(`docker run --gpus all`).",
            )
        ]
    return [
        ok(
            "nvidia driver",
            f"{gpus.problem} No NVIDIA device is seen either: engines for GPUs cannot run here.",
        )
    ]


def _describe_device(number: int, device: Mapping[str, Any]) -> Row:
    major, minor = device["compute_capability"]
    kind = "shares the host's memory" if device["integrated"] else "own memory"
    return ok(
        f"gpu {number}",
        f"{device['name']}, SM {major}{minor}, {device['multiprocessors']} multiprocessors, "
        f"{device['total_memory'] / 2**30:.1f} GiB ({kind})",
    )


def _driver_release(root: Path) -> str | None:
    """``580.95.05`` of /proc/driver/nvidia/version."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else None


def _sees_hardware(root: Path) -> bool:
    if (root / "etc/nv_tegra_release").exists() or (root / "dev/nvidiactl").exists():
        return True
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA_PCI_VENDOR and kind.startswith("0x03"):  # a display or 3D controller
            return True
    return False


def check_cuda_packages(gpus: Gpus) -> Row:
    """Python packages of CUDA must not be of a newer major version than the driver knows."""
    versions = tool_versions(_CUDA_PACKAGES)
    if not versions:
        return ok("cuda packages", "none installed")
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    newer = [
        name for name, version in versions.items() if gpus.cuda and int(version.split(".")[0]) > gpus.cuda[0]
    ]
    if newer:
        return fail(
            "cuda packages",
            f"{found}; the driver knows CUDA up to {gpus.cuda[0]}.{gpus.cuda[1]}" if gpus.cuda else found,
            f"Update the driver, or install {' and '.join(newer)} of its major version.",
        )
    return ok("cuda packages", found)


def check_tensorrt() -> list[Row]:
    """Each flavour that is installed: whether it imports, and what the table of advisories says of its release."""
    rows = []
    for module, (distributions, product) in _FLAVOURS.items():
        if importlib.util.find_spec(module) is None:
            continue
        answer = ask_child("import", module)
        declared = next(iter(tool_versions(distributions).values()), None)
        version = answer.values.get("version", declared)
        name = module.replace("_", "-")
        if answer.problem:
            remedy = "Its shared libraries are missing or of another version: install it again."
            rows.append(fail(name, f"{version or 'of unknown version'}: {explain_import(answer)}", remedy))
        else:
            rows.append(ok(name, f"{version}, imports"))
        if version:
            rows.append(_check_advisories(name, product, version))
    return rows or [ok("tensorrt", "no flavour installed (tensorrt, tensorrt-lean, tensorrt-rtx)")]


def _check_advisories(name: str, product: str, version: str) -> Row:
    row = f"{name} advisories"
    if product != "TensorRT":
        return ok(row, f"no entry in this table, whose bulletins do not name {product}")
    exposure, entries = find_exposure(version)
    if exposure == "no entry":
        return ok(row, f"no entry in this table for {version}")
    listed = ", ".join(f"{a.cve} ({a.impact})" for a in entries)
    fixed = max(a.fixed for a in entries)
    relation = "affected by" if exposure == "affected" else "neither named as affected nor as mended:"
    return warn(
        row,
        f"{version} {relation} {listed}; {', '.join(dict.fromkeys(a.source for a in entries))}",
        f"Take TensorRT {fixed} or newer where the platform has it. Load no engine that others built: edgekiln loads "
        "only files whose sha256 stands in their bundle's manifest.",
    )
