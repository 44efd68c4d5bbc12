"""A Jetson board's rails from the lines of tegrastats, for boards whose monitors have no readable files."""

from __future__ import annotations

import re
import subprocess
import threading

from edgekiln.benchmarks.costs.energy.board_rails import total_watts
from edgekiln.benchmarks.costs.energy.meters import OpenedMeter, PowerMeter

__all__ = ["open_tegrastats", "parse_tegrastats"]

_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]+) (-?\d+)(?:mW(?:/-?\d+mW)*|/-?\d+)(?=\s|$)")
"""The space behind keeps out memory, ``RAM 8182/62817MB``."""


def parse_tegrastats(line: str) -> dict[str, float]:
    """Rails and their present watts in one line of tegrastats; empty where it has none.

    JetPack 4 prints ``VDD_IN 4542/4000``, JetPack 5 and 6 ``VDD_IN 4542mW/4000mW`` (now and mean), JetPack 7 a third
    figure, the highest; NVIDIA's Jetson Linux guide, "tegrastats Utility". An idle rail may read below 0 on Thor.
    """
    return {name: int(now) / 1000 for name, now in _RAIL.findall(line) if name != "NC"}


def open_tegrastats(command: str) -> OpenedMeter:
    """A meter that follows what ``command`` prints until it is closed, or why there is none."""
    try:
        process = subprocess.Popen(
            [command, "--interval", "100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return OpenedMeter(None, "no tegrastats")
    assert process.stdout is not None
    first = parse_tegrastats(process.stdout.readline())
    if not first:
        _end(process)
        return OpenedMeter(None, "tegrastats prints no power rail")
    watts, names = total_watts(first)
    meter = PowerMeter(None, f"tegrastats {' + '.join(names)}")
    meter.add(watts)
    thread = threading.Thread(target=_follow, args=(process, meter), daemon=True)
    thread.start()

    def stop() -> None:
        process.terminate()
        thread.join()
        _end(process)

    meter.close_with(stop)
    return OpenedMeter(meter, "")


def _follow(process: subprocess.Popen[str], meter: PowerMeter) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        rails = parse_tegrastats(line)
        if rails:
            meter.add(total_watts(rails)[0])


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
