"""What a figure was measured on: CPU, GPU, versions, load, and what held them back. Read, never guessed."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgekiln.runtime.bundles.machine import read_board, read_emulation, read_processor
from edgekiln.runtime.limits import count_affinity, read_cpu_quota

__all__ = [
    "ClockPolicy",
    "CpuTimes",
    "describe_governors",
    "describe_machine",
    "measure_foreign_load",
    "parse_gpu_state",
    "parse_power_mode",
    "read_clock_policies",
    "read_commit",
    "read_cpu_mhz",
    "read_cpu_times",
    "read_gpu_state",
    "read_jetson",
    "read_work_commit",
    "tool_versions",
]

TOOLS = (
    "edgekiln",
    "numpy",
    "Pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnx",
    "nvidia-ml-py",
    "torch",
    "torchvision",
    "timm",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-lean",
    "nvidia-modelopt",
    "pycuda",
    "mlcommons-loadgen",
)


_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "GOMP_CPU_AFFINITY",
)
# What decides which kernels of the engine libraries run: x86, then ARM.
_FLAGS = frozenset({
    "sse4_2", "fma", "f16c", "avx", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
})  # fmt: skip
_SMI_FIELDS = {
    "sm_mhz": "clocks.sm",
    "sm_max_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "power_state": "pstate",
    "driver": "driver_version",
}
# Bits of nvmlClocksEventReasons, nvml.h of CUDA 13.
_THROTTLE_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}


def describe_machine() -> dict[str, Any]:
    """Machine and load as plain JSON values; names no host, user or path."""
    processor = read_processor()
    flags = processor.features
    gpus = _describe_gpus()
    return {
        "cpu": processor.model,
        "board": read_board(),
        "emulated_on": read_emulation(),
        "cores": count_affinity(),
        "avx2": "avx2" in flags,
        "vnni": bool(flags & {"avx512_vnni", "avx_vnni"}),
        "cpu_flags": sorted(flags & _FLAGS),
        "governor": describe_governors(read_clock_policies(cores=os.sched_getaffinity(0))),
        "cpu_mhz": read_cpu_mhz(),
        "cpu_quota_cores": read_cpu_quota(),
        "thread_settings": {key: os.environ[key] for key in _THREAD_VARIABLES if key in os.environ},
        "load_1min": round(os.getloadavg()[0], 2),
        "gpus": gpus,
        "gpu_state": read_gpu_state() if gpus else [],
        "jetson": read_jetson(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": tool_versions(TOOLS),
        "commit": read_commit(),
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


def read_gpu_state() -> list[dict[str, Any]]:
    """Clocks, temperature, power and what throttles each GPU that this process sees, in its order.

    As nvidia-smi tells; empty where it does not, for one of them.
    """
    from edgekiln.runtime.cuda.driver import gpu_uuids

    states = [_read_smi(uuid) for uuid in gpu_uuids()]
    return [] if None in states else [state for state in states if state]


def _read_smi(uuid: str | None) -> dict[str, Any] | None:
    chosen = "0" if uuid is None else f"GPU-{uuid}"
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):  # since 535, before it
        query = f"--query-gpu={','.join([*_SMI_FIELDS.values(), reasons])}"
        text = _ask(["nvidia-smi", "-i", chosen, query, "--format=csv,noheader,nounits"])
        if text:
            return parse_gpu_state(text)
    return None


def parse_gpu_state(line: str) -> dict[str, Any]:
    """One line of nvidia-smi's CSV as JSON values; what the GPU does not support is ``None``."""
    *cells, reasons = (cell.strip() for cell in line.split(","))
    state: dict[str, Any] = dict(zip(_SMI_FIELDS, map(_number_or_text, cells), strict=True))
    bits = int(reasons, 16) if reasons.startswith("0x") else None
    names = [name for bit, name in _THROTTLE_REASONS.items() if bits is not None and bits & bit]
    return {**state, "throttled_by": None if bits is None else names}


def _number_or_text(cell: str) -> float | str | None:
    with contextlib.suppress(ValueError):
        return float(cell)
    return None if cell.startswith("[") or cell == "N/A" else cell


