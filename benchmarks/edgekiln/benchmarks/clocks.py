"""How fast the machine may run now: clocks, temperatures, power mode, and what throttles it. Read from Linux's files.

Nothing is set. What a machine does not tell is ``None`` or empty, as in most virtual machines. Jetson's files were
read in NVIDIA's documentation and were not read on a board.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekiln.benchmarks.environment import read_gpu_state, read_jetson

__all__ = ["ThrottleWatch", "read_conditions"]

_CPUS = "sys/devices/system/cpu"
_LIMITING = re.compile(r"cpufreq|devfreq|throttle|powerclamp|^Processor$")
"""Types of cooling devices that slow a processor down: not fans, and not what moves a limit of temperature."""
_PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW = {
    0x2: "the firmware's cap of the clock",
    0x4: "the firmware's throttling",
    0x8: "the firmware's heat limit",
}


def read_conditions(root: Path = Path("/"), *, gpus: bool = False) -> dict[str, Any]:
    """JSON values, units in the keys.

    ``cpu_mhz``: lowest and highest clock of the usable cores; ``cpu_max_mhz``: what the hardware and the limit that is
    set allow, the lowest of the cores; ``governors``; ``temperatures_c`` by thermal zone; ``power_mode`` of a Jetson;
    ``throttled_by``: what slows a processor down now; ``gpus``: as ``read_gpu_state``, where it is asked for.

    Args:
        root: where ``sys`` and ``etc`` lie.
        gpus: ask nvidia-smi too, which takes tenths of a second.
    """
    cores = [root / _CPUS / f"cpu{core}" / "cpufreq" for core in sorted(os.sched_getaffinity(0))]
    clocks = [mhz for core in cores if (mhz := _megahertz(core / "scaling_cur_freq")) is not None]
    limits = [mhz for core in cores if (mhz := _megahertz(core / "scaling_max_freq")) is not None]
    governors = {text for core in cores if (text := _read(core / "scaling_governor"))}
    return {
        "cpu_mhz": [min(clocks), max(clocks)] if clocks else None,
        "cpu_max_mhz": min(limits) if limits else None,
        "governors": sorted(governors),
        "temperatures_c": dict(_temperatures(root)),
        "power_mode": (read_jetson(root) or {}).get("power_mode"),
        "throttled_by": sorted(_active_limits(root)),
        "gpus": read_gpu_state() if gpus else [],
    }


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        text = _read(zone / "temp") or ""  # of a part that is switched off it cannot be read
        if text.removeprefix("-").isdigit():
            yield _read(zone / "type") or zone.name, int(text) / 1000


def _active_limits(root: Path) -> Iterator[str]:
    """Cooling devices that hold a processor back now, and what the firmware of a Raspberry Pi says."""
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        kind, state = _read(device / "type") or "", _read(device / "cur_state") or ""
        if _LIMITING.search(kind) and state.isdigit() and int(state) > 0:
            yield kind
    text = _read(root / _PI) or "0"
    bits = int(text, 16) if re.fullmatch(r"(0x)?[0-9a-f]+", text) else 0
    yield from (name for bit, name in _PI_NOW.items() if bits & bit)


def _counters(root: Path) -> dict[str, int]:
    """Counters that grow when a processor was throttled: Intel's per core and package, Jetson's over-current events."""
    places = [
        *(root / _CPUS).glob("cpu[0-9]*/thermal_throttle/*_throttle_count"),
        *(root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"),
    ]
    return {str(place): int(text) for place in places if (text := _read(place) or "").isdigit()}


@dataclass(slots=True)
class ThrottleWatch:
    """Tells what throttled a processor since it was last asked. A look takes some tens of microseconds a file.

    Attributes:
        root: where ``sys`` lies.
    """

    root: Path = Path("/")
    _seen: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = _counters(self.root)

    def look(self) -> list[str]:
        """What holds a processor back now, and whose counter has grown since; empty where nothing does."""
        before, self._seen = self._seen, _counters(self.root)
        grown = {Path(place).name for place, count in self._seen.items() if count > before.get(place, count)}
        return sorted({*_active_limits(self.root), *grown})


def _megahertz(path: Path) -> float | None:
    text = _read(path)
    return int(text) / 1000 if text and text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
