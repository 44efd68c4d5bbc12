"""Energy per image, where the machine can tell: the power above idle while an engine runs, over the images it ran.

Three kinds of source. NVIDIA GPUs: NVML's energy counter, else its power. Jetson: the power rails of the board, from
the hwmon files of their monitors (INA3221, INA238), else from tegrastats. Intel and AMD: RAPL's energy counters.
None of these is a calibrated meter; vendors give 5 % and more. Whole boards include what the engine does not cause,
so idle power is measured just before and taken off. Power readings become energy by the trapezoid sum:

    E = sum over readings of (t[i] - t[i-1]) * (P[i] + P[i-1]) / 2

Run as a module, this measures one contender in a fresh process: one request in, one answer out, each a line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from edgekiln.runtime.errors import EngineError, MissingExtraError, UsageError
from edgekiln.runtime.extras import import_extra

__all__ = [
    "CounterMeter",
    "EnergyMeter",
    "EnergyPerImage",
    "OpenedMeter",
    "PowerMeter",
    "find_gpu_uuid",
    "measure_contender",
    "measure_energy",
    "open_meter",
    "parse_tegrastats",
    "total_watts",
]

_HWMON, _POWERCAP = Path("/sys/class/hwmon"), Path("/sys/class/powercap")
_SAMPLE_SECONDS = 0.05
_LEAST_SECONDS = 0.5
_CONTENDER_SECONDS = 3.0  # idle, and again busy: the slowest source then gives six readings of each
_SETTLE_SECONDS = 1.0  # threads that wait for work spin for some tenths of a second, which is not idle
_TIMEOUT_SECONDS = 600.0  # a first run may compile kernels
SOURCE_ERROR = 0.05
"""Of a power reading, as a share: nvml.h gives +-5 % for nvmlDeviceGetPowerUsage. Taken for every source here, since
none of the others states less for a whole board or package."""


class EnergyMeter(Protocol):
    """A source of energy readings."""

    @property
    def samples(self) -> int:
        """Readings taken so far."""

    def read_joules(self) -> float:
        """Energy since the meter was opened, in joules."""

    def describe(self) -> str:
        """What is measured, and by what."""

    def close(self) -> None:
        """Stop reading. Closing twice does nothing."""


@dataclass(frozen=True, slots=True)
class EnergyPerImage:
    """Energy of one image above idle.

    Attributes:
        joules_per_image: may be negative where the work is below what the source resolves.
        idle_watts: mean power just before.
        busy_watts: mean power while the engine ran, idle included.
        images: that were run.
        seconds: that they took.
        samples: readings that the busy power rests on.
        source: what was measured, and by what.
    """

    joules_per_image: float
    idle_watts: float
    busy_watts: float
    images: int
    seconds: float
    samples: int
    source: str

    @property
    def error_joules(self) -> float:
        """Bound of the error of ``joules_per_image`` by the source: both powers are wrong by 5 %, in opposite ways.

        error = 0.05 * (busy watts + idle watts) * seconds / images

        It holds the source's error alone: not other work that came or went between idle and busy.
        """
        return SOURCE_ERROR * (self.busy_watts + self.idle_watts) * self.seconds / self.images

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, units in the keys."""
        return {
            "mj_per_image": 1000 * self.joules_per_image,
            "error_mj": 1000 * self.error_joules,
            "idle_watts": self.idle_watts,
            "busy_watts": self.busy_watts,
            "images": self.images,
            "seconds": self.seconds,
            "samples": self.samples,
            "source": self.source,
        }


class OpenedMeter(NamedTuple):
    """A meter, or ``None`` and why there is none."""

    meter: EnergyMeter | None
    reason: str


