"""A Jetson board's rails from the hwmon files of its power monitors: INA3221 and INA238."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekiln.benchmarks.costs.energy.board_rails import WITHIN_ANOTHER, total_watts
from edgekiln.benchmarks.costs.energy.meters import OpenedMeter, PowerMeter
from edgekiln.benchmarks.costs.energy.sysfs import micro_reader, read_text

__all__ = ["open_rails"]


def open_rails(hwmon: Path) -> OpenedMeter:
    """A meter of the whole board's power, sampled from the files in ``hwmon``, or why there is none."""
    readers = _find_rails(hwmon)
    if not readers:
        return OpenedMeter(None, "no INA3221 or INA238 power monitor that can be read")
    names = total_watts(dict.fromkeys(readers, 0.0))[1]
    meter = PowerMeter(lambda: sum(readers[name]() for name in names), f"board rails {' + '.join(names)}")
    return OpenedMeter(meter, "")


def _find_rails(hwmon: Path) -> dict[str, Callable[[], float]]:
    """Readers of watts by rail: mV * mA of an INA3221's labelled channels, the power of an INA238."""
    rails: dict[str, Callable[[], float]] = {}
    for monitor in sorted(hwmon.glob("hwmon*")):
        chip = read_text(monitor / "name")
        if chip == "ina3221":
            for channel in (1, 2, 3):
                label = read_text(monitor / f"in{channel}_label")
                if label and label not in WITHIN_ANOTHER:
                    rails[label] = _channel_reader(monitor, channel)
        elif chip == "ina238":  # Thor: the board's input; it has no label
            rails["VIN"] = micro_reader(monitor / "power1_input")
    return {name: read for name, read in rails.items() if _can_read(read)}


def _channel_reader(monitor: Path, channel: int) -> Callable[[], float]:
    volts, amperes = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
    return lambda: int(volts.read_text()) * int(amperes.read_text()) / 1e6


def _can_read(read: Callable[[], float]) -> bool:
    try:
        read()
    except (OSError, ValueError):  # a channel that is switched off, or not ours to read
        return False
    return True