def read_jetson(root: Path = Path("/")) -> dict[str, Any] | None:
    """Power mode and GPU clock of a Jetson; ``None`` on anything else."""
    release = _read(root / "etc" / "nv_tegra_release")
    if release is None:
        return None
    mode = _ask(["nvpmodel", "-q"]) or ""
    clock = next(iter(sorted((root / "sys" / "class" / "devfreq").glob("*gpu*"))), None)
    return {
        "release": release.splitlines()[0].lstrip("# "),
        "power_mode": parse_power_mode(mode),
        "gpu_mhz": None if clock is None else _megahertz(clock / "cur_freq", 1e6),
        "gpu_max_mhz": None if clock is None else _megahertz(clock / "max_freq", 1e6),
    }


def parse_power_mode(text: str) -> str | None:
    """``MAXN`` of nvpmodel's ``NV Power Mode: MAXN``."""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "Power Mode" in line]
    return names[0] if names else None


def read_cpu_mhz(folder: Path = Path("/sys/devices/system/cpu")) -> dict[str, float | None]:
    """Clock of the first usable core now, and at most; ``None`` where it is not told, as in most virtual machines."""
    core = folder / f"cpu{min(os.sched_getaffinity(0))}" / "cpufreq"
    return {
        "current": _megahertz(core / "scaling_cur_freq", 1e3),
        "max": _megahertz(core / "cpuinfo_max_freq", 1e3),
    }


@dataclass(frozen=True, slots=True)
class ClockPolicy:
    """Who chooses the clock of some cores.

    Attributes:
        cores: numbers of the cores, ascending. Those of a big.LITTLE processor may have governors of their own.
        governor: the kernel's name of the rule, as ``performance``.
        driver: the kernel's name of what sets the clock, as ``intel_pstate`` or ``cpufreq-dt``.
    """

    cores: tuple[int, ...]
    governor: str
    driver: str | None

    @property
    def pins_lowest_clock(self) -> bool:
        """``powersave`` does, but where the processor itself chooses the clock: there it is the usual governor."""
        return self.governor == "powersave" and self.driver not in _CLOCKED_BY_PROCESSOR


_CLOCKED_BY_PROCESSOR = {None, "intel_pstate", "amd-pstate-epp", "amd_pstate_epp"}


def read_clock_policies(root: Path = Path("/"), cores: Collection[int] | None = None) -> list[ClockPolicy]:
    """The policies of all cores, or of ``cores``, by their first core; empty in most virtual machines."""
    found: dict[tuple[str, str | None], list[int]] = {}
    folder = root / "sys" / "devices" / "system" / "cpu"
    numbers = sorted(int(path.name[3:]) for path in folder.glob("cpu[0-9]*") if path.name[3:].isdigit())
    for number in numbers:
        own = folder / f"cpu{number}" / "cpufreq"
        governor = _read(own / "scaling_governor") if cores is None or number in cores else None
        if governor:
            found.setdefault((governor, _read(own / "scaling_driver")), []).append(number)
    return [ClockPolicy(tuple(members), *rule) for rule, members in found.items()]


def describe_governors(policies: Sequence[ClockPolicy]) -> str | None:
    """``performance``, or where cores differ ``powersave (cores 0-3), performance (cores 4-7)``."""
    if len({policy.governor for policy in policies}) < 2:
        return policies[0].governor if policies else None
    return ", ".join(f"{policy.governor} (cores {_spell(policy.cores)})" for policy in policies)


def _spell(numbers: Sequence[int]) -> str:
    """Ascending numbers as ``0-3,6``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _megahertz(path: Path, per_mhz: float) -> float | None:
    text = _read(path)
    return float(text) / per_mhz if text and text.isdigit() else None


def read_commit(source: Path = Path(__file__)) -> str | None:
    """The git commit that this package runs from, ``-dirty`` where files differ; ``None`` where it is installed."""
    root = source.resolve().parents[3]
    # An installed package may lie in a virtual environment inside somebody else's repository.
    if not (root / ".git").exists() or not (root / "benchmarks" / "edgekiln").is_dir():
        return None
    return _describe_commit(root)


def read_work_commit(folder: Path | None) -> str | None:
    """The git commit of the work tree that a recipe lies in, ``-dirty`` where tracked files differ; else ``None``.

    The commit alone: no name of a branch, remote or folder.
    """
    return None if folder is None else _describe_commit(folder)


def _describe_commit(folder: Path) -> str | None:
    return _ask(
        ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], seconds=2
    )


def _ask(command: Sequence[str], seconds: float = 5) -> str | None:
    """What a program prints, or ``None`` where it is absent, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


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


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
