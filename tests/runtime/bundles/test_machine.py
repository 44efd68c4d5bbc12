"""What the runtime reads of a machine: texts of /proc/cpuinfo as kernels write them, boards, quotas, power modes."""

import os

import pytest

from edgekiln.runtime.bundles.machine import (
    parse_cpuinfo,
    read_board,
    read_driver,
    read_emulation,
    read_governors,
    read_power_mode,
    read_processor,
)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


INTEL = """processor\t: {n}
vendor_id\t: GenuineIntel
model\t\t: 183
model name\t: 13th Gen Intel(R) Core(TM) i7-13700K
cpu MHz\t\t: 5300.000
flags\t\t: fpu sse4_2 avx f16c fma avx2 bmi2 avx_vnni sha_ni serialize
bugs\t\t: spectre_v1 spectre_v2

"""
AMD = """processor\t: {n}
vendor_id\t: AuthenticAMD
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
stepping\t: 1
flags\t\t: fpu sse4_2 avx f16c fma avx2 bmi2 sha_ni vaes vpclmulqdq
TLB size\t: 2560 4K pages
power management:

"""
PI_5 = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
PI_5_END = """Revision\t: c04170
Serial\t\t: 5e91f6e5d1d2b9a7
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
ORIN = """processor\t: {n}
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""
GRAVITON_3 = """processor\t: {n}
BogoMIPS\t: 2100.00
Features\t: fp asimd aes crc32 atomics fphp asimdhp asimdrdm asimddp sve svebf16 i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1

"""
OLD_ARM = """Processor\t: ARMv7 Processor rev 4 (v7l)
processor\t: 0
BogoMIPS\t: 38.40

processor\t: 1
BogoMIPS\t: 38.40

Features\t: half thumb fastmult vfp edsp neon vfpv3
Hardware\t: BCM2709
"""
UNKNOWN_ARM = GRAVITON_3.replace("0x41", "0x99").replace("0xd40", "0x00a")


@pytest.mark.parametrize(
    ("text", "model", "present", "absent", "board"),
    [
        (INTEL.format(n=0) + INTEL.format(n=1), "13th Gen Intel(R) Core(TM) i7-13700K", "avx_vnni", "avx512f", None),
        (AMD.format(n=0), "AMD EPYC 7763 64-Core Processor", "avx2", "avx_vnni", None),
        (PI_5.format(n=0) + PI_5.format(n=1) + PI_5_END, "Cortex-A76", "asimddp", "i8mm",
         "Raspberry Pi 5 Model B Rev 1.0"),
        (ORIN.format(n=0), "Cortex-A78AE", "asimdhp", "sve", None),
        (GRAVITON_3.format(n=0), "Neoverse-V1", "i8mm", "sve2", None),
        (UNKNOWN_ARM.format(n=0), "maker 0x99 part 0x00a", "sve", "sve2", None),
        (OLD_ARM, "ARMv7 Processor rev 4 (v7l)", "neon", "asimd", None),
    ],
)  # fmt: skip
def test_processor_is_read_as_kernels_write_it(text, model, present, absent, board):
    found = parse_cpuinfo(text)
    assert (found.model, found.board) == (model, board)
    assert present in found.features
    assert absent not in found.features


def test_of_two_types_of_cores_those_count_that_the_process_may_use_and_features_that_all_have():
    little = PI_5.replace("0xd0b", "0xd05").replace(" asimddp", "")
    text = "".join((little if n < 4 else PI_5).format(n=n) for n in range(8))
    assert parse_cpuinfo(text).model == "Cortex-A55 + Cortex-A76"
    assert parse_cpuinfo(text, {4, 5}).model == "Cortex-A76"
    assert (
        parse_cpuinfo(text, {99}).model == "Cortex-A55 + Cortex-A76"
    )  # numbers of another view of the machine
    assert "asimddp" not in parse_cpuinfo(text, {4, 5}).features


def test_without_cpuinfo_the_architecture_is_all_that_is_told(tmp_path):
    assert read_processor(tmp_path).model == os.uname().machine
    assert read_processor(tmp_path).features == frozenset()


def test_board_is_the_device_trees_else_cpuinfos_else_the_firmwares(tmp_path):
    assert read_board(tmp_path) is None
    write(tmp_path / "sys/class/dmi/id/product_name", "m7g.large")
    assert read_board(tmp_path) == "m7g.large"
    write(tmp_path / "pi/proc/cpuinfo", PI_5.format(n=0) + PI_5_END)
    assert read_board(tmp_path / "pi") == "Raspberry Pi 5 Model B Rev 1.0"
    write(tmp_path / "pi/proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    assert read_board(tmp_path / "pi") == "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize(
    ("machine", "kernel", "program", "told"),
    [
        ("aarch64", "aarch64", None, None),
        ("aarch64", "x86_64", None, "x86_64"),
        ("x86_64", "aarch64", None, "aarch64"),  # Rosetta, in a container on a Mac
        ("armv8l", "aarch64", None, None),  # a 32-bit system on its own 64-bit processor
        ("aarch64", None, "/usr/bin/qemu-aarch64-static", "another architecture"),
        ("aarch64", None, "/usr/bin/python3.11", None),
        ("aarch64", None, None, None),
    ],
)
def test_an_emulated_processor_is_told_by_the_kernel_or_by_qemus_own_program(
    tmp_path, monkeypatch, machine, kernel, program, told
):
    monkeypatch.setattr("platform.machine", lambda: machine)
    if kernel:
        (tmp_path / "proc/sys/kernel").mkdir(parents=True)
        (tmp_path / "proc/sys/kernel/arch").write_text(f"{kernel}\n")
    if program:
        (tmp_path / "proc/thread-self").mkdir(parents=True)
        (tmp_path / "proc/thread-self/exe").symlink_to(program)
    assert read_emulation(tmp_path) == told


def test_governors_of_usable_cores_are_each_told_once(tmp_path):
    assert read_governors(tmp_path) == ()
    for number in os.sched_getaffinity(0):
        write(tmp_path / f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor", "schedutil")
    write(tmp_path / "sys/devices/system/cpu/cpu9999/cpufreq/scaling_governor", "powersave")
    assert read_governors(tmp_path) == ("schedutil",)


def test_driver_is_the_modules_version_or_the_jetsons_release(tmp_path):
    assert read_driver(tmp_path) is None
    write(tmp_path / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    assert read_driver(tmp_path) == "L4T 36.4.3"
    write(tmp_path / "sys/module/nvidia/version", "580.95.05")
    assert read_driver(tmp_path) == "580.95.05"


CONFIG = "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n< PM_CONFIG DEFAULT=2 >\n"


@pytest.mark.parametrize(
    ("status", "config", "mode"),
    [
        ("pmode:0000 fmode:fanNull", CONFIG, ("0", "MAXN")),
        ("pmode:0002", CONFIG, ("2", "15W")),
        (None, CONFIG, ("2", "15W")),  # never changed: the default
        ("pmode:0007", CONFIG, ("7", None)),
        ("pmode:0007", None, ("7", None)),
        ("", "", None),
        (None, None, None),  # no Jetson
    ],
)
def test_mode_is_read_from_nvpmodels_files(tmp_path, status, config, mode):
    for name, text in (("var/lib/nvpmodel/status", status), ("etc/nvpmodel.conf", config)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (tmp_path / name).write_text(text)
    assert read_power_mode(tmp_path) == mode
