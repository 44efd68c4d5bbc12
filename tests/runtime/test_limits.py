"""Cores that a process may use: recorded files of control groups of both versions, and a real one where allowed."""

import subprocess
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgekiln.runtime import limits
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.limits import (
    control_group_folders,
    count_cores,
    default_threads,
    read_cpu_quota,
    usable_threads,
)
from edgekiln.runtime.processes import child_environment, code_command

# As recorded; what does not matter is left out.
V2_HOST = (
    "35 25 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
)
V2_DOCKER = "1466 1465 0:30 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n"
V1_HOST = """\
31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:5 - tmpfs tmpfs ro,mode=755
41 31 0:37 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
36 31 0:31 / /sys/fs/cgroup/cpuset rw,nosuid - cgroup cgroup rw,cpuset
32 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct
"""
V1_DOCKER = """\
900 899 0:60 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
905 900 0:33 /docker/ab12 /sys/fs/cgroup/cpu,cpuacct ro,nosuid,relatime master:15 - cgroup cgroup rw,cpu,cpuacct
"""
V1_OWN = "12:cpuset:{0}\n4:cpu,cpuacct:{0}\n1:name=systemd:{0}\n0::/system.slice/docker.service\n"


def v1(quota, period=100000):
    return {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("mounts", "own", "groups", "cores"),
    [
        (V2_HOST, "0::/", {}, None),
        (V2_HOST, "0::/a/b", {"a/b": {"cpu.max": "max 100000"}, "a": {"cpu.max": "max 100000"}}, None),
        (V2_HOST, "0::/a/b", {"a/b": {"cpu.max": "max 100000"}, "a": {"cpu.max": "150000 100000"}}, 1.5),
        (V2_HOST, "0::/a/b", {"a/b": {"cpu.max": "50000 100000"}, "a": {"cpu.max": "150000 100000"}}, 0.5),
        (V2_HOST, "0::/a/b", {"a/b": {"cpu.max": "400000 100000"}, "a": {"cpu.max": "150000 100000"}}, 1.5),
        (V2_HOST, "0::/a", {"a": {"cpu.max": "150000 100000"}, "a/b": {"cpu.max": "10000 100000"}}, 1.5),
        # A container sees its own group as the top; one whose group lies outside of that sees "/../..".
        (V2_DOCKER, "0::/", {"": {"cpu.max": "20000 10000"}}, 2.0),
        (V2_DOCKER, "0::/../../init.scope", {"": {"cpu.max": "25000 100000"}}, 0.25),
        (V1_HOST, V1_OWN.format("/a/b"), {"cpu,cpuacct/a/b": v1(-1), "cpu,cpuacct/a": v1(-1)}, None),
        (V1_HOST, V1_OWN.format("/a/b"), {"cpu,cpuacct/a/b": v1(-1), "cpu,cpuacct/a": v1(75000, 50000)}, 1.5),
        (V1_HOST, V1_OWN.format("/a/b"), {"cpu,cpuacct/a/b": v1(50000), "cpu,cpuacct/a": v1(150000)}, 0.5),
        (V1_HOST, V1_OWN.format("/a"), {"cpuset/a": v1(10000), "cpu,cpuacct/a": v1(300000)}, 3.0),
        (V1_DOCKER, V1_OWN.format("/docker/ab12"), {"cpu,cpuacct": v1(50000)}, 0.5),
        (V1_DOCKER, V1_OWN.format("/docker/ab12/in"), {"cpu,cpuacct": v1(90000), "cpu,cpuacct/in": v1(40000)}, 0.4),
        # No mountinfo: the usual places.
        (None, "0::/a", {"a": {"cpu.max": "50000 100000"}}, 0.5),
        (None, V1_OWN.format("/docker/ab12"), {"cpu": v1(200000)}, 2.0),
        (V2_HOST, "0::/a", {"a": {"cpu.max": "what is this"}}, None),
        (V2_HOST, "0::/a", {"a": {"cpu.max": "50000 0"}}, None),
    ],
)  # fmt: skip
def test_the_quota_is_the_least_of_all_levels(tmp_path, mounts, own, groups, cores):
    files = {"proc/self/cgroup": own} | ({} if mounts is None else {"proc/self/mountinfo": mounts})
    files |= {f"sys/fs/cgroup/{g}/{name}": text for g, of in groups.items() for name, text in of.items()}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert read_cpu_quota(tmp_path) == cores


