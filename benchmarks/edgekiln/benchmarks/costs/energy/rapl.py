"""RAPL: the energy counters that Intel's and AMD's CPUs keep of their packages and memory."""

from __future__ import annotations

from pathlib import Path

from edgekiln.benchmarks.costs.energy.meters import CounterMeter, OpenedMeter
from edgekiln.benchmarks.costs.energy.sysfs import micro_reader, read_text

__all__ = ["open_rapl"]


def open_rapl(powercap: Path) -> OpenedMeter:
    """Packages and, where they are counted apart, memory. AMD's counters stand in the same folders as Intel's."""
    zones = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # not intel-rapl-mmio: the same package again
        name = read_text(zone / "name") or ""
        if name.startswith("package-") or name == "dram":
            zones.append((name, zone))
    if not zones:
        return OpenedMeter(None, "no RAPL energy counter")
    try:
        counters = [
            (micro_reader(zone / "energy_uj"), int((zone / "max_energy_range_uj").read_text()) / 1e6)
            for _, zone in zones
        ]
        meter = CounterMeter(counters, f"RAPL {' + '.join(name for name, _ in zones)}")
    except PermissionError:
        return OpenedMeter(None, "RAPL's energy_uj may be read by root alone here: permission denied")
    except (OSError, ValueError) as error:
        return OpenedMeter(None, f"RAPL cannot be read: {type(error).__name__}")
    return OpenedMeter(meter, "")
