"""What a figure was measured on: CPU, versions, load. Read from the operating system, nothing is guessed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["CpuTimes", "describe_machine", "measure_foreign_load", "read_cpu_times", "tool_versions"]

TOOLS = (
    "edgekiln",
    "numpy",
    "Pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "torch",
    "torchvision",
    "timm",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-lean",
    "nvidia-modelopt",
    "pycuda",
    "cuda-bindings",
)


def describe_machine() -> dict[str, Any]:
    """Machine and load as plain JSON values; names no host, user or path."""
    model, flags = _cpu_info()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "avx2": "avx2" in flags,
        "vnni": bool(flags & {"avx512_vnni", "avx_vnni"}),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_1min": round(os.getloadavg()[0], 2),
        "gpus": _describe_gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": tool_versions(TOOLS),
    }


def _describe_gpus() -> list[dict[str, Any]]:
    """The GPUs that the driver shows, with its own version; empty without one."""
    from edgekiln.runtime.cuda.driver import probe_driver

    state = probe_driver()
    return [
        {
            "name": device.name,
            "compute_capability": ".".join(map(str, device.compute_capability)),
            "multiprocessors": device.multiprocessors,
            "memory_bytes": device.total_memory,
            "driver_cuda": None if state.version is None else ".".join(map(str, state.version)),
        }
        for device in state.devices
    ]


def tool_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of those of the named distributions that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Clock ticks of all cores since boot; zeros where the system does not tell."""

    stolen: int = 0
    idle: int = 0
    total: int = 0

    def __sub__(self, earlier: CpuTimes) -> CpuTimes:
        return CpuTimes(self.stolen - earlier.stolen, self.idle - earlier.idle, self.total - earlier.total)

    @property
    def steal_share(self) -> float:
        """Share of the time that the hypervisor gave to others, 0 to 1."""
        return self.stolen / self.total if self.total > 0 else 0.0


def read_cpu_times() -> CpuTimes:
    """Ticks from /proc/stat (user, nice, system, idle, iowait, irq, softirq, steal)."""
    text = _read("/proc/stat")
    if text is None:
        return CpuTimes()
    ticks = [int(v) for v in text.splitlines()[0].split()[1:9]]
    return CpuTimes(stolen=ticks[7], idle=ticks[3] + ticks[4], total=sum(ticks))


def measure_foreign_load(seconds: float = 1.0) -> float:
    """Cores that others keep busy, measured while this process sleeps.

    The load average would not do: it still remembers the stages that ran before.
    """
    before = read_cpu_times()
    time.sleep(seconds)
    passed = read_cpu_times() - before
    return (os.cpu_count() or 1) * (1 - passed.idle / passed.total) if passed.total > 0 else 0.0


def _cpu_info() -> tuple[str, set[str]]:
    fields: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, set((fields.get("flags") or fields.get("Features") or "").split())


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
