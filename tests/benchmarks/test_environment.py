import os
import subprocess
import time
from pathlib import Path

import pytest
from tests_support import ROOT

from edgekiln.benchmarks import environment
from edgekiln.benchmarks.environment import (
    CpuTimes,
    describe_governors,
    describe_machine,
    measure_foreign_load,
    parse_gpu_state,
    parse_power_mode,
    read_clock_policies,
    read_commit,
    read_cpu_mhz,
    read_gpu_state,
    read_jetson,
    read_work_commit,
    tool_versions,
)
from edgekiln.runtime.cuda import driver


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_machine_names_cpu_versions_and_load_but_no_host_or_path():
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert {"edgekiln", "numpy", "onnxruntime", "torch"} <= set(machine["versions"])
    assert not any("/" in str(value) for key, value in machine.items() if key != "system")


def test_board_and_governor_of_the_cores_in_use_are_told(monkeypatch):
    monkeypatch.setattr(environment, "read_board", lambda: "Raspberry Pi 4 Model B Rev 1.4")
    assert describe_machine()["board"] == "Raspberry Pi 4 Model B Rev 1.4"
    policies = read_clock_policies(cores=os.sched_getaffinity(0))
    assert describe_machine()["governor"] == describe_governors(policies)


def test_machine_is_described_in_half_a_second():
    if describe_machine()["gpus"]:
        pytest.skip("nvidia-smi takes what it takes")
    times = []
    for _ in range(3):
        start = time.monotonic()
        describe_machine()
        times.append(time.monotonic() - start)
    assert min(times) < 0.5


def test_instructions_that_choose_kernels_are_named():
    machine = describe_machine()
    assert machine["avx2"] == ("avx2" in machine["cpu_flags"])
    assert machine["vnni"] == bool({"avx512_vnni", "avx_vnni"} & set(machine["cpu_flags"]))


def test_commit_of_the_recipes_work_tree(tmp_path):
    assert read_work_commit(None) is None
    assert read_work_commit(tmp_path) is None
    write(tmp_path / "recipes" / "mine.toml", "a = 1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = read_work_commit(tmp_path / "recipes")
    assert commit is not None
    assert set(commit) <= set("0123456789abcdef")
    write(tmp_path / "recipes" / "mine.toml", "a = 2")
    assert read_work_commit(tmp_path / "recipes") == f"{commit}-dirty"


def test_absent_tools_are_left_out():
    assert tool_versions(["numpy", "no-such-distribution"]).keys() == {"numpy"}


def test_steal_is_a_share_of_the_time_between_two_readings():
    passed = CpuTimes(stolen=30, idle=10, total=300) - CpuTimes(stolen=10, idle=0, total=100)
    assert passed.steal_share == 0.1
    assert CpuTimes().steal_share == 0.0


def test_foreign_load_is_a_number_of_cores():
    assert 0 <= measure_foreign_load(0.05) < 1000


def test_thread_settings_of_the_environment_are_told(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HOME_OF_SOMEBODY", "/home/somebody")
    settings = describe_machine()["thread_settings"]
    assert settings["OMP_NUM_THREADS"] == "3"
    assert "HOME_OF_SOMEBODY" not in settings


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "1980, 1980, 2619, 31, 121.45, 700.00, P0, 580.95.05, 0x0000000000000024",
            {"sm_mhz": 1980, "temperature_c": 31, "power_state": "P0",
             "driver": "580.95.05", "throttled_by": ["software power cap", "software thermal slowdown"]},
        ),
        (
            "[N/A], [N/A], [N/A], 40, [Not Supported], N/A, P8, 540.4.0, 0x0000000000000000",
            {"sm_mhz": None, "power_w": None, "power_limit_w": None, "throttled_by": []},
        ),
        ("1, 2, 3, 4, 5, 6, P0, 550.1, [N/A]", {"throttled_by": None}),
    ],
)  # fmt: skip
def test_gpu_state(line, expected):
    assert expected.items() <= parse_gpu_state(line).items()


def test_older_driver_is_asked_by_the_older_name(monkeypatch):
    monkeypatch.setattr(
        environment, "_ask", lambda command: answer_smi(command, {"GPU-b": "0x1", "GPU-a": "0x0"})
    )
    monkeypatch.setattr(driver, "gpu_uuids", lambda: ["b", "a"])
    assert [state["throttled_by"] for state in read_gpu_state()] == [["idle"], []]


def answer_smi(command, reasons):
    """What an nvidia-smi before 535 says of one GPU."""
    program, option, gpu, query, _ = command
    assert (program, option) == ("nvidia-smi", "-i")
    known = "clocks_event" not in query and gpu in reasons
    return f"1, 2, 3, 4, 5, 6, P0, 550.1, {reasons[gpu]}" if known else None