def measure_energy(
    run: Callable[[], object],
    seconds: float,
    meter: EnergyMeter,
    *,
    images_per_call: int = 1,
    settle_seconds: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyPerImage:
    """Idle for ``seconds``, then call ``run`` for ``seconds``.

    joules_per_image = (busy joules - idle watts * busy seconds) / images

    Several seconds at least: the sources refresh between every millisecond (RAPL) and about half a second (INA3221).

    Raises:
        UsageError: ``seconds`` is below 0.5, where no source has a meaning.
        EngineError: no reading arrived while idle, or while busy: the source died.
    """
    if seconds < _LEAST_SECONDS:
        raise UsageError(f"Energy over {seconds} s means nothing; measure for {_LEAST_SECONDS} s at least.")
    run()  # warm up, outside both spans
    sleep(settle_seconds)
    start, joules, samples = clock(), meter.read_joules(), meter.samples
    sleep(seconds)
    idle_watts = (meter.read_joules() - joules) / (clock() - start)
    _check_alive(meter, samples, "idle")
    start, joules, samples, calls = clock(), meter.read_joules(), meter.samples, 0
    while clock() - start < seconds:
        run()
        calls += 1
    joules, passed = meter.read_joules() - joules, clock() - start
    _check_alive(meter, samples, "busy")
    images = calls * images_per_call
    return EnergyPerImage(
        joules_per_image=(joules - idle_watts * passed) / images,
        idle_watts=idle_watts,
        busy_watts=joules / passed,
        images=images,
        seconds=passed,
        samples=meter.samples - samples,
        source=meter.describe(),
    )


def _check_alive(meter: EnergyMeter, samples: int, span: str) -> None:
    """Without a reading, a span would have 0 W, and the difference of the two would be a figure of nothing."""
    if meter.samples == samples:
        raise EngineError(
            f"{meter.describe()} gave no reading in the {span} span: it ended, or is slower than that."
        )


def measure_contender(
    factory: str,
    arguments: Mapping[str, Any],
    frames_file: Path,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    seconds: float = _CONTENDER_SECONDS,
    places: Mapping[str, str] | None = None,
) -> EnergyPerImage:
    """Energy of one ``Session.run`` at batch 1 over rotating frames, in a fresh process.

    Args:
        factory: ``module:function`` that opens a Session, as a Contender names it.
        arguments: its keyword arguments, JSON values.
        frames_file: file of ``contender.save_inputs``.
        device: where it runs; on ``cuda`` the first GPU of the driver.
        seconds: idle, and again busy.
        places: ``hwmon``, ``powercap`` and ``tegrastats`` of ``open_meter``, where they are not the system's own.

    Raises:
        EngineError: the process failed, or the source went away; the last line that it said is in the message.
    """
    request = {
        "factory": factory, "arguments": dict(arguments), "frames": str(frames_file), "device": device,
        "seconds": seconds, "places": dict(places or {}),
    }  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgekiln.benchmarks.costs.energy"],
            input=json.dumps(request), capture_output=True, text=True, check=True, env=environment,
            timeout=_TIMEOUT_SECONDS,
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "").strip().splitlines() or [str(error)]
        raise EngineError(f"The process that measures energy failed: {said[-1]}") from error
    return EnergyPerImage(**json.loads(done.stdout.splitlines()[-1]))


def find_gpu_uuid() -> str | None:
    """The first GPU as the driver names it, ``None`` without one: NVML counts GPUs in another order."""
    from edgekiln.runtime.cuda.driver import probe_driver

    return next((device.uuid for device in probe_driver().devices), None)


def open_meter(
    device: Literal["cpu", "cuda"] = "cpu",
    *,
    gpu_uuid: str | None = None,
    hwmon: Path = _HWMON,
    powercap: Path = _POWERCAP,
    tegrastats: str = "tegrastats",
) -> OpenedMeter:
    """The best source for what runs on ``device``, or why there is none.

    Board rails first, which hold CPU and GPU alike; then NVML for a GPU and RAPL for a CPU.

    Args:
        device: where the engine runs.
        gpu_uuid: the GPU as ``DeviceProperties.uuid`` names it, since NVML counts GPUs otherwise than CUDA does;
            without it, NVML's first.
        hwmon: where Linux shows its sensors.
        powercap: where Linux shows RAPL.
        tegrastats: the command that prints rails on Jetson, for boards whose monitors have no readable files.
    """
    openers: list[Callable[[], OpenedMeter]] = [
        lambda: _open_rails(hwmon),
        lambda: _open_tegrastats(tegrastats),
        (lambda: _open_nvml(gpu_uuid)) if device == "cuda" else (lambda: _open_rapl(powercap)),
    ]
    reasons = []
    for opener in openers:
        opened = opener()
        if opened.meter is not None:
            return opened
        reasons.append(opened.reason)
    return OpenedMeter(None, "; ".join(reasons))


# --------------------------------------------------------------------------------------------------------------
# Meters