def test_a_mount_point_with_a_space_is_read(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("3 2 0:3 / /my\\040groups rw - cgroup2 none rw\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    top = tmp_path / "my groups"
    assert list(control_group_folders("memory", tmp_path)) == [top / "a", top]


@pytest.mark.parametrize(
    ("quota", "cores", "usable", "default"),
    [(None, 4.0, 4, None), (8.0, 4.0, 4, None), (2.5, 2.5, 2, 2), (1.0, 1.0, 1, 1), (0.5, 0.5, 1, 1)],
)
def test_threads_that_can_run_at_once(monkeypatch, tmp_path, quota, cores, usable, default):
    monkeypatch.setattr(limits, "read_cpu_quota", lambda root: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert (count_cores(tmp_path), usable_threads(tmp_path), default_threads(tmp_path)) == (
        cores,
        usable,
        default,
    )


def test_an_affinity_counts_cores_and_not_their_threads(monkeypatch, tmp_path):
    for number in range(8):  # 0 and 4 are one core
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for affinity, threads in (({0, 1, 4, 5}, 2), ({0, 1, 2}, 3), (set(range(8)), None)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, affinity=affinity: affinity)
        assert default_threads(tmp_path) == threads


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_sessions_take_no_more_threads_than_the_quota_allows(monkeypatch, mean_model, backend):
    if find_spec(backend.partition("-")[0]) is None:  # never imported plainly: OpenVINO would send an event
        pytest.skip(f"{backend} is not installed")
    monkeypatch.setattr("edgekiln.runtime.backends.default_threads", lambda: 1)
    session = open_session(backend, mean_model)
    assert session.threads == 1
    session.close()


# What a process finds in a group of its own, and what an engine is opened with.
IN_GROUP = """
import sys
sys.stdin.readline()
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.limits import count_cores, usable_threads
with open(sys.argv[1], "rb") as file:
    session = open_session("onnxruntime-cpu", file.read())
print(count_cores(), usable_threads(), session.threads)
"""


@pytest.fixture
def real_groups():
    """(outer, inner) control groups with a CPU controller, of version 1 or 2; taken away again."""
    for top in (*dict.fromkeys(control_group_folders("cpu")), Path("/sys/fs/cgroup")):
        outer = top / f"edgekiln-test-{uuid.uuid4().hex[:8]}"
        inner = outer / "inner"
        try:
            outer.mkdir()
        except OSError:
            continue
        try:
            if (outer / "cgroup.subtree_control").exists():
                (outer / "cgroup.subtree_control").write_text("+cpu")
            inner.mkdir()
            if any((inner / name).exists() for name in ("cpu.max", "cpu.cfs_quota_us")):
                yield outer, inner
                return
        except OSError:
            pass
        finally:
            for folder in (inner, outer):
                if folder.exists():
                    folder.rmdir()
    pytest.skip("NOT TESTED: this machine lets nobody make a control group with a CPU quota")


def set_quota(group, microseconds):
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{microseconds} 100000")
    else:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text(str(microseconds))


@pytest.mark.parametrize(("outer_quota", "inner_quota", "cores"), [(80000, 50000, 0.5), (60000, None, 0.6)])
def test_a_real_control_group_limits_an_engine(
    real_groups, tmp_path, mean_model, outer_quota, inner_quota, cores
):
    outer, inner = real_groups
    set_quota(outer, outer_quota)
    if inner_quota is not None:
        set_quota(inner, inner_quota)
    (tmp_path / "model.onnx").write_bytes(mean_model)
    child = subprocess.Popen(
        code_command(IN_GROUP, str(tmp_path / "model.onnx")),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(), text=True,
    )  # fmt: skip
    (inner / "cgroup.procs").write_text(str(child.pid))
    said, complaints = child.communicate("go\n", timeout=120)
    assert said.split() == [str(cores), "1", "1"], complaints