@pytest.mark.parametrize(
    ("uuids", "states"), [([], []), (["a"], [[]]), (["b", "a"], []), ([None], [["sync boost"]])]
)
def test_only_the_gpus_in_use_are_asked_about_by_their_uuid(monkeypatch, uuids, states):
    """Of GPU b nothing is told: then nobody knows which state is whose. A GPU without a UUID is the only one."""
    monkeypatch.setattr(
        environment, "_ask", lambda command: answer_smi(command, {"GPU-a": "0x0", "0": "0x10"})
    )
    monkeypatch.setattr(driver, "gpu_uuids", lambda: uuids)
    assert [state["throttled_by"] for state in read_gpu_state()] == states


def test_program_that_is_absent_fails_or_hangs_tells_nothing():
    assert environment._ask(["no-such-program"]) is None
    assert environment._ask(["false"]) is None
    assert environment._ask(["sleep", "5"], seconds=0.05) is None
    assert environment._ask(["echo", "yes"]) == "yes"


def test_jetson_power_mode_and_gpu_clock(tmp_path, monkeypatch):
    assert read_jetson(tmp_path) is None
    write(tmp_path / "etc" / "nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    write(tmp_path / "sys" / "class" / "devfreq" / "17000000.gpu" / "cur_freq", 624750000)
    monkeypatch.setattr(environment, "_ask", lambda command: "NV Power Mode: 15W\n0")
    assert read_jetson(tmp_path) == {
        "release": "R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic",
        "power_mode": "15W",
        "gpu_mhz": 624.75,
        "gpu_max_mhz": None,
    }
    assert parse_power_mode("") is None


def test_cpu_clock(tmp_path):
    core = tmp_path / f"cpu{min(os.sched_getaffinity(0))}" / "cpufreq"
    write(core / "scaling_cur_freq", 2944000)
    assert read_cpu_mhz(tmp_path) == {"current": 2944.0, "max": None}


def test_commit_of_a_working_tree_and_none_of_an_installed_package(tmp_path):
    source = tmp_path / "tree" / "benchmarks" / "edgekiln" / "benchmarks" / "environment.py"
    write(source, "")
    assert read_commit(source) is None
    installed = (
        tmp_path / "tree" / "lib" / "python3" / "site-packages" / "edgekiln" / "benchmarks" / "environment.py"
    )
    git = ["git", "-C", str(tmp_path / "tree"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = read_commit(source)
    assert commit is not None
    assert len(commit) == 40
    source.write_text("changed\n")
    assert read_commit(source) == f"{commit}-dirty"
    assert read_commit(installed) is None
    assert read_commit(Path("/nowhere/benchmarks/edgekiln/benchmarks/environment.py")) is None


def test_the_commit_of_this_checkout_stands_in_reports():
    """Found by counting folders from the module upwards, which a move of the module would break in silence."""
    done = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    assert describe_machine()["commit"].removesuffix("-dirty") == done.stdout.strip()


def lay_out_cores(root, policies):
    """Files of a processor: (cores, governor, driver) of each policy."""
    for cores, governor, name in policies:
        for core in cores:
            folder = root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
            write(folder / "scaling_governor", governor)
            write(folder / "scaling_driver", name)
    (root / "sys/devices/system/cpu/cpufreq").mkdir(parents=True, exist_ok=True)  # no core


@pytest.mark.parametrize(
    ("policies", "told", "pinned"),
    [
        ([], None, []),
        ([(range(12), "powersave", "intel_pstate")], "powersave", []),
        ([(range(12), "powersave", "amd-pstate-epp")], "powersave", []),
        ([(range(12), "powersave", "acpi-cpufreq")], "powersave", [tuple(range(12))]),
        ([(range(4), "powersave", "cpufreq-dt")], "powersave", [(0, 1, 2, 3)]),
        (  # a big.LITTLE board: the fast cores are numbered last, and core 0 alone would tell nothing of them
            [(range(4), "schedutil", "cpufreq-dt"), ((4, 5, 7), "powersave", "cpufreq-dt")],
            "schedutil (cores 0-3), powersave (cores 4-5,7)",
            [(4, 5, 7)],
        ),
    ],
)
def test_governors_of_all_cores_and_what_they_do(tmp_path, policies, told, pinned):
    lay_out_cores(tmp_path, policies)
    found = read_clock_policies(tmp_path)
    assert describe_governors(found) == told
    assert [policy.cores for policy in found if policy.pins_lowest_clock] == pinned
    chosen = [policy.cores for policy in read_clock_policies(tmp_path, cores={4})]
    assert chosen == [(4,) for cores, _, _ in policies if 4 in cores]