class CounterMeter:
    """Counters that only grow, read when asked.

    Args:
        counters: each gives joules, and the value at which it starts again from 0 or ``None``. A counter has to be
            read at least once in that span: RAPL's is some 65 to 262 kJ, minutes of a busy server.
    """

    def __init__(self, counters: Iterable[tuple[Callable[[], float], float | None]], source: str) -> None:
        self._counters, self._source = list(counters), source
        self._last = [read() for read, _ in self._counters]
        self._total, self._samples = 0.0, 0

    @property
    def samples(self) -> int:
        """See EnergyMeter."""
        return self._samples

    def read_joules(self) -> float:
        """See EnergyMeter."""
        for i, (read, span) in enumerate(self._counters):
            now = read()
            passed = now - self._last[i]
            self._total += passed + span if passed < 0 and span is not None else passed
            self._last[i] = now
        self._samples += 1
        return self._total

    def describe(self) -> str:
        """See EnergyMeter."""
        return self._source

    def close(self) -> None:
        """See EnergyMeter."""


class PowerMeter:
    """Power readings, summed by the trapezoid rule; a thread takes them where ``interval`` is given.

    Where readings are pushed by ``add`` (tegrastats), ``read_watts`` is ``None``, and energy is known up to the last.
    """

    def __init__(
        self,
        read_watts: Callable[[], float] | None,
        source: str,
        *,
        interval: float | None = _SAMPLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_watts, self._source, self._clock = read_watts, source, clock
        self._total, self._samples = 0.0, 0
        self._last: tuple[float, float] | None = None
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._on_close: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        if read_watts is not None:
            self._sample()
            if interval is not None:
                self._thread = threading.Thread(target=self._keep_sampling, args=(interval,), daemon=True)
                self._thread.start()

    @property
    def samples(self) -> int:
        """See EnergyMeter."""
        return self._samples

    def add(self, watts: float) -> None:
        """Take a reading of now."""
        with self._lock:
            now = self._clock()
            if self._last is not None:
                self._total += (now - self._last[0]) * (watts + self._last[1]) / 2
            self._last = (now, watts)
            self._samples += 1

    def _sample(self) -> None:
        if self._read_watts is not None:
            self.add(self._read_watts())

    def _keep_sampling(self, interval: float) -> None:
        while not self._stopped.wait(interval):
            with contextlib.suppress(OSError):  # a sensor that is busy once is asked again
                self._sample()

    def read_joules(self) -> float:
        """See EnergyMeter."""
        self._sample()
        return self._total

    def describe(self) -> str:
        """See EnergyMeter."""
        return self._source

    def close_with(self, action: Callable[[], None]) -> None:
        """Have ``action`` done at ``close``."""
        self._on_close = action

    def close(self) -> None:
        """See EnergyMeter."""
        self._stopped.set()
        action, self._on_close = self._on_close, lambda: None
        action()
        if self._thread is not None:
            self._thread.join()


# --------------------------------------------------------------------------------------------------------------
# Jetson

_WHOLE_BOARD = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails before all others: Orin Nano, Orin NX and Xavier NX; Thor; Nano."""
_WITHIN_ANOTHER = {"NC", "VDDQ_VDD2_1V8AO"}
"""Not connected; the memory's rail of AGX Orin, which VIN_SYS_5V0 feeds and so holds already."""
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]+) (-?\d+)(?:mW(?:/-?\d+mW)*|/-?\d+)(?=\s|$)")
"""The space behind keeps out memory, ``RAM 8182/62817MB``."""


def total_watts(rails: Mapping[str, float]) -> tuple[float, tuple[str, ...]]:
    """Power of the board and the rails it is made of: the one before all others, else the sum of those beside it."""
    for name in _WHOLE_BOARD:
        if name in rails:
            return rails[name], (name,)
    names = tuple(name for name in rails if name not in _WITHIN_ANOTHER)
    return sum(rails[name] for name in names), names


def parse_tegrastats(line: str) -> dict[str, float]:
    """Rails and their present watts in one line of tegrastats; empty where it has none.

    JetPack 4 prints ``VDD_IN 4542/4000``, JetPack 5 and 6 ``VDD_IN 4542mW/4000mW`` (now and mean), JetPack 7 a third
    figure, the highest; NVIDIA's Jetson Linux guide, "tegrastats Utility". An idle rail may read below 0 on Thor.
    """
    return {name: int(now) / 1000 for name, now in _RAIL.findall(line) if name != "NC"}


