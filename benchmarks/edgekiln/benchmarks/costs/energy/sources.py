"""Chooses the best source of energy readings for a device, or says why there is none.

Three kinds. Jetson: the power rails of the board, from the files of their monitors, else from tegrastats. NVIDIA
GPUs: NVML. Intel and AMD: RAPL. How each is read stands in the module of its name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgekiln.benchmarks.costs.energy.hwmon import open_rails
from edgekiln.benchmarks.costs.energy.meters import OpenedMeter
from edgekiln.benchmarks.costs.energy.nvml import open_nvml
from edgekiln.benchmarks.costs.energy.rapl import open_rapl
from edgekiln.benchmarks.costs.energy.tegrastats import open_tegrastats

__all__ = ["HWMON", "POWERCAP", "find_gpu_uuid", "open_meter"]

HWMON, POWERCAP = Path("/sys/class/hwmon"), Path("/sys/class/powercap")


def find_gpu_uuid() -> str | None:
    """UUID of the GPU in use, ``None`` without one or where it is the only one: NVML counts in another order."""
    from edgekiln.runtime.cuda.driver import gpu_uuids

    return next(iter(gpu_uuids()), None)


def open_meter(
    device: Literal["cpu", "cuda"] = "cpu",
    *,
    gpu_uuid: str | None = None,
    hwmon: Path = HWMON,
    powercap: Path = POWERCAP,
    tegrastats: str = "tegrastats",
) -> OpenedMeter:
    """The best source for what runs on ``device``, or why there is none.

    Board rails first, which hold CPU and GPU alike; then NVML for a GPU and RAPL for a CPU.

    Args:
        device: where the engine runs.
        gpu_uuid: the GPU as ``find_gpu_uuid`` names it, since NVML counts GPUs otherwise than CUDA does;
            without it, NVML's first.
        hwmon: where Linux shows its sensors.
        powercap: where Linux shows RAPL.
        tegrastats: the command that prints rails on Jetson, for boards whose monitors have no readable files.
    """
    openers: list[Callable[[], OpenedMeter]] = [
        lambda: open_rails(hwmon),
        lambda: open_tegrastats(tegrastats),
        (lambda: open_nvml(gpu_uuid)) if device == "cuda" else (lambda: open_rapl(powercap)),
    ]
    reasons = []
    for opener in openers:
        opened = opener()
        if opened.meter is not None:
            return opened
        reasons.append(opened.reason)
    return OpenedMeter(None, "; ".join(reasons))
