"""What this machine is, read from /proc and /sys: processor, CPU features, board, power mode.

Starts no program, asks no driver and reads no serial number. What is not told is ``None``, never guessed. The facts of
a GPU come from ``runtime/cuda``; which facts a verdict or a time holds for stands in ``machine_kind.py``.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Processor",
    "parse_cpuinfo",
    "read_board",
    "read_driver",
    "read_emulation",
    "read_governors",
    "read_power_mode",
    "read_processor",
]

_ROOT = Path("/")

# MIDR_EL1 of Linux, arch/arm64/include/asm/cputype.h; names as Arm, NVIDIA and others sell them.
_IMPLEMENTERS: Mapping[int, str] = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x53: "Samsung",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}
_PARTS: Mapping[tuple[int, int], str] = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD0E): "Cortex-A76AE",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4C): "Cortex-X1C",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD87): "Cortex-A725",
    (0x41, 0xD8E): "Neoverse-N3",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1A",
}


@dataclass(frozen=True, slots=True)
class Processor:
    """What /proc/cpuinfo says.

    Attributes:
        model: the maker's name of it; of ARM cores of several types all of them, joined by " + ".
        features: of the kernel's names for instruction sets, those that every core has.
        board: the line ``Model`` of ARM boards.
    """

    model: str
    features: frozenset[str]
    board: str | None = None


def parse_cpuinfo(text: str, cores: Collection[int] | None = None) -> Processor:
    """Read the text of /proc/cpuinfo of x86 or ARM, 32 bits or 64.

    Args:
        text: of the file.
        cores: whose types are named; ``None`` names those of all. Features are always those that all cores have.
    """
    entries = list(_split_cores(text))
    named = [entry for number, entry in entries if cores is None or number in cores] or [
        e for _, e in entries
    ]
    models = sorted({name for entry in named if (name := _name_core(entry))})
    features = [set((e.get("flags") or e.get("Features") or "").split()) for _, e in entries]
    boards = [entry["Model"] for entry in _blocks(text) if "Model" in entry]
    return Processor(
        " + ".join(models) or platform.machine(),
        frozenset(set.intersection(*features)),
        boards[0] if boards else None,
    )


def _blocks(text: str) -> Iterator[dict[str, str]]:
    """Each paragraph as a mapping."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        pairs = (line.partition(":") for line in paragraph.splitlines())
        yield {key.strip(): value.strip() for key, _, value in pairs if value.strip()}


def _split_cores(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and lines of each core. Old ARM kernels tell features once, in a paragraph of no core, for all."""
    blocks = list(_blocks(text))
    numbered = [block for block in blocks if block.get("processor", "").isdigit()]
    shared = {key: value for block in blocks if block not in numbered for key, value in block.items()}
    for block in numbered or [{"processor": "0"}]:
        yield int(block["processor"]), {**shared, **block}


def _name_core(entry: Mapping[str, str]) -> str:
    """ARM kernels call every core "ARMv8 Processor rev 1 (v8l)" or nothing; its part number tells which it is."""
    try:
        implementer, part = int(entry["CPU implementer"], 16), int(entry["CPU part"], 16)
    except (KeyError, ValueError):
        return " ".join((entry.get("model name") or entry.get("Processor") or "").split())
    maker = _IMPLEMENTERS.get(implementer, f"maker {implementer:#04x}")
    return _PARTS.get((implementer, part)) or f"{maker} part {part:#05x}"


@functools.cache
def _cpuinfo(root: Path) -> str:
    """Read once in a process: kernels ask each core for its clock meanwhile, and no fact that is used changes."""
    return _read(root / "proc/cpuinfo") or ""


def read_processor(root: Path = _ROOT) -> Processor:
    """The processor, its model that of the cores which this process may use."""
    return parse_cpuinfo(_cpuinfo(root), os.sched_getaffinity(0))


def read_board(root: Path = _ROOT) -> str | None:
    """The maker's name of the board or machine, as ``Raspberry Pi 5 Model B Rev 1.0`` or a cloud's instance type.

    From the device tree, else from /proc/cpuinfo, else from the firmware's product name.
    """
    tree = _read(root / "proc/device-tree/model")
    name = (tree or "").strip("\0 \n") or read_processor(root).board
    return name or _read(root / "sys/class/dmi/id/product_name") or None


def read_emulation(root: Path = _ROOT) -> str | None:
    """Architecture of the kernel where programs see another one, since an emulator (qemu, Rosetta) runs them.

    ``None`` where none does, and where nothing tells: kernels before Linux 6.1 under another emulator than qemu, and
    emulators of a whole machine, whose kernel is emulated too.
    """
    kernel = _read(root / "proc/sys/kernel/arch")
    if kernel is not None:
        return kernel if {kernel, platform.machine()} == {"x86_64", "aarch64"} else None
    try:  # qemu hides itself in /proc/self alone
        program = (root / "proc/thread-self/exe").readlink().name
    except OSError:
        return None
    return "another architecture" if program.startswith("qemu-") else None


def read_power_mode(root: Path = _ROOT) -> tuple[str, str | None] | None:
    """(number, name) of the mode that nvpmodel set, its name from nvpmodel's configuration; ``None`` but on a Jetson.

    Args:
        root: below which ``var/lib/nvpmodel/status`` and ``etc/nvpmodel.conf`` lie.
    """
    status = re.search(r"pmode:\s*(\d+)", _read(root / "var/lib/nvpmodel/status") or "")
    config = _read(root / "etc/nvpmodel.conf") or ""
    default = re.search(r"PM_CONFIG\s+DEFAULT=(\d+)", config)
    chosen = status or default
    if chosen is None:
        return None
    number = str(int(chosen[1]))
    names = {str(int(i)): name for i, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", config)}
    return number, names.get(number)


def read_governors(root: Path = _ROOT) -> tuple[str, ...]:
    """The frequency governors of the cores that this process may use, each once; empty in most virtual machines."""
    folder = root / "sys/devices/system/cpu"
    found = {_read(folder / f"cpu{n}/cpufreq/scaling_governor") for n in os.sched_getaffinity(0)}
    return tuple(sorted(name for name in found if name))


def read_driver(root: Path = _ROOT) -> str | None:
    """Version of NVIDIA's driver: of its kernel module, else the release that a Jetson's driver comes with."""
    release = re.search(
        r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", _read(root / "etc/nv_tegra_release") or ""
    )
    return _read(root / "sys/module/nvidia/version") or (
        f"L4T {release[1]}.{release[2]}" if release else None
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None