def _find_rails(hwmon: Path) -> dict[str, Callable[[], float]]:
    """Readers of watts by rail: mV * mA of an INA3221's labelled channels, the power of an INA238."""
    rails: dict[str, Callable[[], float]] = {}
    for monitor in sorted(hwmon.glob("hwmon*")):
        chip = _read_text(monitor / "name")
        if chip == "ina3221":
            for channel in (1, 2, 3):
                label = _read_text(monitor / f"in{channel}_label")
                if label and label not in _WITHIN_ANOTHER:
                    rails[label] = _channel_reader(monitor, channel)
        elif chip == "ina238":  # Thor: the board's input; it has no label
            rails["VIN"] = _micro_reader(monitor / "power1_input")
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


def _open_rails(hwmon: Path) -> OpenedMeter:
    readers = _find_rails(hwmon)
    if not readers:
        return OpenedMeter(None, "no INA3221 or INA238 power monitor that can be read")
    names = total_watts(dict.fromkeys(readers, 0.0))[1]
    meter = PowerMeter(lambda: sum(readers[name]() for name in names), f"board rails {' + '.join(names)}")
    return OpenedMeter(meter, "")


def _open_tegrastats(command: str) -> OpenedMeter:
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


# --------------------------------------------------------------------------------------------------------------
# RAPL and NVML


def _open_rapl(powercap: Path) -> OpenedMeter:
    """Packages and, where they are counted apart, memory. AMD's counters stand in the same folders as Intel's."""
    zones = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # not intel-rapl-mmio: the same package again
        name = _read_text(zone / "name") or ""
        if name.startswith("package-") or name == "dram":
            zones.append((name, zone))
    if not zones:
        return OpenedMeter(None, "no RAPL energy counter")
    try:
        counters = [
            (_micro_reader(zone / "energy_uj"), int((zone / "max_energy_range_uj").read_text()) / 1e6)
            for _, zone in zones
        ]
        meter = CounterMeter(counters, f"RAPL {' + '.join(name for name, _ in zones)}")
    except PermissionError:
        return OpenedMeter(None, "RAPL's energy_uj may be read by root alone here: permission denied")
    except (OSError, ValueError) as error:
        return OpenedMeter(None, f"RAPL cannot be read: {type(error).__name__}")
    return OpenedMeter(meter, "")


def _micro_reader(path: Path) -> Callable[[], float]:
    """Microjoules or microwatts of a file, in joules or watts."""
    return lambda: int(path.read_text()) / 1e6


def _open_nvml(uuid: str | None) -> OpenedMeter:
    try:
        pynvml: Any = import_extra("pynvml", "nvml")
    except MissingExtraError as error:
        return OpenedMeter(None, str(error))
    try:
        pynvml.nvmlInit()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(0)
            if uuid is None
            else pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        )
        return OpenedMeter(_nvml_meter(pynvml, handle), "")
    except pynvml.NVMLError as error:
        return OpenedMeter(None, f"NVML: {error}")


def _nvml_meter(pynvml: Any, handle: Any) -> EnergyMeter:
    try:  # from Volta on; millijoules since the driver was loaded
        read = [(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000, None)]
        return CounterMeter(read, "NVML energy counter of the GPU")
    except pynvml.NVMLError:
        return PowerMeter(
            lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, "NVML power readings of the GPU"
        )


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


# --------------------------------------------------------------------------------------------------------------
# In the measuring process


def _measure_here(request: Mapping[str, Any]) -> EnergyPerImage:
    with np.load(request["frames"], allow_pickle=False) as inputs:
        frames = itertools.cycle([np.ascontiguousarray(frame[None]) for frame in inputs["frames"]])
    module, _, name = request["factory"].partition(":")
    session = getattr(importlib.import_module(module), name)(**request["arguments"])
    uuid = find_gpu_uuid() if request["device"] == "cuda" else None
    places = request["places"]
    meter, reason = open_meter(
        request["device"],
        gpu_uuid=uuid,
        hwmon=Path(places.get("hwmon", _HWMON)),
        powercap=Path(places.get("powercap", _POWERCAP)),
        tegrastats=places.get("tegrastats", "tegrastats"),
    )
    if meter is None:
        raise EngineError(reason)
    with contextlib.closing(session), contextlib.closing(meter):
        return measure_energy(
            lambda: session.run(next(frames)), request["seconds"], meter, settle_seconds=_SETTLE_SECONDS
        )


def main() -> None:
    """Entry point: ``python -m edgekiln.benchmarks.costs.energy``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr
    print(json.dumps(asdict(_measure_here(json.load(sys.stdin)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
