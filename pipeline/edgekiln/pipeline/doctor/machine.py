"""Processor, its INT8 instructions, governor, usable cores and memory: what decides how fast an engine runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgekiln.benchmarks.environment import ClockPolicy, describe_governors, read_clock_policies
from edgekiln.pipeline.capacity import available_memory_bytes
from edgekiln.pipeline.doctor.row import Row, fail, ok, warn
from edgekiln.runtime.bundles.machine import read_board, read_emulation, read_processor
from edgekiln.runtime.limits import count_affinity, read_cpu_quota

__all__ = [
    "check_cores",
    "check_governor",
    "check_int8",
    "check_memory",
    "check_processor",
]

_X86_NAMES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-INT8",
}
_COMPARE = "Compare the fp32 and the int8 variant with `edgekiln bench` on this machine."
_ARM_NAMES = {"asimd": "NEON", "neon": "NEON", "asimddp": "dotprod", "i8mm": "i8mm"}
_PC_DRIVERS = {
    None, "intel_pstate", "intel_cpufreq", "acpi-cpufreq", "pcc-cpufreq", "amd-pstate", "amd-pstate-epp",
}  # fmt: skip
_LITTLE_MEMORY, _TOO_LITTLE_MEMORY = 2 * 2**30, 2**29  # bytes


def check_processor(root: Path = Path("/")) -> Row:
    """Its name and the instruction sets that matter here."""
    processor, board = read_processor(root), read_board(root)
    known = {**_X86_NAMES, **_ARM_NAMES}
    sets = [title for flag, title in known.items() if flag in processor.features]
    name = f"{processor.model} of {board}" if board else processor.model
    found = f"{name}; {', '.join(sets) or 'no vector instructions that edgekiln looks for'}"
    if kernel := read_emulation(root):
        fix = "What engines answer is right here; measure their times on a real one."
        return warn("cpu", f"{found}; emulated on {kernel}: times are the emulator's", fix)
    return ok("cpu", found)


def check_int8(root: Path = Path("/")) -> Row:
    """What INT8 is worth on this processor, and whether its products saturate."""
    flags = read_processor(root).features
    if flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return ok("int8 on cpu", "VNNI: products of 8 bits are added in 32, nothing saturates")
    if "avx2" in flags:
        return ok(
            "int8 on cpu",
            "AVX2 without VNNI: pairs of products are added in 16 bits and saturate. Files that edgekiln makes for "
            "CPUs are safe by construction; INT8 files made for TensorRT, or elsewhere, lose accuracy here",
        )
    if flags & {"asimddp", "i8mm"}:
        return ok("int8 on cpu", "dotprod or i8mm: products of 8 bits are added in 32, nothing saturates")
    if flags & {"asimd", "neon"}:
        return warn(
            "int8 on cpu",
            "NEON without dotprod: pairs of products are added in 16 bits. Files that edgekiln makes for CPUs cannot "
            "overflow there; INT8 files from elsewhere can where weights are -128, which `edgekiln inspect` tells",
            _COMPARE,
        )
    return warn(
        "int8 on cpu",
        "neither AVX2 nor NEON dotprod: INT8 runs without instructions of its own, and may be slower than FP32",
        _COMPARE,
    )


def check_governor(root: Path = Path("/")) -> Row:
    """A governor that saves power lets clocks wander, or pins the lowest one, and so decides every figure."""
    policies = read_clock_policies(root)
    found = describe_governors(policies)
    if found is None:
        return ok("cpu governor", "not told, as in most virtual machines")
    if any(policy.pins_lowest_clock for policy in policies):
        found += ": powersave pins the lowest clock here, and every engine is slow"
    elif any(policy.governor == "powersave" for policy in policies):
        found += ": clocks wander, and with them every figure"
    else:
        return ok("cpu governor", found)
    return warn("cpu governor", found, f"Before measuring: {_name_remedy(root, policies)}")


def _name_remedy(root: Path, policies: Sequence[ClockPolicy]) -> str:
    """The command for all cores. cpupower comes with kernels for PCs; boards have the kernel's files alone."""
    if (root / "etc" / "nv_tegra_release").exists():
        return "sudo jetson_clocks"
    if {policy.driver for policy in policies} <= _PC_DRIVERS:
        return "sudo cpupower frequency-set -g performance"
    return "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"


def check_cores() -> Row:
    """Cores that this process may use, and the quota that a container sets on top."""
    cores, quota = count_affinity(), read_cpu_quota()
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f", OMP_NUM_THREADS={threads}" if threads else ""
    found = f"{cores} of {os.cpu_count()} usable{setting}"
    if quota is not None and quota < cores:
        return warn(
            "cores",
            f"{found}, and a quota of {quota:g} (a container's): threads beyond it are stalled",
            f"Give --threads {max(1, int(quota))}, or raise the container's limit.",
        )
    return ok("cores", found)


def check_memory(root: Path = Path("/")) -> Row:
    """Memory that is free now, within the container's limit."""
    free = available_memory_bytes(root)
    if free is None:
        return ok("memory", "not told by this system")
    found = f"{free / 2**30:.1f} GiB free"
    if free < _TOO_LITTLE_MEMORY:
        return fail(
            "memory", found, "Close other programs, or raise the container's limit: loading may be killed."
        )
    if free < _LITTLE_MEMORY:
        return warn("memory", found, "Enough to run an engine; training and building may be killed.")
    return ok("memory", found)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
